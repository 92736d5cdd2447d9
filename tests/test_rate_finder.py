"""rate_finder.py: the sweep finds where the loss is lowest, and leaves the model as it was."""

from __future__ import annotations

import dataclasses
from itertools import accumulate

import pytest
import torch
from helpers import ColourPatches, copy_of, generators_untouched, mini, moved

from course_utils.common.errors import CourseError
from course_utils.feature_extraction import freeze
from course_utils.fine_tuning import DISCRIMINATIVE, FULL, LAST_BLOCK
from course_utils.rate_finder import SAFETY, TOO_HIGH, RateSweep, find_rate

TRAIN = ColourPatches(24)


def test_the_loss_falls_and_then_grows():
    sweep = find_rate(mini(), TRAIN, FULL, steps=40, batch_size=8)
    assert sweep.rates[0] == pytest.approx(1e-5) and list(sweep.rates) == sorted(sweep.rates)
    assert 1e-5 < sweep.lowest < sweep.rates[-1], "neither the first nor the last rate is the best"
    assert min(sweep.losses) < 0.9 * sweep.losses[0]
    assert sweep.suggestion == pytest.approx(sweep.lowest / SAFETY)
    assert f"Suggested: {sweep.suggestion:.1e}" in str(sweep) and f"{sweep.losses[-1]:.3f}" in str(sweep)


def test_the_sweep_ends_where_the_loss_is_too_high():
    sweep = find_rate(mini(), TRAIN, FULL, steps=60, batch_size=8, lowest=1e-2, highest=1e4)
    assert len(sweep.rates) == len(sweep.losses) < 60
    over = [loss > TOO_HIGH * best for loss, best in zip(sweep.losses, accumulate(sweep.losses, min), strict=True)]
    assert over == [False] * (len(over) - 1) + [True]


def test_model_and_generators_are_put_back_and_the_same_call_gives_the_same():
    model = freeze(mini().train())
    model.fc.weight.grad = None
    before, modes = copy_of(model), [module.training for module in model.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    with generators_untouched():
        first = find_rate(model, TRAIN, LAST_BLOCK, steps=5, batch_size=8, seed=3)
        again = find_rate(model, TRAIN, LAST_BLOCK, steps=5, batch_size=8, seed=3)
    assert first == again and first != find_rate(model, TRAIN, LAST_BLOCK, steps=5, batch_size=8, seed=4)
    assert not moved(before, copy_of(model)) and modes == [module.training for module in model.modules()]
    assert learning == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_all_rates_are_scaled_together():
    sweep = RateSweep(DISCRIMINATIVE, (1e-3, 1e-2, 1e-1), (2.0, 1.0, 4.0))
    assert max(sweep.tuned().rates) == pytest.approx(1e-3)
    ratios = [new / old for new, old in zip(sweep.tuned().rates, DISCRIMINATIVE.rates, strict=True)]
    assert ratios == pytest.approx([0.1] * len(ratios)) and sweep.tuned().starts == DISCRIMINATIVE.starts


def test_what_cannot_be_swept():
    for wrong in ({"lowest": 0}, {"lowest": 1, "highest": 0.1}, {"steps": 1}, {"highest": float("inf")}):
        with pytest.raises(CourseError, match="0 < lowest < highest"):
            find_rate(mini(), TRAIN, FULL, **wrong)
    model = mini()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    with pytest.raises(CourseError, match="the loss is no number"):
        find_rate(model, TRAIN, FULL, steps=3)


def test_statistics_are_kept_where_the_strategy_keeps_them():
    kept = dataclasses.replace(FULL, update_statistics=False)
    assert find_rate(mini(), TRAIN, kept, steps=3).losses != find_rate(mini(), TRAIN, FULL, steps=3).losses
