"""Find, read, compare and delete the folders that ``fit`` writes.

>>> for record in list_runs():
...     print(record.name, record.status, record.best)
>>> model = load_run("3f9a").model()

What the folders hold is described in :mod:`course_utils.engine.run_log`.
"""

from __future__ import annotations

import difflib
import itertools
import json
import platform
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.common.errors import CourseError, warn
from course_utils.common.tables import text_table
from course_utils.engine.history import EpochRecord, History, history_table
from course_utils.engine.run_log import (
    CHECKPOINTS,
    CURVES_FILE,
    HISTORY_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    read_history,
    runs_root,
    write_report,
)
from course_utils.evaluation import Report, interval_text
from course_utils.pretrained_models import load_pretrained

if TYPE_CHECKING:
    from torch import nn

FOLDER_NAME = re.compile(r"\d{8}-\d{6}-[a-z0-9-]+-[0-9a-f]{4}")
OWN_FILES = (RUN_FILE, HISTORY_FILE, WEIGHTS_FILE, CURVES_FILE, "report*.json", "report*.md", "confusion*.png")
OWN_FILES += (CHECKPOINTS, "events.out.tfevents.*", ".*.partial")


@dataclass(frozen=True)
class RunRecord(History):
    """One run as its folder tells it.

    Parameters
    ----------
    folder
        Where it lies.
    facts
        What ``run.json`` holds; empty for a damaged one.
    history
        One record per finished epoch.
    reports
        Split → report as a dict (:meth:`course_utils.evaluation.Report.to_dict`).
    problem
        Why the folder cannot be read; empty if it can.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    history: tuple[EpochRecord, ...] = ()
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def id(self) -> str:
        """The end of the name, usually enough to call the run by."""
        return self.name.rpartition("-")[2]

    @property
    def status(self) -> str:
        """How it ended, or that it did not.

        ``"finished"``, ``"early"``, ``"interrupted"``, ``"diverged"``, ``"failed"``, ``"running"``, ``"killed"`` (its
        process is gone and had no time to write how it ended), or ``"damaged"``.
        """
        if self.problem:
            return "damaged"
        return "killed" if self.facts["status"] == "running" and _gone(self.facts["process"]) else self.facts["status"]

    @property
    def resumable(self) -> bool:
        """Whether ``fit(..., resume=True)``, called as it was, goes on where this run ended."""
        return self.status != "running" and any(self.folder.glob(CHECKPOINTS))

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy in the test report that :func:`add_report` wrote, in [0, 1]; None without one."""
        return self.reports["test"]["accuracy"] if "test" in self.reports else None

    @property
    def size(self) -> int:
        """Bytes that the folder takes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())

    @property
    def data(self) -> str:
        """Pictures to learn from and to choose by, and the classes: ``"120 + 60: cat, dog"``."""
        train, val = self.facts["data"]["train"], self.facts["data"]["val"]
        names = f": {', '.join(train['classes'])}" if train["classes"] else ""
        return f"{train['pictures']} + {val['pictures']}{names}"

    @property
    def model_text(self) -> str:
        """Name of the network, or its class when it has none of the known names."""
        about = self.facts["model"]
        return about["name"] or f"a {about['class']}"

    def summary(self) -> dict[str, Any]:
        """What the table of ``course runs`` shows, as plain values."""
        start = {"name": self.name, "folder": str(self.folder), "status": self.status, "bytes": self.size}
        start["resumable"] = self.resumable
        if self.problem:
            return start | {"problem": self.problem}
        return start | {
            "started": self.facts["started"],
            "data": self.data,
            "model": self.model_text,
            "strategy": self.facts["strategy"]["name"],
            "epochs": len(self.history),
            "epochs_planned": self.facts["settings"]["epochs"],
            "seed": self.facts["settings"]["seed"],
            "best_epoch": self.best.epoch + 1 if self.best else None,
            "best_val_accuracy": self.best.val_accuracy if self.best else None,
            "best_val_loss": self.best.val_loss if self.best else None,
            "test_accuracy": self.test_accuracy,
            "seconds": round(self.seconds, 3),
        }

    def model(self) -> nn.Module:
        """Build the network again and fill it with the best weights.

        Returns
        -------
        nn.Module
            On the CPU, float32, in eval mode, everything able to learn.

        Raises
        ------
        CourseError
            If the run kept no weights, or its network has none of the names that ``load_pretrained`` knows.
        """
        path = self.folder / WEIGHTS_FILE
        if not path.is_file():
            raise CourseError(f"The run {self.name} has no weights: {self._why_no_weights()}")
        name = self.facts["model"]["name"]
        if name is None:
            raise CourseError(
                f"The network of the run {self.name}, a {self.facts['model']['class']}, is none that load_pretrained "
                f"builds. Build it as you did before, then model.load_state_dict(read_state_dict({str(path)!r}))."
            )
        return load_pretrained(name, checkpoint=path).eval()

    def _why_no_weights(self) -> str:
        if self.facts["settings"]["log"] != "full":
            return "it was logged with log='light'. Train it again with log='full'."
        if not self.history:
            return f"it is {self.status} and finished no epoch."
        if self.status == "running":
            return "it is still running, and weights are written when that takes little time, at the latest at its end."
        return f"it is {self.status}, and {WEIGHTS_FILE} was not written or was deleted. Train it again."

    def __str__(self) -> str:
        return _details(self)


def _gone(process: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; one of another machine cannot be seen and counts as running."""
    import psutil

    if process["host"] != platform.node():
        return False
    try:
        # Numbers of processes are used again; two that were born within a second are one.
        return abs(psutil.Process(process["pid"]).create_time() - process["born"]) > 1
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


# --- reading -----------------------------------------------------------------------------------------------------


def list_runs(root: Path | None = None) -> list[RunRecord]:
    """All runs, the newest first; what cannot be read is listed with its ``problem``.

    Parameters
    ----------
    root
        Folder of runs; by default ``$COURSE_RUNS``, or ``runs`` in the cache.

    Raises
    ------
    CourseError
        If the folder is there and cannot be read.
    """
    root = runs_root() if root is None else Path(root)
    try:
        folders = [path for path in root.iterdir() if _is_run(path)] if root.is_dir() else []
    except OSError as error:
        raise CourseError(f"The folder of runs {root} cannot be read: {error.strerror or error}.") from error
    return sorted((read_run(folder) for folder in folders), key=_age, reverse=True)


def load_run(name: str | Path, root: Path | None = None) -> RunRecord:
    """One run.

    Parameters
    ----------
    name
        Of its folder, or a part of it that no other run has (the four characters at the end, say), or a path such as
        ``Run.folder``.
    root
        As for :func:`list_runs`.

    Raises
    ------
    CourseError
        If there is no such run, several have that part in their names, or the folder is damaged.
    """
    record = find_run(name, root)
    if record.problem:
        raise CourseError(f"The run {record.name} is damaged: {record.problem}. `course runs --delete` removes it.")
    return record


def find_run(name: str | Path, root: Path | None = None) -> RunRecord:
    """Return one run, which may be damaged; parameters and errors as in :func:`load_run`."""
    if isinstance(name, Path) or len(Path(name).parts) > 1:
        path = Path(name).expanduser()
        if not _is_run(path):
            raise CourseError(f"{str(path)!r} is no folder of a run: it has no {RUN_FILE}.")
        return read_run(path.absolute())
    records = list_runs(root)
    for fits in (lambda r: r.name == name, lambda r: r.id == name, lambda r: bool(name) and name in r.name):
        found = [record for record in records if fits(record)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(record.name for record in found[:5])
            raise CourseError(f"{name!r} stands in the names of {len(found)} runs: {names}. Give more of the name.")
    where = runs_root() if root is None else root
    if not records:
        raise CourseError(f"There is no run {name!r}: {where} holds none yet. Every call of fit writes one there.")
    near = difflib.get_close_matches(name, [part for r in records for part in (r.name, r.id)], n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The newest is {records[0].name}."
    raise CourseError(f"There is no run {name!r} in {where}. {hint} `course runs` lists all.")


def _is_run(path: Path) -> bool:
    return path.is_dir() and (FOLDER_NAME.fullmatch(path.name) is not None or (path / RUN_FILE).is_file())


def _age(record: RunRecord) -> tuple[str, str]:
    # A damaged one is sorted by its name, which begins with the time as well.
    digits = re.sub(r"\D", "", record.facts.get("started", record.name))
    return digits[:17].ljust(17, "0"), record.name


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run; what is wrong with it stands in ``problem``."""
    try:
        record = RunRecord(folder, _read_json(folder / RUN_FILE), _history(folder), _reports(folder))
        _check_by_use(record)
    except FileNotFoundError as error:
        return RunRecord(folder, problem=f"{Path(error.filename or RUN_FILE).name} is missing")
    except OSError as error:
        return RunRecord(folder, problem=f"it cannot be read ({error.strerror or error})")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        return RunRecord(folder, problem=f"its files do not hold what they should ({reason})")
    return record


def _check_by_use(record: RunRecord) -> None:
    """Whatever is asked of a record later must not fail then: ask now."""
    datetime.fromisoformat(record.facts["started"])
    record.summary()
    _details(record)
    _flat(record)


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}")
    return content


def _history(folder: Path) -> tuple[EpochRecord, ...]:
    path = folder / HISTORY_FILE
    return read_history(path) if path.exists() else ()  # not there before the end of the first epoch


def _reports(folder: Path) -> dict[str, dict[str, Any]]:
    contents = [_read_json(path) for path in sorted(folder.glob("report*.json"))]
    return {content["split"]: content for content in contents}


# --- adding and deleting -----------------------------------------------------------------------------------------


def add_report(folder: Path | None, report: Report, split: str = "test") -> None:
    """Store a report in a run's folder: ``report-test.json``, ``report-test.md`` and ``confusion-test.png``.

    Parameters
    ----------
    folder
        ``Run.folder``. None (a run with ``log="off"``, or whose log could not be written) stores nothing.
    report
        From :func:`course_utils.evaluation.evaluate`.
    split
        What it was measured on; a short name of a-z, 0-9, - and _. A report of that name is replaced.

    Raises
    ------
    CourseError
        If the folder is no run's, or for another kind of name.

    Warns
    -----
    UserWarning
        If it cannot be written: as in ``fit``, trouble with a disk does not stop the work.
    """
    if folder is None:
        return
    if not (Path(folder) / RUN_FILE).is_file():
        raise CourseError(f"{str(folder)!r} is no folder of a run: it has no {RUN_FILE}. Give the folder of a Run.")
    try:
        write_report(Path(folder), report, split)
    except CourseError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        warn(f"The report was not stored: {error}")


def delete_run(record: RunRecord) -> list[str]:
    """Delete what ``fit`` and :func:`add_report` wrote, and the folder when nothing else is in it.

    Parameters
    ----------
    record
        From :func:`list_runs` or :func:`load_run`.

    Returns
    -------
    list of str
        Names of files that somebody else put there; they stay, and so does the folder.

    Raises
    ------
    CourseError
        If the run is still going on, or something cannot be deleted.
    """
    if record.problem and not FOLDER_NAME.fullmatch(record.name):
        raise CourseError(f"{record.folder} does not look like a run of the course: nothing was deleted.")
    if record.status == "running":
        raise CourseError(f"The run {record.name} is still going on: stop it first.")
    try:
        if record.folder.is_symlink():  # the run lies elsewhere, somebody wants it there
            record.folder.unlink()
            return []
        for path in itertools.chain.from_iterable(record.folder.glob(pattern) for pattern in OWN_FILES):
            path.unlink()
        left = sorted(path.name for path in record.folder.iterdir())
        if not left:
            record.folder.rmdir()
    except OSError as error:
        raise CourseError(f"{error.filename or record.folder} cannot be deleted: {error.strerror or error}.") from error
    return left


# --- tables ------------------------------------------------------------------------------------------------------

COLUMNS = ("name", "started", "data", "model", "strategy", "epochs", "seed", "val acc", "test acc", "seconds")
COLUMNS += ("status", "MB")


def runs_table(records: Sequence[RunRecord]) -> str:
    """One line per run. The name is the end of the folder's name, or the whole of it where two end alike."""
    rows = [_row(record, name) for record, name in zip(records, _short_names(records), strict=True)]
    return text_table(COLUMNS, rows)


def _row(record: RunRecord, name: str) -> list[object]:
    size = f"{record.size / 1e6:.1f}"
    if record.problem:
        return [name, *[None] * 9, "damaged", size]
    asked = record.facts["settings"]
    return [
        name,
        f"{datetime.fromisoformat(record.facts['started']).astimezone():%Y-%m-%d %H:%M}",
        _cut(record.data, 24),
        record.model_text,
        record.facts["strategy"]["name"],
        f"{len(record.history)}/{asked['epochs']}",
        str(asked["seed"]),
        _percent(record.best.val_accuracy if record.best else None),
        _percent(record.test_accuracy),
        f"{record.seconds:.1f}",
        f"{record.status}, resumable" if record.resumable else record.status,
        size,
    ]


def compare_runs(records: Sequence[RunRecord]) -> str:
    """Two or more runs side by side: what was set differently, and what came of it.

    Raises
    ------
    CourseError
        If fewer than two runs are given, the same one twice, or a damaged one.
    """
    if len(records) < 2 or len({record.folder for record in records}) < len(records):
        raise CourseError(
            f"A comparison takes two or more different runs; given: {', '.join(r.name for r in records)}."
        )
    for record in records:
        if record.problem:
            raise CourseError(f"The run {record.name} is damaged and cannot be compared: {record.problem}.")
    heads = _short_names(records)
    settings = [_flat(record) for record in records]
    keys = list(dict.fromkeys(key for flat in settings for key in flat))
    rows = [[key, *(flat.get(key, "-") for flat in settings)] for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    results = [[name, *values] for name, *values in zip(RESULTS, *map(_results, records), strict=True)]
    parts = [
        "\n".join(f"{head}  {record.name}" for head, record in zip(heads, records, strict=True)),
        text_table(["setting", *heads], _wrapped(different)) if different else "All settings are the same.",
        text_table(["result", *heads], results),
    ]
    if any(row[0] == "data.val.fingerprint" for row in different):
        parts.append("They did not choose by the same validation pictures: their accuracies cannot be compared.")
    return "\n\n".join(parts)


RESULTS = ("status", "epochs", "best epoch", "val accuracy", "val loss", "test accuracy", "seconds")


def _results(record: RunRecord) -> list[str]:
    best = record.best
    return [
        record.status,
        str(len(record.history)),
        str(best.epoch + 1) if best else "-",
        _percent(best.val_accuracy) if best else "-",
        f"{best.val_loss:.4f}" if best else "-",
        _percent(record.test_accuracy) or "-",
        f"{record.seconds:.1f}",
    ]


def _details(record: RunRecord) -> str:
    """All that ``course runs NAME`` tells."""
    if record.problem:
        return f"{record.name}: damaged, {record.problem}"
    error = record.facts["error"]
    head = f"{record.name}: {record.status}, {record.seconds:.1f} s" + (f"\n{error}" if error else "")
    reports = [
        [split, interval_text(report["right"], report["n"]), f"{report['macro_f1']:.1%}"]
        for split, report in record.reports.items()
    ]
    if record.resumable:
        head += f"\nThe same call of fit with resume=True goes on with epoch {len(record.history) + 1}."
    parts = [
        head,
        text_table(["setting", "value"], _wrapped([list(item) for item in _flat(record).items()], width=90)),
        history_table(record.history),
        text_table(["split", "accuracy (95 % interval)", "macro F1"], reports) if reports else "No report.",
        f"{record.folder} ({record.size / 1e6:.1f} MB)",
    ]
    return "\n\n".join(parts)


def _flat(record: RunRecord) -> dict[str, str]:
    """Everything that was set or found when the run began, under names with dots."""
    facts = record.facts
    parts = {"": facts["settings"]} | {
        f"{part}.": facts[part] or {} for part in ("strategy", "model", "data", "versions", "machine", "git")
    }
    # What is logged, and whether a run could be taken up again, changes nothing that is learned.
    silent = ("log", "resume")
    return {key: text for prefix, part in parts.items() for key, text in flatten(prefix, part) if key not in silent}


def flatten(prefix: str, content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the values of nested dicts as text, under their names joined by dots."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(f"{prefix}{key}.", value)
        elif value is None:
            yield prefix + key, "-"
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _wrapped(rows: Sequence[Sequence[str]], width: int = 48) -> list[list[str]]:
    """Rows whose long cells go on in rows of their own."""
    laid_out = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell in row]
        laid_out += [list(line) for line in itertools.zip_longest(*cells, fillvalue="")]
    return laid_out


def _short_names(records: Sequence[RunRecord]) -> list[str]:
    ends = [record.id for record in records]
    return [record.id if ends.count(record.id) == 1 else record.name for record in records]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip(" ,") + "…"
