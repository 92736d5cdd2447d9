"""The interview questions: read, check, write, count. ``course questions`` shows them.

The bank is three Markdown files, one per level, for the quiz, the cards and the export. A question looks like this::

    <!-- id: easy-first | level: easy | topic: transfer | tags: definition, features -->
    ### What is asked?

    <details><summary>Answer</summary>

    **In 30 seconds.** What one says first.

    **In full.** 60 to 250 words, and, where a number or code is claimed, a snippet of Python with asserts.

    **Often said, and wrong.** What many answer, and why it is wrong.

    **Follow-up.** What is asked next, with its answer.

    **Shown in** [day 20, section 1](../notebooks/day20.ipynb#1.-The-idea).

    </details>

Everything else is a :class:`~course_utils.common.errors.CourseError` that names file and line.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from course_tools.authoring.notebook_checks import count_words
from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text
from course_utils.common.tables import text_table

BANK = Path(__file__).resolve().parents[2] / "interview_questions"
LEVELS = ("easy", "medium", "hard")
TOPICS = (
    "transfer",
    "feature extraction and fine-tuning",
    "freezing and BatchNorm",
    "heads",
    "learning rates",
    "small data",
    "augmentation",
    "VGG",
    "ResNet",
    "EfficientNet",
    "MobileNet",
    "convolution arithmetic",
    "evaluation and leakage",
    "domain shift",
    "Grad-CAM",
    "deployment",
    "conceptual",
)
WORDS = {"short": (20, 80), "full": (60, 250)}  # 80 words take half a minute at the pace of an explanation

# The parts of the folded answer in their order: field of Question → its beginning in the file.
PARTS = {
    "short": "**In 30 seconds.**",
    "full": "**In full.**",
    "mistake": "**Often said, and wrong.**",
    "follow_up": "**Follow-up.**",
    "shown": "**Shown in**",
}
KEYS = ("id", "level", "topic", "tags")
OPENING, CLOSING = "<details><summary>Answer</summary>", "</details>"
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
TAG = re.compile(r"[\w.]+([ -][\w.]+)*")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)")  # gap between paragraphs, or before an item of a list
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # control characters and halves of characters
STRUCTURE = re.compile("|".join([r"<!--|</?details|#{1,6} ", *map(re.escape, PARTS.values())]))


class Malformed(CourseError):
    """A question that breaks the format in a field, some lines below the first line of that field."""

    def __init__(self, part: str, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.part, self.offset = part, offset


@dataclass(frozen=True)
class Question:
    """One interview question with its answer; texts are Markdown without white space at their ends.

    The id never changes, because a reader's progress is kept under it. ``short`` is the answer in 30 seconds,
    ``mistake`` what is often said and wrong. Whatever breaks the format is a :class:`CourseError`.
    """

    id: str
    level: str
    topic: str
    tags: tuple[str, ...]
    question: str
    short: str
    full: str
    mistake: str
    follow_up: str
    shown: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            texts = value if isinstance(value, tuple) else (value,)
            if any(not text or text != text.strip() or UNSEEN.search(text) for text in texts):
                raise Malformed(name, f"the {name} {value!r} is empty, or holds what no file of text should")
        _check_head(self)
        for part in PARTS:
            _check_structure(part, getattr(self, part))
        for part, (least, most) in WORDS.items():
            words = count_words(getattr(self, part))
            if not least <= words <= most:
                raise Malformed(part, f"{PARTS[part]} has {words} words; {least} to {most} are allowed, without code")
        _check_snippets(self.full)
        if not self.snippets:
            _check_evidence(self.full)
        if not any(is_relative(target) for _, target in LINK.findall(self.shown)):
            raise Malformed("shown", "no link says where it is shown: [day 20, section 1](../notebooks/…)")

    @property
    def snippets(self) -> tuple[str, ...]:
        """The Python code of the answer; each piece runs by itself and needs no network."""
        return tuple(code for _, code in _snippets(self.full))

    @property
    def links(self) -> tuple[str, ...]:
        """Targets of all links, in order."""
        prose = (without_snippets(getattr(self, part)) for part in ("question", *PARTS))
        return tuple(target for text in prose for _, target in LINK.findall(text))


@dataclass(frozen=True)
class Page:
    """One file of the bank: its level, the Markdown above the first question, and its questions in their order."""

    level: str
    intro: str
    questions: tuple[Question, ...]


def without_snippets(text: str) -> str:
    """Return Markdown without its blocks of code."""
    return "\n".join(line for _, line in _outside_code(text.split("\n")))


def _is_fence(line: str) -> bool:
    return line.strip().startswith("```")


def _outside_code(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines outside of blocks of code, each with its number from 0."""
    inside = False
    for i, line in enumerate(lines):
        if _is_fence(line):
            inside = not inside
        elif not inside:
            yield i, line


def _snippets(text: str) -> Iterator[tuple[int, str]]:
    """Yield the blocks of code, each with the number of its first line in `text`, from 0."""
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if _is_fence(line)]
    for first, last in zip(fences[::2], fences[1::2], strict=False):
        yield first + 1, "\n".join(lines[first + 1 : last]) + "\n"


def _check_head(question: Question) -> None:
    id, level, tags = question.id, question.level, question.tags
    words = len(set(tags)) == len(tags) > 0 and all(map(TAG.fullmatch, tags))
    rules = [
        ("id", ID.fullmatch(id), f"the id {id!r} is not small letters and digits joined by hyphens"),
        ("level", level in LEVELS, f"the level {level!r} is none of {', '.join(LEVELS)}"),
        ("id", id.startswith(f"{level}-"), f"the id {id!r} does not begin with its level, {level}-"),
        ("topic", question.topic in TOPICS, f"the topic {question.topic!r} is none of {', '.join(TOPICS)}"),
        ("tags", words, f"the tags {', '.join(tags)!r} are not different words with commas between"),
        ("question", "\n" not in question.question, "the question takes more than one line"),
    ]
    for field, holds, message in rules:
        if not holds:
            raise Malformed(field, message)


def _check_structure(part: str, text: str) -> None:
    """Refuse a text that would end where another part begins, or whose code hides the rest of the page."""
    inside = False
    for offset, line in enumerate(text.split("\n")):
        found = line.strip()
        if _is_fence(line):
            if part != "full":
                raise Malformed(part, f"code stands under {PARTS[part]}: move it to {PARTS['full']}", offset)
            wanted, end = ("```", "ends") if inside else ("```python", "begins")
            if found != wanted:
                raise Malformed(part, f"a block of code {end} with {found}, not with {wanted}", offset)
            inside = not inside
        elif not inside and STRUCTURE.match(line):
            raise Malformed(part, f"{line[:40]!r} cannot stand in the middle of an answer", offset)
    if inside:
        raise Malformed(part, "a block of code is not closed")


def _check_snippets(full: str) -> None:
    for offset, code in _snippets(full):
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None) or 1
            message = f"the snippet is not Python: {getattr(error, 'msg', error)}"
            raise Malformed("full", message, offset + line - 1) from error
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            raise Malformed("full", "the snippet asserts nothing: let it check what the answer claims", offset)


def _check_evidence(full: str) -> None:
    """Refuse numbers and code that no link leads to the origin of; a snippet would have checked them."""
    for block in BLOCK.split(full):
        text = re.sub(r"^\s*(?:[-*]|\d+\.)\s", "", block)
        if re.search(r"[`\d]", text) and not LINK.search(text):
            claim = " ".join(text.split())[:50]
            raise Malformed("full", f"{claim!r} has a number or code, but neither a snippet nor a link stands for it")


def is_relative(target: str) -> bool:
    """True if a link leads to a file of the course, False for one into the world."""
    return not re.match(r"[a-z][a-z0-9+.-]*:|//|#", target, re.IGNORECASE)


def parse_page(text: str, name: str) -> Page:
    """Return the content of one file of the bank, whose name begins with the level: ``easy_questions.md``.

    Raises :class:`CourseError` for the first thing that breaks the format, with file and line.
    """
    level = name.partition("_")[0]
    if level not in LEVELS:
        raise CourseError(f"{name} is no file of the bank: its name begins with none of {', '.join(LEVELS)}.")
    return _Parser(name, re.split(r"\r\n|\r|\n", text)).page(level)


class _Parser:
    """The lines of one file, and its name for messages."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines

    def fail(self, index: int, message: str) -> NoReturn:
        """Raise the error for a line, counted from 0."""
        number = min(index, len(self.lines) - 1) + 1
        raise CourseError(f"{self.name}:{number}: {message.rstrip('.')}.") from None

    def page(self, level: str) -> Page:
        starts = [i for i, line in _outside_code(self.lines) if line.startswith("<!--")]
        head = self.lines[: starts[0]] if starts else self.lines
        for i, line in enumerate(head):
            if line.startswith(("### ", "<details")):
                self.fail(i, "no comment <!-- id: … | level: … | topic: … | tags: … --> stands above it")
        questions: dict[str, Question] = {}
        for start, end in itertools.pairwise([*starts, len(self.lines)]):
            question = self.question(start, end)
            if question.id in questions:
                self.fail(start, f"the id {question.id!r} is taken already; each question has one of its own")
            if question.level != level:
                self.fail(start, f"a question of the level {question.level!r} stands in the wrong file")
            questions[question.id] = question
        return Page(level, "\n".join(head).strip(), tuple(questions.values()))

    def question(self, start: int, end: int) -> Question:
        """Return the question in some lines; the first is its comment, the second its heading."""
        values: dict[str, object] = self.comment(start)
        values["tags"] = tuple(tag.strip() for tag in str(values["tags"]).split(","))
        while not self.lines[end - 1].strip():
            end -= 1
        heading = self.lines[start + 1] if start + 1 < end else ""
        if not heading.startswith("### "):
            self.fail(start + 1, "the question, a line with ### , is missing here")
        values["question"] = heading.removeprefix("### ").strip()
        places = dict.fromkeys(KEYS, start) | {"question": start + 1}
        for part, first, last in self.parts(*self.folded(start + 2, end)):
            places[part] = first
            values[part] = "\n".join(self.lines[first:last]).removeprefix(PARTS[part]).strip()
        try:
            return Question(**values)
        except Malformed as fault:
            self.fail(places[fault.part] + fault.offset, f"{values['id']}: {fault}")

    def comment(self, index: int) -> dict[str, str]:
        """Return the fields of the comment above a question."""
        found = re.fullmatch(r"<!--(.*)-->\s*", self.lines[index])
        if not found:
            self.fail(index, "the comment of a question is one line that ends with -->")
        values: dict[str, str] = {}
        for field in found[1].split("|"):
            key, colon, value = (piece.strip() for piece in field.partition(":"))
            if not colon or key not in KEYS:
                self.fail(index, f"{field.strip()[:40]!r} is none of id: …, level: …, topic: …, tags: …")
            if key in values:
                self.fail(index, f"{key} is given twice")
            values[key] = value
        if missing := [key for key in KEYS if not values.get(key)]:
            self.fail(index, f"the comment lacks {' and '.join(missing)}")
        return values

    def folded(self, start: int, end: int) -> tuple[int, int]:
        """Return the first line of the folded answer, and the line that closes it."""
        start = next((i for i in range(start, end) if self.lines[i].strip()), end)
        if start == end or self.lines[start].strip() != OPENING:
            self.fail(start, f"the answer is not folded: {OPENING} has to stand here")
        closed = [i for i, line in _outside_code(self.lines[start:end]) if line.strip() == CLOSING]
        if self.lines[end - 1].strip() != CLOSING or end - 1 <= start:
            if not closed:
                self.fail(start, f"the folded answer is not closed with {CLOSING}")
            self.fail(start + closed[0] + 1, f"something stands outside of the answer, behind {CLOSING}")
        if self.lines[start + 1].strip() or self.lines[end - 2].strip():
            # GitHub and JupyterLab would show the Markdown inside as plain text.
            self.fail(start, "an empty line is missing after <details> or before </details>")
        return start + 1, end - 1

    def parts(self, first: int, last: int) -> Iterator[tuple[str, int, int]]:
        """Return each part of the answer with its first line and the line after its last."""
        prose = [(first + i, line) for i, line in _outside_code(self.lines[first:last])]
        starts = []
        for mark in PARTS.values():
            found = [i for i, line in prose if line.startswith(mark)]
            if not found:
                self.fail(first - 1, f"the answer lacks {mark}, or an open block of code hides it")
            if len(found) > 1:
                self.fail(found[-1], f"{mark} stands here again")
            starts += found
        if starts != sorted(starts):
            self.fail(first - 1, f"the parts are not in the order {', '.join(PARTS.values())}")
        for i in range(first, starts[0]):
            if self.lines[i].strip():
                self.fail(i, f"something stands before {PARTS['short']}")
        return zip(PARTS, starts, [*starts[1:], last], strict=True)


def page_text(page: Page) -> str:
    """Return one file of the bank in its canonical form; :func:`parse_page` reads it back as it was."""
    return "\n\n".join(filter(None, [page.intro, *map(_question_text, page.questions)])) + "\n"


def _question_text(question: Question) -> str:
    comment = f"<!-- id: {question.id} | level: {question.level} | topic: {question.topic} | "
    head = f"{comment}tags: {', '.join(question.tags)} -->\n### {question.question}"
    parts = [f"{mark} {getattr(question, part)}" for part, mark in PARTS.items()]
    return "\n\n".join([head, OPENING, *parts, CLOSING])


def page_path(folder: Path, level: str) -> Path:
    """Return the path of the file with the questions of a level."""
    return folder / f"{level}_questions.md"


def read_pages(folder: Path = BANK) -> tuple[Page, ...]:
    """Return the three files of the bank, easy first.

    Raises :class:`CourseError` if a file is missing or breaks the format, or if a question is asked twice.
    """
    pages = tuple(_read_page(page_path(folder, level)) for level in LEVELS)
    for text, times in Counter(question.question for page in pages for question in page.questions).items():
        if times > 1:
            raise CourseError(f"{folder.name} asks twice: {text!r}. Word one of them otherwise, or take it out.")
    return pages


def _read_page(path: Path) -> Page:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CourseError(
            f"The interview questions are not there: {path} is missing. They are part of a checkout of the course, not "
            "of the installed package: clone the course and run it there, with python3 start.py or after "
            "pip install -e ."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"{path} cannot be read ({error}). Restore it: git checkout {path.parent.name}.") from error
    return parse_page(text, path.name)


def read_bank(folder: Path = BANK) -> tuple[Question, ...]:
    """Return all questions, easy first, in the order of the files; raises as :func:`read_pages`."""
    return tuple(question for page in read_pages(folder) for question in page.questions)


def write_bank(pages: Iterable[Page], folder: Path) -> None:
    """Write pages as files that :func:`read_pages` reads; each appears whole."""
    for page in pages:
        write_text(page_path(folder, page.level), page_text(page))


def chosen(
    questions: Iterable[Question], levels: Sequence[str] = (), topics: Sequence[str] = ()
) -> tuple[Question, ...]:
    """Return the questions of some levels and topics (empty: of all), in their order.

    Topics are found by :func:`find_topic`; an unknown level or topic is a :class:`CourseError`.
    """
    for level in levels:
        if level not in LEVELS:
            raise CourseError(f"The level {level!r} is unknown: choose among {', '.join(LEVELS)}.")
    found = [find_topic(topic) for topic in topics]
    return tuple(q for q in questions if q.level in (levels or LEVELS) and q.topic in (found or TOPICS))


def find_topic(text: str) -> str:
    """Return the topic with a name, or with a part of a name that no other topic has; capitals do not matter.

    >>> find_topic("batchnorm")
    'freezing and BatchNorm'
    """
    wanted = text.strip().casefold()
    exact = [topic for topic in TOPICS if topic.casefold() == wanted]
    found = exact or [topic for topic in TOPICS if wanted and wanted in topic.casefold()]
    if len(found) != 1:
        what = f"means {' or '.join(found)}" if found else "is unknown"
        raise CourseError(f"The topic {text!r} {what}: choose one of {', '.join(TOPICS)}.")
    return found[0]


def counts(questions: Iterable[Question]) -> str:
    """Return a table with the number of questions of each level in each topic."""
    number = Counter((question.topic, question.level) for question in questions)
    rows = [[topic, *(number[topic, level] for level in LEVELS)] for topic in TOPICS]
    totals = ["all", *(sum(row[i] for row in rows) for i in range(1, len(LEVELS) + 1))]
    return text_table(["topic", *LEVELS, "all"], [[*row, sum(row[1:])] for row in [*rows, totals]])


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the two options that choose questions; each may be given several times."""
    parser.add_argument("--level", action="append", default=[], help=", ".join(LEVELS))
    parser.add_argument("--topic", action="append", default=[], help="name of a topic, or a part of it")


def main(argv: Sequence[str]) -> int:
    """Run ``course questions``: count them, list them, show one, or write the files in their canonical form."""
    about = "The interview questions: counted by level and topic, unless something else is asked for."
    parser = OneLineParser(prog="course questions", description=about, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stats", action="store_true", help="count per level and topic (default)")
    what.add_argument("--list", action="store_true", help="ids and questions")
    what.add_argument("--show", metavar="ID", help="one question with its answer")
    what.add_argument("--tidy", action="store_true", help="write the files anew, each thing in its place")
    add_filters(parser)
    args = parser.parse_args(argv)
    if args.tidy:
        write_bank(read_pages(), BANK)
        return 0
    bank = read_bank()
    questions = chosen(bank, args.level, args.topic)
    if args.show:
        print(_question_text(find_question(bank, args.show)))
    elif args.list:
        print(text_table(["id", "topic", "question"], [[q.id, q.topic, q.question] for q in questions]))
    else:
        print(counts(questions))
    return 0


def find_question(questions: Iterable[Question], id: str) -> Question:
    """Return the question with an id; raise :class:`CourseError`, which names similar ids, if there is none."""
    by_id = {question.id: question for question in questions}
    if id not in by_id:
        near = difflib.get_close_matches(id, by_id, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CourseError(f"There is no question {id!r}.{hint} course questions --list shows all.")
    return by_id[id]
