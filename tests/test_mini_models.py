"""mini_models.py: torchvision's ResNet at a fraction of its width."""

from __future__ import annotations

import pytest
import torch
from helpers import generators_untouched, mini, moved
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from course_utils import mini_models
from course_utils.mini_models import NarrowResNet, initialise_convolutions


def test_it_has_the_modules_of_a_resnet18_but_for_the_pooling():
    narrow, full = mini(num_classes=1000), models.resnet18(weights=None)
    assert narrow.state_dict().keys() == full.state_dict().keys()
    kinds = {name: type(module) for name, module in full.named_modules()}
    assert {name: type(module) for name, module in narrow.named_modules()} == kinds | {
        "": NarrowResNet,
        "maxpool": nn.Identity,
    }
    assert isinstance(narrow, models.ResNet)


def test_widths_of_the_full_network_give_the_full_network():
    with torch.device("meta"):
        full, wide = models.resnet18(), NarrowResNet((64, 128, 256, 512))
    assert {k: v.shape for k, v in wide.state_dict().items()} == {k: v.shape for k, v in full.state_dict().items()}


def test_it_is_as_small_as_it_says():
    assert 0.85e6 < sum(p.numel() for p in mini(num_classes=200).parameters()) < 0.9e6


def test_nothing_is_left_without_memory():
    model = mini()
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_128_pixels_end_as_a_map_of_8_by_8():
    shapes = []
    model = mini().eval()
    model.layer4.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 128, 128)).shape == (1, 3)
    assert shapes == [(1, 144, 8, 8)]


def test_a_seed_gives_a_network():
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(models.get_model("resnet18_mini", weights=None, num_classes=3).state_dict())
    assert not moved(networks[0], networks[1])
    assert {"conv1.weight", "layer4.1.conv2.weight", "fc.weight"} <= moved(networks[0], networks[2])


def test_widths_and_layers_are_taken():
    model = NarrowResNet((4, 8, 8, 12), layers=(1, 2, 1, 1), num_classes=2)
    assert [len(getattr(model, f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 2, 1, 1]
    assert all(isinstance(block, BasicBlock) for block in model.layer2)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_convolutions_are_drawn_as_he_et_al_do():
    model = mini()
    torch.manual_seed(0)
    initialise_convolutions(model)
    weight = model.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (144 * 9)) ** 0.5, rel=0.02)
    assert (model.bn1.weight == 1).all() and (model.bn1.bias == 0).all()


def test_a_model_that_gets_weights_has_their_classes():
    with pytest.raises(ValueError, match="num_classes=3"):
        models.get_model("resnet18_mini", weights="DEFAULT", num_classes=3)


def test_torchvision_finds_the_entry():
    assert models.get_model_weights("resnet18_mini") is mini_models.ResNet18_Mini_Weights


def test_the_weights_file_is_the_one_whose_accuracy_is_stated():
    entry = mini_models.ResNet18_Mini_Weights.DEFAULT
    with generators_untouched():
        state = entry.get_state_dict()
    assert state["conv1.weight"].dtype == torch.float32 and len(entry.meta["sha256"]) == 64
    reference = mini(num_classes=200).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.items()}


def test_preprocessing_is_that_of_the_entry():
    picture = (torch.arange(3 * 150 * 200) % 251).to(torch.uint8).view(3, 150, 200)
    ours = mini_models.preprocessing()(picture)
    assert ours.shape == (3, 128, 128)
    assert torch.equal(ours, mini_models.ResNet18_Mini_Weights.DEFAULT.transforms()(picture))
