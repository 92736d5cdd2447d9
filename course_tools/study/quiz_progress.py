"""A reader's answers, kept in a file, and when each question is due again.

The file has one line of JSON per answer and nothing else; when a question is due follows from its answers, by the FSRS
algorithm of spaced repetition (package ``fsrs``). So two windows that answer at the same time lose nothing: each adds
its lines to what the file holds by then, under a lock, and the file is replaced as a whole.

``COURSE_QUIZ`` is the file (default: ``quiz.jsonl`` in the course's cache folder).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from fsrs import Card, Rating, Scheduler

from course_tools.study.questions import TOPICS, Question
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text, written_whole
from course_utils.common.tables import counted, percent, text_table
from course_utils.settings import cache_folder

RATINGS = {1: "Again", 2: "Hard", 3: "Good", 4: "Easy"}
LOCK_SECONDS = 10.0
YEARS = (2000, 2199)  # any other year comes from a broken clock, and no schedule can be made of it

# One short step: a known answer comes back days later, an unknown one in ten minutes. The default of fsrs asks even a
# known one again after ten minutes, which suits vocabulary and not answers of two minutes.
STEP = timedelta(minutes=10)


@dataclass(frozen=True)
class Answer:
    """One answer to one question, with the seconds that it took, if known, and an id that no other answer has.

    ``when`` is an aware moment, kept in UTC. A value that is not allowed is a :class:`CourseError`.
    """

    question: str
    rating: int
    when: datetime
    seconds: float | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) and text for text in (self.question, self.id)):
            raise CourseError("An answer belongs to a question and has an id, both of them text.")
        if type(self.rating) is not int or self.rating not in RATINGS:
            raise CourseError(f"The rating {self.rating!r} is none of 1 Again, 2 Hard, 3 Good, 4 Easy.")
        if self.when.tzinfo is None or not YEARS[0] <= self.when.year <= YEARS[1]:
            raise CourseError(f"{self.when} is no time between {YEARS[0]} and {YEARS[1]} with its time zone.")
        object.__setattr__(self, "when", self.when.astimezone(UTC))
        number = type(self.seconds) in (int, float) and math.isfinite(self.seconds) and self.seconds >= 0
        if self.seconds is not None and not number:
            raise CourseError(f"{self.seconds!r} is no time in seconds.")

    def line(self) -> str:
        """Return the answer as a line of the file."""
        values = {"id": self.id, "question": self.question, "rating": self.rating, "when": self.when.isoformat()}
        if self.seconds is not None:
            values["seconds"] = round(self.seconds, 1)
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Answer:
        """Return the answer in a line of the file; raise ``ValueError`` if there is none."""
        try:
            values = json.loads(line)
            when = datetime.fromisoformat(values["when"])
            return cls(values["question"], values["rating"], when, values.get("seconds"), values["id"])
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"no answer: {error}") from error


def quiz_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the file of answers: ``$COURSE_QUIZ``, or ``quiz.jsonl`` in the course's cache folder."""
    given = environ.get("COURSE_QUIZ")
    return (Path(given).expanduser() if given else cache_folder(environ) / "quiz.jsonl").absolute()


def read_lines(path: Path) -> tuple[list[str], int]:
    """Return the lines of a file of answers that can be read, as they are, and the number of damaged ones."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise CourseError(
            f"The answers in {path} cannot be read ({error.strerror or error}). Set COURSE_QUIZ to a file."
        ) from error
    given = [line for line in text.split("\n") if line.strip()]
    whole = [line for line in given if _is_answer(line)]
    return whole, len(given) - len(whole)


def _is_answer(line: str) -> bool:
    try:
        Answer.from_line(line)
    except ValueError:
        return False
    return "\ufffd" not in line


def in_order(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """Return answers in the order of time, each once."""
    once = {answer.id: answer for answer in answers}
    return tuple(sorted(once.values(), key=lambda answer: (answer.when, answer.id)))


class Progress:
    """A reader's answers, and the file that they are in (default: :func:`quiz_path`), made with the first answer.

    ``answers`` are in the order of time, also those that another window wrote before the last reading or saving.
    ``notice`` tells the reader that a damaged file was set aside; it is empty otherwise.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = quiz_path() if path is None else Path(path).absolute()
        self.notice = ""
        self._unsaved: list[Answer] = []
        self.read()

    def read(self) -> None:
        """Read the file again; a damaged one is set aside, and the lines that can be read are kept."""
        lines, damaged = read_lines(self.path)
        if damaged:
            with self._locked():
                lines = self._repaired()
        self._take(lines)

    def add(self, answer: Answer) -> None:
        """Keep an answer, together with all that could not be saved before and with what other windows wrote.

        After a :class:`CourseError` the answer counts all the same, and is saved with the next one.
        """
        self._unsaved.append(answer)
        self.answers = in_order([*self.answers, answer])
        self.save()

    def save(self) -> None:
        """Write the answers that are not in the file yet; raises as :meth:`add`."""
        if not self._unsaved:
            return
        with self._locked():
            lines = self._repaired()
            present = {Answer.from_line(line).id for line in lines}
            lines += [answer.line() for answer in self._unsaved if answer.id not in present]
            self._write(lines)
        self._unsaved.clear()
        self._take(lines)

    def _take(self, lines: Iterable[str]) -> None:
        self.answers = in_order([*map(Answer.from_line, lines), *self._unsaved])

    def _repaired(self) -> list[str]:
        """Return the lines that can be read; a damaged file is kept under another name, then replaced by them."""
        lines, damaged = read_lines(self.path)
        if damaged:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            aside = self.path.with_name(f"{self.path.stem}-damaged-{stamp}-{secrets.token_hex(2)}{self.path.suffix}")
            with written_whole(aside) as beside:
                beside.write_bytes(self.path.read_bytes())
            self._write(lines)
            self.notice = (
                f"{counted(damaged, 'line')} of {self.path.name} could not be read. The file as it was is now "
                f"{aside.name}, in the same folder. Answers that could be read: {len(lines)}."
            )
        return lines

    def _write(self, lines: Iterable[str]) -> None:
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def _locked(self) -> AbstractContextManager:
        """Keep all other windows of this machine from writing the file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS).acquire()
        except Timeout as error:
            raise CourseError(
                f"Another window has kept {self.path.name} locked for {LOCK_SECONDS:.0f} seconds. Close it and go on."
            ) from error
        except OSError as error:
            raise CourseError(
                f"Answers cannot be kept in {self.path} ({error.strerror or error}). Set COURSE_QUIZ to a file that "
                "you may write."
            ) from error


class Schedule:
    """The times when questions are due again, computed from all answers in the order of time.

    ``fsrs`` with its default parameters and a wanted recall of 90 %, without its random fuzz: the same answers give the
    same days on every machine. The longest interval is a year.
    """

    def __init__(self, answers: Iterable[Answer]) -> None:
        self._scheduler = Scheduler(
            learning_steps=(STEP,), relearning_steps=(STEP,), maximum_interval=365, enable_fuzzing=False
        )
        self._cards: dict[str, Card] = {}
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            self._cards[answer.question] = self._after(answer.question, answer.rating, answer.when)
            self._answers[answer.question].append(answer)

    def _after(self, question: str, rating: int, when: datetime) -> Card:
        when = when.astimezone(UTC)
        # Without a number of its own, fsrs numbers a card by the clock.
        number = int.from_bytes(hashlib.sha256(question.encode()).digest()[:6], "big")
        card = self._cards.get(question) or Card(card_id=number, due=when)
        return self._scheduler.review_card(card, Rating(rating), review_datetime=when)[0]

    def due(self, question: str) -> datetime | None:
        """Return the time, in UTC, at which a question is due again; None for one that was never answered."""
        card = self._cards.get(question)
        return card.due if card else None

    def is_due(self, question: str, now: datetime) -> bool:
        """True if a question was answered before and should be asked again by now."""
        due = self.due(question)
        return due is not None and due <= now

    def recall(self, question: str, now: datetime) -> float | None:
        """Return the probability in [0, 1] that the answer is remembered now; None for a new question."""
        card = self._cards.get(question)
        return self._scheduler.get_card_retrievability(card, now.astimezone(UTC)) if card else None

    def answers(self, question: str) -> tuple[Answer, ...]:
        """Return all answers to a question."""
        return tuple(self._answers.get(question, ()))

    def last_time(self, question: str) -> str:
        """Return how the last answer to a question was rated, such as ``"last time Hard"``, or ``"new"``."""
        given = self._answers.get(question)
        return f"last time {RATINGS[given[-1].rating]}" if given else "new"

    def waits(self, question: str, now: datetime) -> dict[int, timedelta]:
        """Return for each rating how long the question would then wait."""
        return {rating: self._after(question, rating, now).due - now for rating in RATINGS}


def in_words(wait: timedelta) -> str:
    """Return a time to wait, rounded to one unit: ``10 min``, ``3 days``, ``4 months``.

    >>> in_words(timedelta(minutes=10)), in_words(timedelta(days=1)), in_words(timedelta(days=120))
    ('10 min', '1 day', '4 months')
    """
    minutes = wait.total_seconds() / 60
    if round(minutes) < 60:
        return f"{max(1, round(minutes))} min"
    if round(minutes / 60) < 24:
        return counted(round(minutes / 60), "hour")
    days = minutes / 60 / 24
    return counted(round(days), "day") if round(days) < 60 else counted(round(days / 30), "month")


def next_questions(
    questions: Iterable[Question], schedule: Schedule, now: datetime, count: int | None = None, ahead: bool = False
) -> list[Question]:
    """Return the questions to ask: due ones, the longest waiting first, then new ones in the order of the bank.

    `ahead` goes on with questions that are not due yet, the nearest first; `count` is the largest number, None for all.
    """
    questions = list(questions)
    seen = sorted((q for q in questions if schedule.due(q.id)), key=lambda q: schedule.due(q.id))
    due = [q for q in seen if schedule.is_due(q.id, now)]
    new = [q for q in questions if schedule.due(q.id) is None]
    later = seen[len(due) :] if ahead else []
    return [*due, *new, *later][:count]


@dataclass(frozen=True)
class Standing:
    """Counts that say how far a reader is with some questions: those seen, those due by now, answers rated *Again*.

    ``tomorrow`` is the mean probability that an answer is remembered a day from now, over all questions; a new one
    counts as 0. Not now: a minute after reading everything is remembered, also what was rated *Again*.
    """

    questions: int
    seen: int
    due: int
    answers: int
    again: int
    tomorrow: float


def standing(questions: Sequence[Question], schedule: Schedule, now: datetime) -> Standing:
    """Return how far a reader is with some questions."""
    given = [answer for q in questions for answer in schedule.answers(q.id)]
    recalls = [schedule.recall(q.id, now + timedelta(days=1)) or 0.0 for q in questions]
    return Standing(
        questions=len(questions),
        seen=sum(schedule.due(q.id) is not None for q in questions),
        due=sum(schedule.is_due(q.id, now) for q in questions),
        answers=len(given),
        again=sum(answer.rating == 1 for answer in given),
        tomorrow=sum(recalls) / len(recalls) if recalls else 0.0,
    )


def statistics(questions: Sequence[Question], schedule: Schedule, now: datetime) -> str:
    """Return a table with a row per topic that has questions, and one for all: the numbers of :class:`Standing`."""
    by_topic = {topic: [q for q in questions if q.topic == topic] for topic in TOPICS}
    rows = []
    for name, some in [*((topic, some) for topic, some in by_topic.items() if some), ("all", questions)]:
        *numbers, tomorrow = dataclasses.astuple(standing(some, schedule, now))
        rows.append([name, *numbers, percent(tomorrow, 0)])
    return text_table(["topic", *(one.name for one in dataclasses.fields(Standing))], rows)
