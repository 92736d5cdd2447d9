"""Folders of every kind become three disjoint splits, or a clear error."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from course_utils import datasets
from course_utils.common.errors import CourseError
from course_utils.data import artist, folders
from course_utils.datasets import (
    PhotoDataset,
    Quarantined,
    few_per_class,
    in_memory,
    open_dataset,
)
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.transforms import eval_transform, train_transform

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
SPLITS = ("train", "val", "test")
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="making links needs special rights on Windows")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("COURSE_DATASET", "COURSE_DATA_MIRROR", "COURSE_CACHE", "COURSE_WEIGHTS", "COURSE_SEED"):
        monkeypatch.delenv(name, raising=False)


def write_picture(path: Path, number: int) -> Path:
    """A small picture whose pixels spell its number, so that no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0, :4, 0] = list(number.to_bytes(4, "big"))
    Image.fromarray(pixels).save(path)
    return path


def write_folder(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    for label, count in counts.items():
        for i in range(count):
            write_picture(folder / label / f"{i:03d}.png", start)
            start += 1
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_folder(tmp_path / "photos", {"cats": 20, "dogs": 11})


def names(dataset: PhotoDataset) -> list[str]:
    return ["/".join(path.parts[-2:]) for path in dataset.paths]


def content(dataset: PhotoDataset) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in dataset.paths}


def assert_disjoint(splits: datasets.Splits) -> None:
    contents = [content(getattr(splits, split)) for split in SPLITS]
    assert sum(map(len, contents)) == len(set().union(*contents)) == sum(len(getattr(splits, s)) for s in SPLITS)


# --- the data set itself


def test_photo_dataset_is_a_dataset(photos):
    train = open_dataset(photos).train
    picture, label = train[0]
    assert (picture.mode, picture.size, train.classes[label]) == ("RGB", (8, 6), "cats")
    assert train.counts() == {"cats": 12, "dogs": 7}
    assert sum(1 for _ in (train[i] for i in range(len(train)))) == len(train) == 19
    assert len(list(DataLoader(train.with_transform(eval_transform(WEIGHTS)), batch_size=8))) == 3
    assert repr(train) == "PhotoDataset(19 pictures, classes cats, dogs)"


def test_with_transform_and_subset_leave_the_original_alone(photos):
    train = open_dataset(photos).train
    other = train.with_transform(eval_transform(WEIGHTS)).subset([3, 1])
    assert train.transform is None
    assert other.paths == (train.paths[3], train.paths[1])
    assert other[0][0].shape == (3, 128, 128)


def test_pickled_copy_gives_the_same_samples(photos):
    train = open_dataset(photos).train.with_transform(train_transform(WEIGHTS, "strong"))
    copy = pickle.loads(pickle.dumps(train))
    views = []
    for dataset in (train, copy):
        torch.manual_seed(0)
        views.append(dataset[2][0])
    assert torch.equal(*views)
    assert copy.paths == train.paths


def test_lengths_and_labels_are_checked():
    with pytest.raises(CourseError, match="2 paths, 1 labels"):
        PhotoDataset(["a", "b"], [0], ["x"])
    with pytest.raises(CourseError, match="from 0 to 0"):
        PhotoDataset(["a"], [1], ["x"])


def test_a_picture_that_breaks_later_is_an_error_with_its_name(photos):
    train = open_dataset(photos).train
    train.paths[0].unlink()
    train.paths[1].write_bytes(b"overwritten")
    for i in (0, 1):
        with pytest.raises(CourseError) as caught:
            train[i]
        assert str(train.paths[i]) in str(caught.value)
        assert "call open_dataset again" in str(caught.value)


def test_in_memory_equals_the_dataset(photos):
    val = open_dataset(photos).val.with_transform(eval_transform(WEIGHTS))
    memory = in_memory(val)
    assert memory.images.shape == (len(val), 3, 128, 128)
    assert (memory.labels, memory.classes, memory.paths) == (val.labels, val.classes, val.paths)
    for i in range(len(val)):
        assert torch.equal(memory[i][0], val[i][0])
        assert memory[i][1] == val[i][1]
    assert memory.counts() == val.counts()
    part = memory.subset([2, 0])
    assert torch.equal(part.images, memory.images[[2, 0]])
    assert part.paths == (val.paths[2], val.paths[0])
    assert "6 tensors (3, 128, 128)" in repr(memory)


def test_in_memory_refuses_what_would_mislead(photos, monkeypatch):
    train = open_dataset(photos).train
    with pytest.raises(CourseError, match="with_transform"):
        in_memory(train)
    with pytest.raises(CourseError, match="with_transform"):
        in_memory(train.with_transform(eval_transform(WEIGHTS)).subset([]))
    with pytest.raises(CourseError, match="random"):
        in_memory(train.with_transform(train_transform(WEIGHTS, "light")))
    with pytest.raises(CourseError, match="gives tuple"):
        in_memory(train.with_transform(tuple_of_size))
    write_picture(train.paths[4], 10_000)
    with Image.open(train.paths[4]) as picture:
        picture.resize((9, 9)).save(train.paths[4])
    with pytest.raises(CourseError, match="must end in one size"):
        in_memory(train.with_transform(as_tensor))
    monkeypatch.setattr(datasets, "MAX_MEMORY_BYTES", 1000)
    with pytest.raises(CourseError, match="GB"):
        in_memory(train.with_transform(eval_transform(WEIGHTS)))


DRAWS = {
    "python": random.random,
    "numpy": np.random.rand,
    "torch": lambda: torch.rand(()),
    "its own": np.random.default_rng(0).random,
}


@pytest.mark.parametrize("generator", DRAWS)
def test_in_memory_sees_augmentation_of_a_few_pictures(photos, generator):
    train, calls = open_dataset(photos).train, []

    def sometimes(picture):
        calls.append(1)
        drawn = DRAWS[generator]() if len(calls) > 3 and len(calls) % 3 == 0 else 0
        return as_tensor(picture.resize((8, 8))) + drawn

    with pytest.raises(CourseError, match="draws random numbers"):
        in_memory(train.with_transform(sometimes))


def tuple_of_size(picture: Image.Image) -> tuple[int, int]:
    return picture.size


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


# --- few per class


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=40), st.integers(0, 5), st.data())
def test_few_per_class_is_balanced_nested_and_seeded(labels, seed, data):
    labels += [0, 1, 2]
    dataset = PhotoDataset([str(i) for i in range(len(labels))], labels, ["a", "b", "c"])
    most = min(dataset.counts().values())
    small, large = sorted((data.draw(st.integers(1, most)), data.draw(st.integers(1, most))))
    fewer, more = few_per_class(dataset, small, seed), few_per_class(dataset, large, seed)
    assert set(fewer.counts().values()) == {small}
    assert set(fewer.paths) <= set(more.paths)
    assert few_per_class(dataset, small, seed).paths == fewer.paths
    for path, label in zip(more.paths, more.labels, strict=True):
        assert dataset.labels[int(path.name)] == label


def test_few_per_class_depends_on_the_seed_and_checks_n(photos):
    train = open_dataset(photos).train
    assert len({few_per_class(train, 3, seed).paths for seed in range(5)}) > 1
    for n in (0, 8):
        with pytest.raises(CourseError, match=rf"n={n} .*from 1 to 7 \(dogs\)"):
            few_per_class(train, n)


def test_few_per_class_of_tensors(photos):
    memory = in_memory(open_dataset(photos).train.with_transform(eval_transform(WEIGHTS)))
    assert few_per_class(memory, 2).counts() == {"cats": 2, "dogs": 2}


# --- folders


def test_class_folders_are_split(photos):
    splits = open_dataset(photos, seed=3)
    assert (splits.name, splits.classes, splits.quarantine) == ("photos", ("cats", "dogs"), ())
    assert [getattr(splits, s).counts() for s in SPLITS] == [
        {"cats": 12, "dogs": 7},
        {"cats": 4, "dogs": 2},
        {"cats": 4, "dogs": 2},
    ]
    assert_disjoint(splits)
    assert names(open_dataset(str(photos), seed=3).train) == names(splits.train)
    assert names(open_dataset(photos, seed=4).train) != names(splits.train)
    for split in SPLITS:
        dataset = getattr(splits, split)
        assert all(
            path.parent.name == dataset.classes[y] for path, y in zip(dataset.paths, dataset.labels, strict=True)
        )


def test_split_follows_contents_not_names_or_places(photos, tmp_path):
    before = open_dataset(photos)
    moved = tmp_path / "elsewhere"
    for path in sorted(photos.rglob("*.png"), reverse=True):
        target = moved / path.parent.name / f"{999 - int(path.stem)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    after = open_dataset(moved)
    for split in SPLITS:
        assert content(getattr(before, split)) == content(getattr(after, split))


def test_order_of_the_file_system_does_not_matter(photos, monkeypatch):
    before = open_dataset(photos)
    walk, iterdir = os.walk, Path.iterdir

    def reversed_walk(*args, **kwargs):
        for here, inner, files in walk(*args, **kwargs):
            yield here, inner, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", reversed_walk)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    after = open_dataset(photos)
    assert [names(getattr(before, s)) for s in SPLITS] == [names(getattr(after, s)) for s in SPLITS]


def test_fractions(photos):
    splits = open_dataset(photos, val_fraction=0.1, test_fraction=0.4)
    assert (splits.val.counts(), splits.test.counts()) == ({"cats": 2, "dogs": 1}, {"cats": 8, "dogs": 4})
    for bad in (0, 0.5, -1, 2):
        with pytest.raises(CourseError, match="fraction"):
            open_dataset(photos, val_fraction=bad)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_ready_made_splits(tmp_path, val):
    for start, split in ((0, "train"), (100, val), (200, "Test")):
        write_folder(tmp_path / split, {"b": 4, "a": 3}, start)
    splits = open_dataset(tmp_path)
    assert splits.classes == ("a", "b")
    for split, folder in (("train", "train"), ("val", val), ("test", "Test")):
        dataset = getattr(splits, split)
        assert dataset.counts() == {"a": 3, "b": 4}
        assert {path.parts[-3] for path in dataset.paths} == {folder}


@pytest.mark.parametrize(("there", "missing"), [("val", "test"), ("test", "val")])
def test_train_gives_what_is_missing(tmp_path, there, missing):
    write_folder(tmp_path / "train", {"a": 10, "b": 15})
    write_folder(tmp_path / there, {"a": 3, "b": 3}, 100)
    splits = open_dataset(tmp_path)
    assert getattr(splits, there).counts() == {"a": 3, "b": 3}
    assert getattr(splits, missing).counts() == {"a": 2, "b": 3}
    assert splits.train.counts() == {"a": 8, "b": 12}
    assert_disjoint(splits)


def test_only_a_train_folder(tmp_path):
    splits = open_dataset(write_folder(tmp_path / "train", {"a": 10, "b": 15}).parent)
    assert [len(getattr(splits, s)) for s in SPLITS] == [15, 5, 5]


def test_numbers_as_classes_are_in_the_order_of_numbers(tmp_path):
    assert open_dataset(write_folder(tmp_path / "all", {"10": 5, "2": 5, "1": 5})).classes == ("1", "2", "10")
    assert open_dataset(write_folder(tmp_path / "mixed", {"10": 5, "2": 5, "x": 5})).classes == ("10", "2", "x")
    for start, split in ((0, "train"), (100, "val"), (200, "test")):
        write_folder(tmp_path / "split" / split, {"010": 5, "9": 5}, start)
    assert open_dataset(tmp_path / "split").classes == ("9", "010")


def test_pictures_in_deeper_folders_belong_to_the_class(photos):
    write_picture(photos / "cats" / "2024" / "march" / "x.png", 5000)
    splits = open_dataset(photos)
    assert sum(len(getattr(splits, s)) for s in SPLITS) == 32


def test_masks_beside_the_splits(tmp_path):
    for start, split in ((0, "train"), (100, "val"), (200, "test")):
        write_folder(tmp_path / split, {"a": 2, "b": 2}, start)
    (tmp_path / "masks" / "train" / "a").mkdir(parents=True)
    Image.new("L", (8, 6), 255).save(tmp_path / "masks" / "train" / "a" / "001.png")
    splits = open_dataset(tmp_path)
    assert splits.quarantine == ()
    assert splits.train.mask(0) is None
    assert (splits.train.mask(1).mode, splits.train.mask(1).getpixel((0, 0))) == ("L", 255)
    assert splits.train.subset([1]).mask(0) is not None
    assert splits.train.with_transform(as_tensor).mask(1) is not None


def test_bad_files_go_to_quarantine(photos, monkeypatch):
    (photos / "cats" / "empty.jpg").write_bytes(b"")
    (photos / "cats" / "notes.txt").write_text("not a picture", encoding="utf-8")
    good = (photos / "dogs" / "000.png").read_bytes()
    (photos / "dogs" / "cut.png").write_bytes(good[:-20])
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 5000)
    (photos / "dogs" / "film.mov").write_bytes(bytes(6000))
    write_picture(photos / "outside.png", 7000)
    (photos / "readme.txt").write_text("about", encoding="utf-8")
    for hidden in (".DS_Store", "Thumbs.db", "._000.png"):
        (photos / "cats" / hidden).write_bytes(b"junk")
    (photos / ".git" / "objects").mkdir(parents=True)
    splits = open_dataset(photos)
    found = {item.path: item.reason for item in splits.quarantine}
    assert list(found) == ["cats/empty.jpg", "cats/notes.txt", "dogs/cut.png", "dogs/film.mov", "outside.png"]
    assert "empty" in found["cats/empty.jpg"]
    assert "not a picture" in found["cats/notes.txt"]
    assert "truncated" in found["dogs/cut.png"]
    assert "too large" in found["dogs/film.mov"]
    assert "outside the class folders" in found["outside.png"]
    assert sum(len(getattr(splits, s)) for s in SPLITS) == 31


def test_copies(photos):
    shutil.copy(photos / "cats" / "003.png", photos / "cats" / "copy.png")
    shutil.copy(photos / "cats" / "004.png", photos / "dogs" / "cat.png")
    splits = open_dataset(photos)
    assert splits.quarantine == (
        Quarantined("cats/004.png", "same picture in two classes (also dogs/cat.png)"),
        Quarantined("cats/copy.png", "same picture as cats/003.png"),
        Quarantined("dogs/cat.png", "same picture in two classes (also cats/004.png)"),
    )
    assert_disjoint(splits)


def test_a_copy_in_test_is_taken_out_of_train(tmp_path):
    for start, split in ((0, "train"), (100, "val"), (200, "test")):
        write_folder(tmp_path / split, {"a": 3, "b": 3}, start)
    shutil.copy(tmp_path / "test" / "a" / "000.png", tmp_path / "train" / "a" / "002.png")
    shutil.copy(tmp_path / "test" / "b" / "000.png", tmp_path / "val" / "b" / "001.png")
    splits = open_dataset(tmp_path)
    assert [item.path for item in splits.quarantine] == ["train/a/002.png", "val/b/001.png"]
    assert_disjoint(splits)


def test_other_folders_beside_train_are_mentioned(tmp_path):
    for start, split in ((0, "train"), (100, "val"), (200, "test"), (300, "unlabelled")):
        write_folder(tmp_path / split, {"a": 2, "b": 2}, start)
    assert [item.path for item in open_dataset(tmp_path).quarantine] == ["unlabelled"]


@needs_links
def test_links(photos, tmp_path):
    (photos / "loop").symlink_to(photos)
    (photos / "above").symlink_to(tmp_path)
    (photos / "cats" / "loop").symlink_to(photos / "cats")
    (photos / "cats" / "self.png").symlink_to(photos / "cats" / "self.png")
    (photos / "cats" / "gone.png").symlink_to(tmp_path / "gone.png")
    write_folder(tmp_path / "far", {"birds": 6}, 4000)
    (photos / "birds").symlink_to(tmp_path / "far" / "birds")
    splits = open_dataset(photos)
    assert splits.classes == ("birds", "cats", "dogs")
    assert [item.path for item in splits.quarantine] == ["above", "cats/gone.png", "cats/self.png", "loop"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang(photos):
    os.mkfifo(photos / "cats" / "pipe.png")
    assert open_dataset(photos).quarantine == (Quarantined("cats/pipe.png", "no ordinary file"),)


def test_accents_in_class_names_have_one_form(tmp_path):
    for start, split, name in ((0, "train", "e\u0301te\u0301"), (100, "val", "\u00e9t\u00e9"), (200, "test", "été")):
        write_folder(tmp_path / split, {name: 2, "hiver": 2}, start)
    assert open_dataset(tmp_path).classes == ("hiver", "\u00e9t\u00e9")


# --- folders that cannot be used


def test_no_folder(tmp_path):
    with pytest.raises(CourseError, match=r"does not exist.*pets, hymenoptera, a folder .* or a \.csv file"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(CourseError, match="'~nobody-there' does not exist"):
        open_dataset("~nobody-there")
    with pytest.raises(CourseError, match="is a file"):
        open_dataset(write_picture(tmp_path / "a.png", 1))


def test_fewer_than_two_classes(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match="no class folder"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(CourseError, match="only one class, 'cats'"):
        open_dataset(write_folder(tmp_path / "one", {"cats": 9}))
    write_folder(tmp_path / "zip" / "photos", {"cats": 9, "dogs": 9})
    with pytest.raises(CourseError, match=r"cats, dogs: perhaps you mean '.*photos'"):
        open_dataset(tmp_path / "zip")


def test_an_empty_class(photos):
    (photos / "birds").mkdir()
    with pytest.raises(CourseError) as caught:
        open_dataset(photos)
    assert str(caught.value) == (
        f"The class 'birds' in {str(photos)!r} has no usable picture. Add good pictures of it, or take the class out."
    )
    (photos / "birds" / "a.jpg").write_bytes(b"")
    with pytest.raises(CourseError, match=r"birds/a\.jpg: empty file"):
        open_dataset(photos)


def test_too_few_to_split(tmp_path):
    with pytest.raises(CourseError, match=r"few has 4.*at least 5"):
        open_dataset(write_folder(tmp_path, {"few": 4, "many": 9}))


def test_ready_made_split_without_one_class(tmp_path):
    for start, split in ((0, "train"), (100, "val"), (200, "test")):
        write_folder(tmp_path / split, {"a": 6, "b": 6}, start)
    shutil.rmtree(tmp_path / "val" / "b")
    with pytest.raises(CourseError) as caught:
        open_dataset(tmp_path)
    assert str(caught.value) == (
        f"No usable picture in val/b of {str(tmp_path)!r}: every class needs one in each of train, val and test. "
        "Add some, or leave val or test out altogether: train is split then."
    )


@pytest.mark.parametrize(
    ("elsewhere", "named"), [(("test",), "test"), (("val",), "val"), (("val", "test"), "val and test")]
)
def test_a_class_that_train_does_not_have(tmp_path, elsewhere, named):
    for start, split in ((0, "train"), (100, "val"), (200, "test")):
        write_folder(tmp_path / split, {"a": 6, "b": 6}, start)
    for start, split in enumerate(elsewhere, 3):
        write_folder(tmp_path / split, {"birds": 2}, 100 * start)
    with pytest.raises(CourseError) as caught:
        open_dataset(tmp_path)
    assert str(caught.value) == (
        f"The class 'birds' in {str(tmp_path)!r} has usable pictures in {named}, but none in train: a network cannot "
        f"learn a class that it is never shown. Put pictures of it into train, or take it out of {named}."
    )


def test_a_class_that_train_has_no_good_picture_of(tmp_path):
    for start, split in ((0, "train"), (100, "test")):
        write_folder(tmp_path / split, {"a": 6, "b": 6}, start)
    write_folder(tmp_path / "test", {"birds": 2}, 200)
    (tmp_path / "train" / "birds").mkdir()
    (tmp_path / "train" / "birds" / "x.jpg").write_bytes(b"")
    shutil.copy(tmp_path / "test" / "birds" / "000.png", tmp_path / "train" / "birds" / "y.png")
    reasons = "train/birds/x.jpg: empty file (0 bytes); train/birds/y.png: same picture as test/birds/000.png"
    with pytest.raises(CourseError, match=re.escape(f"in test, but none in train ({reasons}): a network")):
        open_dataset(tmp_path)


def test_a_folder_that_may_not_be_read(photos, monkeypatch):
    def refuse(_self):
        raise PermissionError(13, "Permission denied", str(photos))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CourseError, match="photos cannot be read: Permission denied"):
        open_dataset(photos)


# --- the named data sets


def stub_pets(drawn: list[Path]):
    def write_pets(folder, counts=None, seed=0, size=128, light="day", style="photo"):
        drawn.append(Path(folder))
        counts = counts or {"train": 3, "val": 2, "test": 2}
        number = 1000 * seed
        for split, count in counts.items():
            for label in artist.CLASSES:
                for i in range(count):
                    write_picture(Path(folder) / split / label / f"{i:03d}.png", number)
                    number += 1
                    mask = Path(folder) / "masks" / split / label / f"{i:03d}.png"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("L", (8, 6), 0).save(mask)
        return Path(folder)

    return write_pets


def test_pets(tmp_path, monkeypatch):
    drawn: list[Path] = []
    monkeypatch.setattr(datasets, "write_pets", stub_pets(drawn))
    splits = open_dataset("pets", cache=tmp_path, seed=1)
    assert (splits.name, splits.classes) == ("pets", ("Misty", "Neither", "Tigger"))
    assert [len(getattr(splits, s)) for s in SPLITS] == [9, 6, 6]
    assert all(getattr(splits, s).mask(0).mode == "L" for s in SPLITS)
    open_dataset("pets", cache=tmp_path, seed=1, light="day", size=128)
    open_dataset("pets", cache=tmp_path, seed=1, light="night")
    open_dataset("pets", cache=tmp_path, seed=2)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert "night" in drawn[2].name
    assert all(folder.parent == tmp_path for folder in drawn)


def test_options_are_for_pets_only(tmp_path, photos):
    with pytest.raises(CourseError, match="no option colour; for pets there are counts, size, light, style"):
        open_dataset("pets", cache=tmp_path, colour="red")
    with pytest.raises(CourseError, match="no option light"):
        open_dataset(photos, light="night")


def test_a_path_is_always_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "pets", {"cats": 5, "dogs": 5}).parent)
    assert open_dataset(Path("pets")).classes == ("cats", "dogs")


def test_cache_and_mirror_come_from_the_settings(tmp_path, monkeypatch):
    asked = []

    def fetch(manifest, cache, mirror):
        asked.append((cache, mirror))
        return tmp_path

    monkeypatch.setattr(datasets, "fetch", fetch)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("COURSE_DATA_MIRROR", str(tmp_path / "m"))
    open_dataset("hymenoptera")
    open_dataset("hymenoptera", cache=tmp_path, mirror=tmp_path / "mine")
    assert asked == [(tmp_path / "c", tmp_path / "m"), (tmp_path, tmp_path / "mine")]


def test_hymenoptera_splits_from_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "fetch", lambda *_args: tmp_path)
    splits = open_dataset("hymenoptera", cache=tmp_path)
    assert splits.classes == ("ants", "bees")
    assert splits.train.counts() == {"ants": 98, "bees": 97}
    assert splits.val.counts() == {"ants": 25, "bees": 24}
    assert splits.test.counts() == {"ants": 70, "bees": 83}
    assert {path.parts[-3] for path in splits.test.paths} == {"val"}
    assert {path.parts[-3] for path in splits.train.paths + splits.val.paths} == {"train"}
    assert [item.path for item in splits.quarantine] == ["train/ants/imageNotFound.gif"]
    assert open_dataset("hymenoptera", cache=tmp_path, seed=1).val.paths != splits.val.paths


@pytest.mark.skipif(not REAL_DATA.exists(), reason="../shared/data is not on this machine")
def test_hymenoptera_itself(tmp_path):
    splits = open_dataset("hymenoptera", cache=tmp_path, mirror=REAL_DATA)
    assert_disjoint(splits)
    assert sum(len(getattr(splits, s)) for s in SPLITS) == 397
    picture, label = splits.test[0]
    assert (picture.mode, splits.classes[label]) == ("RGB", "ants")


# --- Splits


def test_summary_and_transforms(photos):
    (photos / "cats" / "empty.jpg").write_bytes(b"")
    (photos / "dogs" / "void.jpg").write_bytes(b"")
    splits = open_dataset(photos)
    lines = splits.summary(quarantine_lines=1).splitlines()
    assert lines[0].split() == ["split", "cats", "dogs", "total"]
    assert [line.split() for line in lines[2:5]] == [["train", "12", "7", "19"], ["val", *"426"], ["test", *"426"]]
    assert lines[5:] == [
        "in quarantine, not used: 2",
        "  cats/empty.jpg: empty file (0 bytes)",
        "  … and 1 more in .quarantine",
    ]
    assert "photos" in splits.source
    assert str(photos) not in splits.source + splits.summary()
    train, evaluate = train_transform(WEIGHTS, "light"), eval_transform(WEIGHTS)
    ready = splits.with_transforms(train, evaluate)
    assert ready.train.transform is train
    assert ready.val.transform is ready.test.transform is evaluate
    assert splits.train.transform is None
