"""Taking validation and test pictures out of the training set, class by class.

The order depends on the seed and on each picture's *contents*: the same pictures give the same splits on every machine,
whatever they are called, and a new picture moves at most two old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from course_utils.common.errors import CourseError
from course_utils.data.folders import Listing, Photo

SPLITS = ("train", "val", "test")
SMALLEST_CLASS = 5
LARGEST_FRACTION = 0.45


@dataclass(frozen=True)
class SplitRule:
    """Seed, and shares of each class that go to val and test where the data has no such sets; above 0, at most 0.45."""

    seed: int
    val_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        for fraction in (self.val_fraction, self.test_fraction):
            if not 0 < fraction <= LARGEST_FRACTION:
                raise CourseError(
                    f"A fraction of {fraction} was given: it must be above 0, at most {LARGEST_FRACTION}."
                )


def shuffled(keys: Iterable[Any], seed: int) -> list[Any]:
    """Return the keys sorted by a hash of each and the seed: a new key does not reorder the others."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())


def stratified_split(
    labels: Sequence[str], keys: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Return the split of each sample; every class is split by the same shares.

    Parameters
    ----------
    labels, keys
        Class of each sample, and something unique to it that decides on its split, such as the hash of its contents.
    val_fraction, test_fraction
        Share of each class, from 0 (no such set) to 0.45; rounded to whole samples, at least one.

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


def split_photos(photos: list[Photo], listing: Listing, rule: SplitRule) -> list[Photo]:
    """Return the usable photos of a listing, with what is missing of val and test taken out of train.

    Raises
    ------
    CourseError
        If a class has no usable picture, none in train, too few to split, or none in a split.
    """
    _require_every_class(photos, listing)
    photos = _complete_splits(photos, listing.classes, rule)
    used = {(photo.split, photo.label) for photo in photos}
    missing = [f"{split}/{label}" for split in SPLITS for label in listing.classes if (split, label) not in used]
    if missing:
        raise CourseError(
            f"No usable picture in {', '.join(missing[:5])} of {str(listing.place)!r}: every class needs one in each "
            "of train, val and test. Add some, or leave val or test out altogether: train is split then."
        )
    return photos


def _complete_splits(photos: list[Photo], classes: list[str], rule: SplitRule) -> list[Photo]:
    present = {photo.split for photo in photos}
    val_share = 0 if "val" in present else rule.val_fraction
    test_share = 0 if "test" in present else rule.test_fraction
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
    dealt = stratified_split(labels, digests, val_fraction=val_share, test_fraction=test_share, seed=rule.seed)
    rest = [photo for photo in photos if photo.split != "train"]
    return [photo._replace(split=split) for photo, split in zip(train, dealt, strict=True)] + rest


def _require_every_class(photos: list[Photo], listing: Listing) -> None:
    """Refuse a class that has no usable picture, or none to learn from."""
    used = {(photo.split, photo.label) for photo in photos}
    for label in listing.classes:
        if ("train", label) in used:
            continue
        subject = f"The class {label!r} in {str(listing.place)!r} has"
        names = {photo.name for photo in listing.photos if photo.label == label}
        reasons = [f"{item.path}: {item.reason}" for item in listing.quarantine if item.path in names]
        why = f" ({'; '.join(reasons[:3])})" if reasons else ""
        elsewhere = " and ".join(split for split in SPLITS if (split, label) in used)
        if not elsewhere:
            raise CourseError(f"{subject} no usable picture{why}. Add good pictures of it, or take the class out.")
        raise CourseError(
            f"{subject} usable pictures in {elsewhere}, but none in train{why}: a network cannot learn a class that it "
            f"is never shown. Put pictures of it into train, or take it out of {elsewhere}."
        )
