"""Pictures on disk → three disjoint sets of (picture, label).

:func:`open_dataset` is the only call that a notebook needs: ``open_dataset("pets")``, ``open_dataset("hymenoptera")``,
``open_dataset("path/to/my photos")`` or ``open_dataset("path/to/labels.csv")`` give the same :class:`Splits`.
:class:`PhotoDataset` is the custom ``torch.utils.data.Dataset`` underneath; its three methods are all that PyTorch asks
of one.

How a folder of photos is read:

* it has one sub-folder per class, or ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` above those;
* what is missing of val and test is taken out of train, class by class, in an order that depends on the seed and on
  each picture's *contents*: the same pictures give the same splits on every machine, whatever they are called, and
  a new picture moves at most two old ones;
* every file is decoded once, when the folder is opened. What is no picture, is damaged, or lies in two classes goes
  to ``Splits.quarantine`` with the reason. What an operating system left behind (``.DS_Store``, ``Thumbs.db``) is
  passed over in silence; links to folders are followed for a class folder itself, not further down.

A list of files and labels (:mod:`course_utils.data.csv_labels`) goes the same way once its files are found.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import generator_marks
from course_utils.common.tables import text_table
from course_utils.data.csv_labels import MASK_FOLDER, SPLIT_NAMES, read_labels
from course_utils.data.downloads import fetch, is_hidden, read_manifest
from course_utils.settings import DATASETS, load_settings
from course_utils.transforms import PictureError, decode_picture, load_picture

SPLITS = ("train", "val", "test")
PETS_OPTIONS = ("counts", "size", "light", "style")

SMALLEST_CLASS = 5
LARGEST_FRACTION = 0.45
MAX_FILE_BYTES = 200_000_000
MAX_MEMORY_BYTES = 4_000_000_000


class PhotoDataset(Dataset):
    """Pictures that stay on disk until they are asked for.

    Parameters
    ----------
    paths
        One picture file per sample.
    labels
        One number per sample, an index into ``classes``.
    classes
        Names of the classes.
    transform
        Applied to each PIL RGB picture when it is fetched; None hands out the picture itself.
    masks
        One mask file (or None) per sample, white where the object is; None if there are no masks.

    Raises
    ------
    CourseError
        If the lengths differ or a label is no index into ``classes``.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Sequence[int],
        classes: Sequence[str],
        transform: Callable[[Image.Image], Any] | None = None,
        masks: Sequence[Path | None] | None = None,
    ) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.labels = tuple(int(label) for label in labels)
        self.classes = tuple(classes)
        self.transform = transform
        self.masks = tuple(masks) if masks is not None else (None,) * len(self.paths)
        if not len(self.paths) == len(self.labels) == len(self.masks):
            raise CourseError(
                f"{len(self.paths)} paths, {len(self.labels)} labels and {len(self.masks)} masks were given; "
                "there must be one of each per picture."
            )
        if any(not 0 <= label < len(self.classes) for label in self.labels):
            raise CourseError(f"Labels must be from 0 to {len(self.classes) - 1}, one number per name in classes.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = load_picture(self.paths[index])
        if self.transform is not None:
            picture = self.transform(picture)
        return picture, self.labels[index]

    def mask(self, index: int) -> Image.Image | None:
        """White where the object is and black elsewhere, as a PIL "L" picture; None if there is no mask."""
        path = self.masks[index]
        return None if path is None else load_picture(path).convert("L")

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> PhotoDataset:
        """Return the same samples with another transform."""
        return PhotoDataset(self.paths, self.labels, self.classes, transform, self.masks)

    def subset(self, indices: Iterable[int]) -> PhotoDataset:
        """Return the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        paths, labels, masks = ([column[i] for i in chosen] for column in (self.paths, self.labels, self.masks))
        return PhotoDataset(paths, labels, self.classes, self.transform, masks)

    def counts(self) -> dict[str, int]:
        """Samples per class, in the order of ``classes``."""
        return _counts(self.labels, self.classes)

    def __repr__(self) -> str:
        return f"PhotoDataset({len(self)} pictures, classes {', '.join(self.classes)})"


class MemoryDataset(Dataset):
    """Pictures that are already tensors; made by :func:`in_memory`.

    Parameters
    ----------
    images
        ``(N, 3, H, W)``, transformed.
    labels, classes, paths
        As in :class:`PhotoDataset`.
    """

    fixed = True  # gives the same for an index every time: nothing is drawn

    def __init__(
        self, images: Tensor, labels: Sequence[int], classes: Sequence[str], paths: Sequence[Path] = ()
    ) -> None:
        self.images = images
        self.labels = tuple(int(label) for label in labels)
        self.classes = tuple(classes)
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def subset(self, indices: Iterable[int]) -> MemoryDataset:
        """Return a copy of the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        paths = [self.paths[i] for i in chosen] if self.paths else ()
        return MemoryDataset(self.images[chosen], [self.labels[i] for i in chosen], self.classes, paths)

    def counts(self) -> dict[str, int]:
        """Samples per class, in the order of ``classes``."""
        return _counts(self.labels, self.classes)

    def __repr__(self) -> str:
        return f"MemoryDataset({len(self)} tensors {tuple(self.images.shape[1:])}, classes {', '.join(self.classes)})"


class Labelled(Protocol):
    """What :func:`few_per_class` needs of a data set."""

    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def subset(self, indices: Iterable[int]) -> Any:
        """Return the samples at these indices."""


class Quarantined(NamedTuple):
    """A file that was found but is not used.

    Parameters
    ----------
    path
        From the data set's folder, with ``/`` on every system.
    reason
        Why, in plain words.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of one data set.

    Parameters
    ----------
    name
        ``"pets"``, ``"hymenoptera"``, or the own name of the folder or list.
    classes
        Class names, sorted (whole numbers by size: 2 before 10); a label is an index into them.
    train, val, test
        For learning, for choosing, and for the one final measurement.
    quarantine
        Files that are not used, with the reason.
    source
        One sentence: where the pictures come from and on what terms.
    """

    name: str
    classes: tuple[str, ...]
    train: PhotoDataset
    val: PhotoDataset
    test: PhotoDataset
    quarantine: tuple[Quarantined, ...]
    source: str

    def with_transforms(self, train: Callable[[Image.Image], Any], evaluate: Callable[[Image.Image], Any]) -> Splits:
        """Return the same splits; ``train`` for the training set, ``evaluate`` for validation and test."""
        return replace(
            self,
            train=self.train.with_transform(train),
            val=self.val.with_transform(evaluate),
            test=self.test.with_transform(evaluate),
        )

    def summary(self, quarantine_lines: int = 10) -> str:
        """Pictures per split and class as a table in text, then what lies in quarantine."""
        datasets = {split: getattr(self, split) for split in SPLITS}
        rows = [[split, *dataset.counts().values(), len(dataset)] for split, dataset in datasets.items()]
        lines = [text_table(["split", *self.classes, "total"], rows)]
        if self.quarantine:
            lines.append(f"in quarantine, not used: {len(self.quarantine)}")
            lines += [f"  {item.path}: {item.reason}" for item in self.quarantine[:quarantine_lines]]
        if len(self.quarantine) > quarantine_lines:
            lines.append(f"  … and {len(self.quarantine) - quarantine_lines} more in .quarantine")
        return "\n".join(lines)


def open_dataset(
    name_or_folder: str | Path,
    *,
    seed: int = 0,
    cache: Path | None = None,
    mirror: Path | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    **pets_options: Any,
) -> Splits:
    """Open a data set by name, or a folder or list of your own photos.

    Parameters
    ----------
    name_or_folder
        ``"pets"`` (drawn on first use), ``"hymenoptera"`` (ants and bees, 397 photographs, downloaded once), a
        folder with one sub-folder per class (see the top of this module), or a ``.csv`` file with the columns
        ``file`` and ``label`` (see :func:`open_csv`, where other columns can be chosen). A folder that is called
        like one of the names can be given as ``"./pets"`` or as a ``Path``.
    seed
        Of the drawings for pets, of the splits otherwise.
    cache
        Where drawn or downloaded data is kept; by default as in the settings (``COURSE_CACHE``).
    mirror
        Looked in before anything is downloaded; by default as in the settings (``COURSE_DATA_MIRROR``).
    val_fraction, test_fraction
        Share of each class, above 0 and up to 0.45. Used where the data has no such set of its own: both for a
        folder of class folders, ``val_fraction`` for hymenoptera (whose official val is the test set here), none
        for pets. A share is rounded to whole pictures, at least one.
    **pets_options
        ``counts``, ``size``, ``light`` ("day", "night"), ``style`` ("photo", "sketch"): see
        :func:`course_utils.data.pets.write_pets`.

    Raises
    ------
    CourseError
        If there is no such data set, folder or list; if a folder has fewer than two classes, a class without a
        usable picture, with too few to split, or with none to learn from; if a list does not fit its files (see
        :func:`course_utils.data.csv_labels.read_labels`); if data cannot be fetched or written.
    """
    _check_options(name_or_folder, val_fraction, test_fraction, pets_options)
    if name_or_folder == "pets":
        return _open_pets(_cache(cache), seed, pets_options)
    if name_or_folder == "hymenoptera":
        mirror = load_settings().mirror if mirror is None else Path(mirror)
        return _open_hymenoptera(_cache(cache), mirror, seed, val_fraction)
    folder = Path(name_or_folder).expanduser()
    if folder.suffix.lower() == ".csv" and not folder.is_dir():
        return open_csv(folder, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    source = f"your own pictures, from the folder {folder.resolve().name!r}"
    return _open_folder(folder, folder.resolve().name, source, seed, val_fraction, test_fraction)


def open_csv(
    csv_file: str | Path,
    folder: str | Path | None = None,
    *,
    file_column: str = "file",
    label_column: str = "label",
    split_column: str | None = "split",
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
) -> Splits:
    """Open a list of files and labels of your own.

    Parameters
    ----------
    csv_file, folder, file_column, label_column, split_column
        As in :func:`course_utils.data.csv_labels.read_labels`: by default the headings are ``file``, ``label`` and, if
        the list says which rows are for what, ``split``; names start from the folder of the list.
    seed, val_fraction, test_fraction
        As in :func:`open_dataset`, where the list does not split: what it has no rows of is taken out of train.

    Returns
    -------
    Splits
        The same as for a folder with these files in class folders. Broken pictures and copies are in quarantine.

    Raises
    ------
    CourseError
        If the list does not fit its files, or as for a folder in :func:`open_dataset`.
    """
    _check_fractions(val_fraction, test_fraction)
    csv_file = Path(csv_file).expanduser()
    root = csv_file.parent if folder is None else Path(folder).expanduser()
    rows = read_labels(csv_file, root, file_column, label_column, split_column)
    photos = [_Photo(row.path, row.name, row.label, row.split or "train", mask=_mask(root, row.name)) for row in rows]
    listing = _Listing(csv_file, photos, _in_order({photo.label for photo in photos}), [])
    source = f"your own pictures, from the list {csv_file.name!r}"
    return _split_listing(listing, csv_file.name, source, seed, val_fraction, test_fraction)


def in_memory(dataset: PhotoDataset) -> MemoryDataset:
    """Run the transform once for every picture and keep the tensors: many times faster from the second epoch on.

    Parameters
    ----------
    dataset
        A few thousand pictures at most, with a transform that gives tensors of one shape and draws nothing at
        random, such as :func:`course_utils.transforms.eval_transform`.

    Raises
    ------
    CourseError
        If there is no picture or no such transform, if the transform is random (every epoch would see the same
        "random" crop), or if the tensors would need more than 4 GB.
    """
    if not len(dataset) or dataset.transform is None:
        raise CourseError("in_memory wants a data set with pictures and a transform: use with_transform(...) first.")
    before = generator_marks()
    first, _ = dataset[0]
    if generator_marks() != before:
        raise CourseError(
            "The transform draws random numbers, so it must run anew in every epoch: use this data set as it is, or "
            "in_memory(dataset.with_transform(eval_transform(weights)))."
        )
    if not isinstance(first, Tensor):
        raise CourseError(f"The transform gives {type(first).__name__}; in_memory needs tensors.")
    if first.nbytes * len(dataset) > MAX_MEMORY_BYTES:
        raise CourseError(
            f"{len(dataset)} tensors of {tuple(first.shape)} need {first.nbytes * len(dataset) / 1e9:.1f} GB, at most "
            f"{MAX_MEMORY_BYTES / 1e9:.0f} GB are kept in memory: use this data set as it is, with a DataLoader."
        )
    images = torch.empty(len(dataset), *first.shape, dtype=first.dtype)
    with _threads() as pool:
        for i, (image, _) in enumerate(pool.map(dataset.__getitem__, range(len(dataset)))):
            if image.shape != first.shape:
                raise CourseError(
                    f"{dataset.paths[i]} becomes {tuple(image.shape)}, the first picture {tuple(first.shape)}: "
                    "the transform must end in one size."
                )
            images[i] = image
    return MemoryDataset(images, dataset.labels, dataset.classes, dataset.paths)


def in_memory_if_it_fits(dataset: PhotoDataset, share: float = 1.0) -> PhotoDataset | MemoryDataset:
    """:func:`in_memory` where that is possible, the data set as it is where it is too large.

    Parameters
    ----------
    dataset
        As there.
    share
        Of the memory that one data set may take, in (0, 1], where several are kept.
    """
    first = dataset[0][0] if len(dataset) else None
    large = isinstance(first, Tensor) and first.nbytes * len(dataset) > share * MAX_MEMORY_BYTES
    return dataset if large else in_memory(dataset)


def few_per_class(dataset: Labelled, n: int, seed: int = 0) -> Any:
    """Return ``n`` samples of every class; those for a smaller ``n`` are among those for a larger one.

    Nested subsets make a learning curve (accuracy against number of pictures) smoother to read: each point adds
    pictures and takes none away.

    Raises
    ------
    CourseError
        If ``n`` is below 1 or a class has fewer samples.
    """
    smallest = min(_counts(dataset.labels, dataset.classes).items(), key=lambda item: item[1])
    if not 1 <= n <= smallest[1]:
        raise CourseError(f"n={n} pictures per class were asked for: from 1 to {smallest[1]} ({smallest[0]}) can be.")
    chosen: list[int] = []
    for label in range(len(dataset.classes)):
        of_class = [i for i, found in enumerate(dataset.labels) if found == label]
        chosen += shuffled(of_class, seed)[:n]
    return dataset.subset(sorted(chosen))


def shuffled(keys: Iterable[Any], seed: int) -> list[Any]:
    """Put keys into an order that looks random but depends on nothing except the keys and the seed.

    Each key's place comes from a hash of its own, so the order in which they are given does not matter, and a new
    key slips in between the others without moving them. (A shuffle by a random generator would reorder all.)
    """
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def stratified_split(
    labels: Sequence[str], keys: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Deal samples out to train, val and test, class by class.

    Parameters
    ----------
    labels
        Class of each sample.
    keys
        Something unique to each sample, such as the hash of its contents; decides its place.
    val_fraction, test_fraction
        Share of each class, from 0 (no such set) to 0.45; rounded to whole samples, at least one.
    seed
        Another seed, another split.

    Returns
    -------
    list of str
        ``"train"``, ``"val"`` or ``"test"`` for each sample, in the order given.
    """
    split_of: dict[str, str] = {}
    for label in set(labels):
        order = shuffled((key for key, found in zip(keys, labels, strict=True) if found == label), seed)
        n_val, n_test = _split_sizes(len(order), val_fraction, test_fraction)
        # test from one end and val from the other: when a sample is added, each border moves by one at most
        split_of |= dict.fromkeys(order, "train")
        split_of |= dict.fromkeys(order[:n_test], "test")
        split_of |= dict.fromkeys(order[len(order) - n_val :], "val")
    return [split_of[key] for key in keys]


def _split_sizes(n: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """How many of ``n`` go to val and test: rounded, at least one where a share is asked for, one left for train."""
    n_val, n_test = (max(1, int(n * share + 0.5)) if share else 0 for share in (val_fraction, test_fraction))
    if n_val + n_test >= n:
        n_val, n_test = (n_val - 1, n_test) if n_val > n_test else (n_val, n_test - 1)
    return n_val, n_test


def _check_options(
    name_or_folder: str | Path, val_fraction: float, test_fraction: float, pets_options: dict[str, Any]
) -> None:
    _check_fractions(val_fraction, test_fraction)
    unknown = pets_options.keys() - set(PETS_OPTIONS if name_or_folder == "pets" else ())
    if unknown:
        raise CourseError(
            f"open_dataset({str(name_or_folder)!r}) has no option {', '.join(sorted(unknown))}; "
            f"for pets there are {', '.join(PETS_OPTIONS)}, for other data none of these."
        )


def _check_fractions(*fractions: float) -> None:
    for fraction in fractions:
        if not 0 < fraction <= LARGEST_FRACTION:
            raise CourseError(f"A fraction of {fraction} was given: it must be above 0, at most {LARGEST_FRACTION}.")


class _Photo(NamedTuple):
    """A picture file before it is part of a data set."""

    path: Path
    name: str  # path from the data set's folder, with "/"
    label: str
    split: str
    digest: str = ""  # SHA-256 of the contents
    mask: Path | None = None


class _Listing(NamedTuple):
    """What a folder or a list of the reader's own holds, before any file was opened."""

    place: Path
    photos: list[_Photo]
    classes: list[str]
    quarantine: list[Quarantined]


def _open_pets(cache: Path, seed: int, options: dict[str, Any]) -> Splits:
    from course_utils.data.pets import write_pets

    defaults = inspect.signature(write_pets).parameters
    options = {word: value for word, value in options.items() if value != defaults[word].default}
    # Every set of options has a folder of its own, so that day and night do not overwrite each other.
    key = hashlib.sha256(json.dumps([seed, options], sort_keys=True).encode()).hexdigest()[:8]
    words = ["pets", *(str(options[word]) for word in ("light", "style") if word in options), key]
    folder = write_pets(cache / "-".join(words), seed=seed, **options)
    source = "drawn on this machine by course_utils.data.pets; free to use like the rest of the course"
    return _open_folder(folder, "pets", source, seed, 0.2, 0.2)


def _open_hymenoptera(cache: Path, mirror: Path | None, seed: int, val_fraction: float) -> Splits:
    manifest = read_manifest("hymenoptera")
    folder = fetch(manifest, cache, mirror)
    photos = []
    for name, digest in manifest.files.items():
        official, label, _ = name.split("/")
        split = "test" if official == "val" else "train"
        photos.append(_Photo(folder / name, name, label, split, digest))
    quarantine = [Quarantined(name, entry["reason"]) for name, entry in manifest.quarantine.items()]
    classes = sorted({photo.label for photo in photos})
    photos = _complete_splits(photos, classes, seed, val_fraction, val_fraction)
    return _make_splits("hymenoptera", photos, classes, quarantine, manifest.credit)


def _open_folder(folder: Path, name: str, source: str, seed: int, val_fraction: float, test_fraction: float) -> Splits:
    try:
        listing = _list_photos(folder)
    except OSError as error:
        raise CourseError(
            f"The folder {error.filename or folder} cannot be read: {error.strerror or error}."
        ) from error
    return _split_listing(listing, name, source, seed, val_fraction, test_fraction)


def _split_listing(
    listing: _Listing, name: str, source: str, seed: int, val_fraction: float, test_fraction: float
) -> Splits:
    """Keep what is usable, and deal it out to the splits that are not there yet."""
    photos, unreadable = _check_photos(listing.photos)
    photos, copies = _drop_copies(photos)
    quarantine = sorted({*listing.quarantine, *unreadable, *copies})
    _require_every_class(photos, listing, quarantine)
    _require_every_class_in_train(photos, listing, quarantine)
    photos = _complete_splits(photos, listing.classes, seed, val_fraction, test_fraction)
    _require_every_split(photos, listing)
    return _make_splits(name, photos, listing.classes, quarantine, source)


def _make_splits(
    name: str, photos: list[_Photo], classes: list[str], quarantine: Iterable[Quarantined], source: str
) -> Splits:
    datasets = {}
    for split in SPLITS:
        chosen = sorted((photo for photo in photos if photo.split == split), key=lambda photo: photo.name)
        datasets[split] = PhotoDataset(
            [photo.path for photo in chosen],
            [classes.index(photo.label) for photo in chosen],
            classes,
            masks=[photo.mask for photo in chosen],
        )
    return Splits(name, tuple(classes), **datasets, quarantine=tuple(quarantine), source=source)


def _list_photos(folder: Path) -> _Listing:
    """Find every file in a class folder, with the class names and what lies outside of the class folders."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CourseError(
            f"{str(folder)!r} {what}. Give one of {', '.join(DATASETS)}, a folder that has one sub-folder of pictures "
            "per class, or a .csv file with the columns file and label."
        )
    top, quarantine = _subfolders(folder, folder)
    split_folders = [path for path in top if path.name.lower() in SPLIT_NAMES]
    if not any(path.name.lower() == "train" and _subfolders(path, folder)[0] for path in split_folders):
        photos, classes = _photos_by_class(top, folder, "train")
        _require_two_classes(classes, folder)
        return _Listing(folder, photos, classes, quarantine + _loose_pictures(folder, folder))
    photos, names = [], set()
    for path in split_folders:
        class_folders, links = _subfolders(path, folder)
        found, classes = _photos_by_class(class_folders, folder, SPLIT_NAMES[path.name.lower()])
        photos += found
        names |= set(classes)
        quarantine += links + _loose_pictures(path, folder)
    unused = [path for path in top if path not in split_folders and path.name != MASK_FOLDER]
    quarantine += [
        Quarantined(path.name, "a folder beside train: only train, val and test are read") for path in unused
    ]
    classes = _in_order(names)
    _require_two_classes(classes, folder)
    return _Listing(folder, photos, classes, quarantine + _loose_pictures(folder, folder))


def _subfolders(folder: Path, root: Path) -> tuple[list[Path], list[Quarantined]]:
    """Visible sub-folders, sorted by name; a link that leads back to the root or above it is set aside."""
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    loops = [path for path in paths if path.is_symlink() and root.resolve().is_relative_to(path.resolve())]
    reason = "a link that leads back into the same folder"
    return [path for path in paths if path not in loops], [Quarantined(_name(p, root), reason) for p in loops]


def _photos_by_class(class_folders: list[Path], root: Path, split: str) -> tuple[list[_Photo], list[str]]:
    photos = []
    for folder in class_folders:
        # Composed form: macOS hands out "é" as two characters, and the same class would have two names.
        label = unicodedata.normalize("NFC", folder.name)
        for path in _files_below(folder):
            name = _name(path, root)
            photos.append(_Photo(path, name, label, split, mask=_mask(root, name)))
    return photos, _in_order(unicodedata.normalize("NFC", folder.name) for folder in class_folders)


def _in_order(labels: Iterable[str]) -> list[str]:
    """Sorted, and whole numbers by size, so that the classes 0 to 10 have the indices 0 to 10."""
    labels = list(labels)
    if all(label.isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _mask(root: Path, name: str) -> Path | None:
    """Where the mask of a picture lies, if there is one."""
    path = (root / MASK_FOLDER / name).with_suffix(".png")
    return path if path.is_file() else None


def _files_below(folder: Path) -> list[Path]:
    """Visible files at any depth. Links to folders are not followed further down, so a loop of links ends."""

    def stop(error: OSError) -> None:
        raise error  # os.walk would pass over a folder that it may not read

    files = []
    for here, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(here, name) for name in names if not is_hidden(name)]
    return sorted(files)


def _loose_pictures(folder: Path, root: Path) -> list[Quarantined]:
    known = Image.registered_extensions()
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in known]
    return [
        Quarantined(_name(path, root), "lies outside the class folders") for path in files if not is_hidden(path.name)
    ]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _check_photos(photos: list[_Photo]) -> tuple[list[_Photo], list[Quarantined]]:
    """Decode every file once; return the good ones with their hash, and the others with the reason."""
    with _threads() as pool:
        checks = pool.map(_inspect, [photo.path for photo in photos])
        results = list(progress(checks, "checking the pictures", total=len(photos)))
    good, bad = [], []
    for photo, (digest, reason) in zip(photos, results, strict=True):
        if reason:
            bad.append(Quarantined(photo.name, reason))
        else:
            good.append(photo._replace(digest=digest))
    return good, bad


def _inspect(path: Path) -> tuple[str, str]:
    """SHA-256 of a file, and why it cannot be used ("" if it can)."""
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


def _drop_copies(photos: list[_Photo]) -> tuple[list[_Photo], list[Quarantined]]:
    """Keep one of several files with the same bytes, and none when they lie in two classes.

    The one kept is in test rather than in val, in val rather than in train: a picture that was learnt by heart must
    not be measured on.
    """
    groups: dict[str, list[_Photo]] = {}
    for photo in sorted(photos, key=lambda photo: (-SPLITS.index(photo.split), photo.name)):
        groups.setdefault(photo.digest, []).append(photo)
    kept, quarantine = [], []
    for group in groups.values():
        if len({photo.label for photo in group}) > 1:
            quarantine += [
                Quarantined(photo.name, f"same picture in two classes ({_others(photo, group)})") for photo in group
            ]
            continue
        kept.append(group[0])
        quarantine += [Quarantined(photo.name, f"same picture as {group[0].name}") for photo in group[1:]]
    return kept, quarantine


def _others(photo: _Photo, group: list[_Photo]) -> str:
    return "also " + next(other.name for other in group if other.label != photo.label)


def _complete_splits(
    photos: list[_Photo], classes: list[str], seed: int, val_fraction: float, test_fraction: float
) -> list[_Photo]:
    """Take what is missing of val and test out of train."""
    present = {photo.split for photo in photos}
    val_share = 0.0 if "val" in present else val_fraction
    test_share = 0.0 if "test" in present else test_fraction
    if not val_share and not test_share:
        return photos
    train = [photo for photo in photos if photo.split == "train"]
    counts = Counter(photo.label for photo in train)
    small = [f"{label} has {counts[label]}" for label in classes if counts[label] < SMALLEST_CLASS]
    if small:
        raise CourseError(
            f"Too few pictures to split into train, val and test: {', '.join(small)}; each class needs at least "
            f"{SMALLEST_CLASS} usable ones. Add pictures, or take that class out."
        )
    labels, digests = [photo.label for photo in train], [photo.digest for photo in train]
    dealt = stratified_split(labels, digests, val_fraction=val_share, test_fraction=test_share, seed=seed)
    rest = [photo for photo in photos if photo.split != "train"]
    return [photo._replace(split=split) for photo, split in zip(train, dealt, strict=True)] + rest


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


def _require_every_class(photos: list[_Photo], listing: _Listing, quarantine: list[Quarantined]) -> None:
    used = {photo.label for photo in photos}
    for label in listing.classes:
        if label not in used:
            raise CourseError(
                f"The class {label!r} in {str(listing.place)!r} has no usable picture"
                f"{_why_unused(label, listing, quarantine)}. Add good pictures of it, or take the class out."
            )


def _require_every_class_in_train(photos: list[_Photo], listing: _Listing, quarantine: list[Quarantined]) -> None:
    used = {(photo.split, photo.label) for photo in photos}
    for label in listing.classes:
        if ("train", label) not in used:
            elsewhere = " and ".join(split for split in SPLITS if (split, label) in used)
            raise CourseError(
                f"The class {label!r} in {str(listing.place)!r} has usable pictures in {elsewhere}, but none in train"
                f"{_why_unused(label, listing, quarantine)}: a network cannot learn a class that it is never shown. "
                f"Put pictures of it into train, or take it out of {elsewhere}."
            )


def _why_unused(label: str, listing: _Listing, quarantine: list[Quarantined]) -> str:
    """What happened to the pictures of a class, as a remark in brackets."""
    names = {photo.name for photo in listing.photos if photo.label == label}
    reasons = [f"{item.path}: {item.reason}" for item in quarantine if item.path in names]
    return f" ({'; '.join(reasons[:3])})" if reasons else ""


def _require_every_split(photos: list[_Photo], listing: _Listing) -> None:
    used = {(photo.split, photo.label) for photo in photos}
    missing = [f"{split}/{label}" for split in SPLITS for label in listing.classes if (split, label) not in used]
    if missing:
        raise CourseError(
            f"No usable picture in {', '.join(missing[:5])} of {str(listing.place)!r}: every class needs one in each "
            "of train, val and test. Add some, or leave val or test out altogether: train is split then."
        )


def _counts(labels: Iterable[int], classes: Sequence[str]) -> dict[str, int]:
    found = Counter(labels)
    return {name: found[i] for i, name in enumerate(classes)}


def _cache(cache: Path | None) -> Path:
    return Path(cache) if cache is not None else load_settings().cache


def _threads() -> ThreadPoolExecutor:
    # Threads, not processes: Pillow lets go of Python's lock while it decodes, and threads need no pickling.
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
