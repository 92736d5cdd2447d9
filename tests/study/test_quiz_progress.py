"""quiz_progress.py: no answer is ever lost, and the same answers make the same schedule everywhere."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from filelock import FileLock
from fsrs import Card, Rating, Scheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from course_tools.study import quiz_progress
from course_tools.study.questions import read_bank
from course_tools.study.quiz_progress import Answer, Progress, Schedule, in_words, next_questions, quiz_path, statistics
from course_utils.common import files
from course_utils.common.errors import CourseError

ROOT = Path(__file__).parents[2]
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
BANK = read_bank()
IDS = [question.id for question in BANK[:6]]


def answer(number, rating=3, question="easy-a", **changes):
    return Answer(question, rating, START + timedelta(minutes=number), **{"id": f"id{number}", **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kept" / "quiz.jsonl"


def test_answers_are_there_again(path):
    progress = Progress(path)
    assert progress.answers == () and not path.exists()
    given_ = [answer(1), answer(2, 1, "hard-b", seconds=61.5)]
    for one in given_:
        progress.add(one)
        assert Progress(path).answers[-1] == one
    assert Progress(path).answers == tuple(given_) == progress.answers
    assert sorted(p.name for p in path.parent.iterdir() if p.name != ".quiz.jsonl.lock") == ["quiz.jsonl"]


def test_two_windows_keep_each_others_answers(path):
    one, other = Progress(path), Progress(path)
    one.add(answer(1))
    other.add(answer(2))
    one.add(answer(3))
    assert one.answers == Progress(path).answers == (answer(1), answer(2), answer(3))
    assert other.answers == (answer(1), answer(2))
    other.read()
    assert other.answers == one.answers


WRITER = """
import sys
import tempfile
from datetime import UTC, datetime
from course_tools.study.quiz_progress import Answer, Progress
progress = Progress(sys.argv[1])
for number in range(int(sys.argv[3])):
    progress.add(Answer("easy-a", 3, datetime(2026, 3, 1, tzinfo=UTC), id=f"{sys.argv[2]}-{number}"))
    print(number, flush=True)
"""


def writer(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_at_once_and_a_killed_one_lose_nothing(path):
    killed = writer(path, "killed", 100_000)
    others = [writer(path, name, 8) for name in ("a", "b")]
    assert [process.wait(timeout=60) for process in others] == [0, 0]
    killed.stdout.readline()
    os.kill(killed.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    said = 1 + len(killed.stdout.read().split())
    for process in (killed, *others):
        process.wait(timeout=60)
        process.stdout.close()
    progress = Progress(path)
    assert not progress.notice
    kept = {one.id for one in progress.answers}
    assert kept >= {f"{name}-{number}" for name in ("a", "b") for number in range(8)}
    assert kept >= {f"killed-{number}" for number in range(said)}
    progress.add(answer(1))  # the lock of the killed one is open
    assert len(Progress(path).answers) == len(kept) + 1


def test_a_full_disk_loses_no_answer(path, monkeypatch):
    progress = Progress(path)
    progress.add(answer(1))
    before = path.read_bytes()

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(CourseError, match="No space left"):
            progress.add(answer(2))
        assert path.read_bytes() == before
    assert progress.answers == (answer(1), answer(2))
    progress.add(answer(3))
    assert Progress(path).answers == (answer(1), answer(2), answer(3))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    progress = Progress(tmp_path / "file2" / "quiz.jsonl")
    progress.path = tmp_path / "file" / "quiz.jsonl"
    with pytest.raises(CourseError, match="Set COURSE_QUIZ to a file that you may write"):
        progress.add(answer(1))
    with pytest.raises(CourseError, match="cannot be read"):
        Progress(tmp_path)


def test_a_lock_that_another_window_keeps_is_said(path, monkeypatch):
    monkeypatch.setattr(quiz_progress, "LOCK_SECONDS", 0.01)
    progress = Progress(path)
    progress.add(answer(1))
    with (
        FileLock(path.with_name(".quiz.jsonl.lock")),
        pytest.raises(CourseError, match=r"Another window has kept quiz\.jsonl locked"),
    ):
        progress.add(answer(2))
    progress.save()
    assert Progress(path).answers == (answer(1), answer(2))


def aside(path):
    return sorted(path.parent.glob("quiz-damaged-*.jsonl"))


def test_a_damaged_file_is_set_aside_and_said_so(path):
    progress = Progress(path)
    progress.add(answer(1))
    progress.add(answer(2))
    damaged = path.read_bytes()[:-30] + b"\xff\x00"
    path.write_bytes(damaged)
    again = Progress(path)
    (old,) = aside(path)
    assert old.read_bytes() == damaged
    assert again.answers == (answer(1),)
    assert again.notice == (
        f"1 line of quiz.jsonl could not be read. The file as it was is now {old.name}, in the same folder. "
        "Answers that could be read: 1."
    )
    assert not Progress(path).notice and len(aside(path)) == 1


def test_a_file_that_is_damaged_while_the_quiz_runs_is_set_aside_too(path):
    progress = Progress(path)
    progress.add(answer(1))
    path.write_bytes(b"nonsense\n")
    progress.add(answer(2))
    assert aside(path)[0].read_bytes() == b"nonsense\n" and progress.notice
    assert Progress(path).answers == (answer(2),)


@given(st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_whatever_happens_to_the_file_whole_lines_count_and_the_rest_is_kept(data):
    with tempfile.TemporaryDirectory() as folder:
        _damage_and_read(data, Path(folder) / "quiz.jsonl")


def _damage_and_read(data, path):
    lines = [answer(number).line().encode() for number in range(3)]
    raw = b"\n".join(lines) + b"\n"
    start = data.draw(st.integers(0, len(raw)))
    raw = raw[:start] + data.draw(st.binary(max_size=20)) + raw[start + data.draw(st.integers(0, 40)) :]
    path.write_bytes(raw)
    progress = Progress(path)
    untouched = {Answer.from_line(line.decode()).id for line in raw.split(b"\n") if line in lines}
    assert untouched <= {one.id for one in progress.answers}
    assert bool(progress.notice) is bool(aside(path))
    assert all(old.read_bytes() == raw for old in aside(path))
    progress.add(answer(9))
    assert Progress(path).answers == progress.answers


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        '{"id": "a", "question": "b", "rating": 5, "when": "2026-03-01T12:00:00+00:00"}',
        '{"id": "a", "question": "b", "rating": true, "when": "2026-03-01T12:00:00+00:00"}',
        '{"id": "a", "question": "b", "rating": 1, "when": "2026-03-01T12:00:00"}',
        '{"id": "a", "question": "b", "rating": 1, "when": "0001-01-01T00:00:00+14:00"}',
        '{"id": "a", "question": "", "rating": 1, "when": "2026-03-01T12:00:00+00:00"}',
        '{"id": "a", "question": "b", "rating": 1, "when": "2026-03-01T12:00:00+00:00", "seconds": -1}',
        '{"id": "a", "question": "b", "rating": 1, "when": "2026-03-01T12:00:00+00:00", "seconds": NaN}',
        '{"id": "a", "question": "b", "rating": 1, "when": 7}',
    ],
)
def test_what_is_no_answer_is_none(line):
    with pytest.raises(ValueError):
        Answer.from_line(line)


def test_what_a_later_version_adds_to_a_line_stays(path):
    line = json.dumps({**json.loads(answer(1).line()), "mood": "good"})
    path.parent.mkdir()
    path.write_text(f"{line}\n")
    Progress(path).add(answer(2))
    assert path.read_text().splitlines()[0] == line


def test_times_of_any_zone_are_one():
    moved = Answer("easy-a", 3, START.astimezone(timezone(timedelta(hours=-7))), id="x")
    assert moved == Answer("easy-a", 3, START, id="x") and moved.when.tzinfo is UTC


def test_where_the_file_is(tmp_path):
    assert quiz_path({"COURSE_QUIZ": str(tmp_path / "a.jsonl")}) == tmp_path / "a.jsonl"
    assert quiz_path({"COURSE_CACHE": str(tmp_path), "COURSE_QUIZ": ""}) == tmp_path / "quiz.jsonl"
    assert quiz_path({"COURSE_QUIZ": "~/q.jsonl"}) == Path.home() / "q.jsonl"


def test_a_schedule_is_what_fsrs_makes_of_the_answers():
    scheduler = Scheduler(
        learning_steps=(quiz_progress.STEP,), relearning_steps=(quiz_progress.STEP,), maximum_interval=365,
        enable_fuzzing=False,
    )  # fmt: skip
    card, given_ = Card(card_id=1, due=START), []
    for days, rating in ((0, 3), (3, 3), (12, 1), (12.1, 2), (40, 4)):
        when = START + timedelta(days=days)
        card, _ = scheduler.review_card(card, Rating(rating), review_datetime=when)
        given_.append(Answer("easy-a", rating, when))
        assert Schedule(given_).due("easy-a") == card.due
    now = START + timedelta(days=60)
    assert Schedule(given_).recall("easy-a", now) == scheduler.get_card_retrievability(card, now)


def test_known_answers_come_back_in_days_and_unknown_ones_in_minutes():
    waits = Schedule([]).waits("easy-a", START)
    assert waits[1] == timedelta(minutes=10) < waits[2] < timedelta(days=1) <= waits[3] < waits[4]
    for answers in itertools.product((1, 2, 3, 4), repeat=3):
        given_ = [Answer("easy-a", r, START + timedelta(days=5 * i)) for i, r in enumerate(answers)]
        waits = Schedule(given_).waits("easy-a", START + timedelta(days=20))
        assert waits[1] <= waits[2] <= waits[3] <= waits[4] <= timedelta(days=365)


RATED = st.lists(st.tuples(st.sampled_from(IDS), st.integers(1, 4), st.integers(0, 10**7)), max_size=12)


@given(RATED, st.integers(1, 4))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_wait_that_is_announced_is_the_one_that_comes(rated, rating):
    given_ = sorted((Answer(q, r, START + timedelta(seconds=s)) for q, r, s in rated), key=lambda one: one.when)
    now = START + timedelta(seconds=10**7)
    before = Schedule(given_)
    after = Schedule([*given_, Answer(IDS[0], rating, now)])
    assert after.due(IDS[0]) - now == before.waits(IDS[0], now)[rating]
    assert all(before.due(other) == after.due(other) for other in IDS[1:])
    assert 0 < after.recall(IDS[0], now) <= 1


def test_what_is_due_comes_first_then_what_is_new():
    questions = BANK[:5]
    given_ = [
        Answer(questions[3].id, 1, START),
        Answer(questions[1].id, 1, START - timedelta(minutes=3)),
        Answer(questions[0].id, 4, START),
    ]
    schedule, soon = Schedule(given_), START + timedelta(minutes=30)

    def ids(**options):
        return [questions.index(q) for q in next_questions(questions, schedule, soon, **options)]

    assert ids() == [1, 3, 2, 4]
    assert ids(count=3) == [1, 3, 2]
    assert ids(ahead=True) == [1, 3, 2, 4, 0]
    assert [questions.index(q) for q in next_questions(questions, schedule, START)] == [2, 4]
    assert next_questions(questions, schedule, soon, count=0) == []


def test_statistics_count_by_topic():
    transfer = [q for q in BANK if q.topic == "transfer"]
    given_ = [Answer(transfer[0].id, 1, START), Answer(transfer[0].id, 3, START + timedelta(minutes=11))]
    given_ += [Answer(transfer[1].id, 1, START), Answer("gone-from-the-bank", 1, START)]
    now = START + timedelta(minutes=20)
    lines = statistics(BANK, Schedule(given_), now).splitlines()
    assert lines[0].split() == ["topic", "questions", "seen", "due", "answers", "again", "tomorrow"]
    tomorrow = now + timedelta(days=1)
    total = 100 * sum(Schedule(given_).recall(q.id, tomorrow) for q in transfer[:2])
    assert 50 < total < 190
    assert lines[2].split() == ["transfer", str(len(transfer)), "2", "1", "3", "2", f"{total / len(transfer):.0f}", "%"]
    assert lines[-1].split() == ["all", str(len(BANK)), "2", "1", "3", "2", f"{total / len(BANK):.0f}", "%"]
    assert len(lines) == 2 + 17 + 1
    assert len(statistics(transfer, Schedule([]), now).splitlines()) == 4
    assert statistics([], Schedule([]), now).splitlines()[-1].split() == ["all", "0", "0", "0", "0", "0", "0", "%"]


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (timedelta(0), "1 min"),
        (timedelta(minutes=15), "15 min"),
        (timedelta(minutes=59, seconds=50), "1 hour"),
        (timedelta(hours=5), "5 hours"),
        (timedelta(hours=23, minutes=50), "1 day"),
        (timedelta(days=2), "2 days"),
        (timedelta(days=59), "59 days"),
        (timedelta(days=60), "2 months"),
        (timedelta(days=365), "12 months"),
    ],
)
def test_a_wait_in_words(wait, words):
    assert in_words(wait) == words


def test_the_progress_needs_no_torch():
    code = "import sys, course_tools.study.quiz as q; q.Progress(sys.argv[1]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "nowhere.jsonl"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "False"
