"""``course predict``: what is on these pictures, as a table, CSV or JSON.

course predict photos/ --run 3f9a                      a network of one's own, by its run
course predict a.jpg b.jpg --run 3f9a --csv found.csv  into a file for a spreadsheet
course predict a.jpg --json                            the network of the settings, for another program
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course_tools.photos.explain_command import Network, batched, open_network, percent, picture_files, read_pictures
from course_utils.common.command_line import OneLineParser, at_least_one, exit_code
from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole
from course_utils.common.progress import progress
from course_utils.common.tables import text_table

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """What a network says about one picture.

    Parameters
    ----------
    path
        Of the picture.
    answers
        Names and probabilities of the most probable classes, falling.
    """

    path: Path
    answers: tuple[tuple[str, float], ...]


def make_parser() -> argparse.ArgumentParser:
    """The options of ``course predict``."""
    parser = OneLineParser(prog="course predict", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help="picture files, or folders of them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="RUN", help="a network of your own: a name from `course runs`")
    which.add_argument("--model", metavar="NAME", help="a pre-trained network (default: the one of the settings)")
    parser.add_argument("--top", type=at_least_one, default=1, metavar="N", help="how many classes (default 1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a row per picture and class")
    parser.add_argument("--json", action="store_true", help="print what a program can read")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every picture was answered, 1 when some could not be read: they are named.

    Raises
    ------
    CourseError
        For an unknown network or run, when no picture can be read, or a file cannot be written.
    """
    options = make_parser().parse_args(arguments)
    paths = picture_files(options.pictures)
    found, failures = predict_files(open_network(options.model, options.run), paths, options.top)
    if not found:
        raise CourseError(f"None of the {len(paths)} pictures could be read. {' '.join(failures[:3])}")
    if options.csv is not None:
        with written_whole(options.csv) as beside:
            beside.write_text(as_csv(found), encoding="utf-8", newline="")
    print(as_json(found, failures) if options.json else as_table(found))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def predict_files(network: Network, paths: Sequence[Path], top: int = 1) -> tuple[list[Prediction], list[str]]:
    """Ask a network about some pictures; those that cannot be read are told by a line each.

    Parameters
    ----------
    network
        From :func:`~course_tools.photos.explain_command.open_network`.
    paths
        Files.
    top
        How many classes are given for each, at most as many as there are.
    """
    found, failures = [], []
    for batch in progress(list(batched(paths, BATCH)), "looking at the pictures"):
        readable, pictures, unreadable = read_pictures(batch)
        failures += unreadable
        if not pictures:
            continue
        for path, probabilities in zip(readable, predict(network, pictures), strict=True):
            best = (-probabilities).argsort(kind="stable")[:top]
            found.append(Prediction(path, tuple((network.classes[k], float(probabilities[k])) for k in best)))
    return found, failures


def predict(network: Network, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Probabilities ``(N, C)`` of N pictures, prepared as the network's weights ask for."""
    import torch

    from course_utils.common.state import evaluating
    from course_utils.transforms import eval_transform

    prepare = eval_transform(network.weights)
    device = next(network.model.parameters()).device
    with evaluating(network.model) as model:
        images = torch.stack([prepare(picture) for picture in pictures]).to(device)
        return model(images).float().softmax(1).cpu().numpy()


def as_table(found: Sequence[Prediction]) -> str:
    """One line per picture."""
    rows = [[item.path.name, *(f"{name}, {percent(share)}" for name, share in item.answers)] for item in found]
    heads = ["answer", *(f"then {i}" for i in range(2, len(found[0].answers) + 1))]
    return text_table(["picture", *heads], rows)


def as_csv(found: Sequence[Prediction]) -> str:
    """A row per picture and class: file, place (1 is the most probable), class, probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "place", "class", "probability"])
    for item in found:
        writer.writerows([item.path, i, name, f"{share:.6f}"] for i, (name, share) in enumerate(item.answers, 1))
    return text.getvalue()


def as_json(found: Sequence[Prediction], failures: Sequence[str]) -> str:
    """``{"pictures": [{"file", "answers": [{"class", "probability"}]}], "left_out": [line]}``."""
    pictures = [
        {
            "file": str(item.path),
            "answers": [{"class": name, "probability": share} for name, share in item.answers],
        }
        for item in found
    ]
    return json.dumps({"pictures": pictures, "left_out": list(failures)}, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(exit_code(main))
