"""What a reader answered, kept in a file, and when each question is due again.

The file has one line of JSON per answer and nothing else; when a question is due follows from its answers, by the FSRS
algorithm of spaced repetition (package ``fsrs``). So two windows that answer at the same time lose nothing: each adds
its lines to what the file holds by then, under a lock, and the file is replaced as a whole.

``COURSE_QUIZ`` is the file (default: ``quiz.jsonl`` in the course's cache folder).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from course_tools.study.questions import TOPICS, Question
from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole
from course_utils.common.tables import text_table
from course_utils.settings import cache_folder

if TYPE_CHECKING:
    from fsrs import Card

RATINGS = {1: "Again", 2: "Hard", 3: "Good", 4: "Easy"}
LOCK_SECONDS = 10.0
YEARS = (2000, 2199)  # an answer from outside has a broken clock, and no schedule can be made of it

# One short step: whoever knew the answer sees the question days later, whoever did not in ten minutes. fsrs' default
# asks even a known one again after ten minutes, which suits vocabulary and not answers of two minutes.
STEP = timedelta(minutes=10)


@dataclass(frozen=True)
class Answer:
    """One question answered once.

    Parameters
    ----------
    question
        Its id.
    rating
        1 Again, 2 Hard, 3 Good, 4 Easy.
    when
        With a time zone; kept in UTC.
    seconds
        From question to rating, or None.
    id
        Tells it from every other answer.

    Raises
    ------
    CourseError
        If a value is not allowed.
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
        """As it stands in the file."""
        when = self.when.isoformat()
        values = {"id": self.id, "question": self.question, "rating": self.rating, "when": when}
        if self.seconds is not None:
            values["seconds"] = round(self.seconds, 1)
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_line(cls, line: str) -> Answer:
        """Read a line of the file; a ``ValueError`` says that it is none."""
        try:
            values = json.loads(line)
            when = datetime.fromisoformat(values["when"])
            return cls(values["question"], values["rating"], when, values.get("seconds"), values["id"])
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"no answer: {error}") from error


def quiz_path(environ: Mapping[str, str] | None = None) -> Path:
    """The file of answers: ``$COURSE_QUIZ``, or ``quiz.jsonl`` in the course's cache folder."""
    environ = os.environ if environ is None else environ
    given = environ.get("COURSE_QUIZ")
    return (Path(given).expanduser() if given else cache_folder(environ) / "quiz.jsonl").absolute()


class Progress:
    """A reader's answers, and the file that they are in.

    Parameters
    ----------
    path
        The file; it and its folder are made with the first answer. Default: :func:`quiz_path`.

    Attributes
    ----------
    answers : tuple of Answer
        In the order of time, also those that another window wrote before the last reading or saving.
    notice : str
        What the reader has to be told: that a damaged file was set aside. Empty otherwise.

    Raises
    ------
    CourseError
        If the file cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = quiz_path() if path is None else Path(path).absolute()
        self.notice = ""
        self._unsaved: list[Answer] = []
        self.answers: tuple[Answer, ...] = ()
        self.read()

    def read(self) -> None:
        """Look again at what the file holds; a damaged one is set aside, and what is whole in it is kept."""
        lines, damaged = self._content()
        if damaged:
            with self._locked():
                lines, damaged = self._content()  # another window may have been quicker
                if damaged:
                    self._set_aside(lines, damaged)
        self._take(lines)

    def add(self, answer: Answer) -> None:
        """Keep an answer, together with all that could not be saved before and with what other windows wrote.

        Raises
        ------
        CourseError
            If the file cannot be written. The answer counts all the same, and is saved with the next one.
        """
        self._unsaved.append(answer)
        self.answers = _in_order([*self.answers, answer])
        self.save()

    def save(self) -> None:
        """Write what is not in the file yet; raises as :meth:`add`."""
        if not self._unsaved:
            return
        with self._locked():
            lines, damaged = self._content()
            if damaged:
                self._set_aside(lines, damaged)
            present = {Answer.from_line(line).id for line in lines}
            lines += [answer.line() for answer in self._unsaved if answer.id not in present]
            self._write(self.path, lines)
        self._unsaved.clear()
        self._take(lines)

    def _take(self, lines: Iterable[str]) -> None:
        self.answers = _in_order([*map(Answer.from_line, lines), *self._unsaved])

    def _content(self) -> tuple[list[str], int]:
        """The whole lines of the file, as they are, and how many others there are."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise CourseError(
                f"The answers in {self.path} cannot be read ({error.strerror or error}). Set COURSE_QUIZ to a file."
            ) from error
        given = [line for line in raw.decode("utf-8", errors="replace").split("\n") if line.strip()]
        whole = [line for line in given if _is_answer(line)]
        return whole, len(given) - len(whole)

    def _set_aside(self, lines: Sequence[str], damaged: int) -> None:
        """Keep the damaged file under another name, then replace it by what is whole: nothing is ever lost."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"{self.path.stem}-damaged-{stamp}-{secrets.token_hex(2)}{self.path.suffix}")
        with written_whole(aside) as beside:
            beside.write_bytes(self.path.read_bytes())
        self._write(self.path, lines)
        self.notice = (
            f"{_number(damaged, 'line')} of {self.path.name} could not be read. The file as it was is now "
            f"{aside.name}, in the same folder. Answers that could be read: {len(lines)}."
        )

    @staticmethod
    def _write(path: Path, lines: Iterable[str]) -> None:
        with written_whole(path) as beside:
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file, among all windows of this machine."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS)
            lock.acquire()
        except Timeout as error:
            raise CourseError(
                f"Another window has kept {self.path.name} locked for {LOCK_SECONDS:.0f} seconds. Close it and go on."
            ) from error
        except OSError as error:
            raise CourseError(
                f"Answers cannot be kept in {self.path} ({error.strerror or error}). Set COURSE_QUIZ to a file that "
                "you may write."
            ) from error
        try:
            yield
        finally:
            lock.release()


def _is_answer(line: str) -> bool:
    try:
        Answer.from_line(line)
    except ValueError:
        return False
    return "\ufffd" not in line


def _in_order(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    once = {answer.id: answer for answer in answers}
    return tuple(sorted(once.values(), key=lambda answer: (answer.when, answer.id)))


class Schedule:
    """When which question is due again, computed from all answers.

    Parameters
    ----------
    answers
        In the order of time.

    Notes
    -----
    ``fsrs`` with its default parameters and a wanted recall of 90 %, without its random fuzz: the same answers give the
    same days on every machine. The longest interval is a year.
    """

    def __init__(self, answers: Iterable[Answer]) -> None:
        from fsrs import Scheduler

        self._scheduler = Scheduler(
            learning_steps=(STEP,), relearning_steps=(STEP,), maximum_interval=365, enable_fuzzing=False
        )
        self._cards: dict[str, Card] = {}
        self._answers: dict[str, list[Answer]] = {}
        for answer in answers:
            self._cards[answer.question] = self._after(answer.question, answer.rating, answer.when)
            self._answers.setdefault(answer.question, []).append(answer)

    def _after(self, question: str, rating: int, when: datetime) -> Card:
        from fsrs import Card, Rating

        when = when.astimezone(UTC)
        # Left to itself, fsrs numbers a card by the clock.
        number = int.from_bytes(hashlib.sha256(question.encode()).digest()[:6], "big")
        card = self._cards.get(question) or Card(card_id=number, due=when)
        return self._scheduler.review_card(card, Rating(rating), review_datetime=when)[0]

    def due(self, question: str) -> datetime | None:
        """When a question shall come again, in UTC; None for one that was never answered."""
        card = self._cards.get(question)
        return card.due if card else None

    def is_due(self, question: str, now: datetime) -> bool:
        """Whether it was answered before and should be asked again by now."""
        due = self.due(question)
        return due is not None and due <= now

    def recall(self, question: str, now: datetime) -> float | None:
        """How probable it is that the answer is remembered now, in [0, 1]; None for a new question."""
        card = self._cards.get(question)
        return self._scheduler.get_card_retrievability(card, now.astimezone(UTC)) if card else None

    def answers(self, question: str) -> tuple[Answer, ...]:
        """All answers to a question, the last one last."""
        return tuple(self._answers.get(question, ()))

    def waits(self, question: str, now: datetime) -> dict[int, timedelta]:
        """Rating → how long the question would then wait."""
        return {rating: self._after(question, rating, now).due - now for rating in RATINGS}


def in_words(wait: timedelta) -> str:
    """A time to wait, as short as it is exact enough: ``10 min``, ``3 days``, ``4 months``.

    >>> in_words(timedelta(minutes=10)), in_words(timedelta(days=1)), in_words(timedelta(days=120))
    ('10 min', '1 day', '4 months')
    """
    minutes = wait.total_seconds() / 60
    for limit, size, unit in ((60, 1, "min"), (24 * 60, 60, "hour"), (60 * 1440, 1440, "day")):
        if round(minutes / size) * size < limit:
            return _number(max(1 if unit == "min" else 0, round(minutes / size)), unit)
    return _number(round(minutes / 1440 / 30), "month")


def _number(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 or unit == "min" else f"{count} {unit}s"


def next_questions(
    questions: Iterable[Question], schedule: Schedule, now: datetime, count: int | None = None, ahead: bool = False
) -> list[Question]:
    """What to ask: first what is due, the longest waiting first, then what is new, in the order of the bank.

    Parameters
    ----------
    questions
        Where to choose from.
    schedule, now
        What was answered, and the time.
    count
        How many at most; None for all.
    ahead
        Go on with what is not due yet, the nearest first.
    """
    questions = list(questions)
    seen = sorted((q for q in questions if schedule.due(q.id)), key=lambda q: schedule.due(q.id))
    due = [q for q in seen if schedule.is_due(q.id, now)]
    new = [q for q in questions if schedule.due(q.id) is None]
    later = seen[len(due) :] if ahead else []
    return [*due, *new, *later][:count]


@dataclass(frozen=True)
class Standing:
    """How far a reader is with some questions.

    Parameters
    ----------
    name
        What they have in common.
    questions
        How many there are.
    seen
        How many of them were answered at least once.
    due
        How many of those should be asked again by now.
    answers
        How many answers were given.
    again
        How many of these were rated *Again*.
    tomorrow
        Mean probability that an answer is remembered a day from now, over all questions; a new one counts as 0. Not
        now: of what was read a minute ago everything is remembered, also what was rated *Again*.
    """

    name: str
    questions: int
    seen: int
    due: int
    answers: int
    again: int
    tomorrow: float


def standing(name: str, questions: Sequence[Question], schedule: Schedule, now: datetime) -> Standing:
    """Count what the answers say about some questions."""
    given = [answer for q in questions for answer in schedule.answers(q.id)]
    recalls = [schedule.recall(q.id, now + timedelta(days=1)) or 0.0 for q in questions]
    return Standing(
        name=name,
        questions=len(questions),
        seen=sum(schedule.due(q.id) is not None for q in questions),
        due=sum(schedule.is_due(q.id, now) for q in questions),
        answers=len(given),
        again=sum(answer.rating == 1 for answer in given),
        tomorrow=sum(recalls) / len(recalls) if recalls else 0.0,
    )


def statistics(questions: Sequence[Question], schedule: Schedule, now: datetime) -> str:
    """A table with a row per topic that has questions, and one for all: the numbers of :class:`Standing`."""
    by_topic = {topic: [q for q in questions if q.topic == topic] for topic in TOPICS}
    rows = [standing(topic, some, schedule, now) for topic, some in by_topic.items() if some]
    rows.append(standing("all", questions, schedule, now))
    columns = ["topic", "questions", "seen", "due", "answers", "again", "tomorrow"]
    return text_table(columns, [_row(row) for row in rows])


def _row(row: Standing) -> list[Any]:
    return [row.name, row.questions, row.seen, row.due, row.answers, row.again, f"{100 * row.tomorrow:.0f} %"]
