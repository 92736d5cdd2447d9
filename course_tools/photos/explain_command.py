"""``course explain``: heat maps for any picture, as PNG files and one page that needs nothing else.

course explain holiday.jpg                      the embedded network, 200 classes of Tiny ImageNet
course explain photos/ --model resnet50         a network with ImageNet weights, all pictures of a folder
course explain cat.jpg --run NAME --class Misty a network of your own, and what speaks for one class
"""

from __future__ import annotations

import argparse
import base64
import difflib
import html
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole
from course_utils.common.tables import text_table
from course_utils.gradcam import CAM_BATCH, METHODS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import nn

SHOWN_SIDE = 384
SHOWN_CLASSES = 3
PAGE = "index.html"

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #222 }
figure { margin: 2.5rem 0 } figure div { display: flex; flex-wrap: wrap; gap: 8px }
img { width: min(384px, 100%); height: auto } figcaption { margin-top: .4rem } .failed { color: #a33 }
"""


@dataclass(frozen=True)
class Network:
    """A network with what is needed to show it a picture and to read its answer.

    Parameters
    ----------
    name
        For the page.
    model
        On its device.
    classes
        Names of its outputs.
    weights
        Entry that says how pictures are prepared.
    """

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    weights: Any


@dataclass(frozen=True)
class Explained:
    """One picture of the page.

    Parameters
    ----------
    path
        Of the picture.
    seen, overlay
        What the network saw, and the map on it, as PIL pictures.
    answers
        Names and probabilities of the most probable classes, falling.
    target
        Name of the class that the map explains.
    empty
        Whether the map is 0 everywhere.
    """

    path: Path
    seen: Image.Image
    overlay: Image.Image
    answers: tuple[tuple[str, float], ...]
    target: str
    empty: bool


def make_parser() -> argparse.ArgumentParser:
    """The options of ``course explain``."""
    parser = argparse.ArgumentParser(prog="course explain", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help="picture files, or folders of them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="RUN", help="a network of your own: a name from `course runs`")
    which.add_argument("--model", metavar="NAME", help="a pre-trained network (default: the one of the settings)")
    parser.add_argument("--class", dest="target", metavar="NAME", help="what to explain (default: the answer)")
    parser.add_argument("--method", default="gradcam", metavar="METHOD", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--stage", metavar="STAGE", help="where to look (default: the last stage with a map)")
    parser.add_argument("--out", type=Path, default=Path("explained"), metavar="FOLDER", help="default: ./explained")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every picture was explained, 1 when some could not be read.

    Raises
    ------
    CourseError
        For an unknown network, run, class, method or stage, or when no picture can be read.
    """
    options = make_parser().parse_args(arguments)
    if options.method not in METHODS:
        raise CourseError(f"There is no method {options.method!r}; choose one of {', '.join(METHODS)}.")
    paths = picture_files(options.pictures)
    network = open_network(options.model, options.run)
    target = None if options.target is None else class_number(options.target, network.classes)
    shown: list[Explained] = []
    failures: list[str] = []
    for batch in batched(paths, CAM_BATCH):
        done, failed = explain_files(network, batch, target, options.method, options.stage)
        shown += done
        failures += failed
    if not shown:
        raise CourseError(f"None of the {len(paths)} pictures could be read. {' '.join(failures[:3])}")
    names = _file_names([item.path for item in shown])
    for item, name in zip(shown, names, strict=True):
        with written_whole(options.out / name) as beside:
            beside.write_bytes(_png(item.overlay))
    how = f"{network.name}, {options.method}, {options.stage or 'last stage with a map'}"
    with written_whole(options.out / PAGE) as beside:
        beside.write_text(page(shown, failures, how), encoding="utf-8")
    print(_table(shown))
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"\nThe page is {options.out / PAGE}.")
    return 1 if failures else 0


def picture_files(given: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the visible files in them, sorted.

    Raises
    ------
    CourseError
        If something does not exist, or a folder has no file.
    """
    files: list[Path] = []
    for path in given:
        path = path.expanduser()
        if not path.exists():
            raise CourseError(f"There is no picture {str(path)!r}. Give files, or folders that hold pictures.")
        inside = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
        if not inside:
            raise CourseError(f"The folder {str(path)!r} holds no file. Give pictures, or a folder that holds some.")
        files += inside
    return files


def open_network(model: str | None = None, run: str | None = None) -> Network:
    """Load a pre-trained network, or one that was trained with ``fit``, onto the best device.

    Parameters
    ----------
    model
        A name as ``load_pretrained`` takes it; None for the network of the settings.
    run
        A run as ``load_run`` takes it, instead of `model`. Pictures are prepared as the default weights of its network
        ask for.

    Raises
    ------
    CourseError
        For an unknown name or run, or one without weights.
    """
    from course_utils.settings import load_settings

    settings = load_settings()
    network = _trained_network(run) if run is not None else _pretrained_network(model or settings.model)
    network.model.to(settings.device)
    return network


def _pretrained_network(name: str) -> Network:
    from course_utils.pretrained_models import load_pretrained, weights_entry

    entry = weights_entry(name)
    return Network(name, load_pretrained(name), tuple(entry.meta["categories"]), entry)


def _trained_network(name: str) -> Network:
    from course_utils.engine.runs import load_run
    from course_utils.pretrained_models import last_layer, weights_entry

    record = load_run(name)
    model = record.model()
    outputs = last_layer(model).out_features
    classes = tuple(record.facts["data"]["val"]["classes"] or ())
    # A data set that does not know its classes leaves only their numbers.
    names = classes if len(classes) == outputs else tuple(f"class {i}" for i in range(outputs))
    return Network(f"{record.model_text} of the run {record.name}", model, names, weights_entry(record.model_text))


def class_number(wanted: str, classes: Sequence[str]) -> int:
    """The number of a class that was given by name, by a part of it between commas, or by number.

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
    if len(found) == 1:
        return found[0]
    if not found and text.isdecimal() and int(text) < len(classes):
        return int(text)
    if found:
        several = "; ".join(f"{classes[i]} ({i})" for i in found)
        raise CourseError(f"--class {wanted!r} fits several classes: {several}. Give the number of one.")
    pieces = {piece.strip().casefold(): name for name in classes for piece in (name, *name.split(","))}
    near = [pieces[key] for key in difflib.get_close_matches(text, pieces, n=3, cutoff=0.5)] or list(classes[:5])
    raise CourseError(
        f"--class {wanted!r} is none of the network's {len(classes)} classes. Perhaps: "
        f"{'; '.join(dict.fromkeys(near))}. A number from 0 to {len(classes) - 1} does too."
    )


def explain_files(
    network: Network, paths: Sequence[Path], target: int | None, method: str, stage: str | None
) -> tuple[list[Explained], list[str]]:
    """Explain some pictures; those that cannot be read are told by a line each.

    Parameters
    ----------
    network
        From :func:`open_network`.
    paths
        Files; memory is needed for all of them at once.
    target
        Number of the class to explain, None for the most probable one of each picture.
    method, stage
        As for :func:`~course_utils.gradcam.explain`.
    """
    import torch

    from course_utils.gradcam import as_seen, explain
    from course_utils.transforms import eval_transform

    readable, pictures, failures = read_pictures(paths)
    if not pictures:
        return [], failures
    prepare = eval_transform(network.weights)
    found = explain(network.model, torch.stack([prepare(picture) for picture in pictures]), target, method, stage)
    shown = []
    for i, (path, picture) in enumerate(zip(readable, pictures, strict=True)):
        best = found.probabilities[i].argsort()[::-1][:SHOWN_CLASSES]
        seen = as_seen(picture, network.weights, SHOWN_SIDE)
        shown.append(
            Explained(
                path=path,
                seen=seen,
                overlay=_overlay(seen, found.heat[i]),
                answers=tuple((network.classes[k], float(found.probabilities[i, k])) for k in best),
                target=network.classes[found.targets[i]],
                empty=not found.heat[i].max() > 0,
            )
        )
    return shown, failures


def _overlay(seen: Image.Image, heat: np.ndarray) -> Image.Image:
    import torch
    from PIL import Image
    from torch.nn import functional as F
    from torchvision.transforms.v2 import functional as v2

    from course_utils.gradcam import overlay

    picture = v2.pil_to_tensor(seen)[None].float() / 255
    enlarged = F.interpolate(torch.from_numpy(heat)[None, None], picture.shape[2:], mode="bilinear")[0].numpy()
    return Image.fromarray(overlay(picture, enlarged)[0])


def read_pictures(paths: Sequence[Path]) -> tuple[list[Path], list[Image.Image], list[str]]:
    """Open some files: those that are pictures, the pictures, and a line about each of the others."""
    from course_utils.data.pictures import load_picture

    readable, pictures, failures = [], [], []
    for path in paths:
        try:
            pictures.append(load_picture(path))
            readable.append(path)
        except CourseError as error:
            failures.append(_reason(path, error))
    return readable, pictures, failures


def _reason(path: Path, error: CourseError) -> str:
    cause = error.__cause__
    return f"{path} was left out: {getattr(cause, 'strerror', None) or cause or error}."


def page(shown: Sequence[Explained], failures: Sequence[str], how: str) -> str:
    """The HTML text: each picture beside its map, in one file without a reference to another.

    Parameters
    ----------
    shown
        From :func:`explain_files`.
    failures
        Lines about pictures that could not be read.
    how
        Network, method and stage.
    """
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Explained by {html.escape(how)}</title><style>{STYLE}</style></head><body>",
        "<h1>Where the network looked</h1>",
        f"<p>{html.escape(how)}. Left: the part of the picture that the network saw. Right: the brighter, the more a "
        "place speaks for the class. Each map is stretched to the full range by itself, so strengths cannot be "
        "compared between pictures.</p>",
        *(_figure(item) for item in shown),
        *(f'<p class="failed">{html.escape(line)}</p>' for line in failures),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _figure(item: Explained) -> str:
    name, target = html.escape(item.path.name), html.escape(item.target)
    answers = ", ".join(f"{html.escape(label)} {percent(share)}" for label, share in item.answers)
    about = f"nothing speaks for {target}: the map is empty" if item.empty else f"the map is for {target}"
    return (
        f'<figure><div><img alt="{name}, as the network saw it" src="{data_uri(item.seen)}">'
        f'<img alt="{name}: {about}" src="{data_uri(item.overlay)}"></div>'
        f"<figcaption><strong>{name}</strong>: {answers}; {about}.</figcaption></figure>"
    )


def _table(shown: Sequence[Explained]) -> str:
    rows = []
    for item in shown:
        answer, share = item.answers[0]
        rows.append(
            [item.path.name, f"{answer}, {percent(share)}", item.target + (": empty map" if item.empty else "")]
        )
    return text_table(["picture", "answer", "explained"], rows)


def percent(share: float) -> str:
    """A share in [0, 1] in whole percent: ``"93 %"``."""
    return f"{100 * share:.0f} %"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def data_uri(picture: Image.Image) -> str:
    """A picture as an address that holds all of it, so that a page needs no other file."""
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _file_names(paths: Sequence[Path]) -> list[str]:
    """A name for each overlay; pictures of one name from several folders are numbered."""
    names: list[str] = []
    for path in paths:
        tries = itertools.chain([path.stem], (f"{path.stem}-{i}" for i in itertools.count(2)))
        taken = {name.casefold() for name in names}  # Windows and macOS take "Cat" and "cat" for one file
        names.append(next(f"{stem}.png" for stem in tries if f"{stem}.png".casefold() not in taken))
    return names


def batched(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Paths in groups of at most `size`."""
    for start in range(0, len(paths), size):
        yield paths[start : start + size]
