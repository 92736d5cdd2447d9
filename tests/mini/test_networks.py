"""networks.py: torchvision's networks at a fraction of their width."""

from __future__ import annotations

import pytest
import torch
from helpers import generators_untouched, mini, moved
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from course_utils.mini import networks
from course_utils.mini.networks import NarrowResNet, initialise_convolutions
from course_utils.pretrained_models import cam_layer

MINIS = sorted(networks.BUILDERS)


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


@pytest.mark.parametrize("name", MINIS)
def test_nothing_is_left_without_memory(name):
    model = models.get_model(name, weights=None, num_classes=3)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_128_pixels_end_as_a_map_of_8_by_8():
    shapes = []
    model = mini().eval()
    model.layer4.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 128, 128)).shape == (1, 3)
    assert shapes == [(1, 144, 8, 8)]


@pytest.mark.parametrize("name", MINIS)
def test_a_seed_gives_a_network(name):
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(models.get_model(name, weights=None, num_classes=3).state_dict())
    assert not moved(networks[0], networks[1])
    matrices = {key for key, tensor in networks[0].items() if tensor.ndim > 1}
    assert matrices <= moved(networks[0], networks[2])


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


@pytest.mark.parametrize("name", MINIS)
def test_a_model_that_gets_weights_has_their_classes(name):
    with pytest.raises(ValueError, match="num_classes=3"):
        models.get_model(name, weights="DEFAULT", num_classes=3)


@pytest.mark.parametrize("name", MINIS)
def test_torchvision_finds_the_entry(name):
    entries = models.get_model_weights(name)
    assert issubclass(entries, networks.MiniWeightsEnum)
    assert entries.DEFAULT is entries.TINY_IMAGENET
    assert entries.DEFAULT.meta["file"] == f"{name}.safetensors"


@pytest.mark.parametrize("name", MINIS)
def test_the_weights_file_is_the_one_whose_accuracy_is_stated(name):
    entry = models.get_model_weights(name).DEFAULT
    with generators_untouched():
        state = entry.get_state_dict()
    assert all(t.dtype == torch.float32 for t in state.values() if t.is_floating_point())
    assert len(entry.meta["sha256"]) == 64
    reference = networks.BUILDERS[name](num_classes=200)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.state_dict().items()}
    assert entry.meta["num_params"] == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("name", MINIS)
def test_a_file_is_small_and_says_what_it_reached(name):
    meta = models.get_model_weights(name).DEFAULT.meta
    assert (networks.WEIGHTS_FOLDER / meta["file"]).stat().st_size < 3_000_000
    assert meta["validation_pictures"] == 10_000 and meta["top1"] >= 36 and len(meta["categories"]) == 200


# --- the families ------------------------------------------------------------------------------------------------


def test_a_narrow_vgg_has_the_modules_of_a_vgg11_with_batchnorm():
    with torch.device("meta"):
        full = models.vgg11_bn(weights=None)
    narrow = models.get_model("vgg11_mini", weights=None)
    assert narrow.state_dict().keys() == full.state_dict().keys()
    assert isinstance(narrow, models.VGG) and narrow.avgpool.output_size == 4
    convolutions = [m for m in narrow.features if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 8 and {m.kernel_size for m in convolutions} == {(3, 3)}


def test_in_vgg_most_parameters_sit_in_the_hidden_layers_also_when_it_is_narrow():
    for name in ("vgg11_mini", "vgg16"):
        with torch.device("meta"):
            model = models.get_model(name, weights=None)
        hidden = sum(p.numel() for layer in model.classifier[:-1] for p in layer.parameters())
        blocks = sum(p.numel() for p in model.features.parameters())
        assert hidden > blocks


@pytest.mark.parametrize(
    "name, full", [("efficientnet_b0_mini", "efficientnet_b0"), ("mobilenet_v3_small_mini", "mobilenet_v3_small")]
)
def test_the_depthwise_networks_have_the_attributes_of_the_full_ones(name, full):
    with torch.device("meta"):
        narrow, wide = models.get_model(name, weights=None), models.get_model(full, weights=None)
    assert isinstance(narrow, type(wide))
    assert [key for key, _ in narrow.named_children()] == [key for key, _ in wide.named_children()]
    assert [type(m) for m in narrow.classifier] == [type(m) for m in wide.classifier]
    assert len(narrow.features) == len(wide.features), "as many stages or blocks"


@torch.inference_mode()
@pytest.mark.parametrize("name", MINIS)
def test_a_picture_leaves_a_map_for_grad_cam(name):
    model, size = networks.BUILDERS[name](num_classes=3).eval(), networks.IMAGE_SIZES[name]
    shapes = []
    cam_layer(model).register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[2:])))
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)
    assert shapes == [(size // 16, size // 16)]


@pytest.mark.parametrize("name", MINIS)
def test_preprocessing_is_that_of_the_entry(name):
    picture = (torch.arange(3 * 150 * 200) % 251).to(torch.uint8).view(3, 150, 200)
    ours = networks.preprocessing(name)(picture)
    assert ours.shape == (3, *[networks.IMAGE_SIZES[name]] * 2)
    assert torch.equal(ours, models.get_model_weights(name).DEFAULT.transforms()(picture))
