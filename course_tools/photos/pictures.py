"""Picture files and a network to show them to: what ``course predict`` and ``course explain`` share.

A picture that cannot be read never stops a command: :func:`in_batches` leaves it out and returns a line about it, which
the command prints on stderr before it ends with exit code 3.
"""

from __future__ import annotations

import argparse
import functools
import glob
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import nn

from course_utils.common.command_line import INCOMPLETE
from course_utils.common.errors import CourseError
from course_utils.common.files import names_from_shared_folder
from course_utils.common.progress import progress
from course_utils.common.tables import counted
from course_utils.common.threads import in_threads
from course_utils.data.downloads import is_hidden
from course_utils.data.pictures import PICTURE_FORMATS, load_picture
from course_utils.engine.runs import load_run
from course_utils.pretrained_models import count_classes, load_pretrained, weights_entry
from course_utils.settings import default_weights, load_settings
from course_utils.transforms import Transform, eval_transform

T = TypeVar("T")
Answers = tuple[tuple[str, float], ...]  # names and probabilities of classes, the most probable first


@dataclass(frozen=True)
class Network:
    """A network on its device: a name for people, the names of its outputs, and what prepares pictures for it.

    That is a transform from PIL RGB to float32 ``(3, H, W)``: of its weights, or of the run that it was trained in.
    """

    name: str
    model: nn.Module
    classes: tuple[str, ...]
    prepare: Transform

    def best(self, probabilities: np.ndarray, count: int) -> Answers:
        """Return the `count` most probable classes; `probabilities` is ``(C,)``."""
        order = (-probabilities).argsort(kind="stable")[:count]
        return tuple((self.classes[k], float(probabilities[k])) for k in order)


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the pictures and the network."""
    about = "picture files, folders of them, or patterns such as '*.jpg'"
    parser.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help=about)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="RUN", help="a network of your own: a name from `course runs`")
    which.add_argument("--model", metavar="NAME", help="a pre-trained network (default: the one of the settings)")


def open_network(model: str | None = None, run: str | None = None) -> Network:
    """Return a pre-trained network, or one that was trained with ``fit``, on the best device.

    Parameters
    ----------
    model
        Name as for ``load_pretrained``; None for the network of the settings.
    run
        Name as for ``load_run``, instead of `model`.

    Raises
    ------
    CourseError
        For an unknown name or run, a run without weights, or one whose record does not say how pictures are prepared.
    """
    settings = load_settings(weights=default_weights())
    if run is None:
        name = model or settings.model
        entry = weights_entry(name)
        classes = tuple(entry.meta["categories"])
        return Network(name, load_pretrained(name).to(settings.device), classes, eval_transform(entry))
    record = load_run(run)
    trained = record.model().to(settings.device)
    outputs = count_classes(trained)
    classes = tuple(record.facts["data"]["val"]["classes"] or ())
    if len(classes) != outputs:  # some data sets do not know the names of their classes
        classes = tuple(f"class {i}" for i in range(outputs))
    return Network(f"{record.model_text} of the run {record.name}", trained, classes, record.transform())


def picture_files(given: Sequence[Path], written_to: Path | None = None) -> list[Path]:
    """Return the pictures among what was given, those of a folder from any depth and sorted, each of them once.

    A picture has an ending of pictures, or content that is one; hidden files and folders, and those of operating
    systems, are passed over, and the folder that a command writes to. One line on stderr counts the other files.

    Raises
    ------
    CourseError
        If something does not exist or may not be read, or there is no picture.
    """
    places = [place for path in given for place in _expanded(Path(os.path.expanduser(path)))]
    files = [file for place in places for file in _files_in(place, written_to)]
    files = list(dict.fromkeys(file for file in files if not is_hidden(file.name)))
    pictures = [file for file in files if _is_picture(file)]
    if not pictures:
        names = ", ".join(repr(str(path)) for path in given[:3])
        raise CourseError(f"There is no picture in {names}. Give picture files, or a folder that holds some.")
    if others := len(files) - len(pictures):
        print(f"Passed over {counted(others, 'file')} without a picture.", file=sys.stderr)
    return pictures


def _expanded(path: Path) -> list[Path]:
    """Return what a pattern stands for, which on Windows no shell does; any other path as it is."""
    if os.path.exists(path):  # Path.exists raises an error for a name that is too long
        return [path]
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not found:
        raise CourseError(f"There is no picture {str(path)!r}. Give files, or folders that hold pictures.")
    return found


def _files_in(place: Path, passed_over: Path | None) -> list[Path]:
    if not place.is_dir():
        return [place]

    def stop(error: OSError) -> None:
        raise CourseError(f"The folder {error.filename} cannot be read: {error.strerror or error}.") from error

    files = []
    for here, folders, names in os.walk(place, onerror=stop):
        if passed_over is not None and Path(here).absolute() == passed_over.absolute():
            folders.clear()
            continue
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(here, name) for name in names]
    return sorted(files)


def _is_picture(path: Path) -> bool:
    """True if a file has an ending of pictures, also of those that are not read here, or content that is one."""
    if not path.is_file():  # opening a pipe would wait for ever
        return False
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) in PICTURE_FORMATS or path.suffix.lower() in (".heic", ".heif"):
        return True
    try:
        with Image.open(path, formats=[name for name in PICTURE_FORMATS if name in Image.OPEN]):
            return True
    except Exception:  # as many kinds as there are formats
        return False


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each file that no other has: its path from the folder that all of them lie in."""
    return dict(zip(paths, names_from_shared_folder(paths), strict=True))


def in_batches(
    paths: Sequence[Path],
    size: int,
    work: Callable[[list[Any]], list[T]],
    prepare: Callable[[Image.Image], Any] = lambda picture: picture,
) -> tuple[list[tuple[Path, T]], list[str]]:
    """Return each readable file with its item, in order, and a line for each file that cannot be read, with the reason.

    `work` is given what `prepare` makes of up to `size` RGB pictures, and returns one item for each. Threads read and
    prepare the next pictures meanwhile.

    Raises
    ------
    CourseError
        If not a single file could be read.
    """
    items: list[tuple[Path, T]] = []
    left_out: list[str] = []
    read = in_threads(functools.partial(_read, prepare=prepare), paths, ahead=size)
    for start in progress(range(0, len(paths), size), "looking at the pictures"):
        batch = list(zip(paths[start : start + size], itertools.islice(read, size), strict=True))
        readable = [(path, picture) for path, (picture, _) in batch if picture is not None]
        left_out += [f"{path} was left out: {reason}." for path, (picture, reason) in batch if picture is None]
        if readable:
            found = work([picture for _, picture in readable])
            items += zip((path for path, _ in readable), found, strict=True)
    if not items:
        raise CourseError(f"None of the {len(paths)} pictures could be read. {' '.join(left_out[:3])}")
    return items, left_out


def _read(path: Path, prepare: Callable[[Image.Image], Any]) -> tuple[Any, str]:
    """Return what `prepare` makes of a picture, or None and the reason why it cannot be read."""
    try:
        return prepare(load_picture(path)), ""
    except CourseError as error:
        cause = error.__cause__
        return None, str(getattr(cause, "strerror", None) or cause or error)


def print_left_out(left_out: Sequence[str]) -> int:
    """Print the lines about files that were left out on stderr; return the exit code: 3 if there are any, else 0."""
    for line in left_out:
        print(line, file=sys.stderr)
    return INCOMPLETE if left_out else 0
