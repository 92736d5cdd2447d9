"""Looks at the test pictures are counted by what the pictures contain."""

from __future__ import annotations

import shutil

import pytest

from course_tools.photos.looks import count_look, looks_text


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_networks_are_counted_once_each_for_the_same_pictures(pictures, tmp_path):
    assert [count_look(tmp_path, pictures, name) for name in ("a-1", "b-2", "a-1", "c-3")] == [1, 2, 2, 3]
    elsewhere = shutil.copytree(tmp_path, tmp_path.with_name("elsewhere"), ignore=shutil.ignore_patterns("looks"))
    moved = [elsewhere / path.name for path in reversed(pictures)]
    assert count_look(tmp_path, moved, "d-4") == 4
    moved[0].write_text("another picture")
    assert count_look(tmp_path, moved, "e-5") == 1
    assert count_look(tmp_path, pictures[:2], "e-5") == 1


def test_a_count_that_cannot_be_written_is_a_warning(pictures, tmp_path):
    (tmp_path / "looks").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="This look at the test pictures was not counted: "):
        assert count_look(tmp_path, pictures, "a-1") == 1


def test_a_single_look_needs_no_words():
    assert looks_text(1) == "" and "2 networks" in looks_text(2)
