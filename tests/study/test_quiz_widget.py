"""quiz_widget.py: cards are turned by the buttons, and every answer is in the file at once."""

from __future__ import annotations

import errno
import html
from datetime import UTC, datetime, timedelta

import ipywidgets
import pytest

from course_tools.study import quiz_widget
from course_tools.study.questions import LEVELS, TOPICS, read_bank
from course_tools.study.quiz_progress import Answer, Progress, Schedule
from course_tools.study.quiz_widget import ALL, back_of, front_of, nothing_left, quiz_cards, statistics_line
from course_utils.common import files
from course_utils.common.errors import CourseError

BANK = read_bank()
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Desk:
    """The cards with a clock that stands still until it is moved."""

    def __init__(self, path, **filters):
        self.seconds = 0.0
        self.cards = quiz_widget._Cards(BANK, Progress(path), **filters, now=self.now, clock=lambda: self.seconds)

    def now(self):
        return START + timedelta(seconds=self.seconds)

    def visible(self):
        cards = self.cards
        named = {"reveal": cards.reveal, "back": cards.back, "full": cards.full, **cards.ratings}
        return [name for name, widget in named.items() if widget.layout.display != "none"]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(quiz_widget, "read_bank", lambda: BANK)  # once is enough
    return tmp_path / "quiz.jsonl"


@pytest.fixture
def desk(path):
    return Desk(path)


def test_what_a_card_shows_is_a_function_of_question_and_answers():
    question = next(q for q in BANK if "`" in q.question)
    schedule = Schedule([Answer(question.id, 2, START)])
    front = front_of(question, schedule)
    assert f"{question.level} · {question.topic} · last time Hard" in front and "<h3>" in front and "<code>" in front
    assert " · new" in front_of(question, Schedule([]))
    assert "In full." not in back_of(question) and "In 30 seconds." in back_of(question)
    assert "In full." in back_of(question, full=True) and "Follow-up." in back_of(question, full=True)


def test_every_card_can_be_shown():
    for question in BANK:
        for page in (front_of(question, Schedule([])), back_of(question), back_of(question, True)):
            assert page.count("<div") == page.count("</div>") == 1
            assert page.count("<p>") == page.count("</p>")


def test_the_statistics_in_a_line():
    heads = [q for q in BANK if q.topic == "heads"]
    schedule = Schedule([Answer(heads[0].id, 1, START), Answer(heads[1].id, 3, START)])
    line = statistics_line(heads, schedule, START + timedelta(minutes=11))
    total = len(heads)
    tomorrow = sum(schedule.recall(q.id, START + timedelta(days=1, minutes=11)) or 0 for q in heads) / total
    assert line == (
        f"2 of {total} questions seen, 1 due, 1 of 2 answers known; "
        f"expected to be remembered tomorrow: {100 * tomorrow:.0f} %."
    )
    assert statistics_line(heads, Schedule([]), START).startswith(f"0 of {total} questions seen, 0 due; expected to be")


def test_the_box_has_filters_a_card_buttons_and_a_line(path):
    box = quiz_cards("hard", "batchnorm", path)
    assert isinstance(box, ipywidgets.VBox)
    level, topic = box.children[0].children
    assert level.options == (ALL, *LEVELS) and topic.options == (ALL, *TOPICS)
    assert (level.value, topic.value) == ("hard", "freezing and BatchNorm")
    assert box.children[2].children[0].description == "Show the answer"
    assert not path.exists(), "looking writes nothing"
    for bad in ({"level": "trivial"}, {"topic": "cooking"}):
        with pytest.raises(CourseError, match="is unknown"):
            quiz_cards(**bad, path=path)


def test_reveal_then_rate_keeps_the_answer_and_turns_the_next_card(desk, path):
    cards = desk.cards
    assert cards.question == BANK[0] and desk.visible() == ["reveal"]
    desk.seconds = 30
    cards.reveal.click()
    assert desk.visible() == ["back", "full", 1, 2, 3, 4]
    assert cards.back.value == back_of(BANK[0])
    assert cards.ratings[1].description == "Again (10 min)" and cards.ratings[3].description == "Good (2 days)"
    cards.full.value = True
    assert cards.back.value == back_of(BANK[0], full=True)
    desk.seconds = 50
    cards.ratings[3].click()
    (kept,) = Progress(path).answers
    assert (kept.question, kept.rating, kept.seconds) == (BANK[0].id, 3, 50)
    assert cards.question == BANK[1] and desk.visible() == ["reveal"]
    assert cards.full.value is False
    assert html.unescape(cards.line.value).startswith(f"1 of {len(BANK)} questions seen, 0 due, 1 of 1 answers known")


def test_every_position_of_the_filters_has_cards_or_says_that_it_has_none(desk):
    for level in (ALL, *LEVELS):
        for topic in (ALL, *TOPICS):
            desk.cards.level.value, desk.cards.topic.value = level, topic
            question = desk.cards.question
            assert question.level in (level, question.level if level == ALL else level)
            assert level in (ALL, question.level) and topic in (ALL, question.topic)
            assert f"{question.level} · {question.topic}" in desk.cards.front.value
    assert "No question has this level" in nothing_left([], Schedule([]), START)


def test_a_bank_without_a_match_offers_no_button(path):
    cards = quiz_widget._Cards([q for q in BANK if q.level == "easy"], Progress(path), level="hard")
    assert cards.question is None and cards.reveal.layout.display == "none"
    cards.rate(3)
    assert not path.exists()


def test_when_nothing_is_due_it_says_when_and_goes_on_if_asked(path):
    desk = Desk(path, level="hard", topic="VGG")
    desk.cards.reveal.click()
    desk.cards.ratings[4].click()
    assert desk.cards.question is None
    assert "Nothing is due. The next question comes back in 8 days." in desk.cards.front.value
    assert desk.cards.reveal.description == "Go on all the same" and desk.visible() == ["reveal"]
    desk.cards.reveal.click()
    assert "last time Easy" in desk.cards.front.value and desk.cards.reveal.description == "Show the answer"
    desk.cards.reveal.click()
    desk.seconds += 60
    desk.cards.ratings[3].click()
    assert "last time Good" in desk.cards.front.value, "having gone on, it goes on"
    desk.cards.level.value = "easy"
    assert desk.cards.question.level == "easy" and not desk.cards.ahead


def test_cards_and_terminal_share_the_file(desk, path):
    Progress(path).add(Answer(BANK[1].id, 3, START))
    desk.cards.reveal.click()
    desk.cards.ratings[3].click()
    assert desk.cards.question == BANK[2], "what the other window answered is not new any more"
    assert len(Progress(path).answers) == 2


def test_a_full_disk_is_said_below_the_card(desk, path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        desk.cards.reveal.click()
        desk.cards.ratings[1].click()
    assert "Not kept yet: " in desk.cards.notice.value and desk.cards.question == BANK[1]
    desk.cards.reveal.click()
    desk.cards.ratings[1].click()
    assert desk.cards.notice.value == "" and len(Progress(path).answers) == 2


def test_a_damaged_file_is_said_below_the_card(path):
    path.write_text("<nonsense>\n")
    box = quiz_cards(path=path)
    assert "1 line of quiz.jsonl could not be read" in box.children[-1].value
