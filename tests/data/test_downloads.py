"""Archives: fetched once, unpacked safely, checked file by file, and never left half-done."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import random
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

import pooch
import pytest
import requests

from course_utils.common.errors import CourseError
from course_utils.data import downloads
from course_utils.data.downloads import Manifest, differences, fetch, is_hidden, read_manifest, unpack_zip

FILES = {
    "train/ants/a.jpg": b"one",
    "train/bees/b.jpg": b"two",
    "val/ants/c.jpg": b"three",
    "train/ants/not.gif": b"notice",
}
REAL_ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "hymenoptera_data.zip"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def manifest() -> Manifest:
    hashes = {name: sha(data) for name, data in FILES.items()}
    gif = {"sha256": hashes.pop("train/ants/not.gif"), "reason": "a notice"}
    return Manifest(
        name="insects",
        url="https://example.org/tutorial/insects.zip",
        sha256="0" * 64,
        folder="insects_data",
        credit="nobody",
        files=hashes,
        quarantine={"train/ants/not.gif": gif},
    )


def write_zip(path: Path, files: dict[str, bytes], top: str = "insects_data/") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(top, b"")
        for name, data in files.items():
            archive.writestr(top + name, data)
    return path


@pytest.fixture
def mirror(tmp_path) -> Path:
    write_zip(tmp_path / "mirror" / "insects.zip", FILES)
    return tmp_path / "mirror"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise requests.exceptions.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", refuse)


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


def test_from_the_mirror(manifest, cache, mirror):
    folder = fetch(manifest, cache, mirror)
    assert folder == cache / "insects_data"
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert [path.name for path in cache.iterdir()] == ["insects_data"]


def test_second_call_reads_no_archive(manifest, cache, mirror):
    first = fetch(manifest, cache, mirror)
    shutil.rmtree(mirror)
    assert fetch(manifest, cache, None) == first


def test_unpacked_folder_in_the_mirror_is_used_in_place(manifest, cache, mirror):
    unpack_zip(mirror / "insects.zip", mirror)
    (mirror / "insects.zip").unlink()
    (mirror / "insects_data" / ".DS_Store").write_bytes(b"finder")
    assert fetch(manifest, cache, mirror) == mirror / "insects_data"
    assert everything(cache) == []


def test_archive_put_into_the_cache_by_hand(manifest, cache):
    write_zip(cache / "insects.zip", FILES)
    assert not differences(fetch(manifest, cache), manifest)


def test_a_damaged_folder_is_made_anew(manifest, cache, mirror):
    folder = fetch(manifest, cache, mirror)
    (folder / "train/ants/a.jpg").write_bytes(b"changed")
    (folder / "extra.jpg").write_bytes(b"extra")
    assert differences(folder, manifest) == ["extra.jpg does not belong there", "train/ants/a.jpg has other contents"]
    assert differences(fetch(manifest, cache, mirror), manifest) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/ants/a.jpg": b"tampered"}, r"train/ants/a\.jpg has other contents"),
        ({"train/ants/more.jpg": b"extra"}, r"train/ants/more\.jpg does not belong there"),
        ({"train/ants/not.gif": b"another"}, r"train/ants/not\.gif has other contents"),
        ({"train/bees/b.jpg": None}, r"train/bees/b\.jpg is missing"),
    ],
)
def test_other_contents_are_refused(manifest, cache, mirror, change, message):
    files = {name: data for name, data in (FILES | change).items() if data is not None}
    write_zip(mirror / "insects.zip", files)
    with pytest.raises(CourseError, match=message) as caught:
        fetch(manifest, cache, mirror)
    assert str(mirror / "insects.zip") in str(caught.value)
    assert everything(cache) == []


def test_tampered_folder_in_the_mirror(manifest, cache, mirror):
    unpack_zip(mirror / "insects.zip", mirror)
    (mirror / "insects_data" / "val/ants/c.jpg").unlink()
    with pytest.raises(CourseError, match=r"val/ants/c\.jpg is missing"):
        fetch(manifest, cache, mirror)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "..\\outside.txt", "C:/outside.txt"]
)
def test_paths_that_lead_outside(manifest, cache, mirror, name):
    with zipfile.ZipFile(mirror / "insects.zip", "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"evil")
    with pytest.raises(CourseError, match="leads out of its folder"):
        fetch(manifest, cache, mirror)
    assert everything(cache) == []
    assert not list(cache.parent.rglob("outside*"))


def test_links_are_refused(manifest, cache, mirror):
    link = zipfile.ZipInfo("insects_data/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(mirror / "insects.zip", "a") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(CourseError, match="link or special file"):
        fetch(manifest, cache, mirror)
    assert everything(cache) == []


def test_a_small_archive_that_unpacks_to_much(tmp_path):
    archive = write_zip(tmp_path / "bomb.zip", {"zeros": bytes(3_000_000)})
    assert archive.stat().st_size < 10_000
    (tmp_path / "out").mkdir()
    with pytest.raises(CourseError, match="3 MB"):
        unpack_zip(archive, tmp_path / "out", max_bytes=1_000_000)
    with pytest.raises(CourseError, match="at most 0 files"):
        unpack_zip(archive, tmp_path / "out", max_files=0)
    assert everything(tmp_path / "out") == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    (tmp_path / "out").mkdir()
    with pytest.raises(CourseError, match="two files of the same name"):
        unpack_zip(tmp_path / "twice.zip", tmp_path / "out")


def test_encrypted_archive(tmp_path):
    data = bytearray(write_zip(tmp_path / "a.zip", {"a": b"1"}).read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(CourseError, match="encrypted"):
        unpack_zip(tmp_path / "a.zip", tmp_path)


def test_what_macos_adds_is_left_out(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a.jpg": b"1", ".DS_Store": b"2", "__MACOSX/._a.jpg": b"3"}, top="top/")
    unpack_zip(archive, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["a.jpg"]


@pytest.mark.parametrize("data", [b"", b"<html>please log in</html>"])
def test_no_zip_at_all(manifest, cache, mirror, data):
    (mirror / "insects.zip").write_bytes(data)
    with pytest.raises(CourseError, match="damaged or no zip file"):
        fetch(manifest, cache, mirror)
    assert everything(cache) == []


def test_damaged_archives_give_our_error_and_leave_nothing(manifest, cache, mirror):
    good = (mirror / "insects.zip").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(100):
        data = bytearray(good[: rng.randrange(20, len(good) + 1)] if rng.random() < 0.3 else good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (mirror / "insects.zip").write_bytes(data)
        try:
            # The manifest proves whatever comes out; damage in a field that nobody reads is harmless.
            assert not differences(fetch(manifest, cache, mirror), manifest)
            shutil.rmtree(cache)
        except CourseError:
            refused += 1
            assert everything(cache) == []
    assert refused > 60


def test_no_network_names_every_way_out(manifest, cache, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError) as caught:
        fetch(manifest, cache, tmp_path / "empty")
    for part in (manifest.url, str(cache), "COURSE_DATA_MIRROR", "insects.zip", str(tmp_path / "empty"), "pets"):
        assert part in str(caught.value)
    assert everything(cache) == []


def test_download(manifest, cache, tmp_path, monkeypatch):
    data = write_zip(tmp_path / "server.zip", FILES).read_bytes()
    asked = serve(monkeypatch, data)
    folder = fetch(dataclasses.replace(manifest, sha256=sha(data)), cache)
    assert asked == [manifest.url]
    assert differences(folder, manifest) == []


def test_download_of_something_else_is_not_kept(manifest, cache, monkeypatch):
    serve(monkeypatch, b"<html>please log in</html>")
    with pytest.raises(CourseError, match=r"insects\.zip sent is not the known archive"):
        fetch(manifest, cache)
    assert everything(cache) == []


def serve(monkeypatch, data: bytes) -> list[str]:
    asked = []

    def download(url, output_file, _pooch, **_kwargs):
        asked.append(url)
        Path(output_file).write_bytes(data)

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_kwargs: download)
    return asked


@pytest.mark.parametrize(
    ("module", "function"), [(os, "replace"), (shutil, "copyfileobj"), (tempfile, "mkdtemp"), (pooch, "retrieve")]
)
def test_a_full_disk(manifest, cache, mirror, monkeypatch, module, function):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, function, full)
    with pytest.raises(CourseError, match=r"the disk is full.*COURSE_CACHE"):
        fetch(manifest, cache, None if module is pooch else mirror)
    assert everything(cache) == []


def test_a_cache_that_cannot_be_written(manifest, mirror, tmp_path):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(CourseError, match="COURSE_CACHE"):
        fetch(manifest, tmp_path / "file" / "cache", mirror)


def test_another_process_was_quicker(manifest, cache, mirror, monkeypatch):
    real = os.replace

    def late(source, target):
        shutil.copytree(source, target)
        real(source, target)  # fails: the folder is there and not empty

    monkeypatch.setattr(downloads.os, "replace", late)
    assert differences(fetch(manifest, cache, mirror), manifest) == []
    assert [path.name for path in cache.iterdir()] == ["insects_data"]


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        *(("a/b.jpg", False), ("a/.DS_Store", True), ("a/Thumbs.db", True), (".git/x", True), ("__MACOSX/a", True)),
        *(("@eaDir/b.jpg/SYNO.jpg", True), ("a/#recycle/b.jpg", True), ("$RECYCLE.BIN/b.jpg", True)),
        *(("System Volume Information/b.jpg", True), ("lost+found/b.jpg", True), ("a/__pycache__/b.pyc", True)),
        *((".ipynb_checkpoints/b.jpg", True), (".thumbnails/b.jpg", True), ("lost/found.jpg", False)),
    ],
)
def test_is_hidden(name, hidden):
    assert is_hidden(name) is hidden


def test_shipped_manifest():
    manifest = read_manifest("hymenoptera")
    assert manifest.archive == "hymenoptera_data.zip"
    assert len(manifest.sha256) == 64
    assert len(manifest.files) == 397
    assert list(manifest.quarantine) == ["train/ants/imageNotFound.gif"]
    counts = {}
    for name in manifest.files:
        split, label, file = name.split("/")
        counts[split, label] = counts.get((split, label), 0) + 1
        assert "\\" not in file
    assert counts == {("train", "ants"): 123, ("train", "bees"): 121, ("val", "ants"): 70, ("val", "bees"): 83}
    # No picture twice: train and test (the official val) share nothing.
    assert len(set(manifest.all_files.values())) == 398


@pytest.mark.skipif(not REAL_ARCHIVE.exists(), reason="../shared/data/hymenoptera_data.zip is not on this machine")
def test_the_real_archive(cache):
    manifest = read_manifest("hymenoptera")
    folder = fetch(manifest, cache, REAL_ARCHIVE.parent)
    assert differences(folder, manifest) == []
    assert len(list(folder.rglob("*.jp*g"))) == 397
