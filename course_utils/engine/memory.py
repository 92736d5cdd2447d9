"""Gradient accumulation where the memory is too small for a batch: it is computed in pieces, with the same gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_utils.common.errors import CourseError, warn
from course_utils.engine.processes import ProcessGroup, label_weights

FEWEST = {1: "even one picture at a time. ", 2: "even two or three pictures at a time, the fewest for BatchNorm. "}
Compute = Callable[[Tensor, Tensor, float], Tensor]


class OutOfMemory(Exception):
    """The memory is too small even for so many ``pictures`` at a time, or for a shard of several processes."""

    def __init__(self, pictures: int) -> None:
        super().__init__(pictures)
        self.pictures = pictures


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an error that says that the memory of the CPU or a GPU is full."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


class MemoryPieces:
    """Computes a batch in 1, 2, 4, 8 … pieces: in twice as many whenever the memory is too small.

    BatchNorm in stages that learn sees a piece at a time then; nothing else changes. Such a piece has two pictures at
    least: one has no variance on a map of 1 × 1, and says little about that of the data on any map.

    The class weights of `loss` decide how much a piece counts in the mean over the batch. The optimizer's gradients are
    set to None when a batch is begun anew. The attribute ``count`` is the number of pieces; it never shrinks.
    """

    def __init__(
        self, model: nn.Module, loss: nn.CrossEntropyLoss, optimizer: torch.optim.Optimizer, group: ProcessGroup
    ) -> None:
        self.model, self.loss, self.optimizer, self.group, self.count = model, loss, optimizer, group, 1

    def in_pieces(self, compute: Compute, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of a batch of images ``(N, …)`` and labels ``(N,)``.

        `compute` is a function of images, labels and the share of a piece in the batch's mean loss, and returns logits.
        If the batch cannot be cut any further, that is OutOfMemory; if BatchNorm has to learn from a single value, a
        CourseError.
        """
        while True:
            alone = False
            try:
                return self._computed(compute, images, labels)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            except ValueError as error:
                if not (alone := "more than 1 value per channel" in str(error)):
                    raise
            # Here the traceback is gone, and with it the activations that filled the memory.
            if alone:
                raise CourseError(
                    "BatchNorm cannot learn from a batch of one picture where its map is 1 × 1: there is no variance. "
                    "Take a batch_size of 2 or more and at least 2 training pictures, or larger pictures."
                )
            self.optimizer.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            self._cut_smaller(len(images))

    def _smallest(self) -> int:
        """Return the number of pictures that a piece has at least."""
        return 2 if any(isinstance(layer, _BatchNorm) and layer.training for layer in self.model.modules()) else 1

    def _pieces(self, size: int) -> int:
        return max(1, min(self.count, size // self._smallest())) if self.count > 1 else 1  # a shard may be empty

    def _computed(self, compute: Compute, images: Tensor, labels: Tensor) -> Tensor:
        pieces = self._pieces(len(images))
        if pieces == 1:
            return compute(images, labels, 1.0)
        # A piece counts by its labels and their classes. The mean of means would favour the pictures of small pieces.
        weights = [part.sum().item() for part in label_weights(self.loss, labels).tensor_split(pieces)]
        parts = zip(images.tensor_split(pieces), labels.tensor_split(pieces), weights, strict=True)
        return torch.cat([compute(x, y, counts / (sum(weights) or 1)) for x, y, counts in parts])

    def _cut_smaller(self, size: int) -> None:
        # The other processes would wait for ever for the gradient of one that begins its batch anew.
        smallest = self._smallest()
        if self.count >= size // smallest or self.group.world_size > 1:
            raise OutOfMemory(smallest)
        self.count *= 2
        pieces = self._pieces(size)
        warn(
            f"Not enough memory for {size} pictures: from now on a batch is computed in {pieces} pieces, "
            f"{math.ceil(size / pieces)} pictures at a time. A step still learns from {size} of them at the same rate"
            + (", but BatchNorm in the stages that learn sees a piece at a time." if smallest > 1 else ".")
        )


def too_little_memory(group: ProcessGroup, pictures: int | None) -> CourseError:
    """Return the error that says what to do; `pictures` are the fewest that were tried, None if fewer do not help."""
    where = group.device.type
    if group.world_size > 1:
        return CourseError(
            f"A process ran out of memory ({where}). With several processes a batch is not split any further: give a "
            "smaller batch_size."
        )
    return CourseError(
        f"There is not enough memory ({where}) to train this model, "
        + ("whatever the batch: the optimizer needs it. " if pictures is None else FEWEST[pictures])
        + "Take smaller pictures or a smaller model, let fewer stages learn (LAST_BLOCK, FEATURE_EXTRACTION), or close "
        "other programs."
    )
