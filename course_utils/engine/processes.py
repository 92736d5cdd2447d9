"""Several processes train as one: the same numbers, over however many processes a run is spread.

``accelerate launch --num-processes 2 …`` or ``torchrun --nproc-per-node 2 …`` starts a program several times, and
:func:`course_utils.training.fit` notices. Wrapping the model in ``DistributedDataParallel`` (DDP), which averages the
gradients, is the part that everybody knows. It is not enough for the same result as one process, because a batch is
more than the sum of its parts:

* every batch is cut from the same order and dealt out in contiguous shares (:class:`Shares`); a last batch that does
  not divide is dealt out unevenly, not filled up, so no picture counts twice;
* the mean loss of a batch is no mean of the means of its shares: :func:`loss_of_share` weighs them;
* BatchNorm normalises by the mean and variance of the *whole* batch: :class:`SyncedNorm`;
* dropout draws for the whole batch, and each process takes its rows: :class:`SharedDropout`;
* losses and hits are summed over the processes before anything is divided or decided: :func:`summed`.

What cannot be the same to the last bit is the order of additions; that leaves differences of about 1e-7 of a value.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from torchvision.ops import StochasticDepth

from course_utils.common.errors import CourseError

# How the libraries below tell that the other end has gone; they have no error class in common.
SIGNS_OF_A_LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out", "gloo")


# --- who gets what -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The rows of a batch that one process has.

    Parameters
    ----------
    start, stop
        First row, and the one after the last; equal when there is nothing for this process.
    whole
        Rows of the whole batch, over all processes.
    """

    start: int
    stop: int
    whole: int

    @property
    def size(self) -> int:
        """How many rows."""
        return self.stop - self.start


def part_of(whole: int, rank: int, processes: int) -> Part:
    """Deal `whole` rows out to `processes` as evenly as it goes, in contiguous parts.

    Examples
    --------
    >>> [part_of(5, rank, 2) for rank in (0, 1)]
    [Part(start=0, stop=2, whole=5), Part(start=2, stop=5, whole=5)]
    """
    return Part(rank * whole // processes, (rank + 1) * whole // processes, whole)


class Shares(BatchSampler):
    """One process's part of every batch; all processes see equally many batches.

    Parameters
    ----------
    order
        Gives the same indices in every process: a :class:`~course_utils.engine.sampling.SeededOrder`, or a range.
    batch_size
        Of the whole batch, at least 1.
    rank, processes
        Which process this is, of how many.
    """

    def __init__(self, order: Sampler[int] | Sequence[int], batch_size: int, rank: int, processes: int) -> None:
        super().__init__(order, batch_size, drop_last=False)
        self.rank, self.processes = rank, processes

    def parts(self) -> Iterator[Part]:
        """The part that each batch of the iteration stands for."""
        for first in range(0, len(self.sampler), self.batch_size):
            yield part_of(min(self.batch_size, len(self.sampler) - first), self.rank, self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        for part, batch in zip(self.parts(), super().__iter__(), strict=True):
            # A loader cannot make a batch of nothing: one picture is loaded, and Batches cuts it off.
            yield batch[part.start : part.stop] or batch[:1]


class Team:
    """The processes of a run, and the part of the current batch that this one has.

    Parameters
    ----------
    accelerator
        Knows how many there are and which this is.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.size, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        self.part: Part | None = None


class Batches:
    """Batches of ``(images, labels)`` on the device, of each the rows that belong to this process.

    Parameters
    ----------
    dataset, order, batch_size
        What is loaded, in which order, and how many over all processes together.
    team
        Is told about the part that was handed out last.
    **options
        For ``torch.utils.data.DataLoader``: ``num_workers``, ``pin_memory``.
    """

    def __init__(
        self, dataset: Dataset, order: Sampler[int] | Sequence[int], batch_size: int, team: Team, **options: object
    ) -> None:
        self.team = team
        self.shares = Shares(order, batch_size, team.rank, team.size)
        # accelerate moves the batches to the device; of sharing it knows nothing, for it there is one process. Its
        # own way fills up the last batch, and whoever is in there twice counts twice.
        self.loader = prepare_data_loader(
            DataLoader(dataset, batch_sampler=self.shares, **options),
            device=team.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=team.device.type == "cuda",
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the order. Through accelerate's loader: it counts epochs itself and would overrule."""
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.shares)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part, (images, labels) in zip(self.shares.parts(), self.loader, strict=True):
            self.team.part = part
            yield images[: part.size], labels[: part.size]


# --- one loss, one count -----------------------------------------------------------------------------------------


def loss_of_share(loss: nn.CrossEntropyLoss, logits: Tensor, labels: Tensor, team: Team) -> Tensor:
    """What a process has to call ``backward`` on, so that the averaged gradient is that of the whole batch's loss.

    Parameters
    ----------
    loss
        With the mean over a batch, and perhaps class weights and label smoothing.
    logits, labels
        ``(n, C)`` and ``(n,)``, this process's share; n may be 0.
    team
        DDP divides the sum of the gradients by its size.
    """
    if team.size == 1:
        return loss(logits, labels)
    weights = torch.ones_like(labels, dtype=logits.dtype) if loss.weight is None else loss.weight[labels]
    total = summed(weights.sum(), team)
    own = F.cross_entropy(
        logits, labels, weight=loss.weight, label_smoothing=loss.label_smoothing, reduction="sum"
    )  # fmt: skip
    return own * team.size / total


def summed(value: Tensor, team: Team) -> Tensor:
    """The sum of a tensor over all processes, the same in each; every process has to ask."""
    if team.size == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def gathered(rows: Tensor, places: Sequence[int], size: int, team: Team) -> Tensor:
    """Rows of all processes in one tensor.

    Parameters
    ----------
    rows
        ``(n, …)``, on the CPU.
    places
        Where each of the n rows belongs; no place is taken twice.
    size
        How many rows there are over all processes.

    Returns
    -------
    Tensor
        ``(size, …)``, on the CPU.
    """
    if team.size == 1:
        return rows
    everything = torch.zeros(size, *rows.shape[1:], dtype=rows.dtype)
    everything[list(places)] = rows
    return summed(everything.to(team.device), team).cpu()


# --- layers that see the whole batch -----------------------------------------------------------------------------


@contextlib.contextmanager
def acting_as_one(model: nn.Module, team: Team) -> Iterator[None]:
    """Let the layers that look at a whole batch do so over all processes, and explain when one has gone.

    Inside the block, modules of the model have another class; names, tensors and hooks stay. Alone, nothing is done.

    Raises
    ------
    CourseError
        When another process ended or cannot be reached.
    """
    if team.size == 1:
        yield
        return
    changed = [(module, type(module)) for module in model.modules() if _shared_class(module, team) is not None]
    for module, _ in changed:
        module.__class__ = _shared_class(module, team)
        module.team, module.process_group = team, None
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS_OF_A_LOST_PEER):
            raise
        raise CourseError(
            f"Process {team.rank} of {team.size} lost another one in the middle of the training: it ended, was killed, "
            "or the network failed. Look at what that process said last, and start all of them again. "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    finally:
        for module, kind in changed:
            module.__class__ = kind
            del module.team, module.process_group


def _shared_class(module: nn.Module, team: Team) -> type[nn.Module] | None:
    """What a module is while several processes train; None when it looks at each picture alone."""
    kind = type(module)
    if isinstance(module, nn.SyncBatchNorm | SyncedNorm):
        return None
    if isinstance(module, _BatchNorm):
        return nn.SyncBatchNorm if team.device.type == "cuda" else _mixed(SyncedNorm, kind)
    if isinstance(module, nn.Dropout):
        return _mixed(SharedDropout, kind)
    return _mixed(SharedDepth, kind) if isinstance(module, StochasticDepth) else None


@functools.cache
def _mixed(first: type, kind: type) -> type:
    return type(first.__name__ + kind.__name__, (first, kind), {})


class SyncedNorm:
    """BatchNorm over the batch of all processes, on any device; ``torch.nn.SyncBatchNorm`` runs on GPUs only.

    Each process sends how many values it has per channel, their mean and their sum of squared deviations; these can
    be merged without loss of precision (Chan, Golub & LeVeque 1979).
    """

    team: Team

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, …)`` → the same shape; N may be 0 in some of the processes."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = whole_batch_statistics(x)
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        if self.running_mean is not None:
            self._remember(mean, variance * count / (count - 1))
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


@torch.no_grad()
def whole_batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance per channel ``(C,)`` over all processes, and how many values each channel has."""
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
    return mean, spread / total, total.item()


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are functions of all shares of x."""

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


class SharedDropout:
    """Dropout that draws for the whole batch and takes this process's rows.

    All processes have the same seed. Were each to draw for its own rows only, the first row of every share would lose
    the same features, and two processes would not be one.
    """

    team: Team

    def forward(self, x: Tensor) -> Tensor:
        """``(n, …)`` → the same shape."""
        part = self.team.part
        if not self.training or not 0 < self.p < 1:
            return super().forward(x)
        return x * _kept(x.new_empty(part.whole, *x.shape[1:]), self.p)[part.start : part.stop]


class SharedDepth:
    """Stochastic depth (whole residual branches are left out, picture by picture), drawn in the same way."""

    team: Team

    def forward(self, x: Tensor) -> Tensor:
        """``(n, …)`` → the same shape."""
        part = self.team.part
        if not self.training or self.mode != "row" or not 0 < self.p < 1:
            return super().forward(x)
        return x * _kept(x.new_empty(part.whole, *[1] * (x.ndim - 1)), self.p)[part.start : part.stop]


def _kept(noise: Tensor, p: float) -> Tensor:
    """Zeros with probability p, else 1 / (1 - p): drawn as torch's own layers draw, so that the numbers are theirs."""
    return noise.bernoulli_(1 - p).div_(1 - p)
