"""``course predict`` and its siblings on what is really in people's folders, and with the names that people give."""

from __future__ import annotations

import csv
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
from helpers import ColourPatches
from PIL import Image

from course_tools import cli
from course_tools.photos.pictures import names_of, picture_files
from course_utils.common.errors import CourseError
from course_utils.engine.runs import list_runs


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    for name in ("COURSE_DATASET", "COURSE_SEED", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_PROGRESS", "0")
    monkeypatch.setattr("course_utils.settings.best_device", lambda: "cpu")
    monkeypatch.chdir(tmp_path)


def photos_in(folder, classes, count=6):
    """Write pictures that differ, in a folder per class."""
    patches = ColourPatches(count * len(classes))
    for i, image in enumerate(patches.images):
        place = Path(folder, classes[i % len(classes)])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (255 * image.clamp(0, 1)).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((40, 40)).save(place / f"{i // len(classes)}.png")


@pytest.fixture
def holiday(tmp_path):
    """Two class folders with pictures, and what systems and people leave beside them."""
    photos_in("holiday", ["cat", "dog"], count=2)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "__MACOSX/0.png", ".hidden/0.png"):
        path = Path("holiday", "cat", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    Path("holiday", "notes.txt").write_text("sunny")
    Path("holiday", "dog", "0.png").rename("holiday/dog/scan")  # no ending, and a picture
    return Path("holiday")


def named(printed):
    """Return the first column of a table."""
    return [line.split()[0] for line in printed.splitlines()[2:]]


def test_folders_are_searched_for_pictures_and_nothing_else(holiday, capsys):
    assert cli.main(["predict", "holiday"]) == 0
    printed = capsys.readouterr()
    assert named(printed.out) == ["cat/0.png", "cat/1.png", "dog/1.png", "dog/scan"]
    assert printed.err == "Passed over 1 file without a picture.\n"
    assert cli.main(["predict", "holiday/cat"]) == 0
    assert capsys.readouterr().err == ""


def test_its_own_table_is_no_broken_picture(holiday, capsys):
    tables = []
    for _ in range(2):
        assert cli.main(["predict", "holiday/cat", "--csv", "holiday/cat/found.csv"]) == 0
        tables.append(Path("holiday/cat/found.csv").read_bytes())
    assert tables[0] == tables[1]
    assert capsys.readouterr().err == "Passed over 1 file without a picture.\n"


def test_patterns_are_expanded_where_no_shell_does_it(holiday):
    Path("holiday", "cat", "[1].png").write_bytes(Path("holiday", "cat", "1.png").read_bytes())
    for pattern, found in [
        ("holiday/cat/*.png", ["0.png", "1.png", "[1].png"]),
        ("holiday/cat/[[]1].png", ["[1].png"]),
        ("holiday/cat/[1].png", ["[1].png"]),  # a file of that very name
        ("holi*", ["0.png", "1.png", "[1].png", "1.png", "scan"]),
    ]:
        assert [path.name for path in picture_files([Path(pattern)])] == found
    with pytest.raises(CourseError, match=r"There is no picture 'holiday/\*\.tiff'"):
        picture_files([Path("holiday/*.tiff")])


def test_two_files_of_one_name_are_told_apart(holiday, capsys):
    given = ["holiday/cat/1.png", "holiday/dog/1.png"]
    assert cli.main(["predict", *given, given[0], "--csv", "a.csv"]) == 0
    assert named(capsys.readouterr().out) == ["cat/1.png", "dog/1.png"]
    with open("a.csv", newline="", encoding="utf-8-sig") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(Path(path)) for path in given]
    assert names_of([Path("a.jpg")]) == {Path("a.jpg"): "a.jpg"}


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_the_exit_code_tells_all_from_some_from_none(holiday, capsys, command):
    broken = Path("broken.jpg")
    broken.write_bytes(b"\xff\xd8\xff\xe0")
    assert cli.main([command, "holiday/cat"]) == 0
    assert cli.main([command, "holiday/cat", str(broken)]) == 3
    assert "broken.jpg was left out: " in capsys.readouterr().err
    assert cli.main([command, str(broken)]) == 1
    assert capsys.readouterr().err.startswith("course: None of the 1 pictures could be read.")


def test_where_there_is_no_picture(holiday):
    for given in ("holiday/notes.txt", "holiday/cat/Thumbs.db", "holiday/cat/._0.png"):
        with pytest.raises(CourseError, match=r"There is no picture in 'holiday.*Give picture files, or a folder"):
            picture_files([Path(given)])
    for given in ("nowhere.jpg", "x" * 400):
        with pytest.raises(CourseError, match=r"There is no picture '(nowhere|xxx)"):
            picture_files([Path(given)])


# --- names -------------------------------------------------------------------------------------------------------


def not_utf8():
    """Return the name of a folder from an old archive; skip where the file system refuses it."""
    name = os.fsdecode(b"caf\xe9")
    try:
        Path(name).mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system has UTF-8 names only")
    Path(name).rmdir()
    return name


NAMES = {
    "formula": lambda: ["under_$20_to_$50", "above_$50_$99"],
    "east asian": lambda: ["猫と犬", "개"],
    "long": lambda: ["a" * 200, "a" * 199 + "b"],
    "not UTF-8": lambda: [not_utf8(), "tee"],
    "signs": lambda: ["_private|part", "=1+1"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_class_names_of_every_kind_from_training_to_the_report(kind, capsys):
    names = NAMES[kind]()
    photos_in("photos", names)
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert cli.main(["train", "photos", "--strategy", "feature", "--epochs", "1", "--test"]) == 0
        (run,) = list_runs()
        assert cli.main(["explain", "photos", "--run", run.id, "--out", "maps"]) == 0
        assert cli.main(["predict", "photos", "--run", run.id, "--csv", "found.csv"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    files = {path.name for path in run.folder.iterdir()}
    assert {"best.safetensors", "report.md", "report-test.md", "confusion-test.png", "curves.png"} <= files
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    assert set(run.facts["data"]["val"]["classes"]) == set(shown)
    assert json.loads((run.folder / "report-test.json").read_text(encoding="utf-8"))["classes"] == sorted(shown)
    assert all(name in told.out for name in shown), "tables have whole names"
    page = Path("maps", "index.html").read_text(encoding="utf-8")
    assert any(name in page for name in shown)
    with open("found.csv", newline="", encoding="utf-8-sig") as file:
        assert {row["class"].removeprefix("'") for row in csv.DictReader(file)} <= set(shown)


@pytest.mark.parametrize("kind", ["formula", "not UTF-8"])
def test_a_ladder_of_such_names(kind):
    photos_in("photos", NAMES[kind]())
    with warnings.catch_warnings(action="error", category=UserWarning):
        warnings.filterwarnings("ignore", "In epochs=1, 'progressive' never lets")
        assert cli.main(["ladder", "photos", "--epochs", "1", "--out", "report.html"]) == 0
    assert "</html>" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_a_terminal_of_few_characters(holiday, encoding, monkeypatch):
    Path("holiday", "cat").rename("holiday/猫é")
    with open("printed", "w", encoding=encoding) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["predict", "holiday"]) == 0
        assert cli.main(["predict", "holiday", "--json"]) == 0
    text = Path("printed").read_text(encoding=encoding)
    assert "\\u732b" in text
    found = json.loads(text[text.index("{") :])
    assert sorted(Path(item["file"]).parent.name for item in found["pictures"]) == ["dog", "dog", "猫é", "猫é"]
