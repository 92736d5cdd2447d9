"""files.py and tables.py: a file is whole or not there; tables look the same everywhere."""

from __future__ import annotations

import csv
import doctest
import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from course_utils.common import tables
from course_utils.common.errors import CourseError
from course_utils.common.files import names_from_shared_folder, sha256_of, write_csv, write_text, written_whole
from course_utils.common.tables import markdown_table, text_table


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256_is_hashlibs(tmp_path):
    (tmp_path / "a").write_bytes(b"cats" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"cats" * 100_000).hexdigest()


def test_a_block_that_ends_gives_the_file_and_nothing_else(tmp_path):
    with written_whole(tmp_path / "new" / "a.txt") as beside:
        beside.write_text("whole", encoding="utf-8")
        assert beside.parent == tmp_path / "new"
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "whole"
    assert names_in(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), CourseError("told")])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(type(error)) as caught, written_whole(path) as beside:
        beside.write_text("half", encoding="utf-8")
        raise error
    assert caught.value is error
    assert path.read_text(encoding="utf-8") == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_disk_that_is_full_while_writing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(CourseError, match=r"a\.txt could not be written .*untouched"), written_whole(path) as beside:
        beside.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text(encoding="utf-8") == "old"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_last_step(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(CourseError, match=os.strerror(errno.ENOSPC)), written_whole(path) as beside:
        beside.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_it_is_flushed_to_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *args: (calls.append("fsync"), fsync(*args)))
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append("replace"), replace(*args)))
    with written_whole(tmp_path / "a.txt") as beside:
        beside.write_text("new", encoding="utf-8")
    assert calls == ["fsync", "replace"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(CourseError, match="could not be written"), written_whole(tmp_path / "file" / "a.txt"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errno.ENOSPC, "untouched. Free some space."),
        (errno.EDQUOT, "untouched. Free some space."),
        (errno.EACCES, "untouched. Choose a folder that you may write to."),
        (errno.ENAMETOOLONG, "untouched. Choose a folder that you may write to."),
    ],
)
def test_space_is_asked_for_where_it_is_missing(tmp_path, error, told):
    with pytest.raises(CourseError) as caught, written_whole(tmp_path / "a.txt"):
        raise OSError(error, os.strerror(error))
    assert str(caught.value).endswith(told)


def test_a_name_that_is_not_utf8_is_written_and_read_back(tmp_path):
    name = b"caf\xe9 \xe4\xba\xba".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "a.json", json.dumps({"class": name}, ensure_ascii=False) + "\n")
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert text == '{"class": "caf\\udce9 人"}\n'
    assert json.loads(text) == {"class": name}


def test_a_table_for_spreadsheets(tmp_path):
    texts = ["=1+1", "+1", "-1.jpg", "@sum", "a=b", 'é, "x"', "人"]
    write_csv(tmp_path / "new" / "a.csv", ["text", "number"], [[text, -0.5] for text in texts])
    data = (tmp_path / "new" / "a.csv").read_bytes()
    assert data.startswith("\N{BYTE ORDER MARK}text,number\n".encode()) and b"\r" not in data
    rows = list(csv.DictReader(data.decode("utf-8-sig").splitlines()))
    assert [row["text"] for row in rows] == ["'=1+1", "'+1", "'-1.jpg", "'@sum", "a=b", 'é, "x"', "人"]
    assert {row["number"] for row in rows} == {"-0.5"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/cat/1.jpg", "/d/dog/1.jpg"], ("cat/1.jpg", "dog/1.jpg")),
        (["cat/1.jpg", "1.jpg", "../1.jpg"], ("cat/1.jpg", "1.jpg", "../1.jpg")),
        (["1.jpg", "/d/1.jpg"], ("1.jpg", "/d/1.jpg")),
        (["photos/1.jpg"], ("1.jpg",)),
        ([], ()),
    ],
)
def test_names_from_the_folder_that_all_files_lie_in(paths, names):
    assert names_from_shared_folder([Path(path) for path in paths]) == names


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_others_may_read_it_as_they_may_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("", encoding="utf-8")
    with written_whole(tmp_path / "whole") as beside:
        beside.write_text("", encoding="utf-8")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as first, written_whole(path) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "first"  # the block that ended last
    assert names_in(tmp_path) == ["a.txt"]


def test_the_examples_in_tables():
    failed, tried = doctest.testmod(tables)
    assert tried > 0 and failed == 0


def test_numbers_stand_right_and_words_left():
    table = text_table(["name", "n", "share"], [["stem", 1234567, "83.3%"], ["head", 7, "-2%"], ["total", None, None]])
    assert table.splitlines() == [
        "name           n  share",
        "-----  ---------  -----",
        "stem   1,234,567  83.3%",
        "head           7    -2%",
        "total          -      -",
    ]


def test_true_is_a_word_not_a_number():
    assert text_table(["ok"], [[True]]).splitlines()[-1] == "True"


def test_a_table_without_rows():
    assert text_table(["a", "bb"], []).splitlines() == ["a  bb", "-  --"]
    assert markdown_table(["a"], []).splitlines() == ["| a |", "| --- |"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError):
        text_table(["a", "b"], [[1]])


def test_markdown():
    assert markdown_table(["day", "minutes"], [["20", 1500], ["21", None]]).splitlines() == [
        "| day | minutes |",
        "| --- | --- |",
        "| 20 | 1,500 |",
        "| 21 | - |",
    ]


def test_what_markdown_would_take_for_a_sign_stands_for_itself():
    assert markdown_table(["$5|$9"], [["under $5"], [1500]]).splitlines() == [
        "| \\$5\\|\\$9 |",
        "| --- |",
        "| under \\$5 |",
        "| 1,500 |",
    ]
