"""The interview questions: read, check, write, count. ``course questions`` shows them.

The bank is three Markdown files, one per level, that read well on their own; the quiz, the cards in JupyterLab and the
export read the same files. A question looks like this::

    <!-- id: easy-first | level: easy | topic: transfer | tags: definition, features -->
    ### What is asked?

    <details><summary>Answer</summary>

    **In 30 seconds.** What one says first.

    **In full.** 60 to 250 words, and, where a number or code is claimed, a snippet of Python with asserts.

    **Often said, and wrong.** What many answer, and why it is wrong.

    **Follow-up.** What is asked next, with its answer.

    **Shown in** [day 20, section 1](../notebooks/day20.ipynb#1.-The-idea).

    </details>

Whatever departs from that is a :class:`~course_utils.common.errors.CourseError` that names file and line.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole
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
FULL_WORDS = (60, 250)
SHORT_WORDS = (20, 80)  # 80 words are half a minute at the pace of somebody who explains

# What stands in the folded answer, in this order: field of Question, how it begins in the file.
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
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)")  # between paragraphs, and before an item of a list
STRUCTURE = re.compile(r"<!--|</?details|#{1,6} ")


class Malformed(CourseError):
    """A question that breaks the format.

    Parameters
    ----------
    message
        What is wrong and what to do.
    part
        Field of :class:`Question` that it is about; the parser knows where in the file that is.
    offset
        Lines below the first of that field.
    """

    def __init__(self, message: str, part: str, offset: int = 0) -> None:
        super().__init__(message)
        self.part, self.offset = part, offset


@dataclass(frozen=True)
class Question:
    """One interview question with its answer; texts are Markdown without white space at their ends.

    Parameters
    ----------
    id
        Never changes, because a reader's progress is kept under it: the level, then what it is about.
    level
        One of ``LEVELS``.
    topic
        One of ``TOPICS``.
    tags
        At least one.
    question
        One line.
    short
        The answer in 30 seconds: 20 to 80 words.
    full
        The answer in 60 to 250 words, not counting snippets. Each snippet is Python and asserts something.
    mistake
        What is often said, and why it is wrong.
    follow_up
        What is asked next.
    shown
        Where in the course: at least one link to a file of it.

    Raises
    ------
    CourseError
        If any of this does not hold.
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
        fault = next(_faults(self), None)
        if fault is not None:
            raise fault

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
    """One file of the bank.

    Parameters
    ----------
    level
        Of all its questions.
    intro
        What stands above the first question, Markdown.
    questions
        In their order.
    """

    level: str
    intro: str
    questions: tuple[Question, ...]


def without_snippets(text: str) -> str:
    """Markdown without its blocks of code: what is read aloud."""
    kept, inside = [], False
    for line in text.split("\n"):
        fence = line.strip().startswith("```")
        if not fence and not inside:
            kept.append(line)
        inside ^= fence
    return "\n".join(kept)


def _snippets(text: str) -> Iterator[tuple[int, str]]:
    """Blocks of code, each with the number of its first line in `text`, from 0."""
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if line.strip().startswith("```")]
    for first, last in zip(fences[::2], fences[1::2], strict=False):
        yield first + 1, "\n".join(lines[first + 1 : last]) + "\n"


def _faults(question: Question) -> Iterator[Malformed]:
    """Everything that keeps a question out of the bank, in the order in which it is read."""
    for field in fields(question):
        value = getattr(question, field.name)
        texts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(text, str) and _is_plain(text) for text in texts):
            yield Malformed(f"the {field.name} {value!r} is empty, or holds what no file of text should", field.name)
            return
    yield from _head_faults(question)
    for part in PARTS:
        yield from _part_faults(part, getattr(question, part))
    yield from _length_faults("short", question.short, *SHORT_WORDS)
    yield from _length_faults("full", question.full, *FULL_WORDS)
    yield from _snippet_faults(question.full)
    yield from _evidence_faults(question.full)
    if not any(is_relative(target) for _, target in LINK.findall(question.shown)):
        yield Malformed("no link says where in the course it is shown: [day 20, section 1](../notebooks/…)", "shown")


def _is_plain(text: str) -> bool:
    """Text that a file can hold and a reader can see: no white space around it, no control or half characters."""
    unseen = any((ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) < 0xE000 or c == "\x7f" for c in text)
    return bool(text) and text == text.strip() and not unseen


def _head_faults(question: Question) -> Iterator[Malformed]:
    if not ID.fullmatch(question.id):
        yield Malformed(f"the id {question.id!r} is not small letters and digits joined by hyphens", "id")
    if question.level not in LEVELS:
        yield Malformed(f"the level {question.level!r} is none of {', '.join(LEVELS)}", "level")
    elif not question.id.startswith(f"{question.level}-"):
        yield Malformed(f"the id {question.id!r} does not begin with its level, {question.level}-", "id")
    if question.topic not in TOPICS:
        yield Malformed(f"the topic {question.topic!r} is none of {', '.join(TOPICS)}", "topic")
    bad = [tag for tag in question.tags if not TAG.fullmatch(tag)]
    if bad or not question.tags or len(set(question.tags)) < len(question.tags):
        yield Malformed(f"the tags {', '.join(question.tags)!r} are not different words with commas between", "tags")
    if "\n" in question.question:
        yield Malformed("the question takes more than one line", "question")


def _part_faults(part: str, text: str) -> Iterator[Malformed]:
    """A part that would end where another begins, or that hides the rest of the page in an open block of code."""
    inside = False
    for offset, line in enumerate(text.split("\n")):
        if line.strip().startswith("```"):
            if part != "full":
                yield Malformed(f"code stands under {PARTS[part]}: move it to {PARTS['full']}", part, offset)
            if not inside and line.strip() != "```python":
                yield Malformed(f"a block of code begins with {line.strip()}, not with ```python", part, offset)
            elif inside and line.strip() != "```":
                yield Malformed(f"a block of code ends with {line.strip()}, not with ```", part, offset)
            inside = not inside
        elif not inside and (STRUCTURE.match(line) or _part_of(line)):
            yield Malformed(f"{line[:40]!r} cannot stand in the middle of an answer", part, offset)
    if inside:
        yield Malformed("a block of code is not closed", part)


def _length_faults(part: str, text: str, least: int, most: int) -> Iterator[Malformed]:
    words = len(without_snippets(text).split())
    if not least <= words <= most:
        yield Malformed(f"{PARTS[part]} has {words} words; {least} to {most} are allowed, without code", part)


def _snippet_faults(full: str) -> Iterator[Malformed]:
    for offset, code in _snippets(full):
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None) or 1
            yield Malformed(f"the snippet is not Python: {getattr(error, 'msg', error)}", "full", offset + line - 1)
            continue
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
            yield Malformed("the snippet asserts nothing: let it check what the answer claims", "full", offset)


def _evidence_faults(full: str) -> Iterator[Malformed]:
    """Numbers and code that are neither checked by a snippet nor linked to where they come from."""
    if any(_snippets(full)):
        return
    for block in BLOCK.split(full):
        text = re.sub(r"^\s*(?:[-*]|\d+\.)\s", "", block)
        if re.search(r"[`\d]", text) and not LINK.search(text):
            claim = " ".join(text.split())[:50]
            yield Malformed(f"{claim!r} has a number or code, but neither a snippet nor a link stands for it", "full")


def is_relative(target: str) -> bool:
    """Whether a link leads to a file of the course and not into the world."""
    return not re.match(r"[a-z][a-z0-9+.-]*:|//|#", target, re.IGNORECASE)


def parse_page(text: str, name: str) -> Page:
    """Read one file of the bank.

    Parameters
    ----------
    text
        Its content.
    name
        Its name, for messages, which begins with the level: ``easy_questions.md``.

    Raises
    ------
    CourseError
        For the first thing that breaks the format, with file and line.
    """
    level = name.partition("_")[0]
    if level not in LEVELS:
        raise CourseError(f"{name} is no file of the bank: its name begins with none of {', '.join(LEVELS)}.")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    starts = [i for i, line in _outside_code(lines) if line.startswith("<!--")]
    head = lines[: starts[0]] if starts else lines
    stray = next((i for i, line in enumerate(head) if line.startswith(("### ", "<details"))), None)
    if stray is not None:
        raise _error(name, stray, "no comment <!-- id: … | level: … | topic: … | tags: … --> stands above it")
    questions: dict[str, Question] = {}
    for start, end in itertools.pairwise([*starts, len(lines)]):
        question = _parse_question(lines, start, end, name)
        if question.id in questions:
            raise _error(name, start, f"the id {question.id!r} is taken already; each question has one of its own")
        if question.level != level:
            raise _error(name, start, f"a question of the level {question.level!r} stands in the wrong file")
        questions[question.id] = question
    return Page(level, "\n".join(head).strip(), tuple(questions.values()))


def _outside_code(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    inside = False
    for i, line in enumerate(lines):
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            yield i, line


def _error(name: str, index: int, message: str) -> CourseError:
    return CourseError(f"{name}:{index + 1}: {message.rstrip('.')}.")


def _parse_question(lines: list[str], start: int, end: int, name: str) -> Question:
    values: dict[str, object] = dict(_parse_comment(lines[start], name, start))
    values["tags"] = tuple(tag.strip() for tag in str(values["tags"]).split(","))
    while end > start and not lines[end - 1].strip():
        end -= 1
    places = dict.fromkeys(KEYS, start) | {"question": start + 1}
    heading = lines[start + 1] if start + 1 < end else ""
    if not heading.startswith("### "):
        raise _error(name, min(start + 1, len(lines) - 1), "the question, a line with ### , is missing here")
    values["question"] = heading.removeprefix("### ").strip()
    first, last = _folded(lines, start + 2, end, name)
    for part, (begin, stop) in _parse_parts(lines, first, last, name).items():
        places[part] = begin
        values[part] = "\n".join(lines[begin:stop]).removeprefix(PARTS[part]).strip()
    try:
        return Question(**values)
    except Malformed as fault:
        raise _error(name, places[fault.part] + fault.offset, f"{values['id']}: {fault}") from None


def _parse_comment(line: str, name: str, index: int) -> dict[str, str]:
    found = re.fullmatch(r"<!--(.*)-->\s*", line)
    if not found:
        raise _error(name, index, "the comment of a question is one line that ends with -->")
    values: dict[str, str] = {}
    for field in found[1].split("|"):
        key, colon, value = (piece.strip() for piece in field.partition(":"))
        if not colon or key not in KEYS:
            raise _error(name, index, f"{field.strip()[:40]!r} is none of id: …, level: …, topic: …, tags: …")
        if key in values:
            raise _error(name, index, f"{key} is given twice")
        values[key] = value
    missing = [key for key in KEYS if not values.get(key)]
    if missing:
        raise _error(name, index, f"the comment lacks {' and '.join(missing)}")
    return values


def _folded(lines: list[str], start: int, end: int, name: str) -> tuple[int, int]:
    """First line behind the opening of the folded answer, and the line that closes it."""
    while start < end and not lines[start].strip():
        start += 1
    if start == end or lines[start].strip() != OPENING:
        raise _error(name, min(start, len(lines) - 1), f"the answer is not folded: {OPENING} has to stand here")
    if lines[end - 1].strip() != CLOSING or end - 1 <= start:
        closed = next((i for i, line in _outside_code(lines[start:end]) if line.strip() == CLOSING), None)
        if closed is None:
            raise _error(name, start, f"the folded answer is not closed with {CLOSING}")
        raise _error(name, start + closed + 1, f"something stands outside of the answer, behind {CLOSING}")
    if lines[start + 1].strip() or lines[end - 2].strip():
        # Without them GitHub and JupyterLab show the Markdown inside as it was typed.
        raise _error(name, start, "an empty line is missing after <details> or before </details>")
    return start + 1, end - 1


def _part_of(line: str) -> str | None:
    return next((part for part, mark in PARTS.items() if line.startswith(mark)), None)


def _parse_parts(lines: list[str], first: int, last: int, name: str) -> dict[str, tuple[int, int]]:
    """Field → its lines, from and to."""
    begins = [(part, first + i) for i, line in _outside_code(lines[first:last]) if (part := _part_of(line))]
    names = [part for part, _ in begins]
    for part, mark in PARTS.items():
        if part not in names:
            raise _error(name, first - 1, f"the answer lacks {mark}, or an open block of code hides it")
        if names.count(part) > 1:
            raise _error(name, begins[len(names) - 1 - names[::-1].index(part)][1], f"{mark} stands here again")
    if names != [*PARTS]:
        raise _error(name, first - 1, f"the parts are not in the order {', '.join(PARTS.values())}")
    before = next((i for i in range(first, begins[0][1]) if lines[i].strip()), None)
    if before is not None:
        raise _error(name, before, f"something stands before {PARTS['short']}")
    stops = [begin for _, begin in begins[1:]] + [last]
    return {part: (begin, stop) for (part, begin), stop in zip(begins, stops, strict=True)}


def page_text(page: Page) -> str:
    """Write one file of the bank; :func:`parse_page` reads it back as it was."""
    blocks = [page.intro] if page.intro else []
    return "\n\n".join([*blocks, *map(_question_text, page.questions)]) + "\n"


def _question_text(question: Question) -> str:
    comment = f"<!-- id: {question.id} | level: {question.level} | topic: {question.topic} | "
    head = f"{comment}tags: {', '.join(question.tags)} -->\n### {question.question}"
    parts = [f"{mark} {getattr(question, part)}" for part, mark in PARTS.items()]
    return "\n\n".join([head, OPENING, *parts, CLOSING])


def page_path(folder: Path, level: str) -> Path:
    """Where the questions of a level stand."""
    return folder / f"{level}_questions.md"


def read_pages(folder: Path = BANK) -> tuple[Page, ...]:
    """Read the three files of the bank, easy first.

    Raises
    ------
    CourseError
        If a file is not there or breaks the format, or if a question is asked twice.
    """
    pages = tuple(_read_page(page_path(folder, level)) for level in LEVELS)
    repeated = Counter(question.question for page in pages for question in page.questions)
    twice = next((text for text, times in repeated.items() if times > 1), None)
    if twice is not None:
        raise CourseError(f"{folder.name} asks twice: {twice!r}. Word one of them otherwise, or take it out.")
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
    """All questions, easy first, as they stand in the files; raises as :func:`read_pages`."""
    return tuple(question for page in read_pages(folder) for question in page.questions)


def write_bank(pages: Iterable[Page], folder: Path) -> None:
    """Write pages as files that :func:`read_pages` reads; each appears whole."""
    for page in pages:
        with written_whole(page_path(folder, page.level)) as beside:
            beside.write_text(page_text(page), encoding="utf-8", newline="\n")


def chosen(
    questions: Iterable[Question], levels: Sequence[str] = (), topics: Sequence[str] = ()
) -> tuple[Question, ...]:
    """Those of some levels and topics, in their order.

    Parameters
    ----------
    questions
        Where to choose from.
    levels
        Of ``LEVELS``; none stands for all.
    topics
        As :func:`find_topic` understands them; none stands for all.

    Raises
    ------
    CourseError
        If a level or topic is unknown.
    """
    for level in levels:
        if level not in LEVELS:
            raise CourseError(f"The level {level!r} is unknown: choose among {', '.join(LEVELS)}.")
    found = [find_topic(topic) for topic in topics]
    return tuple(q for q in questions if q.level in (levels or LEVELS) and q.topic in (found or TOPICS))


def find_topic(text: str) -> str:
    """The one topic that a reader means: its name, or a part that no other topic has, in any case.

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
    """A table of how many questions there are of each level in each topic."""
    number = Counter((question.topic, question.level) for question in questions)
    rows = [[topic, *(number[topic, level] for level in LEVELS)] for topic in TOPICS]
    totals = ["all", *(sum(row[i] for row in rows) for i in range(1, len(LEVELS) + 1))]
    return text_table(["topic", *LEVELS, "all"], [[*row, sum(row[1:])] for row in [*rows, totals]])


def add_filters(parser: argparse.ArgumentParser) -> None:
    """The two options that choose questions; both may be given several times."""
    parser.add_argument("--level", action="append", default=[], help=", ".join(LEVELS))
    parser.add_argument("--topic", action="append", default=[], help="name of a topic, or a part of it")


def main(argv: Sequence[str]) -> int:
    """``course questions``: count them, list them, show one, or write the files in their canonical form."""
    about = "The interview questions: counted by level and topic, unless something else is asked for."
    parser = argparse.ArgumentParser(prog="course questions", description=about, allow_abbrev=False)
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
    """The question with an id; a :class:`CourseError` names those that come near."""
    import difflib

    by_id = {question.id: question for question in questions}
    if id not in by_id:
        near = difflib.get_close_matches(id, by_id, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise CourseError(f"There is no question {id!r}.{hint} course questions --list shows all.")
    return by_id[id]
