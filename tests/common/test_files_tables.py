"""files.py and tables.py: a file is whole or not there; tables look the same everywhere."""

from __future__ import annotations

import doctest
import errno
import hashlib
import os
import sys

import pytest

from course_utils.common import tables
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of, written_whole
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
