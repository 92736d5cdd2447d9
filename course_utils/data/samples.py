"""Labels, class names and batches of any data set of pairs (image, label), also of torchvision and of your own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from course_utils.common.errors import CourseError

NO_LABEL = -100  # torch's ignore_index: a sample with this label does not count


def labels_of(dataset: Dataset) -> list[int] | None:
    """Return the label of every sample, without reading a sample; None if the data set does not say them.

    They are its ``labels``, or ``targets`` as torchvision calls them (after its ``target_transform``), if there is one
    for each sample; those of a ``Subset``, ``ConcatDataset`` or ``TensorDataset`` come from its parts.

    Raises
    ------
    CourseError
        If they are no class numbers.
    """
    given, change = getattr(dataset, "labels", None), None
    if given is None and hasattr(dataset, "targets"):
        given, change = dataset.targets, getattr(dataset, "target_transform", None)
    if given is None and isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        given = inner and [inner[index] for index in dataset.indices]
    elif given is None and isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        given = None if None in parts else list(itertools.chain.from_iterable(parts))
    elif given is None and isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        given = dataset.tensors[1]
    values = given.tolist() if hasattr(given, "tolist") else given  # tensors, arrays, columns of a table
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(dataset):
        return None
    return [as_label(value if change is None else change(value)) for value in values]


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the classes that a data set, or the one that it is a part of, has as ``classes``; () if none.

    A ``ConcatDataset`` whose parts number their classes differently is a CourseError.
    """
    if isinstance(dataset, Subset):
        return classes_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        found = [names for part in dataset.datasets if (names := classes_of(part))]
        for names in found[1:]:
            check_same_classes({"first part": found[0], "another part": names})
        return found[0] if found else ()
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, Sequence | np.ndarray) and not isinstance(names, str) else ()


def check_same_classes(named: Mapping[str, tuple[str, ...]]) -> None:
    """Raise a CourseError if two data sets, by their names, have other classes or another order; no names (()) fit all.

    A label is an index into the classes, so it would mean another class in each of them.
    """
    (one, first), (other, second) = named.items()
    if not first or not second or first == second:
        return
    gone = ((one, set(second) - set(first)), (other, set(first) - set(second)))
    missing = [f"the {who} has no {', '.join(sorted(names)[:5])}" for who, names in gone if names]
    raise CourseError(
        f"The classes of the {one} ({_listed(first)}) and of the {other} ({_listed(second)}) are not the same: "
        f"{' and '.join(missing) or 'they are in another order'}. A label is an index into them, so give both the same "
        "names in the same order; torchvision's ImageFolder needs a folder for every class in every split, an empty "
        "one with allow_empty=True."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")


def as_label(value: Any) -> int:
    """Return a class number as an int: 2, 2.0, NumPy's or torch's 2, and one alone in a list or tensor, ``[2]``.

    Raises
    ------
    CourseError
        For anything else: names, fractions, one-hot and mixed labels.
    """
    if type(value) is int:
        return value
    plain = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(plain, list | tuple) and len(plain) == 1:
        plain = plain[0]
    if isinstance(plain, int | float) and float(plain).is_integer():
        return int(plain)
    advice = ""
    if isinstance(plain, str):
        advice = " Number the names: classes.index(name)."
    elif isinstance(plain, list | tuple):
        advice = (
            " Of a one-hot label give label.argmax(). Labels mixed of several classes (MixUp, CutMix) are not learned "
            "from; label_smoothing=0.1 has a similar aim."
        )
    raise CourseError(f"A label is the number of a class, 0 or more; {plain!r:.60} is none.{advice}")


def check_labels(labels: Sequence[int], classes: int, name: str) -> None:
    """Raise a CourseError for a label that is neither from 0 to `classes` - 1 nor ``NO_LABEL``."""
    known = [label for label in labels if label != NO_LABEL]
    low, top = min(known, default=0), max(known, default=0)
    if low < 0:
        raise CourseError(
            f"The {name} has a label {low}: labels count from 0, and {NO_LABEL} marks a picture that does not count."
        )
    if top >= classes:
        raise CourseError(
            f"The {name} has labels up to {top}, the model's head has {classes} outputs (0 to {classes - 1}). If your "
            f"labels count from 1, subtract 1; otherwise build the model with num_classes={top + 1}."
        )


def as_pair(sample: Any, name: str = "data set") -> tuple[Tensor, int]:
    """Return a sample as image and label; CourseError if it is no pair, the image no tensor or the label no number."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        given = f"{len(sample)} values" if isinstance(sample, tuple | list) else f"a {type(sample).__name__}"
        keys = f" with the keys {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else ""
        raise CourseError(
            f"The {name} gives {given}{keys} for a sample, which has to be a pair (image, label). Wrap it in a Dataset "
            "whose __getitem__ returns `image, label`."
        )
    image, label = sample
    if not isinstance(image, Tensor):
        raise CourseError(
            f"The {name} gives a {type(image).__name__} instead of a tensor: it has no transform. "
            "Use dataset.with_transform(eval_transform(weights)), or splits.with_transforms(...)."
        )
    return image, as_label(label)


@dataclass(frozen=True)
class Collate:
    """Makes a batch, images ``(n, C, H, W)`` and labels int64 ``(n,)``, of samples, as a ``DataLoader`` asks for it.

    It is torch's own ``default_collate`` with an error for the reader, a :class:`CourseError`, where pictures differ in
    size or type, or a label is none of `classes` (None allows all). `name` is the data set's in that error.
    """

    name: str = "data set"
    classes: int | None = None

    def __call__(self, samples: Sequence[Any]) -> list[Tensor]:
        """Return ``[images, labels]``."""
        pairs = [as_pair(sample, self.name) for sample in samples]
        first = pairs[0][0]
        for image, _ in pairs:
            if image.shape != first.shape or image.dtype != first.dtype:
                raise CourseError(
                    f"The {self.name} gives pictures of {_form(first)} and of {_form(image)}: a batch needs one size "
                    "and type. Use eval_transform(weights), or end your transform with v2.Resize((224, 224))."
                )
        if self.classes is not None:
            check_labels([label for _, label in pairs], self.classes, self.name)
        return default_collate(pairs)


def loader_in_order(dataset: Dataset, batch_size: int) -> DataLoader:
    """Return a loader of all samples in order, collated as in :class:`Collate`.

    A plain loader draws a number from the global generator even when it does not shuffle; this one has its own.
    """
    return DataLoader(dataset, batch_size, generator=torch.Generator(), collate_fn=Collate())


def _form(image: Tensor) -> str:
    return f"{' × '.join(map(str, image.shape))} {str(image.dtype).removeprefix('torch.')}"
