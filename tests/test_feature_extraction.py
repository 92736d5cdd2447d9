"""feature_extraction.py: what is frozen stays, to the last bit, and the proof notices when it does not."""

from __future__ import annotations

import pytest
import torch
from helpers import ColourPatches, cheap_model, copy_of, generators_untouched, mini, moved, moved_stages, no_hooks
from torch import nn
from torch.nn import functional as F

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating
from course_utils.feature_extraction import (
    FrozenMoved,
    extract_features,
    first_filters,
    freeze,
    frozen_proof,
    learning_stages,
    set_learning,
    train_mode,
    trainable_parameters,
)
from course_utils.pretrained_models import feature_dim, last_layer, stages

MINI_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


def optimizer_for(model, lr=0.05):
    # All parameters, with everything that moves weights without a gradient.
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.1)


def train_steps(model, optimizer, steps=3, mode=train_mode, set_to_none=True, side=32):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        mode(model)
        images = torch.randn(4, 3, side, side, generator=generator)
        F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def plain_train(model):
    return model.train()


# --- freezing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", MINI_STAGES)
def test_frozen_stages_stay_and_the_others_learn(border):
    model = mini()
    freeze(model, before=border)
    before = copy_of(model)
    with frozen_proof(model):
        train_steps(model, optimizer_for(model))
    learning = MINI_STAGES[MINI_STAGES.index(border) :]
    assert moved_stages(model, before, copy_of(model)) == set(learning)
    assert learning_stages(model) == list(learning)


@pytest.mark.parametrize(
    ("name", "border"),
    [("vgg11_bn", "head"), ("efficientnet_b0", "stage6"), ("mobilenet_v3_small", "top"), ("mobilenet_v2", "stage7")],
)
def test_frozen_stages_stay_in_the_other_families(name, border):
    model = freeze(cheap_model(name, num_classes=3), before=border)
    before = copy_of(model)
    with frozen_proof(model):
        train_steps(model, optimizer_for(model, lr=0.01), steps=2)
    names = list(stages(model))
    assert moved_stages(model, before, copy_of(model)) == set(names[names.index(border) :])


def test_the_frozen_part_computes_the_same_while_the_head_trains():
    model = freeze(cheap_model("mobilenet_v3_small", num_classes=3), before="head")  # dropout in front of the head
    images = torch.ones(2, 3, 32, 32)
    outputs = []
    for _ in range(2):
        train_mode(model)
        x = images
        for name, stage in stages(model).items():
            x = x if name == "head" else stage(x)
        outputs.append(x)
    assert torch.equal(*outputs)


def test_gradients_of_frozen_parameters_are_none():
    model = mini()
    F.cross_entropy(model(torch.ones(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None for p in model.parameters())
    freeze(model, before="layer4")
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) > 40 and all(p.grad is None for p in frozen)
    F.cross_entropy(model(torch.ones(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is None for p in frozen)
    assert model.layer4[0].conv1.weight.grad is not None


def test_freezing_by_default_leaves_the_head():
    model = freeze(mini())
    assert learning_stages(model) == ["head"]
    assert trainable_parameters(model) == (144 * 3 + 3, sum(p.numel() for p in model.parameters()))


def test_the_first_stage_freezes_nothing_and_none_freezes_everything():
    model = mini()
    assert freeze(model, before=None) is model
    assert learning_stages(model) == [] and trainable_parameters(model)[0] == 0
    assert not any(
        module.training for stage in stages(model).values() for module in stage if module in set(model.modules())
    )
    assert learning_stages(freeze(model, before="stem")) == list(MINI_STAGES)
    assert all(module.training for module in model.modules())


def test_set_learning_takes_any_choice_of_stages():
    model = set_learning(mini(), ["stem", "head"])
    assert learning_stages(model) == ["stem", "head"]
    assert model.bn1.training and not model.layer1[0].bn1.training


def test_train_mode_after_eval():
    model = freeze(mini(), before="layer4").eval()
    assert train_mode(model) is model
    assert model.training and model.layer4[1].bn2.training and not model.layer3[1].bn2.training


@pytest.mark.parametrize(
    ("name", "dropouts"),
    [("vgg11_mini", 2), ("efficientnet_b0_mini", 1), ("mobilenet_v2", 1), ("mobilenet_v3_small_mini", 1)],
)
def test_dropout_in_front_of_the_last_layer_goes_with_the_head(name, dropouts):
    """On where the head learns, in every family; dropout between frozen layers stays off."""
    model = freeze(cheap_model(name, num_classes=3))
    assert learning_stages(model) == ["head"]
    assert [m.training for m in model.modules() if isinstance(m, nn.Dropout)] == [False] * (dropouts - 1) + [True]
    freeze(model, before=None)
    assert not any(m.training for m in model.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize(
    ("asked", "hint"), [("layer5", "Did you mean 'layer4'"), ("Layer3", "layer3"), ("zzz", "stem")]
)
def test_an_unknown_stage(asked, hint):
    model = mini()
    with pytest.raises(CourseError) as caught:
        freeze(model, before=asked)
    assert repr(asked) in str(caught.value) and hint in str(caught.value)
    assert ", ".join(MINI_STAGES) in str(caught.value)
    assert learning_stages(model) == list(MINI_STAGES), "an error changes nothing"


# --- the three traps ---------------------------------------------------------------------------------------------


def test_trap_batchnorm_moves_in_training_mode():
    model = freeze(mini(), before="head")
    with pytest.raises(FrozenMoved) as caught, frozen_proof(model):
        train_steps(model, optimizer_for(model), mode=plain_train)
    message = str(caught.value)
    assert "bn1.running_mean" in message and "train_mode(model)" in message
    assert "fc.weight" not in message


def test_trap_momentum_and_decay_move_a_weight_whose_gradient_is_zero():
    model = mini()
    optimizer = optimizer_for(model)
    train_steps(model, optimizer, steps=2, set_to_none=False)  # the usual way fills grad with zeros
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    with pytest.raises(FrozenMoved, match=r"conv1\.weight"), frozen_proof(model):
        train_steps(model, optimizer, steps=1, set_to_none=False)


def test_freeze_avoids_that_trap():
    model = mini()
    optimizer = optimizer_for(model)
    train_steps(model, optimizer, steps=2, set_to_none=False)
    freeze(model, before="head")
    with frozen_proof(model):
        train_steps(model, optimizer, steps=2, set_to_none=False)


# --- the proof ---------------------------------------------------------------------------------------------------


def test_the_proof_names_a_parameter_that_moved():
    model = freeze(mini(), before="layer4")
    with (
        pytest.raises(FrozenMoved, match=r"1 frozen tensors moved: layer2\.0\.conv1\.weight") as caught,
        frozen_proof(model),
    ):
        train_steps(model, optimizer_for(model), steps=1)
        with torch.no_grad():
            model.layer2[0].conv1.weight[0, 0, 0, 0] += 1e-6
    assert "train_mode" not in str(caught.value)


def test_the_proof_notices_a_lost_tensor_and_another_shape():
    for spoil in (
        lambda m: delattr(m.layer1[0], "conv1"),
        lambda m: setattr(m.layer1[0], "conv1", torch.nn.Conv2d(1, 1, 1, bias=False)),
    ):
        model = freeze(mini())
        with pytest.raises(FrozenMoved, match=r"layer1\.0\.conv1\.weight"), frozen_proof(model):
            spoil(model)


@pytest.mark.parametrize("spoil", ["no step", "rate 0", "not in the optimizer"])
def test_the_proof_notices_a_stage_that_sleeps(spoil):
    model = freeze(mini(), before="layer4")
    parameters = model.fc.parameters() if spoil == "not in the optimizer" else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0 if spoil == "rate 0" else 0.1)
    with pytest.raises(FrozenMoved) as caught, frozen_proof(model):
        train_steps(model, optimizer, steps=0 if spoil == "no step" else 1)
    asleep = "layer4" if spoil == "not in the optimizer" else "layer4, head"
    assert f"did not move: {asleep}." in str(caught.value)


def test_the_proof_compares_bits():
    model = freeze(mini())
    with torch.no_grad():
        model.layer1[0].bn1.running_mean[0] = float("nan")  # a NaN equals itself
        model.layer1[0].bn1.bias[0] = 0.0
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)

    def step():
        model.fc.weight.grad, model.fc.bias.grad = torch.ones_like(model.fc.weight), torch.ones_like(model.fc.bias)
        optimizer.step()

    with frozen_proof(model):
        step()
    with pytest.raises(FrozenMoved, match=r"layer1\.0\.bn1\.bias"), frozen_proof(model):
        step()
        with torch.no_grad():
            model.layer1[0].bn1.bias[0] = -0.0


def test_an_error_in_the_block_is_not_hidden():
    with pytest.raises(ZeroDivisionError), frozen_proof(freeze(mini())):
        raise ZeroDivisionError


def test_the_proof_fails_a_test():
    assert issubclass(FrozenMoved, AssertionError)


# --- the network as a function -----------------------------------------------------------------------------------


def test_features_are_what_the_last_layer_sees():
    model, dataset = freeze(mini()), ColourPatches(7)
    model.layer4.train()
    modes, before = [m.training for m in model.modules()], copy_of(model)
    with generators_untouched():
        features, labels = extract_features(model, dataset, batch_size=3)
    assert features.shape == (7, feature_dim(model)) and features.dtype == torch.float32
    assert labels.tolist() == list(dataset.labels) and labels.dtype == torch.int64
    assert [m.training for m in model.modules()] == modes
    assert not moved(before, copy_of(model)) and no_hooks(model)
    with torch.no_grad():
        torch.testing.assert_close(last_layer(model)(features), model.eval()(dataset.images))


def test_features_can_be_learned_from():
    features, labels = extract_features(mini(), ColourPatches(4), batch_size=64)  # one batch
    head = torch.nn.Linear(features.shape[1], 3)
    F.cross_entropy(head(features), labels).backward()  # tensors of inference mode could not be saved for backward
    assert head.weight.grad.abs().sum() > 0


def test_features_of_nothing():
    with pytest.raises(CourseError, match="empty"):
        extract_features(mini(), ColourPatches(0))


def test_evaluating_puts_modes_back_after_an_error():
    model = freeze(mini(), before="layer3")
    modes = [m.training for m in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(m.training for m in model.modules())
        assert torch.is_inference_mode_enabled()
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == modes
    assert not torch.is_inference_mode_enabled()


def test_the_first_filters():
    model = mini()
    assert torch.equal(first_filters(model), model.conv1.weight)
    assert not first_filters(model).requires_grad
    assert first_filters(cheap_model("mobilenet_v3_small")).shape == (16, 3, 3, 3)


def test_parameters_of_a_model_of_no_family():
    with pytest.raises(CourseError, match="Linear"):
        trainable_parameters(torch.nn.Linear(2, 2))
