"""A batch that the memory is too small for is computed in pieces; the gradient stays that of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from course_utils.common.errors import CourseError, warn
from course_utils.engine.processes import ProcessGroup

Compute = Callable[[Tensor, Tensor, "Tensor | float"], Tensor]


class OutOfMemory(Exception):
    """The memory is too small even for one picture at a time, or for a shard of several processes."""


class MemoryPieces:
    """Computes a batch in 1, 2, 4, 8 … pieces: in twice as many whenever the memory is too small.

    BatchNorm in stages that learn sees a piece at a time then; nothing else changes.

    Parameters
    ----------
    loss
        The criterion: its class weights tell how much a piece counts in the mean over the batch.
    optimizer
        Gradients of a batch that is begun anew are thrown away.
    group
        The processes of the run.

    Attributes
    ----------
    count
        Number of pieces of a batch; it grows and does not shrink again.
    """

    def __init__(self, loss: nn.CrossEntropyLoss, optimizer: torch.optim.Optimizer, group: ProcessGroup) -> None:
        self.loss, self.optimizer, self.group, self.count = loss, optimizer, group, 1

    def run(self, compute: Compute, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of a batch.

        Parameters
        ----------
        compute
            Takes images, labels and the share of the piece in the batch's mean loss; returns the logits of the piece.
        images, labels
            ``(N, …)`` and ``(N,)``.

        Raises
        ------
        OutOfMemory
            If the batch cannot be cut any further.
        """
        while True:
            try:
                return self._in_pieces(compute, images, labels)
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                    raise
            # Only out here is the traceback gone, and with it the activations that filled the memory.
            self.optimizer.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            self._cut_smaller(len(images))

    def _in_pieces(self, compute: Compute, images: Tensor, labels: Tensor) -> Tensor:
        pieces = max(1, min(self.count, len(images)))  # of several processes, one may have nothing to do
        if pieces == 1:
            return compute(images, labels, 1.0)
        # Each piece counts by what is in it. The mean of their means would favour the pictures of small pieces.
        weights = [self._weight(piece) for piece in labels.tensor_split(pieces)]
        parts = zip(images.tensor_split(pieces), labels.tensor_split(pieces), weights, strict=True)
        return torch.cat([compute(image, label, weight / sum(weights)) for image, label, weight in parts])

    def _weight(self, labels: Tensor) -> Tensor | int:
        """Return the number that the loss divides by to get a mean."""
        return len(labels) if self.loss.weight is None else self.loss.weight[labels].sum()

    def _cut_smaller(self, size: int) -> None:
        # Processes that wait for the gradient of one that begins its batch anew would wait for ever.
        if self.count >= size or self.group.world_size > 1:
            raise OutOfMemory
        self.count *= 2
        warn(
            f"Not enough memory for {size} pictures: from now on a batch is computed in {self.count} pieces, "
            f"{math.ceil(size / self.count)} pictures at a time. A step still learns from {size} of them at the same "
            "rate."
        )


def too_little_memory(group: ProcessGroup) -> CourseError:
    """Return the error for a reader whose memory is too small."""
    where = group.device.type
    if group.world_size > 1:
        return CourseError(
            f"A process ran out of memory ({where}). With several processes a batch is not split any further: give a "
            "smaller batch_size."
        )
    return CourseError(
        f"There is not enough memory ({where}) to train this model, even one picture at a time. Take smaller "
        "pictures or a smaller model, let fewer stages learn (LAST_BLOCK, FEATURE_EXTRACTION), or close other programs."
    )
