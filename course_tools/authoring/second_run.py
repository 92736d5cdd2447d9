"""The page docs/photographs.md: what the cells of the lessons say about real photographs with real ImageNet weights.

Made by three commands, of which the first two take a quarter of an hour each on two cores:

    COURSE_WEIGHTS=lite course compare hymenoptera --seeds 5 --out results/day20_lite.json
    COURSE_WEIGHTS=lite course run --data hymenoptera --out build/lite
    python -m course_tools.authoring.second_run build/lite

The page shows the cells that are tagged ``second-run``: what is stored in the notebook, for the drawn pets and the mini
network, and what the same cell said in the second run. Every statement of a lesson (``settings.claim``) is listed.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from course_tools.authoring.notebooks import code_cells, find_notebooks, printed, read_notebook, tags
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text, written_whole
from course_utils.common.measuring import circumstances
from course_utils.common.tables import markdown_table
from course_utils.experiments.compare import sizes_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
TAG = "second-run"
HOLDS, FAILS = "Holds: ", "Does not hold on this data: "
COMMAND = "COURSE_WEIGHTS=lite course run --data hymenoptera --out build/lite"

# Written by hand from the page below; read it against the page whenever that is made anew.
DIFFERENCES = """\
- **The old job.** The ImageNet network names ants and bees where they are large in the picture. For the drawings the
  mini network has no word.
- **Frozen features are hard to beat.** On the drawn pets fine-tuning is several points better than frozen features. On
  photographs none of the strategies is told apart from them: the network has seen such pictures before.
- **Fine-tuning has to be gentle.** With the rates that suit the mini network it ends *below* the frozen features, most
  clearly where classes are alike ([results/remedies.md](../results/remedies.md)). The ready-made strategies therefore
  train a network with ImageNet weights more carefully; compare the rates in section 8 of day 20.
- **Augmentation, MixUp and CutMix** help in neither within four epochs; the differences are a few pictures.
- **Another world.** By night the mini network is lost, and a few pictures of the night bring it back. The ImageNet
  network loses a few points, and there is little to bring back. Sketches cost it everything: it ends near the majority
  class.
- **Heat maps.** Without training, the mini network's map is faint and EfficientNet-Lite0's is the strongest of all.
  Stretched to its own range, each looks like evidence.
- **Clever Hans** is found in both, and the mark is worth more on photographs: without it, more answers are lost."""


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the page and its figures from a folder of notebooks that were run; return 0."""
    (folder,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    pairs = [(path.stem, read_notebook(path), read_notebook(folder / path.name)) for path in find_notebooks(root)]
    comparison = json.loads((root / "results" / "day20_lite.json").read_text(encoding="utf-8"))
    drawn = json.loads((root / "results" / "day20.json").read_text(encoding="utf-8"))
    write_text(root / "docs" / "photographs.md", page(pairs, comparison, drawn, root / "docs" / "media"))
    return 0


def page(pairs: Sequence[tuple[str, NotebookNode, NotebookNode]], comparison: dict, drawn: dict, media: Path) -> str:
    """Return the page; `pairs` are name, stored notebook and second run of each day, figures go to `media`."""
    facts = circumstances(COMMAND, "cpu")
    parts = [
        "# The same cells on photographs",
        "The lessons are shown with drawn pets and a network of a million parameters, because that takes minutes and "
        "no download. Here are the same cells with **EfficientNet-Lite0, real ImageNet weights, and real photographs** "
        "of ants and bees (hymenoptera: 195 to train, 49 to choose, 153 to test, 160 pixels). Read the second output "
        "beside the first: where they differ, a rule of thumb from small networks does not carry over.",
        f"(`{facts['command']}`, {facts['date']}, {facts['hardware']}; the page is put together by "
        "`python -m course_tools.authoring.second_run build/lite`.)",
        "## What is different",
        DIFFERENCES,
        "## Six strategies, five seeds",
        strategies_table(comparison, drawn),
        "![Test accuracy of six strategies with ImageNet weights: one dot for each seed and a bar for the mean; five "
        "lie close together, training from scratch far to the left](../results/day20_lite.png)",
        "## What the lessons state, and where it holds",
        "A statement is checked by the cell that makes it, on whatever data it is run.",
        claims_table(pairs),
    ]
    for name, stored, second in pairs:
        for heading, one, other, number in shown_cells(stored, second):
            parts += [
                f"## Day {name.removeprefix('day')}: {heading}",
                "Drawn pets, the mini network:",
                outputs_text(one, None, ""),
                "Photographs, EfficientNet-Lite0:",
                outputs_text(other, media, f"photographs-{name}-{number}"),
            ]
    return "\n\n".join(filter(None, parts)) + "\n"


def strategies_table(comparison: dict, drawn: dict) -> str:
    """Return the accuracy of the six strategies on photographs, beside the same on the drawn pets."""
    (data,), pets = comparison["data"].values(), drawn["data"]["pets"]
    heads = [
        "strategy",
        f"{comparison['model']}, photographs, test % of {data['pictures']['test']}",
        f"{drawn['model']}, drawn pets, test % of {pets['pictures']['test']}",
    ]
    rows = [["majority class", data["majority"], pets["majority"]]]
    rows += [[name, row["test"], pets["summary"][name]["test"]] for name, row in data["summary"].items()]
    source = f"`{comparison['command']}` on {comparison['date']}, {comparison['hardware']}"
    return f"{markdown_table(heads, rows)}\n\n{sizes_text(data['pictures'], data['trials'])}; mean ± sd. ({source}.)"


def claims_table(pairs: Sequence[tuple[str, NotebookNode, NotebookNode]]) -> str:
    """Return a table of all statements of the lessons, and whether they hold in the second run."""
    rows = []
    for name, stored, second in pairs:
        answers = dict(claims(second))
        for text in dict(claims(stored)):
            if text not in answers:
                raise CourseError(f"{name} was run in another version: it does not state {text!r}. Run it again.")
            rows.append([name, text, "yes" if answers[text] else "**no**"])
    return markdown_table(["day", "statement, true of the drawn pets", "holds on photographs"], rows)


def claims(notebook: NotebookNode) -> Iterator[tuple[str, bool]]:
    """Yield the statements that a notebook has printed, and True for those that hold."""
    for cell in code_cells(notebook):
        for line in printed(cell).splitlines():
            for start in (HOLDS, FAILS):
                if line.startswith(start):
                    yield line.removeprefix(start).rstrip("."), start == HOLDS


def shown_cells(stored: NotebookNode, second: NotebookNode) -> Iterator[tuple[str, NotebookNode, NotebookNode, int]]:
    """Yield section, stored cell, cell of the second run and number of each tagged cell."""
    others = {cell.id: cell for cell in second.cells}
    heading = ""
    for number, cell in enumerate(stored.cells):
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^## \d+\. (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
        elif TAG in tags(cell):
            if cell.id not in others or others[cell.id].source != cell.source:
                raise CourseError(f"A cell of section {heading!r} has been changed since the second run. Run it again.")
            yield heading, cell, others[cell.id], number


def outputs_text(cell: NotebookNode, media: Path | None, name: str) -> str:
    """Return what a cell wrote and its caption, and with `media` its figures, stored there under `name`."""
    parts, text = [], printed(cell).strip()
    if text:
        parts.append(f"```text\n{text}\n```")
    figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if media is None and figures and not text:
        parts.append("(a figure: see the notebook)")
    for i, figure in enumerate(figures if media is not None else []):
        target = media / f"{name}-{i}.png"
        with written_whole(target) as beside:
            beside.write_bytes(base64.b64decode(figure.data["image/png"]))
        alt = figure.metadata.get("image/png", {}).get("alt", "")
        parts.append(f"![{alt}](media/{target.name})")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
