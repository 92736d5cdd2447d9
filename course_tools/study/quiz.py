"""The interview questions as a quiz in the terminal: ``course quiz``.

Answer aloud, compare, rate yourself; what you knew comes back in days, what you did not in minutes. ``--interview``
asks across the topics against the clock, ``--stats`` says where you stand, ``--export`` writes cards for Anki.
"""

from __future__ import annotations

import argparse
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

from course_tools.study.question_views import as_text, titled, write_anki
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
from course_utils.common.errors import CourseError
from course_utils.common.tables import text_table

WIDEST = 100  # columns; longer lines are hard to read
INTERRUPTED = 130
HELP = "1 Again, 2 Hard, 3 Good or 4 Easy rates your answer; f shows the full answer, c the code, q ends the quiz."


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _ask(prompt: str) -> str:
    given = input(prompt)
    if not sys.stdin.isatty():
        print()  # nobody pressed Enter, so the line has not ended yet
    return given.strip().casefold()


class Ended(Exception):
    """The reader wants to stop here."""


@dataclass
class Session:
    """One sitting: where the questions come from, and through what it talks to the reader.

    Parameters
    ----------
    progress
        Where answers are kept.
    ask
        Shows a prompt and gives what was typed, in small letters; ``EOFError`` and ``KeyboardInterrupt`` end it all.
    say
        Shows a text.
    now
        The time, with its zone.
    clock
        Seconds that only ever grow, for measuring.
    width
        Columns.
    styled
        Whether the terminal understands ANSI codes.

    Attributes
    ----------
    given : list of Answer
        What was answered in this sitting.
    taken : list of tuple
        In an interview: each question that was rated, and the seconds that its answer took.
    """

    progress: Progress
    ask: Callable[[str], str] = _ask
    say: Callable[[str], None] = print
    now: Callable[[], datetime] = _utc_now
    clock: Callable[[], float] = time.monotonic
    width: int = 80
    styled: bool = False
    given: list[Answer] = field(default_factory=list, init=False)
    taken: list[tuple[Question, float]] = field(default_factory=list, init=False)
    _unkept: str = field(default="", init=False)

    def schedule(self) -> Schedule:
        """What all answers so far make of every question."""
        return Schedule(self.progress.answers)

    def show(self, markdown: str) -> None:
        """Say something that is written in Markdown, with an empty line behind it."""
        self.say(as_text(markdown, self.width, self.styled) + "\n")

    def quiz(self, questions: Sequence[Question]) -> None:
        """Ask, reveal, rate, keep; one question after the other.

        Raises
        ------
        EOFError, KeyboardInterrupt, Ended
            When the reader stops early. What was answered until then is kept.
        """
        for number, question in enumerate(questions, 1):
            self._pose(question, number, len(questions))
            started = self.clock()
            self._wait_for_enter("Answer aloud, then press Enter (q ends) > ")
            self._reveal_and_rate(question, started)

    def interview(self, questions: Sequence[Question], seconds: float) -> None:
        """The same with a time to keep; it runs from the question to the end of the reader's own answer.

        Parameters
        ----------
        questions
            What to ask, in this order.
        seconds
            Time for each.

        Raises
        ------
        EOFError, KeyboardInterrupt, Ended
            As :meth:`quiz`.
        """
        for number, question in enumerate(questions, 1):
            self._pose(question, number, len(questions))
            started = self.clock()
            self._wait_for_enter(f"You have {_minutes(seconds)}. Press Enter when you have said it (q ends) > ")
            took = self.clock() - started
            late = f", {_minutes(took - seconds)} too long" if took > seconds else ""
            self.say(f"\nThat took {_minutes(took)}{late}.")
            self._reveal_and_rate(question, started, took)
            self.taken.append((question, took))

    def _pose(self, question: Question, number: int, total: int) -> None:
        last = self.schedule().answers(question.id)
        before = f"last time {RATINGS[last[-1].rating]}" if last else "new"
        place = f"{number} of {total} · {question.level} · {question.topic} · {before}"
        self.say(f"── {place} ".ljust(self.width, "─") + "\n")
        self.show(f"**{question.question}**")

    def _wait_for_enter(self, prompt: str) -> None:
        if self.ask(prompt) in ("q", "quit", "exit"):
            raise Ended

    def _reveal_and_rate(self, question: Question, started: float, took: float | None = None) -> None:
        self.say("")
        self.show(titled(question, ["short"]))
        waits = self.schedule().waits(question.id, self.now())
        choices = "   ".join(f"{n} {name} ({in_words(waits[n])})" for n, name in RATINGS.items())
        more = "f full answer, c code, q ends" if question.snippets else "f full answer, q ends"
        rating = None
        while rating is None:
            typed = self.ask(f"{choices}\n{more} > ")
            rating = self._rating_or_more(typed, question)
        seconds = self.clock() - started if took is None else took
        self._keep(Answer(question.id, rating, self.now(), seconds))

    def _rating_or_more(self, typed: str, question: Question) -> int | None:
        """The rating that was typed, or None after showing what was asked for instead."""
        if typed in ("q", "quit", "exit"):
            raise Ended
        for number, name in RATINGS.items():
            if typed and (typed == str(number) or name.casefold().startswith(typed)):
                return number
        if typed in ("f", "full", ""):
            self.say("")
            self.show(_prose(titled(question, ["full", "mistake", "follow_up", "shown"])))
        elif typed in ("c", "code") and question.snippets:
            self.say("")
            self.show("\n\n".join(f"```python\n{code}```" for code in question.snippets))
        else:
            self.say(f"\n{HELP}\n")
        return None

    def _keep(self, answer: Answer) -> None:
        """Keep an answer; a full disk ends no quiz, and is told once."""
        self.given.append(answer)
        try:
            self.progress.add(answer)
        except CourseError as error:
            if not self._unkept:
                self.say(f"\nNot kept yet: {error} The quiz goes on, and every answer tries again.")
            self._unkept = str(error)
        else:
            self._unkept = ""
        self.say("")

    def close(self, questions: Sequence[Question]) -> None:
        """Say what was done and what comes next; raise :class:`CourseError` if answers could not be kept."""
        if self.given:
            times = Counter(answer.rating for answer in self.given)
            parts = [f"{times[number]} {name}" for number, name in RATINGS.items() if times[number]]
            self.say(f"{_count(len(self.given), 'answer')}: {', '.join(parts)}.")
        stand = standing("", questions, self.schedule(), self.now())
        self.say(
            f"{stand.seen} of {_count(stand.questions, 'question')} seen, {stand.due} due. {self.next_due(questions)}"
        )
        self.progress.save()

    def next_due(self, questions: Iterable[Question]) -> str:
        """When the next question comes back, in a sentence; empty when that is now or never."""
        schedule, now = self.schedule(), self.now()
        coming = sorted(due for q in questions if (due := schedule.due(q.id)) and due > now)
        return f"The next one comes back in {in_words(coming[0] - now)}." if coming else ""


def _prose(markdown: str) -> str:
    """An answer with a word where its code stands: that is shown when it is asked for."""
    before, fence, rest = markdown.partition("\n```python\n")
    if not fence:
        return markdown
    return before + _prose(rest.partition("\n```")[2])


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def drawn(questions: Iterable[Question], count: int, seed: int) -> list[Question]:
    """Questions for an interview: from as many topics as possible, the easy ones first.

    Parameters
    ----------
    questions
        Where to draw from.
    count
        How many; fewer if there are not so many.
    seed
        The same seed draws the same questions.
    """
    rng = random.Random(seed)
    by_topic: dict[str, list[Question]] = {}
    for question in questions:
        by_topic.setdefault(question.topic, []).append(question)
    waiting = list(by_topic.values())
    rng.shuffle(waiting)
    for some in waiting:
        rng.shuffle(some)
    rounds = max(map(len, waiting), default=0)
    in_turn = [some[i] for i in range(rounds) for some in waiting if i < len(some)]
    return sorted(in_turn[:count], key=lambda question: LEVELS.index(question.level))


def interview_report(taken: Sequence[tuple[Question, float]], answers: Sequence[Answer], seconds: float) -> str:
    """A table of the questions of an interview: level, topic, time and rating, and how many were in time."""
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
    """The options of ``course quiz``."""
    about = " ".join(__doc__.split("\n\n")[1].split()).replace("``", "")
    parser = argparse.ArgumentParser(prog="course quiz", description=about, allow_abbrev=False)
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
    """Options that fit together, with their defaults; raises :class:`CourseError`."""
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
    """A session with whoever sits at standard input and output."""
    # A question mark in place of a letter is better than a quiz that ends at a Greek one.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    width = max(40, min(shutil.get_terminal_size().columns - 1, WIDEST))
    styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return Session(progress, width=width, styled=styled)


def main(argv: Sequence[str]) -> int:
    """``course quiz``: 0 when it went well, also when the reader ended it; 130 after Ctrl-C."""
    args = _checked(make_parser().parse_args(argv))
    questions = chosen(read_bank(), args.level, args.topic)
    if not questions:
        raise CourseError("No question has this level and this topic; course questions --stats shows what there is.")
    if args.export:
        write_anki(questions, args.export)
        print(f"{_count(len(questions), 'card')} written to {args.export}; in Anki: File, Import.")
        return 0
    session = terminal_session(Progress())
    if session.progress.notice:
        session.say(f"{session.progress.notice}\n")
    if args.stats:
        session.say(statistics(questions, session.schedule(), session.now()))
        return 0
    return _interview(session, questions, args) if args.interview else _quiz(session, questions, args)


def _quiz(session: Session, questions: Sequence[Question], args: argparse.Namespace) -> int:
    asked = next_questions(questions, session.schedule(), session.now(), args.number, args.ahead)
    if not asked:
        session.say(f"Nothing is due. {session.next_due(questions)} --ahead goes on all the same.")
        return 0
    code = _until_stopped(session, lambda: session.quiz(asked))
    session.close(questions)
    return code


def _interview(session: Session, questions: Sequence[Question], args: argparse.Namespace) -> int:
    asked = drawn(questions, args.interview, args.seed)
    session.say(f"A mock interview: {_count(len(asked), 'question')} (--seed {args.seed} asks them again).\n")
    code = _until_stopped(session, lambda: session.interview(asked, args.seconds))
    if session.taken:
        session.say(interview_report(session.taken, session.given[: len(session.taken)], args.seconds) + "\n")
    session.close(questions)
    return code


def _until_stopped(session: Session, work: Callable[[], None]) -> int:
    """Run a quiz to its end, or to where the reader ends it, which is no error."""
    try:
        work()
    except KeyboardInterrupt:
        session.say("\n")
        return INTERRUPTED
    except EOFError:
        session.say("\n")
    except Ended:
        session.say("")
    return 0
