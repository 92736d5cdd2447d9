"""Every checker: the solution passes, the usual mistakes do not, and no answer is given away."""

import dataclasses

import pytest
import torch
from helpers import mini
from torch import nn

from course_utils import exercises
from course_utils.feature_extraction import freeze, train_mode
from course_utils.fine_tuning import FULL, Strategy

UNANSWERED = [
    (exercises.check_frozen_up_to, ("layer4",)),
    (exercises.check_head_size, (2048, 37)),
    (exercises.check_two_step_strategy, ()),
    (exercises.check_repaired_step, ()),
]


@pytest.mark.parametrize(("checker", "rest"), UNANSWERED)
def test_three_dots_are_no_answer(checker, rest):
    verdict = checker(..., *rest)
    assert not verdict.right
    assert str(verdict).startswith("Not yet")


def test_frozen_up_to_accepts_freeze_and_a_loop_by_hand():
    assert exercises.check_frozen_up_to(freeze(mini(), before="layer4"), "layer4").right
    by_hand = mini()
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad = name.startswith(("layer4", "fc"))
    by_hand.eval()
    assert exercises.check_frozen_up_to(by_hand, "layer4").right


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda m: freeze(m, before="layer3"), "layer3 can still learn"),
        (lambda m: freeze(m, before="head"), "layer4 should learn"),
        (lambda m: freeze(m, before="layer4").train(), "BatchNorm"),
        (lambda m: freeze(m, before="layer4").layer4[0].requires_grad_(False), "half frozen"),
    ],
)
def test_frozen_up_to_says_what_is_wrong(spoil, hint):
    model = mini()
    spoil(model)
    verdict = exercises.check_frozen_up_to(model, "layer4")
    assert not verdict.right
    assert hint in verdict.why


@pytest.mark.parametrize(("answer", "right"), [(2049 * 37, True), (2048 * 37, False), (2048, False)])
def test_head_size(answer, right):
    assert exercises.check_head_size(answer, 2048, 37).right is right


def test_head_size_does_not_give_the_answer_away():
    assert f"{2049 * 37:,}" not in str(exercises.check_head_size(5, 2048, 37))


def test_two_step_strategy():
    good = Strategy("two steps", starts=(0, 2, None), rates=(1e-2, 1e-3))
    assert exercises.check_two_step_strategy(good).right
    for wrong in (
        dataclasses.replace(good, starts=(0, 3, None)),
        dataclasses.replace(good, starts=(0, None)),
        dataclasses.replace(good, starts=(0, 2)),
        dataclasses.replace(good, starts=(1, 0, None)),
        dataclasses.replace(good, rates=(1e-2,)),
        FULL,
    ):
        assert not exercises.check_two_step_strategy(wrong).right, wrong


def test_scenarios():
    good = {"two cats": "A", "factory parts": "B", "street scenes": "C", "tiny satellite set": "a"}
    assert exercises.check_scenarios(good).right
    for name in good:
        assert not exercises.check_scenarios({**good, name: "B" if good[name] != "B" else "A"}).right
        assert not exercises.check_scenarios({**good, name: ...}).right
        assert not exercises.check_scenarios({**good, name: "D"}).right


def step_with(repair):
    def step(network, images, targets):
        repair(network)
        nn.functional.cross_entropy(network(images), targets).backward()
        torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1).step()

    return step


def test_repaired_step():
    assert exercises.check_repaired_step(step_with(train_mode)).right
    assert exercises.check_repaired_step(step_with(nn.Module.eval)).right


def test_a_step_that_moves_batchnorm_or_nothing_is_not_repaired():
    assert "running_mean" in exercises.check_repaired_step(step_with(lambda network: None)).why
    assert "head" in exercises.check_repaired_step(lambda network, images, targets: None).why
