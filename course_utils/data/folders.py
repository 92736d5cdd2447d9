"""A folder of photographs as a list of files: class, split and mask of each, and the files that cannot be used.

A folder has one sub-folder per class, or folders for training, validation and test above those, under any of the names
in :mod:`course_utils.data.words`. Where a name may mean a split or a class, an error asks for another name.

Hidden files, those of systems, and folders of masks are passed over. Links to folders are followed for a class folder
itself, not further down. Every file is decoded once: what is no picture, is damaged, lies in two classes or in the
wrong place is named, with the reason.
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
from course_utils.data.words import looks_like, means_mask, readable, splits_of
from course_utils.settings import DATASETS

MASK_FOLDER = "masks"  # beside the classes or splits, with the same folders inside; never searched for pictures
MASKS_ASIDE = f"a folder of masks or notes; masks are read from {MASK_FOLDER!r}, with the pictures' folders inside"
MAX_FILE_BYTES = 200_000_000


class Photo(NamedTuple):
    """A picture file before it is part of a data set.

    ``name`` is its path from the data set's folder, for people: with ``/`` on every system, and with bytes that are no
    UTF-8 spelled out; ``split`` is ``"train"``, ``"val"`` or ``"test"``; ``digest`` is the SHA-256 of its contents,
    empty as long as the file was not read.
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
        If there is no such folder, it may not be read, or it has fewer than two classes; if a folder's name may mean a
        split as well as a class; if the names of two classes look the same.
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
            f"The folder {readable(str(error.filename or folder))} cannot be read: {error.strerror or error}."
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
    if all(label.isdecimal() and len(label) < 300 for label in labels):  # Python's int() refuses 4,300 digits
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def require_distinct(names: Iterable[str], place: Path) -> None:
    """Refuse names of classes that differ only in case, spaces or the form of their letters."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        twin = seen.setdefault(looks_like(name), name)
        if twin != name:
            shown = ascii if composed(twin) == composed(name) else repr
            raise CourseError(
                f"{str(place)!r} has the classes {shown(twin)} and {shown(name)}, whose names differ only in case, "
                "spaces or the form of letters. If they are one class, give them one name; if not, rename one of them."
            )


def is_picture(name: str) -> bool:
    """True if the file's name has an ending of pictures and is not hidden."""
    return Path(name).suffix.lower() in Image.registered_extensions() and not is_hidden(name)


def mask_of(root: Path, picture: Path) -> Path | None:
    """Return the file of the mask of a picture in `root`, if there is one."""
    path = (root / MASK_FOLDER / picture.relative_to(root)).with_suffix(".png")
    return path if path.is_file() else None


def _listing(root: Path) -> Listing:
    top, quarantine = _class_folders(root, root)
    splits = _split_folders(root, top)
    if splits:
        reason = "a folder beside train: only train, val and test are read"
        quarantine += [Quarantined(_name(path, root), reason) for path in top if path not in splits]
        quarantine += _loose_pictures(root, root)
    class_folders = []
    for folder, split in (splits or {root: "train"}).items():
        inside, aside = _class_folders(folder, root)
        require_distinct((path.name for path in inside), folder)
        if splits:
            _refuse_splits_in(folder, (path.name for path in inside), root)
        quarantine += aside + _loose_pictures(folder, root)
        class_folders += [(path, readable(composed(path.name)), split) for path in inside]
    classes = in_order({label for _, label, _ in class_folders})
    require_distinct(classes, root)
    _require_two_classes(classes, [path for path, _, _ in class_folders], root)
    photos = []
    for folder, label, split in class_folders:
        files, aside = _files_below(folder, root)
        quarantine += aside
        photos += [Photo(path, _name(path, root), label, split, mask_of(root, path)) for path in files]
    return Listing(root, photos, classes, quarantine)


def _split_folders(root: Path, top: list[Path]) -> dict[Path, str]:
    """Return the folders that mean train, val or test; none if the folders are the classes.

    A class may be called "test", and a folder of splits may be incomplete: what can be both is refused.
    """
    meanings = splits_of(path.name for path in top)
    splits = {path: meanings[path.name] for path in top if path.name in meanings}
    first: dict[str, Path] = {}
    for path, split in splits.items():
        if first.setdefault(split, path) != path:
            raise CourseError(
                f"{first[split].name!r} and {path.name!r} in {str(root)!r} both mean {split}. Put them together, or "
                "rename what is not part of the data."
            )
    if not splits:
        return splits
    with_classes = [split for path, split in splits.items() if _class_folders(path, root)[0]]
    others = [path for path in top if path not in splits and _holds_pictures(path)]
    if "train" in with_classes and (len(splits) > 1 or not others):
        return splits
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        raise CourseError(
            f"In {str(root)!r}, {_quoted(splits)} may be a split or a class, beside {_quoted(others[:4])}{more}. For "
            "splits, put the folders of the classes into a folder 'train' beside it; for a class, rename it, for "
            f"example to {f'class {next(iter(splits)).name}'!r}."
        )
    if "train" in first or not with_classes:
        flat = [first["train"]] if with_classes else list(splits)
        raise CourseError(
            f"{_quoted(flat)} in {str(root)!r}: no class folders are inside, so nobody knows what the pictures "
            f"show. Make one for each class ({flat[-1].name}/cat, {flat[-1].name}/dog), or write a .csv list with the "
            "columns file, label and split."
        )
    raise CourseError(
        f"{str(root)!r} has {_quoted(splits)}, but nothing to train on. Put a folder 'train' with the same class "
        "folders beside it, or rename the one to learn from: what is missing of val and test is taken out of 'train'."
    )


def _quoted(paths: Iterable[Path]) -> str:
    return " and ".join(repr(path.name) for path in paths)


def _holds_pictures(folder: Path) -> bool:
    return any(is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _class_folders(folder: Path, root: Path) -> tuple[list[Path], list[Quarantined]]:
    """Return visible sub-folders, sorted by name; links back to the root or above it, and masks, are set aside."""
    paths, aside = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)):
        if path.is_symlink() and root.resolve().is_relative_to(path.resolve()):
            aside.append(Quarantined(_name(path, root), "a link that leads back into the same folder"))
        elif not means_mask(path.name):
            paths.append(path)
        elif path.name.lower() != MASK_FOLDER and _loose_pictures(path, root):
            raise CourseError(
                f"{_name(path, root)!r} in {str(root)!r} may be a class or a folder of masks. Rename it: to "
                f"{MASK_FOLDER!r} for masks, or to {f'class {path.name}'!r}."
            )
        elif path != root / MASK_FOLDER or _loose_pictures(path, root):
            aside.append(Quarantined(_name(path, root), MASKS_ASIDE))
    return paths, aside


def _refuse_splits_in(folder: Path, names: Iterable[str], root: Path) -> None:
    """Refuse folders that mean val or test where classes, or pictures of one class, are expected."""
    for name, split in splits_of(names).items():
        if split != "train":
            raise CourseError(
                f"{_name(folder / name, root)!r} in {str(root)!r} means {split}, but lies inside {folder.name!r}. Put "
                f"the splits above the classes ({split}/cat), or rename it."
            )


def _files_below(folder: Path, root: Path) -> tuple[list[Path], list[Quarantined]]:
    """Return visible files of a class at any depth. Links to folders are not followed, so a loop of links ends."""

    def stop(error: OSError) -> None:
        raise error  # os.walk would pass over a folder that it may not read

    files, aside = [], []
    for here, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        _refuse_splits_in(Path(here), folders, root)
        aside += [Quarantined(_name(Path(here, name), root), MASKS_ASIDE) for name in folders if means_mask(name)]
        folders[:] = [name for name in folders if not means_mask(name)]
        files += [Path(here, name) for name in names if not is_hidden(name)]
    return sorted(files), aside


def _loose_pictures(folder: Path, root: Path) -> list[Quarantined]:
    files = [path for path in folder.iterdir() if path.is_file() and is_picture(path.name)]
    return [Quarantined(_name(path, root), "lies outside the class folders") for path in files]


def _name(path: Path, root: Path) -> str:
    return readable(path.relative_to(root).as_posix())


def _require_two_classes(classes: list[str], folders: list[Path], root: Path) -> None:
    if len(classes) >= 2:
        return
    hint = "Give a folder with one sub-folder of pictures per class, two classes or more."
    if classes:
        inner = [readable(path.name) for path in _class_folders(folders[0], root)[0]]
        if len(inner) >= 2:
            hint = f"It has the sub-folders {', '.join(inner[:4])}: perhaps you mean {str(folders[0])!r}."
    found = f"only one class, {classes[0]!r}" if classes else "no class folder"
    raise CourseError(f"{str(root)!r} holds {found}. {hint}")
