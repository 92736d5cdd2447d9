"""A folder of photographs as a list of files: class, split and mask of each, and the files that cannot be used.

A folder has one sub-folder per class, or ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` above those.
Hidden files are passed over. Links to folders are followed for a class folder itself, not further down. Every file is
decoded once: what is no picture, is damaged, lies in two classes or in the wrong place is named, with the reason.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.threads import in_threads, thread_count
from course_utils.data.downloads import is_hidden
from course_utils.data.pictures import PictureError, decode_picture
from course_utils.settings import DATASETS

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MASK_FOLDER = "masks"  # beside the pictures; never searched for them
MAX_FILE_BYTES = 200_000_000


class Photo(NamedTuple):
    """A picture file before it is part of a data set.

    ``name`` is its path from the data set's folder, with ``/`` on every system; ``split`` is ``"train"``, ``"val"`` or
    ``"test"``; ``digest`` is the SHA-256 of its contents, empty as long as the file was not read.
    """

    path: Path
    name: str
    label: str
    split: str
    mask: Path | None = None
    digest: str = ""


class Quarantined(NamedTuple):
    """A file that is not used: its path from the data set's folder (with ``/``), and the reason in plain words."""

    path: str
    reason: str


class Listing(NamedTuple):
    """The contents of a folder or list, before any picture was opened."""

    place: Path
    photos: list[Photo]
    classes: list[str]
    quarantine: list[Quarantined]


def list_photos(folder: Path) -> Listing:
    """Return every file in a class folder, the class names, and what lies outside of the class folders.

    Raises
    ------
    CourseError
        If there is no such folder, it may not be read, or it has fewer than two classes.
    """
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CourseError(
            f"{str(folder)!r} {fault}. Give one of {', '.join(DATASETS)}, a folder that has one sub-folder of pictures "
            "per class, or a .csv file with the columns file and label."
        )
    try:
        return _listing(folder)
    except OSError as error:
        raise CourseError(
            f"The folder {error.filename or folder} cannot be read: {error.strerror or error}."
        ) from error


def check_photos(photos: list[Photo]) -> tuple[list[Photo], list[Quarantined]]:
    """Decode every file once; return what is usable, with digests, and the others with the reason.

    Of several files with the same bytes one is kept, and none if they lie in two classes.
    """
    checks = in_threads(_inspect, [photo.path for photo in photos], ahead=4 * thread_count())
    checks = progress(checks, "checking the pictures", total=len(photos))
    good, bad = [], []
    for photo, (digest, reason) in zip(photos, checks, strict=True):
        if reason:
            bad.append(Quarantined(photo.name, reason))
        else:
            good.append(photo._replace(digest=digest))
    kept, copies = _drop_copies(good)
    return kept, bad + copies


def _inspect(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file, and the reason why it cannot be used ("" if it can)."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return "", "no ordinary file"  # reading from a pipe would wait for ever
        if facts.st_size > MAX_FILE_BYTES:
            return "", f"too large: {facts.st_size / 1e6:.0f} MB, at most {MAX_FILE_BYTES / 1e6:.0f} MB are read"
        data = path.read_bytes()
        # A JPEG decoder that is asked for one pixel still walks through all of the data, at a fraction of the time.
        decode_picture(io.BytesIO(data), smallest_side=1)
    except PictureError as error:
        return "", str(error)
    except OSError as error:
        return "", f"cannot be opened ({error.strerror or error})"
    return hashlib.sha256(data).hexdigest(), ""


def _drop_copies(photos: list[Photo]) -> tuple[list[Photo], list[Quarantined]]:
    """Keep one of several files with the same bytes, and none if they lie in two classes."""
    groups = defaultdict(list)
    # First those of test, then val, then train: a picture that was learnt by heart must not be measured on.
    for photo in sorted(photos, key=lambda photo: (("test", "val", "train").index(photo.split), photo.name)):
        groups[photo.digest].append(photo)
    kept, quarantine = [], []
    for first, *copies in groups.values():
        if all(copy.label == first.label for copy in copies):
            kept.append(first)
            quarantine += [Quarantined(copy.name, f"same picture as {first.name}") for copy in copies]
            continue
        for photo in (first, *copies):
            other = next(other for other in (first, *copies) if other.label != photo.label)
            quarantine.append(Quarantined(photo.name, f"same picture in two classes (also {other.name})"))
    return kept, quarantine


def composed(text: str) -> str:
    """Return the composed form of a name: macOS hands out "é" as two characters, and a class would have two names."""
    return unicodedata.normalize("NFC", text)


def in_order(labels: Iterable[str]) -> list[str]:
    """Return the labels sorted, whole numbers by size, so that the classes 0 to 10 have the indices 0 to 10."""
    labels = list(labels)
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def is_picture(name: str) -> bool:
    """True if the file's name has an ending of pictures and is not hidden."""
    return Path(name).suffix.lower() in Image.registered_extensions() and not is_hidden(name)


def mask_of(root: Path, name: str) -> Path | None:
    """Return the file of a picture's mask, if there is one."""
    path = (root / MASK_FOLDER / name).with_suffix(".png")
    return path if path.is_file() else None


def _listing(root: Path) -> Listing:
    top, quarantine = _subfolders(root, root)
    splits = {path: SPLIT_NAMES[path.name.lower()] for path in top if path.name.lower() in SPLIT_NAMES}
    if any(split == "train" and _subfolders(path, root)[0] for path, split in splits.items()):
        unused = [path.name for path in top if path not in splits and path.name != MASK_FOLDER]
        reason = "a folder beside train: only train, val and test are read"
        quarantine += [Quarantined(name, reason) for name in unused] + _loose_pictures(root, root)
    else:
        splits, quarantine = {root: "train"}, []
    photos, labels = [], set()
    for folder, split in splits.items():
        class_folders, links = _subfolders(folder, root)
        quarantine += links + _loose_pictures(folder, root)
        for class_folder in class_folders:
            label = composed(class_folder.name)
            labels.add(label)
            for path in _files_below(class_folder):
                name = _name(path, root)
                photos.append(Photo(path, name, label, split, mask_of(root, name)))
    classes = in_order(labels)
    _require_two_classes(classes, root)
    return Listing(root, photos, classes, quarantine)


def _subfolders(folder: Path, root: Path) -> tuple[list[Path], list[Quarantined]]:
    """Return visible sub-folders, sorted by name; a link that leads back to the root or above it is set aside."""
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    loops = [path for path in paths if path.is_symlink() and root.resolve().is_relative_to(path.resolve())]
    reason = "a link that leads back into the same folder"
    return [path for path in paths if path not in loops], [Quarantined(_name(p, root), reason) for p in loops]


def _files_below(folder: Path) -> list[Path]:
    """Return visible files at any depth. Links to folders are not followed, so a loop of links ends."""

    def stop(error: OSError) -> None:
        raise error  # os.walk would pass over a folder that it may not read

    files = []
    for here, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(here, name) for name in names if not is_hidden(name)]
    return sorted(files)


def _loose_pictures(folder: Path, root: Path) -> list[Quarantined]:
    files = [path for path in folder.iterdir() if path.is_file() and is_picture(path.name)]
    return [Quarantined(_name(path, root), "lies outside the class folders") for path in files]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _require_two_classes(classes: list[str], folder: Path) -> None:
    if len(classes) >= 2:
        return
    hint = "Give a folder with one sub-folder of pictures per class, two classes or more."
    if classes:
        inner = [path.name for path in _subfolders(folder / classes[0], folder)[0]]
        if len(inner) >= 2:
            hint = f"It has the sub-folders {', '.join(inner[:4])}: perhaps you mean {str(folder / classes[0])!r}."
    found = f"only one class, {classes[0]!r}" if classes else "no class folder"
    raise CourseError(f"{str(folder)!r} holds {found}. {hint}")
