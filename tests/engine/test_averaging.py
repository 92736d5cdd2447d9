"""averaging.py, and fit with ema: the average is what is validated, kept and resumed."""

from __future__ import annotations

import pytest
import torch
from helpers import ColourPatches, copy_of, mini, moved
from torch import nn

from course_utils.common.errors import CourseError
from course_utils.engine.averaging import WeightAverage
from course_utils.evaluation import evaluate
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL
from course_utils.training import fit

TRAIN, VAL = ColourPatches(12, seed=1), ColourPatches(7, seed=2)


def set_weight(model, value):
    with torch.no_grad():
        model.weight.fill_(value)


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    set_weight(model, 0.0)
    average = WeightAverage(model, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0, 8.0] * 5, 1):
        set_weight(model, value)
        average.update(model)
        keep = min(0.5, step / (step + 9))
        expected = keep * expected + (1 - keep) * value
    assert average.tensors["weight"].item() == pytest.approx(expected)
    with average.in_place(model):
        assert model.weight.item() == pytest.approx(expected)
        assert average.learning_weights(model)["weight"].item() == 8.0
    assert model.weight.item() == 8.0


def test_the_count_of_batches_is_no_average():
    model = nn.BatchNorm2d(2)
    average = WeightAverage(model, decay=0.9)
    assert set(average.tensors) == {"weight", "bias", "running_mean", "running_var"}


def test_without_a_decay_nothing_is_copied_or_changed():
    model = mini()
    before, average = copy_of(model), WeightAverage(model, None)
    average.update(model)
    with average.in_place(model):
        assert not average.tensors and average.state(model) == {}
    assert not moved(before, copy_of(model))


def test_after_a_stop_the_model_has_what_was_validated():
    model = nn.Linear(1, 1, bias=False)
    set_weight(model, 0.0)
    average = WeightAverage(model, decay=0.5)
    set_weight(model, 1.0)
    with pytest.raises(KeyboardInterrupt), average.in_place(model):
        raise KeyboardInterrupt
    assert model.weight.item() == 0.0 and average.learning_weights(model)["weight"].item() == 1.0
    assert average.state(model)["tensors"]["weight"].item() == 0.0


@pytest.mark.parametrize("strategy", [FULL, FEATURE_EXTRACTION], ids=lambda s: s.name)
def test_fit_validates_and_keeps_the_average_and_learns_the_same(strategy):
    plain, averaged = mini(), mini()
    options = {"epochs": 2, "batch_size": 4, "device": "cpu", "log": "off"}
    usual = fit(plain, TRAIN, VAL, strategy, **options)
    run = fit(averaged, TRAIN, VAL, strategy, ema=0.8, **options)
    # What it learns does not depend on the average: the training losses are the same, the kept weights are not.
    assert [r.train_loss for r in run.history] == [r.train_loss for r in usual.history]
    assert moved(copy_of(plain), copy_of(averaged))
    assert evaluate(averaged, VAL).accuracy == run.best.val_accuracy


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1, "much"])
def test_a_decay_that_cannot_be(decay):
    with pytest.raises(CourseError, match=r"ema=.*between 0 and 1"):
        fit(mini(), TRAIN, VAL, FULL, ema=decay, log="off")
