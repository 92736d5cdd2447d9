"""Folders whose names mean something are understood, or asked about in one line; their pictures stay where they belong.

The properties hold for whatever is generated: a folder or list is read right or refused with one line, and nothing that
the reader called test is trained on.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import sys
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from course_utils.common.errors import CourseError
from course_utils.data.folders import list_photos
from course_utils.datasets import Splits, open_csv, open_dataset

SPLITS = ("train", "val", "test")


@functools.cache
def picture(number: int) -> bytes:
    """A PNG whose only pixels spell its number, so that no two are the same."""
    file = io.BytesIO()
    Image.frombytes("L", (4, 1), number.to_bytes(4, "big")).save(file, "PNG")
    return file.getvalue()


def write_tree(root: Path, folders: dict[str, int] | Iterable[str], start: int = 0) -> Path:
    """Write so many pictures (by default 5) into each folder, and all of them different."""
    counts = folders if isinstance(folders, dict) else dict.fromkeys(folders, 5)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(picture(start := start + 1))
    return root


def used(splits: Splits, root: Path) -> dict[str, dict[str, str]]:
    """Split → file → class."""
    found = {}
    for split in SPLITS:
        data = getattr(splits, split)
        names = [path.relative_to(root).as_posix() for path in data.paths]
        found[split] = {name: data.classes[label] for name, label in zip(names, data.labels, strict=True)}
    return found


def message(function, *args) -> str:
    with pytest.raises(CourseError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(args[0]), "PHOTOS")


# --- splits


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("training_set", "test_set"), ("训练集", "测试集"), ("tr", "te")]
)
def test_folders_that_mean_splits(tmp_path, train, test):
    write_tree(tmp_path, [f"{split}/{label}" for split in (train, test) for label in ("cat", "dog")])
    splits = open_dataset(tmp_path)
    assert splits.classes == ("cat", "dog")
    assert set(used(splits, tmp_path)["test"]) == {
        f"{test}/{label}/{i}.png" for label in splits.classes for i in range(5)
    }
    assert not any(name.startswith(test) for split in ("train", "val") for name in used(splits, tmp_path)[split])


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (
            ["train", "test"],
            "'test' and 'train' in 'PHOTOS': no class folders are inside, so nobody knows what the pictures show. Make "
            "one for each class (train/cat, train/dog), or write a .csv list with the columns file, label and split.",
        ),
        (["train", "test/cat", "test/dog"], "'train' in 'PHOTOS': no class folders are inside"),
        (
            ["val/cat", "val/dog", "test/cat", "test/dog"],
            "'PHOTOS' has 'test' and 'val', but nothing to train on. Put a folder 'train' with the same class folders "
            "beside it, or rename the one to learn from: what is missing of val and test is taken out of 'train'.",
        ),
        (
            ["cat", "dog", "test"],
            "In 'PHOTOS', 'test' may be a split or a class, beside 'cat' and 'dog'. For splits, put the folders of the "
            "classes into a folder 'train' beside it; for a class, rename it, for example to 'class test'.",
        ),
        (["bus", "train"], "'train' may be a split or a class, beside 'bus'."),
        (["bus", "train/steam", "train/diesel"], "'train' may be a split or a class, beside 'bus'."),
        (["cat", "dog", "val/cat", "val/dog", "test"], "'test' and 'val' may be a split or a class"),
        (
            ["train/cat", "train/dog", "Training/cat", "Training/dog"],
            "'Training' and 'train' in 'PHOTOS' both mean train. Put them together, or rename what is not part of the "
            "data.",
        ),
        (
            ["cats_train", "cats_test", "dogs_train", "dogs_test"],
            "'cats_test' and 'dogs_test' in 'PHOTOS' both mean test",
        ),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            "'cat/test' in 'PHOTOS' means test, but lies inside 'cat'. Put the splits above the classes (test/cat), or "
            "rename it.",
        ),
        (
            ["train/train", "train/test", "test/train", "test/test"],
            "'test/test' in 'PHOTOS' means test, but lies inside 'test'.",
        ),
        (
            ["mask", "no_mask"],
            "'mask' in 'PHOTOS' may be a class or a folder of masks. Rename it: to 'masks' for masks",
        ),
        (["Cat", "cat", "dog"], "has the classes 'Cat' and 'cat', whose names differ only in case"),
        (["cat", "cat ", "dog"], "has the classes 'cat' and 'cat ', whose names differ only in case, spaces"),
        (["train/Cat", "train/dog", "test/cat", "test/dog"], "has the classes 'Cat' and 'cat'"),
        (["e\u0301te\u0301", "\u00e9t\u00e9", "dog"], r"has the classes 'e\u0301te\u0301' and '\xe9t\xe9'"),
        (["train/cat"], "holds only one class, 'cat'. Give a folder with one sub-folder of pictures per class"),
        (["data/train/cat", "data/test/cat"], "It has the sub-folders test, train: perhaps you mean 'PHOTOS/data'."),
    ],
)
def test_folders_that_are_asked_about(tmp_path, folders, told):
    write_tree(tmp_path, folders)
    if len(os.listdir(tmp_path)) < len({folder.split("/")[0] for folder in folders}):
        pytest.skip("this disk takes two of the names for one")
    assert told in message(open_dataset, tmp_path)


def test_the_advice_for_a_class_called_test_can_be_followed(tmp_path):
    write_tree(tmp_path, ["bus", "class test", "class train"])
    assert open_dataset(tmp_path).classes == ("bus", "class test", "class train")


def test_test_pictures_without_class_folders_are_not_used(tmp_path):
    write_tree(tmp_path, ["train/cat", "train/dog", "test"])
    splits = open_dataset(tmp_path)
    assert [item.path for item in splits.quarantine] == [f"test/{i}.png" for i in range(5)]
    assert all(name.startswith("train/") for split in SPLITS for name in used(splits, tmp_path)[split])


# --- folders that are no classes


def test_masks_beside_classes_are_masks(tmp_path):
    write_tree(tmp_path, ["cat", "dog", "masks/cat", "masks/dog"])
    splits = open_dataset(tmp_path)
    assert (splits.classes, splits.quarantine) == (("cat", "dog"), ())
    assert all(None not in getattr(splits, split).masks for split in SPLITS)


def test_other_folders_of_masks_are_mentioned(tmp_path):
    write_tree(tmp_path, ["cat", "dog", "dog/masks", "Annotations/cat", "masks"])
    splits = open_dataset(tmp_path)
    assert splits.classes == ("cat", "dog")
    assert {item.path for item in splits.quarantine} == {"Annotations", "dog/masks", "masks"}
    assert sum(map(len, used(splits, tmp_path).values())) == 10


JUNK = (
    *("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__", "__MACOSX"),
    *(".thumbnails", ".git", ".ipynb_checkpoints"),
)


def test_folders_of_systems_are_no_classes_at_any_depth(tmp_path):
    write_tree(
        tmp_path, ["cat", "dog", *JUNK, *(f"cat/{junk}" for junk in JUNK), *(f"dog/2024/{junk}" for junk in JUNK)]
    )
    listing = list_photos(tmp_path)
    assert (listing.classes, len(listing.photos), listing.quarantine) == (["cat", "dog"], 10, [])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="this system has no names that are not UTF-8")
def test_names_that_are_not_utf_8(tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    write_tree(tmp_path, [latin, "tee"])
    (tmp_path / latin / os.fsdecode(b"\xe9.png")).write_bytes(b"")
    os.rename(tmp_path / latin / "0.png", tmp_path / latin / os.fsdecode(b"\xff.png"))
    splits = open_dataset(tmp_path)
    assert (splits.classes, splits.summary().isprintable()) == ((r"caf\udce9", "tee"), False)
    assert splits.summary().encode()
    assert [item.path for item in splits.quarantine] == [r"caf\udce9/\udce9.png"]
    assert all(getattr(splits, split)[0][0].size == (4, 1) for split in SPLITS)
    inside = tmp_path / latin / "list.csv"
    inside.write_text("file,label\n1.png,x\n2.png,y\n3.png,y\nlost.png,y\n", encoding="utf-8")
    assert message(open_dataset, inside).encode()
    (tmp_path / "list.csv").write_text("file,label\n1,x\ntee/2.png,y\ntee/3.png,y\n", encoding="utf-8")
    assert r"fits 2 files: caf\udce9/1.png, tee/1.png." in message(open_dataset, tmp_path / "list.csv")


# --- whatever is generated

reproducible = settings(derandomize=True, deadline=None, max_examples=40, database=None)
LETTERS = st.characters(codec="utf-8", categories=("L", "N", "S"), exclude_characters="ſ<>|")
WORDS = (
    "black cat",
    "Zürich",
    "猫",
    "собака",
    "हाथी",
    "كلب",
    "$x^2$",
    "a & b",
    "tr",
    "17",
    "bullet train",
    "🐈",
    "no_mask",
)
NAMES = st.one_of(st.sampled_from(WORDS), st.text(LETTERS, min_size=1, max_size=12)).map(
    lambda name: unicodedata.normalize("NFC", name)
)
SPLIT_FOLDERS = {
    "train": ("train", "training", "train_set", "TrainData", "训练集", "entrenamiento", "train2017"),
    "val": ("val", "valid", "validation", "dev", "Validierung", "验证集", "val2017"),
    "test": ("test", "testing", "test-set", "TestImages", "测试集", "prueba", "test2017"),
}
CASES = st.sampled_from((str, str.upper, str.capitalize, str.lower))


def same(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


@st.composite
def split_words(draw) -> dict[str, str]:
    return {split: draw(CASES)(draw(st.sampled_from(words))) for split, words in SPLIT_FOLDERS.items()}


CLASSES = st.lists(NAMES.filter(lambda name: len(name.encode()) < 100), min_size=2, max_size=3, unique_by=same)
OTHER_FOLDERS = st.lists(st.sampled_from((*JUNK, "masks/0", ".hidden")), max_size=3, unique=True)


@reproducible
@given(
    CLASSES, split_words(), st.sampled_from(["", "train", "train val", "train test", "train val test"]), OTHER_FOLDERS
)
def test_a_clear_folder_is_read_right(classes, words, layout, others):
    splits = {words[split]: split for split in layout.split()} or {"": "any"}
    good = {f"{folder}/{label}".lstrip("/"): (split, label) for folder, split in splits.items() for label in classes}
    with tempfile.TemporaryDirectory() as place:
        root = write_tree(Path(place), [*good, *others, *(f"{next(iter(good))}/{junk}" for junk in others)])
        broken = root / next(iter(good)) / "broken.jpg"
        broken.write_bytes(b"no picture")
        (root / "loose.png").write_bytes(picture(10_000))
        data = open_dataset(root)
        found = used(data, root)
        assert set(data.classes) == set(classes)
        aside = {item.path for item in data.quarantine if not item.path.endswith("masks")}
        assert aside == {"loose.png", broken.relative_to(root).as_posix()}
        assert {n for names in found.values() for n in names} == {
            f"{place}/{i}.png" for place in good for i in range(5)
        }
        for split, names in found.items():
            for name, label in names.items():
                said, folder_label = good[name.rpartition("/")[0]]
                assert label == folder_label
                assert said in ("any", split) or (said == "train" and split not in layout.split())


PARTS = st.sampled_from((
    *("cat", "dog", "Cat", "bird", "train", "Training", "test", "Testing", "TEST_SET", "val", "eval", "masks", "mask"),
    *("tr", "te", "birds_train", "birds_test", "2024", "images", "@eaDir", "labels", "测试集"),
))  # fmt: skip
TEST_WORDS = {"test", "Testing", "TEST_SET", "测试集", "birds_test"}


BEGINNINGS = st.sampled_from((
    *((), ("cat", "bird"), ("train/cat", "train/bird"), ("tr/cat", "tr/bird", "te/cat", "te/bird")),
    ("birds_train/cat", "birds_train/bird", "birds_test/cat", "birds_test/bird"),
))  # fmt: skip


@settings(reproducible, max_examples=120)
@given(BEGINNINGS, st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=4))
def test_whatever_a_folder_holds_nothing_called_test_is_trained_on(beginning, folders):
    with tempfile.TemporaryDirectory() as place:
        root = write_tree(Path(place), [*beginning, *folders])
        try:
            data = open_dataset(root)
        except CourseError as error:
            assert str(error) and "\n" not in str(error)
            return
        assert not set(data.classes) & {"test", "Testing", "TEST_SET", "测试集", "masks", "mask", "@eaDir", "labels"}
        for split, names in used(data, root).items():
            for name, label in names.items():
                parts = name.split("/")[:-1]
                assert label in parts
                assert not {"masks", "@eaDir", "labels"} & set(parts)
                # "birds_test" says something only beside "birds_train"; alone it is the name of a class.
                assert split == "test" or label == "birds_test" or not TEST_WORDS & set(parts)
                assert split != "train" or "val" not in parts


@st.composite
def lists(draw) -> tuple[str, bool, list[tuple[str, str, str]]]:
    """The text of a list, whether it has a column of splits, and its rows: number of a file, label, split."""
    labels = draw(CLASSES.filter(lambda names: all(name.strip() == name for name in names)))
    words = draw(split_words())
    told = draw(st.booleans())
    rows = [(f"{i}", labels[i % len(labels)], ("train", "train", "val", "test")[i // 3 % 4]) for i in range(24)]
    heading = draw(CASES)(draw(st.sampled_from(["split", "set", "subset", "partition", "phase", "fold", "xyz"])))
    head = [draw(CASES)("file"), draw(CASES)("label"), heading]
    before, ending = draw(st.sampled_from(["", "sub/", "sub\\"])), draw(st.sampled_from(["", ".png"]))
    text = io.StringIO()
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(text, delimiter=(mark := draw(st.sampled_from(",;\t|"))), quoting=quoting)
    writer.writerow(head if told else head[:2])
    for name, label, split in rows:
        writer.writerow([f"{before}{name}{ending}", label, words[split]][: 3 if told else 2])
    start = draw(st.sampled_from(["", "\ufeff", f"sep={mark}\n"]))
    return start + text.getvalue(), told, rows


@reproducible
@given(lists())
def test_a_clear_list_is_read_right(made):
    text, told, rows = made
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_tree(root, {"sub": 24})
        (root / "list.csv").write_bytes(text.encode())
        found = used(open_csv(root / "list.csv"), root)
        assert {n: label for names in found.values() for n, label in names.items()} == {
            f"sub/{name}.png": label for name, label, _ in rows
        }
        if told:
            assert {n: split for split, names in found.items() for n in names} == {
                f"sub/{name}.png": split for name, _, split in rows
            }


CELLS = ("train", "Training", "val", "eval", "test", "TEST", "Test set", "测试集", "holdout", "te", "x", "", "0", "1")
TEST_CELLS = {"test", "TEST", "Test set", "测试集"}
HEADINGS = ("split", "Split", "set", "Subset", "fold", "is_test", "usage", "remark", "dataset")
LIST_NAMES = ("0.png", "1", "sub\\2.png", "C:\\photos\\3.png", "/home/ann/4.png", "test/5.png", "lost.png", "a\nb.png")


@settings(reproducible, max_examples=120)
@given(
    st.sampled_from([("train", "test"), ("train",), ()]),
    st.lists(st.sampled_from(CELLS), min_size=1, max_size=2),
    st.sampled_from(HEADINGS),
    st.one_of(st.just([]), st.lists(st.sampled_from(LIST_NAMES), max_size=1)),
    st.data(),
)
def test_whatever_a_list_says_nothing_called_test_is_trained_on(usual, more, heading, names, data):
    with tempfile.TemporaryDirectory() as place:
        root = write_tree(Path(place), {"sub": 20, "test": 6})
        chosen = data.draw(st.lists(st.sampled_from([*usual, *more]), min_size=20, max_size=20))
        rows = [[f"sub/{i}.png", "xy"[i % 2], cell] for i, cell in enumerate(chosen)]
        rows += [[name, "x", chosen[0]] for name in names]
        with open(root / "list.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["file", "label", heading], *rows])
        try:
            found = used(open_dataset(root / "list.csv"), root)
        except CourseError as error:
            assert str(error) and "\n" not in str(error)
            return
        called = {name.replace("\\", "/"): cell for name, _, cell in rows}
        for split in ("train", "val"):
            assert not [name for name in found[split] if called.get(name) in TEST_CELLS]
        if not any(cell in TEST_CELLS for cell in chosen):
            assert not [name for split in ("train", "val") for name in found[split] if name.startswith("test/")]
