"""What the frozen stages compute is always the same: compute it once, keep it on disk, and train only the rest.

A network whose first stages are frozen gives the same activations for the same picture in every epoch. For 25 epochs
of feature extraction that means 25 times the same work, which is nearly all of the work. :func:`cache_activations`
does it once and stores what crosses the **border**, the first stage that learns: ``"head"`` for feature extraction,
``"layer4"`` for the last block of a ResNet. ``fit(..., cache="auto")`` does it by itself where that is right.

A cache that is out of date raises no error, it only gives wrong results. So a cache carries a fingerprint of
everything that it depends on: the bytes of the frozen weights, the layers that they are in, the border, the pictures,
their labels and order, the transform, the type of number, the views, the versions of the libraries. Whatever changes,
the fingerprint is another one and so is the folder: a stale cache is never found. Each cache is a folder of two files,

====================  =============================================================================================
``activations.npy``   ``(views, N, …)``, float32 or float16; NumPy opens it without reading it (memory mapping)
``manifest.json``     the fingerprint and what went into it, labels, shape, and a checksum of both files
====================  =============================================================================================

which appears whole or not at all. ``course cache`` lists them.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import os
import random
import secrets
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of
from course_utils.common.progress import progress
from course_utils.common.state import evaluating, generator_marks, generators_put_back
from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.pretrained_models import family_of, stages
from course_utils.settings import load_settings

FORMAT = 1  # another number makes every cache that exists a foreign one
DTYPES = ("float32", "float16")
ARRAY_FILE, MANIFEST_FILE = "activations.npy", "manifest.json"
PARTIAL = ".partial"
SPARE_BYTES = 20_000_000  # left free on the disk
LOOKS = 6  # samples that are fetched twice to see whether anything is random

# What is said before it starts: nothing about caches that are there in a moment.
LONG_SECONDS, LARGE_BYTES = 10, 500_000_000

# Layers at the beginning of the border's stage that learn nothing and draw nothing are run before the cache: behind
# ResNet's pooling there are 512 numbers for a picture, in front of it 49 times as many.
FIXED_LAYERS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Identity)


# --- where a network is cut --------------------------------------------------------------------------------------


def cut(model: nn.Module, border: str) -> tuple[nn.Sequential, nn.Sequential]:
    """A network in two parts, which one after another compute what the network computes.

    Parameters
    ----------
    model
        A network of one of the families.
    border
        Name of the first stage that belongs to the second part; any but the first stage.

    Returns
    -------
    front, tail
        From pictures ``(N, 3, H, W)`` to activations ``(N, …)``, and from these to logits ``(N, classes)``. They are
        made of the model's own modules: what the tail learns, the model has learned. Pooling and flattening at the
        beginning of the border's stage belong to the front.

    Raises
    ------
    CourseError
        If there is no such stage, or nothing lies in front of it.
    """
    row = stages(model)
    names = list(row)
    if border not in names[1:]:
        what = "nothing lies in front of it" if border in names else "there is no such stage"
        raise CourseError(f"border={border!r}: {what}. Give one of {', '.join(names[1:])}.")
    place = names.index(border)
    front = [module for name in names[:place] for module in row[name]]
    tail = [module for name in names[place:] for module in row[name]]
    while isinstance(tail[0], FIXED_LAYERS):
        front.append(tail.pop(0))
    return nn.Sequential(*front), nn.Sequential(*tail)


# --- fingerprints ------------------------------------------------------------------------------------------------


class Unknowable(CourseError):
    """Something whose behaviour cannot be read off: a function, a class of one's own."""


def describe(thing: Any) -> Any:
    """All that a transform is made of, as plain values: two that are described alike do the same.

    Parameters
    ----------
    thing
        A transform of torchvision with everything in it, numbers, texts, tensors, or lists of such.

    Raises
    ------
    Unknowable
        If a part of it could do anything, such as a function or an object of a class of one's own.
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
        return [str(thing.dtype), list(thing.shape), _digest(_bytes_of(thing))]
    kind = type(thing)
    if kind.__module__.startswith("torchvision.transforms."):
        return {"type": f"{kind.__module__}.{kind.__qualname__}"} | {
            name: describe(value) for name, value in sorted(vars(thing).items())
        }
    raise Unknowable(f"what {_short(thing)} does cannot be read off")


def _short(thing: Any) -> str:
    return f"a {type(thing).__name__} ({getattr(thing, '__qualname__', type(thing).__qualname__)})"


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))  # or "ab" + "c" would be "a" + "bc"
        digest.update(data)
    return digest.hexdigest()


def key_of_front(front: nn.Module) -> dict[str, str]:
    """What the frozen stages are: their layers as they print, and the bytes of all of their weights and statistics.

    Raises
    ------
    Unknowable
        If a module has a forward hook: it can change what comes out.
    """
    for name, module in front.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unknowable(
                f"the frozen layer {name} ({type(module).__name__}) has a hook, which may change its output"
            )
    weights = [
        part for name, tensor in front.state_dict().items()
        for part in (f"{name} {tensor.dtype} {tuple(tensor.shape)}", _bytes_of(tensor))
    ]  # fmt: skip
    return {"layers": _digest(str(front)), "weights": _digest(*weights)}


def key_of_data(dataset: Dataset) -> dict[str, Any]:
    """What a data set of the course gives, read off without opening a picture.

    Parameters
    ----------
    dataset
        A :class:`~course_utils.datasets.PhotoDataset` with a transform that can be described: its files are known by
        path, size and times. A :class:`~course_utils.datasets.MemoryDataset`, by the bytes of its tensors. Others that
        were entered in ``PICTURES``.

    Raises
    ------
    Unknowable
        For any other. Its samples have to be read, see :func:`key_of_samples`.
    """
    if type(dataset) not in PICTURES:  # a subclass could do anything
        raise Unknowable(f"what {_short(dataset)} gives cannot be read off")
    transform = None if type(dataset) is MemoryDataset else describe(dataset.transform)
    pictures = PICTURES[type(dataset)](dataset)
    labels = _digest(json.dumps([dataset.labels, dataset.classes]))
    return {"kind": type(dataset).__name__, "pictures": pictures, "labels": labels, "transform": transform}


def _key_of_tensors(dataset: MemoryDataset) -> str:
    return _digest(f"{dataset.images.dtype} {tuple(dataset.images.shape)}", _bytes_of(dataset.images))


def _key_of_files(dataset: PhotoDataset) -> str:
    try:
        return _digest(*map(_key_of_file, dataset.paths))
    except OSError as error:
        raise CourseError(f"The picture {error.filename} cannot be read: {error.strerror}.") from error


# Kind of data set → what pictures it has, before its transform.
PICTURES: dict[type, Callable[[Any], str]] = {MemoryDataset: _key_of_tensors, PhotoDataset: _key_of_files}


def _key_of_file(path: Path) -> str:
    facts = os.stat(path)
    # The time of the last change of the entry too: a tool that writes a file can set the other one back.
    return f"{path.absolute()}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"


def key_of_samples(dataset: Dataset, views: int, seed: int) -> dict[str, Any]:
    """What any data set gives, by reading every sample of every view once."""
    digest = hashlib.sha256()
    for view in range(views):
        for index in range(len(dataset)):
            digest.update(_sample_bytes(*_seeded_sample(dataset, index, view, seed)))
    classes = _digest(json.dumps([str(name) for name in getattr(dataset, "classes", None) or ()]))
    return {"kind": "samples", "samples": digest.hexdigest(), "classes": classes}


def _sample_bytes(image: Tensor, label: int) -> bytes:
    return f"{label} {image.dtype} {tuple(image.shape)}\n".encode() + bytes(_bytes_of(image))


def is_random(dataset: Dataset) -> bool:
    """Whether a data set draws random numbers: a global generator moves, or a sample differs the second time.

    The generators of Python, NumPy and torch are left as they were.
    """
    with generators_put_back(seed=0):
        for index in sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(LOOKS, len(dataset)))}):
            before = generator_marks()
            first = _sample(dataset, index)
            if generator_marks() != before or not torch.equal(first[0], _sample(dataset, index)[0]):
                return True
    return False


def _sample(dataset: Dataset, index: int) -> tuple[Tensor, int]:
    image, label = dataset[index]
    if not isinstance(image, Tensor):
        raise CourseError(
            f"The data set gives a {type(image).__name__} instead of a tensor: it has no transform. Use "
            "dataset.with_transform(eval_transform(weights))."
        )
    return image, int(label)


def _seeded_sample(dataset: Dataset, index: int, view: int, seed: int) -> tuple[Tensor, int]:
    """A sample with all generators seeded by (seed, view, index): the same in whatever order they are fetched."""
    words = np.random.SeedSequence([seed, view, index]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would seed the GPUs of the caller too
    return _sample(dataset, index)


# --- a cache as a data set ---------------------------------------------------------------------------------------


class CachedActivations(Dataset):
    """Activations on disk, as a data set of ``(activation, label)`` in the order of the pictures.

    Made by :func:`cache_activations`. Samples are float32 tensors ``(…)``, whatever is stored, and ints.

    Parameters
    ----------
    folder
        Of the cache.
    content
        What its manifest holds.
    reused
        Whether it was there already.
    seconds
        What it took to have it: to compute, or to check.

    Attributes
    ----------
    labels, classes
        As in the data set that it was made from; ``classes`` is empty where that had none.
    border
        Name of the first stage that is not contained.
    views
        How many augmented views of each picture there are; :meth:`set_epoch` chooses one.
    dtype
        What is stored, ``"float32"`` or ``"float16"``.
    shape
        Of one activation.
    size
        Bytes on disk.
    """

    fixed = True  # draws nothing, see course_utils.engine.sampling.seeded_draws

    def __init__(self, folder: Path, content: dict[str, Any], *, reused: bool, seconds: float) -> None:
        self.folder, self.content = folder, content
        self.reused, self.seconds = reused, seconds
        self.labels = tuple(content["labels"])
        self.classes = tuple(content["classes"])
        self.border, self.dtype = content["border"], content["dtype"]
        self.views, _, *shape = content["shape"]
        self.shape = tuple(shape)
        self.size = content["bytes"]
        self.view = 0
        self._array: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The name of the folder, by which ``course cache`` knows it."""
        return self.folder.name

    def set_epoch(self, epoch: int) -> None:
        """Give the view of this epoch (from 0) from now on: view ``epoch % views``."""
        self.view = epoch % self.views

    def for_epoch(self, epoch: int) -> CachedActivations:
        """Return the same cache, set to the view of this epoch."""
        chosen = CachedActivations(self.folder, self.content, reused=self.reused, seconds=self.seconds)
        chosen.set_epoch(epoch)
        return chosen

    def activations(self) -> Tensor:
        """All activations of the current view, float32 ``(N, …)``, read into memory."""
        return torch.from_numpy(self._opened()[self.view].astype(np.float32))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # A copy: a tensor over the file itself would be written to by whoever changes it in place.
        return torch.from_numpy(self._opened()[self.view, index].astype(np.float32)), self.labels[index]

    def _opened(self) -> np.ndarray:
        if self._array is None:
            self._array = np.lib.format.open_memmap(self.folder / ARRAY_FILE, mode="r")
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        # A loader's process opens the file itself; pickled, a memory map would be sent as a whole.
        return self.__dict__ | {"_array": None}

    def __repr__(self) -> str:
        views = f" × {self.views} views" if self.views > 1 else ""
        return f"CachedActivations({len(self)} pictures{views}, in front of {self.border}, {self.shape} {self.dtype})"


@dataclass(frozen=True)
class Forecast:
    """What a cache will take, known when the first batch has gone through.

    Parameters
    ----------
    size
        Bytes on disk.
    seconds
        Until it is complete, by the time of the first batch.
    """

    size: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.size / 1e6:,.1f} MB, about {self.seconds:,.0f} s"


def caches_root(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of all caches: ``$COURSE_ACTIVATIONS``, or ``activations`` in the cache folder of the settings."""
    environ = os.environ if environ is None else environ
    given = environ.get("COURSE_ACTIVATIONS")
    return (Path(given).expanduser() if given else load_settings(environ).cache / "activations").absolute()


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
    say: Callable[[str], None] | None = None,
) -> CachedActivations:
    """Run the stages in front of a border once over all pictures, and keep what comes out; or find it on disk.

    Parameters
    ----------
    model
        Run in eval mode on the device that it is on; weights, modes and ``requires_grad`` are left as they were.
    dataset
        Gives ``(image, label)`` with float images ``(3, H, W)`` of one size, and ints.
    border
        The first stage that is not run: ``"head"`` for feature extraction, ``"layer4"`` for the last block of a
        ResNet; any stage but the first.
    views
        1 for a data set without augmentation. With augmentation at least 2: so many augmented views of every
        picture are kept, each drawn with the generators seeded by `seed`, view and index, and an epoch uses one.
    dtype
        ``"float32"``, or ``"float16"`` for half the size and three to four significant digits.
    seed
        At least 0, of the views.
    folder
        Of all caches; None for ``$COURSE_ACTIVATIONS`` or ``activations`` in the course's cache.
    batch_size
        Pictures per forward pass.
    limit
        Most bytes that it may take; None for what the disk has.
    say
        Told what is worth a line: a forecast of more than a few seconds, a wait, a damaged cache. None prints to
        stderr.

    Returns
    -------
    CachedActivations
        In the order of the data set.

    Raises
    ------
    CourseError
        For arguments that cannot be right; a data set that is empty, random without views, or of several sizes; a
        disk without room, or a folder that cannot be written to.

    Notes
    -----
    Two processes that want the same cache do not compute it twice: the second one waits for the first. One that is
    killed leaves nothing that could be taken for a cache, and the next one removes what it left. Pictures of the
    course's own data sets are known by their files and transform; every other data set is read through for its
    fingerprint, before the forward passes.
    """
    start = time.perf_counter()
    _check(dataset, views, dtype, seed, batch_size)
    front, _ = cut(model, border)
    say = _to_stderr if say is None else say
    with generators_put_back(seed=0):
        job = _job(model, front, dataset, border, views, dtype, seed, batch_size, limit, say)
        place = (Path(folder).expanduser() if folder is not None else caches_root()) / job.name
        try:
            content, reused = _found_or_written(place, job)
        except OSError as error:
            raise CourseError(
                f"The activations could not be written to {place.parent}: {error.strerror or error}. Nothing half-done "
                "is left. Free some space (`course cache` lists what is there), or set COURSE_ACTIVATIONS to a folder "
                "that you may write to."
            ) from error
    return CachedActivations(place, content, reused=reused, seconds=time.perf_counter() - start)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _check(dataset: Dataset, views: int, dtype: str, seed: int, batch_size: int) -> None:
    for name, value, least in (("views", views, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise CourseError(f"{name}={value}: it must be at least {least}.")
    if dtype not in DTYPES:
        raise CourseError(f"dtype={dtype!r} is unknown: give one of {', '.join(DTYPES)}.")
    if len(dataset) == 0:
        raise CourseError("The data set is empty: there is nothing to cache.")
    chance = type(dataset) is not MemoryDataset and is_random(dataset)
    if chance and views == 1:
        raise CourseError(
            'The data set draws random numbers (augmentation): a cache of one view would show the same "random" '
            "picture in every epoch. Give views=4, say, for four augmented views of each, or take out the augmentation."
        )
    if views > 1 and not chance:
        raise CourseError(f"views={views}, but the data set draws nothing at random: all views would be the same.")


@dataclass(frozen=True)
class _Job:
    """All that is needed to compute one cache, and its fingerprint."""

    front: nn.Sequential
    dataset: Dataset
    border: str
    family: str
    key: dict[str, Any]
    views: int
    dtype: str
    seed: int
    batch_size: int
    limit: int | None
    device: torch.device
    say: Callable[[str], None]

    @property
    def fingerprint(self) -> str:
        return _digest(_canonical(self.key))

    @property
    def name(self) -> str:
        return f"{self.family}-{self.border}-{len(self.dataset)}x{self.views}-{self.fingerprint[:16]}"


def _job(
    model: nn.Module,
    front: nn.Sequential,
    dataset: Dataset,
    border: str,
    views: int,
    dtype: str,
    seed: int,
    batch_size: int,
    limit: int | None,
    say: Callable[[str], None],
) -> _Job:
    try:
        data = key_of_data(dataset)
    except Unknowable:
        data = key_of_samples(dataset, views, seed)
    device = next(model.parameters()).device
    key = {
        "format": FORMAT,
        "border": border,
        "front": key_of_front(front),
        "data": data,
        "pictures": len(dataset),
        "dtype": dtype,
        "views": views,
        "seed": seed if views > 1 else None,
        "device": device.type,  # a GPU rounds differently
        "versions": {module.__name__: str(module.__version__) for module in (torch, torchvision, PIL)},
    }
    family = family_of(model).name
    return _Job(front, dataset, border, family, key, views, dtype, seed, batch_size, limit, device, say)


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


# --- finding and writing -----------------------------------------------------------------------------------------


class Damaged(Exception):
    """A folder that should be a cache and cannot be used; the message is the reason."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a cache says about itself.

    Raises
    ------
    Damaged
        If that is missing, unreadable, or not as it was written, or the array has another size.
    """
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        content = manifest["content"]
        if manifest["sha256"] != _digest(_canonical(content)):
            raise Damaged("its manifest was changed")
        size = (folder / ARRAY_FILE).stat().st_size
        if size != content["bytes"]:
            raise Damaged(f"{ARRAY_FILE} has {size:,} bytes instead of {content['bytes']:,}")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its manifest cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return content


def checked(folder: Path) -> dict[str, Any]:
    """The manifest of a cache whose every byte is as it was written.

    Raises
    ------
    Damaged
        If not.
    """
    content = read_manifest(folder)
    try:
        if sha256_of(folder / ARRAY_FILE) != content["sha256"]:
            raise Damaged(f"bytes in {ARRAY_FILE} have changed")
    except OSError as error:
        raise Damaged(f"{ARRAY_FILE} cannot be read ({error.strerror or error})") from error
    return content


def _usable(place: Path, job: _Job) -> dict[str, Any] | None:
    """The manifest of the cache that the job wants; None if there is none."""
    if not place.is_dir():
        return None
    content = checked(place)
    if content["fingerprint"] != job.fingerprint:  # its name holds 16 of 64 digits
        raise Damaged("its fingerprint is another one")
    with contextlib.suppress(OSError):  # when it was last of use, for whoever clears; a read-only folder serves too
        os.utime(place / MANIFEST_FILE)
    return content


def _found_or_written(place: Path, job: _Job) -> tuple[dict[str, Any], bool]:
    with contextlib.suppress(Damaged):  # said below, by the one that mends it
        content = _usable(place, job)
        if content is not None:
            return content, True
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place, job.say):
        try:
            content = _usable(place, job)
        except Damaged as problem:
            job.say(f"The cached activations {place.name} are damaged ({problem}); they are computed anew.")
            content = None
        if content is not None:
            return content, True
        remove_leftovers(place.parent, held=place.name)
        return _write(place, job), False


@contextlib.contextmanager
def _locked(place: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(lock_file(place.parent, place.name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is computing the activations {place.name}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_file(folder: Path, name: str) -> Path:
    """What whoever writes the cache of this name in a folder has locked."""
    return folder / f".{name}.lock"


def remove_leftovers(folder: Path, held: str | None = None) -> list[Path]:
    """Remove what killed writers left: drafts whose lock nobody holds.

    Parameters
    ----------
    folder
        Of all caches.
    held
        Name of the cache whose lock the caller has.

    Returns
    -------
    list of Path
        What was removed.
    """
    gone = []
    for draft in folder.glob(f".*{PARTIAL}"):
        name = draft.name[1:].rpartition(PARTIAL)[0].rpartition(".")[0]
        with contextlib.nullcontext(True) if name == held else unused(folder, name) as free:
            if free:
                shutil.rmtree(draft, ignore_errors=True)
                gone.append(draft)
    return gone


@contextlib.contextmanager
def unused(folder: Path, name: str) -> Iterator[bool]:
    """Whether no process computes this cache; none begins to while the block runs."""
    lock = FileLock(lock_file(folder, name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _write(place: Path, job: _Job) -> dict[str, Any]:
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        draft.mkdir()
        content = _fill(draft, job)
        manifest = {"sha256": _digest(_canonical(content)), "content": content}
        with open(draft / MANIFEST_FILE, "w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            _to_disk(file)
        if place.exists():  # damaged, or the job would not have come here
            shutil.rmtree(place)
        os.replace(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return content


def _fill(draft: Path, job: _Job) -> dict[str, Any]:
    """Write the array, batch by batch, and return what the manifest shall hold.

    By plain writing and not through the memory map: on a full disk that is an error, while a page of a map that
    cannot be stored kills the process.
    """
    start = time.perf_counter()
    labels: list[int] = []
    forecast = shape = None
    with open(draft / ARRAY_FILE, "wb") as file:
        writer = _Hashed(file)
        for images, targets in _batches(job):
            block = _activations(job, images)
            if shape not in (None, block.shape[1:]):
                raise CourseError(f"A batch crosses the border as {block.shape[1:]}, the first one as {shape}.")
            if forecast is None:
                shape = block.shape[1:]
                forecast = _forecast(job, block, time.perf_counter() - start)
                _check_room(draft, forecast, job)
                whole = {"descr": block.dtype.str, "fortran_order": False}
                whole["shape"] = (job.views, len(job.dataset), *shape)
                np.lib.format.write_array_header_1_0(writer, whole)
            writer.write(memoryview(block).cast("B"))
            labels += targets
        _to_disk(file)
    return {
        "format": FORMAT,
        "fingerprint": job.fingerprint,
        "key": job.key,
        "family": job.family,
        "border": job.border,
        "dtype": job.dtype,
        "shape": [job.views, len(job.dataset), *shape],
        "bytes": writer.size,
        "sha256": writer.digest.hexdigest(),
        "seconds": round(time.perf_counter() - start, 3),
        "classes": [str(name) for name in getattr(job.dataset, "classes", None) or ()],
        "labels": labels[: len(job.dataset)],
    }


class _Hashed:
    """A file whose checksum is known when the last byte is written."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _forecast(job: _Job, block: np.ndarray, seconds: float) -> Forecast:
    total = job.views * len(job.dataset)
    forecast = Forecast(block[:1].nbytes * total, seconds * total / len(block))
    if forecast.seconds > LONG_SECONDS or forecast.size > LARGE_BYTES:
        job.say(f"Caching the activations of {total:,} pictures in front of {job.border}: {forecast}.")
    return forecast


def _check_room(draft: Path, forecast: Forecast, job: _Job) -> None:
    free = shutil.disk_usage(draft).free
    advice = "Free some space (`course cache` lists what is there), take a later border, dtype='float16' or fewer views"
    if job.limit is not None and forecast.size > job.limit:
        raise CourseError(
            f"The cache would take {forecast.size / 1e9:.1f} GB, and {job.limit / 1e9:.1f} are allowed here. "
            "fit(..., cache='on') has no such limit, and cache='off' does without."
        )
    if forecast.size + SPARE_BYTES > free:
        raise CourseError(
            f"The cache would take {forecast.size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free in {draft.parent}. "
            f"{advice}, or set COURSE_ACTIVATIONS to a folder on another disk."
        )


def _activations(job: _Job, images: Tensor) -> np.ndarray:
    """What crosses the border for a batch ``(n, 3, H, W)``, in the type that is stored."""
    if job.device.type != "mps":  # as fit does it
        images = images.contiguous(memory_format=torch.channels_last)
    with evaluating(job.front):
        out = job.front(images.to(job.device)).float().cpu()
    stored = out.to(getattr(torch, job.dtype))
    if out.isfinite().all() and not stored.isfinite().all():
        raise CourseError(
            f"An activation of {out.abs().max():.3g} is beyond float16, which ends at 65504: use dtype='float32'."
        )
    return stored.contiguous().numpy()


def _batches(job: _Job) -> Iterator[tuple[Tensor, list[int]]]:
    """All pictures, view after view, in order."""
    total, digest = len(job.dataset), hashlib.sha256()
    pieces = [
        (view, range(i, min(i + job.batch_size, total)))
        for view in range(job.views)
        for i in range(0, total, job.batch_size)
    ]
    by_content = job.key["data"]["kind"] == "samples"
    # Several threads would draw from the same generators, in an order of their own.
    fetched = _in_turn(job, pieces) if job.views > 1 or by_content else _side_by_side(job, pieces)
    for samples in progress(fetched, f"caching in front of {job.border}", total=len(pieces)):
        if by_content:
            for sample in samples:
                digest.update(_sample_bytes(*sample))
        yield _stacked([image for image, _ in samples]), [label for _, label in samples]
    if by_content and digest.hexdigest() != job.key["data"]["samples"]:
        raise CourseError(
            "The data set gave other samples the second time, although Python's, NumPy's and torch's generators were "
            "seeded alike: it draws from a generator of its own, or its files are changing. It cannot be cached."
        )


_Samples = list[tuple[Tensor, int]]


def _in_turn(job: _Job, pieces: list[tuple[int, range]]) -> Iterator[_Samples]:
    for view, indices in pieces:
        yield [_seeded_sample(job.dataset, index, view, job.seed) for index in indices]


def _side_by_side(job: _Job, pieces: list[tuple[int, range]]) -> Iterator[_Samples]:
    """Decode one batch ahead, in threads: Pillow lets go of Python's lock meanwhile."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        ahead: deque[list[Future]] = deque()
        for _, indices in pieces:
            ahead.append([pool.submit(_sample, job.dataset, index) for index in indices])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        yield [future.result() for future in ahead.popleft()]


def _stacked(images: list[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise CourseError(f"The pictures become {sorted(shapes)}: the transform must end in one size.")
    return torch.stack(images)
