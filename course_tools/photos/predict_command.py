"""``course predict``: what is on these pictures, as a table, CSV or JSON.

course predict photos/ --run 3f9a                      a network of one's own, by its run
course predict a.jpg b.jpg --run 3f9a --csv found.csv  into a file for a spreadsheet
course predict a.jpg --json                            the network of the settings, for another program

Folders are searched at any depth. Broken pictures are left out, and the others are answered. For each of them a line on
stderr names the file and the reason (with --json they are also listed under "left_out"), and the exit code is 3; it is
1, and there is one line with the error instead of a table, if no picture can be read at all. Files that are no pictures
are counted in one line. In the CSV file a text that a spreadsheet would take for a formula begins with an apostrophe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from course_tools.photos.pictures import (
    Answers,
    Network,
    add_picture_arguments,
    in_batches,
    names_of,
    open_network,
    picture_files,
    print_left_out,
)
from course_utils.common.command_line import OneLineParser, at_least_one
from course_utils.common.files import write_csv
from course_utils.common.state import evaluating
from course_utils.common.tables import percent, text_table

BATCH = 32


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``course predict``."""
    parser = OneLineParser(prog="course predict", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_picture_arguments(parser)
    parser.add_argument("--top", type=at_least_one, default=1, metavar="N", help="how many classes (default 1)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a row per picture and class")
    parser.add_argument("--json", action="store_true", help="print what a program can read")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when every picture was answered, 3 when broken ones were left out."""
    options = make_parser().parse_args(arguments)
    paths = picture_files(options.pictures)
    network = open_network(options.model, options.run)

    def answers(images: list[Tensor]) -> list[Answers]:
        return [network.best(probabilities, options.top) for probabilities in predict(network, images)]

    found, left_out = in_batches(paths, BATCH, answers, network.prepare)
    if options.csv is not None:
        write_csv(options.csv, ("file", "place", "class", "probability"), csv_rows(found))
    print(as_json(found, left_out) if options.json else as_table(found, names_of(paths)))
    return print_left_out(left_out)


def predict(network: Network, images: Sequence[Tensor]) -> np.ndarray:
    """Return the probabilities ``(N, C)`` of N images ``(3, H, W)``, which ``network.prepare`` made of pictures."""
    device = next(network.model.parameters()).device
    with evaluating(network.model) as model:
        batch = torch.stack(list(images)).to(device).contiguous(memory_format=torch.channels_last)
        return model(batch).float().softmax(1).cpu().numpy()


def as_table(found: Sequence[tuple[Path, Answers]], names: Mapping[Path, str]) -> str:
    """Return a text table with one line per picture; `names` are those of :func:`names_of`."""
    rows = [[names[path], *(f"{name}, {percent(share, 0)}" for name, share in answers)] for path, answers in found]
    heads = ["answer", *(f"then {i}" for i in range(2, len(rows[0])))]
    return text_table(["picture", *heads], rows)


def csv_rows(found: Sequence[tuple[Path, Answers]]) -> list[tuple[str, int, str, str]]:
    """Return a row per picture and class: file, place (1 is the most probable), class, probability."""
    return [
        (str(path), i, name, f"{share:.6f}") for path, answers in found for i, (name, share) in enumerate(answers, 1)
    ]


def as_json(found: Sequence[tuple[Path, Answers]], left_out: Sequence[str]) -> str:
    """Return ``{"pictures": [{"file", "answers": [{"class", "probability"}]}], "left_out": [line]}``."""
    pictures = [
        {"file": str(path), "answers": [{"class": name, "probability": share} for name, share in answers]}
        for path, answers in found
    ]
    # In ASCII, because what another encoding cannot print would be no JSON any more.
    return json.dumps({"pictures": pictures, "left_out": list(left_out)}, indent=1)
