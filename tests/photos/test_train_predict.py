"""``course train`` and ``course predict``: thin wrappings of ``fit`` and of a network's own answers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ColourPatches, mini, stop_before_epoch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from course_tools.photos import explain_command, predict_command, train_command
from course_tools.photos.pictures import Network, open_network
from course_tools.photos.train_command import family_network, strategy_named
from course_utils.common.command_line import exit_code
from course_utils.common.errors import CourseError
from course_utils.data import pets
from course_utils.datasets import in_memory_if_it_fits, open_dataset
from course_utils.engine.pixel_store import PixelDataset
from course_utils.engine.runs import list_runs, load_run
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, LAST_BLOCK, STRATEGIES
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.training import fit
from course_utils.transforms import eval_transform

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pets.write_pets(tmp_path_factory.mktemp("data") / "photos", {"train": 4, "val": 2, "test": 2}, size=48)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    for name in ("COURSE_DATASET", "COURSE_SEED", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))  # looks at test pictures are counted there
    monkeypatch.setattr("course_utils.settings.best_device", lambda: "cpu")
    monkeypatch.setattr("course_utils.engine.run_log._write_figure", lambda *_: None)
    monkeypatch.chdir(tmp_path)


# --- course train ------------------------------------------------------------------------------------------------


def test_train_is_fit(photos, capsys):
    arguments = [str(photos), "--strategy", "last-block", "--epochs", "1", "--batch-size", "6", "--seed", "3", "--test"]
    assert train_command.main([*arguments, "--device", "cpu"]) == 0
    (record,) = list_runs()
    prepare = eval_transform(WEIGHTS)
    splits = open_dataset(photos).with_transforms(prepare, prepare)
    model = LAST_BLOCK.starting_model("resnet18_mini", 3, seed=3)
    fit(model, splits.train, splits.val, LAST_BLOCK, epochs=1, batch_size=6, seed=3, device="cpu", log="off")
    kept = record.model().state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    printed = capsys.readouterr().out
    assert f"course predict PICTURE --run {record.id}" in printed
    assert "resnet18_mini, last block" in printed and "\nTest\n" in printed and record.test_accuracy is not None
    assert "by now" not in printed and record.facts["settings"]["choose_by"] == "accuracy"


def test_train_counts_looks_at_the_test_pictures_and_may_choose_by_macro_f1(photos, capsys):
    command = [str(photos), "--strategy", "feature-extraction", "--epochs", "1", "--device", "cpu", "--test"]
    assert train_command.main(command) == 0 and "by now" not in capsys.readouterr().out
    assert train_command.main([*command, "--choose-by", "macro-f1", "--seed", "5"]) == 0
    assert "These test pictures have been asked for 2 networks by now" in capsys.readouterr().out
    record = list_runs()[0]
    assert record.facts["settings"]["choose_by"] == "macro_f1" and record.best.val_macro_f1 is not None


def test_changed_pictures_come_from_a_store_where_that_pays(photos, monkeypatch, capsys):
    monkeypatch.setattr("course_utils.engine.pixel_store.StoreForecast.pays", lambda *_: True)
    seen = []

    def watched(model, train, *rest, **options):
        seen.append(train)
        return fit(model, train, *rest, **options)

    monkeypatch.setattr(train_command, "fit", watched)
    command = [str(photos), "--strategy", "last-block", "--epochs", "1", "--augment", "light", "--device", "cpu"]
    assert train_command.main(command) == 0
    assert type(seen[0]) is PixelDataset and "decoded once" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert train_command.main(command) == 0 and type(seen[1]) is PixelDataset
    assert "decoded once" not in capsys.readouterr().err


def test_only_the_first_process_prints_and_tests(photos, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("COURSE_PROGRESS", "1")
    assert train_command.main([str(photos), "--strategy", "feature-extraction", "--epochs", "1", "--test"]) == 0
    assert capsys.readouterr().out == ""
    assert list_runs()[0].test_accuracy is None


@pytest.mark.parametrize("finished", [0, 1])
def test_a_stop_keeps_the_run_and_is_passed_on(photos, monkeypatch, capsys, finished):
    command = [str(photos), "--strategy", "last-block", "--epochs", "2", "--device", "cpu", "--test"]
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, finished)
        assert exit_code(lambda: train_command.main(command)) == 130
    told = capsys.readouterr()
    (record,) = list_runs()
    assert record.status == "interrupted" and len(record.history) == finished and "Test" not in told.out
    if not finished:
        assert "Stopped. The same command begins anew, because no epoch was finished." in told.err
        return
    assert "interrupted, best epoch 1: validation " in told.out and f"--run {record.id}" in told.out
    assert "Stopped. The same command goes on behind the last finished epoch." in told.err
    assert train_command.main(command) == 0
    assert "Went on behind epoch 1, where this training had been stopped." in capsys.readouterr().out


def test_a_stop_while_pictures_are_prepared_begins_anew(photos, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "training_pictures", stop)
    assert exit_code(lambda: train_command.main([str(photos), "--strategy", "last-block"])) == 130
    assert "Stopped. The same command begins anew, because no epoch was finished." in capsys.readouterr().err
    assert list_runs() == []


def test_a_stop_without_a_checkpoint_begins_anew(photos, monkeypatch, capsys):
    stop_before_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train_command.main([str(photos), "--strategy", "last-block", "--epochs", "2", "--no-checkpoint"])
    assert "The same command begins anew, because of --no-checkpoint." in capsys.readouterr().err


def test_a_run_is_continued_by_its_name_alone(photos, tmp_path, monkeypatch, capsys):
    options = ["--strategy", "last-block", "--epochs", "2", "--batch-size", "6", "--seed", "3", "--device", "cpu"]
    monkeypatch.chdir(photos.parent)
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 1)
        assert exit_code(lambda: train_command.main(["photos", *options])) == 130
    (record,) = list_runs()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CourseError, match=r"another call: settings\.epochs: 2 there, 3 here\. Give what was given there"
    ):
        train_command.main(["--resume", record.id, "--epochs", "3"])
    assert train_command.main(["--resume", record.id, "--workers", "0"]) == 0
    (record,) = list_runs()
    assert record.status == "finished" and len(record.history) == 2
    assert "Went on behind epoch 1" in capsys.readouterr().out
    with pytest.raises(CourseError, match="is finished and has no checkpoint"):
        train_command.main(["--resume", record.id])


def test_a_run_of_fit_is_not_continued_by_the_command(run):
    with pytest.raises(CourseError, match="has no record of a `course train` that began it"):
        train_command.main(["--resume", run.folder.name])


def test_strategies_by_name():
    for strategy in STRATEGIES:
        assert strategy_named(strategy.name) is strategy
        assert strategy_named(strategy.name.replace(" ", "-").upper()) is strategy
    assert strategy_named("full") is FULL and strategy_named("feature") is FEATURE_EXTRACTION
    for wrong, hint in [("progresive", "Did you mean progressive?"), ("", "from-scratch."), ("xyz", "from-scratch.")]:
        with pytest.raises(CourseError) as caught:
            strategy_named(wrong)
        assert str(caught.value).endswith(hint) and "last-block" in str(caught.value)


def test_families_by_name():
    assert family_network("vgg", {"vgg": "vgg16"}) == "vgg16"
    with pytest.raises(CourseError, match="There is no family 'vgg16'; choose one of vgg, or give --model"):
        family_network("vgg16", {"vgg": "vgg16"})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--family", "x"], "There is no family 'x'"),
        (["--model", "resnet81"], "There is no model 'resnet81'"),
        (["--strategy", "none"], "There is no strategy 'none'"),
        (["--augment", "wild"], "augment='wild' is unknown"),
        (["--label-smoothing", "2"], "label_smoothing=2.0: it is a share"),
        (["--device", "tpu"], "device='tpu' is unknown"),
    ],
)
def test_wrong_arguments_of_train(photos, arguments, told):
    with pytest.raises(CourseError) as caught:
        train_command.main([str(photos), "--epochs", "1", *arguments])
    assert str(caught.value).startswith(told)
    assert not [record for record in list_runs() if record.history]


@pytest.mark.parametrize("command", [train_command, predict_command])
@pytest.mark.parametrize("arguments", [[], ["x", "--epochs", "0", "--top", "0"], ["x", "--nothing"]])
def test_wrong_usage_is_one_line_and_code_2(command, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and told.startswith("course ")


def test_a_data_set_too_large_for_memory_stays_on_disk(photos, monkeypatch):
    train = open_dataset(photos).train.with_transform(eval_transform(WEIGHTS))
    kept = in_memory_if_it_fits(train)
    assert torch.equal(kept[0][0], train[0][0]) and type(kept).__name__ == "MemoryDataset"
    monkeypatch.setattr("course_utils.datasets.MAX_MEMORY_BYTES", kept.images.nbytes)
    assert in_memory_if_it_fits(train) is not train and in_memory_if_it_fits(train, 0.9) is train


# --- course predict ----------------------------------------------------------------------------------------------


@pytest.fixture
def run():
    data = ColourPatches(9)
    data.transform = eval_transform(WEIGHTS)  # which these tensors could be made with
    return fit(mini(), data, data, FEATURE_EXTRACTION, epochs=1, batch_size=9, device="cpu")


def pictures_in(folder):
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "orange")):
        Image.new("RGB", (60 + 9 * i, 50), colour).save(folder / f"no{i}.png")
    return sorted(folder.iterdir())


def own_answers(name, paths):
    """What the stored network says, asked without any of the command's code."""
    model, prepare = load_run(name).model(), eval_transform(WEIGHTS)
    images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        return model(images).softmax(1).numpy()


def test_predictions_are_the_networks_own_answers(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict_command, "BATCH", 3)
    paths, classes = pictures_in(tmp_path / "in"), ColourPatches.classes
    wanted = own_answers(run.folder.name, paths)
    assert predict_command.main(["in", "--run", run.folder.name, "--top", "9", "--csv", "out/a.csv"]) == 0
    table = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "a.csv").read_text(encoding="utf-8-sig"))))
    assert len(rows) == 4 * 3 and table[0].split()[0] == "picture"
    for i, probabilities in enumerate(wanted):
        mine = rows[3 * i : 3 * i + 3]
        order = (-probabilities).argsort()
        assert [row["class"] for row in mine] == [classes[k] for k in order]
        assert [row["place"] for row in mine] == ["1", "2", "3"]
        np.testing.assert_allclose([float(row["probability"]) for row in mine], probabilities[order], atol=2e-6)
        assert table[2 + i].startswith(f"no{i}.png  {classes[order[0]]}, {100 * probabilities.max():.0f} %")


def test_pictures_are_prepared_as_in_training(photos, tmp_path, capsys):
    """Not as the network's weights ask for, where the run was trained on other pictures."""
    own = v2.Compose([v2.Resize(48), v2.CenterCrop(48), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    pictures = ImageFolder(photos / "train", own)
    model = mini()
    run = fit(model, pictures, pictures, FULL, epochs=1, batch_size=6, device="cpu")
    paths = [path for path, _ in pictures.samples]
    loaded = [Image.open(path).convert("RGB") for path in paths]
    network = open_network(run=run.folder.name)
    with torch.inference_mode():
        wanted = model(torch.stack([image for image, _ in pictures])).softmax(1)
    np.testing.assert_allclose(predict_command.predict(network, list(map(network.prepare, loaded))), wanted, atol=1e-6)
    assert network.classes == tuple(pictures.classes) == ("Misty", "Neither", "Tigger")
    seen = explain_command.explain_files(network, [Path(paths[0])])[0][0][1].seen
    shown = np.asarray(own(loaded[0]).permute(1, 2, 0)) * 255
    assert seen.size == (384, 384) and np.abs(np.asarray(seen.resize((48, 48))) - shown).mean() < 8


def test_a_run_that_does_not_know_how_its_pictures_were_prepared_is_refused(tmp_path):
    pictures_in(tmp_path / "in")
    data = ColourPatches(9)
    run = fit(mini(), data, data, FEATURE_EXTRACTION, epochs=1, batch_size=9, device="cpu")
    with pytest.raises(CourseError, match=r"does not say how the pictures were prepared\. In Python, load_run"):
        predict_command.main(["in", "--run", run.folder.name])


def test_json_names_what_was_left_out(run, tmp_path, capsys):
    pictures_in(tmp_path / "in")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert predict_command.main(["in", "--run", str(run.folder), "--json"]) == 3
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert [entry["file"].endswith(f"no{i}.png") for i, entry in enumerate(found["pictures"])] == [True] * 4
    assert all(len(entry["answers"]) == 1 for entry in found["pictures"])
    assert len(found["left_out"]) == 1 and "broken.jpg was left out: " in told.err
    assert told.err.endswith(found["left_out"][0] + "\n")


def test_the_network_of_the_settings(tmp_path, capsys):
    pictures_in(tmp_path / "in")
    assert predict_command.main(["in/no0.png"]) == 0
    network = open_network()
    assert isinstance(network, Network) and capsys.readouterr().out.count("\n") == 3


def test_errors_of_predict(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    with pytest.raises(CourseError, match=r"None of the 1 pictures could be read\. .*notes\.jpg was left out"):
        predict_command.main(["notes.jpg"])
    with pytest.raises(CourseError, match="There is no run 'abcd'"):
        predict_command.main(["notes.jpg", "--run", "abcd"])
