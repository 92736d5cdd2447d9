"""Activations of the frozen stages, computed once and kept on disk, so that training runs only the rest.

A network whose first stages are frozen gives the same activations for the same picture in every epoch, and computing
them is nearly all of the work. :func:`cache_activations` does it once and stores the input of the **border**, the first
stage that learns: ``"head"`` for feature extraction, ``"layer4"`` for the last block of a ResNet.

A cache is an artifact of :mod:`course_utils.engine.artifact_store`. Its payload is a ``.npy`` array ``(views, N, …)``
in float32 or float16. Its fingerprint covers the frozen layers and the bytes of their weights, the border, the
pictures, their labels and order, the transform, the type of number, the views and the versions of the libraries.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import evaluating, generators_put_back
from course_utils.common.threads import in_threads
from course_utils.data.samples import classes_of
from course_utils.engine import fingerprints
from course_utils.engine.artifact_store import DATA_FILE, Artifact, ArtifactStore, DataWriter, Notify, print_to_stderr
from course_utils.pretrained_models import family_of, stages
from course_utils.settings import load_settings

FORMAT = 2  # of the payload and the manifest; with another number no existing cache is found
DTYPES = ("float32", "float16")
LONG_SECONDS, LARGE_BYTES = 10, 500_000_000  # a computation that takes or needs more is announced

# Layers at the beginning of the border's stage that learn nothing and draw nothing are run before the cache: behind
# ResNet's pooling there are 512 numbers for a picture, in front of it 49 times as many.
FIXED_LAYERS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.ReLU, nn.Flatten, nn.Identity)


def cut(model: nn.Module, border: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a network in two parts, made of its own modules: the frozen part and the trainable part.

    Parameters
    ----------
    model
        A network of one of the families.
    border
        Name of the first stage of the trainable part; any but the first stage.

    Returns
    -------
    front
        From pictures ``(N, 3, H, W)`` to activations ``(N, …)``. Pooling and flattening at the beginning of the
        border's stage belong to it.
    tail
        From activations to logits ``(N, classes)``.

    Raises
    ------
    CourseError
        If there is no such stage, or no other stage before it.
    """
    row = stages(model)
    names = list(row)
    if border not in names[1:]:
        problem = "nothing lies in front of it" if border in names else "there is no such stage"
        raise CourseError(f"border={border!r}: {problem}. Give one of {', '.join(names[1:])}.")
    place = names.index(border)
    front, tail = ([module for name in part for module in row[name]] for part in (names[:place], names[place:]))
    while isinstance(tail[0], FIXED_LAYERS):
        front.append(tail.pop(0))
    return nn.Sequential(*front), nn.Sequential(*tail)


# --- a cache as a data set ---------------------------------------------------------------------------------------


class CachedActivations(Dataset):
    """Activations on disk, as a data set of ``(activation, label)`` in the order of the pictures.

    Made by :func:`cache_activations`. An activation is a float32 tensor, whatever is stored. An index with an ``epoch``
    (:class:`~course_utils.engine.sampling.SampleIndex`) gives the view ``epoch % views``, a plain one the first view.

    It has ``labels`` and ``classes`` of the data set that it was made from, ``border``, ``views`` and ``dtype`` as they
    were asked for, ``folder``, ``name``, ``content`` and ``reused`` of the artifact, the ``shape`` of one activation,
    the ``size`` of the payload in bytes, and the ``seconds`` that it took to compute or to check it.
    """

    fixed = True  # draws nothing, see course_utils.engine.sampling.seeded_draws

    def __init__(self, artifact: Artifact, seconds: float) -> None:
        self.seconds = seconds
        self.folder, self.name, self.reused = artifact.folder, artifact.name, artifact.reused
        self.content = content = artifact.content
        self.labels, self.classes = tuple(content["labels"]), tuple(content["classes"])
        self.border, self.views, self.dtype = (content["key"][name] for name in ("border", "views", "dtype"))
        self.shape, self.size = tuple(content["shape"]), content["bytes"]
        self._array: np.ndarray | None = None

    def activations(self, view: int = 0) -> Tensor:
        """Return all activations of a view, float32 ``(N, …)``, read into memory."""
        return torch.from_numpy(self._opened()[view].astype(np.float32))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        view = getattr(index, "epoch", 0) % self.views  # a SampleIndex knows its epoch
        # A copy, because an operation in place would write into the file.
        return torch.from_numpy(self._opened()[view, index].astype(np.float32)), self.labels[index]

    def _opened(self) -> np.ndarray:
        if self._array is None:
            self._array = np.lib.format.open_memmap(self.folder / DATA_FILE, mode="r")
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the file itself; a pickled memory map would be sent as a whole.
        return self.__dict__ | {"_array": None}

    def __repr__(self) -> str:
        views = f" × {self.views} views" if self.views > 1 else ""
        return f"CachedActivations({len(self)} pictures{views}, in front of {self.border}, {self.shape} {self.dtype})"


# --- making one --------------------------------------------------------------------------------------------------


def caches_root() -> Path:
    """Return the folder of all caches: ``$COURSE_ACTIVATIONS``, or ``activations`` in the course's cache."""
    given = os.environ.get("COURSE_ACTIVATIONS")
    return (Path(given).expanduser() if given else load_settings().cache / "activations").absolute()


def cache_activations(
    model: nn.Module,
    dataset: Dataset,
    border: str,
    *,
    views: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    folder: str | Path | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    notify: Notify | None = None,
) -> CachedActivations:
    """Return the activations in front of a border, computed once for all pictures or found on disk.

    Parameters
    ----------
    model
        Run in eval mode on its device, and left as it was.
    dataset
        Samples ``(image, label)``: float images ``(3, H, W)`` of one size, and ints. A data set that is not of the
        course is read twice, the first time for its fingerprint.
    border
        Name of the first stage that is not run; any stage but the first.
    views
        Number of augmented views of every picture, of which an epoch uses one; 1 without augmentation.
    dtype
        ``"float32"``, or ``"float16"`` for half the size and three to four significant digits.
    seed
        Seed of the views, at least 0: random numbers are a function of seed, view and index.
    folder
        Folder of all caches; None for :func:`caches_root`.
    batch_size
        Pictures per forward pass.
    limit
        Largest size of the cache in bytes; None for no limit but the disk's.
    notify
        Called with a line about a long computation, a wait or a damaged cache. None prints to stderr.

    Raises
    ------
    CourseError
        For arguments out of range; a data set that is empty, random without views, or of several sizes; a disk without
        room, or a folder that cannot be written to.
    """
    start = time.perf_counter()
    _check(dataset, views, dtype, seed, batch_size)
    front, _ = cut(model, border)
    store = ArtifactStore(caches_root() if folder is None else Path(folder).expanduser())
    with generators_put_back(seed=0):
        try:
            data = fingerprints.key_of_data(dataset)
        except fingerprints.CannotFingerprint:
            data = fingerprints.key_of_samples(dataset, views, seed)
        device = next(model.parameters()).device
        key = {
            "format": FORMAT,
            "border": border,
            "front": fingerprints.key_of_front(front),
            "data": data,
            "pictures": len(dataset),
            "dtype": dtype,
            "views": views,
            "seed": seed if views > 1 else None,
            "device": device.type,  # a GPU rounds differently
            "versions": {module.__name__: str(module.__version__) for module in (torch, torchvision, PIL)},
        }
        label = f"{family_of(model).name}-{border}-{len(dataset)}x{views}"
        job = _Job(front, device, dataset, border, views, dtype, seed, batch_size, limit, data.get("samples"))
        notify = notify or print_to_stderr
        artifact = store.find_or_write(label, key, lambda file: job.fill(file, store, notify), notify)
    return CachedActivations(artifact, time.perf_counter() - start)


def _check(dataset: Dataset, views: int, dtype: str, seed: int, batch_size: int) -> None:
    for name, value, least in (("views", views, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise CourseError(f"{name}={value}: it must be at least {least}.")
    if dtype not in DTYPES:
        raise CourseError(f"dtype={dtype!r} is unknown: give one of {', '.join(DTYPES)}.")
    if len(dataset) == 0:
        raise CourseError("The data set is empty: there is nothing to cache.")
    random = fingerprints.is_random(dataset)
    if random and views == 1:
        raise CourseError(
            'The data set draws random numbers (augmentation): a cache of one view would show the same "random" '
            "picture in every epoch. Give views=4 for four augmented views of each, or take out the augmentation."
        )
    if views > 1 and not random:
        raise CourseError(f"views={views}, but the data set draws nothing at random: all views would be the same.")


@dataclass(frozen=True)
class _Job:
    """Computation of one cache; ``samples`` is the SHA-256 of all samples if they were read for the fingerprint."""

    front: nn.Sequential
    device: torch.device
    dataset: Dataset
    border: str
    views: int
    dtype: str
    seed: int
    batch_size: int
    limit: int | None
    samples: str | None

    def fill(self, file: DataWriter, store: ArtifactStore, notify: Notify) -> dict[str, Any]:
        """Write the array, batch by batch, and return the entries of the manifest."""
        start, shape, labels, pictures = time.perf_counter(), None, [], len(self.dataset)
        for images, targets in self._batches():
            block = self._activations(images)
            if shape is None:
                shape = block.shape[1:]
                share = len(block) / (self.views * pictures)
                size = self._check_size(block, (time.perf_counter() - start) / share, notify)
                store.check_room(size, ", or take a later border, dtype='float16' or fewer views")
                header = {"descr": block.dtype.str, "fortran_order": False, "shape": (self.views, pictures, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if block.shape[1:] != shape:
                raise CourseError(f"A batch crosses the border as {block.shape[1:]}, the first one as {shape}.")
            file.write(block)
            labels += targets
        holds = f"activations in front of {self.border}"
        return {
            "summary": {"holds": holds, "pictures": pictures, "views": self.views, "numbers": self.dtype},
            "shape": list(shape),
            "classes": list(classes_of(self.dataset)),
            "labels": labels[:pictures],
        }

    def _check_size(self, block: np.ndarray, seconds: float, notify: Notify) -> int:
        """Return the bytes of all activations, if they are allowed; announce them if they are many or take long."""
        total = self.views * len(self.dataset)
        size = block[:1].nbytes * total
        if seconds > LONG_SECONDS or size > LARGE_BYTES:
            notify(
                f"Caching the activations of {total:,} pictures in front of {self.border}: {size / 1e6:,.1f} MB, about "
                f"{seconds:,.0f} s."
            )
        if self.limit is not None and size > self.limit:
            raise CourseError(
                f"The cache would take {size / 1e9:.1f} GB, and {self.limit / 1e9:.1f} are allowed here. "
                "fit(..., cache='on') has no such limit, and cache='off' does without."
            )
        return size

    def _activations(self, images: Tensor) -> np.ndarray:
        """Return the input of the border for a batch ``(n, 3, H, W)``, in the type that is stored."""
        if self.device.type != "mps":  # as fit does it
            images = images.contiguous(memory_format=torch.channels_last)
        with evaluating(self.front):
            out = self.front(images.to(self.device)).float().cpu()
        stored = out.to(getattr(torch, self.dtype))
        if out.isfinite().all() and not stored.isfinite().all():
            raise CourseError(
                f"An activation of {out.abs().max():.3g} is beyond float16, which ends at 65504: use dtype='float32'."
            )
        return stored.contiguous().numpy()

    def _batches(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield images ``(n, 3, H, W)`` and labels, view after view, in order."""
        seen = hashlib.sha256()
        total = self.views * math.ceil(len(self.dataset) / self.batch_size)
        for batch in progress(self._sample_batches(), f"caching in front of {self.border}", total=total):
            if self.samples is not None:
                for sample in batch:
                    seen.update(fingerprints.sample_bytes(*sample))
            shapes = {tuple(image.shape) for image, _ in batch}
            if len(shapes) > 1:
                raise CourseError(f"The pictures become {sorted(shapes)}: the transform must end in one size.")
            yield torch.stack([image for image, _ in batch]), [label for _, label in batch]
        if self.samples is not None and seen.hexdigest() != self.samples:
            raise CourseError(
                "The data set cannot be cached: it gave other samples the second time, although the generators of "
                "Python, NumPy and torch were seeded alike. It draws from a generator of its own, or its files change."
            )

    def _sample_batches(self) -> Iterator[list[tuple[Tensor, int]]]:
        indices = range(len(self.dataset))
        for view in range(self.views):
            if self.views > 1 or self.samples is not None:  # threads would draw in an order of their own
                samples = (fingerprints.seeded_sample(self.dataset, index, view, self.seed) for index in indices)
            else:
                read = functools.partial(fingerprints.read_sample, self.dataset)
                samples = in_threads(read, indices, ahead=self.batch_size)
            while batch := list(itertools.islice(samples, self.batch_size)):
                yield batch
