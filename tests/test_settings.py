"""settings.py: every variable, every bad value, and nothing private in what is printed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from course_utils.common.errors import CourseError
from course_utils.settings import WEIGHTS, Settings, best_device, check_dataset, load_settings


def test_defaults_are_the_embedded_course(monkeypatch):
    settings = load_settings({})
    assert (settings.weights, settings.dataset, settings.mirror, settings.seed) == ("mini", "pets", None, 0)
    assert settings.model == "resnet18_mini"
    assert settings.is_default
    assert "transfer-learning-course" in str(settings.cache)
    assert settings.device == best_device()


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("COURSE_SEED", "17")
    assert load_settings().seed == 17


def test_empty_variables_count_as_unset():
    names = ("COURSE_WEIGHTS", "COURSE_DATASET", "COURSE_CACHE", "COURSE_DATA_MIRROR", "COURSE_SEED")
    assert load_settings(dict.fromkeys(names, "")) == load_settings({})


def test_every_variable_arrives(tmp_path):
    settings = load_settings(
        {
            "COURSE_WEIGHTS": "imagenet",
            "COURSE_DATASET": "hymenoptera",
            "COURSE_CACHE": str(tmp_path / "cache"),
            "COURSE_DATA_MIRROR": str(tmp_path / "mirror"),
            "COURSE_SEED": "5",
        }
    )
    assert settings.weights == "imagenet" and settings.model == "resnet18"
    assert settings.dataset == "hymenoptera"
    assert settings.cache == tmp_path / "cache"
    assert settings.mirror == tmp_path / "mirror"
    assert settings.seed == 5


def test_each_setting_has_a_network_of_every_family():
    from course_utils.pretrained_models import available_models

    mini, imagenet = (load_settings({"COURSE_WEIGHTS": weights}).models for weights in ("mini", "imagenet"))
    assert list(mini) == list(imagenet) == ["vgg", "resnet", "efficientnet", "mobilenet"]
    assert list(imagenet.values()) == ["vgg16", "resnet50", "efficientnet_b0", "mobilenet_v3_small"]
    assert {*mini.values(), *imagenet.values()} <= set(available_models())


def test_lite_has_real_weights_for_one_network_and_the_small_ones_beside_it():
    lite, mini = (load_settings({"COURSE_WEIGHTS": weights}) for weights in ("lite", "mini"))
    assert lite.model == "efficientnet_lite0"
    assert lite.models == {"efficientnet_lite": "efficientnet_lite0", **mini.models}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_basic_model_has_a_family_and_a_weights_entry_for_the_lessons(weights):
    from course_utils.pretrained_models import weights_entry
    from course_utils.transforms import image_size

    settings = load_settings({"COURSE_WEIGHTS": weights})
    assert settings.family in settings.models
    lesson, own = weights_entry(settings.model, settings.entry), weights_entry(settings.model)
    assert (lesson is own) == (weights != "lite")
    assert image_size(lesson) <= image_size(own)


def test_lite_spends_less_and_says_so():
    lite = load_settings({"COURSE_WEIGHTS": "lite"})
    assert (lite.entry, lite.seeds) == ("IMAGENET1K_V1_AT_160", (0, 1))
    assert "efficientnet_lite0, IMAGENET1K_V1_AT_160" in str(lite)


@pytest.mark.parametrize("weights", ["mini", "imagenet"])
def test_the_others_compare_three_seeds_on_pictures_of_the_weights_own_size(weights):
    settings = load_settings({"COURSE_WEIGHTS": weights})
    assert (settings.entry, settings.seeds) == ("DEFAULT", (0, 1, 2))
    assert f"({settings.model})" in str(settings)


def test_the_families_of_one_settings_object_are_its_own():
    settings = load_settings({})
    settings.models["vgg"] = "changed"
    assert settings.models["vgg"] == "vgg11_mini"


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "photos").mkdir()
    settings = load_settings({"COURSE_CACHE": "~/c", "COURSE_DATA_MIRROR": "~/m", "COURSE_DATASET": "~/photos"})
    assert settings.cache == tmp_path / "c"
    assert settings.mirror == tmp_path / "m"
    assert settings.dataset == str((tmp_path / "photos").resolve())


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("COURSE_WEIGHTS", "huge", "mini, lite, imagenet"),
        ("COURSE_WEIGHTS", "Mini", "mini, lite, imagenet"),
        ("COURSE_DATASET", "no/such/folder", "pets, hymenoptera"),
        ("COURSE_SEED", "-1", "whole number"),
        ("COURSE_SEED", "1.5", "whole number"),
        ("COURSE_SEED", "one", "whole number"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(variable, value, told):
    with pytest.raises(CourseError) as caught:
        load_settings({variable: value})
    assert f"{variable}={value!r}" in str(caught.value)
    assert told in str(caught.value)


def test_a_file_is_no_data_set(tmp_path):
    (tmp_path / "cats.zip").write_bytes(b"")
    with pytest.raises(CourseError, match="nor a folder"):
        check_dataset(str(tmp_path / "cats.zip"))


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert check_dataset("photos") == str((tmp_path / "photos").resolve())


def test_the_text_shows_the_folder_by_name_only(tmp_path):
    folder = tmp_path / "my cats"
    folder.mkdir()
    text = str(load_settings({"COURSE_DATASET": str(folder)}))
    assert "my cats" in text
    assert str(tmp_path) not in text and tmp_path.name not in text


def test_the_text_names_weights_model_data_and_seed():
    text = str(load_settings({"COURSE_SEED": "3"}))
    for part in ("mini", "resnet18_mini", "pets", "3"):
        assert part in text


@pytest.mark.parametrize(
    "changed",
    [{"weights": "imagenet"}, {"weights": "lite"}, {"dataset": "hymenoptera"}, {"seed": 1}],
    ids=lambda d: "-".join(map(str, *d.items())),
)
def test_any_other_choice_is_not_the_default(changed):
    default = Settings("mini", "pets", "cpu", Path("cache"), None)
    assert default.is_default
    assert not dataclasses.replace(default, **changed).is_default


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_settings({}).seed = 1


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_best_device(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == device
