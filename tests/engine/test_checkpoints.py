"""checkpoints.py and what fit does with them: a run that is interrupted comes to the same as one that is not."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import interrupted_runs
import numpy as np
import pytest
import torch
from helpers import (
    Act,
    ColourPatches,
    Noisy,
    StopAfter,
    cheap_model,
    copy_of,
    generators_untouched,
    mini,
    moved,
    stopped_run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from course_tools import cli
from course_utils.common.errors import CourseError
from course_utils.common.state import generator_states, set_generator_states
from course_utils.datasets import PhotoDataset
from course_utils.engine import checkpoints, run_log
from course_utils.engine.checkpoints import (
    TITLE,
    differences,
    read_checkpoint,
    read_header,
)
from course_utils.engine.devices import make_accelerator
from course_utils.engine.history import TrainingDiverged, TrainingStopped
from course_utils.engine.memory import MemoryPieces
from course_utils.engine.processes import ProcessGroup, loss_of_shard
from course_utils.engine.provenance import weights_digest
from course_utils.engine.runs import delete_run, list_runs, load_run
from course_utils.engine.sampling import SampleIndex, SeededDraws, sample_indices, seeded_draws
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, PROGRESSIVE, Strategy
from course_utils.training import fit

STEPWISE = replace(PROGRESSIVE, starts=(0, 1, 2))  # all stages have their turn in three epochs


class StopAfterBegin:
    """A hook: ends a run that is only to begin."""

    def on_train_begin(self, run, _model):
        run.stopped = "early"


HEAD = Strategy("head", starts=(0, None), rates=(1e-2,))
TRAIN, VAL = ColourPatches(12, seed=1), ColourPatches(7, seed=2)
needs_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on Windows")
LOOKS = 2 + 12  # before the first epoch fit looks at two pictures, and a run with resume at all of so few


def stop(image):
    signal.raise_signal(signal.SIGINT)  # what Jupyter sends
    return image


def in_epoch(number):
    """The access to the training pictures that happens in the middle of an epoch, counted from 1."""
    return LOOKS + 12 * (number - 1) + 6


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """A Stop collects garbage, and looking at all that pytest and torch have loaded would take half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of runs."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def quick(model=None, train=None, strategy=STEPWISE, **options):
    model = mini() if model is None else model
    train = Noisy(12, 1) if train is None else train
    options = {"epochs": 3, "batch_size": 6, "seed": 3, "device": "cpu", "log": "light", "resume": True} | options
    return fit(model, train, options.pop("val", VAL), strategy, **options)


def story(run):
    return [(r.epoch, r.learning, r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy) for r in run.history]


@pytest.fixture(scope="module")
def unbroken():
    """The run that everything is compared with, without any of resume: its model's weights, and the run."""
    model = mini()
    run = quick(model, log="off", resume=False)
    return copy_of(model), run


def same(model, run, unbroken):
    return not moved(copy_of(model), unbroken[0]) and story(run) == story(unbroken[1])


def interrupted(model=None, epoch=3, **options):
    """Stop a run in an epoch, counted from 1; gives its model, the run, and its checkpoint."""
    model = mini() if model is None else model
    run = stopped_run(quick, model, Act(Noisy(12, 1), in_epoch(epoch), stop), **options)
    (path,) = run.folder.glob("checkpoint-*.bin")
    return model, run, path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder of runs with one that was stopped in its second epoch, its checkpoint, and the weights it left."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("stopped")
        patch.setenv("COURSE_RUNS", str(root))
        model, _, path = interrupted(epoch=2)
    return root, path, copy_of(model)


@pytest.fixture
def resumable(stopped, root):
    """A copy of it: the model as it was left, the run's folder, the checkpoint."""
    there, path, weights = stopped
    shutil.copytree(there, root)
    model = mini()
    model.load_state_dict(weights)
    return model, root / path.parent.name, root / path.relative_to(there)


# --- the law -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of ``interrupted_runs``, a process of its own: it forks, and one with threads must not."""
    folder = tmp_path_factory.mktemp("killed")
    here = Path(interrupted_runs.__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }  # fmt: skip
    with (
        open(folder / "errors", "w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, interrupted_runs.__file__, str(folder)],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        ) as process,
    ):  # fmt: skip
        while (line := process.stdout.readline()) not in ("in epoch 3\n", ""):
            pass
        process.kill()
        errors.seek(0)
        assert line, f"it ended by itself: {errors.read()[-3000:]}"
    return folder


@pytest.fixture(scope="module")
def killed_runs(killed):
    """What it did before it was killed itself."""
    return json.loads((killed / "results.json").read_text(encoding="utf-8"))["kills"]


@needs_forks
def test_a_stop_at_any_moment_and_the_same_cell_again_come_to_the_same_bits(killed):
    stops = json.loads((killed / "results.json").read_text(encoding="utf-8"))["stops"]
    for stop in stops:
        for part in ("weights", "history", "stopped", "best"):
            assert stop["result"][part] == stop["whole"][part], f"stopped at {stop['moment']}: another {part}"
    assert len(stops) == 5 and stops[-1]["result"]["resumed"] == 3  # complete, and stopped while its end was written


@needs_forks
@pytest.mark.parametrize("case", ["progressive", "dropout", "unbalanced", "averaged", "early"])
def test_a_run_that_is_killed_anywhere_and_resumed_comes_to_the_same_bits(killed_runs, case):
    kills = [kill for kill in killed_runs if kill["case"] == case]
    for kill in kills:
        result, whole, text = kill["result"], kill["whole"], f"{case} killed at {kill['kill']}"
        assert kill["kills"] >= 1, text
        for part in ("weights", "history", "stopped", "best"):
            assert result[part] == whole[part], f"{text}: another {part}"
        assert result["left"] == ["history.csv", "run.json"] and result["rows"] == len(whole["history"]), text
    assert len({kill["result"]["resumed"] for kill in kills}) > 1  # before and after a checkpoint


@needs_forks
def test_that_was_often_enough_and_while_writing_too(killed_runs):
    assert sum(kill["kills"] for kill in killed_runs) >= 20
    writing = {kill["kill"]: kill["result"]["resumed"] for kill in killed_runs if isinstance(kill["kill"], str)}
    assert writing == {
        "half written": 1, "before rename": 1, "after rename": 2,  # in the second checkpoint of a run
        "before unlink": 2, "after unlink": 0,  # of two epochs: the run was complete, with and without a checkpoint
    }  # fmt: skip
    stopped = {kill["case"]: kill["whole"]["stopped"] for kill in killed_runs}
    assert stopped["early"] == "early" and stopped["progressive"] == "finished"


@needs_forks
def test_a_process_that_is_killed_leaves_what_another_one_resumes(killed, killed_runs, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_RUNS", str(killed / "alone"))
    (record,) = list_runs()
    assert (record.status, record.resumable, len(record.history)) == ("killed", True, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: another number of threads adds up in another order
    try:
        result = json.loads(json.dumps(interrupted_runs.train("progressive", killed / "alone")))
    finally:
        torch.set_num_threads(threads)
    whole = next(kill["whole"] for kill in killed_runs if kill["case"] == "progressive")
    assert (result["weights"], result["history"], result["resumed"]) == (whole["weights"], whole["history"], 2)
    assert f"Resumed {record.name}: 2 of 3 epochs were done." in capsys.readouterr().out
    (resumed,) = list_runs()
    assert resumed.folder == record.folder and resumed.status == "finished" and len(resumed.facts["resumed"]) == 1


@pytest.mark.parametrize("epoch", [2, 3])
def test_after_a_stop_the_same_cell_goes_on(root, unbroken, epoch, capsys):
    """The cell that calls fit runs again, without the one that made the model: it has the best weights then."""
    model = mini()
    with pytest.raises(TrainingStopped) as caught:
        quick(model, Act(Noisy(12, 1), in_epoch(epoch), stop))
    first = caught.value.run
    assert len(first.history) == epoch - 1 and first.resumed == 0
    assert str(caught.value).endswith(f"; the same call of fit takes the run {first.folder.name} up again.")
    run = quick(model)
    assert same(model, run, unbroken) and run.resumed == epoch - 1 and run.folder == first.folder
    assert run.stopped == "finished" and not list(run.folder.glob("checkpoint-*"))


def test_a_stop_in_the_first_epoch_begins_anew_and_does_not_advise_what_was_done(root):
    with pytest.raises(TrainingStopped) as caught:
        quick(train=Act(Noisy(12, 1), in_epoch(1), stop))
    assert str(caught.value).endswith("is as it came; the same call begins anew, because there is no checkpoint yet.")


def test_stopped_again_and_again(root, unbroken):
    model = mini()
    for epoch in (1, 2, 1):  # counted from where it goes on
        run = stopped_run(quick, model, Act(Noisy(12, 1), in_epoch(epoch), stop))
    assert len(run.history) == 1
    assert same(model, quick(model), unbroken)


def test_with_everything_in_the_log(root):
    """The report is that of the best weights, also when the best epoch was before the Stop."""
    folders = []
    for epoch in (None, 2):
        options = {"strategy": FEATURE_EXTRACTION, "epochs": 2, "log": "full"}
        if epoch:
            interrupted(epoch=epoch, **options)
        folders.append(quick(**options).folder)
    assert folders[0] != folders[1]
    for name in ("report.json", "report.md"):
        assert (folders[0] / name).read_text() == (folders[1] / name).read_text()
    weights = [load_file(folder / "best.safetensors") for folder in folders]
    assert not moved(*weights)
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())


def test_checkpoints_change_no_bit(root, unbroken):
    model = mini()
    with generators_untouched():
        run = quick(model)
    assert same(model, run, unbroken) and run.resumed == 0


def test_a_complete_run_is_not_resumed_into_nothing(root):
    first, second = quick(epochs=1), quick(epochs=1)
    assert first.folder != second.folder and second.resumed == 0 and len(second.history) == 1
    assert not list(root.glob("*/checkpoint-*"))


def test_a_diverged_run_begins_anew_and_a_failed_one_goes_on(root, unbroken):
    with pytest.raises(TrainingDiverged):
        quick(train=Act(Noisy(12, 1), in_epoch(2), lambda image: image * math.nan))
    assert not list(root.glob("*/checkpoint-*"))
    with pytest.raises(ZeroDivisionError):
        quick(train=Act(Noisy(12, 1), in_epoch(3), lambda image: image / (1 // 0)))
    model = mini()
    run = quick(model)
    assert run.resumed == 2 and same(model, run, unbroken)


def test_a_stop_while_the_checkpoint_is_written(root, unbroken, monkeypatch):
    real, writes = os.replace, []

    def replace(source, target):
        if "checkpoint-" in str(target):
            writes.append(target)
            if len(writes) == 2:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    model = mini()
    run = stopped_run(quick, model)
    assert len(run.history) == 2 and not list(run.folder.glob("*.partial"))
    # Behind the epoch, so its checkpoint is written after all: the one that belongs to the weights that are left.
    assert len(writes) == 3 and len(read_header(writes[0]).history) == 2
    assert same(model, quick(model), unbroken)


def test_partial_files_of_a_killed_process_are_cleared_away(resumable):
    model, _, path = resumable
    left = path.with_name(f".{path.name}.0123456789abcdef.partial")
    left.write_bytes(b"half")
    quick(model)
    assert not left.exists()


# --- which run is meant ------------------------------------------------------------------------------------------


class Photos(Noisy):
    transform = "Compose(Resize(32), RandomHorizontalFlip())"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"epochs": 5}, "settings.epochs: 3 there, 5 here"),
        ({"seed": 4}, "settings.seed: 3 there, 4 here"),
        ({"choose_by": "macro_f1"}, "settings.choose_by: accuracy there, macro_f1 here"),
        ({"batch_size": 3}, "settings.batch_size: 6 there, 3 here"),
        ({"class_weights": (1, 2, 1)}, "settings.class_weights: - there, [1.0, 2.0, 1.0] here"),
        ({"strategy": FULL}, "strategy.name: progressive there, full fine-tuning here"),
        ({"train": Noisy(12, 8)}, "data.train.samples: "),
        ({"train": Photos(12, 1)}, "data.train.transform: - there, 'Compose(Resize(32), RandomHorizontalFlip())' here"),
        ({"val": ColourPatches(6, seed=2)}, "data.val.pictures: 7 there, 6 here"),
        ({"model": cheap_model("mobilenet_v2", 3)}, "model.class: NarrowResNet there, MobileNetV2 here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_run_of_another_call_is_not_taken_up(stopped, monkeypatch, other, told):
    root, path, _ = stopped
    folder = path.parent
    monkeypatch.setenv("COURSE_RUNS", str(root))
    before = path.read_bytes()
    model = other.get("model") or mini()
    weights = copy_of(model)
    with pytest.raises(CourseError) as caught:
        quick(**{"model": model, "resume": folder.name} | other)
    assert f"The run {folder.name} is one of another call" in str(caught.value) and told in str(caught.value)
    assert path.read_bytes() == before and not moved(weights, copy_of(model))
    assert [record.status for record in list_runs()] == ["interrupted"]


def test_what_is_learned_decides_not_how(resumable, unbroken):
    """Neither the log nor the loading processes are part of the call."""
    model, folder, _ = resumable
    run = quick(model, num_workers=1, log="full")
    assert run.folder == folder and same(model, run, unbroken)


def test_a_call_that_was_changed_after_a_stop_says_what_is_other(resumable, capsys):
    model, folder, path = resumable
    run = quick(model, epochs=1)
    assert run.resumed == 0 and run.folder != folder and path.exists()
    text = f"The interrupted run {folder.name} was another call (settings.epochs: 3 there, 1 here), so a new run"
    assert text in capsys.readouterr().out


def test_other_weights_begin_another_run_unless_it_is_named(resumable, unbroken, capsys):
    _, folder, path = resumable
    run = quick(mini(seed=9))
    assert run.resumed == 0 and run.folder != folder and path.exists()
    told = capsys.readouterr().out
    assert "began with other weights" in told and f"resume={folder.name!r}" in told
    model = mini(seed=9)
    assert same(model, quick(model, resume=folder.name[-4:]), unbroken)


def test_a_run_that_goes_on_is_left_alone(root):
    seen = []

    def meanwhile(image):
        (record,) = list_runs()
        with pytest.raises(CourseError, match="is still going on: stop it first"):
            quick(resume=record.name)
        seen.append((record.folder, quick().folder))
        return image

    with pytest.warns(UserWarning, match="of the same call is still going on elsewhere, so a new run begins"):
        run = quick(train=Act(Noisy(12, 1), in_epoch(2), meanwhile))
    ((there, other),) = seen
    assert there == run.folder != other


def test_a_run_whose_end_could_not_be_written_is_resumed_all_the_same(resumable, unbroken):
    """run.json says that it is running, in this very process; nobody is in the middle of it."""
    model, folder, _ = resumable
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    assert same(model, quick(model), unbroken)


def test_a_run_that_was_killed_under_another_host_name_is_taken_up(resumable, unbroken):
    model, folder, _ = resumable
    facts = json.loads((folder / "run.json").read_text())
    elsewhere = {"status": "running", "process": facts["process"] | {"host": "the last container"}}
    (folder / "run.json").write_text(json.dumps(facts | elsewhere))
    run = quick(model)
    assert run.folder == folder and same(model, run, unbroken)


def test_of_two_kernels_that_resume_one_run_the_second_begins_anew(resumable, monkeypatch):
    """Both have seen that nobody works on it; then one is faster."""
    _, folder, path = resumable
    assert run_log.hold(folder)
    before = path.read_bytes()
    try:
        with pytest.warns(UserWarning, match=f"The run {folder.name} of the same call is still going on elsewhere"):
            run = quick(epochs=3, hooks=[StopAfterBegin()])
        with pytest.raises(CourseError, match="is still going on: stop it first"):
            quick(resume=folder.name)
    finally:
        run_log.let_go(folder)
    assert run.resumed == 0 and run.folder != folder and path.read_bytes() == before


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_up(resumable, monkeypatch):
    _, folder, path = resumable

    def hold(taken, usual=checkpoints.hold):
        path.unlink(missing_ok=True)
        return usual(taken)

    monkeypatch.setattr(checkpoints, "hold", hold)
    run = quick(hooks=[StopAfterBegin()])
    assert run.resumed == 0 and run.folder != folder and run_log.hold(folder)
    run_log.let_go(folder)


def test_whatever_goes_wrong_no_run_stays_held(resumable, monkeypatch):
    model, _, path = resumable
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CourseError, match="incomplete"):
        quick(model)
    monkeypatch.setattr("course_utils.engine.hooks.RunLog", lambda *_: 1 // 0)
    path.unlink()
    with pytest.raises(ZeroDivisionError):
        quick(model)
    assert run_log._HELD == {}


def test_a_forgotten_checkpoint_is_mentioned_once(resumable, capsys):
    _, folder, path = resumable
    told = []
    for seed in (3, 3, 4):
        quick(epochs=2, seed=seed, hooks=[StopAfterBegin()])
        told.append(folder.name in capsys.readouterr().out)
    assert told == [True, False, False] and path.exists()


# --- what belongs to a run -----------------------------------------------------------------------------------------


def photographs(folder, seed=0):
    """Twelve small pictures with the colour of their class."""
    draw = np.random.default_rng(seed)
    paths = [folder / ("red", "green", "blue")[i % 3] / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        pixels = draw.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[..., i % 3] += 100
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return PhotoDataset(paths, [i % 3 for i in range(12)], ("red", "green", "blue"), SMALL)


SMALL = v2.Compose([v2.Resize(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def replace_pictures(photos):
    other = photographs(photos.paths[0].parents[1].with_name("others"), seed=9)
    for place in (1, 2, 7):
        shutil.copy(other.paths[place], photos.paths[place])
    return photos


def touch_pictures(photos):
    for path in photos.paths:
        os.utime(path, (1, 1))
    return photos


def move_pictures(photos):
    folder = photos.paths[0].parents[1]
    moved_to = folder.rename(folder.with_name("elsewhere"))
    paths = [moved_to / path.relative_to(folder) for path in photos.paths]
    return PhotoDataset(paths, photos.labels, photos.classes, photos.transform)


def now_and_then(strength):
    def changed(image):
        return image + strength * (torch.rand(()) < 1e-6)  # so seldom that no sample shows it

    return v2.Compose([SMALL, changed])


@pytest.mark.parametrize(
    ("first", "change", "resumed"),
    [
        (SMALL, replace_pictures, 0),
        (SMALL, touch_pictures, 1),
        (SMALL, move_pictures, 1),
        (
            v2.Compose([SMALL, v2.RandomRotation(1)]),
            lambda p: p.with_transform(v2.Compose([SMALL, v2.RandomRotation(2)])),
            0,
        ),
        (v2.Compose([SMALL, v2.RandomRotation(1)]), touch_pictures, 1),
        (now_and_then(1), lambda photos: photos.with_transform(now_and_then(2)), 0),
        (now_and_then(1), lambda photos: photos.with_transform(now_and_then(1)), 1),
    ],
    ids=["replaced", "touched", "moved", "other rotation", "same rotation", "own code edited", "own code again"],
)
def test_a_run_belongs_to_its_pictures_and_their_augmentation(root, tmp_path, first, change, resumed):
    photos = photographs(tmp_path / "photos").with_transform(first)
    stopped_run(quick, train=photos, epochs=2, strategy=HEAD, cache="off", hooks=[StopAfter(1)])
    run = quick(train=change(photos), epochs=2, strategy=HEAD, cache="off")
    assert run.resumed == resumed


@pytest.mark.parametrize("change", ["deleted", "stale"])
def test_a_cache_that_is_gone_loses_no_run(root, tmp_path, monkeypatch, change):
    monkeypatch.setenv("COURSE_ACTIVATIONS", str(tmp_path / "activations"))
    photos = photographs(tmp_path / "photos")
    options = {"train": photos, "val": photos, "epochs": 2, "strategy": FEATURE_EXTRACTION, "cache": "auto"}
    stopped = stopped_run(quick, mini(), hooks=[StopAfter(1)], **options)
    assert stopped.cached == "head"
    shutil.rmtree(tmp_path / "activations") if change == "deleted" else touch_pictures(photos)
    run = quick(**options)
    assert run.resumed == 1 and run.folder == stopped.folder


def test_a_damaged_record_does_not_keep_a_run_from_going_on(resumable, unbroken):
    model, folder, _ = resumable
    (folder / "run.json").write_text("{")
    assert same(model, quick(model), unbroken)
    assert load_run(folder).status == "finished"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"log": "off"}, "with log='off' there is none"),
        ({"resume": 3}, "resume=3: give True, False, or the name"),
        ({"resume": ""}, "resume=''"),
        ({"resume": "nobody"}, "There is no run 'nobody'"),
    ],
)
def test_what_cannot_be_resumed(root, options, told):
    with pytest.raises(CourseError) as caught:
        quick(**options)
    assert told in str(caught.value) and list_runs() == []


def test_a_run_without_a_checkpoint_cannot_be_named(root):
    run = quick(epochs=1)
    with pytest.raises(CourseError, match="is finished and has no checkpoint: nothing can be resumed"):
        quick(epochs=1, resume=run.folder)


def test_differences_are_told_by_name():
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": [1]}}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": None}, "d": "x"}) == ["a.b: 1 there, - here", "d: - there, x here"]


def test_runs_that_can_be_resumed_are_shown_and_deleted_whole(resumable, capsys):
    _, folder, _ = resumable
    assert cli.main(["runs"]) == 0
    assert "interrupted, resumable" in capsys.readouterr().out
    record = load_run(folder)
    assert record.resumable and record.summary()["resumable"] and "resume=True goes on with epoch 2" in str(record)
    assert delete_run(record) == [] and not folder.exists()


# --- files that are not as they were written ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(stopped):
    """The bytes of a checkpoint."""
    return stopped[1].read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_a_checkpoint_is_noticed(tmp_path_factory, checkpoint, data):
    place = data.draw(st.one_of(st.integers(0, 3000), st.integers(0, len(checkpoint) - 1)))
    damaged = bytearray(checkpoint)
    if data.draw(st.booleans()):
        del damaged[place:]
    else:
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(bytes(damaged))
    with pytest.raises(CourseError, match=r"cannot be used: .* Nothing was changed"):
        read_checkpoint(path)


def test_a_damaged_checkpoint_stops_the_call_before_anything_is_spent(resumable):
    model, folder, path = resumable
    weights, record = copy_of(model), (folder / "run.json").read_text()
    path.write_bytes(path.read_bytes()[:-1000])
    for resume in (True, folder):
        with pytest.raises(CourseError, match=r"is incomplete, or was changed .* Delete that file to start anew"):
            quick(model, resume=resume)
    assert not moved(weights, copy_of(model)) and (folder / "run.json").read_text() == record
    assert len(list_runs()) == 1
    path.unlink()
    assert quick(model, epochs=1).resumed == 0


class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def foreign(content):
    return TITLE + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


@pytest.mark.parametrize("kind", ["pickle", "torch", "disguised", "other tensors"])
def test_foreign_objects_are_not_unpickled(tmp_path, checkpoint, kind):
    path, touched = tmp_path / "checkpoint-1.bin", tmp_path / "touched"
    heading = checkpoint.split(b"\n")[1] + b"\n"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malice(touched)))
    elif kind == "torch":
        torch.save({"model": Malice(touched)}, path)
    elif kind == "disguised":
        torch.save({"model": Malice(touched)}, path)
        path.write_bytes(foreign(heading + path.read_bytes()))
    else:
        torch.save({"model": torch.ones(3)}, path)
        path.write_bytes(foreign(heading + path.read_bytes()))
    with pytest.raises(CourseError, match="cannot be used"):
        read_checkpoint(path)
    assert not touched.exists()


def test_a_checkpoint_tells_what_it_is(checkpoint, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(checkpoint)
    found = read_checkpoint(path)
    assert found.header == read_header(path) and len(found.header.history) == 1
    assert (
        found.header.call["settings"]["epochs"] == 3 and found.header.call["plan"]["strategy"]["name"] == "progressive"
    )
    # The only epoch is the best one: its weights are stored once.
    assert found.state["best"] == {} and found.header.seen[1] == weights_digest(found.state["model"])


# --- disks -------------------------------------------------------------------------------------------------------


def full_disk(monkeypatch, writes):
    """The disk is full whenever a checkpoint is written for one of these times."""
    real, count = os.fsync, []

    def fsync(descriptor):
        if "checkpoint-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            count.append(descriptor)
            if len(count) in writes:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files are looked up in /proc")
def test_a_full_disk_keeps_the_last_checkpoint_and_does_not_stop_training(root, unbroken, monkeypatch):
    full_disk(monkeypatch, {2})
    model = mini()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = stopped_run(quick, model, Act(Noisy(12, 1), in_epoch(3), stop))
    (text,) = [str(item.message) for item in caught]
    assert text.startswith("The checkpoint of epoch 2 was not written") and "No space left on device" in text
    assert "a resumed run would begin with the last checkpoint" in text
    assert caught[0].filename == __file__
    assert len(run.history) == 2
    (path,) = run.folder.glob("checkpoint-*")
    assert len(read_checkpoint(path).header.history) == 1 and not list(run.folder.glob("*.partial"))
    model = mini()
    run = quick(model)
    assert run.resumed == 1 and same(model, run, unbroken)


def test_where_no_folder_can_be_made_training_goes_on(tmp_path, monkeypatch, unbroken):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "file" / "runs"))
    model = mini()
    with pytest.warns(UserWarning) as caught:
        run = quick(model)
    assert ["cannot be resumed" in str(item.message) for item in caught] == [False, True]
    assert {item.filename for item in caught} == {__file__}
    assert run.folder is None and same(model, run, unbroken)


def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(root, monkeypatch):
    def unlink(path, missing_ok=False, real=Path.unlink):
        if path.name.startswith("checkpoint-"):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.warns(UserWarning, match=r"checkpoint-.* cannot be deleted \(Permission denied\)\. Delete it before"):
        assert quick(epochs=1).stopped == "finished"


# --- memory ------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch):
    """Weak references to what a run holds: activations and the optimizer's moments."""
    held = []

    class AdamW(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            result = super().step(*args, **kwargs)
            held.extend(weakref.ref(value) for state in self.state.values() for value in state.values())
            return result

    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    model = mini()
    model.layer3.register_forward_hook(lambda _module, _inputs, output: held.append(weakref.ref(output)))
    return model, held


def alive(held):
    assert len(held) > 20
    return sum(reference() is not None for reference in held)


def test_a_stop_frees_what_only_training_needs(root, watched):
    model, held = watched
    gc.collect()
    gc.disable()
    try:
        stopped_run(quick, model, Act(Noisy(12, 1), in_epoch(2), stop), strategy=FULL)
        assert alive(held) == 0
    finally:
        gc.enable()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda image: image / (1 // 0), ZeroDivisionError),
        (lambda image: image * math.nan, TrainingDiverged),
        (stop, TrainingStopped),
    ],
    ids=["failed", "diverged", "stopped"],
)
def test_an_error_that_somebody_keeps_holds_no_memory(root, watched, act, error):
    """IPython keeps the last error with its traceback until the next one."""
    model, held = watched
    with pytest.raises(error) as kept:
        quick(model, Act(Noisy(12, 1), in_epoch(2), act), strategy=FULL)
    assert alive(held) == 0 and kept.value is not None


def limit(model, size, mode=None):
    """Let a model run out of memory with more than so many pictures; gives the batch sizes that went well."""
    sizes = []

    def check(module, inputs):
        if mode is None or module.training == (mode == "train"):
            if len(inputs[0]) > size:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            sizes.append(len(inputs[0]))

    model.register_forward_pre_hook(check)
    return sizes


@pytest.mark.parametrize(
    "options", [{}, {"class_weights": [5, 1, 2], "label_smoothing": 0.2}], ids=["plain", "weighted"]
)
def test_a_batch_that_is_too_big_is_computed_in_pieces(root, options):
    """Where BatchNorm is frozen, nothing else changes: steps, rates, gradients."""
    options = options | {"strategy": FEATURE_EXTRACTION, "batch_size": 5, "epochs": 3, "train": TRAIN}
    model, small = mini(), mini()
    whole = quick(model, **options)
    sizes = limit(small, 2)
    with pytest.warns(UserWarning) as caught:
        run = quick(small, **options)
    texts = [str(item.message) for item in caught]
    assert [text.split(". ")[0] for text in texts] == [
        "Not enough memory for 5 pictures: from now on a batch is computed in 2 pieces, 3 pictures at a time",
        "Not enough memory for 5 pictures: from now on a batch is computed in 4 pieces, 2 pictures at a time",
    ]
    assert {item.filename for item in caught} == {__file__}
    assert sizes[:9] == [1, 2, 1, 1, 1, 2, 1, 1, 1] and max(sizes) == 2  # before it begins, fit tries one picture
    assert sum(sizes) == 1 + 3 * (12 + 7)
    torch.testing.assert_close(small.fc.weight, model.fc.weight, rtol=1e-5, atol=1e-6)
    for there, here in zip(whole.history, run.history, strict=True):
        assert here.train_loss == pytest.approx(there.train_loss, rel=1e-5)
        assert here.val_loss == pytest.approx(there.val_loss, rel=1e-5)
        assert (here.train_accuracy, here.val_accuracy) == (there.train_accuracy, there.val_accuracy)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 99))
def test_the_gradient_of_the_pieces_is_that_of_the_batch(size, pieces, weighted, seed):
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(size, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator)
    if seed % 2:
        labels[torch.rand(size, generator=generator) < 0.4] = -100  # no label
        labels[-1] = 0  # torch's mean over none is NaN
    weight = torch.tensor([5.0, 1.0, 0.5]) if weighted else None
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))
    loss, group = nn.CrossEntropyLoss(weight, label_smoothing=0.1), ProcessGroup(make_accelerator("cpu"))
    memory = MemoryPieces(model, loss, torch.optim.SGD(model.parameters()), group)
    memory.count = pieces

    def forward_and_backward(images, labels, share):  # as the training loop has it
        logits = model(images)
        (loss_of_shard(loss, logits, labels, group) * share).backward()
        return logits.detach()

    logits = memory.in_pieces(forward_and_backward, images, labels)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss(model(images), labels).backward()
    torch.testing.assert_close(logits, model(images).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "pieces"), [(8, [2, 2, 2, 2]), (7, [3, 2, 2]), (3, [3])])
def test_batch_norm_that_learns_never_sees_a_piece_of_one_picture(root, size, pieces):
    """On maps of 1 × 1 it would be refused, and on larger ones learned as if it were all there is."""
    model = mini()
    sizes = limit(model, max(pieces), mode="train")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(model, ColourPatches(size, side=16), FULL, val=ColourPatches(3, side=16), batch_size=8, epochs=2)
    assert sizes == pieces * 2
    assert all("the same rate, but BatchNorm in the stages that learn sees a piece" in str(w.message) for w in caught)
    assert len(caught) == (0 if len(pieces) == 1 else 2)


def test_validation_may_be_too_big_too(root):
    model, small = mini(), mini()
    whole = quick(model, log="off", resume=False, strategy=HEAD, epochs=1)
    limit(small, 3, mode="eval")
    with pytest.warns(UserWarning, match="in 2 pieces, 3 pictures at a time") as caught:
        run = quick(small, strategy=HEAD, epochs=1)
    assert [item.filename for item in caught] == [__file__]
    assert run.history[0].val_loss == pytest.approx(whole.history[0].val_loss, rel=1e-5)
    assert run.history[0].val_accuracy == whole.history[0].val_accuracy


def test_a_resumed_run_keeps_to_the_pieces_it_had(root):
    models = []
    for broken in (False, True):
        model = mini()
        limit(model, 2)
        with pytest.warns(UserWarning):
            run = stopped_run(quick, model, Act(Noisy(12, 1), in_epoch(3), stop)) if broken else quick(model)
        if broken:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                run = quick(model)
        models.append((copy_of(model), story(run)))
    assert not moved(models[0][0], models[1][0]) and models[0][1] == models[1][1]


def test_too_little_memory_for_one_picture(root, watched):
    model, held = watched
    before = copy_of(model)

    def no_memory(_module, inputs):
        if len(held) > 60:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    model.layer4.register_forward_pre_hook(no_memory)
    told = r"not enough memory \(cpu\) .* even two or three pictures at a time, the fewest for BatchNorm"
    with pytest.warns(UserWarning, match="pieces"), pytest.raises(CourseError, match=told) as kept:
        quick(model, strategy=FULL)
    assert alive(held) == 0 and kept.value.__context__ is None
    assert load_run(list_runs()[0].folder).facts["error"] == str(kept.value)
    assert not moved(before, copy_of(model))


def test_other_errors_are_no_lack_of_memory(root):
    model = mini()
    model.register_forward_pre_hook(lambda network, _: torch.ones(2) @ torch.ones(2 + network.training) and None)
    with pytest.raises(RuntimeError, match="size"):
        quick(model)


# --- random numbers ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 30), st.permutations(range(6)), st.integers(1, 6))
def test_what_a_picture_draws_depends_on_seed_epoch_and_index_alone(seed, epoch, order, batch):
    draws = SeededDraws(Noisy(6, 1))
    indices = sample_indices(range(6), 6, seed, epoch)
    with generators_untouched():
        one_by_one = [draws[i][0] for i in indices]
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    for start_at in range(0, 6, batch):
        chosen = [indices[i] for i in order[start_at : start_at + batch]]
        for index, (image, _) in zip(chosen, draws.__getitems__(chosen), strict=True):
            assert torch.equal(image, one_by_one[index])
    later = sample_indices(range(6), 6, seed, epoch + 1)
    assert not any(torch.equal(draws[i][0], one_by_one[i]) for i in later)


def test_an_index_carries_its_seed_to_another_process():
    index = SampleIndex(3, epoch=2, seed=5)
    there = pickle.loads(pickle.dumps(index))
    assert (there, there.epoch, there.seed) == (3, 2, 5) and list(range(9))[there] == 3


def test_an_error_puts_the_generators_back():
    with generators_untouched(), pytest.raises(KeyboardInterrupt):
        SeededDraws(Act(Noisy(12, 1), 1, stop))[0]


def test_what_draws_nothing_is_left_as_it_is():
    fixed = TensorDataset(torch.zeros(2, 3), torch.zeros(2))
    assert seeded_draws(fixed) is fixed and isinstance(seeded_draws(Noisy(2)), SeededDraws)


def test_workers_change_nothing():
    models, stories = [mini(), mini()], []
    for model, workers in zip(models, (0, 2), strict=True):
        run = quick(model, strategy=HEAD, epochs=2, num_workers=workers, log="off", resume=False)
        stories.append(story(run))
    assert not moved(*map(copy_of, models)) and stories[0] == stories[1]


def test_augmentation_does_not_move_dropout():
    """In front of dropout the generator is at the same place, whatever the pictures drew."""
    places = []
    for train in (ColourPatches(12, 1), Noisy(12, 1)):
        model, seen = cheap_model("mobilenet_v2", 3), []
        model.classifier[0].register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.get_rng_state()))
        quick(model, train, strategy=HEAD, epochs=1, log="off", resume=False)
        places.append(torch.stack(seen))
    assert torch.equal(*places) and not torch.equal(places[0][0], places[0][1])


def test_generators_go_through_a_file(tmp_path):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    np.random.standard_normal(), random.gauss(0, 1)  # both keep half of what they drew
    torch.save(generator_states(), tmp_path / "generators")
    drawn = [random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()]
    set_generator_states(torch.load(tmp_path / "generators", weights_only=True))
    assert drawn == [random.gauss(0, 1), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()]
