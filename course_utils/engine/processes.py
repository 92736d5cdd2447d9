"""Several processes that train as one, with the same result for any number of processes.

``accelerate launch --num-processes 2 …`` or ``torchrun --nproc-per-node 2 …`` starts a program several times, and
:func:`course_utils.training.fit` notices. ``DistributedDataParallel`` (DDP) averages the gradients. The result of one
process needs more than that:

* every batch is cut from the same order into contiguous shards (:class:`ShardedBatchSampler`); a last batch that does
  not divide is cut into uneven shards, not filled up, so no picture counts twice;
* the mean loss of a batch is not the mean of the means of its shards: :func:`loss_of_shard` weighs them;
* BatchNorm normalises by the mean and variance of the *whole* batch: :class:`SyncedBatchNorm`;
* dropout draws for the whole batch, and each process takes its rows: :class:`SyncedDropout`;
* losses and hits are summed over the processes before anything is divided or decided: :func:`all_reduce_sum`.

Only the order of additions differs, which changes a value by about 1e-7 of its size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from torchvision.ops import StochasticDepth

from course_utils.common.errors import CourseError
from course_utils.common.threads import start_method
from course_utils.data.samples import Collate
from course_utils.engine.sampling import batches_of

# Words in the libraries' messages about a lost process; they have no error class in common.
SIGNS_OF_A_LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out", "gloo")


# --- shards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """The rows of a batch that one process has, from `start` to before `stop` (none if equal), of `total` in all."""

    start: int
    stop: int
    total: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def shard_of(total: int, rank: int, world_size: int) -> Shard:
    """Return the shard of one process; the shards of all are contiguous and as even as it goes.

    Examples
    --------
    >>> [shard_of(5, rank, 2) for rank in (0, 1)]
    [Shard(start=0, stop=2, total=5), Shard(start=2, stop=5, total=5)]
    """
    return Shard(rank * total // world_size, (rank + 1) * total // world_size, total)


class ShardedBatchSampler(BatchSampler):
    """One process's shard of every batch; all processes see equally many batches.

    `order` gives the same indices in every process, `batch_size` is that of the whole batch, and `training` is that of
    :func:`~course_utils.engine.sampling.batches_of`.
    """

    def __init__(
        self,
        order: Sampler[int] | Sequence[int],
        batch_size: int,
        rank: int,
        world_size: int,
        training: bool = False,
    ) -> None:
        super().__init__(order, batch_size, drop_last=False)
        self.rank, self.world_size, self.training = rank, world_size, training

    def _batches(self, order: Sequence[int]) -> list[Sequence[int]]:
        return batches_of(order, self.batch_size, training=self.training)

    def __len__(self) -> int:
        return len(self._batches(range(len(self.sampler))))

    def shards(self) -> Iterator[Shard]:
        """Yield this process's shard of each batch."""
        for batch in self._batches(range(len(self.sampler))):
            yield shard_of(len(batch), self.rank, self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for shard, batch in zip(self.shards(), self._batches(list(self.sampler)), strict=True):
            # A loader cannot make a batch of nothing: one picture is loaded, and Batches cuts it off.
            yield batch[shard.start : shard.stop] or batch[:1]


class ProcessGroup:
    """Number of processes of a run, rank and device of this one, and its shard of the current batch."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.world_size, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        self.shard: Shard | None = None


class Batches:
    """Shards of batches ``(images, labels)`` that this process computes, on its device.

    Parameters
    ----------
    dataset, order, batch_size
        Samples, their order (which changes with the epoch if it has an ``epoch``), and the size of a whole batch.
    group
        Processes of the run; its ``shard`` is set with every batch.
    num_workers
        Number of processes that load samples; they are started once and stay.
    collate
        Makes a batch of samples.
    training
        True for batches to learn from, see :func:`~course_utils.engine.sampling.batches_of`.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Sampler[int] | Sequence[int],
        batch_size: int,
        group: ProcessGroup,
        num_workers: int,
        collate: Collate,
        training: bool,
    ) -> None:
        self.order, self.group = order, group
        self.sampler = ShardedBatchSampler(order, batch_size, group.rank, group.world_size, training)
        self.on_gpu = group.device.type == "cuda"
        # accelerate's own sampler fills up the last batch with pictures that then count twice.
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=num_workers,
            collate_fn=collate,
            # Without a method of its own a loader fixes the one of the whole program when it starts a worker.
            multiprocessing_context=start_method() if num_workers > 0 else None,
            pin_memory=self.on_gpu,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch: images ``(n, C, H, W)`` in channels_last, and labels ``(n,)``."""
        if hasattr(self.order, "epoch"):
            self.order.epoch = epoch
        # A plain loader draws one number from the global generator whenever it is iterated, for its workers' seeds;
        # one whose workers stay does so once. Drawn here, dropout sees the same numbers with and without workers.
        torch.empty((), dtype=torch.int64).random_()
        for shard, batch in zip(self.sampler.shards(), self._loaded(), strict=True):
            self.group.shard = shard
            images, labels = (x.to(self.group.device, non_blocking=self.on_gpu)[: shard.size] for x in batch)
            if images.ndim == 4 and images.device.type != "mps":  # activations behind a pooling have no height, width
                images = images.contiguous(memory_format=torch.channels_last)
            yield images, labels

    def _loaded(self) -> Iterator[list[Tensor]]:
        try:
            yield from self.loader
        except CourseError as error:  # a worker's error comes with its traceback as text in front of the sentence
            error.args = (str(error).rpartition("CourseError: ")[2].strip(),)
            raise


# --- one loss, one count -----------------------------------------------------------------------------------------


def loss_of_shard(loss: nn.CrossEntropyLoss, logits: Tensor, labels: Tensor, group: ProcessGroup) -> Tensor:
    """Return the loss of a shard, weighed so that DDP's averaged gradient is that of the whole batch's mean loss.

    Logits are ``(n, C)``, labels ``(n,)`` or shares of classes ``(n, C)``; n may be 0. The mean is over the samples
    that have a label: without any, the loss is 0, and torch's own mean would be NaN.
    """
    total = all_reduce_sum(label_weights(loss, labels).sum(), group)
    options = {"weight": loss.weight, "label_smoothing": loss.label_smoothing}
    return F.cross_entropy(logits, labels, **options, reduction="sum") * group.world_size / total.where(total > 0, 1)


def label_weights(loss: nn.CrossEntropyLoss, labels: Tensor) -> Tensor:
    """Return how much each sample counts in the mean loss, ``(n,)``: by its class, and not at all without a label.

    torch's mark for "no label" is ``loss.ignore_index``, -100. Of shares of classes ``(n, C)`` each class counts by its
    share.
    """
    if labels.ndim == 2:
        return labels.sum(1) if loss.weight is None else labels.to(loss.weight.dtype) @ loss.weight
    known = labels != loss.ignore_index
    return known.long() if loss.weight is None else loss.weight[labels.where(known, 0)] * known


def all_reduce_sum(value: Tensor, group: ProcessGroup) -> Tensor:
    """Return the sum of a tensor over all processes; every process has to call this."""
    if group.world_size == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor, places: Sequence[int], size: int, group: ProcessGroup) -> Tensor:
    """Return the rows of all processes in one tensor ``(size, …)``, on the CPU; every process has to call this.

    `rows` are ``(n, …)``, on the CPU, and `places` are their n places in the result, none twice.
    """
    if group.world_size == 1:
        return rows
    everything = torch.zeros(size, *rows.shape[1:], dtype=rows.dtype)
    everything[list(places)] = rows
    return all_reduce_sum(everything.to(group.device), group).cpu()


def all_processes_agree(here: bool) -> bool:
    """Return True if `here` is true in every process of the run; every process has to call this."""
    return all(gather_object([here])) if PartialState().num_processes > 1 else here


# --- layers that see the whole batch -----------------------------------------------------------------------------


@contextlib.contextmanager
def layers_synchronised(model: nn.Module, group: ProcessGroup) -> Iterator[None]:
    """Let BatchNorm, dropout and stochastic depth see the batch of all processes during the block.

    Inside the block these modules have another class; names, tensors and hooks stay. One process changes nothing.

    Raises
    ------
    CourseError
        When another process ended or cannot be reached.
    """
    if group.world_size == 1:
        yield
        return
    changed = [(module, type(module)) for module in model.modules() if _synced_class(module) is not None]
    for module, _ in changed:
        module.__class__ = _synced_class(module)
        module.group = group
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS_OF_A_LOST_PEER):
            raise
        raise CourseError(
            f"Process {group.rank} of {group.world_size} lost another one in the middle of the training: it ended, was "
            "killed, or the network failed. Look at what that process said last, and start all of them again. "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    finally:
        for module, kind in changed:
            module.__class__ = kind
            del module.group


def _synced_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class of a module while several processes train; None when it looks at each picture alone."""
    kind = type(module)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return _mixed_with(SyncedBatchNorm, kind)
    if isinstance(module, nn.Dropout):
        return _mixed_with(SyncedDropout, kind)
    return _mixed_with(SyncedStochasticDepth, kind) if isinstance(module, StochasticDepth) else None


@functools.cache
def _mixed_with(first: type, kind: type) -> type:
    return type(first.__name__ + kind.__name__, (first, kind), {})


class SyncedBatchNorm:
    """BatchNorm over the batch of all processes, the same on every device.

    ``torch.nn.SyncBatchNorm`` runs on GPUs only, so what is tested on CPUs would not be what runs on GPUs.

    Each process sends how many values it has per channel, their mean and their sum of squared deviations; these can
    be merged without loss of precision (Chan, Golub & LeVeque 1979).
    """

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, C, …)``, normalised, for the same shape; N may be 0 in some of the processes."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = whole_batch_statistics(x)
        # A GPU would have to wait for the number, so it is read only where this process alone has too few values.
        if x.numel() < 2 * x.shape[1] and count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        if self.running_mean is not None:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)


@torch.no_grad()
def whole_batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance per channel ``(C,)`` over all processes, and the number ``()`` of values in each."""
    over = [0, *range(2, x.ndim)]
    values = x if x.dtype == torch.float64 else x.float()
    count = x.numel() // x.shape[1]
    mean = values.sum(over) / max(count, 1)
    spread = (values - mean.view(1, -1, *[1] * (x.ndim - 2))).square().sum(over)
    own = torch.cat([mean.new_tensor([count]), mean, spread])
    everybody = torch.empty(dist.get_world_size(), len(own), dtype=own.dtype, device=own.device)
    dist.all_gather(list(everybody.unbind()), own)
    counts, means, spreads = everybody.split([1, x.shape[1], x.shape[1]], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    spread = spreads.sum(0) + (counts * (means - mean).square()).sum(0)
    return mean, spread / total, total


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are functions of all shards of x."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, variance, count, eps):  # noqa: ANN001, ANN205
        """See the class."""
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        ctx.count = count
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001, ANN205
        """Ioffe & Szegedy 2015, section 3, with the sums taken over all processes."""
        x, weight, mean, scale = ctx.saved_tensors
        over, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        upstream = grad.to(mean.dtype)
        normalised = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([upstream.sum(over), (upstream * normalised).sum(over)])
        whole = own.clone()
        dist.all_reduce(whole)
        from_mean, from_spread = (whole / ctx.count).view(2, *shape)
        factor = scale if weight is None else scale * weight
        grad_x = (upstream - from_mean - normalised * from_spread) * factor.view(shape)
        # Weight and bias get what this process's rows say; DDP averages over the processes.
        grad_weight, grad_bias = (None, None) if weight is None else (own[1].to(weight.dtype), own[0].to(weight.dtype))
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


class SyncedDropout:
    """Dropout that draws for the whole batch and takes this process's rows.

    All processes have the same seed. If each drew for its own rows only, the first row of every shard would lose the
    same features.
    """

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, …)`` for the same shape."""
        if not self.training or not 0 < self.p < 1:
            return super().forward(x)
        return x * _kept(x, x.shape[1:], self.p, self.group.shard)


class SyncedStochasticDepth:
    """Stochastic depth (whole residual branches are left out, picture by picture), drawn in the same way."""

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, …)`` for the same shape."""
        if not self.training or self.mode != "row" or not 0 < self.p < 1:
            return super().forward(x)
        return x * _kept(x, [1] * (x.ndim - 1), self.p, self.group.shard)


def _kept(x: Tensor, shape: Sequence[int], p: float, shard: Shard) -> Tensor:
    """Return zeros with probability p, else 1 / (1 - p), drawn as torch's own layers draw them: ``(n, *shape)``."""
    return x.new_empty(shard.total, *shape).bernoulli_(1 - p).div_(1 - p)[shard.start : shard.stop]
