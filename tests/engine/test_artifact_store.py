"""artifact_store.py: an artifact is whole or not there, and never used for something else."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import namedtuple

import pytest

from course_utils.common.errors import CourseError
from course_utils.engine import artifact_store
from course_utils.engine.artifact_store import (
    DATA_FILE,
    MANIFEST_FILE,
    SPARE_BYTES,
    ArtifactStore,
    fingerprint,
    free_bytes,
    lock_of,
    read_manifest,
)

KEY = {"border": "head", "pictures": 3}


def fill(file):
    file.write(b"pay")
    file.write(b"load")
    return {"summary": {"holds": "test data"}}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


def hidden(store):
    return [path.name for path in store.root.iterdir() if path.suffix == ".partial"]


def test_what_was_written_is_found(store):
    told = []
    made = store.find_or_write("label", KEY, fill, told.append)
    found = store.find_or_write("label", dict(reversed(KEY.items())), fill, told.append)
    assert not made.reused and found.reused and found.content == made.content and not told
    assert made.folder == store.folder("label", KEY) and made.name == f"label-{fingerprint(KEY)[:16]}"
    assert (made.folder / DATA_FILE).read_bytes() == b"payload" and made.content["bytes"] == 7
    assert made.content["key"] == KEY and made.content["summary"] == {"holds": "test data"}
    assert made.size == 7 + (made.folder / MANIFEST_FILE).stat().st_size
    other = store.find_or_write("label", KEY | {"pictures": 4}, fill)
    assert not other.reused and other.name != made.name


def test_another_fingerprint_behind_the_same_name_is_not_used(store):
    """The name has 16 of its 64 digits."""
    made, told = store.find_or_write("label", KEY, fill), []
    made.folder.rename(store.folder("label", "other"))
    again = store.find_or_write("label", "other", fill, told.append)
    assert not again.reused and again.content["key"] == "other" and "its fingerprint is another one" in told[0]


def test_artifacts_are_listed_by_their_last_use(store):
    assert store.artifacts() == []
    first, second = (store.find_or_write("label", key, fill) for key in "ab")
    (store.root / "holiday").mkdir()
    os.utime(second.folder / MANIFEST_FILE, (1000, 1000))
    assert [artifact.name for artifact in store.artifacts()] == [first.name, second.name]
    os.utime(first.folder / MANIFEST_FILE, (0, 0))
    assert [artifact.last_used for artifact in store.artifacts()] == [1000, 0]
    before = time.time() - 60
    store.find_or_write("label", "a", fill)
    assert store.artifacts()[0].name == first.name and store.artifacts()[0].last_used > before
    (first.folder / DATA_FILE).write_bytes(b"payloaD")
    assert [artifact.problem for artifact in store.artifacts()] == ["", ""]
    assert store.artifacts(thorough=True)[0].problem == f"bytes in {DATA_FILE} have changed"
    with pytest.raises(artifact_store.Damaged):
        read_manifest(first.folder, thorough=True)


def test_an_artifact_is_removed_unless_it_is_being_written(store):
    made = store.find_or_write("label", KEY, fill)
    with lock_of(made.folder):
        assert not made.remove() and made.folder.exists()
    assert made.remove() and not made.folder.exists() and store.artifacts() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CourseError("no"), OSError(errno.ENOSPC, "disk full")])
def test_an_interrupted_writer_leaves_nothing(store, error):
    def interrupted(file):
        file.write(b"half")
        raise error

    with pytest.raises(CourseError if isinstance(error, OSError) else type(error)):
        store.find_or_write("label", KEY, interrupted)
    assert store.artifacts() == [] and hidden(store) == []
    assert not store.find_or_write("label", KEY, fill).reused


def test_a_second_writer_waits_and_takes_what_the_first_one_made(store):
    told, results, writing, waiting = [], [], threading.Event(), threading.Event()

    def slow(file):
        writing.set()
        assert waiting.wait(20)
        return fill(file)

    def notify(line):
        told.append(line)
        waiting.set()

    first = threading.Thread(target=lambda: results.append(store.find_or_write("label", KEY, slow)))
    first.start()
    assert writing.wait(20)
    second = store.find_or_write("label", KEY, lambda file: pytest.fail("computed twice"), notify)
    first.join()
    assert second.reused and not results[0].reused and len(told) == 1 and "Another process is computing" in told[0]


def test_drafts_of_killed_writers_are_removed_and_those_of_others_are_not(store):
    store.root.mkdir()
    drafts = [store.root / f".{name}.0123abcd.partial" for name in ("killed-1", "busy-2", store.folder("x", KEY).name)]
    for draft in drafts:
        draft.mkdir()
    with lock_of(store.root / "busy-2"):
        store.find_or_write("x", KEY, fill)
        assert [draft.exists() for draft in drafts] == [False, True, False]
    assert store.remove_drafts() == 1 and hidden(store) == []


def test_room_on_the_disk(store, monkeypatch):
    assert free_bytes(store.root / "not" / "there") == pytest.approx(shutil.disk_usage(store.root.parent).free, rel=0.1)
    usage = namedtuple("Usage", "total used free")(0, 0, SPARE_BYTES + 1000)
    monkeypatch.setattr(artifact_store.shutil, "disk_usage", lambda path: usage)
    store.check_room(1000)
    with pytest.raises(CourseError, match=r"would take 0\.0 MB, and 20\.0 MB are free.*COURSE_CACHE.*, or wait\.$"):
        store.check_room(1001, ", or wait")
