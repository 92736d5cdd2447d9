"""The diary: fields filled in or named, notes kept byte for byte, what was done told as it is on disk."""

import calendar
import json
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from course_tools.authoring import notebooks
from course_tools.study import diary as module
from course_tools.study import work_done
from course_tools.study.diary import (
    BORDER,
    TEMPLATE,
    Diary,
    fill_in,
    page_bytes,
    parse_page,
    pretty,
    read_page,
    time_zone,
)
from course_tools.study.quiz_progress import Answer, Progress
from course_utils.common.errors import CourseError

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
TODAY = date(2026, 11, 24)
BRIEF = Path(__file__).parents[3] / "shared" / "brief" / "diary_and_practical_advice.md"


@pytest.fixture
def diary(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "no runs"))
    monkeypatch.setenv("COURSE_QUIZ", str(tmp_path / "no quiz"))
    return Diary(tmp_path / "diary", NOON, UTC, project=tmp_path / "course")


def git(folder, *arguments, **environ):
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **names, **environ}, check=True, capture_output=True
    )


# --- the template ------------------------------------------------------------------------------------------------


def test_the_template_is_the_head_of_the_brief_s_diary():
    if not BRIEF.exists():
        pytest.skip("the brief lies beside the checkout, and is not there")
    head = BRIEF.read_text(encoding="utf-8").partition("\n\n\n# Practical Advice")[0]
    assert head.rstrip() == TEMPLATE.rstrip()


def test_placeholders_are_filled_in():
    text = fill_in(TEMPLATE, TODAY, start=date(2026, 11, 22))
    assert "Today  **Tuesday, 24 November 2026**." in text
    assert "It has been    **463** days" in text
    assert "Day **2** From" in text
    assert "{{" not in text


@settings(max_examples=50, deadline=None)
@given(st.dates(max_value=date(9000, 1, 1)), st.integers(0, 40_000))
def test_a_count_is_the_days_between_two_dates(start, days):
    day = start + timedelta(days=days)
    field = f"{{{{DAY_SINCE_{start.year:04}_{start.month:02}_{start.day:02}}}}}"
    assert fill_in(field, day, day) == str(days)
    assert fill_in("{{DAYS_SINCE_REPO_START}}", day, start) == str(days)


@settings(max_examples=50, deadline=None)
@given(st.dates())
def test_a_pretty_date_can_be_read_back(day):
    weekday, rest = pretty(day).split(", ")
    number, month, year = rest.split(" ")
    assert [*calendar.day_name].index(weekday) == day.weekday()
    assert date(int(year), [*calendar.month_name].index(month), int(number)) == day


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("{{DATE_PRETY}}", "{{DATE_PRETTY}}"),
        ("{{date_pretty}}", "{{DATE_PRETTY}}"),
        ("{{DATE_PRETTY.upper()}}", "{{DATE_PRETTY}}"),
        ("{{DATE_PRETTY + 1}}", "{{DATE_PRETTY}}"),
        ("{{7}}", None),
        ("{{range}}", None),
        ("{{DATE_PRETTY}", "{{DATE_PRETTY}}"),
        ("{DATE_PRETTY}}", "{{DATE_PRETTY}}"),
        ("{{{DATE_PRETTY}}}", "{{DATE_PRETTY}}"),
        ("{{DAY_SINCE_REPO_START}}", "{{DAYS_SINCE_REPO_START}}"),
        ("{{DAYS_SINCE_2025_08_18}}", "{{DAY_SINCE_2025_08_18}}"),
        ("{{DAY_SINCE_2025_8_18}}", "{{DAY_SINCE_2025_08_18}}"),
        ("{{DAY_SINCE_2025-08-18}}", "{{DAY_SINCE_2025_08_18}}"),
        ("{{DAY_SINCE}}", "{{DAY_SINCE_YYYY_MM_DD}}"),
        ("{{}}", None),
        ("{{WEATHER}}", None),
        ("{{DAY_SINCE_2025_02_30}}", None),
        ("{{DAY_SINCE_2025_13_01}}", None),
        ("{{DAY_SINCE_0000_01_01}}", None),
        ("{{DAY_SINCE_٢٠٢٥_08_18}}", "{{DAY_SINCE_YYYY_MM_DD}}"),
    ],
)
def test_what_is_no_placeholder_is_named_with_its_line_and_the_nearest_placeholder(wrong, near):
    with pytest.raises(CourseError, match="line 3: ") as caught:
        fill_in(f"# Mine\n\nToday {wrong} it is.", TODAY, TODAY)
    told, _, allowed = str(caught.value).partition("Placeholders are")
    assert (f"did you mean {near}?" in told) if near else ("did you mean" not in told)
    assert all(name in allowed for name in ("{{DATE_PRETTY}}", "{{DAY_SINCE_YYYY_MM_DD}}", "{{DAYS_SINCE_REPO_START}}"))


def test_a_name_may_have_spaces_around_it_as_everywhere_in_jinja():
    assert fill_in("{{ DATE_PRETTY }}, {{ DAY_SINCE_2026_11_20 }}", TODAY, TODAY) == "Tuesday, 24 November 2026, 4"


def test_all_problems_are_told_at_once():
    with pytest.raises(CourseError) as caught:
        fill_in("{{A}} and {{B}}\n{{DAY_SINCE_2999_01_01}}\n{{DATE_PRETTY}}\nend }}", TODAY, TODAY)
    assert all(part in str(caught.value) for part in ("line 1: {{A}}", "{{B}} is not", "line 2: ", "line 4: end }}"))
    assert "line 3" not in str(caught.value)


@pytest.mark.parametrize("future", ["2026_11_25", "2999_01_01"])
def test_a_date_in_the_future_is_an_error(future):
    with pytest.raises(CourseError, match=rf"DAY_SINCE_{future}\}}\}} lies in the future of 2026-11-24"):
        fill_in(f"{{{{DAY_SINCE_{future}}}}}", TODAY, TODAY)


def test_a_repository_from_the_future_is_an_error_where_it_is_asked_for():
    with pytest.raises(CourseError, match="clock"):
        fill_in("{{DAYS_SINCE_REPO_START}}", TODAY, start=date(2027, 1, 1))
    assert fill_in("{{DATE_PRETTY}}", TODAY, start=date(2027, 1, 1)) == "Tuesday, 24 November 2026"


def test_braces_behind_a_backslash_and_single_braces_stay():
    text = r"\{{ no field \}} {one} ${x}$ 50{\%} {#anchor} {% x %} {# y #}"
    assert fill_in(text, TODAY, TODAY) == text


def test_the_border_has_no_place_in_a_template():
    with pytest.raises(CourseError, match="separates your notes"):
        fill_in(f"# A\n{BORDER}\n", TODAY, TODAY)


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("{}\\DATE_PRY\n\x85é"), max_size=30))
def test_any_template_is_filled_in_or_refused(text):
    try:
        filled = fill_in(text, TODAY, TODAY)
    except CourseError:
        return
    assert not re.search(r"(?<!\\)\{\{[A-Z_0-9]*\}\}", filled)


# --- the clock ---------------------------------------------------------------------------------------------------


def test_the_day_is_that_of_the_reader_s_time_zone(tmp_path):
    late = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
    assert Diary(tmp_path, late, UTC).today == date(2026, 11, 24)
    assert Diary(tmp_path, late, ZoneInfo("Asia/Tokyo")).today == date(2026, 11, 25)
    assert Diary(tmp_path, late, timezone(timedelta(hours=-8))).today == date(2026, 11, 24)


def test_course_tz_counts_before_tz_and_tz_before_the_machine():
    assert time_zone({"COURSE_TZ": "Asia/Tokyo", "TZ": "Europe/Berlin"}) == ZoneInfo("Asia/Tokyo")
    assert time_zone({"TZ": ":Europe/Berlin"}) == ZoneInfo("Europe/Berlin")
    assert time_zone({"TZ": "CET-1CEST"}) is None  # the system's business
    assert time_zone({}) is None


@pytest.mark.parametrize("name", ["Asia/Tokio", "../../etc/passwd", "/etc/localtime", "x\0"])
def test_an_unknown_time_zone_is_an_error(name):
    with pytest.raises(CourseError, match="COURSE_TZ"):
        time_zone({"COURSE_TZ": name})


def test_the_repository_begins_with_its_first_commit(diary):
    diary.folder.mkdir()
    git(diary.folder, "init", "-q")
    assert diary.start(TODAY) == TODAY  # no commit yet
    for moment in ("2026-11-20T23:30:00+0000", "2026-11-22T10:00:00+0000"):
        git(diary.folder, "commit", "-q", "--allow-empty", "-m", "x", GIT_AUTHOR_DATE=moment, GIT_COMMITTER_DATE=moment)
    assert diary.start(TODAY) == date(2026, 11, 20)
    assert Diary(diary.folder, NOON, ZoneInfo("Asia/Tokyo")).start(TODAY) == date(2026, 11, 21)


def test_a_shallow_clone_does_not_know_its_first_commit(diary, tmp_path):
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q")
    for moment in ("2026-11-01T10:00:00+0000", "2026-11-20T10:00:00+0000"):
        git(origin, "commit", "-q", "--allow-empty", "-m", "x", GIT_AUTHOR_DATE=moment, GIT_COMMITTER_DATE=moment)
    git(tmp_path, "clone", "-q", "--depth", "1", origin.as_uri(), "copy")
    assert module.first_commit(origin, UTC) == date(2026, 11, 1)
    assert module.first_commit(tmp_path / "copy", UTC) is None


def test_without_git_the_diary_begins_with_its_first_page(diary, monkeypatch):
    monkeypatch.setenv("PATH", "")
    diary.write(date(2026, 11, 20))
    assert "Day **0** From" in (diary.folder / "2026-11-20.md").read_text(encoding="utf-8")
    assert "Day **4** From" in diary.write().path.read_text(encoding="utf-8")


# --- pages and notes ---------------------------------------------------------------------------------------------


def test_the_first_use_writes_template_and_page(diary):
    written = diary.write()
    assert written.path == diary.folder / "2026-11-24.md"
    assert (diary.folder / "template.md").read_text(encoding="utf-8") == TEMPLATE
    text = written.path.read_text(encoding="utf-8")
    assert text.startswith("# My Diary\n\nToday  **Tuesday, 24 November 2026**.")
    assert module.NOTHING in text
    assert text.endswith(f"{BORDER}\n\n")
    assert sorted(path.name for path in diary.folder.iterdir()) == ["2026-11-24.md", "template.md"]


def test_the_reader_s_template_is_used_and_never_overwritten(diary):
    diary.folder.mkdir()
    mine = b"Mine: {{DATE_PRETTY}}\r\n"
    (diary.folder / "template.md").write_bytes(mine)
    text = diary.write().path.read_text(encoding="utf-8")
    assert text.startswith("Mine: Tuesday, 24 November 2026\n\n## What was done")
    assert (diary.folder / "template.md").read_bytes() == mine


@pytest.mark.parametrize("content", [b"\xff\xfe{\0", b"{{WEATHER}}"])
def test_a_template_that_cannot_be_used_leaves_everything_as_it_was(diary, content):
    page = diary.write().path
    before = page.read_bytes()
    (diary.folder / "template.md").write_bytes(content)
    with pytest.raises(CourseError):
        diary.write()
    assert page.read_bytes() == before


PIECES = st.sampled_from([BORDER.encode(), b"\r\n", b"## Notes\n", b"\0"])
NOTES = st.binary() | st.text().map(str.encode) | st.lists(PIECES).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(notes=NOTES, days=st.lists(st.integers(0, 3), min_size=1, max_size=4), heads=st.lists(st.text(), max_size=4))
def test_notes_survive_any_number_of_renders(notes, days, heads):
    content = page_bytes("# A", {}, notes)
    for number, head in zip(days, [*heads, "", "", "", ""], strict=False):
        page = parse_page(content, Path("page.md"))
        assert page.notes == notes and page.untouched
        content = page_bytes(head.replace(BORDER, ""), page.facts | {f"Notebook day{number}": "ran"}, page.notes)
    assert parse_page(content, Path("page.md")).notes == notes


@pytest.mark.parametrize("notes", ["\n\nRead chapter 14. Ünï ✓\n", f"\r\nno end of line, and {BORDER} in it", ""])
def test_notes_on_disk_are_kept_byte_for_byte(diary, notes):
    path = diary.write().path
    path.write_bytes(path.read_bytes().removesuffix(b"\n\n") + notes.encode() + b"\xff")
    before = path.read_bytes()
    for template in ("# Other\n", TEMPLATE):
        (diary.folder / "template.md").write_text(template, encoding="utf-8")
        assert diary.write().aside is None
        assert read_page(path).notes == notes.encode() + b"\xff"
    assert path.read_bytes() == before


def test_ends_of_lines_changed_by_an_editor_are_no_handwriting(diary):
    path = diary.write().path
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"mine\r\n")
    assert diary.write().aside is None
    assert read_page(path).notes == b"\r\n\r\nmine\r\n"


def test_what_was_written_above_the_notes_is_set_aside_not_lost(diary):
    path = diary.write().path
    edited = path.read_text(encoding="utf-8").replace("## Notes", "I saw: a fox.\n\n## Notes").encode()
    for number in (1, 2):
        path.write_bytes(edited)
        assert diary.write().aside == diary.folder / f"2026-11-24.before-{number}.md"
        assert (diary.folder / f"2026-11-24.before-{number}.md").read_bytes() == edited
        assert b"fox" not in path.read_bytes()
    assert module.page_days(diary.folder) == [TODAY]


def test_a_page_without_the_border_is_left_alone(diary):
    diary.folder.mkdir()
    path = diary.folder / "2026-11-24.md"
    path.write_text("my own page, older than the command\n", encoding="utf-8")
    with pytest.raises(CourseError, match="has no line"):
        diary.write()
    assert path.read_text(encoding="utf-8") == "my own page, older than the command\n"


def test_a_page_saved_in_an_editor_in_between_is_not_overwritten(diary, monkeypatch):
    path = diary.write().path
    found = module.work_done

    def slow(*arguments):
        path.write_bytes(path.read_bytes() + b"typed just now")
        return found(*arguments)

    monkeypatch.setattr(module, "work_done", slow)
    with pytest.raises(CourseError, match="saved by another program"):
        diary.write()
    assert path.read_bytes().endswith(b"typed just now")


def test_a_full_disk_leaves_the_page_as_it_was(diary, monkeypatch):
    path = diary.write().path
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("course_utils.common.files.os.fsync", full)
    with pytest.raises(CourseError, match="No space left"):
        diary.write()
    assert path.read_bytes() == before
    assert sorted(p.name for p in diary.folder.iterdir()) == ["2026-11-24.md", "template.md"]


def test_a_page_of_the_future_is_an_error(diary):
    with pytest.raises(CourseError, match="future"):
        diary.write(date(2026, 11, 25))
    assert not diary.folder.exists()


# --- --check -----------------------------------------------------------------------------------------------------


def test_check_ignores_the_day_of_the_check_and_nothing_else(diary):
    diary.write(date(2026, 11, 20))
    path = diary.write().path
    assert diary.check() == []
    assert Diary(diary.folder, NOON + timedelta(days=99), UTC, diary.project).check() == []
    (diary.folder / "template.md").write_text(TEMPLATE.replace("General", "Other"), encoding="utf-8")
    assert [p.partition(":")[0] for p in diary.check()] == ["2026-11-24.md, line 5"]
    (diary.folder / "template.md").write_text(TEMPLATE.replace("{{DATE_PRETTY}}", "a date"), encoding="utf-8")
    assert [p.partition(":")[0] for p in diary.check()] == ["2026-11-24.md, line 3"]
    diary.write()
    assert diary.check() == []
    path.write_bytes(path.read_bytes().replace(b"a date", b"b date"))
    assert "changed by hand" in diary.check()[0]


def test_check_does_not_compare_the_days_since_the_repository_s_start(diary):
    diary.write()
    git(diary.folder, "init", "-q")
    moment = "2026-11-20T10:00:00+0000"
    git(diary.folder, "commit", "-q", "--allow-empty", "-m", "x", GIT_AUTHOR_DATE=moment, GIT_COMMITTER_DATE=moment)
    assert diary.start(TODAY) == date(2026, 11, 20) and diary.check() == []
    (diary.folder / "template.md").write_text(TEMPLATE.replace("{{DAYS_SINCE_REPO_START}}", "1"), encoding="utf-8")
    assert [p.partition(":")[0] for p in diary.check()] == ["2026-11-24.md, line 10"]


def test_check_writes_nothing_and_finds_what_a_page_lacks(diary):
    assert diary.check() == []
    assert not diary.folder.exists()
    page = diary.write().path
    page.write_text("no border", encoding="utf-8")
    assert "has no line" in diary.check()[0]
    page.rename(diary.folder / "2027-01-01.md")
    assert "future" in diary.check()[0]
    (diary.folder / "2026-02-30.md").touch()
    with pytest.raises(CourseError, match="2026-02-30"):
        diary.check()


def test_check_notices_what_was_done_since(diary):
    diary.write()
    save(diary, "build/day20.ipynb", [ran("x = 1")])
    assert "Notebook day20" in diary.check()[0]
    diary.write()
    assert diary.check() == []
    (diary.project / "build" / "day20.ipynb").unlink()  # as on a machine that has only the pages
    assert diary.check() == []


# --- what was done -----------------------------------------------------------------------------------------------


def ran(source, printed="", tags=(), count=1):
    outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
    return new_code_cell(source, metadata={"tags": list(tags)}, execution_count=count, outputs=outputs)


def save(diary, name, cells, moment=NOON, stamped=False):
    path = diary.project / name
    notebook = new_notebook(cells=cells)
    if stamped:
        notebook.metadata["course"] = notebooks.stamp(notebook)
    notebooks.write_notebook(notebook, path)
    os.utime(path, (moment.timestamp(), moment.timestamp()))
    return path


def test_a_notebook_counts_on_the_day_on_which_it_was_saved(diary):
    save(diary, "build/day20.ipynb", [ran("x = 1"), new_code_cell("y = 2")])
    save(diary, "build/day21.ipynb", [ran("x = 1")], NOON - timedelta(days=1))
    (diary.project / "build" / "day22.ipynb").write_text("{", encoding="utf-8")
    os.utime(diary.project / "build" / "day22.ipynb", (NOON.timestamp(), NOON.timestamp()))
    assert diary.write().facts == {"Notebook day20": "1 of 2 code cells ran"}
    assert diary.write(date(2026, 11, 23)).facts == {"Notebook day21": "1 of 1 code cells ran"}


def test_a_notebook_of_the_course_counts_when_somebody_ran_it(diary):
    path = save(diary, "notebooks/day20.ipynb", [ran("print(1)", "1\n")], stamped=True)
    assert diary.work(TODAY) == {}  # as it came with the course
    notebook = notebooks.read_notebook(path)
    notebook.cells[0].outputs[0].text = "2\n"
    notebooks.write_notebook(notebook, path)
    os.utime(path, (NOON.timestamp(), NOON.timestamp()))
    assert diary.work(TODAY) == {"Notebook day20": "1 of 1 code cells ran"}


def test_exercises_count_where_the_answer_is_the_reader_s(diary):
    course = "### BEGIN SOLUTION\nanswer = 1\n### END SOLUTION\nprint(check(answer))"
    both, right = ("solution", "checker"), "Right: indeed.\n"
    save(diary, "build/day20.ipynb", [ran(course, right, both)])
    assert diary.work(TODAY) == {"Notebook day20": "1 of 1 code cells ran"}
    cells = [ran("answer = 1\nprint(check(answer))", right, both), ran("a = 2", tags=["solution"])]
    cells += [ran("check(a)", "one moment\n" + right, ["checker"]), ran("b = 3", "Not yet: think.\n", both)]
    save(diary, "build/student/day20.ipynb", [*cells, new_code_cell("c = 4", metadata={"tags": list(both)})])
    assert diary.work(TODAY) == {
        "Notebook day20": "1 of 1 code cells ran",
        "Notebook day20 (student's copy)": "4 of 5 code cells ran",
        "Exercises day20": "2 of 4 passed",
    }


def test_a_fresh_student_s_copy_is_no_evidence(diary):
    save(diary, "build/student/day20.ipynb", [new_code_cell("x = 1")])
    assert diary.work(TODAY) == {}


def test_what_a_page_said_stays_when_the_evidence_is_gone(diary):
    path = save(diary, "build/day20.ipynb", [ran("x = 1")])
    diary.write()
    path.unlink()
    save(diary, "build/day21.ipynb", [ran("x = 1")])
    facts = {f"Notebook day{n}": "1 of 1 code cells ran" for n in (20, 21)}
    assert diary.write().facts == facts
    assert read_page(diary.folder / "2026-11-24.md").facts == facts


def run_folder(root, name, started, accuracy, status="finished", strategy="progressive"):
    folder = root / name
    folder.mkdir(parents=True)
    data = {"pictures": 60, "classes": {"cat": 30, "dog": 30}, "transform": None, "fingerprint": None}
    facts = {
        "format": 1, "status": status, "error": None, "started": started, "seconds": 1.0, "epochs": 1, "best": None,
        "settings": {"epochs": 1, "seed": 0, "log": "light", "batch_size": 4}, "plan": [],
        "strategy": {"name": strategy, "starts": [0], "rates": [0.01]},
        "model": {"name": "resnet18_mini", "class": "ResNet", "family": "ResNet", "parameters": 1, "outputs": 2},
        "data": {"train": data, "val": data}, "versions": {}, "git": None,
        "machine": {"platform": "x", "device": "cpu", "device_name": "x", "threads": 1},
        "process": {"host": "h", "pid": 1, "born": 0.0},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    if accuracy is not None:
        row = f"1,head,1.0,0.5,1.0,{accuracy},2.0"
        header = "epoch,learning,train_loss,train_accuracy,val_loss,val_accuracy,seconds"
        (folder / "history.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")


def test_the_best_run_of_the_day_is_told_with_n_and_interval(diary, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    run_folder(tmp_path / "runs", "20261124-100000-a-resnet-aaaa", "2026-11-24T10:00:00+00:00", 0.8)
    hostile = f"mine\n{BORDER}"
    run_folder(tmp_path / "runs", "20261124-110000-a-resnet-bbbb", "2026-11-24T11:00:00+00:00", 0.9, strategy=hostile)
    run_folder(tmp_path / "runs", "20261125-003000-a-resnet-cccc", "2026-11-25T00:30:00+00:00", None)
    run_folder(tmp_path / "runs", "20261123-100000-a-resnet-dddd", "2026-11-23T10:00:00+00:00", 1.0)
    (tmp_path / "runs" / "20261124-120000-a-resnet-eeee").mkdir()  # damaged
    told = diary.write().facts["Runs"]
    assert told.startswith("2, the best one bbbb: resnet18_mini, mine &lt;!-- Yours")
    assert told.endswith("validation 90.0 % (79.9 to 95.3, n = 60)")
    assert diary.write().facts["Runs"] == told and read_page(diary.folder / "2026-11-24.md").notes == b"\n\n"
    west = Diary(diary.folder, NOON + timedelta(days=1), timezone(timedelta(hours=-1)), diary.project)
    assert west.work(TODAY)["Runs"].startswith("3, the best one bbbb")
    assert diary.work(date(2026, 11, 25))["Runs"] == "1, none with a finished epoch"


class DayByDay:
    """Stands for the quiz's schedule: each question is due again a day after its last answer."""

    def __init__(self, answers):
        self.last = {answer.question: answer.when for answer in answers}

    def due(self, question):
        return self.last[question] + timedelta(days=1)


def test_cards_are_counted_as_they_were_on_that_day(diary, tmp_path, monkeypatch):
    monkeypatch.setattr(work_done, "Schedule", DayByDay)
    monkeypatch.setenv("COURSE_QUIZ", str(tmp_path / "quiz.jsonl"))
    assert diary.work(TODAY) == {}
    given_ = {"b": "2026-11-23T20", "a": "2026-11-22T08", "a again": "2026-11-23T08", "c": "2026-11-25T08"}
    lines = [
        Answer(key[0], 3, datetime.fromisoformat(f"{when}:00:00+00:00"), id=key).line() for key, when in given_.items()
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join([lines[0], "half a li", *lines[1:]]), encoding="utf-8")
    told = [diary.work(date(2026, 11, day)).get("Cards") for day in (21, 22, 23, 24)]
    assert told == [None, "1 answered, 0 due", "2 answered, 0 due", "0 answered, 1 due"]
    late = Diary(diary.folder, NOON + timedelta(days=2), UTC, diary.project)
    assert late.work(TODAY)["Cards"] == "0 answered, 2 due"  # at the end of that day
    assert len((tmp_path / "quiz.jsonl").read_text(encoding="utf-8").splitlines()) == 5, "a look repairs nothing"
    (tmp_path / "quiz.jsonl").unlink()
    (tmp_path / "quiz.jsonl").mkdir()  # a file that cannot be read
    assert diary.work(TODAY) == {}


def test_the_quiz_s_own_file_is_understood(diary, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_QUIZ", str(tmp_path / "quiz.jsonl"))
    for question, rating in (("known", 3), ("unknown", 1)):
        Progress().add(Answer(question, rating, NOON - timedelta(hours=1)))
    assert diary.work(TODAY) == {"Cards": "2 answered, 1 due"}


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_and_checks(diary, capsys, monkeypatch):
    monkeypatch.setattr(module, "work_done", lambda *_: {})  # of whoever runs the tests
    environ = {"COURSE_DIARY": str(diary.folder), "COURSE_TZ": "Asia/Tokyo"}
    late = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
    assert module.main([], late, environ) == 0
    assert (diary.folder / "2026-11-25.md").exists()
    assert module.main(["--date", "2026-11-20"], late, environ) == 0
    assert module.main(["--check"], late, environ) == 0
    assert "2 pages checked, nothing to mend." in capsys.readouterr().out
    (diary.folder / "2026-11-20.md").write_text("mine", encoding="utf-8")
    assert module.main(["--check", "--folder", str(diary.folder)], late, {}) == 1
    for wrong in ("2026-02-30", "yesterday", "20261124"):
        with pytest.raises(CourseError, match="YYYY-MM-DD"):
            module.main(["--date", wrong], late, environ)


def test_the_module_imports_no_torch():
    command = "import sys, course_tools.study.diary; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "False\n"
