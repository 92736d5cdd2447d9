"""Checks of stored notebooks: ``course check``.

Nothing is executed. Every check yields the problems that it finds in a notebook, each a line that names the cell and
the remedy.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from course_tools.authoring.notebooks import BEGIN, END, WIDGET, canonical, code_cells, read_notebook, stamp, tags

MAX_LINES = 25
MAX_PICTURE = 150_000
MAX_NOTEBOOK = 1_000_000  # with figures in the resolution that a projector shows
CODE_CELLS = range(25, 46)
# 1,500 to 2,500 words are the aim; a notebook is not wrong for being 15 % off.
WORDS = range(1275, 2876)

ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b", re.IGNORECASE)
# Two names after a slash that follows no word, tag or address: /home/ada, but not train/val, </td> or https://a/b.
ABSOLUTE_PATH = re.compile(r"(?<![\w./:<>~-])/[A-Za-z_][\w.-]*/[\w.-]+|\b[A-Z]:\\\w+")
INSTALLS = re.compile(r"^\s*[!%]?\s*(pip|conda|mamba)3?\s+install|subprocess.*\bpip\b", re.MULTILINE)
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]*)[^)]*\)")
HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)


def problems_of(path: Path) -> list[str]:
    """Return everything that is wrong with a notebook file, as lines."""
    notebook = read_notebook(path)
    found = [problem for check in CHECKS for problem in check(notebook)]
    if path.stat().st_size > MAX_NOTEBOOK:
        found.append(f"the file has {path.stat().st_size:,} bytes, allowed are {MAX_NOTEBOOK:,}: make figures smaller")
    if re.fullmatch(r"day\d+", path.stem):
        found += _size_of_a_day(notebook)
    return found


def stale(notebook: NotebookNode) -> list[str]:
    """Return the reasons why the stored outputs do not belong to the code any more; none if they do."""
    if "course" not in notebook.metadata:
        return ["it carries no stamp: run `course render`"]
    stored, now = notebook.metadata["course"], stamp(notebook)
    reasons = {
        "sources": "the outputs are older than the cells",
        "package": "the outputs are older than the package",
        "outputs": "the outputs were changed after rendering",
    }
    return [f"{reason}: run `course render`" for part, reason in reasons.items() if stored.get(part) != now[part]]


def count_words(markdown: str) -> int:
    """Return the number of words that a reader reads: without code blocks, pictures, link targets and tags."""
    text = MARKDOWN_IMAGE.sub(" ", re.sub(r"```.*?```", " ", markdown, flags=re.DOTALL))
    text = re.sub(r"\]\([^)]*\)|<[^>]+>", " ", text)
    return len(re.findall(r"[^\W_]+(?:[’'.-][^\W_]+)*", text))


def _numbered(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    return enumerate(code_cells(notebook), start=1)


def _outputs(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    for number, cell in _numbered(notebook):
        yield from ((number, output) for output in cell.outputs)


def _markdown(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def _counts(notebook: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are not 1 to {len(counts)}: run `course render`"


def _errors(notebook: NotebookNode) -> Iterator[str]:
    for number, output in _outputs(notebook):
        if output.output_type == "error":
            yield f"code cell {number} stores an error ({output.ename})"
        elif output.get("name") == "stderr":
            yield f"code cell {number} stores stderr: {output.text.strip().splitlines()[0][:80]!r}"


def _form(notebook: NotebookNode) -> Iterator[str]:
    plain = canonical(notebook)
    if notebook.metadata != plain.metadata:
        extra = sorted(set(notebook.metadata) - set(plain.metadata)) or ["kernelspec or language_info"]
        yield f"notebook metadata is not canonical ({', '.join(extra)}): run `course render`"
    for number, cell in _numbered(notebook):
        if extra := sorted(set(cell.metadata) - {"tags"}):
            yield f"code cell {number} has metadata of its own ({', '.join(extra)}): run `course render`"
    for number, output in _outputs(notebook):
        if WIDGET in output.get("data", {}):
            yield f"code cell {number} stores a widget whose model is gone: run `course render`"


def _machine(notebook: NotebookNode) -> Iterator[str]:
    for number, output in _outputs(notebook):
        text = "\n".join(_texts(output))
        for what, pattern in (("a memory address", ADDRESS), ("an absolute path", ABSOLUTE_PATH)):
            if match := pattern.search(text):
                yield f"code cell {number} shows {what}: {match.group()!r}"


def _texts(output: NotebookNode) -> Iterator[str]:
    if "text" in output:
        yield output.text
    for mime, value in output.get("data", {}).items():
        if not mime.startswith("image/") or mime == "image/svg+xml":
            yield value if isinstance(value, str) else json.dumps(value)


def _pictures(notebook: NotebookNode) -> Iterator[str]:
    for number, output in _outputs(notebook):
        pictures = {mime: data for mime, data in output.get("data", {}).items() if mime.startswith("image/")}
        for mime, data in pictures.items():
            size = len(data) if mime == "image/svg+xml" else len(base64.b64decode(data))
            if size > MAX_PICTURE:
                yield f"code cell {number} has a picture of {size:,} bytes, allowed are {MAX_PICTURE:,}"
            if not str(output.metadata.get(mime, {}).get("alt", "")).strip():
                yield f"code cell {number} has a picture without alt text: show it with a description"


def _code(notebook: NotebookNode) -> Iterator[str]:
    for number, cell in _numbered(notebook):
        lines = len(cell.source.strip().splitlines())
        if lines > MAX_LINES:
            yield f"code cell {number} has {lines} lines, allowed are {MAX_LINES}: move some into course_utils"
        if INSTALLS.search(cell.source):
            yield f"code cell {number} installs something: add it to pyproject.toml"


def _prose(notebook: NotebookNode) -> Iterator[str]:
    for text in _markdown(notebook):
        for alt, target in MARKDOWN_IMAGE.findall(text):
            if re.match(r"https?:|//", target):
                yield f"a picture is loaded from the network: {target}"
            if not alt.strip():
                yield f"a picture has no alt text: {target}"
        for image in HTML_IMAGE.findall(text):
            if re.search(r"src\s*=\s*[\"']?(https?:|//)", image):
                yield f"a picture is loaded from the network: {image}"
            if not re.search(r"alt\s*=\s*[\"'][^\"']*\w", image):
                yield f"a picture has no alt text: {image}"


def _exercises(notebook: NotebookNode) -> Iterator[str]:
    cells = list(_numbered(notebook))
    for position, (number, cell) in enumerate(cells):
        is_exercise, lines = "solution" in tags(cell), [line.strip() for line in cell.source.splitlines()]
        if is_exercise != (BEGIN in lines) or lines.count(BEGIN) != lines.count(END):
            yield f"code cell {number}: the tag `solution` and the markers {BEGIN} and {END} belong together"
        following = [tag for _, behind in cells[position + 1 : position + 2] for tag in tags(behind)]
        if is_exercise and "checker" not in following and not cell.source.rpartition(END)[2].strip():
            yield f"code cell {number} is an exercise without a checker: put one behind {END}, or tag a cell `checker`"


def _size_of_a_day(notebook: NotebookNode) -> Iterator[str]:
    cells, words = len(code_cells(notebook)), count_words("\n".join(_markdown(notebook)))
    if cells not in CODE_CELLS:
        yield f"it has {cells} code cells, a day has {CODE_CELLS.start} to {CODE_CELLS.stop - 1}"
    if words not in WORDS:
        yield f"it has {words:,} words of prose, a day has {WORDS.start:,} to {WORDS.stop - 1:,}"


CHECKS = (_counts, _errors, _form, _machine, _pictures, _code, _prose, _exercises, stale)
