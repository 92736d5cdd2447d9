"""Pictures and numbers of the day pages and blogs: ``course blog`` takes them from where they were measured.

A picture is one that a notebook has stored, found by the beginning of its description. A number stands in a page
between two comments, ``<!--=day20.scratch-->55.0 ± 4.2 %<!--/-->``, and is looked up in the results file of day 20 or
in the output of a notebook. After a notebook was rendered, ``course blog`` renews both, and ``course blog --check``
lists what it would change.
"""

from __future__ import annotations

import base64
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from course_tools.authoring.notebook_checks import MAX_PICTURE
from course_tools.authoring.notebooks import code_cells, read_notebook
from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole

PROJECT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"(<!--=([^ ]*?)-->)(.*?)(<!--/-->)", re.DOTALL)
NOT_YET = "(not measured yet)"

# File in notebooks/blog, named after the notebook that stores the figure → the beginning of the figure's description
# there; no other description may begin so.
FIGURES = {
    "day20-pets.png": "Ten training pictures",
    "day20-filters.png": "First-layer filters",
    "day20-strategies.png": "Test accuracy: a dot for each run",
    "day20-how-many.png": "Test accuracy by training pictures per class",
    "day20-shift.png": "Four test scenes in three versions",
    "day21-augmentation.png": "A picture of Tigger under eight changes",
    "day21-options.png": "Validation accuracy of five strategies",
    "day21-confusion.png": "Confusion matrix on the test set",
    "day21-mistakes.png": "The most confident mistakes",
    "day22-maps.png": "The three pictures with a heat map on each",
    "day22-mistakes.png": "Confident mistakes: each picture twice",
    "day22-hans.png": "A marked picture; for the cheating network",
    "day22-forgetting.png": "The map of one picture as stage after stage",
}


@dataclass(frozen=True)
class Stored:
    """A number in ``results/day20.json``: the keys that lead to it, with ``/`` between them, and its format."""

    keys: str
    form: str = "{}"

    def look_up(self, root: Path) -> str:
        """Return the number as text."""
        value = json.loads((root / "results" / "day20.json").read_text(encoding="utf-8"))
        for key in self.keys.split("/"):
            value = value[key]
        return self.form.format(value)


@dataclass(frozen=True)
class Printed:
    """A number that a notebook printed: the day, and a pattern whose only group is the number."""

    day: str
    pattern: str

    def look_up(self, root: Path) -> str:
        """Return the number as text; a remark as long as the notebook is not there or not rendered."""
        outputs = outputs_of(root / "notebooks" / f"{self.day}.ipynb")
        if not outputs:
            return NOT_YET
        text = "\n".join(output.text for output in outputs if output.get("name") == "stdout")
        if found := re.search(self.pattern, text, re.MULTILINE):
            return found[1].strip()
        raise CourseError(
            f"{self.day} prints nothing that fits {self.pattern!r}. If the lesson words it otherwise now, change the "
            "pattern in course_tools/authoring/blog.py."
        )


NUMBERS: dict[str, Stored | Printed] = {
    "day20.command": Stored("command", "`{}`"),
    "day20.date": Stored("date"),
    "day20.hardware": Stored("hardware"),
    "day20.train": Stored("data/pets/pictures/train"),
    "day20.test": Stored("data/pets/pictures/test"),
    "day20.majority": Stored("data/pets/majority"),
    "day20.scratch": Stored("data/pets/summary/from scratch/test", "{} %"),
    "day20.frozen": Stored("data/pets/summary/feature extraction/test", "{} %"),
    "day20.progressive": Stored("data/pets/summary/progressive/test", "{} %"),
    "day20.full": Stored("data/pets/summary/full fine-tuning/test", "{} %"),
    "day20.frozen-numbers": Stored("data/pets/summary/feature extraction/trainable", "{:,}"),
    "day20.all-numbers": Stored("data/pets/summary/full fine-tuning/trainable", "{:,}"),
    "day20.insects.test": Stored("data/hymenoptera/pictures/test"),
    "day20.insects.scratch": Stored("data/hymenoptera/summary/from scratch/test", "{} %"),
    "day20.insects.frozen": Stored("data/hymenoptera/summary/feature extraction/test", "{} %"),
    "day20.insects.full": Stored("data/hymenoptera/summary/full fine-tuning/test", "{} %"),
    "day20.two-per-class": Printed("day20", r"^ +2 per class: pre-trained (\S+ %)"),
    "day20.forty-per-class.random": Printed("day20", r"^ +40 per class: pre-trained \S+ %, random (\S+ %)"),
    "day20.by-day": Printed("day20", r"^day +(\S+ % \(.*\))$"),
    "day20.by-night": Printed("day20", r"^night +(\S+ % \(.*\))$"),
    "day20.night-adapted": Printed("day20", r"^night +before \S+ +after (\S+)%"),
    "day20.day-adapted": Printed("day20", r"^day +before \S+ +after (\S+)%"),
    "day21.prepared": Printed("day21", r"^as the weights ask +(\d.*)$"),
    "day21.swapped": Printed("day21", r"^blue and red swapped +(\d.*)$"),
    "day21.accuracy": Printed("day21", r"^all: accuracy (\S+ % \(.*?\)),"),
    "day21.difference": Printed("day21", r"difference (\S+ points \(.*?\))"),
    "day21.rare.accuracy": Printed("day21", r"^nothing +accuracy (\S+)%"),
    "day21.rare.found": Printed("day21", r"^nothing .*rare class found (.*)$"),
    "day21.rare.oversampled": Printed("day21", r"^oversampling .*rare class found (.*)$"),
    "day22.marked": Printed("day22", r"^test pictures with the mark: +(.*)$"),
    "day22.unmarked": Printed("day22", r"^without the mark: +(.*)$"),
    "day22.on-badge": Printed("day22", r"^trained with the mark +share of the map on the badge: (\S+ \(.*?\))"),
    "day22.badge": Printed("day22", r"the badge takes (\S+?) ?% of the picture"),
    "day22.energy": Printed("day22", r"energy inside the animal: (?:fine-tuned )?(\S+ \(.*?\)), centred blob"),
    "day22.blob": Printed("day22", r"energy inside the animal: .*, centred blob (\S+ \(.*?\))$"),
    "day22.repaired": Printed("day22", r"^repaired, without +the mark: +(.*)$"),
}


def outputs_of(path: Path) -> list[NotebookNode]:
    """Return all outputs that a notebook stores; none if it is not there or not rendered."""
    return [output for cell in code_cells(read_notebook(path)) for output in cell.outputs] if path.exists() else []


def picture_of(file: str, beginning: str, root: Path) -> bytes | None:
    """Return a picture of ``FIGURES`` as its notebook stores it; None if that is not there or not rendered.

    Raises
    ------
    CourseError
        If not exactly one figure has such a description, or it is too large for a page.
    """
    day = file.partition("-")[0]
    outputs = outputs_of(root / "notebooks" / f"{day}.ipynb")
    if not outputs:
        return None
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    starts = [str(figure.metadata.get("image/png", {}).get("alt", ""))[: len(beginning)] for figure in figures]
    fitting = [figure for figure, start in zip(figures, starts, strict=True) if start == beginning]
    if len(fitting) != 1:
        near = difflib.get_close_matches(beginning, starts, n=1, cutoff=0.3)
        hint = f" The nearest begins {near[0]!r}." if near else ""
        raise CourseError(
            f"{file} is the figure of {day} whose description begins {beginning!r}, and {len(fitting)} of "
            f"{len(figures)} begin so.{hint} Change FIGURES in course_tools/authoring/blog.py."
        )
    content = base64.b64decode(fitting[0].data["image/png"])
    if len(content) > MAX_PICTURE:
        raise CourseError(f"{file} would have {len(content):,} bytes, allowed are {MAX_PICTURE:,}.")
    return content


def with_numbers(text: str, root: Path) -> str:
    """Return a page with every marked number as it was measured last.

    Raises
    ------
    CourseError
        If a name is not in ``NUMBERS``, or its notebook prints nothing that fits.
    """
    return NUMBER.sub(lambda match: f"{match[1]}{_number(match[2], root)}{match[4]}", text)


def _number(name: str, root: Path) -> str:
    if name not in NUMBERS:
        near = difflib.get_close_matches(name, NUMBERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise CourseError(f"No number is called {name!r}.{hint} They are in NUMBERS of course_tools/authoring/blog.py.")
    return NUMBERS[name].look_up(root)


def pages_of(root: Path) -> list[Path]:
    """Return the Markdown pages beside the notebooks: syllabus, day pages and blogs."""
    folder = root / "notebooks"
    return sorted([*folder.glob("*.md"), *folder.glob("blog/*.md")])


def renewed(root: Path) -> dict[Path, bytes]:
    """Return the files that are out of date, each with the content that it should have."""
    wanted = {page: with_numbers(page.read_text(encoding="utf-8"), root).encode() for page in pages_of(root)}
    for file, beginning in FIGURES.items():
        if (content := picture_of(file, beginning, root)) is not None:
            wanted[root / "notebooks" / "blog" / file] = content
    return {path: content for path, content in wanted.items() if not path.exists() or path.read_bytes() != content}


def main(arguments: Sequence[str] | None = None, root: Path = PROJECT) -> int:
    """Renew pictures and numbers, or say which are out of date; return the exit code."""
    parser = OneLineParser(prog="course blog", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is out of date")
    args = parser.parse_args(arguments)
    changes = renewed(root)
    for path, content in changes.items():
        print(f"{path.relative_to(root).as_posix()}{': out of date, run course blog' if args.check else ''}")
        if not args.check:
            with written_whole(path) as beside:
                beside.write_bytes(content)
    if not changes:
        print("Pictures and numbers are up to date.")
    return 1 if args.check and changes else 0
