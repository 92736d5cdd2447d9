"""A list of files and labels becomes the same splits as folders do, or an error that names the lines."""

from __future__ import annotations

import csv
import os
import re
import shutil
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from course_utils.common.errors import CourseError
from course_utils.data.csv_labels import LabelledFile, read_labels
from course_utils.datasets import PhotoDataset, Quarantined, Splits, open_csv, open_dataset
from course_utils.settings import check_dataset, load_settings

SPLITS = ("train", "val", "test")


def write_picture(path: Path, number: int) -> Path:
    """A small picture whose pixels spell its number, so that no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0, :4, 0] = list(number.to_bytes(4, "big"))
    Image.fromarray(pixels).save(path)
    return path


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return path


def listed(splits: Splits) -> dict[str, dict[str, str]]:
    """Split → file → label."""
    return {
        split: {
            "/".join(path.parts[-2:]): dataset.classes[label]
            for path, label in zip(dataset.paths, dataset.labels, strict=True)
        }
        for split in SPLITS
        for dataset in [getattr(splits, split)]
    }


def pairs(rows: list[LabelledFile]) -> list[tuple[str, str]]:
    return [(row.name, row.label) for row in rows]


def message(function, *args, **options) -> str:
    with pytest.raises(CourseError) as caught:
        function(*args, **options)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two folders of pictures, of which the second has no class's name: cats/0.png …, others/0.png …."""
    root = tmp_path / "photos"
    for i in range(7):
        write_picture(root / "cats" / f"{i}.png", i)
        write_picture(root / "others" / f"{i}.png", 100 + i)
    return root


@pytest.fixture
def flat(tmp_path) -> Path:
    """a.png, b.png, c.png, d.png in one folder."""
    for i, name in enumerate("abcd"):
        write_picture(tmp_path / "flat" / f"{name}.png", i)
    return tmp_path / "flat"


def all_rows(folder: Path) -> list[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return [f"{name},{'cat' if name.startswith('cats') else 'dog'}" for name in names]


# --- lists of every kind


def test_rows_and_files(flat):
    path = write_list(flat / "labels.csv", "file,label", "b.png,cat", "a.png,dog", "", "c.png,cat")
    assert read_labels(path) == [
        LabelledFile(flat / "b.png", "b.png", "cat", "", 2),
        LabelledFile(flat / "a.png", "a.png", "dog", "", 3),
        LabelledFile(flat / "c.png", "c.png", "cat", "", 5),
    ]
    assert read_labels(str(path)) == read_labels(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_delimiters_newlines_and_marks(flat, delimiter, newline, start):
    lines = [delimiter.join(row) for row in (("file", "label"), ("a.png", "été"), ("b.png", "hiver"), ("c.png", "été"))]
    (flat / "labels.csv").write_bytes(start + newline.join(lines).encode())
    rows = read_labels(flat / "labels.csv")
    assert pairs(rows) == [("a.png", "été"), ("b.png", "hiver"), ("c.png", "été")]
    assert [row.line for row in rows] == [2, 3, 4]


def test_quotes_spaces_and_empty_rows(flat):
    shutil.copy(flat / "a.png", flat / 'a, "the" first.png')
    path = write_list(
        flat / "labels.csv",
        "label , file,,",
        '"big, cat", "a, ""the"" first.png",,',
        "dog,  b.png",
        ",,",
        "dog,c.png,",
        "",
    )
    assert pairs(read_labels(path)) == [('a, "the" first.png', "big, cat"), ("b.png", "dog"), ("c.png", "dog")]


def test_a_text_over_two_lines_keeps_the_count(flat):
    path = write_list(flat / "labels.csv", "file,label,remark", 'a.png,x,"two', 'lines"', "b.png,y,", "c.png,y,")
    assert [row.line for row in read_labels(path)] == [2, 4, 5]


def test_labels_are_words_with_their_zeros(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,007", "b.png,7", "c.png,7", "d.png,7.0")
    assert [row.label for row in read_labels(path)] == ["007", "7", "7", "7.0"]


def test_other_columns_and_another_folder(flat, tmp_path):
    path = write_list(tmp_path / "list.csv", "id;split;picture;kind", "1;9;a;x", "2;9;b;y", "3;9;c;y")
    rows = read_labels(path, flat, file_column="picture", label_column="kind", split_column=None)
    assert [(row.path, row.label, row.split) for row in rows] == [
        (flat / "a.png", "x", ""),
        (flat / "b.png", "y", ""),
        (flat / "c.png", "y", ""),
    ]


def test_splits_have_the_names_that_folders_may_have(flat):
    path = write_list(
        flat / "labels.csv", "file,label,split", "a.png,x,Train", "b.png,y,VALID", "c.png,y,validation", "d.png,x,test"
    )
    assert [row.split for row in read_labels(path)] == ["train", "val", "val", "test"]
    assert [row.split for row in read_labels(path, split_column=None)] == [""] * 4
    write_list(path, "file,label,split", "a.png,x,", "b.png,y,", "c.png,y,")
    assert [row.split for row in read_labels(path)] == [""] * 3


def test_names_without_ending_with_backslash_or_in_a_subfolder(folder):
    write_picture(folder / "more" / "x.y.png", 500)
    path = write_list(
        folder / "labels.csv", "file,label", "cats/0,a", "cats\\1.png,a", "x.y,b", "others/../cats/2.png,b",
        str(folder / "cats" / "3.png") + ",b",
    )  # fmt: skip
    assert [row.name for row in read_labels(path)] == [
        "cats/0.png", "cats/1.png", "more/x.y.png", "cats/2.png", "cats/3.png",
    ]  # fmt: skip


def test_an_exact_name_wins_and_masks_are_not_searched(flat):
    write_picture(flat / "deeper" / "a.png", 50)
    write_picture(flat / "masks" / "e.png", 51)
    write_picture(flat / "deeper" / "e.jpg", 52)
    (flat / "b.txt").write_text("about b", encoding="utf-8")
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "a,x", "b,y", "e,y")
    assert [row.name for row in read_labels(path)] == ["a.png", "b.png", "deeper/e.jpg"]


def test_accents_have_one_form(flat):
    write_picture(flat / "e\u0301te\u0301.png", 60)
    path = write_list(flat / "labels.csv", "file,label", "\u00e9t\u00e9.png,\u00e9", "b.png,e\u0301", "c.png,x")
    assert [row.label for row in read_labels(path)] == ["\u00e9", "\u00e9", "x"]


def test_a_repeated_row_counts_once(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,y", "a,x", "c.png,y")
    assert pairs(read_labels(path)) == [("a.png", "x"), ("b.png", "y"), ("c.png", "y")]


CELL = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8).map(
    lambda text: unicodedata.normalize("NFC", text)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(CELL | st.just("a, b;c"), min_size=2, max_size=2, unique=True), delimiter=st.sampled_from(",;\t")
)
def test_what_pythons_csv_writes_is_read_back(flat, labels, delimiter):
    rows = [("a.png", labels[0]), ("b.png", labels[1]), ("c.png", labels[1])]
    with open(flat / "labels.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("file", "label"), *rows])
    assert pairs(read_labels(flat / "labels.csv")) == rows


# --- the columns


def test_a_label_column_that_is_not_there(flat):
    path = write_list(flat / "labels.csv", "file,labels,size", "a.png,x,1", "b.png,y,1")
    assert message(read_labels, path) == (
        f"{str(path)!r} has no column 'label'; its first line gives the columns 'file', 'labels', 'size'. Perhaps you "
        "mean 'labels'. Put the right headings into the first line; in Python, open_csv takes label_column=..."
    )
    assert message(open_csv, path, label_column="SIZES").endswith(
        "you mean 'size'. Put the right headings into the first line; in Python, open_csv takes label_column=..."
    )


def test_the_only_other_column_is_suggested_and_a_far_one_is_not(flat):
    path = write_list(flat / "labels.csv", "file;class", "a.png;x", "b.png;y")
    assert "Perhaps you mean 'class'." in message(read_labels, path)
    write_list(path, "file;species;size", "a.png;x;1", "b.png;y;1")
    assert "Perhaps" not in message(read_labels, path)


def test_a_file_column_that_is_not_there(flat):
    path = write_list(flat / "labels.csv", "filename,label", "a.png,x", "b.png,y")
    assert message(read_labels, path) == (
        f"{str(path)!r} has no column 'file'; its first line gives the columns 'filename', 'label'. Perhaps you mean "
        "'filename'. Put the right headings into the first line; in Python, open_csv takes file_column=..."
    )


def test_a_list_without_headings(flat):
    path = write_list(flat / "labels.csv", "a.png,x", "b.png,y", "c.png,y")
    assert "its first line gives the columns 'a.png', 'x'." in message(read_labels, path)


def test_a_split_column_that_was_asked_for_has_to_be_there(flat):
    path = write_list(flat / "labels.csv", "file,label,subset", "a.png,x,train", "b.png,y,test", "c.png,y,test")
    assert "has no column 'fold'" in message(read_labels, path, split_column="fold")
    assert [row.split for row in read_labels(path, split_column="subset")] == ["train", "test", "test"]


def test_two_columns_of_one_name(flat):
    path = write_list(flat / "labels.csv", "file,label,label", "a.png,x,1", "b.png,y,1")
    assert message(read_labels, path) == f"{str(path)!r} has 2 columns 'label'. Rename the others."


# --- the cells


def test_an_empty_label_or_name(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,", "c.png", "d.png,y")
    assert message(read_labels, path) == (
        f"The column 'label' of {str(path)!r} is empty in 2 rows: line 3, line 4. Fill it in, or take these rows out."
    )
    write_list(path, "file,label", "a.png,x", " ,y", *["c.png,y"] * 6)
    assert message(read_labels, path) == (
        f"The column 'file' of {str(path)!r} is empty in 1 row: line 3. Fill it in, or take these rows out."
    )
    write_list(path, "file,label", "a.png,x", *["b.png,"] * 7)
    assert "in 7 rows: line 3, line 4, line 5, line 6, line 7 and 2 more." in message(read_labels, path)


def test_a_row_that_is_too_long(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,black, white", "c.png,y")
    assert message(read_labels, path) == (
        f"Line 3 of {str(path)!r} has 3 cells, the first line 2 headings. Put a text that contains the separator "
        "between double quotes."
    )


@pytest.mark.parametrize(
    ("heading", "cells", "splits"),
    [
        ("Split", ("TRAIN", "valid", "Testing"), ("train", "val", "test")),
        ("set", ("training set", "dev", "test_set"), ("train", "val", "test")),
        ("SUBSET", ("Training", "Validierung", "Test"), ("train", "val", "test")),
        ("partition", ("entrenamiento", "prueba", "prueba"), ("train", "test", "test")),
        ("fold", ("train", "eval", "test"), ("train", "val", "test")),
        ("数据", ("训练集", "验证集", "测试集"), ("train", "val", "test")),
        ("bucket", ("tr", "te", "te"), ("train", "test", "test")),
        ("language", ("tr", "tr", "de"), ("", "", "")),
        ("vehicle", ("train", "bus", "car"), ("", "", "")),
        ("set", ("1", "2", "2"), ("", "", "")),
    ],
)
def test_a_column_that_tells_the_split_is_found(flat, heading, cells, splits):
    rows = [f"{name}.png,{label},{cell}" for name, label, cell in zip("abc", "xyy", cells, strict=True)]
    path = write_list(flat / "labels.csv", f"File,LABEL,{heading}", *rows)
    assert tuple(row.split for row in read_labels(path)) == splits
    assert {row.split for row in read_labels(path, split_column=None)} == {""}


@pytest.mark.parametrize(
    ("heading", "cells", "told"),
    [
        ("fold", "012", "'0' (line 2), '1' (line 3), '2' (line 4)"),
        ("Subset", ("train", "x", "test"), "'x' (line 3)"),
        ("set", ("train", "", "test"), "'' (line 3)"),
        ("phase", ("day", "night", "test"), "'day' (line 2), 'night' (line 3)"),
        ("is_valid", ("False", "True", "False"), "'False' (line 2), 'True' (line 3)"),
        ("eval", ("train", "val", "?"), "'?' (line 4)"),
    ],
)
def test_a_split_that_is_not_understood_is_refused(flat, heading, cells, told):
    rows = [f"{name}.png,{label},{cell}" for name, label, cell in zip("abc", "xyy", cells, strict=True)]
    path = write_list(flat / "labels.csv", f"file,label,{heading}", *rows)
    assert f"The column {heading!r} of {str(path)!r} holds {told}; it may hold train, val" in message(
        open_dataset, path
    )


def test_two_columns_that_tell_splits_have_to_agree(flat):
    path = write_list(
        flat / "labels.csv", "file,label,split,set", "a.png,x,train,Train", "b.png,y,test,Test", "c.png,y,test,Test"
    )
    assert [row.split for row in read_labels(path)] == ["train", "test", "test"]
    write_list(path, "file,label,split,set", "a.png,x,train,Train", "b.png,y,train,Test", "c.png,y,test,Test")
    assert message(read_labels, path) == (
        f"The columns 'split' and 'set' of {str(path)!r} both tell splits, and not the same. Take one of them out; in "
        "Python, open_csv takes split_column=..."
    )


def test_folders_tell_the_split_where_no_column_does(tmp_path):
    names = [f"{split}/{label}/{i}.png" for split in ("Training", "Testing") for label in "xy" for i in range(6)]
    for i, name in enumerate(names):
        write_picture(tmp_path / name, i)
    rows = [f"{name},{name.split('/')[1]}" for name in names]
    path = write_list(tmp_path / "labels.csv", "file,label", *rows)
    assert {row.name: row.split for row in read_labels(path)} == {
        name: "test" if name.startswith("Testing") else "train" for name in names
    }
    assert len(open_csv(path, split_column=None).test) == 4
    write_picture(tmp_path / "x.png", 99)
    write_list(path, "file,label", *rows, "x.png,x")
    assert (
        "names files in 'Testing', which means val or test, and others whose split it does not tell: x.png (line 26)."
        in message(open_csv, path)
    )


def test_folders_of_a_class_that_is_called_test_tell_no_split(tmp_path):
    names = [f"{label}/{i}.png" for label in ("test", "train", "bus") for i in range(5)]
    for i, name in enumerate(names):
        write_picture(tmp_path / name, i)
    path = write_list(tmp_path / "labels.csv", "file,label", *(f"{name},{name.split('/')[0]}" for name in names))
    assert open_csv(path).classes == ("bus", "test", "train")


def test_labels_that_look_the_same_are_asked_about(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,cat", "b.png,Cat", "c.png,dog")
    assert message(read_labels, path) == (
        f"{str(path)!r} has the classes 'Cat' and 'cat', whose names differ only in case, spaces or the form of "
        "letters. If they are one class, give them one name; if not, rename one of them."
    )


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;"])
def test_the_first_line_of_excel(flat, first):
    path = write_list(flat / "labels.csv", first, "file;label;remark", "a.png;x,1;", "b.png;y;", "c.png;y;")
    assert pairs(read_labels(path)) == [("a.png", "x,1"), ("b.png", "y"), ("c.png", "y")]
    assert [row.line for row in read_labels(path)] == [3, 4, 5]


def test_columns_between_bars(flat):
    path = write_list(flat / "labels.csv", "file|label", "a.png|x", "b.png|y", "c.png|y")
    assert pairs(read_labels(path)) == [("a.png", "x"), ("b.png", "y"), ("c.png", "y")]


@pytest.mark.parametrize("prefix", ["/home/ann/photos/", "C:\\Users\\Ann\\", "data/", "../pictures/"])
def test_names_that_start_with_a_folder_of_another_machine(folder, prefix):
    path = write_list(folder / "labels.csv", "file,label", *(prefix + row for row in all_rows(folder)))
    assert message(open_csv, path).endswith(
        f"Without {prefix!r} in front 'cats/0.png' is there: take that out of the names in the list."
    )


@pytest.mark.parametrize("name", ["a\0b/c.png", "a" * 5000, "x/" * 2000 + "y", "two\nlines.png"])
def test_names_that_no_file_can_have(flat, name):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", f'"{name}",y', "c.png,y")
    told = message(open_csv, path)
    assert "1 file of the 3" in told and "\n" not in told


def test_labels_of_five_thousand_digits(flat):
    path = write_list(flat / "labels.csv", "file,label", f"a.png,{'1' * 5000}", "b.png,2", "c.png,2")
    assert "Too few pictures" in message(open_csv, path)


def test_an_unknown_split(flat):
    path = write_list(flat / "labels.csv", "file,label,split", "a.png,x,train", "b.png,y,3", "c.png,y,", "d.png,y,test")
    assert message(read_labels, path) == (
        f"The column 'split' of {str(path)!r} holds '3' (line 3), '' (line 4); it may hold train, val and "
        "test. Correct it, or take the column out if it means something else; in Python, open_csv takes "
        "split_column=None to leave it aside."
    )


def test_fewer_than_two_classes(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,x")
    assert message(read_labels, path) == (
        f"The column 'label' of {str(path)!r} holds only one label, 'x': two or more are needed."
    )


def test_as_many_labels_as_rows(flat):
    path = write_list(flat / "labels.csv", "file,label,kind", "a.png,1,x", "b.png,2,y", "c.png,3,y")
    assert message(read_labels, path) == (
        f"The column 'label' of {str(path)!r} has 3 different labels in 3 rows, such as '1' and '2'; a class needs "
        "several pictures. Is it the wrong column? There are 'file', 'label', 'kind'; give the right one the "
        "heading 'label', or in Python, open_csv takes label_column=..."
    )


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["a.png,x", "b.png,y", "c.png,y", "a,y"], "it is labelled 'x' in line 2 and 'y' in line 5"),
        (
            ["a.png,x,test", "b.png,y,test", "c.png,y,test", "a,x,train"],
            "it is in 'test' in line 2 and 'train' in line 5",
        ),
    ],
    ids=["label", "split"],
)
def test_the_same_file_twice(flat, lines, told):
    path = write_list(flat / "labels.csv", "file,label,split" if "test" in lines[0] else "file,label", *lines)
    assert message(read_labels, path) == (
        f"{str(path)!r} names the file 'a.png' twice: {told}. Take one of the rows out."
    )


def test_labels_that_slipped_by_a_row_are_noticed(folder):
    names = [f"{label}/{i}.png" for label in ("cats", "others") for i in range(7)]
    labels = ["others", *["cats"] * 7, *["others"] * 6]
    path = write_list(folder / "labels.csv", "file,label", *map(",".join, zip(names, labels, strict=True)))
    with pytest.warns(UserWarning) as caught:
        rows = read_labels(path)
    assert str(caught[0].message) == (
        f"In {str(path)!r}, 2 of 14 labels differ from the folder that the file lies in: cats/0.png is labelled "
        "'others' (line 2), others/0.png is labelled 'cats' (line 9). The labels of the list are used; check that "
        "no row has slipped."
    )
    assert caught[0].filename == __file__
    assert [row.label for row in rows] == labels
    labels = [name.partition("/")[0] for name in names]
    write_list(path, "file,label", *map(",".join, zip(names, labels, strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_labels(path)
        read_labels(write_list(folder / "dogs.csv", "file,label", *all_rows(folder)))


# --- the files


def test_a_file_that_is_missing(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,y", "lost.png,y", "c.png,y")
    assert message(open_csv, path) == (
        f"1 file of the 4 that {str(path)!r} names is not in the folder {str(flat)!r}: lost.png (line 4). Put "
        "what is missing there, correct the list, or take these rows out of it."
    )


def test_many_files_that_are_missing(flat):
    lost = [f"lost{i}.png,y" for i in range(7)]
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", *lost)
    assert message(read_labels, path) == (
        f"7 files of the 8 that {str(path)!r} names are not in the folder {str(flat)!r}: lost0.png (line 3), lost1.png "
        "(line 4), lost2.png (line 5), lost3.png (line 6), lost4.png (line 7) and 2 more. Put what is missing "
        "there, correct the list, or take these rows out of it."
    )


def test_no_name_is_a_file(flat):
    path = write_list(flat / "labels.csv", "file,label,owner", "17,x,Jo", "18,y,Jo", "19,y,Al")
    assert message(read_labels, path) == (
        f"None of the 3 names in the column 'file' of {str(path)!r} is a file in the folder {str(flat)!r}. The first "
        "name is '17', a picture in the folder is called 'a.png'. Probably it is the wrong column or the wrong folder: "
        "the columns are 'file', 'label', 'owner'. Put the list beside the pictures, with the right headings; in "
        "Python, open_csv takes file_column=... and folder=..."
    )


def test_another_column_does_name_files(flat):
    path = write_list(flat / "labels.csv", "file,label,photo", "17,x,a", "18,y,b", "19,y,c")
    assert message(read_labels, path).endswith(
        "The column 'photo' does name files: give it the heading 'file', or in Python, call open_csv with "
        "file_column='photo'."
    )


def test_a_folder_without_pictures(flat, tmp_path):
    (tmp_path / "empty").mkdir()
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,y", "c.png,y")
    assert "The first name is 'a.png', there is no picture in the folder." in message(
        read_labels, path, tmp_path / "empty"
    )
    assert message(read_labels, path, tmp_path / "nowhere") == (
        f"The folder of the pictures, {str(tmp_path / 'nowhere')!r}, does not exist or is no folder."
    )


def test_a_name_that_fits_two_files(flat):
    Image.new("RGB", (8, 6)).save(flat / "a.jpg")
    path = write_list(flat / "labels.csv", "file,label", "b.png,x", "a,y", "c.png,y")
    assert message(read_labels, path) == (
        f"'a' in line 3 of {str(path)!r} fits 2 files: a.jpg, a.png. Write the whole path from the folder, with the "
        "ending."
    )


def test_a_bare_name_in_two_subfolders(folder):
    path = write_list(folder / "labels.csv", "file,label", "cats/1.png,a", "0.png,b", "cats/2.png,a")
    assert "fits 2 files: cats/0.png, others/0.png." in message(read_labels, path)


@pytest.mark.parametrize("name", ["../secret.png", "x/../../secret.png", "{outside}", "..\\secret.png", "..", "/"])
def test_no_file_outside_of_the_folder(flat, tmp_path, name):
    name = name.format(outside=write_picture(tmp_path / "secret.png", 9))
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", f"{name},y", "c.png,y")
    assert message(read_labels, path) == (
        f"{str(path)!r} names 1 file outside of the folder {str(flat)!r}: {name} (line 3). Only files in it are read: "
        "put the list into a folder that holds all of them; in Python, open_csv takes folder=..."
    )


def test_the_folder_itself_is_no_file(flat, tmp_path):
    write_picture(tmp_path / "flat.png", 9)
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", ".,y", "c.png,y")
    assert "1 file of the 3" in message(read_labels, path)


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs special rights on Windows")
def test_dots_are_worked_out_before_links(flat, tmp_path):
    write_picture(tmp_path / "far" / "secret.png", 9)
    (tmp_path / "far" / "inner").mkdir()
    (flat / "link").symlink_to(tmp_path / "far" / "inner")
    path = write_list(flat / "labels.csv", "file,label", "link/../a.png,x", "link/../secret.png,y", "c.png,y")
    assert "1 file of the 3" in message(read_labels, path)  # "link/../secret.png" means "secret.png", which is missing


# --- files that are no list


def test_lists_that_cannot_be_read(flat):
    path = flat / "labels.csv"
    assert message(read_labels, path) == (
        f"The list {str(path)!r} cannot be read: No such file or directory. Give a .csv file with the columns file and "
        "label."
    )
    for content in (b"", b"\n\n", b"file,label\n", b"file,label\n,\n"):
        path.write_bytes(content)
        assert message(read_labels, path) == (
            f"{str(path)!r} holds no rows: it needs a line of headings, then a line for each picture."
        )
    path.write_bytes("file,label\na.png,x\nb.png,für\n".encode("cp1252"))
    assert message(read_labels, path) == (
        f'{str(path)!r} is not in UTF-8 (byte 0xfc in line 3). Save it as UTF-8; in Excel: "CSV UTF-8".'
    )
    path.write_bytes(b'file,label\na.png,x\nb.png,"y\n')
    assert message(read_labels, path) == (
        f"{str(path)!r} cannot be read as CSV from line 3 on (unexpected end of data). A text that begins with a "
        "double quote has to end with one."
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.booleans())
def test_whatever_a_file_holds_the_answer_is_rows_or_the_one_error(flat, junk, headed):
    (flat / "labels.csv").write_bytes(b"file,label\na.png,x\n" * headed + junk)
    try:
        assert read_labels(flat / "labels.csv")
    except CourseError as error:
        assert str(error)


# --- splits


def test_a_list_gives_the_same_splits_as_folders(folder):
    shutil.move(folder / "others", folder / "dogs")
    by_folder = open_dataset(folder, seed=4)
    (folder / "labels.csv").write_text(
        "file,label\n" + "".join(f"{path.relative_to(folder)},{path.parent.name}\n" for path in folder.rglob("*.png")),
        encoding="utf-8",
    )
    by_list = open_csv(folder / "labels.csv", seed=4)
    assert (by_list.classes, by_list.quarantine) == (by_folder.classes, ()) == (("cats", "dogs"), ())
    assert listed(by_list) == listed(by_folder)
    assert listed(open_csv(folder / "labels.csv", seed=5)) != listed(by_list)
    assert isinstance(by_list.train, PhotoDataset)
    assert by_list.train[0][0].size == (8, 6)
    assert (by_list.name, by_list.source) == ("labels.csv", "your own pictures, from the list 'labels.csv'")
    assert listed(open_dataset(str(folder / "labels.csv"), seed=4)) == listed(by_list)


def test_fractions_of_a_list(folder):
    path = write_list(folder / "labels.csv", "file,label", *all_rows(folder))
    assert len(open_csv(path, test_fraction=0.4).test) == len(open_dataset(path, test_fraction=0.4).test) == 6
    for function in (open_csv, open_dataset):
        assert "A fraction of 0.5 was given" in message(function, path, val_fraction=0.5)
    assert "has no option light" in message(open_dataset, path, light="night")


def test_the_split_of_the_list_is_kept_and_completed(folder):
    rows = all_rows(folder)
    said = [f"{row},{('train', 'train', 'train', 'train', 'val', 'test', 'test')[i % 7]}" for i, row in enumerate(rows)]
    path = write_list(folder / "labels.csv", "file,label,split", *said)
    splits = open_csv(path)
    assert {split: sorted(files) for split, files in listed(splits).items()} == {
        split: sorted(row.split(",")[0] for row in said if row.endswith(split)) for split in SPLITS
    }
    write_list(path, "file,label,split", *(row.replace(",val", ",train") for row in said))
    assert [getattr(open_csv(path), split).counts() for split in SPLITS] == [
        {"cat": 4, "dog": 4},
        {"cat": 1, "dog": 1},
        {"cat": 2, "dog": 2},
    ]


def test_numbers_as_labels(folder):
    names = [row.split(",")[0] for row in all_rows(folder)]
    path = write_list(folder / "labels.csv", "file,label", *(f"{n},{'10' if 'cats' in n else '9'}" for n in names))
    assert open_csv(path).classes == ("9", "10")


def test_broken_pictures_and_copies_go_to_quarantine(folder):
    (folder / "cats" / "empty.png").write_bytes(b"")
    shutil.copy(folder / "cats" / "3.png", folder / "cats" / "copy.png")
    shutil.copy(folder / "cats" / "4.png", folder / "others" / "cat.png")
    path = write_list(folder / "labels.csv", "file,label", *all_rows(folder))
    assert open_csv(path).quarantine == (
        Quarantined("cats/4.png", "same picture in two classes (also others/cat.png)"),
        Quarantined("cats/copy.png", "same picture as cats/3.png"),
        Quarantined("cats/empty.png", "empty file (0 bytes)"),
        Quarantined("others/cat.png", "same picture in two classes (also cats/4.png)"),
    )


def test_masks_beside_a_list(folder):
    write_picture(folder / "masks" / "cats" / "0.png", 900)
    rows = [row for row in all_rows(folder) if not row.startswith("masks")]
    splits = open_csv(write_list(folder / "labels.csv", "file,label", *rows))
    masked = {
        path.name: dataset.mask(i) is not None
        for dataset in (splits.train, splits.val, splits.test)
        for i, path in enumerate(dataset.paths)
        if path.parent.name == "cats"
    }
    assert masked == {f"{i}.png": i == 0 for i in range(7)}


@pytest.mark.parametrize("only", ["test", "val"])
def test_a_class_seen_only_in_one_split_but_not_in_train(folder, only):
    rows = [f"{row},{('train', 'val', 'test')[i % 3]}" for i, row in enumerate(all_rows(folder))]
    write_picture(folder / "bird.png", 700)
    path = write_list(folder / "labels.csv", "file,label,split", *rows, f"bird.png,bird,{only}")
    assert message(open_csv, path) == (
        f"The class 'bird' in {str(path)!r} has usable pictures in {only}, but none in train: a network cannot learn a "
        f"class that it is never shown. Put pictures of it into train, or take it out of {only}."
    )


def test_a_class_without_a_good_picture(folder):
    (folder / "bird.png").write_bytes(b"")
    path = write_list(folder / "labels.csv", "file,label", *all_rows(folder), "bird.png,bird")
    (folder / "labels.csv").write_text(path.read_text().replace("bird.png,dog\n", ""))
    assert message(open_csv, path) == (
        f"The class 'bird' in {str(path)!r} has no usable picture (bird.png: empty file (0 bytes)). Add good pictures "
        "of it, or take the class out."
    )


def test_too_few_to_split(flat):
    path = write_list(flat / "labels.csv", "file,label", "a.png,x", "b.png,y", "c.png,y", "d.png,x")
    assert "Too few pictures to split into train, val and test: x has 2, y has 2" in message(open_csv, path)


# --- by name


def test_open_dataset_takes_a_list_or_a_folder_that_is_called_like_one(folder, tmp_path):
    assert "cannot be read: No such file" in message(open_dataset, tmp_path / "gone.csv")
    strange = tmp_path / "strange.csv"
    shutil.copytree(folder, strange)
    assert open_dataset(strange).classes == ("cats", "others")


def test_a_list_as_setting(folder, monkeypatch):
    path = write_list(folder / "Labels.CSV", "file,label", *all_rows(folder))
    chosen = load_settings({"COURSE_DATASET": str(path)})
    assert chosen.dataset == str(path)
    assert "data: the list 'Labels.CSV'" in str(chosen)
    assert str(folder) not in str(chosen)
    assert not chosen.is_default
    assert open_dataset(chosen.dataset).classes == ("cat", "dog")
    monkeypatch.chdir(folder)
    assert check_dataset("Labels.CSV") == os.path.join(os.getcwd(), "Labels.CSV")


def test_a_list_that_is_not_there_is_no_setting(tmp_path):
    name = str(tmp_path / "labels.csv")
    assert message(check_dataset, name) == (
        f"COURSE_DATASET={name!r} is neither one of pets, hymenoptera nor a folder or .csv file that exists. A folder "
        "of photos has one sub-folder per class; a .csv file has the columns file and label."
    )
    (tmp_path / "labels.txt").write_text("file,label", encoding="utf-8")
    assert re.search("nor a folder or .csv file", message(check_dataset, str(tmp_path / "labels.txt")))
