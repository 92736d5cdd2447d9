"""The interview questions as a quiz in the terminal: ``course quiz``.

Answer aloud, compare, rate yourself; what you knew comes back in days, what you did not in minutes. ``--interview``
asks across the topics against the clock, ``--stats`` says where you stand, ``--export`` writes cards for Anki.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from course_tools.study.question_views import FENCED, as_text, titled, write_anki
from course_tools.study.questions import LEVELS, Question, add_filters, chosen, read_bank
from course_tools.study.quiz_progress import (
    RATINGS,
    Answer,
    Progress,
    Schedule,
    in_words,
    next_questions,
    standing,
    statistics,
)
from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.tables import counted, text_table

WIDEST = 100  # columns; longer lines are hard to read
INTERRUPTED = 130
QUIT = ("q", "quit", "exit")
HELP = "1 Again, 2 Hard, 3 Good or 4 Easy rates your answer; f shows the full answer, c the code, q ends the quiz."


def _ask(prompt: str) -> str:
    given = input(prompt)
    if not sys.stdin.isatty():
        print()  # nobody pressed Enter, so the line has not ended yet
    return given.strip().casefold()


class Ended(Exception):
    """Raised when the reader types q."""


@dataclass
class Session:
    """One sitting: the reader's answers, and the functions that talk to the reader.

    Parameters
    ----------
    progress
        All answers so far.
    ask
        Shows a prompt and returns the typed text in small letters; ``EOFError`` and ``KeyboardInterrupt`` end the
        sitting.
    write
        Shows a text.
    now
        Returns the time, with its zone.
    clock
        Returns seconds that only ever grow, for measuring.
    width
        Number of columns.
    styled
        True if the terminal understands ANSI codes.

    Attributes
    ----------
    given : list of Answer
        Answers of this sitting.
    taken : list of tuple
        In an interview: each question that was rated, and the seconds that its answer took.
    """

    progress: Progress
    ask: Callable[[str], str] = _ask
    write: Callable[[str], None] = print
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock: Callable[[], float] = time.monotonic
    width: int = 80
    styled: bool = False
    given: list[Answer] = field(default_factory=list, init=False)
    taken: list[tuple[Question, float]] = field(default_factory=list, init=False)
    _save_failed: bool = field(default=False, init=False)

    def schedule(self) -> Schedule:
        """Return the schedule of every question after all answers so far."""
        return Schedule(self.progress.answers)

    def show(self, markdown: str) -> None:
        """Show a text that is written in Markdown, with an empty line after it."""
        self.write(as_text(markdown, self.width, self.styled) + "\n")

    def quiz(self, questions: Sequence[Question]) -> None:
        """Ask, reveal, rate, keep; one question after the other.

        Raises
        ------
        EOFError, KeyboardInterrupt, Ended
            When the reader stops early. The answers until then are kept.
        """
        for number, question in enumerate(questions, 1):
            self._pose(question, number, len(questions))
            started = self.clock()
            self._wait_for_enter("Answer aloud, then press Enter (q ends) > ")
            rating = self._reveal_and_rate(question)
            self._keep(question, rating, self.clock() - started)

    def interview(self, questions: Sequence[Question], seconds: float) -> None:
        """Ask with a time limit; it runs from the question to the end of the reader's own answer.

        Parameters
        ----------
        questions
            Questions in the order to ask them.
        seconds
            Time for each.

        Raises
        ------
        EOFError, KeyboardInterrupt, Ended
            Same as in :meth:`quiz`.
        """
        for number, question in enumerate(questions, 1):
            self._pose(question, number, len(questions))
            started = self.clock()
            self._wait_for_enter(f"You have {_minutes(seconds)}. Press Enter when you have said it (q ends) > ")
            took = self.clock() - started
            late = f", {_minutes(took - seconds)} too long" if took > seconds else ""
            self.write(f"\nThat took {_minutes(took)}{late}.")
            self._keep(question, self._reveal_and_rate(question), took)
            self.taken.append((question, took))

    def _pose(self, question: Question, number: int, total: int) -> None:
        before = self.schedule().last_time(question.id)
        place = f"{number} of {total} · {question.level} · {question.topic} · {before}"
        self.write(f"── {place} ".ljust(self.width, "─") + "\n")
        self.show(f"**{question.question}**")

    def _wait_for_enter(self, prompt: str) -> None:
        if self.ask(prompt) in QUIT:
            raise Ended

    def _reveal_and_rate(self, question: Question) -> int:
        self.write("")
        self.show(titled(question, ["short"]))
        waits = self.schedule().waits(question.id, self.now())
        choices = "   ".join(f"{n} {name} ({in_words(waits[n])})" for n, name in RATINGS.items())
        more = "f full answer, c code, q ends" if question.snippets else "f full answer, q ends"
        rating = None
        while rating is None:
            rating = self._rating_or_more(self.ask(f"{choices}\n{more} > "), question)
        return rating

    def _rating_or_more(self, typed: str, question: Question) -> int | None:
        """Return the rating that was typed, or None after showing what was asked for instead."""
        if typed in QUIT:
            raise Ended
        for number, name in RATINGS.items():
            if typed and (typed == str(number) or name.casefold().startswith(typed)):
                return number
        self.write("")
        if typed in ("f", "full", ""):
            answer = titled(question, ["full", "mistake", "follow_up", "shown"])
            self.show("".join(FENCED.split(answer)[::2]))  # the code is shown when it is asked for
        elif typed in ("c", "code") and question.snippets:
            self.show("\n\n".join(f"```python\n{code}```" for code in question.snippets))
        else:
            self.write(f"{HELP}\n")
        return None

    def _keep(self, question: Question, rating: int, seconds: float) -> None:
        """Keep an answer; a full disk does not end the quiz, and is told once."""
        answer = Answer(question.id, rating, self.now(), seconds)
        self.given.append(answer)
        try:
            self.progress.add(answer)
            self._save_failed = False
        except CourseError as error:
            if not self._save_failed:
                self.write(f"\nNot kept yet: {error} The quiz goes on, and every answer tries again.")
            self._save_failed = True
        self.write("")

    def close(self, questions: Sequence[Question]) -> None:
        """Show what was done and what comes next; raise :class:`CourseError` if answers could not be kept."""
        if self.given:
            times = Counter(answer.rating for answer in self.given)
            parts = [f"{times[number]} {name}" for number, name in RATINGS.items() if times[number]]
            self.write(f"{counted(len(self.given), 'answer')}: {', '.join(parts)}.")
        stand = standing(questions, self.schedule(), self.now())
        seen = f"{stand.seen} of {counted(stand.questions, 'question')} seen, {stand.due} due."
        self.write(f"{seen} {self.next_due(questions)}")
        self.progress.save()

    def next_due(self, questions: Iterable[Question]) -> str:
        """Return a sentence that says when the next question comes back; empty when that is now or never."""
        schedule, now = self.schedule(), self.now()
        coming = [due for q in questions if (due := schedule.due(q.id)) and due > now]
        return f"The next one comes back in {in_words(min(coming) - now)}." if coming else ""


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def drawn(questions: Iterable[Question], count: int, seed: int) -> list[Question]:
    """Return questions for an interview: from as many topics as possible, the easy ones first.

    Parameters
    ----------
    questions
        Questions to draw from.
    count
        Number of questions; fewer if there are not so many.
    seed
        The same seed draws the same questions.
    """
    rng = random.Random(seed)
    by_topic: dict[str, list[Question]] = {}
    for question in questions:
        by_topic.setdefault(question.topic, []).append(question)
    topics = list(by_topic.values())
    rng.shuffle(topics)
    for some in topics:
        rng.shuffle(some)
    in_turn = [question for turn in itertools.zip_longest(*topics) for question in turn if question is not None]
    return sorted(in_turn[:count], key=lambda question: LEVELS.index(question.level))


def interview_report(taken: Sequence[tuple[Question, float]], answers: Sequence[Answer], seconds: float) -> str:
    """Return a table of an interview: question, topic, time and rating, and the number of answers in time."""
    rows = [
        [question.id, question.topic, _minutes(took), RATINGS[answer.rating]]
        for (question, took), answer in zip(taken, answers, strict=True)
    ]
    within = sum(took <= seconds for _, took in taken)
    known = sum(answer.rating > 1 for answer in answers)
    table = text_table(["question", "topic", "time", "rating"], rows)
    total, each = _minutes(sum(took for _, took in taken)), _minutes(seconds)
    return f"{table}\n\n{total} in all; {within} of {len(taken)} within {each}, {known} of {len(taken)} known."


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``course quiz``."""
    about = " ".join(__doc__.split("\n\n")[1].split()).replace("``", "")
    parser = OneLineParser(prog="course quiz", description=about, allow_abbrev=False)
    add_filters(parser)
    parser.add_argument("-n", "--number", type=int, metavar="N", help="at most so many questions (default 10)")
    parser.add_argument("--ahead", action="store_true", help="also questions that are not due yet")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--interview", type=int, metavar="N", help="a mock interview of N questions")
    what.add_argument("--stats", action="store_true", help="where you stand in each topic")
    what.add_argument("--export", type=Path, metavar="FILE", help="write cards for Anki, such as cards.tsv")
    parser.add_argument("--seconds", type=float, help="time for each question of an interview (default 120)")
    parser.add_argument("--seed", type=int, help="draw the same interview again")
    return parser


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options with their defaults; raise :class:`CourseError` if they do not fit together."""
    for name, value in (("-n", args.number), ("--interview", args.interview), ("--seconds", args.seconds)):
        if value is not None and not value > 0:
            raise CourseError(f"{name} {value} is not usable: give a number from 1 upwards.")
    if args.interview is None and (args.seconds is not None or args.seed is not None):
        raise CourseError("--seconds and --seed belong to --interview N.")
    if args.number is not None and (args.interview or args.stats or args.export):
        raise CourseError("-n belongs to the quiz: --interview takes its own number, --stats and --export take all.")
    args.number = args.number or 10
    args.seconds = args.seconds or 120.0
    args.seed = random.SystemRandom().randrange(10_000) if args.seed is None else args.seed
    return args


def terminal_session(progress: Progress) -> Session:
    """Return a session at standard input and output."""
    # A question mark in place of a letter is better than a quiz that ends at a Greek one.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    width = max(40, min(shutil.get_terminal_size().columns - 1, WIDEST))
    styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return Session(progress, width=width, styled=styled)


def main(argv: Sequence[str]) -> int:
    """Run ``course quiz``; return 0 when it went well, also when the reader ended it, and 130 after Ctrl-C."""
    args = _checked(make_parser().parse_args(argv))
    questions = chosen(read_bank(), args.level, args.topic)
    if not questions:
        raise CourseError("No question has this level and this topic; course questions --stats shows what there is.")
    if args.export:
        write_anki(questions, args.export)
        print(f"{counted(len(questions), 'card')} written to {args.export}; in Anki: File, Import.")
        return 0
    session = terminal_session(Progress())
    if session.progress.notice:
        session.write(f"{session.progress.notice}\n")
    if args.stats:
        session.write(statistics(questions, session.schedule(), session.now()))
        return 0
    return _interview(session, questions, args) if args.interview else _quiz(session, questions, args)


def _quiz(session: Session, questions: Sequence[Question], args: argparse.Namespace) -> int:
    asked = next_questions(questions, session.schedule(), session.now(), args.number, args.ahead)
    if not asked:
        session.write(f"Nothing is due. {session.next_due(questions)} --ahead goes on all the same.")
        return 0
    code = _until_stopped(session, lambda: session.quiz(asked))
    session.close(questions)
    return code


def _interview(session: Session, questions: Sequence[Question], args: argparse.Namespace) -> int:
    asked = drawn(questions, args.interview, args.seed)
    session.write(f"A mock interview: {counted(len(asked), 'question')} (--seed {args.seed} asks them again).\n")
    code = _until_stopped(session, lambda: session.interview(asked, args.seconds))
    if session.taken:
        session.write(interview_report(session.taken, session.given[: len(session.taken)], args.seconds) + "\n")
    session.close(questions)
    return code


def _until_stopped(session: Session, work: Callable[[], None]) -> int:
    """Run a quiz to its end, or until the reader ends it, which is no error; return the exit code."""
    try:
        work()
    except KeyboardInterrupt:
        session.write("\n")
        return INTERRUPTED
    except EOFError:
        session.write("\n")
    except Ended:
        session.write("")
    return 0
