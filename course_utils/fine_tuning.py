"""Ways to transfer, as data: from which epoch each stage learns, and at which learning rate.

=====================  ===============================================================  =======================
strategy               what learns                                                      brief, practical advice
=====================  ===============================================================  =======================
FEATURE_EXTRACTION     the new head                                                     scenario A, option 1
LAST_BLOCK             the head and the last block of convolutions                      scenario B, option 2
PROGRESSIVE            the head first, then one stage more in every epoch               scenario B
DISCRIMINATIVE         everything, each stage at half the rate of the one behind it     scenario C, option 3
FULL                   everything at one small rate, the head faster                    scenario C
FROM_SCRATCH           everything, from random weights: the comparison, not a transfer
=====================  ===============================================================  =======================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from course_utils.common.errors import CourseError, warn
from course_utils.common.state import generators_put_back
from course_utils.common.tables import text_table
from course_utils.families import AS_WRITTEN, recipe_of
from course_utils.pretrained_models import hidden_stages, load_pretrained, replace_head, stages


@dataclass(frozen=True)
class Strategy:
    """A way to transfer, independent of any architecture.

    Parameters
    ----------
    name
        Name in tables and plots.
    starts
        Epoch (from 0) from which a stage learns, None for never. The first entry is for the head, the next for the
        stage in front of it, and so on towards the pixels; the last entry holds for all that remain.
    rates
        Highest learning rate of a stage, in the same order. AdamW's, so about 1e-5 to 1e-2.
    pretrained
        True to begin with pre-trained weights.
    weight_decay
        Weight decay of AdamW; norms and biases are never decayed.
    warmup
        Share of a stage's own steps in which its rate climbs; they run from its first epoch to the end of the run.
    hidden
        False to keep pre-trained layers between the last map and the head frozen (the stage `hidden` of VGG and
        MobileNetV3); `starts` and `rates` then pass over them, to the last block of convolutions.
    update_statistics
        False to keep the mean and deviation of every BatchNorm as they were learned in pre-training, where many more
        pictures were seen than a small data set has. Scale and shift learn all the same.
    by_family
        True to train the stages in front of the head as carefully as the recipe of the network's family says
        (:class:`~course_utils.families.Recipe`): at a share of `rates`, behind an epoch of the head alone, with
        BatchNorm's statistics kept. The ready-made strategies do so; one of your own does what is written in it.

    Raises
    ------
    CourseError
        If a rate is not above 0, an epoch is negative, the head never learns, or nothing learns in epoch 0.
    """

    name: str
    starts: tuple[int | None, ...]
    rates: tuple[float, ...]
    pretrained: bool = True
    weight_decay: float = 0.01
    warmup: float = 0.1
    hidden: bool = True
    update_statistics: bool = True
    by_family: bool = False

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0] is None:
            raise CourseError(f"{self.name}: starts={self.starts}; the head (first entry) has to learn at some epoch.")
        if any(start is not None and start < 0 for start in self.starts):
            raise CourseError(f"{self.name}: starts={self.starts}; an epoch is 0 or more, or None for never.")
        if 0 not in self.starts:
            raise CourseError(f"{self.name}: starts={self.starts}; at least one stage has to learn from epoch 0 on.")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise CourseError(
                f"{self.name}: rates={self.rates}; every learning rate must be above 0, 1e-3 for instance."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise CourseError(f"{self.name}: weight_decay={self.weight_decay}; it is 0 or more, 0.01 for instance.")
        if not 0 <= self.warmup < 1:
            raise CourseError(f"{self.name}: warmup={self.warmup}; it is a share of steps, from 0 up to below 1.")

    def plan(self, model: nn.Module) -> Plan:
        """Return the plan of the strategy for a model; print it to see a table."""
        recipe = recipe_of(model) if self.by_family else AS_WRITTEN
        rows, depth = [], 0
        skipped = [] if self.hidden else hidden_stages(model)
        for name, stage in reversed(stages(model).items()):
            parameters = sum(p.numel() for p in stage.parameters())
            start = None if name in skipped else _entry(self.starts, depth)
            rate = _entry(self.rates, depth)
            if depth:
                rate = rate * recipe.body_rate
                start = start if start is None else max(start, recipe.head_epochs)
            rows.append(StagePlan(name, parameters, rate, start))
            depth += name not in skipped
        return Plan(self, tuple(reversed(rows)), self.update_statistics and recipe.update_statistics)

    def starting_model(self, name: str, num_classes: int, seed: int = 0, weights: object = "DEFAULT") -> nn.Module:
        """Return the pre-trained or random model to begin with; all strategies with the same seed get the same head.

        `name`, `num_classes` and `weights` are those of :func:`~course_utils.pretrained_models.load_pretrained`.
        """
        with generators_put_back(seed):
            # Networks that were trained without classes have no head to load; a random body is drawn as ever.
            model = load_pretrained(
                name, num_classes if self.pretrained else None, weights if self.pretrained else None
            )
            torch.manual_seed(seed)  # again, so that the head does not depend on whether the body was drawn before it
            return replace_head(model, num_classes)


def _entry(values: tuple, depth: int) -> object:
    return values[min(depth, len(values) - 1)]


@dataclass(frozen=True)
class StagePlan:
    """One row of a plan: a stage, its number of parameters, highest rate, and first epoch (None: never)."""

    stage: str
    parameters: int
    rate: float
    start: int | None


@dataclass(frozen=True)
class Plan:
    """A strategy applied to one model; ``print(plan)`` shows it."""

    strategy: Strategy
    rows: tuple[StagePlan, ...]
    update_statistics: bool = True

    def learning_at(self, epoch: int) -> list[str]:
        """Return the names of the stages that learn in an epoch, from pixels to logits."""
        return [row.stage for row in self.rows if row.start is not None and epoch >= row.start]

    def trainable_at(self, epoch: int) -> int:
        """Return the number of parameters that learn in an epoch."""
        return sum(row.parameters for row in self.rows if row.stage in self.learning_at(epoch))

    def warn_if_too_short(self, epochs: int) -> None:
        """Warn of the stages whose first epoch comes after the last of a run."""
        late = [row for row in self.rows if row.start is not None and row.start >= epochs]
        if late:
            warn(
                f"In epochs={epochs}, {self.strategy.name!r} never lets {', '.join(row.stage for row in late)} learn. "
                f"It needs epochs={max(row.start for row in late) + 1} or more for every stage to have a turn."
            )

    def __str__(self) -> str:
        table = [
            [row.stage, row.parameters, *(("-", "never") if row.start is None else (f"{row.rate:g}", row.start + 1))]
            for row in self.rows
        ]
        kept = "" if self.update_statistics else "\nBatchNorm's statistics stay as they were learned in pre-training."
        return text_table(["stage", "parameters", "learning rate", "learns from epoch"], table) + kept


FEATURE_EXTRACTION = Strategy("feature extraction", starts=(0, None), rates=(3e-2,))
# VGG-16 has 89 % of its parameters in `hidden`; with it, "last block" would mean other things in other families.
LAST_BLOCK = Strategy("last block", starts=(0, 0, None), rates=(1e-2, 1e-3), hidden=False, by_family=True)
PROGRESSIVE = Strategy("progressive", starts=(0, 1, 2, 3, 4, 5), rates=(1e-2, 1e-3), by_family=True)
DISCRIMINATIVE = Strategy(
    "discriminative", starts=(0,), rates=(1e-2, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6e-5, 3e-5), by_family=True
)
FULL = Strategy("full fine-tuning", starts=(0,), rates=(1e-2, 1e-3), by_family=True)
FROM_SCRATCH = Strategy("from scratch", starts=(0,), rates=(3e-3,), pretrained=False)
STRATEGIES = (FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, DISCRIMINATIVE, FULL, FROM_SCRATCH)

# Decaying a norm's scale, a bias, ConvNeXt's layer scale or the embedding of a position towards 0 changes what the
# layer computes without making it simpler. Not all of them are vectors, so the type of the module decides.
DECAYED = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def parameter_groups(model: nn.Module, plan: Plan) -> list[dict]:
    """Return AdamW's groups: for every stage that ever learns, its matrices and filters (decayed) and the rest (not).

    All groups exist from the first step on, also those of stages that start later: adding a group in mid-run breaks
    LambdaLR and OneCycleLR. `plan` is ``strategy.plan(model)``.
    """
    groups = []
    row = stages(model)
    for entry in plan.rows:
        if entry.start is None:
            continue
        parameters = list(row[entry.stage].parameters())
        decayed = {
            id(parameter)
            for module in row[entry.stage].modules()
            if isinstance(module, DECAYED)
            for name, parameter in module.named_parameters(recurse=False)
            if name.endswith("weight")  # "in_proj_weight" too
        }
        for kind, chosen, decay in (
            ("matrices", [p for p in parameters if id(p) in decayed], plan.strategy.weight_decay),
            ("others", [p for p in parameters if id(p) not in decayed], 0.0),
        ):
            if chosen:
                about = {"name": f"{entry.stage} {kind}", "start": entry.start}
                groups.append({"params": chosen, "lr": entry.rate, "weight_decay": decay, **about})
    return groups


def make_schedule(optimizer: torch.optim.Optimizer, plan: Plan, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """Return the schedule of the learning rates, to be stepped after every batch.

    Every group of `optimizer` (from :func:`parameter_groups`) follows :func:`rate_factor` from the step on in which its
    stage begins to learn; its warm-up is that share of its own steps which the strategy says.
    """
    steps = epochs * steps_per_epoch

    def rate_of(group: dict) -> Callable[[int], float]:
        first = group["start"] * steps_per_epoch
        warmup = round(plan.strategy.warmup * (steps - first))
        return lambda step: rate_factor(step, first, steps, warmup)

    return LambdaLR(optimizer, [rate_of(group) for group in optimizer.param_groups])


def rate_factor(step: int, first_step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of its highest learning rate that a stage has at a step.

    Parameters
    ----------
    step
        Number of the optimizer step, from 0.
    first_step
        Number of the step in which the stage begins to learn.
    steps
        Number of steps of the whole run.
    warmup_steps
        Number of steps of the linear warm-up that begins with `first_step`.

    Returns
    -------
    float
        In [0, 1]: the warm-up, times a cosine that falls from 1 to 0 between the stage's first step and the end of the
        run (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983); before and after these it is 0. A stage that
        begins late has less time than the others, but not smaller rates.
    """
    if not first_step <= step < steps:
        return 0.0
    climb = min(1.0, (step - first_step + 1) / max(1, warmup_steps))
    return climb * 0.5 * (1 + math.cos(math.pi * (step - first_step) / (steps - first_step)))
