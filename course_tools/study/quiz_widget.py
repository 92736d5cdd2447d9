"""The interview questions as cards in JupyterLab, over the same bank and the same file of answers as ``course quiz``.

>>> from course_tools.study.quiz_widget import quiz_cards
>>> quiz_cards(topic="heads")  # as the last line of a cell

The content of a card is a pure function of the question and of the answers before; the widget only turns cards.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets as w

from course_tools.study.question_views import as_html, titled
from course_tools.study.questions import LEVELS, TOPICS, Question, chosen, find_topic, read_bank
from course_tools.study.quiz_progress import RATINGS, Answer, Progress, Schedule, in_words, next_questions, standing
from course_utils.common.errors import CourseError
from course_utils.common.tables import percent

ALL = "all"
# Formulas and code that are wider than the cell scroll; the rest of the page stays in place.
FRAME = '<div style="max-width: 52em; line-height: 1.5; overflow-x: auto">{}</div>'
BUTTON_COLOURS = {1: "danger", 2: "warning", 3: "success", 4: "info"}


def front_of(question: Question, schedule: Schedule) -> str:
    """Return the side of a card that asks, as HTML: level, topic, the last rating, and the question."""
    where = html.escape(f"{question.level} · {question.topic} · {schedule.last_time(question.id)}")
    asked = as_html(question.question).removeprefix("<p>").removesuffix("</p>")
    return FRAME.format(f"<p><small>{where}</small></p><h3>{asked}</h3>")


def back_of(question: Question, full: bool = False) -> str:
    """Return the side of a card that answers, as HTML: the answer in 30 seconds, or all of it."""
    return FRAME.format(as_html(titled(question) if full else titled(question, ["short"])))


def statistics_line(questions: Sequence[Question], schedule: Schedule, now: datetime) -> str:
    """Return how far a reader is with some questions, in one line of text."""
    stand = standing(questions, schedule, now)
    known = stand.answers - stand.again
    share = f", {known} of {stand.answers} answers known" if stand.answers else ""
    return (
        f"{stand.seen} of {stand.questions} questions seen, {stand.due} due{share}; "
        f"expected to be remembered tomorrow: {percent(stand.tomorrow, 0)}."
    )


def nothing_left(questions: Sequence[Question], schedule: Schedule, now: datetime) -> str:
    """Return the HTML in place of a card when no question is new or due."""
    if not questions:
        return FRAME.format("<p>No question has this level and this topic.</p>")
    coming = min(due for q in questions if (due := schedule.due(q.id)))
    return FRAME.format(f"<p>Nothing is due. The next question comes back in {in_words(coming - now)}.</p>")


def quiz_cards(level: str | None = None, topic: str | None = None, path: Path | str | None = None) -> w.VBox:
    """Return cards to practise with, which JupyterLab shows: choose level and topic, think, reveal, rate.

    Parameters
    ----------
    level, topic
        First position of the two filters; a part of a topic's name is enough. None for all.
    path
        Path of the file of answers; default: the one of ``course quiz``.
    """
    chosen((), [level] if level else [])
    topic = find_topic(topic) if topic else None
    return _Cards(read_bank(), Progress(None if path is None else Path(path)), level or ALL, topic or ALL).box


class _Cards:
    """The filters, the card on top, and the actions of the buttons."""

    def __init__(
        self,
        bank: Sequence[Question],
        progress: Progress,
        level: str = ALL,
        topic: str = ALL,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bank, self.progress, self.now, self.clock = bank, progress, now, clock
        self.question: Question | None = None
        self.ahead = False
        self.started = 0.0
        narrow = {"description_width": "40px"}
        self.level = w.Dropdown(options=[ALL, *LEVELS], value=level, description="level", style=narrow)
        self.topic = w.Dropdown(options=[ALL, *TOPICS], value=topic, description="topic", style=narrow)
        self.front, self.back = w.HTMLMath(), w.HTMLMath()
        self.reveal = w.Button(button_style="primary", layout={"width": "auto"})
        self.full = w.ToggleButton(description="Full answer", layout={"width": "auto"})
        self.ratings = {
            number: w.Button(button_style=BUTTON_COLOURS[number], layout={"width": "auto"}) for number in RATINGS
        }
        self.line, self.notice = w.HTML(), w.HTML(value=_warning(progress.notice))
        buttons = w.HBox([self.reveal, *self.ratings.values(), self.full], layout={"flex_flow": "row wrap"})
        filters = w.HBox([self.level, self.topic], layout={"flex_flow": "row wrap"})
        self.box = w.VBox([filters, self.front, buttons, self.back, self.line, self.notice])
        for dropdown in (self.level, self.topic):
            dropdown.observe(lambda _: self.turn(), "value")
        self.full.observe(lambda _: self._show_back(), "value")
        self.reveal.on_click(lambda _: self._reveal_or_go_on())
        for number, button in self.ratings.items():
            button.on_click(lambda _, rating=number: self.rate(rating))
        self.turn()

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that pass the filters."""
        level, topic = self.level.value, self.topic.value
        return chosen(self.bank, [] if level == ALL else [level], [] if topic == ALL else [topic])

    def turn(self, ahead: bool = False) -> None:
        """Put the next card on top, with its question upwards; `ahead` also takes questions that are not due yet."""
        schedule, now = Schedule(self.progress.answers), self.now()
        self.ahead = ahead
        found = next_questions(self.questions, schedule, now, 1, ahead)
        self.question = found[0] if found else None
        self.started = self.clock()
        self.front.value = front_of(found[0], schedule) if found else nothing_left(self.questions, schedule, now)
        self.reveal.description = "Show the answer" if found else "Go on all the same"
        self.full.value = False
        self._lay(revealed=False)
        self.reveal.layout.display = None if self.questions else "none"
        self.line.value = html.escape(statistics_line(self.questions, schedule, now))

    def _lay(self, revealed: bool) -> None:
        """Show the buttons that make sense now."""
        self.reveal.layout.display = "none" if revealed else None
        for widget in (self.back, self.full, *self.ratings.values()):
            widget.layout.display = None if revealed else "none"

    def _reveal_or_go_on(self) -> None:
        if self.question is None:
            self.turn(ahead=True)
            return
        waits = Schedule(self.progress.answers).waits(self.question.id, self.now())
        for number, button in self.ratings.items():
            button.description = f"{RATINGS[number]} ({in_words(waits[number])})"
        self._show_back()
        self._lay(revealed=True)

    def _show_back(self) -> None:
        if self.question is not None:
            self.back.value = back_of(self.question, self.full.value)

    def rate(self, rating: int) -> None:
        """Keep the answer and turn to the next card; an error is shown below the card."""
        if self.question is None:
            return
        answer = Answer(self.question.id, rating, self.now(), self.clock() - self.started)
        try:
            self.progress.add(answer)
            self.notice.value = _warning(self.progress.notice)
        except CourseError as error:
            self.notice.value = _warning(f"Not kept yet: {error} Every further answer tries again.")
        self.turn(self.ahead)


def _warning(text: str) -> str:
    return f"<b>{html.escape(text)}</b>" if text else ""
