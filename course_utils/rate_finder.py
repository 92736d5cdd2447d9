"""A learning rate for a strategy, found by trying all of them in one short run that grows the rate step by step.

Smith, L. N. (2017). Cyclical Learning Rates for Training Neural Networks. https://arxiv.org/abs/1506.01186
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from course_utils.common.errors import CourseError
from course_utils.common.state import generators_put_back
from course_utils.common.tables import text_table
from course_utils.data.samples import Collate
from course_utils.engine.sampling import batches_of
from course_utils.feature_extraction import set_learning, train_mode
from course_utils.fine_tuning import Strategy, parameter_groups

SMOOTHING = 0.8  # share of the old mean in the running mean of the losses
TOO_HIGH = 3.0  # times the lowest loss: the sweep ends here
SAFETY = 10  # the suggestion is so many times below the rate at which the loss was lowest


@dataclass(frozen=True)
class RateSweep:
    """What :func:`find_rate` tried: rates of the fastest stage, from low to high, and the smoothed loss at each."""

    strategy: Strategy
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The rate at which the smoothed loss was lowest."""
        return self.rates[int(np.argmin(self.losses))]

    @property
    def suggestion(self) -> float:
        """A tenth of :attr:`lowest`: there the loss still falls, and there is room before it grows."""
        return self.lowest / SAFETY

    def tuned(self) -> Strategy:
        """Return the strategy with all rates scaled together, so that the highest is the suggestion."""
        factor = self.suggestion / max(self.strategy.rates)
        return dataclasses.replace(self.strategy, rates=tuple(rate * factor for rate in self.strategy.rates))

    def __str__(self) -> str:
        every = max(1, len(self.rates) // 8)
        rows = [[f"{r:.1e}", f"{loss:.3f}"] for r, loss in list(zip(self.rates, self.losses, strict=True))[::every]]
        return (
            f"{text_table(['highest rate', 'loss'], rows)}\n\nSuggested: {self.suggestion:.1e}, a tenth of "
            f"{self.lowest:.1e}, at which the loss was lowest. At {self.rates[-1]:.1e}, where the sweep ended, it was "
            f"{self.losses[-1]:.3f}."
        )


def find_rate(
    model: nn.Module,
    train: Dataset,
    strategy: Strategy,
    *,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 50,
    batch_size: int = 32,
    seed: int = 0,
) -> RateSweep:
    """Return the loss of a strategy at growing learning rates.

    The rate of every stage keeps its ratio to the highest one, which grows by the same factor at each step. The run
    ends early where the loss is three times its lowest value. Model, modes and generators are put back afterwards.

    Parameters
    ----------
    model, train, strategy, batch_size, seed
        Same as in :func:`~course_utils.training.fit`; the model stays on its device. Stages that the strategy lets
        learn later learn from the first step on.
    lowest, highest
        First and last value of the highest rate, above 0.
    steps
        Number of optimizer steps, at least 2.

    Raises
    ------
    CourseError
        For rates or steps that give no sweep, or if the loss is no number at the lowest rate already.
    """
    if not (0 < lowest < highest < math.inf and steps >= 2):
        raise CourseError(
            f"lowest={lowest}, highest={highest}, steps={steps}: give 0 < lowest < highest, and at least 2 steps."
        )
    plan, before = strategy.plan(model), copy.deepcopy(model.state_dict())
    modes = {module: module.training for module in model.modules()}
    learned = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    rates = np.geomspace(lowest, highest, steps)
    try:
        with generators_put_back(seed):
            set_learning(model, [row.stage for row in plan.rows if row.start is not None])
            train_mode(model, plan.update_statistics)
            optimizer = torch.optim.AdamW(parameter_groups(model, plan))
            shares = [group["lr"] / max(strategy.rates) for group in optimizer.param_groups]
            losses = list(_sweep(model, _batches(train, batch_size, seed), optimizer, shares, rates))
    finally:
        model.load_state_dict(before)
        for module, mode in modes.items():
            module.training = mode
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learned[name]).grad = None
    if not losses:
        raise CourseError(f"At a rate of {lowest:g} the loss is no number. Look for pictures that are not finite.")
    return RateSweep(strategy, tuple(float(rate) for rate in rates[: len(losses)]), tuple(losses))


def _sweep(
    model: nn.Module,
    batches: Iterator[list[Tensor]],
    optimizer: torch.optim.Optimizer,
    shares: list[float],
    rates: np.ndarray,
) -> Iterator[float]:
    """Yield the smoothed loss at each rate, before the step with it."""
    device, mean, best = next(model.parameters()).device, 0.0, math.inf
    for step, (rate, (images, labels)) in enumerate(zip(rates, batches, strict=False), 1):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        logits = model(images.to(device))
        loss = F.cross_entropy(getattr(logits, "logits", logits), labels.to(device))
        if not loss.isfinite():
            return
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss.item()
        smooth = mean / (1 - SMOOTHING**step)  # as if the mean had not begun with 0
        yield smooth
        best = min(best, smooth)
        if smooth > TOO_HIGH * best:
            return
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _batches(train: Dataset, batch_size: int, seed: int) -> Iterator[list[Tensor]]:
    """Yield shuffled batches without end, in another order each time round."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(len(train)).tolist()
        batches = batches_of(order, batch_size, training=True)
        yield from DataLoader(
            train, batch_sampler=batches, collate_fn=Collate("train split"), generator=torch.Generator()
        )
