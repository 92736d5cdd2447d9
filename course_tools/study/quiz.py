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
from collections import Counter, defaultdict
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
    """One sitting: the reader's answers, and the functions that talk to the reader and tell the time.

    ``ask`` shows a prompt and returns the typed text in small letters; ``now`` returns an aware moment, ``clock``
    seconds that only ever grow. ``given`` has the answers of this sitting.
    """

    progress: Progress
    ask: Callable[[str], str] = _ask
    write: Callable[[str], None] = print
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock: Callable[[], float] = time.monotonic
    width: int = 80
    styled: bool = False
    given: list[Answer] = field(default_factory=list, init=False)
    _save_failed: bool = field(default=False, init=False)

    def schedule(self) -> Schedule:
        """Return the schedule after all answers so far."""
        return Schedule(self.progress.answers)

    def show(self, markdown: str) -> None:
        """Show a text that is written in Markdown, with an empty line after it."""
        self.write(as_text(markdown, self.width, self.styled) + "\n")

    def quiz(self, questions: Sequence[Question]) -> None:
        """Ask, reveal, rate, keep; one question after the other.

        When the reader stops early, by EOFError, KeyboardInterrupt or Ended, the answers until then are kept.
        """
        for number, question in enumerate(questions, 1):
            started = self._pose(question, number, len(questions), "Answer aloud, then press Enter (q ends) > ")
            rating = self._reveal_and_rate(question)
            self._keep(question, rating, self.clock() - started)

    def interview(self, questions: Sequence[Question], seconds: float) -> None:
        """Ask as :meth:`quiz`, with a time limit that runs to the end of the reader's own answer."""
        for number, question in enumerate(questions, 1):
            prompt = f"You have {_minutes(seconds)}. Press Enter when you have said it (q ends) > "
            started = self._pose(question, number, len(questions), prompt)
            took = self.clock() - started
            late = f", {_minutes(took - seconds)} too long" if took > seconds else ""
            self.write(f"\nThat took {_minutes(took)}{late}.")
            self._keep(question, self._reveal_and_rate(question), took)

    def _pose(self, question: Question, number: int, total: int, prompt: str) -> float:
        """Show a question and wait for Enter; return the clock's seconds at which it was shown."""
        before = self.schedule().last_time(question.id)
        place = f"{number} of {total} · {question.level} · {question.topic} · {before}"
        self.write(f"── {place} ".ljust(self.width, "─") + "\n")
        self.show(f"**{question.question}**")
        shown = self.clock()
        if self.ask(prompt) in QUIT:
            raise Ended
        return shown

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
    return "{}:{:02d}".format(*divmod(round(seconds), 60))


def drawn(questions: Iterable[Question], count: int, seed: int) -> list[Question]:
    """Return `count` questions, or all: from as many topics as possible, easy first; a seed draws the same again."""
    rng = random.Random(seed)
    by_topic: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_topic[question.topic].append(question)
    topics = list(by_topic.values())
    rng.shuffle(topics)
    for some in topics:
        rng.shuffle(some)
    in_turn = [question for turn in itertools.zip_longest(*topics) for question in turn if question is not None]
    return sorted(in_turn[:count], key=lambda question: LEVELS.index(question.level))


def interview_report(asked: Sequence[Question], answers: Sequence[Answer], seconds: float) -> str:
    """Return a table of an interview: question, topic, time and rating, and the number of answers in time."""
    pairs = zip(asked, answers, strict=False)  # a stopped interview has fewer answers
    rows = [[question.id, question.topic, _minutes(one.seconds), RATINGS[one.rating]] for question, one in pairs]
    table = text_table(["question", "topic", "time", "rating"], rows)
    within = sum(one.seconds <= seconds for one in answers)
    known = sum(one.rating > 1 for one in answers)
    total, each = _minutes(sum(one.seconds for one in answers)), _minutes(seconds)
    return f"{table}\n\n{total} in all; {within} of {len(answers)} within {each}, {known} of {len(answers)} known."


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
    return _hold(session, questions, args)


def _hold(session: Session, questions: Sequence[Question], args: argparse.Namespace) -> int:
    """Hold a quiz or an interview to its end, or until the reader ends it, which is no error; return the exit code."""
    code = 0
    if args.interview:
        asked = drawn(questions, args.interview, args.seed)
        session.write(f"A mock interview: {counted(len(asked), 'question')} (--seed {args.seed} asks them again).\n")
    else:
        asked = next_questions(questions, session.schedule(), session.now(), args.number, args.ahead)
        if not asked:
            session.write(f"Nothing is due. {session.next_due(questions)} --ahead goes on all the same.")
            return 0
    try:
        session.interview(asked, args.seconds) if args.interview else session.quiz(asked)
    except (KeyboardInterrupt, EOFError) as end:
        session.write("\n")
        code = 130 if isinstance(end, KeyboardInterrupt) else 0
    except Ended:
        session.write("")
    if args.interview and session.given:
        session.write(interview_report(asked, session.given, args.seconds) + "\n")
    session.close(questions)
    return code
