"""The animation shows a real run, is legible and small, and says in words what it shows."""

import json
import re
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import copy_of, moved
from PIL import Image, ImageSequence
from torch import nn

from course_tools.authoring import animation
from course_tools.authoring.animation import OUT, Snapshots, draw, fingerprint, frame, page_of, record, scenes_of
from course_utils.common.errors import CourseError
from course_utils.datasets import in_memory, open_dataset
from course_utils.engine.history import Run
from course_utils.evaluation import interval_text
from course_utils.fine_tuning import PROGRESSIVE
from course_utils.pretrained_models import weights_entry
from course_utils.training import fit
from course_utils.transforms import eval_transform

EPOCHS = 2


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    few = {"train": 4, "val": 3, "test": 2}
    return open_dataset("pets", cache=tmp_path_factory.mktemp("animated"), counts=few, size=64)


class Watched(NamedTuple):
    recording: animation.Recording
    run: Run
    weights: dict
    counted: list[int]  # right answers of every state of the network


@pytest.fixture(scope="module")
def watched(splits):
    """A recording, and what happened in it behind the scenes."""
    seen, counted = [], []

    def spied_fit(model, *arguments, **options):
        run = fit(model, *arguments, **options)
        seen.extend((run, copy_of(model)))
        return run

    def spied_answers(network, state, val):
        answers = answers_of(network, state, val)
        counted.append(int((answers == np.array(val.labels)).sum()))
        return answers

    answers_of = animation._answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(animation, "fit", spied_fit)
        patch.setattr(animation, "_answers", spied_answers)
        recording = record("resnet18_mini", splits, epochs=EPOCHS)
    return Watched(recording, *seen, counted)


@pytest.fixture(scope="module")
def recording(watched):
    return watched.recording


# --- the stored animation ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts():
    return json.loads(OUT.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_stored_animation_is_short_small_and_of_one_size(facts):
    assert OUT.stat().st_size <= 3_000_000
    with Image.open(OUT) as stored:
        frames = [(image.size, image.info["duration"]) for image in ImageSequence.Iterator(stored)]
    assert {size for size, _ in frames} == {(960, 540)}
    assert [milliseconds for _, milliseconds in frames] == [round(1000 * s.seconds) for s in scenes_of(facts)]
    assert sum(milliseconds for _, milliseconds in frames) < 60_000
    assert min(milliseconds for _, milliseconds in frames) >= 3000, "nothing flashes, and there is time to read"


def test_animation_facts_and_text_belong_together(facts):
    message = "run `course animate` and commit the three files that it writes"
    with Image.open(OUT) as stored:
        assert stored.info["comment"].decode() == fingerprint(facts), message
    assert OUT.with_suffix(".md").read_text(encoding="utf-8") == page_of(facts, OUT.name), message


def test_the_text_says_everything_that_is_written_in_the_picture(facts):
    page = " ".join(page_of(facts, OUT.name).split())
    for scene in scenes_of(facts):
        assert scene.title in page and " ".join(scene.caption.split()) in page and scene.description
    assert interval_text(facts["test_right"], facts["pictures"]["test"]) in page


def test_what_the_story_tells_is_in_the_run(facts):
    assert len(facts["epochs"]) == 8 and facts["model"] == "resnet18_mini" and facts["strategy"] == "progressive"
    assert [epoch["learning"][0] for epoch in facts["epochs"][:6]] == facts["stages"][::-1]
    best = facts["epochs"][facts["best_epoch"] - 1]
    assert best["val_right"] == max(epoch["val_right"] for epoch in facts["epochs"])
    assert best["energy"]["low"] > facts["start"]["energy"]["high"], "after the training more heat lies on the animal"
    assert facts["test_right"] > facts["majority_right"]


# --- recording ---------------------------------------------------------------------------------------------------


def test_snapshots_are_copies_of_the_weights_at_their_time():
    model, snapshots = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)), Snapshots()
    snapshots.on_train_begin(None, model)
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 2
    snapshots.on_epoch_end(None, model)
    snapshots.on_epoch_end(None, model)
    before, after, again = snapshots.states
    assert moved(before, after) == {"0.weight", "1.running_mean"} and not moved(after, again)
    assert not moved(after, model.state_dict())
    assert all(not tensor.requires_grad for state in snapshots.states for tensor in state.values())


def test_a_watched_run_is_the_run_that_nobody_watched(splits, watched):
    entry = weights_entry("resnet18_mini")
    data = splits.with_transforms(eval_transform(entry), eval_transform(entry))
    model = PROGRESSIVE.starting_model("resnet18_mini", 3, seed=0)
    options = {"epochs": EPOCHS, "batch_size": animation.BATCH_SIZE, "seed": 0, "log": "off"}
    run = fit(model, in_memory(data.train), in_memory(data.val), PROGRESSIVE, **options)
    assert not moved(copy_of(model), watched.weights)
    assert [replace(r, seconds=0) for r in run.history] == [replace(r, seconds=0) for r in watched.run.history]


def test_what_is_shown_is_what_fit_counted(watched):
    facts = watched.recording.facts
    assert watched.counted == [facts["start"]["val_right"], *(epoch["val_right"] for epoch in facts["epochs"])]
    assert [len(picture["answers"]) for picture in facts["shown"]] == [EPOCHS + 1] * len(facts["shown"])
    assert json.loads(json.dumps(facts)) == facts


def test_maps_are_on_one_scale(recording):
    assert recording.heat.shape == (EPOCHS + 1, *recording.pictures.shape[:1], *recording.pictures.shape[2:])
    assert recording.heat.min() >= 0 and recording.heat.max() == 1


def test_pictures_are_chosen_by_the_rule():
    labels = np.array([0, 0, 1, 1, 2, 2])
    masks = np.zeros((6, 10, 10), dtype=bool)
    masks[[0, 1, 2, 3, 5], :2] = True  # the first picture of class 2 shows no animal
    assert animation._chosen(masks, labels, labels, 3) == [0, 2, 5]
    assert animation._chosen(masks, labels, np.array([0, 1, 1, 1, 0, 2]), 3) == [0, 2, 5, 1]
    assert animation._chosen(masks, labels, np.array([0, 0, 2, 1, 2, 2]), 3) == [0, 2, 5, 3]
    with pytest.raises(CourseError, match="class 2"):
        animation._chosen(masks[:5], labels[:5], labels[:5], 3)


# --- drawing -----------------------------------------------------------------------------------------------------


def test_nothing_that_is_written_leaves_the_picture_or_meets_other_words(recording):
    for scene in {scene.kind: scene for scene in scenes_of(recording.facts)}.values():
        figure = draw(scene, recording)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        texts = [t for axes in figure.axes for t in (axes.title, axes.xaxis.label)] + figure.texts
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
        whole = figure.bbox
        for i, (text, box) in enumerate(boxes):
            inside = box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1
            assert inside, f"{scene.kind}: {text!r} leaves the picture"
            for other, second in boxes[i + 1 :]:
                assert not box.overlaps(second), f"{scene.kind}: {text!r} meets {other!r}"
        assert scene.title in {text for text, _ in boxes}


def test_a_frame_has_the_size_and_few_colours(recording):
    image = frame(scenes_of(recording.facts)[-1], recording)
    assert image.size == (960, 540) and len(image.getcolors()) <= animation.COLOURS


def test_all_three_files_are_written_or_none_when_it_would_be_too_large(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "frame", lambda scene, _: Image.new("P", (96, 54), round(scene.seconds)))
    animation.write(recording, tmp_path / "run.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.gif", "run.json", "run.md"]
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == recording.facts
    monkeypatch.setattr(animation, "MAX_BYTES", 100)
    with pytest.raises(CourseError, match="allowed are 100"):
        animation.write(recording, tmp_path / "other.gif")
    assert not list(tmp_path.glob("other*"))


def test_the_command_wants_a_gif(tmp_path):
    with pytest.raises(CourseError, match=re.escape("ends in .gif")):
        animation.main(["--out", str(tmp_path / "film.mp4")])
