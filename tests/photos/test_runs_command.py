"""runs_command.py: tables, JSON and the dialogue of ``course runs``; reading the runs is tested in test_runs.py."""

import json
import re

import pytest
from helpers import REPORT, fake_run

from course_tools import cli
from course_utils.engine import runs
from course_utils.engine.runs import add_report, list_runs


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of runs."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def three(root):
    fake_run(root, "20260101-030405-head-resnet-aaaa", epochs=3)
    fake_run(
        root, "20260102-030405-full-resnet-bbbb", settings={"epochs": 5, "seed": 7, "batch_size": 32, "log": "full"}
    )
    add_report(root / "20260102-030405-full-resnet-bbbb", REPORT)
    fake_run(root, "20260103-030405-full-vgg-cccc", epochs=0, status="interrupted")
    return root


def course_runs(capsys, *arguments, code=0):
    assert cli.main(["runs", *arguments]) == code
    out, err = capsys.readouterr()
    return out if code == 0 or not err else err


def test_the_table_of_runs(three, capsys):
    lines = course_runs(capsys).splitlines()
    assert re.split(r" {2,}", lines[0]) == [*runs.COLUMNS]
    assert [line.split()[0] for line in lines[2:5]] == ["cccc", "bbbb", "aaaa"]
    row = re.split(r" {2,}", lines[3])
    assert row[2:6] == ["12 + 12: cat, dog", "resnet18_mini", "head", "2/5"]
    assert row[6:11] == ["7", "60.0%", "75.0%", "3.0", "finished"]
    assert lines[2].split()[-2] == "interrupted"
    assert re.fullmatch(rf"3 runs, 0\.\d MB in {re.escape(str(three))}", lines[-1])


def test_two_runs_that_end_alike_are_called_by_their_whole_names(root, capsys):
    names = [f"2026010{day}-030405-head-resnet-aaaa" for day in (1, 2)]
    for name in names:
        fake_run(root, name)
    assert [line.split()[0] for line in course_runs(capsys).splitlines()[2:4]] == names[::-1]


def test_no_runs_yet(root, capsys):
    assert course_runs(capsys).startswith(f"No runs yet in {root}. Every call of fit writes one there;")
    assert json.loads(course_runs(capsys, "--json")) == []


def test_one_run_in_full(three, capsys):
    out = course_runs(capsys, "bbbb")
    assert out.startswith("20260102-030405-full-resnet-bbbb: finished, 3.0 s\n")
    assert re.search(r"^batch_size +32$", out, re.M) and re.search(r"^strategy\.rates +\[0\.01\]$", out, re.M)
    assert re.search(r"^ +2 .*60\.0% +head +best$", out, re.M)
    assert re.search(r"^test +75\.0 % \(30\.1 to 95\.4, n = 4\) +73\.3%$", out, re.M)


def test_runs_side_by_side(three, capsys):
    out = course_runs(capsys, "aaaa", "bbbb")
    assert re.search(r"^seed +0 +7$", out, re.M) and re.search(r"^batch_size +16 +32$", out, re.M)
    assert "versions.torch" not in out and "strategy" not in out  # the same in both
    assert re.search(r"^val accuracy +70\.0% +60\.0%$", out, re.M) and re.search(r"^best epoch +3 +2$", out, re.M)
    assert re.search(r"^test accuracy +- +75\.0%$", out, re.M)
    assert "cannot be compared" not in out
    assert re.search(r"^status +finished +finished +interrupted$", course_runs(capsys, "aaaa", "bbbb", "cccc"), re.M)


def test_runs_for_programs(three, capsys):
    listed = json.loads(course_runs(capsys, "--json"))
    assert [entry["name"][-4:] for entry in listed] == ["cccc", "bbbb", "aaaa"]
    assert listed[1]["best_val_accuracy"] == 0.6 and listed[1]["test_accuracy"] == 0.75
    assert listed[0]["best_epoch"] is None
    (one,) = json.loads(course_runs(capsys, "bbbb", "--json"))
    assert one["facts"]["settings"]["seed"] == 7 and [row["epoch"] for row in one["history"]] == [1, 2]
    assert one["reports"]["test"]["n"] == 4


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("YES ", True), ("", False), ("n", False), (None, False)])
def test_deleting_asks_first(three, capsys, monkeypatch, answer, gone):
    def ask(question):
        assert question == "Delete these? [y/N] "
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", ask)
    out = course_runs(capsys, "--delete", "aaaa", "cccc", code=0 if gone else 1)
    assert "20260101-030405-head-resnet-aaaa (finished, 0.0 MB)" in out
    assert {record.id for record in list_runs()} == ({"bbbb"} if gone else {"aaaa", "bbbb", "cccc"})
    assert ("Nothing was deleted." in out) is not gone


def test_deleting_without_a_question(three, capsys):
    (three / "20260102-030405-full-resnet-bbbb" / "notes.txt").write_text("mine")
    (three / "20260101-030405-head-resnet-aaaa" / "run.json").unlink()  # a damaged one goes as well
    out = course_runs(capsys, "--delete", "--yes", "aaaa", "bbbb", "bbbb")
    assert out.count("deleted") == 2 and "not by the course, so left: notes.txt" in out
    assert not (three / "20260101-030405-head-resnet-aaaa").exists()


@pytest.mark.parametrize(
    "arguments", [["--delete"], ["--yes"], ["--delete", "aaaa", "--json"], ["--nonsense"]], ids=" ".join
)
def test_wrong_usage(three, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", *arguments])
    assert stop.value.code == 2 and len(list_runs()) == 3


def test_an_unknown_run_is_one_line(three, capsys):
    error = course_runs(capsys, "dddd", code=1)
    assert error.startswith("course: There is no run 'dddd' in ") and error.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["runs", "--help"])
    assert stop.value.code == 0 and "usage: course runs" in capsys.readouterr().out
