"""Pictures on disk → three disjoint sets of (picture, label).

:func:`open_dataset` is the only call that a notebook needs: ``open_dataset("pets")``, ``open_dataset("hymenoptera")``,
``open_dataset("path/to/my photos")`` or ``open_dataset("path/to/labels.csv")`` give the same :class:`Splits`.
:class:`PhotoDataset` is the custom ``torch.utils.data.Dataset`` underneath.

How your own photos are read:

* a folder has one sub-folder per class, or ``train``, ``val`` and ``test`` above those
  (:mod:`course_utils.data.folders`); a list has a row for each file (:mod:`course_utils.data.csv_labels`);
* what is missing of val and test is taken out of train, class by class, in an order that depends on the seed and on
  each picture's *contents*: the same pictures give the same splits on every machine, whatever they are called, and
  a new picture moves at most two old ones;
* every file is decoded once, when the data set is opened. What is no picture, is damaged, or lies in two classes goes
  to ``Splits.quarantine`` with the reason.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import generator_marks
from course_utils.common.tables import text_table
from course_utils.data.csv_labels import read_labels
from course_utils.data.downloads import fetch, read_manifest
from course_utils.data.folders import Listing, Photo, Quarantined, in_order, list_photos, mask_of
from course_utils.data.pets import write_pets
from course_utils.settings import load_settings
from course_utils.transforms import PictureError, Transform, decode_picture, load_picture

SPLITS = ("train", "val", "test")
PETS_OPTIONS = ("counts", "size", "light", "style")

SMALLEST_CLASS = 5
LARGEST_FRACTION = 0.45
MAX_FILE_BYTES = 200_000_000
MAX_MEMORY_BYTES = 4_000_000_000

# --- data sets ---------------------------------------------------------------------------------------------------


class LabelledDataset(Dataset):
    """Samples that have one class each: the common part of :class:`PhotoDataset` and :class:`MemoryDataset`.

    Parameters
    ----------
    paths
        One picture file per sample.
    labels
        One number per sample, an index into ``classes``.
    classes
        Names of the classes.
    """

    def __init__(self, paths: Iterable[str | Path], labels: Iterable[int], classes: Iterable[str]) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self.labels = tuple(int(label) for label in labels)
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> dict[str, int]:
        """Return the number of samples per class, in the order of ``classes``."""
        found = Counter(self.labels)
        return {name: found[i] for i, name in enumerate(self.classes)}


class PhotoDataset(LabelledDataset):
    """Pictures that stay on disk until they are asked for.

    Parameters
    ----------
    paths, labels, classes
        Same as in :class:`LabelledDataset`.
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
        transform: Transform | None = None,
        masks: Sequence[Path | None] | None = None,
    ) -> None:
        super().__init__(paths, labels, classes)
        self.transform = transform
        self.masks = tuple(masks) if masks is not None else (None,) * len(self.paths)
        if not len(self.paths) == len(self.labels) == len(self.masks):
            raise CourseError(
                f"{len(self.paths)} paths, {len(self.labels)} labels and {len(self.masks)} masks were given; "
                "there must be one of each per picture."
            )
        if any(not 0 <= label < len(self.classes) for label in self.labels):
            raise CourseError(f"Labels must be from 0 to {len(self.classes) - 1}, one number per name in classes.")

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = load_picture(self.paths[index])
        return picture if self.transform is None else self.transform(picture), self.labels[index]

    def mask(self, index: int) -> Image.Image | None:
        """Return the mask as a PIL "L" picture, white where the object is, else black; None if there is no mask."""
        path = self.masks[index]
        return None if path is None else load_picture(path).convert("L")

    def with_transform(self, transform: Transform | None) -> PhotoDataset:
        """Return the same samples with another transform."""
        return PhotoDataset(self.paths, self.labels, self.classes, transform, self.masks)

    def subset(self, indices: Iterable[int]) -> PhotoDataset:
        """Return the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        paths, labels, masks = ([column[i] for i in chosen] for column in (self.paths, self.labels, self.masks))
        return PhotoDataset(paths, labels, self.classes, self.transform, masks)

    def __repr__(self) -> str:
        return f"PhotoDataset({len(self)} pictures, classes {', '.join(self.classes)})"


class MemoryDataset(LabelledDataset):
    """Pictures that are already tensors; made by :func:`in_memory`.

    Parameters
    ----------
    images
        ``(N, 3, H, W)``, transformed.
    labels, classes, paths
        Same as in :class:`LabelledDataset`; without paths the pictures come from no files.
    """

    fixed = True  # gives the same for an index every time: nothing is drawn

    def __init__(
        self, images: Tensor, labels: Sequence[int], classes: Sequence[str], paths: Sequence[Path] = ()
    ) -> None:
        super().__init__(paths, labels, classes)
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def subset(self, indices: Iterable[int]) -> MemoryDataset:
        """Return a copy of the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        paths = [self.paths[i] for i in chosen] if self.paths else ()
        return MemoryDataset(self.images[chosen], [self.labels[i] for i in chosen], self.classes, paths)

    def __repr__(self) -> str:
        return f"MemoryDataset({len(self)} tensors {tuple(self.images.shape[1:])}, classes {', '.join(self.classes)})"


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of one data set.

    Parameters
    ----------
    name
        ``"pets"``, ``"hymenoptera"``, or the name of the folder or list, without the folders above it.
    classes
        Class names, sorted (whole numbers by size: 2 before 10); a label is an index into them.
    train, val, test
        For learning, for choosing, and for the one final measurement.
    quarantine
        Files that are not used, with the reason.
    source
        Origin and terms of the pictures, in one sentence.
    """

    name: str
    classes: tuple[str, ...]
    train: PhotoDataset
    val: PhotoDataset
    test: PhotoDataset
    quarantine: tuple[Quarantined, ...]
    source: str

    def with_transforms(self, train: Transform, evaluate: Transform) -> Splits:
        """Return the same splits; ``train`` for the training set, ``evaluate`` for validation and test."""
        return replace(
            self,
            train=self.train.with_transform(train),
            val=self.val.with_transform(evaluate),
            test=self.test.with_transform(evaluate),
        )

    def summary(self, quarantine_lines: int = 10) -> str:
        """Return a table of pictures per split and class, then what lies in quarantine."""
        datasets = {split: getattr(self, split) for split in SPLITS}
        rows = [[split, *dataset.counts().values(), len(dataset)] for split, dataset in datasets.items()]
        lines = [text_table(["split", *self.classes, "total"], rows)]
        if self.quarantine:
            lines.append(f"in quarantine, not used: {len(self.quarantine)}")
            lines += [f"  {item.path}: {item.reason}" for item in self.quarantine[:quarantine_lines]]
        if len(self.quarantine) > quarantine_lines:
            lines.append(f"  … and {len(self.quarantine) - quarantine_lines} more in .quarantine")
        return "\n".join(lines)


# --- opening -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SplitRule:
    """The way to take what is missing of val and test out of train; same as in :func:`stratified_split`."""

    seed: int
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for fraction in (self.val_fraction, self.test_fraction):
            if not 0 < fraction <= LARGEST_FRACTION:
                raise CourseError(
                    f"A fraction of {fraction} was given: it must be above 0, at most {LARGEST_FRACTION}."
                )


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
        folder with one sub-folder per class, or a ``.csv`` file with the columns ``file`` and ``label`` (other columns
        can be chosen in :func:`open_csv`). A folder of the name of a data set can be given as ``"./pets"`` or as a
        ``Path``.
    seed
        Seed of the drawings for pets, of the splits otherwise.
    cache
        Folder for drawn or downloaded data; by default that of the settings (``COURSE_CACHE``).
    mirror
        Folder that is searched before a download; by default that of the settings (``COURSE_DATA_MIRROR``).
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
    rule = _SplitRule(seed, val_fraction, test_fraction)
    unknown = pets_options.keys() - set(PETS_OPTIONS if name_or_folder == "pets" else ())
    if unknown:
        raise CourseError(
            f"open_dataset({str(name_or_folder)!r}) has no option {', '.join(sorted(unknown))}; "
            f"for pets there are {', '.join(PETS_OPTIONS)}, for other data none of these."
        )
    if name_or_folder in ("pets", "hymenoptera"):
        cache = load_settings().cache if cache is None else Path(cache)
        if name_or_folder == "pets":
            return _open_pets(cache, rule, pets_options)
        return _open_hymenoptera(cache, load_settings().mirror if mirror is None else Path(mirror), rule)
    folder = Path(name_or_folder).expanduser()
    if folder.suffix.lower() == ".csv" and not folder.is_dir():
        return open_csv(folder, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    name = folder.resolve().name
    return _split_listing(list_photos(folder), name, f"your own pictures, from the folder {name!r}", rule)


def open_csv(
    csv_file: str | Path,
    folder: str | Path | None = None,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    **columns: str | None,
) -> Splits:
    """Open a list of files and labels of your own.

    Parameters
    ----------
    csv_file, folder
        The list, and the folder from which its names start (default: that of the list).
    seed, val_fraction, test_fraction
        Same as in :func:`open_dataset`; a split that the list has rows of is left as it is.
    **columns
        Headings ``file_column``, ``label_column`` and ``split_column``, by default ``"file"``, ``"label"`` and, if the
        list has it, ``"split"``: see :func:`course_utils.data.csv_labels.read_labels`.

    Returns
    -------
    Splits
        Same as for a folder with these files in class folders. Broken pictures and copies are in quarantine.

    Raises
    ------
    CourseError
        If the list does not fit its files, or for the reasons that :func:`open_dataset` has with a folder.
    """
    rule = _SplitRule(seed, val_fraction, test_fraction)
    csv_file = Path(csv_file).expanduser()
    root = csv_file.parent if folder is None else Path(folder).expanduser()
    rows = read_labels(csv_file, root, **columns)
    photos = [Photo(row.path, row.name, row.label, row.split or "train", mask_of(root, row.name)) for row in rows]
    listing = Listing(csv_file, photos, in_order({photo.label for photo in photos}), [])
    return _split_listing(listing, csv_file.name, f"your own pictures, from the list {csv_file.name!r}", rule)


# --- in memory, and a few of each class --------------------------------------------------------------------------


def in_memory(dataset: PhotoDataset) -> MemoryDataset:
    """Return the tensors that the transform gives, made once: many times faster from the second epoch on.

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
    """Return :func:`in_memory` of the data set, or the data set as it is if the tensors would be too large.

    Parameters
    ----------
    dataset
        Same as in :func:`in_memory`.
    share
        Part of the 4 GB that this data set may take, in (0, 1]; below 1 where several are kept.
    """
    first = dataset[0][0] if len(dataset) else None
    large = isinstance(first, Tensor) and first.nbytes * len(dataset) > share * MAX_MEMORY_BYTES
    return dataset if large else in_memory(dataset)


def few_per_class(dataset: LabelledDataset, n: int, seed: int = 0) -> Any:
    """Return ``n`` samples of every class; those for a smaller ``n`` are among those for a larger one.

    Nested subsets make a learning curve (accuracy against number of pictures) smoother to read: each point adds
    pictures and takes none away.

    Raises
    ------
    CourseError
        If ``n`` is below 1 or a class has fewer samples.
    """
    by_class: dict[str, list[int]] = {name: [] for name in dataset.classes}
    for i, label in enumerate(dataset.labels):
        by_class[dataset.classes[label]].append(i)
    smallest = min(by_class, key=lambda name: len(by_class[name]))
    most = len(by_class[smallest])
    if not 1 <= n <= most:
        raise CourseError(f"n={n} pictures per class were asked for: from 1 to {most} ({smallest}) can be.")
    return dataset.subset(sorted(i for indices in by_class.values() for i in shuffled(indices, seed)[:n]))


# --- splitting ---------------------------------------------------------------------------------------------------


def shuffled(keys: Iterable[Any], seed: int) -> list[Any]:
    """Return the keys in an order that looks random but depends on nothing except the keys and the seed.

    Keys are sorted by a hash of each, so the order in which they are given does not matter, and a new key comes
    between the others without moving them. (A shuffle by a random generator would reorder all.)
    """
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def stratified_split(
    labels: Sequence[str], keys: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Return the split of each sample; every class is split by the same shares.

    Parameters
    ----------
    labels
        Class of each sample.
    keys
        Something unique to each sample, such as the hash of its contents; decides on its split.
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
    """Return the sizes of val and test: rounded, at least one if a share is asked for, one left for train."""
    n_val, n_test = (max(1, int(n * share + 0.5)) if share else 0 for share in (val_fraction, test_fraction))
    if n_val + n_test >= n:
        n_val, n_test = (n_val - 1, n_test) if n_val > n_test else (n_val, n_test - 1)
    return n_val, n_test


def _open_pets(cache: Path, rule: _SplitRule, options: dict[str, Any]) -> Splits:
    defaults = inspect.signature(write_pets).parameters
    options = {word: value for word, value in options.items() if value != defaults[word].default}
    # Every set of options has a folder of its own, so that day and night do not overwrite each other.
    key = hashlib.sha256(json.dumps([rule.seed, options], sort_keys=True).encode()).hexdigest()[:8]
    words = ["pets", *(str(options[word]) for word in ("light", "style") if word in options), key]
    folder = write_pets(cache / "-".join(words), seed=rule.seed, **options)
    source = "drawn on this machine by course_utils.data.pets; free to use like the rest of the course"
    return _split_listing(list_photos(folder), "pets", source, rule)


def _open_hymenoptera(cache: Path, mirror: Path | None, rule: _SplitRule) -> Splits:
    manifest = read_manifest("hymenoptera")
    folder = fetch(manifest, cache, mirror)
    photos = []
    for name, digest in manifest.files.items():
        official, label, _ = name.split("/")
        photos.append(Photo(folder / name, name, label, "test" if official == "val" else "train", digest=digest))
    quarantine = [Quarantined(name, entry["reason"]) for name, entry in manifest.quarantine.items()]
    classes = sorted({photo.label for photo in photos})
    photos = _complete_splits(photos, classes, rule)
    return _make_splits("hymenoptera", photos, classes, quarantine, manifest.credit)


def _split_listing(listing: Listing, name: str, source: str, rule: _SplitRule) -> Splits:
    """Return what is usable of a listing, with the splits that it lacks taken out of train."""
    photos, unreadable = _check_photos(listing.photos)
    photos, copies = _drop_copies(photos)
    quarantine = sorted({*listing.quarantine, *unreadable, *copies})
    _require_every_class(photos, listing, quarantine)
    photos = _complete_splits(photos, listing.classes, rule)
    _require_every_split(photos, listing)
    return _make_splits(name, photos, listing.classes, quarantine, source)


def _make_splits(
    name: str, photos: list[Photo], classes: list[str], quarantine: Iterable[Quarantined], source: str
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


def _check_photos(photos: list[Photo]) -> tuple[list[Photo], list[Quarantined]]:
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
    """Keep one of several files with the same bytes, and none when they lie in two classes.

    The one kept is in test rather than in val, in val rather than in train: a picture that was learnt by heart must
    not be measured on.
    """
    groups = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: (-SPLITS.index(photo.split), photo.name)):
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


def _complete_splits(photos: list[Photo], classes: list[str], rule: _SplitRule) -> list[Photo]:
    """Return the photos with what is missing of val and test taken out of train."""
    present = {photo.split for photo in photos}
    shares = {
        f"{split}_fraction": 0 if split in present else getattr(rule, f"{split}_fraction") for split in SPLITS[1:]
    }
    if not any(shares.values()):
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
    dealt = stratified_split(labels, digests, **shares, seed=rule.seed)
    rest = [photo for photo in photos if photo.split != "train"]
    return [photo._replace(split=split) for photo, split in zip(train, dealt, strict=True)] + rest


def _require_every_class(photos: list[Photo], listing: Listing, quarantine: list[Quarantined]) -> None:
    """Refuse a class that has no usable picture, or none to learn from."""
    used = {(photo.split, photo.label) for photo in photos}
    for label in listing.classes:
        if ("train", label) in used:
            continue
        subject = f"The class {label!r} in {str(listing.place)!r} has"
        names = {photo.name for photo in listing.photos if photo.label == label}
        reasons = [f"{item.path}: {item.reason}" for item in quarantine if item.path in names]
        why = f" ({'; '.join(reasons[:3])})" if reasons else ""
        elsewhere = " and ".join(split for split in SPLITS if (split, label) in used)
        if not elsewhere:
            raise CourseError(f"{subject} no usable picture{why}. Add good pictures of it, or take the class out.")
        raise CourseError(
            f"{subject} usable pictures in {elsewhere}, but none in train{why}: a network cannot learn a class that it "
            f"is never shown. Put pictures of it into train, or take it out of {elsewhere}."
        )


def _require_every_split(photos: list[Photo], listing: Listing) -> None:
    used = {(photo.split, photo.label) for photo in photos}
    missing = [f"{split}/{label}" for split in SPLITS for label in listing.classes if (split, label) not in used]
    if missing:
        raise CourseError(
            f"No usable picture in {', '.join(missing[:5])} of {str(listing.place)!r}: every class needs one in each "
            "of train, val and test. Add some, or leave val or test out altogether: train is split then."
        )


def _threads() -> ThreadPoolExecutor:
    # Threads, not processes: Pillow lets go of Python's lock while it decodes, and threads need no pickling.
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
