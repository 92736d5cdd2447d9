"""Photos decoded and resized once, so that loading keeps up with training that augments.

Decoding a photograph and making it small takes longer than a small network takes to learn from it, and every epoch
does it again. :func:`store_pixels` does it once and keeps 8-bit pixels in one file on disk, which is memory-mapped: an
epoch then reads bytes, and augmentation works on tensors. :func:`read_fast` does so where it pays.

What the store is, beside its two relatives:

* :func:`course_utils.datasets.in_memory` keeps finished tensors (four bytes a number) in memory: for up to a few
  thousand pictures without augmentation;
* :mod:`course_utils.engine.activation_cache` keeps what frozen stages make of the pictures: for training without
  augmentation behind a border that stays;
* the store keeps pictures (one byte a number), on disk: for augmentation, and for more of them than fit into memory.

**What is the same and what is not.** Without augmentation the store holds exactly what the weights' own transform makes
of a file before it crops: reading through it is reading the file, to the last bit. With augmentation, crops come from
the same distribution, but a file is cropped and then resized, while a stored picture was resized before: it is
resampled twice. Its shorter side is as long as the smallest crop needs, so that nothing is magnified that was made
small. The same seed cuts out other places, because places are drawn as whole pixels of a picture of another size.

A store belongs to the files (path, size, times), the side and the interpolation, which its name has a fingerprint of.
``NAME.pixels`` appears whole, then ``NAME.json`` with its checksum; without the second, the first is not looked at.
``course cache`` lists and clears them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional

from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of, written_whole
from course_utils.common.progress import progress
from course_utils.common.state import generators_put_back
from course_utils.data.pictures import SMALLEST_SIDE, load_picture
from course_utils.datasets import MemoryDataset, PhotoDataset, in_memory_if_it_fits
from course_utils.engine.activation_cache import PICTURES, Damaged, key_of_data, lock_file
from course_utils.settings import load_settings
from course_utils.transforms import image_size, train_transform

FORMAT = 1
SMALLEST_CROP = {"none": 1.0, "light": 0.7, "strong": 0.35}  # share of the area, see transforms.train_transform
LARGEST_SHARE_OF_FREE = 0.5  # of the disk, for a store that nobody asked for
LOOKS = 8  # pictures that are timed before it is decided
PIXELS, CHOICE = ".pixels", ".choice"  # endings

Say = Callable[[str], None]


# --- a store as a data set ---------------------------------------------------------------------------------------


class PixelDataset(Dataset):
    """Pictures of a store, with the interface of :class:`~course_utils.datasets.PhotoDataset`.

    Parameters
    ----------
    file
        The ``.pixels`` file: all pictures, row by row, three bytes a pixel, one after another.
    sizes
        Height and width of each picture in the file, ``(N, 2)``.
    labels, classes, paths
        Of the pictures that are given.
    transform
        Takes ``(3, H, W)``, uint8; None hands that out.
    rows
        Which picture of the file each sample is; None for all.
    """

    def __init__(
        self,
        file: Path,
        sizes: np.ndarray,
        labels: tuple[int, ...],
        classes: tuple[str, ...],
        paths: tuple[Path, ...],
        transform: Callable[[Tensor], Any] | None = None,
        rows: tuple[int, ...] | None = None,
    ) -> None:
        self.file, self.sizes = Path(file), sizes
        self.labels, self.classes, self.paths, self.transform = labels, classes, paths, transform
        self.rows = tuple(range(len(labels))) if rows is None else rows
        self._starts = np.concatenate([[0], np.cumsum(3 * sizes.astype(np.int64).prod(1))])
        self._bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: int) -> Tensor:
        """One picture before the transform: ``(3, H, W)``, uint8, a copy."""
        if self._bytes is None:
            self._bytes = np.memmap(self.file, dtype=np.uint8, mode="r")
        row = self.rows[index]
        stored = self._bytes[self._starts[row] : self._starts[row + 1]]
        return torch.from_numpy(np.array(stored)).view(*self.sizes[row].tolist(), 3).permute(2, 0, 1)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self.pixels(index)
        return picture if self.transform is None else self.transform(picture), self.labels[index]

    def with_transform(self, transform: Callable[[Tensor], Any] | None) -> PixelDataset:
        """Return the same samples with another transform, one that takes uint8 tensors ``(3, H, W)``."""
        return PixelDataset(self.file, self.sizes, self.labels, self.classes, self.paths, transform, self.rows)

    def subset(self, indices: Iterable[int]) -> PixelDataset:
        """Return the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        labels, paths, rows = (tuple(column[i] for i in chosen) for column in (self.labels, self.paths, self.rows))
        return PixelDataset(self.file, self.sizes, labels, self.classes, paths, self.transform, rows)

    def counts(self) -> dict[str, int]:
        """Samples per class, in the order of ``classes``."""
        return {name: self.labels.count(i) for i, name in enumerate(self.classes)}

    def __getstate__(self) -> dict[str, Any]:
        # A loader's process opens the file itself; pickled, a memory map would be sent as a whole.
        return self.__dict__ | {"_bytes": None}

    def __repr__(self) -> str:
        return f"PixelDataset({len(self)} pictures in {self.file.name}, classes {', '.join(self.classes)})"


def _key(dataset: PixelDataset) -> str:
    """Which pictures these are: a store is named after its files, their size and the interpolation."""
    return f"{dataset.file.name} {dataset.rows}"


PICTURES[PixelDataset] = _key


# --- does it pay? ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreForecast:
    """What a store costs and what it saves, measured on a few pictures.

    Parameters
    ----------
    size, free
        Bytes that it takes, and that the disk has.
    build
        Seconds to make it; 0 if it is there.
    from_files, from_store
        Seconds to fetch every picture once, in one thread.
    """

    size: int
    free: int
    build: float
    from_files: float
    from_store: float

    def gain(self, epochs: int) -> float:
        """Seconds that are saved over so many epochs; negative when it costs more than it saves."""
        return epochs * (self.from_files - self.from_store) - self.build

    def pays(self, epochs: int) -> bool:
        """Whether time is saved, and the disk can spare it."""
        return self.gain(epochs) > 0 and self.size <= LARGEST_SHARE_OF_FREE * self.free

    def reason(self, epochs: int) -> str:
        """The decision in one line."""
        cost = f"{self.size / 1e6:,.0f} MB on disk"
        if self.size > LARGEST_SHARE_OF_FREE * self.free:
            return f"Pictures are read from their files: a store would take {cost} of {self.free / 1e6:,.0f} MB free."
        speeds = f"{self.from_store:.1f} s instead of {self.from_files:.1f} s for each of {epochs} epochs"
        if self.pays(epochs):
            return f"Pictures are decoded once ({cost}, {self.build:.1f} s): reading takes {speeds}."
        return f"Pictures are read from their files: a store ({cost}, {self.build:.1f} s) would read {speeds}."


def forecast_store(
    dataset: PhotoDataset,
    weights: Any,
    augment: str = "none",
    *,
    folder: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StoreForecast:
    """Time a few pictures both ways, and count on from there.

    Parameters
    ----------
    dataset, weights, augment, folder
        As for :func:`store_pixels`.
    clock
        Tells the time in seconds.
    """
    root, job = stores_root(folder), _Job.of(dataset, weights, augment)
    transform = train_transform(weights, augment)
    spent = {"decode": 0.0, "resize": 0.0, "files": 0.0, "store": 0.0}

    def timed(what: str, function: Callable[..., Any], *values: Any) -> Any:
        start = clock()
        result = function(*values)
        spent[what] += clock() - start
        return result

    size = 0
    chosen = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(LOOKS, len(dataset)))})
    with generators_put_back(seed=0):
        for index in chosen:
            picture = timed("decode", load_picture, dataset.paths[index])
            stored = timed("resize", job.resized, picture)
            timed("files", transform, picture)
            timed("store", lambda stored=stored: transform(torch.from_numpy(stored.copy()).permute(2, 0, 1)))
            size += stored.nbytes
    times = len(dataset) / len(chosen)
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    there = (root / f"{job.name}.json").exists()
    return StoreForecast(
        size=0 if there else round(size * times),
        free=shutil.disk_usage(place).free,
        build=0.0 if there else (spent["decode"] + spent["resize"]) * times / _threads(),
        from_files=(spent["decode"] + spent["files"]) * times,
        from_store=spent["store"] * times,
    )


def read_fast(
    dataset: PhotoDataset,
    weights: Any,
    augment: str = "none",
    *,
    epochs: int,
    folder: str | Path | None = None,
    say: Say | None = None,
) -> PixelDataset | PhotoDataset:
    """The data set with the transform for training, through a store where that pays, and one line that says why.

    Parameters
    ----------
    dataset, weights, augment, folder, say
        As for :func:`store_pixels`.
    epochs
        How often every picture will be read.

    Returns
    -------
    PixelDataset or PhotoDataset
        From files also when the store cannot be written: that is said, and no error.

    Notes
    -----
    What was decided is written down beside the stores and holds from then on. The seconds vary, and with them the
    decision could: but a run that is resumed, and all processes that train together, have to see the same pixels.
    """
    say = _to_stderr if say is None else say
    root, name = stores_root(folder), _Job.of(dataset, weights, augment).name

    def decide() -> dict[str, Any]:
        forecast = forecast_store(dataset, weights, augment, folder=folder)
        return {"pays": forecast.pays(epochs), "reason": forecast.reason(epochs)}

    decision = _remembered(root, name, f"{augment}, {epochs} epochs", decide)
    say(decision["reason"])
    if decision["pays"]:
        try:
            return store_pixels(dataset, weights, augment, folder=folder, say=say)
        except CourseError as error:
            say(f"Pictures are read from their files after all. {error}")
    return dataset.with_transform(train_transform(weights, augment))


def _remembered(root: Path, name: str, question: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer that was given to a question about these pictures before; else that of `decide`, from now on."""
    file = root / f"{name}{CHOICE}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_file(root, f"{name}{CHOICE}")):
            kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if question not in kept:
                kept[question] = decide()
                with written_whole(file) as beside:
                    beside.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            return kept[question]
    except (OSError, ValueError, CourseError):  # no place to remember it
        return decide()


def training_pictures(
    dataset: PhotoDataset, weights: Any, augment: str, *, epochs: int, share: float, say: Say | None = None
) -> PixelDataset | PhotoDataset | MemoryDataset:
    """What a network shall learn from, in the form in which it is fetched fastest.

    Parameters
    ----------
    dataset, weights, augment, epochs, say
        As for :func:`read_fast`.
    share
        As for :func:`~course_utils.datasets.in_memory_if_it_fits`.

    Returns
    -------
    MemoryDataset, PixelDataset or PhotoDataset
        In memory where nothing is drawn and there is room; otherwise what :func:`read_fast` decides.
    """
    if augment == "none":
        finished = in_memory_if_it_fits(dataset.with_transform(train_transform(weights, augment)), share)
        if isinstance(finished, MemoryDataset):
            return finished
    return read_fast(dataset, weights, augment, epochs=epochs, say=say)


# --- making one --------------------------------------------------------------------------------------------------


def store_pixels(
    dataset: PhotoDataset,
    weights: Any,
    augment: str = "none",
    *,
    folder: str | Path | None = None,
    say: Say | None = None,
) -> PixelDataset:
    """Decode and resize every picture once and keep the pixels; or find them on disk.

    Parameters
    ----------
    dataset
        Of photos; its transform does not matter.
    weights
        As for :func:`~course_utils.transforms.eval_transform`: they decide size and interpolation.
    augment
        As for :func:`~course_utils.transforms.train_transform`: the more is cropped away, the larger is what is kept.
    folder
        Of all stores; None for ``pixels`` in the course's cache.
    say
        Told about damage. None prints to stderr.

    Returns
    -------
    PixelDataset
        With ``train_transform(weights, augment)``, which works on its tensors.

    Raises
    ------
    CourseError
        If there is no picture, one cannot be read, the disk has no room, or the folder cannot be written to.

    Notes
    -----
    Of several processes that want the same store one makes it, and the others wait.
    """
    if not len(dataset):
        raise CourseError("The data set is empty: there are no pixels to store.")
    root, job = stores_root(folder), _Job.of(dataset, weights, augment)
    say = _to_stderr if say is None else say
    manifest = _found(root, job, None)
    if manifest is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock_file(root, job.name)):
                manifest = _found(root, job, say) or _written(root, job)
        except OSError as error:
            raise CourseError(
                f"Pixels cannot be stored in {root}: {error.strerror or error}. Set COURSE_CACHE to a folder that you "
                "may write to."
            ) from error
    transform = train_transform(weights, augment)
    file = root / f"{job.name}{PIXELS}"
    return PixelDataset(file, _sizes(manifest), dataset.labels, dataset.classes, dataset.paths, transform)


@dataclass(frozen=True)
class _Job:
    """Which pictures, how large."""

    paths: tuple[Path, ...]
    pictures: str  # a fingerprint
    side: int
    interpolation: Any
    antialias: bool | None

    @classmethod
    def of(cls, dataset: PhotoDataset, weights: Any, augment: str) -> _Job:
        preset = weights.transforms() if hasattr(weights, "transforms") else weights
        train_transform(weights, augment)  # says what is wrong with either
        side = min(preset.resize_size)
        if augment != "none":
            side = max(side, math.ceil(image_size(weights) / math.sqrt(SMALLEST_CROP[augment])))
        pictures = key_of_data(dataset.with_transform(None))["pictures"]
        return cls(dataset.paths, pictures, min(side, SMALLEST_SIDE), preset.interpolation, preset.antialias)

    @property
    def name(self) -> str:
        facts = [FORMAT, self.pictures, self.side, str(self.interpolation), self.antialias, PIL.__version__]
        return f"{len(self.paths)}x{self.side}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"

    def resized(self, picture: Image.Image) -> np.ndarray:
        """``(H, W, 3)``, uint8: as the weights' own transform resizes, before it crops."""
        small = functional.resize(picture, [self.side], interpolation=self.interpolation, antialias=self.antialias)
        return np.asarray(small)


def read_store(manifest_file: Path, thorough: bool = True) -> dict[str, Any]:
    """What a store says about itself.

    Parameters
    ----------
    manifest_file
        ``NAME.json``.
    thorough
        Compare the checksum of all pixels too, not their number alone.

    Raises
    ------
    Damaged
        If the store is not as it was written.
    """
    file = manifest_file.with_suffix(PIXELS)
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        sizes, size = _sizes(manifest), file.stat().st_size
        if 3 * int(sizes.prod(1).sum()) != size:
            raise Damaged(f"{file.name} has {size:,} bytes, which is not what {manifest_file.name} says")
        if thorough and sha256_of(file) != manifest["sha256"]:
            raise Damaged("its pixels have changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(str(getattr(error, "strerror", None) or error)) from error
    return manifest


def _sizes(manifest: dict[str, Any]) -> np.ndarray:
    """Height and width of each picture, ``(N, 2)``."""
    return np.asarray(manifest["sizes"], dtype=np.int64).reshape(-1, 2)


def _found(root: Path, job: _Job, say: Say | None) -> dict[str, Any] | None:
    """The manifest of a store that is as it was written; None if there is none. `say` is told what is wrong."""
    manifest_file = root / f"{job.name}.json"
    if not manifest_file.exists():
        return None
    try:
        manifest = read_store(manifest_file)
        if len(manifest["sizes"]) != len(job.paths):
            raise Damaged(f"it has {len(manifest['sizes'])} pictures")
    except Damaged as problem:
        if say is not None:
            say(f"The stored pixels {job.name} are damaged ({problem}); they are made anew.")
        return None
    with contextlib.suppress(OSError):  # when it was last of use, for whoever clears; a read-only folder serves too
        os.utime(manifest_file)
    return manifest


def _written(root: Path, job: _Job) -> dict[str, Any]:
    manifest_file, file = root / f"{job.name}.json", root / f"{job.name}{PIXELS}"
    for left_over in root.glob(f".{job.name}.*.partial"):  # of a killed process: the lock is ours
        left_over.unlink(missing_ok=True)
    manifest_file.unlink(missing_ok=True)
    digest, sizes = hashlib.sha256(), []
    with written_whole(file) as beside, open(beside, "wb") as out:
        for pixels in _decoded(job):
            block = np.ascontiguousarray(pixels)
            out.write(block)
            digest.update(block)
            sizes.append(block.shape[:2])
    manifest = {"format": FORMAT, "side": job.side, "sizes": sizes, "sha256": digest.hexdigest()}
    with written_whole(manifest_file) as beside:
        beside.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    return manifest


def _decoded(job: _Job) -> Iterator[np.ndarray]:
    """All pictures in order, some of them ahead: Pillow lets go of Python's lock while it decodes."""
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        for path in progress(job.paths, "decoding the pictures once"):
            ahead.append(pool.submit(lambda path=path: job.resized(load_picture(path))))
            if len(ahead) > 4 * _threads():  # not all of them: they would fill the memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def stores_root(folder: str | Path | None = None) -> Path:
    """The folder of all stores: the given one, or ``pixels`` in the course's cache."""
    return Path(folder).expanduser() if folder is not None else load_settings().cache / "pixels"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
