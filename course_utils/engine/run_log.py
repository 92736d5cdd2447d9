"""The log of a run: every call of ``fit`` writes a folder with its settings and results.

====================  =============================================================================================
``run.json``          status, arguments, strategy, model, data, versions, machine, commit; written first and last
``history.csv``       one row per epoch, counted from 1; written after each epoch, so a killed run keeps its rows
``best.safetensors``  weights of the best epoch, whose number is in the file's metadata
``report.json, .md``  answers of the best weights on the validation split; ``report-test`` is from ``add_report``
``curves.png``        loss and accuracy by epoch
``confusion.png``     confusion matrix of that report
``checkpoint-*.bin``  state of an unfinished run with ``resume`` (:mod:`course_utils.engine.checkpoints`)
``command.json``      arguments of ``course train``, if that began the run
``.lock``             empty; locked by the process that works on the run, see :func:`hold`
====================  =============================================================================================

The folder is in ``$COURSE_RUNS``, or in ``runs`` in the course's cache. With ``COURSE_TENSORBOARD=1`` it also has
TensorBoard's event files. :mod:`course_utils.engine.runs` reads these folders.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import platform
import re
import secrets
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor, nn

from course_utils import plots
from course_utils.common.errors import CourseError, warn
from course_utils.common.files import is_full, write_text, written_whole
from course_utils.data.samples import classes_of
from course_utils.engine.history import EpochRecord, Run, best_epoch
from course_utils.engine.provenance import (
    describe_data,
    describe_machine,
    describe_model,
    describe_versions,
    git_state,
    transform_of,
)
from course_utils.engine.written_transforms import as_plain
from course_utils.evaluation import Report, plot_confusion
from course_utils.fine_tuning import Plan
from course_utils.settings import load_settings

LEVELS = ("full", "light", "off")
RUN_FILE, HISTORY_FILE, WEIGHTS_FILE, CURVES_FILE = "run.json", "history.csv", "best.safetensors", "curves.png"
CHECKPOINTS = "checkpoint-*.bin"  # of course_utils.engine.checkpoints
LOCK_FILE, COMMAND_FILE = ".lock", "command.json"
FORMAT = 1
MANY_CLASSES = 30  # a larger confusion matrix is not legible as a picture; report.json has its numbers

# Weights are written in the middle of a run only where that takes at most this share of an epoch's time.
SLOW_DISK = 50e6  # bytes per second
SHARE_FOR_WRITING = 0.1


def runs_root(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of all runs: ``$COURSE_RUNS``, or ``runs`` in the cache folder of the settings.

    Raises
    ------
    CourseError
        If ``COURSE_RUNS`` is not set and the settings cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = environ.get("COURSE_RUNS")
    return (Path(given).expanduser() if given else load_settings(environ).cache / "runs").absolute()


def worth_writing_now(size: int, epoch_seconds: float) -> bool:
    """Return True if weights of `size` bytes are to be written after an epoch that took `epoch_seconds`."""
    return size / SLOW_DISK <= SHARE_FOR_WRITING * epoch_seconds


def _errors_become_warnings(method: Callable) -> Callable:
    """Turn an error in a method of the log into one warning, after which nothing more is written."""

    @functools.wraps(method)
    def guarded(log: RunLog, *args: Any, **options: Any) -> None:
        if not log.on:
            return
        try:
            method(log, *args, **options)
        except Exception as error:  # any error: neither a full disk nor a failed figure may end hours of training
            log.on = False
            warn(_warning(log.place, error))

    return guarded


def _warning(place: Path | None, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, OSError):
        reason = cause.strerror or str(cause)
    else:
        reason = str(cause) if isinstance(cause, CourseError) else f"{type(cause).__name__}: {cause}"
    where = f" in {place}" if place else ""
    way_out = "Free some space, set" if is_full(cause) else "Set"
    return (
        f"The log of this run{where} could not be written: {reason}. Training goes on without it. {way_out} "
        "COURSE_RUNS to a folder that you may write to, or call fit(..., log='off')."
    )


class RunLog:
    """Writes the folder of one run. The first error becomes a warning and ends the writing, not the training.

    Parameters
    ----------
    level
        ``"full"``; ``"light"``, without weights, report and figures; ``"off"``, nothing at all.
    settings, plan, model, train, val, device
        Arguments of ``fit`` by name, and parts of the training to describe.
    folder
        Folder of a resumed run; None begins a new one. The attribute of this name is None if it could not be made,
        while ``place`` is always its path. ``on`` is True while anything is written.
    """

    def __init__(
        self,
        level: str,
        settings: dict[str, Any],
        plan: Plan,
        model: nn.Module,
        train: Sized,
        val: Sized,
        device: torch.device,
        folder: Path | None = None,
    ) -> None:
        self.level, self.on = level, level != "off"
        self.folder: Path | None = None
        self.place = folder
        self.resumed = folder is not None
        self.classes = classes_of(val)
        self._weights_of: int | None = None  # epoch whose weights are on disk
        self._board: Any = None
        self._begin(settings, plan, model, train, val, device)

    @_errors_become_warnings
    def _begin(
        self, settings: dict, plan: Plan, model: nn.Module, train: Sized, val: Sized, device: torch.device
    ) -> None:
        now = datetime.now(UTC)
        about_model = describe_model(model)
        if not self.resumed:
            words = f"{plan.strategy.name[:40]} {about_model['family']}".lower()
            words = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
            end = secrets.token_hex(2)  # not from the seeded generators
            self.place = runs_root() / f"{now:%Y%m%d-%H%M%S}-{words}-{end}"
        started, resumed = self._before(now.isoformat(timespec="milliseconds"))
        self._facts = {
            "format": FORMAT,
            "status": "running",
            "error": None,
            "started": started,
            "resumed": resumed,
            "seconds": 0.0,
            "epochs": 0,
            "best": None,
            "settings": settings,
            "strategy": asdict(plan.strategy),
            "plan": [asdict(row) for row in plan.rows],
            "model": about_model,
            "data": {"train": describe_data(train), "val": describe_data(val)},
            "prepare": as_plain(transform_of(val)),
            "versions": describe_versions(),
            "machine": describe_machine(device),
            "git": git_state(),
            "process": this_process(),
        }
        try:
            _write_json(self.place / RUN_FILE, self._facts)
        except CourseError:
            with contextlib.suppress(OSError):
                self.place.rmdir()  # made a moment ago, and empty
            raise
        self.folder = self.place
        self._board = _tensorboard(self.folder)

    def _before(self, now: str) -> tuple[str, list[str]]:
        """Return the time when the run began, and the times when it was resumed."""
        if not self.resumed:
            return now, []
        try:
            facts = json.loads((self.place / RUN_FILE).read_text(encoding="utf-8"))
            return facts["started"], [*facts.get("resumed", []), now]
        except (OSError, ValueError, KeyError, TypeError):  # damaged: it is written again
            return now, [now]

    @_errors_become_warnings
    def epoch(self, run: Run, best_state: dict[str, Tensor]) -> None:
        """Write the record of the last epoch, and its weights if they are the best and quickly written."""
        record = run.history[-1]
        write_history(self.folder / HISTORY_FILE, run.history)
        if self._board is not None:
            for kind in ("loss", "accuracy"):
                for split in ("train", "val"):
                    self._board.add_scalar(f"{kind}/{split}", getattr(record, f"{split}_{kind}"), record.epoch + 1)
            self._board.add_scalar("seconds", record.seconds, record.epoch + 1)
            self._board.flush()
        size = sum(tensor.nbytes for tensor in best_state.values())
        if self.level == "full" and record is best_epoch(run.history) and worth_writing_now(size, record.seconds):
            self._write_weights(best_state, record.epoch)

    def end(self, run: Run, best_state: dict[str, Tensor], answers: tuple[Tensor, Tensor] | None) -> None:
        """Write the end of a run, the weights of its best epoch and a report about their answers.

        `answers` are probabilities ``(N, C)`` and labels ``(N,)`` of the validation split; None for no report.
        """
        self._end(run)
        if self.level == "full" and run.history:
            self._end_full(run, best_state, answers)

    @_errors_become_warnings
    def _end(self, run: Run) -> None:
        best = best_epoch(run.history)
        self._facts |= {
            "status": run.stopped,
            "error": run.error,
            "seconds": sum(record.seconds for record in run.history),
            "epochs": len(run.history),
            "best": None if best is None else best.as_row(),
        }
        _write_json(self.place / RUN_FILE, self._facts)
        if self.resumed and run.history:  # a process killed after its checkpoint had no time for this
            write_history(self.folder / HISTORY_FILE, run.history)
        if self._board is not None:
            self._board.close()

    @_errors_become_warnings
    def _end_full(self, run: Run, best_state: dict[str, Tensor], answers: tuple[Tensor, Tensor] | None) -> None:
        epoch = best_epoch(run.history).epoch
        if self._weights_of != epoch:
            self._write_weights(best_state, epoch)
        if answers is not None:
            probabilities, labels = answers
            outputs = probabilities.shape[1]
            names = self.classes if len(self.classes) == outputs else tuple(str(i) for i in range(outputs))
            write_report(self.folder, Report(names, labels.numpy(), probabilities.numpy()))
        figure = plots.learning_curves({self._facts["strategy"]["name"]: run})
        _write_figure(self.folder / CURVES_FILE, figure)

    def _write_weights(self, state: dict[str, Tensor], epoch: int) -> None:
        # safetensors stores tensors row by row; on a GPU or in channels_last they are not laid out like that.
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        with written_whole(self.folder / WEIGHTS_FILE) as beside:
            beside.write_bytes(save(tensors, metadata={"epoch": str(epoch + 1)}))
        self._weights_of = epoch


# --- one process for a run ---------------------------------------------------------------------------------------

_HELD: dict[Path, FileLock] = {}  # locks of the runs that this process is in the middle of


def hold(folder: Path) -> bool:
    """Lock the folder of a run for this process, until :func:`let_go`; return False if another one works on the run.

    The system frees the lock of a process that was killed. A disk without locks (some network disks) locks nothing, and
    there True says nothing; where the locks of a network disk do not reach other machines, it is about this one.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0.1)  # `course runs` holds it for a moment
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return True
    _HELD[folder] = lock
    return True


def let_go(folder: Path | None) -> None:
    """Free the lock of a run, if this process holds it."""
    if folder in _HELD:
        _HELD.pop(folder).release()


def is_held(folder: Path, process: Mapping[str, Any]) -> bool:
    """Return True if a process works on a run; `process` is what :func:`this_process` said when the run began.

    The lock decides. Where there is none, it is that process: one of another machine counts as working.
    """
    with contextlib.suppress(OSError, NotImplementedError):
        if (folder / LOCK_FILE).is_file():
            try:
                with FileLock(folder / LOCK_FILE).acquire(timeout=0):
                    return False
            except Timeout:
                return True
    if process["host"] != platform.node():
        return True
    try:
        # A process number is used again later, so the starting time (to a second) has to agree too.
        return abs(psutil.Process(process["pid"]).create_time() - process["born"]) <= 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def this_process() -> dict[str, Any]:
    """Return host, number and starting time of this process, by which it can be found later."""
    process = psutil.Process()
    return {"host": platform.node(), "pid": process.pid, "born": process.create_time()}


# --- files -------------------------------------------------------------------------------------------------------


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one row per epoch as CSV; epochs count from 1, numbers keep all their digits."""
    with written_whole(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(EpochRecord)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(record.as_row() | {"learning": " ".join(record.learning)} for record in history)


def read_history(path: Path) -> tuple[EpochRecord, ...]:
    """Return the records that :func:`write_history` wrote; ``ValueError`` or ``KeyError`` for any other file."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = [field.name for field in fields(EpochRecord) if field.name not in ("epoch", "learning", "val_macro_f1")]
    return tuple(
        EpochRecord(
            epoch=int(row["epoch"]) - 1,
            learning=tuple(row["learning"].split()),
            **{name: float(row[name]) for name in numbers},
            # Empty where the accuracy chose the epoch; files of older versions do not have the column.
            val_macro_f1=float(row["val_macro_f1"]) if row.get("val_macro_f1") else None,
        )
        for row in rows
    )


def write_report(folder: Path, report: Report, split: str = "val") -> None:
    """Write a report as JSON and as Markdown, and its confusion matrix as a picture.

    The files are ``report.json`` and so on for the split ``"val"``, ``report-test.json`` and so on for ``"test"``.
    """
    if not re.fullmatch(r"[a-z0-9_-]{1,40}", split):
        raise CourseError(f"split={split!r}: give a short name of a-z, 0-9, - and _, such as 'test' or 'test-night'.")
    end = "" if split == "val" else f"-{split}"
    _write_json(folder / f"report{end}.json", {"split": split, **report.to_dict()})
    write_text(folder / f"report{end}.md", f"# Answers on the {split} split\n\n{report.to_markdown()}")
    if len(report.classes) <= MANY_CLASSES:
        _write_figure(folder / f"confusion{end}.png", plot_confusion(report))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    write_text(path, text + "\n")


def _write_figure(path: Path, figure: Any) -> None:
    drawn = plots.png_bytes(figure, limit=2**40)  # the limit for a notebook's pictures does not apply to a file
    with written_whole(path) as beside:
        beside.write_bytes(drawn)


# --- TensorBoard -------------------------------------------------------------------------------------------------


def _tensorboard(folder: Path) -> Any:
    if os.environ.get("COURSE_TENSORBOARD") != "1":
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warn(
            "COURSE_TENSORBOARD=1 is set and TensorBoard is not installed: this run has no event files (history.csv "
            "has the same numbers). Install it with `pip install tensorboard`, or unset COURSE_TENSORBOARD."
        )
        return None
    return SummaryWriter(str(folder))
