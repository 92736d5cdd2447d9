"""quiz.py: the quiz as a reader types it, with a clock and a calendar of our own."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from course_tools.study import quiz
from course_tools.study.questions import TOPICS, read_bank
from course_tools.study.quiz import Ended, Session, drawn
from course_tools.study.quiz_progress import Progress
from course_utils.common import files
from course_utils.common.errors import CourseError

ROOT = Path(__file__).parents[2]
BANK = read_bank()
EASY = [question for question in BANK if question.level == "easy"]
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Reader:
    """Types what it was told to, then Ctrl-D; every line takes it ten seconds."""

    def __init__(self, path, *typed):
        self.typed, self.prompts, self.said, self.seconds = list(typed), [], [], 0.0
        self.session = Session(Progress(path), self.ask, self.said.append, self.now, lambda: self.seconds)

    def ask(self, prompt):
        self.prompts.append(prompt)
        self.seconds += 10
        if not self.typed:
            raise EOFError
        typed = self.typed.pop(0)
        if isinstance(typed, BaseException):
            raise typed
        return typed

    def now(self):
        return START + timedelta(seconds=self.seconds)

    @property
    def text(self):
        return "\n".join(self.said)

    def ratings(self):
        return [(one.question, one.rating) for one in self.session.given]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "quiz.jsonl"


@pytest.fixture
def typing(monkeypatch, path):
    """``course quiz`` with a reader in place of the terminal; gives a function of what is typed and the arguments."""
    monkeypatch.setenv("COURSE_QUIZ", str(path))
    monkeypatch.setattr(quiz, "read_bank", lambda: BANK)  # once is enough

    def run(typed, *argv):
        reader = Reader(path, *typed)
        monkeypatch.setattr(quiz, "terminal_session", lambda _progress: reader.session)
        return quiz.main(argv), reader

    return run


def test_question_then_answer_then_rating(path):
    reader = Reader(path, "", "3", "", "1")
    reader.session.quiz(EASY[:2])
    assert reader.ratings() == [(EASY[0].id, 3), (EASY[1].id, 1)]
    assert [one.seconds for one in reader.session.given] == [20, 20]
    assert Progress(path).answers == tuple(reader.session.given)
    first_word = EASY[0].short.split()[0]
    shown = [i for i, text in enumerate(reader.said) if f"In 30 seconds. {first_word}" in text]
    posed = [i for i, text in enumerate(reader.said) if EASY[0].question in text]
    assert posed[0] < shown[0]
    assert "── 1 of 2 · easy · transfer · new ──" in reader.text
    assert reader.prompts[1].startswith("1 Again (10 min)   2 Hard (15 min)   3 Good (2 days)   4 Easy (")


@pytest.mark.parametrize(
    ("typed", "rating"), [("1", 1), ("2", 2), ("3", 3), ("4", 4), ("again", 1), ("h", 2), ("goo", 3), ("easy", 4)]
)
def test_a_rating_is_a_number_or_the_beginning_of_its_name(path, typed, rating):
    reader = Reader(path, "", typed)
    reader.session.quiz(EASY[:1])
    assert reader.ratings() == [(EASY[0].id, rating)]


def test_the_full_answer_and_the_code_come_on_request(path):
    question = next(q for q in EASY if q.snippets)
    reader = Reader(path, "", "", "c", "f", "5", "x", "3")
    reader.session.quiz([question])
    assert reader.text.count("In full.") == 2 and reader.text.count("Follow-up.") == 2
    assert reader.text.count("Shown in day") == 2
    assert reader.text.count(question.snippets[0].split("\n")[0]) == 1
    assert reader.text.count(quiz.HELP) == 2
    assert "c code" in reader.prompts[1]


def test_without_code_none_is_offered(path):
    question = next(q for q in EASY if not q.snippets)
    reader = Reader(path, "", "c", "3")
    reader.session.quiz([question])
    assert "c code" not in reader.prompts[1] and quiz.HELP in reader.text


@pytest.mark.parametrize("typed", [["", "3", "q"], ["", "3", "", "q"], ["", "3", "", "quit"]])
def test_q_ends_and_keeps(path, typed):
    reader = Reader(path, *typed)
    with pytest.raises(Ended):
        reader.session.quiz(EASY[:3])
    assert [one.question for one in Progress(path).answers] == [EASY[0].id]


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (["", "3"], 0),
        (["", "3", ""], 0),
        (["", "3", "q"], 0),
        (["", "3", KeyboardInterrupt()], 130),
        (["", "3", "", KeyboardInterrupt()], 130),
    ],
)
def test_ctrl_d_and_ctrl_c_end_cleanly_and_keep(typing, path, typed, code):
    given, reader = typing(typed, "--level", "easy", "-n", "3")
    assert given == code
    assert [one.question for one in Progress(path).answers] == [EASY[0].id]
    assert (
        f"1 answer: 1 Good.\n1 of {len(EASY)} questions seen, 0 due. The next one comes back in 2 days." in reader.text
    )


def test_what_was_rated_again_comes_first_the_next_time(typing):
    typing(["", "3", "", "1"], "-n", "2")
    _, reader = typing([], "-n", "1")
    assert f"── 1 of 1 · {BANK[2].level} ·" in reader.text and BANK[2].question[:40] in reader.text
    reader.seconds = 3600
    assert quiz.next_questions(BANK, reader.session.schedule(), reader.now())[0] == BANK[1]
    reader.typed = ["", "3"]
    reader.session.quiz([BANK[1]])
    assert "· last time Again ──" in reader.text


def test_nothing_due_says_when_and_how_to_go_on(typing):
    topic = ["--topic", "vgg", "--level", "hard"]
    typing(["", "4"], *topic)
    code, reader = typing([], *topic)
    assert code == 0 and not reader.prompts
    assert re.fullmatch(
        r"Nothing is due\. The next one comes back in \d days\. --ahead goes on all the same\.", reader.text
    )
    _, reader = typing(["", "3"], *topic, "--ahead")
    assert "last time Easy" in reader.text


def test_a_full_disk_is_told_once_and_every_answer_tries_again(typing, path, monkeypatch):
    replace, calls = os.replace, []

    def full_three_times(source, target):
        calls.append(target)
        if len(calls) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full_three_times)
    code, reader = typing(["", "3"] * 3, "-n", "3")
    assert code == 0 and reader.text.count("Not kept yet: ") == 1
    assert len(Progress(path).answers) == 3


def test_answers_that_could_never_be_kept_end_in_an_error(typing, path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(CourseError, match="could not be written"):
        typing(["", "3"], "-n", "1")
    assert not path.exists()


def test_a_damaged_file_is_said_before_the_first_question(typing, path):
    path.write_text("nonsense\n")
    _, reader = typing([])
    assert reader.said[0].startswith("1 line of quiz.jsonl could not be read. The file as it was is now quiz-damaged-")


def test_statistics(typing):
    typing(["", "3", "", "1"], "-n", "2", "--topic", "heads")
    code, reader = typing([], "--stats")
    assert code == 0 and not reader.prompts
    rows = {line[:34].strip(): line[34:].split() for line in reader.text.splitlines()[2:]}
    assert [*rows] == [*TOPICS, "all"]
    assert rows["heads"][1:5] == rows["all"][1:5] == ["2", "0", "2", "1"]


def test_an_interview_measures_reports_and_counts_as_practice(typing, path):
    class Slow(Reader):
        def ask(self, prompt):
            self.seconds += 100 if prompt.startswith("You have 0:30") else 0
            return super().ask(prompt)

    code, reader = typing(["", "3", "", "1"], "--interview", "2", "--seconds", "30", "--seed", "1")
    asked = drawn(BANK, 2, 1)
    assert code == 0 and [one.question for one in Progress(path).answers] == [q.id for q in asked]
    assert [one.seconds for one in Progress(path).answers] == [10, 10], "looking at the answer costs no time"
    assert reader.prompts[0] == "You have 0:30. Press Enter when you have said it (q ends) > "
    assert reader.text.count("That took 0:10.") == 2
    assert "0:20 in all; 2 of 2 within 0:30, 1 of 2 known." in reader.text
    slow = Slow(path, "", "3")
    slow.session.interview(asked[:1], 30)
    assert "That took 1:50, 1:20 too long." in slow.text


@pytest.mark.parametrize("end", [[], ["q"], [KeyboardInterrupt()], ["", KeyboardInterrupt()], ["", "q"]])
def test_an_interview_that_is_stopped_reports_what_there_was(typing, end):
    code, reader = typing(["", "3", *end], "--interview", "5", "--seed", "3")
    assert code == (130 if end and not isinstance(end[-1], str) else 0)
    assert "0:10 in all; 1 of 1 within 2:00, 1 of 1 known." in reader.text
    _, reader = typing([], "--interview", "5", "--seed", "3")
    assert " in all; " not in reader.text


def test_an_interview_goes_across_the_topics_easy_ones_first():
    for seed in range(20):
        asked = drawn(BANK, 17, seed)
        assert {q.topic for q in asked} == set(TOPICS)
        assert asked == sorted(asked, key=lambda q: ("easy", "medium", "hard").index(q.level))
        assert asked == drawn(BANK, 17, seed)
    assert len({tuple(q.id for q in drawn(BANK, 5, seed)) for seed in range(20)}) > 15
    assert sorted(q.id for q in drawn(BANK, 1000, 0)) == sorted(q.id for q in BANK)
    assert drawn([], 3, 0) == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["-n", "0"], "-n 0 is not usable"),
        (["--interview", "-1"], "--interview -1 is not usable"),
        (["--interview", "2", "--seconds", "nan"], "--seconds nan is not usable"),
        (["--interview", "2", "--seconds", "0"], "--seconds 0.0 is not usable"),
        (["--seconds", "5"], "belong to --interview"),
        (["--seed", "0"], "belong to --interview"),
        (["--stats", "-n", "3"], "-n belongs to the quiz"),
        (["--level", "trivial"], "The level 'trivial' is unknown: choose among easy, medium, hard"),
        (["--topic", "cooking"], "The topic 'cooking' is unknown"),
    ],
)
def test_options_that_make_no_sense_are_named(argv, told):
    with pytest.raises(CourseError, match=re.escape(told)):
        quiz.main(argv)


def test_export_takes_the_chosen_questions(tmp_path, capsys):
    target = tmp_path / "cards.tsv"
    assert quiz.main(["--export", str(target), "--level", "easy", "--topic", "heads"]) == 0
    assert capsys.readouterr().out == f"2 cards written to {target}; in Anki: File, Import.\n"
    assert [line.split("\t")[0] for line in target.read_text().splitlines() if line.startswith("easy-")] == [
        q.id for q in EASY if q.topic == "heads"
    ]


def course(path, *argv, **options):
    environ = {**os.environ, "COURSE_QUIZ": str(path), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "course_tools.cli", "quiz", *argv]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, **options)


def test_through_a_pipe_and_without_unicode(path):
    done = course(path, "--level", "easy", "-n", "2", input="\nf\n3\n\n")
    assert done.returncode == 0 and not done.stderr
    assert "1 answer: 1 Good." in done.stdout and "\x1b" not in done.stdout
    assert len(Progress(path).answers) == 1


def test_a_damaged_bank_is_one_line_on_stderr(path):
    done = course(path, "--topic", "cooking", input="")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("course: The topic 'cooking' is unknown: choose one of transfer, ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pty")
def test_in_a_terminal_ctrl_c_keeps_what_was_answered(path):
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "COURSE_QUIZ": str(path), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        environ.pop("NO_COLOR", None)
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "course_tools.cli", "quiz", "-n", "3"], environ)
    seen = b""

    def read_until(text, times=1):
        nonlocal seen
        while seen.count(text) < times:
            piece = os.read(terminal, 4096)
            assert piece
            seen += piece

    try:
        read_until(b"press Enter (q ends) > ")
        os.write(terminal, b"\n")
        read_until(b"q ends > ")
        os.write(terminal, b"4\n")
        read_until(b"2 of 3")
        read_until(BANK[1].question.encode()[:40])
        read_until(b"press Enter (q ends) > ", times=2)  # a Ctrl-C while readline sets the terminal up may be lost
        os.write(terminal, b"\x03")
        read_until(b"1 answer: 1 Easy.")
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"\x1b[1mIn 30 seconds.\x1b[22m" in seen and b"Traceback" not in seen
    assert [(one.question, one.rating) for one in Progress(path).answers] == [(BANK[0].id, 4)]
