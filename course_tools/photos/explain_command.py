"""``course explain``: heat maps for any picture, as PNG files and one page that needs nothing else.

course explain holiday.jpg                      the embedded network, 200 classes of Tiny ImageNet
course explain photos/ --model resnet50         a network with ImageNet weights, all pictures of a folder
course explain cat.jpg --run NAME --class Misty a network of your own, and what speaks for one class
"""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

from course_tools.photos.html_page import render_page
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
from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text, written_whole
from course_utils.common.tables import percent, text_table
from course_utils.gradcam import CAM_BATCH, METHODS, as_seen, explain, overlay
from course_utils.transforms import Transform

SHOWN_SIDE = 384
SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Explained:
    """The part of a picture that the network saw, and on it the map of what speaks for the class `target`.

    `empty` is True if the map is 0 everywhere.
    """

    seen: Image.Image
    overlay: Image.Image
    answers: Answers
    target: str
    empty: bool

    @property
    def about(self) -> str:
        """Sentence about the map."""
        return f"nothing speaks for {self.target}: the map is empty" if self.empty else f"the map is for {self.target}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``course explain``."""
    parser = OneLineParser(prog="course explain", description=__doc__.splitlines()[0], allow_abbrev=False)
    add_picture_arguments(parser)
    parser.add_argument("--class", dest="target", metavar="NAME", help="what to explain (default: the answer)")
    parser.add_argument("--method", default="gradcam", metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--stage", metavar="STAGE", help="where to look (default: the last stage with a map)")
    parser.add_argument("--out", type=Path, default=Path("explained"), metavar="FOLDER", help="default: ./explained")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when every picture was explained, 3 when broken ones were left out."""
    options = make_parser().parse_args(arguments)
    if options.method not in METHODS:
        raise CourseError(f"There is no method {options.method!r}; choose one of {', '.join(METHODS)}.")
    paths = picture_files(options.pictures, written_to=options.out)
    network = open_network(options.model, options.run)
    target = None if options.target is None else class_number(options.target, network.classes)
    found, left_out = explain_files(network, paths, target, options.method, options.stage)
    names = names_of(paths)
    shown = [(names[path], item) for path, item in found]
    for (_, item), name in zip(shown, _overlay_names([name for name, _ in shown]), strict=True):
        with written_whole(options.out / name) as beside:
            item.overlay.save(beside, "png")
    how = f"{network.name}, {options.method}, {options.stage or 'last stage with a map'}"
    page = options.out / "index.html"
    write_text(page, render_page("explain.html", shown=shown, left_out=left_out, how=how))
    print(_table(shown))
    code = print_left_out(left_out)
    print(f"\nThe page is {page}.")
    return code


def class_number(wanted: str, classes: Sequence[str]) -> int:
    """Return the number of a class that was given by name, by a part of it between commas, or by number.

    Raises
    ------
    CourseError
        If there is none, naming the nearest, or if several fit.

    Examples
    --------
    >>> class_number("kitten", ["dog", "cat, kitten"])
    1
    """
    text = wanted.strip().casefold()
    whole = [i for i, name in enumerate(classes) if name.casefold() == text]
    part = [i for i, name in enumerate(classes) if text in (piece.strip().casefold() for piece in name.split(","))]
    found = whole or part
    if len(found) > 1:
        several = "; ".join(f"{classes[i]} ({i})" for i in found)
        raise CourseError(f"--class {wanted!r} fits several classes: {several}. Give the number of one.")
    if found:
        return found[0]
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    pieces = {piece.strip().casefold(): name for name in classes for piece in (name, *name.split(","))}
    near = [pieces[key] for key in difflib.get_close_matches(text, pieces, n=3, cutoff=0.5)] or list(classes[:5])
    raise CourseError(
        f"--class {wanted!r} is none of the network's {len(classes)} classes. Perhaps: "
        f"{'; '.join(dict.fromkeys(near))}. A number from 0 to {len(classes) - 1} does too."
    )


def explain_files(
    network: Network,
    paths: Sequence[Path],
    target: int | None = None,
    method: str = "gradcam",
    stage: str | None = None,
) -> tuple[list[tuple[Path, Explained]], list[str]]:
    """Return each readable file with its explanation, and a line for each file that cannot be read.

    `target`, `method` and `stage` are those of :func:`~course_utils.gradcam.explain`; as target None stands for the
    most probable class of each picture.
    """

    def explained(pictures: list[Image.Image]) -> list[Explained]:
        images = torch.stack([network.prepare(picture) for picture in pictures])
        found = explain(network.model, images, target, method, stage)
        items = []
        for i, (heat, number, shares) in enumerate(zip(found.heat, found.targets, found.probabilities, strict=True)):
            seen, answers = _seen(pictures[i], images[i], network.prepare), network.best(shares, SHOWN_CLASSES)
            items.append(Explained(seen, _overlay(seen, heat), answers, network.classes[number], not heat.max() > 0))
        return items

    return in_batches(paths, CAM_BATCH, explained)


def _seen(picture: Image.Image, image: torch.Tensor, prepare: Transform) -> Image.Image:
    """Return the part of a picture that the network was shown, large; `image` is what was made of it."""
    if hasattr(prepare, "crop_size"):  # a weights' own transform says which part that is
        return as_seen(picture, prepare, SHOWN_SIDE)
    for step in reversed(getattr(prepare, "transforms", [])):
        if hasattr(step, "mean") and hasattr(step, "std"):
            mean, std = (torch.as_tensor(values).view(-1, 1, 1) for values in (step.mean, step.std))
            image = image * std + mean
    factor = SHOWN_SIDE / max(image.shape[1:])
    seen = v2.to_pil_image(image.clamp(0, 1).expand(3, -1, -1))
    return seen.resize((round(factor * seen.width), round(factor * seen.height)))


def _overlay(seen: Image.Image, heat: np.ndarray) -> Image.Image:
    picture = v2.pil_to_tensor(seen)[None].float() / 255
    enlarged = F.interpolate(torch.from_numpy(heat)[None, None], picture.shape[2:], mode="bilinear")[0].numpy()
    return Image.fromarray(overlay(picture, enlarged)[0])


def _table(shown: Sequence[tuple[str, Explained]]) -> str:
    rows = []
    for name, item in shown:
        answer, share = item.answers[0]
        explained = f"{item.target}: empty map" if item.empty else item.target
        rows.append([name, f"{answer}, {percent(share, 0)}", explained])
    return text_table(["picture", "answer", "explained"], rows)


def _overlay_names(names: Sequence[str]) -> list[str]:
    """Return a file for each overlay, in the picture's folder; those of ``a.jpg`` and ``a.gif`` differ by a number."""
    taken: dict[str, str] = {}  # by what Windows and macOS take for one name, such as "Cat" and "cat"
    for name in names:
        stem = name.removesuffix(PurePosixPath(name).suffix)
        numbered = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        file = next(f"{text}.png" for text in numbered if f"{text}.png".casefold() not in taken)
        taken[file.casefold()] = file
    return list(taken.values())
