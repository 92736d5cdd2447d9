"""Views of a question: text for a terminal, HTML for JupyterLab and Anki, and a file that Anki imports."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote

from course_tools.authoring.formulas import mathml, plain_formula
from course_tools.study.questions import PARTS, Question, is_relative
from course_utils.common.files import write_text
from course_utils.common.tables import text_table

# Marks of the beginning and end of bold, italic and code while lines are broken, one character each; then ANSI codes.
MARKS = {"bold": "\ue000{}\ue001", "italic": "\ue002{}\ue003", "code": "\ue004{}\ue005"}
ALL_MARKS = "\ue000\ue001\ue002\ue003\ue004\ue005"
ANSI = dict(zip(ALL_MARKS, ("\x1b[1m", "\x1b[22m", "\x1b[3m", "\x1b[23m", "\x1b[36m", "\x1b[39m"), strict=True))
PLAIN = dict(zip(ALL_MARKS, ("", "", "", "", "`", "`"), strict=True))
INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\$(?P<formula>[^$]+)\$|\[(?P<link>[^\]]+)\]\((?P<target>[^)\s]+)\)"
    r"|\*\*(?P<bold>.+?)\*\*|\*(?P<italic>[^\s*][^*]*)\*"
)
ITEM = re.compile(r"(\s*)((?:[-*]|\d+\.)\s+)(.*)")
# JupyterLab would break lines of code in the middle of a word, and set the columns of a table close to each other.
CODE_STYLE = (
    "white-space: pre; overflow-x: auto; line-height: 1.35; padding: 0.5em; background: rgba(128, 128, 128, 0.12)"
)
CELL_STYLE = "text-align: left; padding: 0 1.2em 0 0"
FENCED = re.compile(r"(?m)^```python\n(.*?)^```$", re.DOTALL)


def titled(question: Question, parts: Iterable[str] = PARTS) -> str:
    """Return the answer, or some parts of it, as Markdown with its headings: ``**In full.** …``."""
    return "\n\n".join(f"{PARTS[part]} {getattr(question, part)}" for part in parts)


def as_text(markdown: str, width: int = 80, styled: bool = False) -> str:
    """Return Markdown as text: lines broken, formulas readable; code and tables keep their own width.

    `styled` gives bold, italic and colour by ANSI codes; without it only code is marked, by its backticks.
    """
    laid_out = []
    for number, piece in enumerate(FENCED.split(markdown)):
        if number % 2:
            laid_out.append(textwrap.indent(piece.rstrip("\n"), "    "))
        else:
            laid_out += [_block(block, width) for block in re.split(r"\n\s*\n", piece) if block.strip()]
    return "\n\n".join(laid_out).translate(str.maketrans(ANSI if styled else PLAIN))


def _block(block: str, width: int) -> str:
    """A paragraph, a list or a table."""
    block = block.strip("\n")
    if block.lstrip().startswith("$$"):
        return "    " + plain_formula(block.strip().strip("$"))
    lines = block.split("\n")
    if all(line.startswith("|") for line in lines):
        return _table(lines)
    starts = [i for i, line in enumerate(lines) if i == 0 or ITEM.fullmatch(line)]
    return "\n".join(_item(lines[a:b], width) for a, b in itertools.pairwise([*starts, len(lines)]))


def _item(lines: list[str], width: int) -> str:
    """One paragraph, or one item of a list with its lines under its first word."""
    found = ITEM.fullmatch(lines[0])
    space, mark, first = found.groups() if found else ("", "", lines[0])
    text = _inline(" ".join(line.strip() for line in [first, *lines[1:]]))
    indent = space + " " * len(mark)
    wrapped = textwrap.wrap(text, max(20, width), initial_indent=space + mark, subsequent_indent=indent,
                            break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(wrapped)


def _table(lines: list[str]) -> str:
    rows = [[_inline(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
    return textwrap.indent(text_table(rows[0], rows[2:]), "  ")


def _inline(text: str) -> str:
    """Links, formulas and emphasis within a line."""

    def shown(found: re.Match[str]) -> str:
        if found["code"]:
            return MARKS["code"].format(found["code"])
        if found["formula"]:
            return plain_formula(found["formula"])
        if found["link"]:
            return _inline(found["link"]) + _target(found["link"], found["target"])
        style = "bold" if found["bold"] else "italic"
        return MARKS[style].format(_inline(found[style]))

    return INLINE.sub(shown, text)


def _target(text: str, target: str) -> str:
    """Return the target of a link in brackets, unless the text of the link says it."""
    path = place(target) if is_relative(target) else target
    name = path.rpartition("/")[2]
    if name in text or path in text:
        return ""
    return f" [arXiv {name}]" if "//arxiv.org/" in path else f" [{path}]"


def place(target: str) -> str:
    """Return the path of a file from the course's root: ``../notebooks/day20.ipynb#…`` → ``notebooks/day20.ipynb``."""
    return unquote(target.partition("#")[0]).removeprefix("../")


def as_html(markdown: str, formula: Callable[[str, bool], str] = mathml) -> str:
    """Return Markdown as HTML.

    `formula` writes a formula, given its LaTeX and True if it stands on a line of its own; by default as MathML, which
    a browser draws. Links to files of the course become text: a card in JupyterLab or Anki has no place from which they
    could lead anywhere. Links into the world stay.
    """
    from course_tools.authoring.pages import markdown_to_html  # nbconvert: the quiz in a terminal starts without it

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        return f"{text}{_target(text, target)}" if is_relative(target) else found[0]

    pieces = FENCED.split(markdown)
    prose = [re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, piece) for piece in pieces[::2]]
    code = [f'<pre style="{CODE_STYLE}">{html.escape(piece.rstrip())}</pre>' for piece in pieces[1::2]]
    pages = [markdown_to_html(piece, formula).strip() for piece in prose]
    pages = [re.sub(r"<(t[hd])>", rf'<\1 style="{CELL_STYLE}">', page) for page in pages]
    return "\n".join(part for pair in zip(pages, [*code, ""], strict=True) for part in pair if part)


def _for_anki(latex: str, display: bool) -> str:
    latex = html.escape(latex.strip(), quote=False)
    return rf"\[{latex}\]" if display else rf"\({latex}\)"


def anki_rows(questions: Iterable[Question]) -> list[list[str]]:
    """Return a row per question: its id, front and back as HTML, and tags with spaces between them."""
    rows = []
    for question in questions:
        tags = " ".join(tag.replace(" ", "_") for tag in (question.level, question.topic, *question.tags))
        sides = [as_html(markdown, _for_anki) for markdown in (question.question, titled(question))]
        rows.append([question.id, *sides, tags])
    return rows


def anki_text(questions: Iterable[Question]) -> str:
    """Return a text for Anki's *File, Import*; because of the ids a second import makes no second cards.

    The lines at the top follow Anki's manual, "Text Files", section "File Headers".
    """
    lines = ["#separator:tab", "#html:true", "#guid column:1", "#tags column:4", "#deck:Transfer learning"]
    rows = io.StringIO()
    csv.writer(rows, delimiter="\t", lineterminator="\n").writerows(anki_rows(questions))
    return "\n".join([*lines, rows.getvalue()])


def write_anki(questions: Iterable[Question], path: Path) -> None:
    """Write a file for Anki; raise :class:`~course_utils.common.errors.CourseError` if that is not possible."""
    write_text(path, anki_text(questions))
