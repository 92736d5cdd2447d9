"""Gradient accumulation where the memory is too small for a batch: it is computed in pieces, with the same gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn

from course_utils.common.errors import CourseError, warn
from course_utils.engine.processes import ProcessGroup, label_weights

Compute = Callable[[Tensor, Tensor, float], Tensor]


class OutOfMemory(Exception):
    """The memory is too small even for one picture at a time, or for a shard of several processes."""


class MemoryPieces:
    """Computes a batch in 1, 2, 4, 8 … pieces: in twice as many whenever the memory is too small.

    BatchNorm in stages that learn sees a piece at a time then; nothing else changes.

    The class weights of `loss` decide how much a piece counts in the mean over the batch. The optimizer's gradients are
    set to None when a batch is begun anew. The attribute ``count`` is the number of pieces; it never shrinks.
    """

    def __init__(self, loss: nn.CrossEntropyLoss, optimizer: torch.optim.Optimizer, group: ProcessGroup) -> None:
        self.loss, self.optimizer, self.group, self.count = loss, optimizer, group, 1

    def in_pieces(self, compute: Compute, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of a batch of images ``(N, …)`` and labels ``(N,)``.

        `compute` is a function of images, labels and the share of a piece in the batch's mean loss, and returns logits.
        If the batch cannot be cut any further, that is OutOfMemory.
        """
        while True:
            try:
                return self._computed(compute, images, labels)
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                    raise
            # Here the traceback is gone, and with it the activations that filled the memory.
            self.optimizer.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            self._cut_smaller(len(images))

    def _computed(self, compute: Compute, images: Tensor, labels: Tensor) -> Tensor:
        pieces = max(1, min(self.count, len(images)))  # a shard may be empty
        if pieces == 1:
            return compute(images, labels, 1.0)
        # A piece counts by its labels and their classes. The mean of means would favour the pictures of small pieces.
        weights = [part.sum().item() for part in label_weights(self.loss, labels).tensor_split(pieces)]
        parts = zip(images.tensor_split(pieces), labels.tensor_split(pieces), weights, strict=True)
        return torch.cat([compute(x, y, counts / (sum(weights) or 1)) for x, y, counts in parts])

    def _cut_smaller(self, size: int) -> None:
        # The other processes would wait for ever for the gradient of one that begins its batch anew.
        if self.count >= size or self.group.world_size > 1:
            raise OutOfMemory
        self.count *= 2
        warn(
            f"Not enough memory for {size} pictures: from now on a batch is computed in {self.count} pieces, "
            f"{math.ceil(size / self.count)} pictures at a time. A step still learns from {size} of them at the same "
            "rate."
        )


def too_little_memory(group: ProcessGroup, for_one_picture: bool = True) -> CourseError:
    """Return the error that says what to do; without `for_one_picture`, pieces of a batch would not help."""
    where = group.device.type
    if group.world_size > 1:
        return CourseError(
            f"A process ran out of memory ({where}). With several processes a batch is not split any further: give a "
            "smaller batch_size."
        )
    return CourseError(
        f"There is not enough memory ({where}) to train this model, "
        + ("even one picture at a time. " if for_one_picture else "whatever the batch: the optimizer needs it. ")
        + "Take smaller pictures or a smaller model, let fewer stages learn (LAST_BLOCK, FEATURE_EXTRACTION), or close "
        "other programs."
    )
