"""Activations of the frozen stages, computed once and kept on disk, so that training runs only the rest.

A network whose first stages are frozen gives the same activations for the same picture in every epoch, and computing
them is nearly all of the work. :func:`cache_activations` does it once and stores the input of the **border**, the first
stage that learns: ``"head"`` for feature extraction, ``"layer4"`` for the last block of a ResNet.

A cache is an artifact of :mod:`course_utils.engine.artifact_store`. Its payload is a ``.npy`` array ``(views, N, …)``
in float32 or float16. Its fingerprint covers what the frozen layers do and the bytes of their weights, the border, the
pictures, their labels and order, the transform, the types of number, the views and the versions of the libraries.
Before a cache is used, a few pictures go through the network, through its two parts, and are compared with what is
stored.
"""

from __future__ import annotations

import contextlib
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
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import evaluating, generators_put_back
from course_utils.common.threads import in_threads
from course_utils.data.samples import classes_of
from course_utils.engine import devices, fingerprints
from course_utils.engine.artifact_store import DATA_FILE, Artifact, ArtifactStore, DataWriter, Notify, print_to_stderr
from course_utils.engine.sampling import spread_out
from course_utils.families import family_of
from course_utils.pretrained_models import stages
from course_utils.settings import load_settings

FORMAT = 3  # of the payload and the manifest; with another number no existing cache is found
DTYPES = ("float32", "float16")
# accelerate's word for a precision -> the type of autocast, None without it.
PRECISIONS = {word: None if name == "float32" else getattr(torch, name) for name, word in devices.PRECISIONS.items()}
COMPARED_PICTURES = 6  # the ones that the network is asked for before a cache is used
ROUNDING = {16: 3e-2, 32: 1e-3, 64: 1e-3}  # bits of the type -> allowed difference, as a part of the largest value
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

    Made by :func:`cache_activations`. An activation has the type in which it crossed the border, whatever is stored:
    float32, or float64 in a float64 network, or that of a run's mixed precision. An index with an ``epoch``
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
        self.type = getattr(torch, content["type"])
        self._array: np.ndarray | None = None

    def activations(self, view: int = 0) -> Tensor:
        """Return all activations of a view, ``(N, …)``, read into memory."""
        return torch.from_numpy(self._opened()[view].copy()).to(self.type)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        view = getattr(index, "epoch", 0) % self.views  # a SampleIndex knows its epoch
        # A copy, because an operation in place would write into the file.
        return torch.from_numpy(self._opened()[view, index].copy()).to(self.type), self.labels[index]

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
    precision: str = "no",
    keys: tuple[dict[str, Any], dict[str, Any] | None] | None = None,
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
        ``"float32"`` (float64 if the network is), or ``"float16"`` for half the size and three to four significant
        digits.
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
    precision
        ``"no"``, or ``"bf16"`` or ``"fp16"``: autocast of the training that will use the cache.
    keys
        What :func:`~course_utils.engine.fingerprints.key_of_front` gave, and ``key_of_data`` or None; None finds out.

    Raises
    ------
    CourseError
        For arguments out of range; a data set that is empty, random without views, or of several sizes; a network that
        is another function than its stages one after another, or than the one whose activations are stored; a disk
        without room, or a folder that cannot be written to.
    """
    start = time.perf_counter()
    _check(dataset, dtype, precision, views=views, batch_size=batch_size, seed=seed)
    front, tail = cut(model, border)
    store = ArtifactStore(caches_root() if folder is None else Path(folder).expanduser())
    with generators_put_back(seed=0):
        random = fingerprints.is_random(dataset)
        _check_views(views, random or views > 1)
        front_key, data = keys or (fingerprints.key_of_front(model, front, tail), None)
        try:
            data = data or fingerprints.key_of_data(dataset)
        except fingerprints.CannotFingerprint:
            data, draws = fingerprints.key_of_samples(dataset, views, seed)
            random = random or draws
        _check_views(views, random)
        device = next(model.parameters()).device
        key = {
            "format": FORMAT,
            "border": border,
            "front": front_key,
            "data": data,
            "pictures": len(dataset),
            "dtype": dtype,
            "precision": precision,
            "views": views,
            "seed": seed if views > 1 else None,
            "device": device.type,  # a GPU rounds differently
            "versions": fingerprints.versions(),
        }
        label = f"{family_of(model).name}-{border}-{len(dataset)}x{views}"
        parts = _Parts(model, front, tail, device, PRECISIONS[precision])
        job = _Job(parts, dataset, border, views, dtype, seed, batch_size, limit, data.get("samples"))
        notify = notify or print_to_stderr
        crossing = job.crossing_of_a_few()
        artifact = store.find_or_write(label, key, lambda file: job.fill(file, store, notify), notify)
        kept = CachedActivations(artifact, time.perf_counter() - start)
        job.compare(kept, crossing)
    return kept


def _check(dataset: Dataset, dtype: str, precision: str, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < (least := 0 if name == "seed" else 1):
            raise CourseError(f"{name}={value}: it must be at least {least}.")
    for name, value, allowed in (("dtype", dtype, DTYPES), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise CourseError(f"{name}={value!r} is unknown: give one of {', '.join(allowed)}.")
    if len(dataset) == 0:
        raise CourseError("The data set is empty: there is nothing to cache.")


def _check_views(views: int, random: bool) -> None:
    if random and views == 1:
        raise CourseError(
            'The data set draws random numbers (augmentation): a cache of one view would show the same "random" '
            "picture in every epoch. Give views=4 for four augmented views of each, or take out the augmentation."
        )
    if views > 1 and not random:
        raise CourseError(f"views={views}, but the data set draws nothing at random: all views would be the same.")


@dataclass(frozen=True)
class _Parts:
    """A network, its frozen and its learning part, and how a run computes with them; `autocast` is a type or None."""

    model: nn.Module
    front: nn.Sequential
    tail: nn.Sequential
    device: torch.device
    autocast: torch.dtype | None

    @contextlib.contextmanager
    def ready(self, images: Tensor) -> Iterator[Tensor]:
        """Give a batch on the device, laid out as ``fit`` does it, where all parts are in eval mode."""
        if self.device.type != "mps":
            images = images.contiguous(memory_format=torch.channels_last)
        off = self.autocast is None
        mixed = contextlib.nullcontext() if off else torch.autocast(self.device.type, dtype=self.autocast)
        with evaluating(nn.ModuleList([self.model, self.front, self.tail])), mixed:
            yield images.to(self.device)

    def crossing(self, images: Tensor) -> Tensor:
        """Return what crosses the border for a batch ``(n, 3, H, W)``, on the CPU."""
        with self.ready(images) as batch:
            return self.front(batch).cpu()

    def checked_crossing(self, images: Tensor) -> Tensor:
        """Return the same, or raise a CourseError if the two parts are not the network."""
        with self.ready(images) as batch:
            crossing = self.front(batch)
            whole, parts = self.model(batch), self.tail(crossing.clone())  # a layer may work in place
        if not _close(parts.cpu(), whole.cpu(), crossing.dtype):
            raise CourseError(
                f"This {type(self.model).__name__} gives other logits than its stages one after another, so a part of "
                "it cannot be cached: it was changed, or draws random numbers in eval mode. Use cache='off', or give "
                "its class a row of its own: course_utils.families.register_family."
            )
        return crossing.cpu()


def _close(found: Tensor, wanted: Tensor, computed: torch.dtype) -> bool:
    """Return True for values that are the same but for the rounding of the type in which they were computed."""
    found, wanted = found.double(), wanted.double()  # a batch of another size is summed in another order
    allowed = ROUNDING[computed.itemsize * 8] * wanted.nan_to_num(0, 0, 0).abs().max().item()
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=allowed, equal_nan=True)


@dataclass(frozen=True)
class _Job:
    """Computation of one cache; ``samples`` is the SHA-256 of all samples if they were read for the fingerprint."""

    parts: _Parts
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
            crossing = self.parts.crossing(images)
            block = self._stored(crossing).numpy()
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
            "type": str(crossing.dtype).removeprefix("torch."),
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

    def _stored(self, crossing: Tensor) -> Tensor:
        """Return activations in the type that is stored."""
        half = self.dtype == "float16"
        stored = crossing.to(torch.float16 if half else torch.promote_types(crossing.dtype, torch.float32))
        if (stored.isinf() & crossing.isfinite()).any():
            largest = crossing[crossing.isfinite()].abs().max()
            raise CourseError(
                f"An activation of {largest:.3g} is beyond float16, which ends at 65504: use dtype='float32'."
            )
        return stored.contiguous()

    def _compared(self) -> list[int]:
        return spread_out(len(self.dataset), COMPARED_PICTURES)

    def crossing_of_a_few(self) -> Tensor:
        """Return what crosses the border for a few pictures, after a check that the two parts are the network."""
        samples = [fingerprints.seeded_sample(self.dataset, index, 0, self.seed) for index in self._compared()]
        return self.parts.checked_crossing(_stacked([image for image, _ in samples]))

    def compare(self, kept: CachedActivations, crossing: Tensor) -> None:
        """Raise a CourseError if a cache holds something else for the pictures of :meth:`crossing_of_a_few`."""
        stored = torch.from_numpy(kept._opened()[0, self._compared()])  # a copy
        if not _close(stored, self._stored(crossing), crossing.dtype):
            raise CourseError(
                f"The cache {kept.name} holds other activations than the network gives now: its pictures or its code "
                "changed where no fingerprint shows it, or the frozen stages draw random numbers. Use cache='off', or "
                f"remove it: `course cache --clear {kept.name}`."
            )

    def _batches(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield images ``(n, 3, H, W)`` and labels, view after view, in order."""
        seen = hashlib.sha256()
        total = self.views * math.ceil(len(self.dataset) / self.batch_size)
        for batch in progress(self._sample_batches(), f"caching in front of {self.border}", total=total):
            if self.samples is not None:
                for sample in batch:
                    seen.update(fingerprints.sample_bytes(*sample))
            yield _stacked([image for image, _ in batch]), [label for _, label in batch]
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


def _stacked(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise CourseError(f"The pictures become {sorted(shapes)}: the transform must end in one size.")
    return torch.stack(images)
