"""Loss, accuracy and macro F1 of an epoch, counted over samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.common.errors import CourseError
from course_utils.data.samples import NO_LABEL
from course_utils.engine.processes import ProcessGroup, all_reduce_sum, gather_rows
from course_utils.evaluation import Report

CHECK_EVERY = 20  # batches between two checks that the loss is finite


class LossIsNoNumber(ArithmeticError):
    """The sum of the losses became infinite or NaN, or the gradients did for good; the message begins a sentence."""


class EpochMetrics:
    """Sums over samples, because a mean of batch means would weigh the pictures of a short last batch too much.

    The sums stay on the device: reading a number in every step makes a GPU wait for the CPU. Each process counts its
    own samples; the results are those of all processes. With `keep_answers` the probabilities of all samples are kept.
    Samples without a label (-100) count nowhere.
    """

    def __init__(self, group: ProcessGroup, keep_answers: bool = False) -> None:
        self.group, self.batches, self.seen = group, 0, 0
        self.kept: list[tuple[Tensor, Tensor, range]] | None = [] if keep_answers else None
        self.loss = torch.zeros((), device=group.device)
        self.right = torch.zeros((), dtype=torch.long, device=group.device)
        self.labelled = torch.zeros((), dtype=torch.long, device=group.device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count the shard of a batch: logits ``(n, C)``, labels ``(n,)``; LossIsNoNumber at every twentieth batch."""
        shard = self.group.shard
        self.loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        self.right += (logits.argmax(1) == labels).sum()
        self.labelled += (labels != NO_LABEL).sum()
        if self.kept is not None:
            places = range(self.seen + shard.start, self.seen + shard.stop)
            self.kept.append((logits.float().softmax(1).cpu(), labels.cpu(), places))
        self.seen += shard.total
        if self.batches % CHECK_EVERY == 0:
            self._finite_loss()
        self.batches += 1

    def _finite_loss(self) -> float:
        # The sum over all processes, so that all stop at the same step; once infinite or NaN, it stays so.
        value = all_reduce_sum(self.loss, self.group).item()
        if not math.isfinite(value):
            raise LossIsNoNumber(f"The loss became {value}")
        return value

    def means(self) -> tuple[float, float]:
        """Return mean loss (nats) and accuracy in [0, 1] over all samples; LossIsNoNumber if there is no mean."""
        loss = self._finite_loss()
        right, labelled = (all_reduce_sum(number, self.group).item() for number in (self.right, self.labelled))
        if not labelled:
            raise CourseError(f"None of {self.seen} samples has a label, all have {NO_LABEL}: label some of them.")
        return loss / labelled, right / labelled

    def answers(self) -> tuple[Tensor, Tensor] | None:
        """Return probabilities ``(N, C)`` and labels ``(N,)`` of labelled samples, on the CPU; None if not kept."""
        if not self.kept:
            return None
        probabilities, labels, places = zip(*self.kept, strict=True)
        places = [place for batch in places for place in batch]
        rows = [gather_rows(torch.cat(rows), places, self.seen, self.group) for rows in (probabilities, labels)]
        return tuple(part[rows[1] != NO_LABEL] for part in rows)


def macro_f1(probabilities: Tensor, labels: Tensor) -> float:
    """Return :attr:`course_utils.evaluation.Report.macro_f1` of answers ``(N, C)`` to samples with labels ``(N,)``."""
    classes = tuple(map(str, range(probabilities.shape[1])))
    return Report(classes, labels.numpy(), probabilities.numpy()).macro_f1
