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

    `epoch` counts from 0, `learning` has the names of the stages that learned, and `seconds` is the time for training
    and validation. The macro F1 of the validation pictures is there only where it chooses the epoch.
    """

    epoch: int
    learning: tuple[str, ...]
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    val_macro_f1: float | None = None

    @property
    def score(self) -> float:
        """The number by which the best epoch is chosen, in [0, 1]: validation accuracy, or macro F1."""
        return self.val_accuracy if self.val_macro_f1 is None else self.val_macro_f1

    def as_row(self) -> dict[str, Any]:
        """Return the record as in files, where epochs count from 1."""
        return asdict(self) | {"epoch": self.epoch + 1}


def best_epoch(history: Sequence[EpochRecord]) -> EpochRecord | None:
    """Return the epoch with the highest score, then the lowest validation loss, then the first; None without one."""
    return min(history, key=lambda record: (-record.score, record.val_loss), default=None)


def history_table(history: Sequence[EpochRecord]) -> str:
    """Return a table with one line per epoch, the best one marked."""
    best = best_epoch(history)
    by_f1 = any(record.val_macro_f1 is not None for record in history)
    rows = [
        [
            r.epoch + 1,
            f"{r.train_loss:.3f}",
            f"{r.train_accuracy:.1%}",
            f"{r.val_loss:.3f}",
            f"{r.val_accuracy:.1%}",
            *([f"{r.val_macro_f1:.3f}"] if by_f1 else []),
            ", ".join(r.learning) if len(r.learning) < 3 else f"{len(r.learning)} stages",
            "best" if r is best else "",
        ]
        for r in history
    ]
    scores = ["val acc", "val macro F1"] if by_f1 else ["val acc"]
    return text_table(["epoch", "train loss", "train acc", "val loss", *scores, "learning", ""], rows)


class History:
    """The common part of a :class:`Run` and of a run that was read from disk."""

    history: Sequence[EpochRecord]

    @property
    def best(self) -> EpochRecord | None:
        """The best epoch, see :func:`best_epoch`."""
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
    strategy, plan, seed, history
        Arguments of the call, and one record per finished epoch.
    stopped
        Reason of the end: ``"finished"``, ``"early"`` (no better for `patience` epochs), ``"interrupted"`` (Stop,
        Ctrl-C), ``"diverged"`` (the loss was no number any more) or ``"failed"`` (another error); ``"running"`` before.
    folder
        Folder of the run's log, see :mod:`course_utils.engine.run_log`; None without one.
    resumed
        Number of epochs that were done when this call of ``fit`` resumed the run; 0 for a new run.
    cached, error
        Border in front of which activations came from a cache, and the error that ended the run; None without one.
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
    """The loss became NaN or infinite. ``run`` holds the epochs before that."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


class TrainingStopped(KeyboardInterrupt):
    """A Stop (Ctrl-C, *Interrupt Kernel*) ended ``fit``; ``run`` holds the epochs that were finished.

    It is a ``KeyboardInterrupt``, so that a *Run All* and every loop over several runs end too. The model has its best
    weights; the checkpoint, where the run keeps one, is written.
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run

    def _render_traceback_(self) -> list[str]:
        """Return the one sentence that IPython, which looks for this name, shows instead of a traceback."""
        return [str(self)]
