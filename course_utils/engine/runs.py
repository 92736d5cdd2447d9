"""Find, read, compare and delete the folders that ``fit`` writes.

>>> for record in list_runs():
...     print(record.name, record.status, record.best)
>>> model = load_run("3f9a").model()

:mod:`course_utils.engine.run_log` lists the files in a folder.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from course_utils.common.errors import CourseError, warn
from course_utils.common.state import generators_put_back
from course_utils.common.tables import text_table
from course_utils.common.weight_files import read_state_dict
from course_utils.engine.history import EpochRecord, History, history_table
from course_utils.engine.run_log import (
    CHECKPOINTS,
    COMMAND_FILE,
    CURVES_FILE,
    HISTORY_FILE,
    LOCK_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    is_held,
    read_history,
    runs_root,
    write_report,
)
from course_utils.engine.written_transforms import CannotBuild, build_transform
from course_utils.evaluation import Report, interval_text
from course_utils.pretrained_models import add_head_dropout, load_pretrained

FOLDER_NAME = re.compile(r"\d{8}-\d{6}-[a-z0-9-]+-[0-9a-f]{4}")
OWN_FILES = (RUN_FILE, HISTORY_FILE, WEIGHTS_FILE, CURVES_FILE, CHECKPOINTS, COMMAND_FILE, LOCK_FILE)
OWN_FILES += ("report*.json", "report*.md", "confusion*.png", "events.out.tfevents.*", ".*.partial")


@dataclass(frozen=True)
class RunRecord(History):
    """The record of one run, read from its folder.

    Parameters
    ----------
    folder, facts
        Path of the folder, and content of its ``run.json`` (empty if it is damaged).
    history
        One record per finished epoch.
    reports
        Split → report as a dict (:meth:`course_utils.evaluation.Report.to_dict`).
    problem
        Reason why the folder cannot be read; empty if it can.
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
        """Last four characters of the name, usually enough to find the run."""
        return self.name.rpartition("-")[2]

    @property
    def status(self) -> str:
        """State of the run in one word.

        ``"finished"``, ``"early"``, ``"interrupted"``, ``"diverged"``, ``"failed"``, ``"running"``, ``"killed"`` (the
        process is gone and wrote no end) or ``"damaged"`` (the folder cannot be read).
        """
        if self.problem:
            return "damaged"
        status, process = self.facts["status"], self.facts["process"]
        return "killed" if status == "running" and not is_held(self.folder, process) else status

    @property
    def resumable(self) -> bool:
        """True if the same call of ``fit`` with ``resume=True`` continues this run."""
        return self.status != "running" and any(self.folder.glob(CHECKPOINTS))

    @property
    def test_accuracy(self) -> float | None:
        """Accuracy in [0, 1] in the test report that :func:`add_report` wrote; None without one."""
        return self.reports["test"]["accuracy"] if "test" in self.reports else None

    @property
    def size(self) -> int:
        """Size of the folder in bytes."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())

    @property
    def data(self) -> str:
        """Numbers of training and validation pictures, and the classes: ``"120 + 60: cat, dog"``."""
        train, val = self.facts["data"]["train"], self.facts["data"]["val"]
        names = f": {', '.join(train['classes'])}" if train["classes"] else ""
        return f"{train['pictures']} + {val['pictures']}{names}"

    @property
    def model_text(self) -> str:
        """Name of the network, or its class if ``load_pretrained`` has no name for it."""
        about = self.facts["model"]
        return about["name"] or f"a {about['class']}"

    def summary(self) -> dict[str, Any]:
        """Return the columns of ``course runs`` as plain values."""
        start = {"name": self.name, "folder": str(self.folder), "status": self.status, "bytes": self.size}
        start["resumable"] = self.resumable
        if self.problem:
            return start | {"problem": self.problem}
        best, settings = self.best, self.facts["settings"]
        return start | {
            "started": self.facts["started"],
            "data": self.data,
            "model": self.model_text,
            "strategy": self.facts["strategy"]["name"],
            "epochs": len(self.history),
            "epochs_planned": settings["epochs"],
            "seed": settings["seed"],
            "best_epoch": best and best.epoch + 1,
            "best_val_accuracy": best and best.val_accuracy,
            "best_val_loss": best and best.val_loss,
            "test_accuracy": self.test_accuracy,
            "seconds": round(self.seconds, 3),
        }

    def model(self) -> nn.Module:
        """Return the network with the best weights: on the CPU, float32, in eval mode, nothing frozen.

        Raises
        ------
        CourseError
            If the run kept no weights, or ``load_pretrained`` has no name for its network.
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
        if dropout := self.facts["model"].get("head_dropout"):  # a head of the reader's own
            with generators_put_back():
                model = load_pretrained(name, self.facts["model"]["outputs"], weights=None)
            add_head_dropout(model, dropout).load_state_dict(read_state_dict(path))
            return model.eval()
        return load_pretrained(name, checkpoint=path).eval()

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return the transform of the run's validation pictures: PIL RGB → float32 ``(3, H, W)``.

        Pictures for the network have to be prepared as they were in training.

        Raises
        ------
        CourseError
            If the record does not say it, or has parts that are none of torchvision's, such as a function.
        """
        plain, reason = self.facts.get("prepare"), "its record does not say how the pictures were prepared"
        if plain is not None:
            try:
                return build_transform(plain)
            except CannotBuild as error:
                reason = f"how the pictures were prepared cannot be built from its record: {error}"
        raise CourseError(
            f"The run {self.name} cannot be shown new pictures by itself: {reason}. In Python, load_run({self.id!r})"
            ".model() is its network: prepare the pictures with your own transform and give it those."
        )

    def _why_no_weights(self) -> str:
        if self.facts["settings"]["log"] != "full":
            return "it was logged with log='light'. Train it again with log='full'."
        if not self.history:
            return f"it is {self.status} and finished no epoch."
        if self.status == "running":
            return "it is still running, and weights are written when that takes little time, at the latest at its end."
        return f"it is {self.status}, and {WEIGHTS_FILE} was not written or was deleted. Train it again."

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: damaged, {self.problem}"
        error = self.facts["error"]
        head = f"{self.name}: {self.status}, {self.seconds:.1f} s" + (f"\n{error}" if error else "")
        if self.resumable:
            head += f"\nThe same call of fit with resume=True goes on with epoch {len(self.history) + 1}."
        reports = [
            [split, interval_text(report["right"], report["n"]), f"{report['macro_f1']:.1%}"]
            for split, report in self.reports.items()
        ]
        parts = [
            head,
            text_table(["setting", "value"], _wrapped(_settings(self).items(), width=90)),
            history_table(self.history),
            text_table(["split", "accuracy (95 % interval)", "macro F1"], reports) if reports else "No report.",
            f"{self.folder} ({self.size / 1e6:.1f} MB)",
        ]
        return "\n\n".join(parts)


# --- reading -----------------------------------------------------------------------------------------------------


def list_runs(root: Path | None = None) -> list[RunRecord]:
    """Return all runs, the newest first; damaged ones have a ``problem``.

    `root` is the folder of all runs; None for ``$COURSE_RUNS``, or ``runs`` in the cache.
    """
    root = runs_root() if root is None else Path(root)
    try:
        folders = [path for path in root.iterdir() if _is_run(path)] if root.is_dir() else []
    except OSError as error:
        raise CourseError(f"The folder of runs {root} cannot be read: {error.strerror or error}.") from error
    return sorted(map(read_run, folders), key=_age, reverse=True)


def load_run(name: str | Path, root: Path | None = None) -> RunRecord:
    """Return one run.

    Parameters
    ----------
    name
        Name of the folder, a part of it that no other run has (such as the last four characters), or a path such as
        ``Run.folder``.
    root
        Same as in :func:`list_runs`.

    Raises
    ------
    CourseError
        If there is no such run, several names contain that part, or the folder is damaged.
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
    # A damaged run is sorted by its name, which begins with the time too.
    digits = re.sub(r"\D", "", record.facts.get("started", record.name))
    return digits[:17].ljust(17, "0"), record.name


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run's folder; an error in its files becomes ``problem``."""
    history = folder / HISTORY_FILE
    try:
        record = RunRecord(
            folder,
            _read_json(folder / RUN_FILE),
            read_history(history) if history.exists() else (),  # written at the end of the first epoch
            {report["split"]: report for report in map(_read_json, sorted(folder.glob("report*.json")))},
        )
        # Use everything once, so that a damaged file is noticed here and not later.
        datetime.fromisoformat(record.facts["started"])
        record.summary()
        str(record)
    except FileNotFoundError as error:
        return RunRecord(folder, problem=f"{Path(error.filename or RUN_FILE).name} is missing")
    except OSError as error:
        return RunRecord(folder, problem=f"it cannot be read ({error.strerror or error})")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        return RunRecord(folder, problem=f"its files do not hold what they should ({reason})")
    return record


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}")
    return content


# --- adding and deleting -----------------------------------------------------------------------------------------


def add_report(folder: Path | None, report: Report, split: str = "test") -> None:
    """Store a report in a run's folder: ``report-test.json``, ``report-test.md`` and ``confusion-test.png``.

    A disk error is a warning: as in ``fit``, it does not stop the work.

    Parameters
    ----------
    folder, report
        ``Run.folder`` (None, for a run without a log, stores nothing), and the result of
        :func:`course_utils.evaluation.evaluate`.
    split
        Name of the split it was measured on, of a-z, 0-9, - and _. An old report of that name is replaced.

    Raises
    ------
    CourseError
        If the folder is not that of a run, or `split` has other characters.
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
    """Delete the files of ``fit`` and :func:`add_report`; return the names of all others, which stay in the folder.

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
        if record.folder.is_symlink():  # somebody keeps the run elsewhere on purpose
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
    """Return a table with one line per run, named by its :attr:`RunRecord.id`, or in full where two ids are equal."""
    return text_table(COLUMNS, map(_row, records, _short_names(records)))


def _row(record: RunRecord, name: str) -> list[object]:
    size = f"{record.size / 1e6:.1f}"
    if record.problem:
        return [name, *[None] * 9, "damaged", size]
    settings, data = record.facts["settings"], record.data
    return [
        name,
        f"{datetime.fromisoformat(record.facts['started']).astimezone():%Y-%m-%d %H:%M}",
        data if len(data) <= 24 else data[:23].rstrip(" ,") + "…",
        record.model_text,
        record.facts["strategy"]["name"],
        f"{len(record.history)}/{settings['epochs']}",
        str(settings["seed"]),
        f"{record.best.val_accuracy:.1%}" if record.best else None,
        None if record.test_accuracy is None else f"{record.test_accuracy:.1%}",
        f"{record.seconds:.1f}",
        f"{record.status}, resumable" if record.resumable else record.status,
        size,
    ]


def compare_runs(records: Sequence[RunRecord]) -> str:
    """Return tables of the settings in which two or more runs differ, and of their results.

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
    rows = _side_by_side([_settings(record) for record in records])
    different = [row for row in rows if len(set(row[1:])) > 1]
    parts = [
        "\n".join(f"{head}  {record.name}" for head, record in zip(heads, records, strict=True)),
        text_table(["setting", *heads], _wrapped(different)) if different else "All settings are the same.",
        text_table(["result", *heads], _side_by_side([_results(record) for record in records])),
    ]
    if any(row[0] == "data.val.fingerprint" for row in different):
        parts.append("They did not choose by the same validation pictures: their accuracies cannot be compared.")
    return "\n\n".join(parts)


def _side_by_side(columns: Sequence[dict[str, str]]) -> list[list[str]]:
    """Return a row per key, in the order in which the keys first appear."""
    keys = dict.fromkeys(itertools.chain.from_iterable(columns))
    return [[key, *(column.get(key, "-") for column in columns)] for key in keys]


def _results(record: RunRecord) -> dict[str, str]:
    best, test = record.best, record.test_accuracy
    return {
        "status": record.status,
        "epochs": str(len(record.history)),
        "best epoch": str(best.epoch + 1) if best else "-",
        "val accuracy": f"{best.val_accuracy:.1%}" if best else "-",
        "val loss": f"{best.val_loss:.4f}" if best else "-",
        "test accuracy": "-" if test is None else f"{test:.1%}",
        "seconds": f"{record.seconds:.1f}",
    }


def _settings(record: RunRecord) -> dict[str, str]:
    """Return everything that was set or found when the run began, under names joined by dots."""
    parts = ("strategy", "model", "data", "versions", "machine", "git")
    content = record.facts["settings"] | {part: record.facts[part] or {} for part in parts}
    # The level of the log and the way a run was started change nothing that is learned.
    return {key: text for key, text in flatten("", content) if key not in ("log", "resume")}


def flatten(prefix: str, content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the values of nested dicts as text, under their names joined by dots."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(f"{prefix}{key}.", value)
        elif value is None:
            yield prefix + key, "-"
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _wrapped(rows: Iterable[Sequence[str]], width: int = 48) -> list[tuple[str, ...]]:
    """Return the rows with long cells broken: the rest of a cell stands in the next row."""
    laid_out = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell in row]
        laid_out += itertools.zip_longest(*cells, fillvalue="")
    return laid_out


def _short_names(records: Sequence[RunRecord]) -> list[str]:
    ends = [record.id for record in records]
    return [record.id if ends.count(record.id) == 1 else record.name for record in records]
