"""The report of a ladder: one HTML file that needs nothing else, to be read by somebody who was not there.

The sentences are in ``templates/ladder.html``; here are the tables and the pictures that they are about.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from course_tools.photos.data_audit import Pair
from course_tools.photos.explain_command import Explained, explain_files
from course_tools.photos.html_page import as_data_uri, render_page
from course_tools.photos.ladder import Ladder, all_pictures
from course_tools.photos.ladder_results import COLUMNS, STEP_COLUMNS, fewest_to_tell, steps
from course_tools.photos.looks import looks_text
from course_tools.photos.pictures import Network
from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.common.measuring import hardware
from course_utils.common.tables import percent
from course_utils.data.pictures import load_picture
from course_utils.datasets import SPLITS
from course_utils.engine.run_log import MANY_CLASSES
from course_utils.engine.runs import load_run
from course_utils.evaluation import Report, interval_text, majority_baseline, plot_confusion
from course_utils.pretrained_models import weights_entry
from course_utils.transforms import eval_transform

SHOWN_MISTAKES, SHOWN_SUSPECTS, SHOWN_PAIRS, SHOWN_MIX_UPS = 12, 12, 8, 20
THUMBNAIL = 200


class Table(NamedTuple):
    """A table of text: name and True for numbers per column, rows, number of the marked row, and CSS class."""

    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    marked: int | None
    kind: str


class Cell(NamedTuple):
    """A figure about one picture or pair: alternative texts with pictures, and a caption."""

    pictures: Sequence[tuple[str, Image.Image]]
    caption: str


def report_page(ladder: Ladder) -> str:
    """Return the HTML text, without a reference to any other file."""
    splits, test, duplicates = ladder.splits, ladder.test, ladder.audit.duplicates
    majority = majority_baseline(splits.train.labels, test.labels)
    compared = steps(ladder.results)
    marked = next(i for i, result in enumerate(ladder.results) if result is ladder.chosen)
    return render_page(
        "ladder.html",
        ladder=ladder,
        splits=splits,
        budget=ladder.budget,
        chosen=ladder.chosen,
        accuracy=interval_text(test.right, len(test.labels)),
        majority=interval_text(majority, len(test.labels)),
        counts=_counts(ladder),
        results=_table(COLUMNS, [result.row() for result in ladder.results], marked, "short"),
        steps=_table(STEP_COLUMNS, [step.row() for step in compared], kind="short"),
        comparisons=len(compared),
        fewest=fewest_to_tell(max(1, len(compared))),
        looks=looks_text(ladder.looks),
        validation=len(ladder.chosen.report.labels),
        **_answers(test),
        mistakes=_mistakes(ladder),
        copies=_pairs(ladder, [*ladder.audit.copies, *duplicates.pairs]),
        duplicates=duplicates,
        alike=_pairs(ladder, duplicates.alike),
        suspects=_suspects(ladder),
        pictures=len(all_pictures(splits)),
        left_out=_table(["file", "reason"], [[item.path, item.reason] for item in splits.quarantine]),
        hardware=hardware(ladder.budget.device),
        date=f"{datetime.now().astimezone():%Y-%m-%d}",
        choices="; ".join(f"{result.name}: {result.detail}" for result in ladder.results if result.detail),
    )


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], marked: int | None = None, kind: str = "plain"
) -> Table:
    texts = [[_text(value) for value in row] for row in rows]
    numbers = [all(_is_number(row[i]) for row in texts) for i in range(len(columns))]
    return Table(list(zip(columns, numbers, strict=True)), texts, marked, kind)


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").isdigit()


def _counts(ladder: Ladder) -> Table:
    rows = [[split, *getattr(ladder.splits, split).counts().values()] for split in SPLITS]
    if len(ladder.splits.classes) > MANY_CLASSES:
        return _table(["pictures", "total"], [[row[0], sum(row[1:])] for row in rows])
    return _table(["pictures", *ladder.splits.classes, "total"], [[*row, sum(row[1:])] for row in rows])


def _answers(test: Report) -> dict[str, Any]:
    facts, many = test.to_dict(), len(test.classes) > MANY_CLASSES
    rows = [
        [
            row["class"],
            row["n"],
            percent(row["precision"]) if row["predicted"] else None,
            interval_text(round(row["recall"] * row["n"]), row["n"]) if row["n"] else None,
            f"{row['f1']:.2f}",
        ]
        for row in facts["per_class"]
    ]
    low, high = facts["macro_f1_interval"]
    return {
        "confusion": None if many else _confusion(test),
        "mix_ups": _mix_ups(test),
        "classes": _table(["class", "test pictures", "precision", "recall (95 % interval)", "F1"], rows),
        "macro_f1": f"{facts['macro_f1']:.2f} ({low:.2f} to {high:.2f})",
    }


def _confusion(test: Report) -> dict[str, str]:
    matrix = test.confusion
    rows = [
        f"of {matrix[i].sum()} {name} {', '.join(f'{n} as {test.classes[j]}' for j, n in enumerate(matrix[i]) if n)}"
        for i, name in enumerate(test.classes)
    ]
    alt = textwrap.shorten(f"Confusion matrix, answered: {'; '.join(rows)}", 1000, placeholder=" …")
    return {"alt": alt, "source": as_data_uri(plots.png_bytes(plot_confusion(test), limit=2**40), "png")}


def _mix_ups(test: Report) -> Table:
    matrix = test.confusion.copy()
    np.fill_diagonal(matrix, 0)
    worst = np.argsort(-matrix, axis=None, kind="stable")[:SHOWN_MIX_UPS]
    places = [np.unravel_index(place, matrix.shape) for place in worst]
    rows = [[test.classes[i], test.classes[j], int(matrix[i, j])] for i, j in places if matrix[i, j]]
    return _table(["true", "answered", "pictures"], rows)


def _mistakes(ladder: Ladder) -> dict[str, Any]:
    test, wrong = ladder.test, ladder.test.mistakes()
    shown = wrong[:SHOWN_MISTAKES]
    paths = [ladder.splits.test.paths[i] for i in shown]
    explained, no_maps = _explained(ladder, paths) if paths else ({}, "")
    cells = []
    for i, path in zip(shown, paths, strict=True):
        name, true, answer = _name(path), test.classes[test.labels[i]], test.classes[test.predictions[i]]
        item = explained.get(path)
        if item is None:
            pictures = [(f"{name}, {true} taken for {answer}", _thumbnail(path))]
        else:
            about = item.about if item.empty else f"what speaks for {answer}"
            seen, overlay = (picture.resize((THUMBNAIL, THUMBNAIL)) for picture in (item.seen, item.overlay))
            pictures = [(f"{name}, {true}, as the network saw it", seen), (f"{name}: {about}", overlay)]
        share = percent(float(test.probabilities[i].max()), 0)
        cells.append(Cell(pictures, f"{name}: {true}, taken for {answer} ({share})"))
    return {"total": len(wrong), "cells": cells, "no_maps": no_maps}


def _explained(ladder: Ladder, paths: Sequence[Path]) -> tuple[dict[Path, Explained], str]:
    """Return maps of some pictures, or why there are none: a report without maps is still a report."""
    model = load_run(ladder.chosen.run).model().to(ladder.budget.device)
    prepare = eval_transform(weights_entry(ladder.chosen.model))
    network = Network(ladder.chosen.name, model, ladder.splits.classes, prepare)
    try:
        shown, _ = explain_files(network, paths)
    except CourseError as error:
        return {}, str(error)
    return dict(shown), ""


def _pairs(ladder: Ladder, pairs: Sequence[Pair]) -> dict[str, Any]:
    known, cells = all_pictures(ladder.splits), []
    for pair in pairs[:SHOWN_PAIRS]:
        both = [known[pair.first], known[pair.second]]
        pictures = [(f"{split}: {_name(path)}", _thumbnail(path)) for split, path in both]
        how = "the same file" if pair.similarity == pair.pixels == 1 else f"similarity {pair.similarity:.2f}"
        cells.append(Cell(pictures, f"{' and '.join(name for name, _ in pictures)} ({how})"))
    return {"total": len(pairs), "cells": cells}


def _suspects(ladder: Ladder) -> dict[str, Any]:
    pictures, classes, cells = all_pictures(ladder.splits), ladder.splits.classes, []
    for suspect in ladder.audit.suspects[:SHOWN_SUSPECTS]:
        split, path = pictures[suspect.index]
        name, label, likely = _name(path), classes[suspect.label], classes[suspect.likely]
        caption = f"{name} ({split}): labelled {label}, looks like {likely} ({percent(suspect.probability, 0)})"
        cells.append(Cell([(f"{name}, labelled {label}", _thumbnail(path))], caption))
    return {"total": len(ladder.audit.suspects), "cells": cells}


def _thumbnail(path: Path) -> Image.Image:
    return ImageOps.contain(load_picture(path, THUMBNAIL), (THUMBNAIL, THUMBNAIL))


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])  # a report must not show where somebody keeps their photos
