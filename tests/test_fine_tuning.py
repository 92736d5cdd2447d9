"""fine_tuning.py: six strategies as data, their plans, groups and schedules."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings

import pytest
import torch
from helpers import mini, moved, on_meta
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from course_utils import fine_tuning
from course_utils.common.errors import CourseError
from course_utils.families import Recipe, recipe_of
from course_utils.fine_tuning import (
    DISCRIMINATIVE,
    FEATURE_EXTRACTION,
    FROM_SCRATCH,
    FULL,
    LAST_BLOCK,
    PROGRESSIVE,
    STRATEGIES,
    Plan,
    StagePlan,
    Strategy,
    parameter_groups,
    rate_factor,
)
from course_utils.pretrained_models import load_pretrained, map_stages, stages

FAMILY_MEMBERS = ("resnet18_mini", "resnet50", "vgg11_bn", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small")
EPOCHS = 12

fast = hypothesis_settings(deadline=None, max_examples=100, derandomize=True)


@functools.cache
def bare(name):
    """A model to look at: no memory, three classes. Shared, so a test must not change it."""
    return on_meta(name, num_classes=3)


def make(**changed):
    return Strategy(**({"name": "mine", "starts": (0,), "rates": (1e-3,)} | changed))


# --- what a strategy may be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": ()}, {"starts": (None,)}, {"starts": (None, 0)}, {"starts": (0, -1)}, {"starts": (1, None)},
        {"starts": (2, 1)}, {"rates": ()}, {"rates": (0.0,)}, {"rates": (1e-3, -1e-3)}, {"rates": (math.nan,)},
        {"rates": (math.inf,)}, {"warmup": -0.1}, {"warmup": 1.0}, {"weight_decay": -0.1}, {"weight_decay": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name_and_value(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(CourseError) as caught:
        make(**wrong)
    assert f"mine: {field}={value}" in str(caught.value)


def test_what_can_be_is_taken():
    assert make(starts=(3, 0), warmup=0, weight_decay=0).starts == (3, 0)


def test_a_strategy_is_a_value():
    assert make() == make() and hash(make()) == hash(make())
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().name = "other"


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY_MEMBERS)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_a_plan_has_a_row_for_each_stage(strategy, name):
    model, strategy = bare(name), dataclasses.replace(strategy, by_family=False)
    plan = strategy.plan(model)
    row = stages(model)
    assert [entry.stage for entry in plan.rows] == list(row)
    assert sum(entry.parameters for entry in plan.rows) == sum(p.numel() for p in model.parameters())
    if strategy.name == LAST_BLOCK.name:  # passes over hidden layers, whose entries are looked at below
        plan = dataclasses.replace(plan, rows=tuple(row for row in plan.rows if row.stage != "hidden"))
    for depth, entry in enumerate(reversed(plan.rows)):
        assert entry.rate == (strategy.rates[depth] if depth < len(strategy.rates) else strategy.rates[-1])
        assert entry.start == (strategy.starts[depth] if depth < len(strategy.starts) else strategy.starts[-1])

    plan = strategy.plan(model)
    lines = str(plan).splitlines()
    assert len(lines) == 2 + len(row)
    for line, entry in zip(lines[2:], plan.rows, strict=True):
        never = entry.start is None
        expected = ["-", "never"] if never else [f"{entry.rate:g}", f"{entry.start + 1}"]
        assert line.split() == [entry.stage, f"{entry.parameters:,}", *expected]


@pytest.mark.parametrize("name", FAMILY_MEMBERS)
def test_what_the_six_let_learn(name):
    model = bare(name)
    names = list(stages(model))

    def learning(strategy, epoch):
        return strategy.plan(model).learning_at(epoch)

    begin = recipe_of(model).head_epochs
    assert begin == (0 if name.endswith("_mini") else 1)
    for epoch in (0, begin, EPOCHS):
        assert learning(FEATURE_EXTRACTION, epoch) == names[-1:]
        alone = epoch < begin
        assert learning(LAST_BLOCK, epoch) == ([] if alone else [map_stages(model)[-1]]) + names[-1:]
        for everything in (DISCRIMINATIVE, FULL):
            assert learning(everything, epoch) == (names[-1:] if alone else names)
        assert learning(FROM_SCRATCH, epoch) == names
    for epoch in range(5):
        assert learning(PROGRESSIVE, epoch) == names[-1 - epoch :]
    assert learning(PROGRESSIVE, 5) == names


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", FAMILY_MEMBERS)
def test_the_recipe_of_a_family_holds_in_front_of_the_head(strategy, name):
    model = bare(name)
    recipe, written = recipe_of(model), dataclasses.replace(strategy, by_family=False).plan(model)
    plan = strategy.plan(model)
    assert plan.rows[-1] == written.rows[-1], "the head learns as it is written"
    if not strategy.by_family or name.endswith("_mini"):
        assert plan.rows == written.rows and plan.update_statistics
        return
    assert not plan.update_statistics and "statistics stay" in str(plan)
    for row, own in zip(plan.rows[:-1], written.rows[:-1], strict=True):
        assert row.rate == pytest.approx(own.rate * recipe.body_rate) and row.rate < own.rate
        assert row.start == (None if own.start is None else max(own.start, recipe.head_epochs))


def test_a_strategy_of_ones_own_does_what_is_written_in_it():
    plan = make(starts=(0,), rates=(1e-2, 1e-3)).plan(bare("resnet50"))
    assert {row.start for row in plan.rows} == {0} and {row.rate for row in plan.rows} == {1e-2, 1e-3}


def test_a_class_of_networks_may_have_a_recipe_of_its_own():
    class Mine(ResNet):
        recipe = Recipe(body_rate=0.5, head_epochs=2)

    with torch.device("meta"):
        model = Mine(BasicBlock, [1, 1, 1, 1])
    row = FULL.plan(model).rows[0]
    assert (row.rate, row.start) == (5e-4, 2)


@pytest.mark.parametrize("strategy", [PROGRESSIVE, make(starts=(1, 0, 4, None))], ids=["progressive", "mine"])
def test_a_stage_that_learns_goes_on_learning(strategy):
    plan = strategy.plan(bare("resnet18_mini"))
    for epoch in range(EPOCHS):
        assert set(plan.learning_at(epoch)) <= set(plan.learning_at(epoch + 1))
        assert plan.trainable_at(epoch) == sum(r.parameters for r in plan.rows if r.stage in plan.learning_at(epoch))


@pytest.mark.parametrize(
    ("name", "block", "percent"),
    [("resnet18", "layer4", 75), ("vgg16", "block5", 5), ("efficientnet_b0", "top", 10), ("mobilenet_v2", "top", 19),
     ("mobilenet_v3_small", "top", 4)],
)  # fmt: skip
def test_the_last_block_is_the_one_that_gives_the_last_map(name, block, percent):
    """In VGG and MobileNetV3 hidden layers lie behind it: 89 % and 39 % of all parameters would learn with them."""
    model = bare(name)
    plan = LAST_BLOCK.plan(model)
    rows = {row.stage: row for row in plan.rows}
    assert plan.learning_at(1) == [block, "head"]
    assert (rows["head"].rate, rows[block].rate) == pytest.approx((1e-2, 1e-4)), "as the recipe of the family says"
    assert "hidden" not in rows or rows["hidden"].start is None
    total = sum(row.parameters for row in plan.rows)
    assert round(100 * plan.trainable_at(1) / total) == percent


def test_hidden_layers_are_a_stage_like_others_unless_a_strategy_passes_over_them():
    assert make(starts=(0, 0, None)).plan(bare("vgg11_bn")).learning_at(0) == ["hidden", "head"]
    assert make(starts=(0, 0, None), hidden=False).plan(bare("vgg11_bn")).learning_at(0) == ["block5", "head"]
    assert FULL.plan(bare("vgg11_bn")).learning_at(1) == list(stages(bare("vgg11_bn")))


def test_a_run_that_is_too_short_for_a_stage_is_told():
    plan = PROGRESSIVE.plan(bare("resnet18_mini"))
    with pytest.warns(UserWarning, match=r"epochs=3, 'progressive' never lets stem, layer1, layer2 learn.*epochs=6 or"):
        plan.warn_if_too_short(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.warn_if_too_short(6)
        FEATURE_EXTRACTION.plan(bare("resnet18_mini")).warn_if_too_short(1)  # what is frozen on purpose is not missed


def test_discriminative_rates_fall_towards_the_pixels():
    rates = [row.rate for row in DISCRIMINATIVE.plan(bare("resnet18_mini")).rows]
    assert rates == sorted(rates) and len(set(rates)) == len(rates)


def test_only_from_scratch_starts_without_knowledge():
    assert [s for s in STRATEGIES if not s.pretrained] == [FROM_SCRATCH]
    assert len({s.name for s in STRATEGIES}) == len(STRATEGIES) == 6


# --- the model that a strategy begins with -----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_head_and_leaves_the_generator():
    before = torch.get_rng_state()
    models = [s.starting_model("resnet18_mini", 3, seed) for s, seed in ((FULL, 1), (FEATURE_EXTRACTION, 1), (FULL, 2))]
    assert torch.equal(torch.get_rng_state(), before)
    assert not moved(models[0].state_dict(), models[1].state_dict())
    assert moved(models[0].state_dict(), models[2].state_dict()) == {"fc.weight", "fc.bias"}


def test_a_transfer_begins_with_pretrained_weights_and_from_scratch_does_not():
    pretrained = load_pretrained("resnet18_mini")
    transfer, scratch = (s.starting_model("resnet18_mini", 3) for s in (FULL, FROM_SCRATCH))
    assert torch.equal(transfer.conv1.weight, pretrained.conv1.weight)
    assert not torch.equal(scratch.conv1.weight, pretrained.conv1.weight)
    assert scratch.bn1.num_batches_tracked == 0


# --- parameter groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY_MEMBERS)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_groups_hold_each_learning_parameter_once_from_the_first_step(strategy, name):
    model = bare(name)
    plan = strategy.plan(model)
    groups = parameter_groups(model, plan)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    row = stages(model)
    ever = {id(p) for entry in plan.rows if entry.start is not None for p in row[entry.stage].parameters()}
    assert set(grouped) == ever
    by_stage = {entry.stage: entry for entry in plan.rows}
    for group in groups:
        entry = by_stage[group["name"].split()[0]]
        assert (group["lr"], group["start"]) == (entry.rate, entry.start)
        assert {id(p) for p in group["params"]} <= {id(p) for p in row[entry.stage].parameters()}
    assert len({group["name"] for group in groups}) == len(groups)


@pytest.mark.parametrize("name", FAMILY_MEMBERS)
def test_norms_and_biases_are_not_decayed(name):
    model = bare(name)
    decay = {id(p): g["weight_decay"] for g in parameter_groups(model, FULL.plan(model)) for p in g["params"]}
    for module in model.modules():
        for kind, parameter in module.named_parameters(recurse=False):
            decayed = kind == "weight" and isinstance(module, nn.Conv2d | nn.Linear)
            assert decay[id(parameter)] == (FULL.weight_decay if decayed else 0.0)


def test_of_a_convnext_only_matrices_and_filters_are_decayed():
    """Its layer scale is ``(C, 1, 1)``, and it scales as the weight of a norm does."""
    model = bare("convnext_tiny")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, FULL.plan(model))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    filters = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed == filters and len(decayed) == 59
    assert sum(name.endswith("layer_scale") for name in names.values()) == 18


def test_attention_is_decayed_and_what_says_where_a_token_is_is_not():
    class Family(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.table = nn.Parameter(torch.zeros(1, 4, 8)), nn.Embedding(4, 8)
            self.attention, self.norm, self.fc = nn.MultiheadAttention(8, 2), nn.LayerNorm((4, 8)), nn.Linear(8, 3)

    model = Family()
    model.fc.register_parameter("scale", nn.Parameter(torch.ones(3, 1)))
    plan = Plan(make(), (StagePlan("head", 0, 1e-3, 0),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "stages", lambda model: {"head": nn.Sequential(model)})
        groups = parameter_groups(model, plan)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = [names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]]
    assert decayed == ["attention.in_proj_weight", "attention.out_proj.weight", "fc.weight"]


def test_no_decay_where_there_is_no_gradient_to_speak_of():
    """One step of AdamW with zero gradients: only what is decayed moves."""
    model = mini()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, make(weight_decay=0.5, rates=(0.1,)).plan(model)))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim > 1 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


# --- the schedule ------------------------------------------------------------------------------------------------

steps_of_a_run = st.integers(1, 500)


@fast
@given(steps_of_a_run, st.integers(0, 600), st.integers(0, 600), st.integers(0, 600))
def test_a_rate_is_a_share_and_zero_before_its_start(steps, step, first, warmup):
    factor = rate_factor(step, first, steps, warmup)
    assert 0 <= factor <= 1
    if step < first:
        assert factor == 0
    elif step < steps - 1:
        assert factor > 0


@fast
@given(steps_of_a_run, st.data())
def test_a_rate_climbs_under_a_cosine_that_falls_from_the_first_step_of_a_stage_to_the_end(steps, data):
    first, warmup = data.draw(st.integers(0, steps - 1)), data.draw(st.integers(0, steps))
    own = steps - first
    for step in range(first, steps):
        cosine = math.cos(math.pi * (step - first) / (2 * own)) ** 2  # half a cosine: from 1 to 0
        climb = min(1, (step - first + 1) / max(1, warmup))
        assert rate_factor(step, first, steps, warmup) == pytest.approx(climb * cosine)


@fast
@given(steps_of_a_run, st.integers(0, 50), st.integers(0, 100), st.data())
def test_a_stage_that_begins_late_has_the_schedule_of_a_run_that_begins_there(steps, warmup, late, data):
    step = data.draw(st.integers(0, steps + 10))
    assert rate_factor(late + step, late, late + steps, warmup) == rate_factor(step, 0, steps, warmup)


@fast
@given(steps_of_a_run, st.integers(0, 100), st.data())
def test_from_the_first_epoch_on_it_is_the_schedule_it_always_was(steps, warmup, data):
    """To the last bit: results of strategies whose stages all begin in the first epoch stay what they were."""
    step = data.draw(st.integers(0, steps - 1))
    climb = min(1.0, (step + 1) / max(1, warmup))
    assert rate_factor(step, 0, steps, warmup) == climb * 0.5 * (1 + math.cos(math.pi * step / steps))


@pytest.mark.parametrize("epochs", [6, 10])
def test_progressive_gives_each_stage_its_share_of_the_learning(epochs):
    """A stage that begins k epochs late learns (epochs - k) / epochs of what it learns in full fine-tuning."""
    per_epoch = 20
    steps = per_epoch * epochs

    def learning(start):
        climb = round(PROGRESSIVE.warmup * (steps - start))
        return sum(rate_factor(step, start, steps, climb) for step in range(steps))

    for row in PROGRESSIVE.plan(bare("resnet18_mini")).rows:
        share = learning(row.start * per_epoch) / learning(0)
        assert share == pytest.approx(1 - row.start / epochs, abs=0.02)


def test_after_the_last_step_the_rate_is_zero():
    assert rate_factor(100, 0, 100, 10) == rate_factor(1000, 0, 100, 10) == rate_factor(100, 100, 100, 0) == 0


def test_known_values():
    assert rate_factor(0, 0, 100, 10) == pytest.approx(0.1)
    assert rate_factor(50, 0, 100, 10) == pytest.approx(0.5)
    assert rate_factor(50, 50, 100, 10) == pytest.approx(0.1)
    assert rate_factor(75, 50, 100, 10) == pytest.approx(0.5)
    assert rate_factor(0, 0, 100, 0) == 1
