"""The record of one call of ``fit``: an :class:`EpochRecord` per epoch, collected in a :class:`Run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from course_utils.common.errors import CourseError
from course_utils.common.tables import text_table
from course_utils.fine_tuning import Plan, Strategy


@dataclass(frozen=True)
class EpochRecord:
    """Losses and accuracies of one epoch.

    Losses are cross-entropies in nats, means over samples, without label smoothing and class weights, so that they
    can be compared between runs; accuracies are shares of samples in [0, 1]. The training ones are counted while the
    weights change and with augmentation, so they may lie below the validation ones.

    Parameters
    ----------
    epoch
        Number of the epoch, from 0.
    learning
        Names of the stages that learned.
    train_loss, train_accuracy, val_loss, val_accuracy
        As above.
    seconds
        Time for training and validation.
    """

    epoch: int
    learning: tuple[str, ...]
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float

    def as_row(self) -> dict[str, Any]:
        """Return the record as it stands in files: the epoch is counted from 1, as people do."""
        return asdict(self) | {"epoch": self.epoch + 1}


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """Return the epoch with the highest validation accuracy, then the lowest loss, then the first; None without one."""
    return min(history, key=lambda record: (-record.val_accuracy, record.val_loss), default=None)


def history_table(history: Sequence[EpochRecord]) -> str:
    """Return a table with one line per epoch, the best one marked."""
    best = best_epoch(history)
    rows = [
        [
            r.epoch + 1,
            f"{r.train_loss:.3f}",
            f"{r.train_accuracy:.1%}",
            f"{r.val_loss:.3f}",
            f"{r.val_accuracy:.1%}",
            ", ".join(r.learning) if len(r.learning) < 3 else f"{len(r.learning)} stages",
            "best" if r is best else "",
        ]
        for r in history
    ]
    return text_table(["epoch", "train loss", "train acc", "val loss", "val acc", "learning", ""], rows)


class History:
    """Properties of everything that has a ``history``: a :class:`Run`, or a run that was read from disk."""

    history: Sequence[EpochRecord]

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the highest validation accuracy, then the lowest loss; None without one."""
        return best_epoch(self.history)

    @property
    def seconds(self) -> float:
        """Time spent in epochs."""
        return sum(record.seconds for record in self.history)


@dataclass
class Run(History):
    """The record of one call of ``fit``; the trained weights are in the model itself.

    Parameters
    ----------
    strategy, plan, seed
        Arguments of the call.
    history
        One record per finished epoch.
    stopped
        Reason of the end: ``"finished"``, ``"early"`` (no better for `patience` epochs), ``"interrupted"`` (Stop,
        Ctrl-C), ``"diverged"`` (the loss was no number any more) or ``"failed"`` (another error); ``"running"`` before.
    folder
        Folder of the run's log, see :mod:`course_utils.engine.run_log`; None without one.
    resumed
        Number of epochs that were there already when this call of ``fit`` took the run up.
    cached
        The border in front of which activations came from a cache; None if every epoch went through all stages.
    error
        The error that ended the run, in one line; None without one.
    answers
        Probabilities ``(N, C)`` and labels ``(N,)`` of the last validation, on the CPU; None if they are not kept.
    """

    strategy: Strategy
    plan: Plan
    seed: int
    history: list[EpochRecord] = field(default_factory=list)
    stopped: str = "running"
    folder: Path | None = None
    resumed: int = 0
    cached: str | None = None
    error: str | None = None
    answers: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return history_table(self.history)


class TrainingDiverged(CourseError):
    """The loss stopped being a number. ``run`` holds the epochs that went well."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class TrainingStopped(KeyboardInterrupt):
    """A Stop (Ctrl-C, *Interrupt Kernel*) ended ``fit``; ``run`` holds the epochs that were finished.

    It is a ``KeyboardInterrupt``, so that a cell, a *Run All* and every loop over several runs end with the run that
    was stopped. The model has its best weights; the checkpoint, where the run keeps one, is written.
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run

    def _render_traceback_(self) -> list[str]:
        """Return the one sentence that a notebook shows instead of a traceback; IPython asks for it by this name."""
        return [str(self)]
