"""questions.py: the bank reads and writes without a loss, and everything malformed is named by file and line."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course_tools.study import questions
from course_tools.study.questions import BANK, LEVELS, PARTS, TOPICS, Page, Question, page_text, parse_page
from course_utils.common.errors import CourseError

FULL = " ".join(["word"] * 70)
SNIPPET = "```python\nx = 3\nassert x == 3\n```"
GOOD = Question(
    id="easy-first",
    level="easy",
    topic="transfer",
    tags=("definition", "section 3.1"),
    question="What is `asked`?",
    short=" ".join(["short"] * 25),
    full=f"{FULL}\n\n{SNIPPET}",
    mistake="Nothing.",
    follow_up="Everything.",
    shown="[day 20, section 1](../notebooks/day20.ipynb#1.-The-idea).",
)
SECOND = dataclasses.replace(GOOD, id="easy-second", question="What else?")
PAGE = Page("easy", "# Easy\n\nAn introduction.", (GOOD, SECOND))
TEXT = page_text(PAGE)


@pytest.fixture(scope="module")
def bank():
    return questions.read_bank()


def test_every_file_is_as_the_writer_writes_it():
    for page in questions.read_pages():
        assert questions.page_path(BANK, page.level).read_text(encoding="utf-8") == page_text(page)


def test_reading_what_was_written_gives_the_same_bank(bank, tmp_path):
    questions.write_bank(questions.read_pages(), tmp_path)
    assert questions.read_bank(tmp_path) == bank
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{level}_questions.md" for level in LEVELS)


def test_the_bank_is_large_enough_and_leaves_no_topic_out(bank):
    by_level = {level: [q for q in bank if q.level == level] for level in LEVELS}
    assert len(by_level["easy"]) >= 20 and len(by_level["medium"]) >= 30 and len(by_level["hard"]) >= 15
    for level in LEVELS:
        assert {q.topic for q in by_level[level]} == set(TOPICS), level
    assert len({q.id for q in bank}) == len({q.question for q in bank}) == len(bank)


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("scenarios A, B and C", r"\*\*A, small\*\*.*\*\*B, medium\*\*.*\*\*C, large"),
        ("BatchNorm while frozen", r"running mean"),
        ("why not the whole network", r"why .*unfreeze only the last layers, and not the entire network"),
        ("placement of the last layer", r"model\.fc.*classifier\[6\].*classifier\[1\].*classifier\[3\]"),
        ("leakage", r"\bleak"),
        ("pros and cons, section 3.1", r"pros and cons"),
        ("when to fine-tune, section 3.1", r"would you choose to fine-tune"),
        ("pre-trained models beyond pictures", r"BERT.*CLIP"),
    ],
)
def test_what_the_course_promises_is_asked(bank, subject, told):
    texts = [" ".join([q.question, *(getattr(q, part) for part in PARTS)]) for q in bank]
    assert any(re.search(told, text, re.DOTALL | re.IGNORECASE) for text in texts), subject


def test_intros_count_their_questions_rightly():
    in_words = {18: "Eighteen", 19: "Nineteen", 20: "Twenty"}
    for page in questions.read_pages():
        number = re.search(r"\b(\w+) questions (?:for|that)", page.intro)
        if number and (number[1].isdigit() or number[1] in in_words.values()):
            assert number[1] in (str(len(page.questions)), in_words.get(len(page.questions)))


def changed(old, new, count=1):
    assert old in TEXT
    return TEXT.replace(old, new, count)


LINES = TEXT.split("\n")
COMMENT = LINES.index("<!-- id: easy-first | level: easy | topic: transfer | tags: definition, section 3.1 -->") + 1
DETAILS = LINES.index("<details><summary>Answer</summary>") + 1
FULL_AT = next(i for i, line in enumerate(LINES) if line.startswith("**In full.**")) + 1
CODE_AT = LINES.index("x = 3") + 1
SHOWN_AT = next(i for i, line in enumerate(LINES) if line.startswith("**Shown in**")) + 1
SECOND_AT = next(i for i, line in enumerate(LINES) if "easy-second" in line) + 1

MALFORMED = {
    "no id": (changed("id: easy-first | ", ""), COMMENT, "the comment lacks id"),
    "empty id": (changed("id: easy-first", "id: "), COMMENT, "lacks id"),
    "id twice": (changed("id: easy-second", "id: easy-first"), SECOND_AT, "'easy-first' is taken already"),
    "id with capitals": (changed("easy-first", "easy-First"), COMMENT, "small letters"),
    "id of another level": (changed("easy-first", "hard-first"), COMMENT, "does not begin with its level, easy-"),
    "unknown level": (changed("level: easy", "level: trivial"), COMMENT, "none of easy, medium, hard"),
    "level of another file": (changed("easy-first | level: easy", "hard-first | level: hard"), COMMENT, "wrong file"),
    "unknown topic": (changed("topic: transfer", "topic: cooking"), COMMENT, "'cooking' is none of transfer, "),
    "no tags": (changed("definition, section 3.1", ""), COMMENT, "lacks tags"),
    "tag twice": (changed("definition, section 3.1", "definition, definition"), COMMENT, "different words"),
    "empty tag": (changed("definition, section 3.1", "definition,,x"), COMMENT, "the tags"),
    "unknown field": (changed("| topic: transfer", "| topic: transfer | mood: good"), COMMENT, "'mood: good'"),
    "field twice": (changed("| topic: transfer", "| topic: transfer | topic: VGG"), COMMENT, "topic is given twice"),
    "open comment": (changed(" -->", ""), COMMENT, "one line that ends with -->"),
    "no comment": ("### What?\n\nAnswer\n", 1, "no comment"),
    "no question": (changed("### What is `asked`?", ""), COMMENT + 1, "a line with ### , is missing"),
    "empty question": (changed("### What is `asked`?", "### "), COMMENT + 1, "the question '' is empty"),
    "unfolded": (changed("<details><summary>Answer</summary>\n\n", ""), DETAILS, "is not folded"),
    "other fold": (changed("<details><summary>Answer", "<details open><summary>Answer"), DETAILS, "is not folded"),
    "not closed": (changed("</details>\n", ""), DETAILS, "not closed"),
    "text behind": (changed("</details>\n", "</details>\n\nMore.\n"), SHOWN_AT + 3, "outside of the answer"),
    "no empty line": (changed("Answer</summary>\n\n", "Answer</summary>\n"), DETAILS, "an empty line is missing"),
    "no short part": (changed("**In 30 seconds.** ", ""), DETAILS, "lacks **In 30 seconds.**"),
    "no follow-up": (changed("**Follow-up.**", "**Next.**"), DETAILS, "lacks **Follow-up.**"),
    "no place": (changed("**Shown in**", "See"), DETAILS, "lacks **Shown in**"),
    "part twice": (changed("Everything.", "Everything.\n\n**Follow-up.** More."), SHOWN_AT, "stands here again"),
    "wrong order": (
        changed("**Often said, and wrong.** Nothing.\n\n**Follow-up.** Everything.", "**Follow-up.** A\n\n")
        .replace("**Shown in**", "**Often said, and wrong.** B\n\n**Shown in**", 1),
        DETAILS,
        "not in the order",
    ),
    "text before": (changed("**In 30", "Well.\n\n**In 30"), DETAILS + 2, "something stands before"),
    "empty part": (changed("Everything.", ""), SHOWN_AT - 2, "the follow_up '' is empty"),
    "short answer too long": (changed("short", "short " * 60), DETAILS + 2, "has 84 words; 20 to 80"),
    "full answer too short": (changed(FULL, "word " * 59), FULL_AT, "has 59 words; 60 to 250"),
    "full answer too long": (changed(FULL, "word " * 251), FULL_AT, "has 251 words; 60 to 250"),
    "no assert": (changed("assert x == 3", "print(x == 3)"), CODE_AT, "asserts nothing"),
    "no Python": (changed("assert x == 3", "assert x =="), CODE_AT + 1, "the snippet is not Python"),
    "assert in a comment only": (changed("assert x == 3", "# assert x == 3"), CODE_AT, "asserts nothing"),
    "other language": (changed("```python", "```bash"), CODE_AT - 1, "begins with ```bash"),
    "no language": (changed("```python", "```"), CODE_AT - 1, "begins with ```, not"),
    "code elsewhere": (changed("Everything.", f"Everything.\n\n{SNIPPET}"), SHOWN_AT, "code stands under"),
    "code open": (changed("assert x == 3\n```", "assert x == 3"), DETAILS, "an open block of code hides it"),
    "number unchecked": (changed(SNIPPET, "It is 7."), FULL_AT, "'It is 7.' has a number or code"),
    "code unchecked": (changed(SNIPPET, "- it is `x`"), FULL_AT, "'it is `x`' has a number or code"),
    "no link": (changed("../notebooks/day20.ipynb#1.-The-idea", ""), SHOWN_AT, "no link says"),
    "link away": (changed("../notebooks/day20.ipynb", "https://example.org"), SHOWN_AT, "no link says"),
    "heading inside": (changed("Everything.", "A\n## B"), SHOWN_AT - 1, "in the middle of an answer"),
    "end inside": (changed("Everything.", "A\n</details>"), SHOWN_AT - 1, "in the middle of an answer"),
    "control character": (changed("Everything.", "Every\x07thing."), SHOWN_AT - 2, "holds what no file of text"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MALFORMED)
def test_everything_malformed_is_named_with_file_and_line(fault):
    text, line, told = MALFORMED[fault]
    with pytest.raises(CourseError) as caught:
        parse_page(text, "easy_questions.md")
    assert str(caught.value).startswith(f"easy_questions.md:{line}: "), caught.value
    assert told in str(caught.value)


def test_a_link_stands_for_a_number():
    text = changed(SNIPPET, "It is 7 ([results](../results/day20.md)).")
    assert not parse_page(text, "easy_questions.md").questions[0].snippets


def test_windows_line_ends_make_no_difference():
    assert parse_page(TEXT.replace("\n", "\r\n"), "easy_questions.md") == PAGE


def test_what_looks_like_structure_may_stand_in_code():
    code = '```python\ntext = """\n<!-- id: no -->\n### no\n**In full.** no\n</details>\n"""\nassert text\n```'
    page = Page("easy", "", (dataclasses.replace(GOOD, full=f"{FULL}\n\n{code}"),))
    assert parse_page(page_text(page), "easy_questions.md") == page
    assert "</details>" in page.questions[0].snippets[0]


def test_links_in_code_are_none():
    code = '```python\nassert "[a](b)"\n```'
    question = dataclasses.replace(GOOD, full=f"{FULL} [see](x.md)\n\n{code}")
    assert question.links == ("x.md", "../notebooks/day20.ipynb#1.-The-idea")


def test_a_file_of_another_name_is_refused():
    with pytest.raises(CourseError, match=r"notes\.md is no file of the bank"):
        parse_page(TEXT, "notes.md")


def test_a_missing_bank_says_where_it_should_come_from(tmp_path):
    with pytest.raises(CourseError, match=r"easy_questions\.md is missing.* clone the course"):
        questions.read_bank(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "easy_questions.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CourseError, match="cannot be read"):
        questions.read_bank(tmp_path)
    (tmp_path / "easy_questions.md").unlink()
    (tmp_path / "easy_questions.md").mkdir()
    with pytest.raises(CourseError, match="cannot be read"):
        questions.read_bank(tmp_path)


def test_the_same_question_in_two_files_is_refused(tmp_path):
    other = dataclasses.replace(GOOD, id="hard-first", level="hard")
    pages = [PAGE, Page("medium", "", ()), Page("hard", "", (other,))]
    questions.write_bank(pages, tmp_path)
    with pytest.raises(CourseError, match=r"asks twice: 'What is `asked`\?'"):
        questions.read_bank(tmp_path)


def test_a_question_cannot_be_made_or_changed_wrongly():
    with pytest.raises(CourseError, match="the tags"):
        dataclasses.replace(GOOD, tags=())
    with pytest.raises(CourseError, match="more than one line"):
        dataclasses.replace(GOOD, question="One\ntwo?")
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.level = "hard"


# What may stand in a text, with a taste for everything that has a meaning in the format.
PIECES = st.sampled_from(
    [*PARTS.values(), "<!--", "-->", "</details>", "<details>", "### ", "```", "```python", "|", "\r"]
)
ANY = st.one_of(st.text(max_size=8), PIECES, st.just("\n"), st.just(" "), st.just("1 `x`"))
TEXTS = st.lists(ANY, min_size=1, max_size=12).map("".join)


@given(st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_question_that_can_be_made_is_read_back(data):
    fields = {part: getattr(GOOD, part) for part in ("question", *PARTS)}
    part = data.draw(st.sampled_from([*fields]))
    text = data.draw(TEXTS)
    where = data.draw(st.integers(0, len(fields[part])))
    try:
        question = dataclasses.replace(GOOD, **{part: (fields[part][:where] + text + fields[part][where:]).strip()})
    except CourseError:
        assume(False)
    page = Page("easy", "Some words.", (SECOND, question) if question.question != SECOND.question else (question,))
    assert parse_page(page_text(page), "easy_questions.md") == page


@given(st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_malformed_bank_raises_nothing_but_a_course_error(data):
    text = TEXT
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.sampled_from([0, 1, 5, 40, 400]))
        text = text[:start] + data.draw(TEXTS) + text[start + gone :]
    try:
        page = parse_page(text, "easy_questions.md")
    except CourseError as error:
        assert re.match(r"easy_questions\.md:\d+: ", str(error))
        assert int(str(error).split(":")[1]) <= text.count("\n") + text.count("\r") + 1
    else:
        assert parse_page(page_text(page), "easy_questions.md") == page


@given(st.text())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_text_is_a_page_or_a_course_error(text):
    try:
        parse_page(text, "hard_questions.md")
    except CourseError as error:
        assert str(error).startswith("hard_questions.md:")


@pytest.mark.parametrize(
    ("text", "topic"),
    [("VGG", "VGG"), ("vgg", "VGG"), ("batchnorm", "freezing and BatchNorm"), (" leak ", "evaluation and leakage")],
)
def test_a_topic_is_found_by_a_part_of_its_name(text, topic):
    assert questions.find_topic(text) == topic


def test_every_topic_is_found_by_its_name():
    assert [questions.find_topic(topic) for topic in TOPICS] == [*TOPICS]


@pytest.mark.parametrize(
    ("text", "told"), [("net", "means ResNet or EfficientNet or"), ("x-ray", "is unknown"), ("", "is unknown")]
)
def test_an_unclear_topic_is_refused_with_the_choices(text, told):
    with pytest.raises(CourseError, match=told) as caught:
        questions.find_topic(text)
    assert "domain shift" in str(caught.value)


def test_choosing_by_level_and_topic(bank):
    assert questions.chosen(bank) == bank
    some = questions.chosen(bank, ["easy", "hard"], ["vgg", "heads"])
    assert {(q.level, q.topic) for q in some} == {(a, b) for a in ("easy", "hard") for b in ("VGG", "heads")}
    with pytest.raises(CourseError, match="The level 'eassy' is unknown: choose among easy, medium, hard"):
        questions.chosen(bank, ["eassy"])


def test_stats_count_every_question_once(bank, capsys):
    assert questions.main(["--stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["topic", *LEVELS, "all"]
    rows = {line[:36].strip(): [int(n) for n in line[36:].split()] for line in lines[2:]}
    assert [*rows] == [*TOPICS, "all"]
    assert rows["all"] == [*(sum(q.level == level for q in bank) for level in LEVELS), len(bank)]
    assert [sum(rows[topic][i] for topic in TOPICS) for i in range(4)] == rows["all"]
    assert questions.main([]) == 0 and capsys.readouterr().out.splitlines() == lines


def test_list_and_show(bank, capsys):
    assert questions.main(["--list", "--level", "hard", "--topic", "resnet"]) == 0
    listed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in listed] == [q.id for q in questions.chosen(bank, ["hard"], ["ResNet"])]
    assert questions.main(["--show", bank[0].id]) == 0
    shown = capsys.readouterr().out
    assert bank[0].short in shown and bank[0].question in shown
    with pytest.raises(CourseError, match=f"There is no question '{bank[0].id}x'. Did you mean {bank[0].id}"):
        questions.main(["--show", f"{bank[0].id}x"])


def test_tidy_writes_the_files_anew(monkeypatch, tmp_path):
    (tmp_path / "easy_questions.md").write_text(TEXT.replace("\n\n**", "\n\n\n**").replace("\n", "\r\n"), newline="")
    for level in ("medium", "hard"):
        (tmp_path / f"{level}_questions.md").write_text("")
    monkeypatch.setattr(questions, "BANK", tmp_path)
    monkeypatch.setattr(questions.read_pages, "__defaults__", (tmp_path,))
    assert questions.main(["--tidy"]) == 0
    assert b"\r" not in (tmp_path / "easy_questions.md").read_bytes()
    assert questions.read_pages(tmp_path)[0] == PAGE
