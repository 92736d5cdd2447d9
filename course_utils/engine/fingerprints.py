"""Keys of caches: descriptions of frozen layers and data sets in which every change shows.

A cache that is out of date raises no error, it only gives wrong results. Transforms of torchvision and the course's own
data sets are described without opening a picture. Anything else, a function for example, raises
:class:`CannotFingerprint`; its samples have to be read and hashed.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.state import generator_marks, generators_put_back
from course_utils.data.samples import as_pair, classes_of
from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.engine.sampling import spread_out

CHECKED_SAMPLES = 6  # number of samples that are fetched twice, to see if anything is random


class CannotFingerprint(CourseError):
    """A thing whose behaviour cannot be read off, such as a function or an object of an unknown class."""


def digest(*parts: str | bytes | memoryview) -> str:
    """Return the SHA-256 of texts and bytes as 64 hexadecimal digits; ``"ab", "c"`` differs from ``"a", "bc"``."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha256.update(len(data).to_bytes(8, "little"))
        sha256.update(data)
    return sha256.hexdigest()


# --- transforms and layers ---------------------------------------------------------------------------------------


def describe(thing: Any) -> Any:
    """Return a transform of torchvision as plain data: equal descriptions mean equal behaviour.

    Raises
    ------
    CannotFingerprint
        If a part of it is a function or an object of an unknown class.
    """
    if thing is None or isinstance(thing, (bool, int, float, str, bytes, torch.dtype)):
        return f"{type(thing).__name__}:{thing!r}"
    if isinstance(thing, enum.Enum):
        return f"{type(thing).__qualname__}.{thing.name}"
    if isinstance(thing, (list, tuple)):
        return [type(thing).__name__, *map(describe, thing)]
    if isinstance(thing, dict):
        return {repr(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, set) and not thing:
        return "set()"
    if isinstance(thing, type) and thing.__module__.partition(".")[0] in ("torch", "torchvision", "PIL", "builtins"):
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, Tensor):
        return [str(thing.dtype), list(thing.shape), digest(_bytes_of(thing))]
    kind = type(thing)
    if kind.__module__.startswith("torchvision.transforms."):
        values = {name: describe(value) for name, value in sorted(vars(thing).items())}
        return {"type": f"{kind.__module__}.{kind.__qualname__}"} | values
    raise CannotFingerprint(f"what {_named(thing)} does cannot be read off")


def _named(thing: Any) -> str:
    return f"a {type(thing).__name__} ({getattr(thing, '__qualname__', type(thing).__qualname__)})"


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def key_of_front(front: nn.Module) -> dict[str, str]:
    """Return hashes of a frozen part: of its printed layers, and of all its weights and statistics.

    Raises
    ------
    CannotFingerprint
        If a module has a forward hook, which can change the output.
    """
    for name, module in front.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:  # torch has no public way to ask
            raise CannotFingerprint(
                f"the frozen layer {name} ({type(module).__name__}) has a hook, which may change its output"
            )
    weights = [
        digest(f"{name} {tensor.dtype} {tuple(tensor.shape)}", _bytes_of(tensor))
        for name, tensor in front.state_dict().items()
    ]
    return {"layers": digest(str(front)), "weights": digest(*weights)}


# --- data sets ---------------------------------------------------------------------------------------------------


def key_of_data(dataset: Dataset) -> dict[str, Any]:
    """Return a description of a data set's samples and labels: files by path, size and times, tensors by their bytes.

    Raises
    ------
    CannotFingerprint
        If the data set's class is not in ``PICTURE_KEYS`` or its transform cannot be described. Use
        :func:`key_of_samples` then.
    """
    kind = type(dataset)
    if kind not in PICTURE_KEYS:  # a subclass may give other samples
        raise CannotFingerprint(f"what {_named(dataset)} gives cannot be read off")
    transform = None if kind is MemoryDataset else describe(dataset.transform)
    labels = digest(json.dumps([dataset.labels, dataset.classes]))
    return {"kind": kind.__name__, "pictures": PICTURE_KEYS[kind](dataset), "labels": labels, "transform": transform}


def _key_of_tensors(dataset: MemoryDataset) -> str:
    return digest(f"{dataset.images.dtype} {tuple(dataset.images.shape)}", _bytes_of(dataset.images))


def _key_of_files(dataset: PhotoDataset) -> str:
    try:
        facts = [(path.absolute(), os.stat(path)) for path in dataset.paths]
    except OSError as error:
        raise CourseError(f"The picture {error.filename} cannot be read: {error.strerror}.") from error
    # st_ctime, the last change of the entry, too: a tool that writes a file can set st_mtime back.
    return digest(*(f"{path}\0{file.st_size}\0{file.st_mtime_ns}\0{file.st_ctime_ns}" for path, file in facts))


# Class of a data set -> function that describes its pictures before the transform.
PICTURE_KEYS: dict[type, Callable[[Any], str]] = {MemoryDataset: _key_of_tensors, PhotoDataset: _key_of_files}


def key_of_samples(dataset: Dataset, views: int, seed: int) -> dict[str, Any]:
    """Return a description of any data set, after reading every sample of every view with :func:`seeded_sample`."""
    samples = hashlib.sha256()
    for view in range(views):
        for index in range(len(dataset)):
            samples.update(sample_bytes(*seeded_sample(dataset, index, view, seed)))
    classes = digest(json.dumps(classes_of(dataset)))
    return {"kind": "samples", "samples": samples.hexdigest(), "classes": classes}


def is_random(dataset: Dataset) -> bool:
    """Return True if a data set draws random numbers: a global generator moves, or a sample differs the second time.

    A few samples are fetched twice. The generators are left as they were.
    """
    if type(dataset) is MemoryDataset:
        return False
    with generators_put_back(seed=0):
        for index in spread_out(len(dataset), CHECKED_SAMPLES):
            before = generator_marks()
            first, _ = read_sample(dataset, index)
            if generator_marks() != before or not torch.equal(first, read_sample(dataset, index)[0]):
                return True
    return False


# --- samples -----------------------------------------------------------------------------------------------------


def read_sample(dataset: Dataset, index: int) -> tuple[Tensor, int]:
    """Return image and label of one sample, or raise a CourseError if it is no such pair."""
    return as_pair(dataset[index])


def seeded_sample(dataset: Dataset, index: int, view: int, seed: int) -> tuple[Tensor, int]:
    """Return a sample drawn with all generators seeded by (seed, view, index), the same in every order of reading."""
    words = np.random.SeedSequence([seed, view, index]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would seed the GPUs of the caller too
    return read_sample(dataset, index)


def sample_bytes(image: Tensor, label: int) -> bytes:
    """Return the content of a sample for hashing."""
    return f"{label} {image.dtype} {tuple(image.shape)}\n".encode() + bytes(_bytes_of(image))
