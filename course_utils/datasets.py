"""Pictures on disk → three disjoint sets of (picture, label).

:func:`open_dataset` is the only call that a notebook needs: ``open_dataset("pets")``, ``open_dataset("hymenoptera")``,
``open_dataset("path/to/my photos")`` or ``open_dataset("path/to/labels.csv")`` give the same :class:`Splits`.
:class:`PhotoDataset` is the custom ``torch.utils.data.Dataset`` underneath.

Your own photos are in class folders (:mod:`course_utils.data.folders`) or in a list with a row for each file
(:mod:`course_utils.data.csv_labels`). Val and test sets that they lack are taken out of train
(:mod:`course_utils.data.splitting`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.state import generator_marks
from course_utils.common.tables import text_table
from course_utils.common.threads import in_threads, thread_count
from course_utils.data.csv_labels import read_labels
from course_utils.data.downloads import fetch, read_manifest
from course_utils.data.folders import Listing, Photo, Quarantined, check_photos, in_order, list_photos, mask_of
from course_utils.data.pets import write_pets
from course_utils.data.pictures import load_picture
from course_utils.data.splitting import SPLITS, SplitRule, shuffled, split_photos
from course_utils.settings import load_settings
from course_utils.transforms import Transform

PETS_OPTIONS = ("counts", "size", "light", "style")
MAX_MEMORY_BYTES = 4_000_000_000
FETCHED_TWICE = 10  # pictures that are compared with themselves, to see if anything is random

# --- data sets ---------------------------------------------------------------------------------------------------


class LabelledDataset(Dataset):
    """Samples with a label each, an index into ``classes``, and their files; the base of the data sets below."""

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
        One picture file and one index into ``classes`` per sample, and the names of the classes.
    transform
        Function that is called with each PIL RGB picture when it is fetched; None hands out the picture itself.
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
        Same as in :class:`PhotoDataset`; without paths the pictures come from no files.
    transform
        What the tensors were made with, for the record of a run; it is not called again.
    """

    fixed = True  # gives the same for an index every time; a subclass with another __getitem__ does not inherit it

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        classes: Sequence[str],
        paths: Sequence[Path] = (),
        transform: Transform | None = None,
    ) -> None:
        super().__init__(paths, labels, classes)
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process needs no transform, which may be a function of a notebook that cannot be sent there.
        return self.__dict__ | {"transform": None}

    def subset(self, indices: Iterable[int]) -> MemoryDataset:
        """Return a copy of the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        paths = [self.paths[i] for i in chosen] if self.paths else ()
        labels = [self.labels[i] for i in chosen]
        return MemoryDataset(self.images[chosen], labels, self.classes, paths, self.transform)

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
        Class names, sorted (whole numbers by size); a label is an index into them.
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
    """Return the splits of a data set, or of a folder or list of your own photos.

    Parameters
    ----------
    name_or_folder
        ``"pets"`` (drawn on first use), ``"hymenoptera"`` (ants and bees, 397 photographs, downloaded once), a
        folder with one sub-folder per class, or a ``.csv`` file with the columns ``file`` and ``label`` (for others:
        :func:`open_csv`). Write ``"./pets"`` for a folder that is called ``pets``.
    seed
        Seed of the drawings for pets, of the splits otherwise.
    cache
        Folder for drawn or downloaded data; default: ``COURSE_CACHE``.
    mirror
        Folder that is searched before a download; default: ``COURSE_DATA_MIRROR``.
    val_fraction, test_fraction
        Share of each class, above 0 and up to 0.45, rounded to whole pictures, at least one. Used where the data has
        no such set of its own: hymenoptera has a test set (its official val), pets has both.
    **pets_options
        ``counts``, ``size``, ``light`` ("day", "night"), ``style`` ("photo", "sketch"): see
        :func:`course_utils.data.pets.write_pets`.

    Raises
    ------
    CourseError
        If there is no such data set, folder or list; if there are fewer than two classes, or a class has too few
        usable pictures; if a folder may mean a split or a class; if a list does not fit its files (see
        :func:`course_utils.data.csv_labels.read_labels`); if data cannot be fetched or written.
    """
    rule = SplitRule(seed, val_fraction, test_fraction)
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
    folder = Path(os.path.expanduser(name_or_folder))
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
    """Return the splits of a list of files and labels of your own, as if the files were in class folders.

    Parameters
    ----------
    csv_file, folder
        The list, and the folder from which its names start (default: that of the list).
    seed, val_fraction, test_fraction
        Same as in :func:`open_dataset`; a split that the list has rows of is left as it is.
    **columns
        Headings ``file_column``, ``label_column`` and ``split_column``, by default ``"file"``, ``"label"`` and, if the
        list has one, the column that tells the splits: see :func:`course_utils.data.csv_labels.read_labels`.

    Raises
    ------
    CourseError
        If the list does not fit its files, or for the reasons that :func:`open_dataset` has with a folder.
    """
    rule = SplitRule(seed, val_fraction, test_fraction)
    csv_file = Path(os.path.expanduser(csv_file))
    root = csv_file.parent if folder is None else Path(os.path.expanduser(folder))
    rows = read_labels(csv_file, root, **columns)
    root = Path(os.path.abspath(root))  # as the rows have it
    photos = [Photo(row.path, row.name, row.label, row.split or "train", mask_of(root, row.path)) for row in rows]
    listing = Listing(csv_file, photos, in_order({photo.label for photo in photos}), [])
    return _split_listing(listing, csv_file.name, f"your own pictures, from the list {csv_file.name!r}", rule)


def _open_pets(cache: Path, rule: SplitRule, options: dict[str, Any]) -> Splits:
    defaults = inspect.signature(write_pets).parameters
    options = {word: value for word, value in options.items() if value != defaults[word].default}
    # Every set of options has a folder of its own, so that day and night do not overwrite each other.
    key = hashlib.sha256(json.dumps([rule.seed, options], sort_keys=True).encode()).hexdigest()[:8]
    words = ["pets", *(str(options[word]) for word in ("light", "style") if word in options), key]
    folder = write_pets(cache / "-".join(words), seed=rule.seed, **options)
    source = "drawn on this machine by course_utils.data.pets; free to use like the rest of the course"
    return _split_listing(list_photos(folder), "pets", source, rule)


def _open_hymenoptera(cache: Path, mirror: Path | None, rule: SplitRule) -> Splits:
    manifest = read_manifest("hymenoptera")
    folder = fetch(manifest, cache, mirror)
    photos = []
    for name, digest in manifest.files.items():
        official, label, _ = name.split("/")
        photos.append(Photo(folder / name, name, label, "test" if official == "val" else "train", digest=digest))
    quarantine = [Quarantined(name, entry["reason"]) for name, entry in manifest.quarantine.items()]
    listing = Listing(folder, photos, sorted({photo.label for photo in photos}), quarantine)
    return _make_splits("hymenoptera", photos, listing, manifest.credit, rule)


def _split_listing(listing: Listing, name: str, source: str, rule: SplitRule) -> Splits:
    usable, unused = check_photos(listing.photos)
    listing = listing._replace(quarantine=sorted({*listing.quarantine, *unused}))
    return _make_splits(name, usable, listing, source, rule)


def _make_splits(name: str, usable: list[Photo], listing: Listing, source: str, rule: SplitRule) -> Splits:
    photos = sorted(split_photos(usable, listing, rule), key=lambda photo: photo.name)
    datasets = {}
    for split in SPLITS:
        chosen = [photo for photo in photos if photo.split == split]
        labels = [listing.classes.index(photo.label) for photo in chosen]
        masks = [photo.mask for photo in chosen]
        datasets[split] = PhotoDataset([photo.path for photo in chosen], labels, listing.classes, masks=masks)
    return Splits(name, tuple(listing.classes), **datasets, quarantine=tuple(listing.quarantine), source=source)


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
        If there is no picture or no such transform, if the transform is random, be it for a few of the pictures (every
        epoch would see the same "random" crop), or if the tensors would need more than 4 GB.
    """
    if not len(dataset) or dataset.transform is None:
        raise CourseError("in_memory wants a data set with pictures and a transform: use with_transform(...) first.")
    before = generator_marks()
    first, _ = dataset[0]
    _require_nothing_drawn(generator_marks() == before)
    if not isinstance(first, Tensor):
        raise CourseError(f"The transform gives {type(first).__name__}; in_memory needs tensors.")
    if first.nbytes * len(dataset) > MAX_MEMORY_BYTES:
        raise CourseError(
            f"{len(dataset)} tensors of {tuple(first.shape)} need {first.nbytes * len(dataset) / 1e9:.1f} GB, at most "
            f"{MAX_MEMORY_BYTES / 1e9:.0f} GB are kept in memory: use this data set as it is, with a DataLoader."
        )
    images = torch.empty(len(dataset), *first.shape, dtype=first.dtype)
    samples = in_threads(dataset.__getitem__, range(len(dataset)), ahead=4 * thread_count())
    for i, (image, _) in enumerate(samples):
        if image.shape != first.shape:
            raise CourseError(
                f"{dataset.paths[i]} becomes {tuple(image.shape)}, the first picture {tuple(first.shape)}: "
                "the transform must end in one size."
            )
        images[i] = image
    _require_nothing_drawn(generator_marks() == before)  # a transform may draw for some of the pictures only
    for i in range(0, len(dataset), math.ceil(len(dataset) / FETCHED_TWICE)):  # it may have a generator of its own
        _require_nothing_drawn(_same_bits(dataset[i][0], images[i]))
    return MemoryDataset(images, dataset.labels, dataset.classes, dataset.paths, dataset.transform)


def _require_nothing_drawn(fixed: bool) -> None:
    if not fixed:
        raise CourseError(
            "The transform draws random numbers, so it must run anew in every epoch: use this data set as it is, or "
            "in_memory(dataset.with_transform(eval_transform(weights)))."
        )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


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

    Nested subsets make a learning curve smoother: each point adds pictures and takes none away.

    Raises
    ------
    CourseError
        If ``n`` is below 1 or a class has fewer samples.
    """
    smallest, most = min(dataset.counts().items(), key=lambda item: item[1])
    if not 1 <= n <= most:
        raise CourseError(f"n={n} pictures per class were asked for: from 1 to {most} ({smallest}) can be.")
    chosen: list[int] = []
    for label in range(len(dataset.classes)):
        chosen += shuffled((i for i, other in enumerate(dataset.labels) if other == label), seed)[:n]
    return dataset.subset(sorted(chosen))
