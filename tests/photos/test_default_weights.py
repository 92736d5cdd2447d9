"""Commands for one's own photos begin with real ImageNet weights, without a download."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import red_and_blue

from course_tools.photos import ladder_command, predict_command, train_command
from course_utils.common.errors import CourseError
from course_utils.engine.runs import list_runs
from course_utils.settings import default_weights, load_settings

LITE = "efficientnet_lite0"


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_WEIGHTS")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten pictures: noise around red, noise around blue."""
    return red_and_blue(tmp_path / "photos", 10)


def test_the_default_goes_by_the_data_and_the_variable_goes_first():
    assert [default_weights(data) for data in ("pets", "hymenoptera", "my/photos", None)] == ["mini", *["lite"] * 3]
    assert load_settings({}, weights="lite").model == LITE and load_settings({}).model == "resnet18_mini"
    assert load_settings({"COURSE_WEIGHTS": "mini"}, weights="lite").model == "resnet18_mini"


def test_predict_names_the_classes_of_imagenet(photos, capsys):
    assert predict_command.main([str(photos / "red"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["pictures"]
    assert len(answers) == 10 and all(entry["answers"][0]["probability"] > 1 / 1000 for entry in answers)


def test_a_run_of_train_is_used_by_predict(photos, capsys):
    assert train_command.main([str(photos), "--strategy", "last-block", "--epochs", "4", "--device", "cpu"]) == 0
    (record,) = list_runs()
    assert f"{LITE}, last block" in capsys.readouterr().out and record.model_text == LITE
    assert predict_command.main([str(photos), "--run", record.id, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pictures"]
    right = [entry["answers"][0]["class"] == entry["file"].split("/")[-2] for entry in found]
    assert np.mean(right) >= 0.9, "red and blue are easy"


def test_find_rate_scales_the_rates_of_the_strategy(photos, capsys):
    command = [str(photos), "--strategy", "last-block", "--epochs", "1", "--device", "cpu", "--find-rate"]
    assert train_command.main(command) == 0
    printed = capsys.readouterr().out
    suggested = printed.split("Suggested: ")[1].split(",")[0]
    assert printed.count("learns from epoch") == 2, "the plan before and after"
    rates = list_runs()[0].facts["strategy"]["rates"]
    assert f"{max(rates):.1e}" == suggested and rates[0] / rates[1] == pytest.approx(10)


@pytest.mark.parametrize("command", [ladder_command.main, train_command.main])
def test_a_network_that_is_not_there_offers_lite(photos, monkeypatch, command):
    def no_network(*_args, **_kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(photos.parent / "hub"))
    with pytest.raises(CourseError, match=r"vit_b_16-.*\.pth.*COURSE_WEIGHTS=lite"):
        command([str(photos), "--model", "vit_b_16"])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_network)
    with pytest.raises(CourseError, match=r"huggingface\.co/timm/convnext_tiny.*COURSE_WEIGHTS=lite"):
        command([str(photos), "--model", "timm/convnext_tiny"])
    with pytest.raises(CourseError, match="timm has no network 'nothing'"):
        command([str(photos), "--model", "timm/nothing"])
