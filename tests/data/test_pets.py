"""The data set on disk: a picture and a mask for each count, drawn once, anew when anything changed, and safely."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from course_utils.common.errors import CourseError
from course_utils.data import animals, artist, canvas, pets, scenes

FEW = {"train": 2, "val": 1, "test": 1}


def test_no_two_pictures_of_the_data_set_share_a_seed():
    seeds = [
        pets.picture_seed(seed, split, label, i)
        for seed in (0, 1)
        for split, count in pets.DEFAULT_COUNTS.items()
        for label in artist.CLASSES
        for i in range(count)
    ]
    assert len(set(seeds)) == len(seeds) == 2 * 360


@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """Every call of ``draw`` from here on; a cheap picture is enough to test the folder."""
    calls: list[tuple] = []

    def quick(label, seed, size=128, **look):
        calls.append((label, seed))
        level = int(hashlib.sha256(f"{label}{seed}".encode()).hexdigest()[:6], 16)
        image = Image.new("RGB", (size, size), (level >> 16, level >> 8 & 255, level & 255))
        return artist.Drawing(image, Image.new("L", (size, size)), label)

    monkeypatch.setattr(pets, "draw", quick)
    return calls


def test_the_folder_has_a_picture_and_a_mask_for_each_count(tmp_path):
    folder = pets.write_pets(tmp_path / "pets", FEW, size=32)
    pictures = sorted(p.relative_to(folder).as_posix() for s in FEW for p in (folder / s).rglob("*.png"))
    masks = sorted(p.relative_to(folder / "masks").as_posix() for p in (folder / "masks").rglob("*.png"))
    assert (
        pictures
        == masks
        == sorted(f"{s}/{c}/{i:03d}.png" for s, n in FEW.items() for c in artist.CLASSES for i in range(n))
    )
    expected = artist.draw("Misty", pets.picture_seed(0, "train", "Misty", 1), 32)
    assert np.array_equal(Image.open(folder / "train/Misty/001.png"), expected.image)
    assert np.array_equal(Image.open(folder / "masks/train/Misty/001.png"), expected.mask)
    contents = [np.asarray(Image.open(folder / name)).tobytes() for name in pictures]
    assert len(set(contents)) == len(contents)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["pets"]


def test_a_complete_folder_is_used_again(tmp_path, drawn):
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    assert len(drawn) == 12
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    assert len(drawn) == 12


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"size": 48}, {"light": "night"}, {"style": "sketch"}, {"counts": {"train": 3}}]
)
def test_other_arguments_draw_the_folder_anew(tmp_path, drawn, other):
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    pets.write_pets(tmp_path / "pets", **{"counts": FEW, "size": 32, **other})
    assert len(drawn) > 12
    assert (tmp_path / "pets/test").exists() == ("counts" not in other)


def test_a_change_in_any_drawing_module_draws_the_folder_anew(tmp_path, drawn, monkeypatch):
    parts = [vars(module).values() for module in (artist, animals, scenes, canvas)]
    modules = {getattr(value, "__module__", None) for values in parts for value in values}
    drawing = {sys.modules[name].__file__ for name in modules if name and name.startswith("course_utils.data")}
    assert drawing | {pets.__file__} == set(pets.SOURCES)
    for changed in range(len(pets.SOURCES)):
        source = tmp_path / "changed.py"
        source.write_text("new strokes")
        pets.write_pets(tmp_path / "pets", FEW, size=32)
        drawn.clear()
        with monkeypatch.context() as patch:
            patch.setattr(pets, "SOURCES", [*pets.SOURCES[:changed], source, *pets.SOURCES[changed + 1 :]])
            pets.write_pets(tmp_path / "pets", FEW, size=32)
        assert len(drawn) == 12


def lose_a_picture(folder):
    (folder / "test/Tigger/000.png").unlink()


def cut_a_picture(folder):
    os.truncate(folder / "train/Misty/001.png", 20)


def lose_a_mask(folder):
    (folder / "masks/val/Neither/000.png").unlink()


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


def spoil_the_manifest(folder):
    (folder / "manifest.json").write_text("{")


def come_from_older_code(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arguments"]["code"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [lose_a_picture, cut_a_picture, lose_a_mask, lose_the_manifest, spoil_the_manifest, come_from_older_code],
)
def test_a_damaged_or_outdated_folder_is_drawn_anew(tmp_path, drawn, damage):
    folder = pets.write_pets(tmp_path / "pets", FEW, size=32)
    damage(folder)
    pets.write_pets(folder, FEW, size=32)
    assert len(drawn) == 24
    assert len(list(folder.rglob("*.png"))) == 24
    pets.write_pets(folder, FEW, size=32)
    assert len(drawn) == 24


def test_what_a_killed_run_left_behind_goes(tmp_path, drawn):
    left_over = tmp_path / ".pets-killed"
    (left_over / "train").mkdir(parents=True)
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    assert not left_over.exists()


def test_a_failure_in_mid_drawing_leaves_the_old_folder_alone(tmp_path, drawn, monkeypatch):
    folder = pets.write_pets(tmp_path / "pets", FEW, size=32)
    before = (folder / "manifest.json").read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pets, "draw", full_disk)
    with pytest.raises(CourseError, match=r"pets.*No space left on device.*Free some disk space"):
        pets.write_pets(folder, FEW, seed=9, size=32)
    assert (folder / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["pets"]


def test_files_of_somebody_else_are_never_touched(tmp_path, drawn):
    (tmp_path / "mine/train/Tigger").mkdir(parents=True)
    photo = tmp_path / "mine/train/Tigger/IMG_1.jpg"
    photo.write_bytes(b"my only photo")
    with pytest.raises(CourseError, match=r"IMG_1\.jpg.*new folder"):
        pets.write_pets(tmp_path / "mine", FEW)
    with pytest.raises(CourseError, match="it is a file"):
        pets.write_pets(photo, FEW)
    assert photo.read_bytes() == b"my only photo"
    assert not drawn


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match=r"file.pets: [^.]*\. Choose a folder you may write to"):
        pets.write_pets(tmp_path / "file" / "pets", FEW)


@pytest.mark.parametrize("counts", [{}, {"train": 3, "dev": 1}, {"train": -1}])
def test_counts_that_make_no_sense_are_refused(tmp_path, counts):
    with pytest.raises(CourseError, match="train, val and test"):
        pets.write_pets(tmp_path / "pets", counts)


def test_two_at_once_draw_one_complete_folder(tmp_path, drawn):
    start, problems = threading.Barrier(4), []

    def write():
        start.wait()
        try:
            pets.write_pets(tmp_path / "pets", FEW, size=32)
        except CourseError as problem:
            problems.append(problem)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not problems
    assert len(drawn) == 12
    assert len(list((tmp_path / "pets").rglob("*.png"))) == 24
