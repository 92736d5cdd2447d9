"""provenance.py: what made a result is found out by looking, and nothing that is missing is an error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import ColourPatches, generators_untouched, on_meta
from torch import nn
from torch.utils.data import TensorDataset
from torchvision import models

from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.engine import provenance
from course_utils.engine.provenance import describe_data, describe_model, git_state, model_name
from course_utils.mini import networks
from course_utils.pretrained_models import last_layer, replace_head

NAMES = [
    *networks.BUILDERS,
    "resnet50",
    "vgg16",
    "vgg16_bn",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_recognised_whoever_built_it(name):
    model = on_meta(name, num_classes=7)
    with generators_untouched():
        assert model_name(model) == name
    last_layer(model).weight.requires_grad_(False)
    model.eval()
    with torch.device("meta"):
        assert model_name(replace_head(model, 3)) == name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in networks.BUILDERS])
def test_the_size_in_front_of_the_head_is_known_without_building(name):
    model = on_meta(name)
    body = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in last_layer(model).parameters())
    assert provenance._body_parameters(name, last_layer(model).in_features)[0] == body


def test_a_network_that_no_name_stands_for_has_none():
    with torch.device("meta"):
        narrow = networks.NarrowResNet((16, 32, 64, 128))
        droppy = networks.NarrowVGG(dropout=0.75)  # as many parameters, another network
        longer = on_meta("resnet18")
        longer.layer4.append(nn.Identity())
    assert [model_name(model) for model in (narrow, droppy, longer)] == [None, None, None]


def _no_shortcuts(model):
    for block in model.modules():
        if hasattr(block, "use_res_connect"):
            block.use_res_connect = False


class Dimmed(models.EfficientNet):
    def forward(self, x):
        return super().forward(x / 2)


OTHER_FUNCTIONS = {
    "an attribute": _no_shortcuts,
    "a subclass": lambda model: setattr(model, "__class__", Dimmed),
    "a forward in the object": lambda model: setattr(model, "forward", lambda x: x),
    "a forward in a layer": lambda model: setattr(model.avgpool, "forward", lambda x: x),
    "a hook": lambda model: model.features.register_forward_hook(lambda layer, given, out: out * 2),
}


@pytest.mark.parametrize("change", OTHER_FUNCTIONS)
def test_a_network_that_computes_something_else_has_no_name(change):
    """It prints the same, and its weights fit: load_pretrained would bring another function back."""
    model = on_meta("efficientnet_b0_mini")
    model.class_names = ["ant", "bee"]  # nothing reads that
    assert model_name(model) == "efficientnet_b0_mini"
    OTHER_FUNCTIONS[change](model)
    assert model_name(model) is None


def test_a_model_in_facts():
    with torch.device("meta"):
        model = networks.NarrowResNet((16, 32, 64, 128), num_classes=4)
    assert describe_model(model) == {
        "name": None,
        "class": "NarrowResNet",
        "family": "resnet",
        "parameters": sum(p.numel() for p in model.parameters()),
        "outputs": 4,
    }


class Halved:
    """A transform without a text of its own: it prints with its address."""

    def __call__(self, picture):
        return picture


def photos(folder="somewhere", names=("cat/1.jpg", "dog/2.jpg", "dog/3.jpg"), labels=(0, 1, 1), transform=None):
    return PhotoDataset([Path(folder) / name for name in names], labels, ["cat", "dog", "emu"], transform)


def test_data_in_facts_without_opening_a_picture():
    facts = describe_data(photos(transform=Halved()))  # there are no such files
    assert facts["pictures"] == 3
    assert facts["classes"] == {"cat": 1, "dog": 2, "emu": 0}
    assert facts["transform"] == f"<{__name__}.Halved object>"
    assert describe_data(photos())["transform"] is None


def test_the_fingerprint_is_about_pictures_and_labels_not_about_the_machine():
    fingerprint = describe_data(photos())["fingerprint"]
    assert len(fingerprint) == 16
    assert describe_data(photos("/elsewhere/cache"))["fingerprint"] == fingerprint
    others = [
        photos(names=("cat/1.jpg", "dog/2.jpg", "dog/4.jpg")),
        photos(labels=(0, 1, 0)),
        photos(names=("cat/1.jpg", "dog/3.jpg", "dog/2.jpg")),
        photos(names=("cat/1.jpg",), labels=(0,)),
    ]
    assert len({fingerprint, *(describe_data(other)["fingerprint"] for other in others)}) == 5


def test_data_sets_that_know_less():
    bare = TensorDataset(torch.zeros(4, 3, 8, 8))
    assert describe_data(bare) == {"pictures": 4, "classes": None, "transform": None, "fingerprint": None}
    assert describe_data(ColourPatches(4))["classes"] == {"red": 2, "green": 1, "blue": 1}
    numbered = ColourPatches(4)
    numbered.classes = None
    assert describe_data(numbered)["classes"] == {"0": 2, "1": 1, "2": 1}
    assert describe_data(MemoryDataset(torch.zeros(0, 3, 8, 8), [], ["a"]))["classes"] == {"a": 0}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_and_whether_something_was_changed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-q", "-m", "a")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "result.csv").write_text("not in git, so no change")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    monkeypatch.chdir(tmp_path)
    assert git_state() == {"commit": commit, "dirty": True}


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), PermissionError("git"), subprocess.TimeoutExpired("git", 5)]
)
def test_without_an_answer_from_git_there_is_none(monkeypatch, error):
    def run(*_args, **_options):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert git_state() is None
