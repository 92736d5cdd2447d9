"""``course predict``: what is on these pictures, as a table, CSV or JSON.

course predict photos/ --run 3f9a                      a network of one's own, by its run
course predict a.jpg b.jpg --run 3f9a --csv found.csv  into a file for a spreadsheet
course predict a.jpg --json                            the network of the settings, for another program

Broken files are left out, and the other pictures are answered. For each of them a line on stderr names the file and the
reason (with --json they are also listed under "left_out"), and the exit code is 1. If no file can be read at all, there
is one line with the error instead of a table, and the exit code is 1 as well.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image

from course_tools.photos.pictures import (
    Answers,
    Network,
    add_picture_arguments,
    in_batches,
    open_network,
    picture_files,
    print_left_out,
)
from course_utils.common.command_line import OneLineParser, at_least_one
from course_utils.common.files import written_whole
from course_utils.common.state import evaluating
from course_utils.common.tables import percent, text_table
from course_utils.transforms import eval_transform

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
    """Run the command; return 0 when every picture was answered, 1 when broken files were left out."""
    options = make_parser().parse_args(arguments)
    paths = picture_files(options.pictures)
    network = open_network(options.model, options.run)

    def answers(pictures: list[Image.Image]) -> list[Answers]:
        return [network.best(probabilities, options.top) for probabilities in predict(network, pictures)]

    found, left_out = in_batches(paths, BATCH, answers)
    if options.csv is not None:
        with written_whole(options.csv) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            write_csv(file, found)
    print(as_json(found, left_out) if options.json else as_table(found))
    return print_left_out(left_out)


def predict(network: Network, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Return the probabilities ``(N, C)`` of N pictures, prepared as the network's weights ask for."""
    prepare = eval_transform(network.weights)
    device = next(network.model.parameters()).device
    with evaluating(network.model) as model:
        images = torch.stack([prepare(picture) for picture in pictures]).to(device)
        return model(images).float().softmax(1).cpu().numpy()


def as_table(found: Sequence[tuple[Path, Answers]]) -> str:
    """Return a text table with one line per picture."""
    rows = [[path.name, *(f"{name}, {percent(share, 0)}" for name, share in answers)] for path, answers in found]
    heads = ["answer", *(f"then {i}" for i in range(2, len(rows[0])))]
    return text_table(["picture", *heads], rows)


def write_csv(file: TextIO, found: Sequence[tuple[Path, Answers]]) -> None:
    """Write a row per picture and class: file, place (1 is the most probable), class, probability."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "place", "class", "probability"])
    for path, answers in found:
        writer.writerows([path, i, name, f"{share:.6f}"] for i, (name, share) in enumerate(answers, 1))


def as_json(found: Sequence[tuple[Path, Answers]], left_out: Sequence[str]) -> str:
    """Return ``{"pictures": [{"file", "answers": [{"class", "probability"}]}], "left_out": [line]}``."""
    pictures = [
        {"file": str(path), "answers": [{"class": name, "probability": share} for name, share in answers]}
        for path, answers in found
    ]
    return json.dumps({"pictures": pictures, "left_out": list(left_out)}, indent=1, ensure_ascii=False)
