"""Pictures and numbers of the day pages and blogs: ``course blog`` takes them from where they were measured.

A picture is one that a notebook has stored, found by the beginning of its description. A number stands in a page
between two comments, ``<!--=day20.scratch-->55.0 ± 4.2 %<!--/-->``, and is looked up in a results file or in what a
notebook printed. So neither can drift away from the lesson: after a notebook was rendered, ``course blog`` renews
both, and ``course blog --check`` says what it would change.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole

PROJECT = Path(__file__).resolve().parents[2]
MAX_PICTURE = 150_000
NUMBER = re.compile(r"(<!--=([^ ]*?)-->)(.*?)(<!--/-->)", re.DOTALL)
NOT_YET = "(not measured yet)"


@dataclass(frozen=True)
class BlogFigure:
    """A picture of a blog.

    Parameters
    ----------
    file
        Its name in ``notebooks/blog``.
    day
        The notebook that stores it.
    alt
        How its description there begins; no other figure's may begin so.
    """

    file: str
    day: str
    alt: str


FIGURES = (
    BlogFigure("day20-pets.png", "day20", "Ten training pictures"),
    BlogFigure("day20-filters.png", "day20", "First-layer filters"),
    BlogFigure("day20-strategies.png", "day20", "Test accuracy: a dot for each run"),
    BlogFigure("day20-how-many.png", "day20", "Test accuracy by training pictures per class"),
    BlogFigure("day20-shift.png", "day20", "Four test scenes in three versions"),
    BlogFigure("day21-augmentation.png", "day21", "A picture of Tigger under eight changes"),
    BlogFigure("day21-options.png", "day21", "Validation accuracy of five strategies"),
    BlogFigure("day21-confusion.png", "day21", "Confusion matrix on the test set"),
    BlogFigure("day21-mistakes.png", "day21", "The most confident mistakes"),
    BlogFigure("day22-maps.png", "day22", "The three pictures with a heat map on each"),
    BlogFigure("day22-mistakes.png", "day22", "Confident mistakes: each picture twice"),
    BlogFigure("day22-hans.png", "day22", "A marked picture; for the cheating network"),
    BlogFigure("day22-forgetting.png", "day22", "The map of one picture as stage after stage"),
)


@dataclass(frozen=True)
class Stored:
    """A number in a results file: the file, the keys that lead to it, and how it is written."""

    file: str
    keys: tuple[str, ...]
    form: str = "{}"

    def look_up(self, root: Path) -> str:
        """The number as text."""
        value = json.loads((root / "results" / self.file).read_text(encoding="utf-8"))
        for key in self.keys:
            value = value[key]
        return self.form.format(value)


@dataclass(frozen=True)
class Printed:
    """A number that a notebook printed: the day, and a pattern whose only group is the number."""

    day: str
    pattern: str

    def look_up(self, root: Path) -> str:
        """The number as text; a remark as long as the notebook is not there or not rendered.

        Raises
        ------
        CourseError
            If the notebook has printed nothing that fits.
        """
        path = root / "notebooks" / f"{self.day}.ipynb"
        if not rendered(path):
            return NOT_YET
        found = re.search(self.pattern, _printed(path), re.MULTILINE)
        if found is None:
            raise CourseError(
                f"{self.day} prints nothing that fits {self.pattern!r}. If the lesson words it otherwise now, change "
                "the pattern in course_tools/authoring/blog.py."
            )
        return found[1].strip()


def _of_day20(data: str, strategy: str) -> Stored:
    return Stored("day20.json", ("data", data, "summary", strategy, "test"), "{} %")


NUMBERS: dict[str, Stored | Printed] = {
    "day20.command": Stored("day20.json", ("command",), "`{}`"),
    "day20.date": Stored("day20.json", ("date",)),
    "day20.hardware": Stored("day20.json", ("hardware",)),
    "day20.train": Stored("day20.json", ("data", "pets", "pictures", "train")),
    "day20.test": Stored("day20.json", ("data", "pets", "pictures", "test")),
    "day20.majority": Stored("day20.json", ("data", "pets", "majority")),
    "day20.scratch": _of_day20("pets", "from scratch"),
    "day20.frozen": _of_day20("pets", "feature extraction"),
    "day20.progressive": _of_day20("pets", "progressive"),
    "day20.full": _of_day20("pets", "full fine-tuning"),
    "day20.frozen-numbers": Stored(
        "day20.json", ("data", "pets", "summary", "feature extraction", "trainable"), "{:,}"
    ),
    "day20.all-numbers": Stored("day20.json", ("data", "pets", "summary", "full fine-tuning", "trainable"), "{:,}"),
    "day20.insects.test": Stored("day20.json", ("data", "hymenoptera", "pictures", "test")),
    "day20.insects.scratch": _of_day20("hymenoptera", "from scratch"),
    "day20.insects.frozen": _of_day20("hymenoptera", "feature extraction"),
    "day20.insects.full": _of_day20("hymenoptera", "full fine-tuning"),
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


def rendered(path: Path) -> bool:
    """Whether a notebook is there and stores any output."""
    from course_tools.authoring.notebooks import code_cells, read_notebook

    return path.exists() and any(cell.outputs for cell in code_cells(read_notebook(path)))


def _printed(path: Path) -> str:
    from course_tools.authoring.notebooks import code_cells, read_notebook

    outputs = (output for cell in code_cells(read_notebook(path)) for output in cell.outputs)
    return "\n".join(output.text for output in outputs if output.get("name") == "stdout")


def figures_of(path: Path) -> list[tuple[str, bytes]]:
    """Description and PNG of every figure that a notebook stores, in order.

    Raises
    ------
    CourseError
        If the file is no notebook.
    """
    from course_tools.authoring.notebooks import code_cells, read_notebook

    return [
        (str(output.metadata.get("image/png", {}).get("alt", "")), base64.b64decode(output.data["image/png"]))
        for cell in code_cells(read_notebook(path))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def picture_of(figure: BlogFigure, root: Path) -> bytes | None:
    """A blog's picture as its notebook stores it; None as long as the notebook is not there or not rendered.

    Raises
    ------
    CourseError
        If not exactly one figure has such a description, or it is too large for a page.
    """
    path = root / "notebooks" / f"{figure.day}.ipynb"
    if not rendered(path):
        return None
    stored = figures_of(path)
    fitting = [content for alt, content in stored if alt.startswith(figure.alt)]
    if len(fitting) != 1:
        near = difflib.get_close_matches(figure.alt, [alt[: len(figure.alt)] for alt, _ in stored], n=1, cutoff=0.3)
        hint = f" The nearest begins {near[0]!r}." if near else ""
        raise CourseError(
            f"{figure.file} is the figure of {figure.day} whose description begins {figure.alt!r}, and {len(fitting)} "
            f"of {len(stored)} begin so.{hint} Change FIGURES in course_tools/authoring/blog.py."
        )
    if len(fitting[0]) > MAX_PICTURE:
        raise CourseError(f"{figure.file} would have {len(fitting[0]):,} bytes, allowed are {MAX_PICTURE:,}.")
    return fitting[0]


def with_numbers(text: str, root: Path) -> str:
    """A page with every marked number as it was measured last.

    Raises
    ------
    CourseError
        For a name that is not in ``NUMBERS``, or a number that is not to be found.
    """
    return NUMBER.sub(lambda match: f"{match[1]}{_number(match[2], root)}{match[4]}", text)


def _number(name: str, root: Path) -> str:
    if name not in NUMBERS:
        near = difflib.get_close_matches(name, NUMBERS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise CourseError(f"No number is called {name!r}.{hint} They are in NUMBERS of course_tools/authoring/blog.py.")
    return NUMBERS[name].look_up(root)


def pages_of(root: Path) -> list[Path]:
    """The Markdown pages beside the notebooks: syllabus, day pages and blogs."""
    folder = root / "notebooks"
    return sorted([*folder.glob("*.md"), *folder.glob("blog/*.md")])


def renewed(root: Path) -> dict[Path, bytes]:
    """Files that are not as they should be, and what they should hold."""
    wanted = {page: with_numbers(page.read_text(encoding="utf-8"), root).encode() for page in pages_of(root)}
    for figure in FIGURES:
        content = picture_of(figure, root)
        if content is not None:
            wanted[root / "notebooks" / "blog" / figure.file] = content
    return {path: content for path, content in wanted.items() if not path.exists() or path.read_bytes() != content}


def main(arguments: Sequence[str] | None = None, root: Path = PROJECT) -> int:
    """Renew pictures and numbers, or say which are out of date; return the exit code."""
    parser = argparse.ArgumentParser(prog="course blog", description=__doc__.splitlines()[0], allow_abbrev=False)
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
