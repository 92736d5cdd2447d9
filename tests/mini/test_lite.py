"""mini/lite.py: the entry for smaller pictures is the same file, cut in the same proportion."""

from __future__ import annotations

import copy

import torch

from course_utils.mini.lite import EfficientNet_Lite0_Weights
from course_utils.pretrained_models import weights_entry

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
