"""Checkers for the exercises: each says whether an answer is right, and if not, what about it is not.

A checker never gives the answer away. It works on what the reader built, so every right solution passes, not only
the one that the course has in mind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from course_utils.fine_tuning import Strategy


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and why, or what to look at."""

    right: bool
    why: str

    def __str__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.why}"


def _unanswered(answer: object) -> Verdict | None:
    return Verdict(False, "replace the three dots by your answer.") if answer is None or answer is ... else None


# --- day 20 ------------------------------------------------------------------------------------------------------


def check_frozen_up_to(model: nn.Module, first_learning: str) -> Verdict:
    """Day 20, exercise 1: exactly the stages from `first_learning` on learn, and frozen ones are in eval mode."""
    if missing := _unanswered(model):
        return missing
    from course_utils.feature_extraction import learning_stages
    from course_utils.pretrained_models import stages

    row = stages(model)
    names = list(row)
    border = names.index(first_learning)
    learning = learning_stages(model)
    partly = [name for name, stage in row.items() if len({p.requires_grad for p in stage.parameters()}) > 1]
    if partly:
        return Verdict(False, f"{partly[0]} is half frozen: some of its parameters learn and some do not.")
    if too_many := [name for name in learning if names.index(name) < border]:
        return Verdict(False, f"{', '.join(too_many)} can still learn, and should not.")
    if too_few := [name for name in names[border:] if name not in learning]:
        return Verdict(False, f"{', '.join(too_few)} should learn, and does not.")
    if any(module.training for name in names[:border] for module in row[name].modules()):
        return Verdict(
            False,
            "the right parameters are frozen, but something in a frozen stage is in training mode. "
            "What would BatchNorm do there?",
        )
    return Verdict(True, f"{', '.join(learning)} learn, and nothing else can move.")


def check_head_size(answer: int, features: int, classes: int) -> Verdict:
    """Day 20, exercise 2: how many numbers a new head has."""
    if missing := _unanswered(answer):
        return missing
    weights = features * classes
    if answer == weights + classes:
        return Verdict(True, f"{weights:,} weights and {classes} biases.")
    if answer == weights:
        return Verdict(False, "these are the weights. What else does a linear layer add to each output?")
    return Verdict(False, f"{answer:,} is not it. Each of {classes} outputs looks at every one of {features} features.")


def check_two_step_strategy(strategy: Strategy) -> Verdict:
    """Day 20, exercise 3: head from the start, one more stage from the third epoch, at a tenth of the head's rate."""
    if missing := _unanswered(strategy):
        return missing
    from course_utils.pretrained_models import load_pretrained

    head, block, *deeper = reversed(strategy.plan(load_pretrained("resnet18_mini", 2, weights=None)).rows)
    if head.start != 0:
        return Verdict(False, f"the head starts in epoch {head.start}; it should learn from the first one, which is 0.")
    if block.start is None or block.start != 2:
        return Verdict(
            False, f"{block.stage} starts at {block.start}. Epochs count from 0: which number has the third?"
        )
    if any(row.start is not None for row in deeper):
        return Verdict(False, "stages further in front learn too. The last entry of `starts` holds for all of them.")
    if abs(block.rate * 10 / head.rate - 1) > 1e-6:
        return Verdict(
            False, f"{block.stage} has the rate {block.rate:g}, the head {head.rate:g}: that is not a tenth."
        )
    return Verdict(True, "the head settles first, then the block in front of it follows slowly.")


def check_scenarios(answers: Mapping[str, str]) -> Verdict:
    """Day 20, exercise 4: scenario A, B or C for four described data sets."""
    expected = {"two cats": "A", "factory parts": "B", "street scenes": "C", "tiny satellite set": "A"}
    for name, scenario in expected.items():
        given = answers.get(name)
        if given is None or given is ...:
            return Verdict(False, f"{name!r} has no answer yet.")
        if str(given).upper() not in ("A", "B", "C"):
            return Verdict(False, f"{name!r}: answer with A, B or C, not {given!r}.")
        if str(given).upper() != scenario:
            return Verdict(False, f"{name!r}: think again about how many pictures there are for how many parameters.")
    return Verdict(True, "the amount of data decides how much of the network you can afford to move.")


def check_repaired_step(step: Callable[[nn.Module, Tensor, Tensor], None]) -> Verdict:
    """Day 20, exercise 5: a training step that changes the head and nothing else, tried on a small network."""
    if missing := _unanswered(step):
        return missing
    import torch

    from course_utils.feature_extraction import FrozenMoved, freeze, frozen_proof
    from course_utils.pretrained_models import load_pretrained

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = freeze(load_pretrained("resnet18_mini", 2, weights=None))
        model.train()  # as somebody else's code may have left it
        images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
        try:
            with frozen_proof(model):
                step(model, images, labels)
        except FrozenMoved as moved:
            return Verdict(False, str(moved))
    return Verdict(True, "the head moved, and every frozen number is the same to the last bit.")
