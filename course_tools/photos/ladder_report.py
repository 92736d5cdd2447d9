"""The report of a ladder: one HTML file that needs nothing else, to be read by somebody who was not there."""

from __future__ import annotations

import base64
import html
import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from course_tools.photos.data_audit import Pair
from course_tools.photos.explain_command import Explained, Network, data_uri, explain_files, percent
from course_tools.photos.ladder import COLUMNS, STEP_COLUMNS, Ladder, all_paths, fewest_to_tell, result_row, split_names
from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.data.pictures import load_picture
from course_utils.datasets import SPLITS
from course_utils.engine.run_log import MANY_CLASSES
from course_utils.engine.runs import load_run
from course_utils.evaluation import Report, interval_text, majority_baseline, plot_confusion
from course_utils.experiments.compare import hardware
from course_utils.pretrained_models import weights_entry

SHOWN_MISTAKES, SHOWN_SUSPECTS, SHOWN_PAIRS, SHOWN_MIX_UPS = 12, 12, 8, 20
THUMBNAIL = 200

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
.short td, .short th { white-space: nowrap }
th { background: #f2f2f2 } td.number, th.number { text-align: right; white-space: nowrap }
tr.chosen td { background: #e8f3e8; font-weight: 600 }
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem } figure { margin: 0 } figure div { display: flex; gap: 4px }
figcaption { font-size: .9rem; margin-top: .3rem; max-width: 404px; overflow-wrap: anywhere }
.one figcaption { max-width: 200px } img { max-width: 100%; height: auto } .result { font-size: 1.15rem }
code { background: #f2f2f2; padding: .1rem .3rem }
"""


class Cell(NamedTuple):
    """A figure for one picture: what is shown, and what is said about it."""

    pictures: Sequence[tuple[str, Image.Image]]
    caption: str


def report_page(ladder: Ladder) -> str:
    """The HTML text, without a reference to any other file.

    Parameters
    ----------
    ladder
        From :func:`~course_tools.photos.ladder.measure`.

    Raises
    ------
    CourseError
        If the chosen network or a picture cannot be read any more.
    """
    title = html.escape(f"The ladder on {ladder.splits.name}")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        _summary(ladder),
        _rungs(ladder),
        _worth(ladder),
        _answers(ladder.test),
        _mistakes(ladder),
        _copies(ladder),
        _suspects(ladder),
        _left_out(ladder),
        _method(ladder),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


# --- numbers -----------------------------------------------------------------------------------------------------


def _summary(ladder: Ladder) -> str:
    test, chosen = ladder.test, ladder.chosen
    accuracy = interval_text(test.right, len(test.labels))
    majority = majority_baseline(ladder.splits.train.labels, test.labels)
    again = (
        ""
        if ladder.looks == 1
        else f" These test pictures have been asked for {ladder.looks} chosen networks by now; the more often, the "
        "less the number means."
    )
    run = html.escape(chosen.run.rpartition("-")[2])
    counts = {split: getattr(ladder.splits, split).counts() for split in SPLITS}
    rows = [[split, *found.values(), sum(found.values())] for split, found in counts.items()]
    return "\n".join(
        [
            f'<p class="result"><strong>{html.escape(chosen.name)}</strong> was chosen by the validation pictures. It '
            f"recognises <strong>{html.escape(accuracy)}</strong> of the test pictures (95 % interval). Always "
            f"answering the most frequent class: {html.escape(interval_text(majority, len(test.labels)))}.</p>",
            f"<p>The test pictures were asked once, after the choice.{again} To use the network: "
            f"<code>course predict PICTURE --run {run}</code></p>",
            _table(["pictures", *ladder.splits.classes, "total"], rows)
            if len(ladder.splits.classes) <= MANY_CLASSES
            else _table(["pictures", "total"], [[row[0], row[-1]] for row in rows]),
            f"<p>{html.escape(ladder.splits.source)}</p>",
        ]
    )


def _rungs(ladder: Ladder) -> str:
    rows = [result_row(result) for result in ladder.results]
    chosen = next(i for i, result in enumerate(ladder.results) if result is ladder.chosen)
    failed = [f"<p>{html.escape(name)}: no result. {html.escape(why)}</p>" for name, why in ladder.failures.items()]
    memory = "allocated on the GPU" if ladder.budget.device == "cuda" else "resident, of the whole process"
    return "\n".join(
        [
            "<h2>Every rung</h2>",
            "<p>Accuracy on the validation pictures. Rungs that train have chosen their best epoch by the same "
            "pictures, so these numbers flatter them a little; that is why the test pictures exist.</p>",
            _table(COLUMNS, rows, chosen, "short"),
            *failed,
            "<p>kNN asks the nearest training pictures and leaves no network: it is the yardstick. Reading the "
            "pictures is in the seconds of kNN and the probe; rungs that train find them decoded. Memory is the "
            f"peak, {memory}. <code>course runs NAME</code> tells all about a run.</p>",
        ]
    )


def _worth(ladder: Ladder) -> str:
    few, n = fewest_to_tell(), len(ladder.chosen.report.labels)
    return "\n".join(
        [
            "<h2>Is the next rung worth it?</h2>",
            "<p>Each rung beside the best one below it, on the same validation pictures: a paired test (McNemar, "
            "exact).</p>",
            _table(STEP_COLUMNS, [step.row() for step in ladder.steps], kind="short"),
            f"<p>{n} validation pictures can tell two rungs apart only if one of them is right on at least {few} "
            f"pictures more, that is {100 * few / n:.1f} points. “Not shown to be worth it” means: perhaps "
            "better, and more validation pictures would tell.</p>",
        ]
    )


def _answers(test: Report) -> str:
    facts = test.to_dict()
    rows = [
        [
            row["class"],
            row["n"],
            f"{100 * row['precision']:.1f} %" if row["predicted"] else "–",
            interval_text(round(row["recall"] * row["n"]), row["n"]) if row["n"] else "–",
            f"{row['f1']:.2f}",
        ]
        for row in facts["per_class"]
    ]
    low, high = facts["macro_f1_interval"]
    return "\n".join(
        [
            "<h2>What the chosen network answers to the test pictures</h2>",
            _confusion(test) if len(test.classes) <= MANY_CLASSES else _mix_ups(test),
            _table(["class", "test pictures", "precision", "recall (95 % interval)", "F1"], rows),
            f"<p>Macro F1: {facts['macro_f1']:.2f} ({low:.2f} to {high:.2f}).</p>",
        ]
    )


def _confusion(test: Report) -> str:
    matrix = test.confusion
    rows = [
        f"of {matrix[i].sum()} {name} {', '.join(f'{n} as {test.classes[j]}' for j, n in enumerate(matrix[i]) if n)}"
        for i, name in enumerate(test.classes)
    ]
    alt = textwrap.shorten(f"Confusion matrix, answered: {'; '.join(rows)}", 1000, placeholder=" …")
    drawn = base64.b64encode(plots.png_bytes(plot_confusion(test), limit=2**40)).decode()
    return f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,{drawn}"></figure>'


def _mix_ups(test: Report) -> str:
    matrix = test.confusion.copy()
    np.fill_diagonal(matrix, 0)
    worst = np.argsort(-matrix, axis=None, kind="stable")[:SHOWN_MIX_UPS]
    places = [np.unravel_index(place, matrix.shape) for place in worst]
    rows = [[test.classes[i], test.classes[j], int(matrix[i, j])] for i, j in places if matrix[i, j]]
    return f"<p>The most frequent mix-ups:</p>\n{_table(['true', 'answered', 'pictures'], rows)}"


# --- pictures ----------------------------------------------------------------------------------------------------


def _mistakes(ladder: Ladder) -> str:
    wrong = ladder.test.mistakes()
    if not wrong:
        return "<h2>Mistakes</h2><p>None: every test picture was recognised.</p>"
    shown = wrong[:SHOWN_MISTAKES]
    paths = [ladder.splits.test.paths[i] for i in shown]
    explained, why = _explained(ladder, paths)
    cells = []
    for i, path in zip(shown, paths, strict=True):
        true, answer = (ladder.test.classes[k] for k in (ladder.test.labels[i], ladder.test.predictions[i]))
        share = percent(float(ladder.test.probabilities[i].max()))
        name, item = _name(path), explained.get(path)
        if item is None:
            pictures = [(f"{name}, {true} taken for {answer}", _thumbnail(path))]
        else:
            said = f"nothing speaks for {answer}: the map is empty" if item.empty else f"what speaks for {answer}"
            seen, overlay = (picture.resize((THUMBNAIL, THUMBNAIL)) for picture in (item.seen, item.overlay))
            pictures = [(f"{name}, {true}, as the network saw it", seen), (f"{name}: {said}", overlay)]
        cells.append(Cell(pictures, f"{name}: {true}, taken for {answer} ({share})"))
    maps = (
        f"Maps could not be drawn: {html.escape(why)}"
        if why
        else "On the right (Grad-CAM): the brighter, the more a place speaks for the wrong answer."
    )
    which = "the surest first" if shown == wrong else f"the {len(shown)} that the network was surest of"
    return "\n".join(
        [
            "<h2>Mistakes</h2>",
            f"<p>{len(wrong)} of {len(ladder.test.labels)} test pictures; {which}. {maps}</p>",
            _figures(cells),
        ]
    )


def _explained(ladder: Ladder, paths: Sequence[Path]) -> tuple[dict[Path, Explained], str]:
    """Maps of some pictures, or why there are none: a report without maps is still a report."""
    model = load_run(ladder.chosen.run).model().to(ladder.budget.device)
    network = Network(ladder.chosen.name, model, ladder.splits.classes, weights_entry(ladder.chosen.model))
    try:
        shown, _ = explain_files(network, paths, None, "gradcam", None)
    except (CourseError, ImportError) as error:
        return {}, str(error)
    return {item.path: item for item in shown}, ""


def _copies(ladder: Ladder) -> str:
    found = ladder.audit.duplicates
    pairs = [*ladder.audit.copies, *found.pairs]
    how = (
        f"<p>How well this search works was tried on these photos: of {found.altered} altered copies (half the size, "
        f"cropped, brightened, mirrored) it finds {found.found}.</p>"
    )
    lines = ["<h2>The same picture in two splits</h2>"]
    if pairs:
        lines.append(
            f"<p>{_count(len(pairs), 'pair')}. A test picture that was learned by heart makes the test too easy: "
            "keep one of each pair, in test.</p>"
        )
        lines.append(_figures([_pair_cell(ladder, pair) for pair in pairs[:SHOWN_PAIRS]]))
        lines.append(_more(len(pairs), SHOWN_PAIRS))
    else:
        lines.append("<p>None found.</p>")
    lines.append(how)
    if found.alike:
        lines.append(
            f"<p>As alike to the network as a photo and its altered copy, though their pixels differ: "
            f"{_count(len(found.alike), 'pair')}. Photos of one scene, taken in a row, belong in one split.</p>"
        )
        lines.append(_figures([_pair_cell(ladder, pair) for pair in found.alike[:SHOWN_PAIRS]]))
        lines.append(_more(len(found.alike), SHOWN_PAIRS))
    return "\n".join(line for line in lines if line)


def _pair_cell(ladder: Ladder, pair: Pair) -> Cell:
    paths, splits = all_paths(ladder.splits), split_names(ladder.splits)
    names = [f"{splits[i]}: {_name(paths[i])}" for i in (pair.first, pair.second)]
    pictures = [(name, _thumbnail(paths[i])) for name, i in zip(names, (pair.first, pair.second), strict=True)]
    how = "the same file" if pair.similarity == pair.pixels == 1 else f"similarity {pair.similarity:.2f}"
    return Cell(pictures, f"{' and '.join(names)} ({how})")


def _suspects(ladder: Ladder) -> str:
    suspects = ladder.audit.suspects
    total = sum(len(getattr(ladder.splits, split)) for split in SPLITS)
    paths, splits, classes = all_paths(ladder.splits), split_names(ladder.splits), ladder.splits.classes
    cells = [
        Cell(
            [(f"{_name(paths[s.index])}, labelled {classes[s.label]}", _thumbnail(paths[s.index]))],
            f"{_name(paths[s.index])} ({splits[s.index]}): labelled {classes[s.label]}, looks like {classes[s.likely]} "
            f"({percent(s.probability)})",
        )
        for s in suspects[:SHOWN_SUSPECTS]
    ]
    lines = ["<h2>Labels to look at</h2>"]
    if not suspects:
        return lines[0] + "\n<p>No label stands out.</p>"
    return "\n".join(
        [
            *lines,
            f"<p>For {len(suspects)} of {total} pictures, linear probes that have not seen them disagree with the "
            "label (confident learning, five folds). Some of these labels will be wrong, the other pictures are hard. "
            "The most suspicious come first. Nothing was changed or left out because of this.</p>",
            _figures(cells),
            _more(len(suspects), SHOWN_SUSPECTS),
        ]
    )


def _more(total: int, shown: int) -> str:
    return f"<p>… and {total - shown} more.</p>" if total > shown else ""


def _figures(cells: Sequence[Cell]) -> str:
    return '<div class="pictures">\n' + "\n".join(_figure(cell) for cell in cells) + "\n</div>"


def _figure(cell: Cell) -> str:
    images = "".join(
        f'<img alt="{html.escape(alt)}" width="{picture.width}" height="{picture.height}" src="{data_uri(picture)}">'
        for alt, picture in cell.pictures
    )
    caption = html.escape(cell.caption).replace(" %", "\N{NO-BREAK SPACE}%")
    kind = ' class="one"' if len(cell.pictures) == 1 else ""
    return f"<figure{kind}><div>{images}</div><figcaption>{caption}</figcaption></figure>"


def _thumbnail(path: Path) -> Image.Image:
    return ImageOps.contain(load_picture(path, THUMBNAIL), (THUMBNAIL, THUMBNAIL))


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])  # a report must not show where somebody keeps their photos


# --- the rest ----------------------------------------------------------------------------------------------------


def _left_out(ladder: Ladder) -> str:
    items = ladder.splits.quarantine
    if not items:
        return "<h2>Files that were left out</h2><p>None: every file could be used.</p>"
    rows = [[item.path, item.reason] for item in items]
    return f"<h2>Files that were left out</h2><p>{_count(len(items), 'file')}.</p>\n{_table(['file', 'reason'], rows)}"


def _method(ladder: Ladder) -> str:
    budget = ladder.budget
    augment = "without augmentation" if budget.augment == "none" else f"with {budget.augment} augmentation"
    choices = "; ".join(f"{result.name}: {result.detail}" for result in ladder.results if result.detail)
    return (
        f"<h2>How this was measured</h2><p>{budget.epochs} epochs for each rung that trains, batches of "
        f"{budget.batch_size}, {augment}, seed {budget.seed}; {html.escape(hardware(budget.device))}; "
        f"{datetime.now().astimezone():%Y-%m-%d}. One seed: another one moves the accuracies of trained rungs by a few "
        f"points. Chosen on the way: {html.escape(choices)}.</p>"
    )


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], marked: int | None = None, kind: str = "plain"
) -> str:
    numbers = [all(isinstance(row[i], int) or _is_number(str(row[i])) for row in rows) for i in range(len(columns))]
    sides = [' class="number"' if number else "" for number in numbers]
    head = "".join(f"<th{side}>{html.escape(str(column))}</th>" for side, column in zip(sides, columns, strict=True))
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{side}>{html.escape(_text(value))}</td>" for side, value in zip(sides, row, strict=True))
        lines.append(f'<tr class="chosen">{cells}</tr>' if place == marked else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").isdigit()
