"""pretrained_models.py: stages of every model, heads, loading, and a reader's own checkpoints."""

from __future__ import annotations

import re
import urllib.error
import warnings
import zipfile

import numpy as np
import pytest
import torch
from helpers import cheap_model, copy_of, generators_untouched, mini, moved, no_hooks, on_meta
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from course_utils.common import weight_files
from course_utils.common.errors import CourseError
from course_utils.common.weight_files import fetch_weights, read_state_dict, weights_path
from course_utils.engine.activation_cache import cut
from course_utils.feature_extraction import freeze, learning_stages, train_mode
from course_utils.gradcam import explain
from course_utils.mini import networks
from course_utils.pretrained_models import (
    add_head_dropout,
    available_models,
    cam_layer,
    feature_dim,
    head_dropout,
    last_layer,
    last_layer_name,
    load_pretrained,
    multiply_adds,
    replace_head,
    stage_costs,
    stages,
    summary,
    weights_entry,
)

# One of each family: name, place of the last layer, what it sees, channels of the Grad-CAM map, stages.
FAMILY_MEMBERS = {
    "resnet18": ("fc", 512, 512, "stem layer1 layer2 layer3 layer4 head"),
    "resnet18_mini": ("fc", 144, 144, "stem layer1 layer2 layer3 layer4 head"),
    "vgg11_mini": ("classifier.6", 256, 128, "block1 block2 block3 block4 block5 hidden head"),
    "efficientnet_b0_mini": (
        "classifier.1",
        640,
        640,
        "stem stage1 stage2 stage3 stage4 stage5 stage6 stage7 top head",
    ),
    "mobilenet_v3_small_mini": ("classifier.3", 320, 576, "stem stage1 stage2 stage3 stage4 top hidden head"),
    "resnet50": ("fc", 2048, 2048, "stem layer1 layer2 layer3 layer4 head"),
    "vgg11_bn": ("classifier.6", 4096, 512, "block1 block2 block3 block4 block5 hidden head"),
    "efficientnet_b0": ("classifier.1", 1280, 1280, "stem stage1 stage2 stage3 stage4 stage5 stage6 stage7 top head"),
    "mobilenet_v2": ("classifier.1", 1280, 1280, "stem stage1 stage2 stage3 stage4 stage5 stage6 stage7 top head"),
    "mobilenet_v3_small": ("classifier.3", 1024, 576, "stem stage1 stage2 stage3 stage4 stage5 top hidden head"),
    "alexnet": ("classifier.6", 4096, 256, "block1 block2 block3 hidden head"),
    "googlenet": ("fc", 1024, 1024, "stem inception3 inception4 inception5 head"),
    "squeezenet1_1": ("classifier.1", 512, 512, "stem stage1 stage2 stage3 head"),
    "densenet121": ("classifier", 1024, 1024, "stem block1 block2 block3 block4 head"),
    "shufflenet_v2_x0_5": ("fc", 1024, 1024, "stem stage2 stage3 stage4 top head"),
    "mnasnet0_5": ("classifier.1", 1280, 1280, "stem stage1 stage2 stage3 stage4 stage5 stage6 top head"),
    "regnet_y_400mf": ("fc", 440, 440, "stem stage1 stage2 stage3 stage4 head"),
    "convnext_tiny": ("classifier.2", 768, 768, "stem stage1 stage2 stage3 stage4 norm head"),
    "efficientnet_lite0": (
        "classifier",
        1280,
        1280,
        "stem stage1 stage2 stage3 stage4 stage5 stage6 stage7 top head",
    ),
}


def test_every_classification_network_of_torchvision_is_available():
    assert set(available_models()) == {*models.list_models(module=models), *networks.BUILDERS, "efficientnet_lite0"}
    assert len(available_models()) >= 85


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"])
def test_multiply_adds_are_those_that_torchvision_states(name):
    model = on_meta(name)
    stated = models.get_model_weights(name).DEFAULT.meta["_ops"]
    assert multiply_adds(model, 224) / 1e9 == pytest.approx(stated, abs=6e-4)
    assert model.training, "the mode is put back"


def test_costs_of_the_stages_of_a_vgg():
    costs = {cost.stage: cost for cost in stage_costs(on_meta("vgg16"), 224)}
    assert costs["block1"].multiply_adds == 224 * 224 * 9 * (3 * 64 + 64 * 64)
    assert costs["hidden"].parameters == costs["hidden"].multiply_adds + 2 * 4096, "all but the biases multiply"
    assert costs["head"].parameters == 4097 * 1000
    assert sum(cost.parameters for cost in costs.values()) == 138_357_544


# --- stages ------------------------------------------------------------------------------------------------------


def test_the_layer_of_a_cam_lies_in_front_of_a_pooling():
    vgg, resnet = on_meta("vgg11_mini"), on_meta("resnet18")
    assert cam_layer(vgg) is vgg.features[-2] and isinstance(vgg.features[-1], nn.MaxPool2d)
    assert cam_layer(vgg, "block1") is vgg.features[2]
    assert cam_layer(resnet, "stem") is resnet.relu
    assert cam_layer(resnet, "layer2") is resnet.layer2


def test_a_stage_without_a_map_is_refused_with_those_that_have_one():
    vgg = on_meta("vgg11_mini")
    for stage in ("hidden", "head"):
        with pytest.raises(CourseError) as caught:
            cam_layer(vgg, stage)
        assert str(caught.value) == (
            f"The stage {stage!r} gives no map (it lies behind the pooling). "
            "Stages with a map, from fine to coarse: block1, block2, block3, block4, block5."
        )
    with pytest.raises(
        CourseError, match=r"There is no stage 'layer9' in this model\. .*layer1, layer2, layer3, layer4"
    ):
        cam_layer(on_meta("resnet18"), "layer9")


@torch.inference_mode()
def test_changing_a_stage_changes_the_model():
    model, x = mini().eval(), torch.ones(1, 3, 32, 32)
    before = model(x)
    next(stages(model)["layer2"].parameters()).mul_(2)
    assert not torch.equal(model(x), before)


def test_a_stage_says_truthfully_whether_it_trains():
    model = mini()
    model.eval()
    model.layer3.train()
    assert {name for name, stage in stages(model).items() if stage.training} == {"layer3"}


# --- heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY_MEMBERS)
def test_what_a_family_knows(name):
    path, features, channels, row = FAMILY_MEMBERS[name]
    model = on_meta(name)
    assert last_layer_name(model) == path
    assert last_layer(model) is model.get_submodule(path)
    assert feature_dim(model) == features
    assert list(stages(model)) == row.split()
    out = []
    cam_layer(model).register_forward_hook(lambda _module, _inputs, output: out.append(output.shape))
    model.eval()(torch.zeros(1, 3, 64, 64, device="meta"))
    assert out[0][:2] == (1, channels) and len(out[0]) == 4


@pytest.mark.parametrize("name", ["resnet18_mini", "vgg11", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_new_head_replaces_the_last_layer_and_nothing_else(name):
    model = on_meta(name)
    before = {key: id(tensor) for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    features = feature_dim(model)
    assert replace_head(model, 5) is model
    after = {key: id(tensor) for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    head = {f"{last_layer_name(model)}.weight", f"{last_layer_name(model)}.bias"}
    assert {key for key in after if after[key] != before[key]} == head
    assert (last_layer(model).in_features, last_layer(model).out_features) == (features, 5)
    assert model.eval()(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 5)


def with_dropout(name):
    """A network whose last layer was replaced by what most people put there."""
    model = cheap_model(name, 3)
    layer, path = last_layer(model), last_layer_name(model)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Sequential(nn.Dropout(0.4), layer))
    return model.eval(), layer, path


@pytest.mark.parametrize("name", ["resnet18_mini", "vgg11_mini", "efficientnet_b0_mini", "mobilenet_v3_small_mini"])
def test_a_head_of_dropout_and_a_linear_layer_is_a_head(name):
    plain, (model, layer, path) = cheap_model(name, 3), with_dropout(name)
    assert last_layer(model) is layer and last_layer_name(model) == f"{path}.1"
    assert head_dropout(model) == [0.4] and head_dropout(plain) == []
    assert list(stages(model)) == list(stages(plain)) and feature_dim(model) == feature_dim(plain)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for border in list(stages(model))[1:]:
        front, tail = cut(model, border)
        assert torch.equal(tail(front(x)), plain(x))
    assert np.array_equal(explain(model, x).heat, explain(plain, x).heat)
    train_mode(freeze(model))
    assert learning_stages(model) == ["head"] and model.get_submodule(path)[0].training
    replace_head(model, 5)
    assert head_dropout(model) == [0.4] and last_layer(model).out_features == 5
    assert add_head_dropout(plain, [0.1, 0.2]) is plain and head_dropout(plain) == [0.1, 0.2]


@pytest.mark.parametrize("name", ["efficientnet_b0_mini", "mobilenet_v2"])
def test_a_classifier_that_is_a_single_layer_is_a_head(name):
    model = cheap_model(name, 3)
    model.classifier = last_layer(model)
    assert last_layer_name(model) == "classifier" and last_layer(model) is model.classifier
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(nn.Sequential(*stages(model).values())(x), model(x))
    assert last_layer(replace_head(model, 5)) is model.classifier


def test_a_network_that_cannot_be_taken_apart_is_named():
    without, other = mini(), mini()
    del without.layer4
    other.fc = nn.Sequential(nn.Linear(144, 3), nn.Softmax(dim=1))
    with pytest.raises(CourseError, match=r"do not fit this NarrowResNet: they cannot be taken apart .*layer4"):
        stages(without)
    with pytest.raises(CourseError, match=r"has to be an nn\.Linear at 'fc\.1', there is a Softmax"):
        stages(other)


def test_a_new_head_learns_where_the_rest_is_frozen():
    model = replace_head(mini().double().requires_grad_(False), 4)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    assert last_layer(model).weight.dtype == torch.float64


def test_a_new_head_is_drawn_from_the_global_generator():
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(replace_head(on_cpu := mini(), 3).fc.weight)
        assert on_cpu.fc.weight is heads[-1]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("num_classes", [0, -1])
@pytest.mark.parametrize(
    "ask",
    [lambda n: replace_head(mini(), n), lambda n: load_pretrained("resnet18_mini", n, weights=None)],
    ids=["replace_head", "load_pretrained"],
)
def test_a_head_needs_an_output(ask, num_classes):
    with pytest.raises(CourseError, match=f"num_classes={num_classes}"):
        ask(num_classes)


@pytest.mark.parametrize("name", ["resnet18_mini", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small"])
def test_the_summary_counts_every_parameter_and_leaves_no_trace(name):
    model = cheap_model(name, num_classes=3).train()
    stages(model)["stem"].eval()
    before, modes = copy_of(model), [module.training for module in model.modules()]
    for parameter in stages(model)["stem"].parameters():
        parameter.requires_grad_(False)
    with generators_untouched():
        lines = summary(model, (3, 64, 64)).splitlines()
    assert not moved(before, copy_of(model)) and no_hooks(model)
    assert [module.training for module in model.modules()] == modes
    assert [line.split()[0] for line in lines[2:]] == [*stages(model), "total"]
    total = sum(p.numel() for p in model.parameters())
    stem = sum(p.numel() for p in stages(model)["stem"].parameters())
    assert lines[-1].split()[-2:] == [f"{total:,}", f"{total - stem:,}"]
    assert lines[-2].split()[1] == "3"  # the head's output
    assert lines[2].split()[-1] == "0"


# --- names and entries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "near"),
    [("resnet81", "resnet18"), ("ResNet50", "resnet50"), ("vgg-16", "vgg16"), ("mobilnet_v2", "mobilenet_v2")],
)
def test_an_unknown_name_gets_the_nearest(asked, near):
    for ask in (load_pretrained, weights_entry):
        with pytest.raises(CourseError) as caught:
            ask(asked)
        assert repr(asked) in str(caught.value) and near in str(caught.value)


def test_a_name_like_no_other_still_gets_an_answer():
    with pytest.raises(CourseError, match="available_models"):
        load_pretrained("§")
    with pytest.raises(CourseError, match="available_models"):
        load_pretrained("fcn_resnet50")  # torchvision has it, but it does not classify


ENTRY = models.ResNet50_Weights.IMAGENET1K_V1


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1", ENTRY])
def test_an_entry_as_torchvision_takes_it(weights):
    assert weights_entry("resnet50", weights) is ENTRY


def test_the_default_entry_and_none():
    assert weights_entry("resnet50") is models.ResNet50_Weights.IMAGENET1K_V2
    assert weights_entry("resnet50", None) is None


@pytest.mark.parametrize(
    "weights", ["IMAGENET", "default", ENTRY, "ResNet50_Weights.IMAGENET1K_V1", "ResNet50_Weights.DEFAULT", 7]
)
def test_an_entry_of_another_model_or_none_at_all(weights):
    with pytest.raises(CourseError) as caught:
        weights_entry("resnet18", weights)
    assert str(weights) in str(caught.value)
    assert "DEFAULT, IMAGENET1K_V1" in str(caught.value)


def test_an_entry_without_a_classifier_is_refused():
    with pytest.raises(CourseError, match="IMAGENET1K_FEATURES"):
        load_pretrained("vgg16", weights="IMAGENET1K_FEATURES")


def test_every_file_name_carries_a_checksum():
    for name in available_models():
        for entry in models.get_model_weights(name):
            if not isinstance(entry, weight_files.WeightsInPackage):
                digits = weights_path(entry).stem.rpartition("-")[2]
                assert len(digits) in (8, 10) and int(digits, 16) >= 0


# --- the embedded weights ----------------------------------------------------------------------------------------


def test_the_embedded_weights_load():
    with generators_untouched():
        model = load_pretrained("resnet18_mini")
    assert feature_dim(model) == 144 and last_layer(model).out_features == 200
    assert all(p.requires_grad and p.is_leaf and p.dtype == torch.float32 for p in model.parameters())
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert model.training and model.bn1.num_batches_tracked > 1000
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_the_embedded_weights_are_torchvisions_too():
    ours = load_pretrained("resnet18_mini").state_dict()
    theirs = models.get_model("resnet18_mini", weights="DEFAULT").state_dict()
    assert not moved(ours, theirs)


@pytest.mark.parametrize("weights", ["DEFAULT", "TINY_IMAGENET", networks.ResNet18_Mini_Weights.DEFAULT])
def test_embedded_weights_with_a_new_head(weights):
    torch.manual_seed(3)
    model = load_pretrained("resnet18_mini", num_classes=3, weights=weights)
    assert last_layer(model).out_features == 3
    original = load_pretrained("resnet18_mini")
    without_head = {key: t for key, t in model.state_dict().items() if not key.startswith("fc.")}
    assert not moved(without_head, {key: original.state_dict()[key] for key in without_head})


def test_two_loads_share_nothing():
    first, second = load_pretrained("resnet18_mini"), load_pretrained("resnet18_mini")
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor.zero_()
    assert second.conv1.weight.abs().sum() > 0 and second.bn1.num_batches_tracked > 0


def test_the_entry_says_where_the_weights_come_from():
    entry = weights_entry("resnet18_mini")
    assert len(entry.meta["categories"]) == 200
    assert entry.path.stat().st_size <= 3_000_000
    assert entry.transforms().crop_size == [128]


def test_a_damaged_embedded_file_is_refused(monkeypatch, tmp_path):
    entry = networks.ResNet18_Mini_Weights.DEFAULT
    damaged = bytearray(entry.path.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / entry.path.name).write_bytes(damaged)
    monkeypatch.setattr(networks, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="SHA-256"):
        load_pretrained("resnet18_mini")


def test_random_weights():
    torch.manual_seed(0)
    model = load_pretrained("resnet18_mini", weights=None)
    assert last_layer(model).out_features == 200
    assert last_layer(load_pretrained("resnet18_mini", 7, weights=None)).out_features == 7


# --- torchvision's files -----------------------------------------------------------------------------------------

SMALL = "mobilenet_v3_small"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch cache on a machine without network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("COURSE_UNVERIFIED_WEIGHTS", raising=False)

    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


@pytest.fixture
def placeholder(hub):
    """A file in the cache under the right name, whose content is not what the name's checksum says."""
    path = weights_path(weights_entry(SMALL))
    path.parent.mkdir(parents=True)
    model = cheap_model(SMALL)
    torch.save(model.state_dict(), path)
    return path, model.state_dict()


def test_no_file_and_no_network(hub):
    entry = weights_entry(SMALL)
    with pytest.raises(CourseError) as caught:
        load_pretrained(SMALL)
    path = weights_path(entry)
    assert path.is_relative_to(hub)
    for part in (
        str(entry),
        entry.url,
        str(path),
        "COURSE_WEIGHTS=lite",
        "COURSE_WEIGHTS=mini",
        "no network in this test",
    ):
        assert part in str(caught.value)
    assert not path.exists()


def test_a_file_that_is_not_what_its_name_says(placeholder):
    path, _ = placeholder
    with pytest.raises(CourseError, match=r"damaged .*Delete it") as caught:
        load_pretrained(SMALL)
    assert str(path) in str(caught.value)
    assert path.exists()


@pytest.mark.parametrize(
    "weights", ["DEFAULT", "IMAGENET1K_V1", models.MobileNet_V3_Small_Weights.DEFAULT], ids=["default", "name", "enum"]
)
def test_an_unverified_file_loads_when_asked_for(placeholder, monkeypatch, weights):
    monkeypatch.setenv("COURSE_UNVERIFIED_WEIGHTS", "1")
    with generators_untouched():
        model = load_pretrained(SMALL, weights=weights)
    assert not moved(placeholder[1], model.state_dict())
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert not any(t.is_meta for t in model.state_dict().values())


def test_a_download_is_checked_and_kept(hub, placeholder, monkeypatch):
    path, _ = placeholder
    content = path.read_bytes()
    path.unlink()
    asked = []

    def fetch(url, place, **_kwargs):
        asked.append(url)
        with open(place, "wb") as file:
            file.write(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    digits = path.stem.rpartition("-")[2]
    monkeypatch.setattr(weight_files, "sha256_of", lambda _path: digits + "0" * 56)
    entry = weights_entry(SMALL)
    assert fetch_weights(entry) == path == fetch_weights(entry)
    assert asked == [entry.url]
    monkeypatch.setattr(weight_files, "sha256_of", lambda _path: "f" * 64)
    with pytest.raises(CourseError, match="SHA-256"):
        fetch_weights(entry)


def test_old_names_of_tensors_are_left_to_torchvision(hub, monkeypatch):
    monkeypatch.setenv("COURSE_UNVERIFIED_WEIGHTS", "1")
    state = cheap_model("densenet121").state_dict()
    path = weights_path(weights_entry("densenet121"))
    path.parent.mkdir(parents=True)
    old = {re.sub(r"(layer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): t for key, t in state.items()}
    torch.save({key: t for key, t in old.items() if not key.endswith("num_batches_tracked")}, path)
    assert "features.denseblock1.denselayer1.norm.1.weight" in torch.load(path)
    with generators_untouched():
        model = load_pretrained("densenet121", num_classes=None)
    assert not moved(state, model.state_dict())
    assert all(p.requires_grad for p in model.parameters()) and model.training


# --- a reader's own checkpoint -----------------------------------------------------------------------------------


@pytest.fixture
def state():
    return mini(seed=7).state_dict()


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "module.": lambda s: {f"module.{key}": value for key, value in s.items()},
    "compiled and parallel, nested": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "Lightning": lambda s: {
        "state_dict": {"loss.weight": torch.ones(3), **{f"model.{key}": value for key, value in s.items()}},
        "hyper_parameters": {"rate": 0.1},
    },
    "Lightning, compiled": lambda s: {"state_dict": {f"net._orig_mod.{k}": v for k, v in s.items()}},
    "Lightning, without batch counters": lambda s: {
        "state_dict": {f"backbone.{k}": v for k, v in s.items() if not k.endswith("num_batches_tracked")}
    },
    "half precision": lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()},
    "without batch counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_checkpoint_loads_whatever_wraps_it(tmp_path, state, wrapping, num_classes):
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "own.pt")
    with generators_untouched(), warnings.catch_warnings(action="error"):
        model = load_pretrained("resnet18_mini", num_classes, checkpoint=tmp_path / "own.pt")
    loaded = model.state_dict()
    if wrapping == "half precision":
        state = {key: value.half().float() if value.is_floating_point() else value for key, value in state.items()}
    assert not moved(state, loaded)
    assert all(p.requires_grad and p.is_leaf and p.dtype == torch.float32 for p in model.parameters())
    assert model.training and model(torch.ones(2, 3, 32, 32)).shape == (2, 3)


def test_safetensors_and_a_path_as_text(tmp_path, state):
    save_file(state, tmp_path / "own.safetensors")
    model = load_pretrained("resnet18_mini", checkpoint=str(tmp_path / "own.safetensors"))
    assert not moved(state, model.state_dict())


def test_another_number_of_classes_skips_the_head_and_says_so(tmp_path, state):
    torch.save(state, tmp_path / "own.pt")
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"own\.pt: its head has 3 classes, 5 were asked for") as caught:
        model = load_pretrained("resnet18_mini", num_classes=5, checkpoint=tmp_path / "own.pt")
    assert caught[0].filename == __file__
    assert last_layer(model).out_features == 5 and last_layer(model).weight.std() > 0
    rest = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert not moved(rest, {key: model.state_dict()[key] for key in rest})


def spoiled(state, kind):
    state = dict(state)
    if kind == "missing":
        del state["layer3.0.conv1.weight"]
    elif kind == "unexpected":
        state["layer9.weight"] = torch.zeros(2)
    elif kind == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    elif kind == "no head":
        del state["fc.weight"], state["fc.bias"]
    elif kind == "many":
        state = {key: value for key, value in state.items() if not key.startswith("layer")}
    return state


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", ["missing: layer3.0.conv1.weight"]),
        ("unexpected", ["unexpected: layer9.weight"]),
        ("shape", ["of another shape: layer2.0.conv1.weight (1, 2, 3, 3) instead of (32, 16, 3, 3)"]),
        ("no head", ["missing: fc.weight, fc.bias"]),
        ("many", ["missing: layer1.0.conv1.weight", "more"]),
    ],
)
@pytest.mark.parametrize("num_classes", [None, 3, 5])
def test_what_does_not_fit_is_listed(tmp_path, state, kind, told, num_classes):
    torch.save(spoiled(state, kind), tmp_path / "own.pt")
    with pytest.raises(CourseError) as caught:
        load_pretrained("resnet18_mini", num_classes, checkpoint=tmp_path / "own.pt")
    for part in (str(tmp_path / "own.pt"), "does not fit resnet18_mini", *told):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_checkpoint_of_another_architecture(tmp_path):
    torch.save(mini().state_dict(), tmp_path / "own.pt")
    with pytest.raises(CourseError, match="does not fit mobilenet_v3_small"):
        load_pretrained(SMALL, checkpoint=tmp_path / "own.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file(tmp_path, state, suffix, keep):
    path = tmp_path / f"own{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CourseError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"hello world", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n", b"\x80\x02"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path, content, suffix):
    path = tmp_path / f"own{suffix}"
    path.write_bytes(content)
    with pytest.raises(CourseError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.jpg", b"x")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: path.write_bytes(b""), "it is empty (0 bytes). Download or copy it again."),
        (lambda path: path.write_text("\n<!DOCTYPE html><title>Sign in</title>"), "it is a web page, "),
        (lambda path: path.write_text("<html><body>"), "it is a web page, "),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
            "it is a pointer of Git LFS, not the file that it stands for. Run git lfs pull in its repository.",
        ),
        (zipped, "it is a ZIP archive of photos/cat.jpg. Unpack it, and give the file of weights."),
    ],
)
def test_a_file_that_only_has_the_name_of_weights(tmp_path, suffix, write, told):
    path = tmp_path / f"own{suffix}"
    write(path)
    with pytest.raises(CourseError) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(f"{path} holds no weights: {told}")


def test_safetensors_of_another_ending(tmp_path, state):
    save_file(state, tmp_path / "own.pth")
    assert not moved(state, read_state_dict(tmp_path / "own.pth"))


def test_of_two_networks_in_a_file_none_is_guessed(tmp_path, state):
    both = {f"{who}.{key}": value for who in ("student", "teacher") for key, value in state.items()}
    torch.save({"state_dict": both}, tmp_path / "own.pt")
    with pytest.raises(CourseError, match=r"unexpected: student\.conv1\.weight"):
        load_pretrained("resnet18_mini", checkpoint=tmp_path / "own.pt")


class Opens:
    """An object whose unpickling makes a file: code that a checkpoint brings along."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_foreign_objects_are_not_unpickled(tmp_path, state):
    trace = tmp_path / "executed"
    torch.save({"state_dict": state, "args": Opens(str(trace))}, tmp_path / "own.pt")
    with pytest.raises(CourseError, match=r"(?i)unpickling"):
        load_pretrained("resnet18_mini", checkpoint=tmp_path / "own.pt")
    assert not trace.exists()
    torch.load(tmp_path / "own.pt", weights_only=False)["args"].close()
    assert trace.exists(), "the trap has to work for this test to mean anything"


@pytest.mark.parametrize(
    ("content", "told"),
    [([1, 2], "list"), (torch.ones(3), "Tensor"), ({"epoch": 3}, "epoch"), ({}, "nothing"), ({0: torch.ones(1)}, None)],
)
def test_a_file_without_a_state_dict(tmp_path, content, told):
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(CourseError, match=told):
        load_pretrained("resnet18_mini", checkpoint=tmp_path / "own.pt")


def test_a_whole_model_is_refused(tmp_path):
    torch.save(mini(), tmp_path / "own.pt")
    with pytest.raises(CourseError, match="state_dict"):
        read_state_dict(tmp_path / "own.pt")


def test_no_such_file(tmp_path):
    with pytest.raises(CourseError, match=r"There is no checkpoint .*missing\.pt"):
        load_pretrained("resnet18_mini", checkpoint=tmp_path / "missing.pt")
    with pytest.raises(CourseError, match="There is no checkpoint"):
        load_pretrained("resnet18_mini", checkpoint=tmp_path)
