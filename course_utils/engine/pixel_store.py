"""Photos decoded and resized once, so that loading keeps up with training that augments.

Decoding and resizing a photograph takes longer than a small network needs to learn from it. :func:`store_pixels` does
it once for all epochs and keeps 8-bit pixels in an artifact on disk (:mod:`course_utils.engine.artifact_store`), which
is memory-mapped. :func:`read_fast` does so where it saves time.

Without augmentation the store gives the same bits as the files. With augmentation the crops have the same distribution
but are others: places are drawn as whole pixels of a picture of another size, and a stored picture is resampled twice.
Its shorter side is as long as the smallest crop needs, so nothing is made larger again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import generators_put_back
from course_utils.common.threads import in_threads, thread_count
from course_utils.data.pictures import SMALLEST_SIDE, load_picture
from course_utils.datasets import LabelledDataset, MemoryDataset, PhotoDataset, in_memory_if_it_fits
from course_utils.engine.artifact_store import DATA_FILE, ArtifactStore, DataWriter, Notify, free_bytes, print_to_stderr
from course_utils.engine.fingerprints import PICTURE_KEYS, key_of_data
from course_utils.engine.sampling import spread_out
from course_utils.settings import load_settings
from course_utils.transforms import image_size, preset_of, train_transform

FORMAT = 2  # of the payload and the manifest; with another number no existing store is found
SMALLEST_CROP = {"none": 1.0, "light": 0.7, "strong": 0.35}  # share of the area, see transforms.train_transform
LARGEST_SHARE_OF_FREE = 0.5  # share of the free disk space that a store may take
TIMED_PICTURES = 8  # pictures that are read for a forecast


# --- a store as a data set ---------------------------------------------------------------------------------------


class PixelDataset(LabelledDataset):
    """Pictures of a store, with the interface of :class:`~course_utils.datasets.PhotoDataset`.

    Parameters
    ----------
    folder
        Folder of the store. Its payload has all pictures one after another, row by row, three bytes a pixel.
    sizes
        Height and width of each picture in the store, ``(N, 2)``.
    photos
        The samples. Their transform takes ``(3, H, W)``, uint8; None gives these tensors themselves.
    rows
        Place in the store of each sample; None if they are all pictures of the store in its order.
    """

    def __init__(
        self, folder: Path, sizes: np.ndarray, photos: PhotoDataset, rows: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(photos.paths, photos.labels, photos.classes)
        self.folder, self.sizes, self.photos, self.transform = Path(folder), sizes, photos, photos.transform
        self.rows = tuple(range(len(photos))) if rows is None else rows
        self._starts = np.concatenate([[0], np.cumsum(3 * sizes.prod(1))])
        self._bytes: np.ndarray | None = None

    def pixels(self, index: int) -> Tensor:
        """Return one picture before the transform: ``(3, H, W)``, uint8, a copy."""
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / DATA_FILE, dtype=np.uint8, mode="r")
        row = self.rows[index]
        stored = self._bytes[self._starts[row] : self._starts[row + 1]]
        return torch.from_numpy(np.array(stored)).view(*self.sizes[row].tolist(), 3).permute(2, 0, 1)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = self.pixels(index)
        return picture if self.transform is None else self.transform(picture), self.labels[index]

    def with_transform(self, transform: Callable[[Tensor], Any] | None) -> PixelDataset:
        """Return the same samples with another transform, one that takes uint8 tensors ``(3, H, W)``."""
        return PixelDataset(self.folder, self.sizes, self.photos.with_transform(transform), self.rows)

    def subset(self, indices: Iterable[int]) -> PixelDataset:
        """Return the samples at these indices, in this order."""
        chosen = [int(i) for i in indices]
        return PixelDataset(self.folder, self.sizes, self.photos.subset(chosen), tuple(self.rows[i] for i in chosen))

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the file itself; a pickled memory map would be sent as a whole.
        return self.__dict__ | {"_bytes": None}

    def __repr__(self) -> str:
        return f"PixelDataset({len(self)} pictures in {self.folder.name}, classes {', '.join(self.classes)})"


# The folder's name has the fingerprint of the files, their size and the interpolation.
PICTURE_KEYS[PixelDataset] = lambda dataset: f"{dataset.folder.name} {dataset.rows}"


# --- deciding ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreForecast:
    """Costs and gains of a store, measured on a few pictures.

    Sizes are in bytes, times in seconds: `build` makes the store (0 if it exists), `from_files` and `from_store` fetch
    every picture once, in one thread.
    """

    size: int
    free: int
    build: float
    from_files: float
    from_store: float

    def gain(self, epochs: int) -> float:
        """Return the seconds that are saved over so many epochs; negative when it costs more than it saves."""
        return epochs * (self.from_files - self.from_store) - self.build

    def pays(self, epochs: int) -> bool:
        """Return True if time is saved and the disk has enough room."""
        return self.gain(epochs) > 0 and self.size <= LARGEST_SHARE_OF_FREE * self.free

    def reason(self, epochs: int) -> str:
        """Return the decision in one line."""
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
    folder: str | Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> StoreForecast:
    """Return a forecast made by timing a few pictures both ways; parameters as in :func:`store_pixels`."""
    job, transform = _Job(dataset, weights, augment, folder), train_transform(weights, augment)
    size, spent = 0, np.zeros(4)
    chosen = spread_out(len(dataset), TIMED_PICTURES)
    with generators_put_back(seed=0):
        for index in chosen:
            start = clock()
            picture = load_picture(dataset.paths[index])
            loaded = clock()
            stored = job.resized(picture)
            resized = clock()
            transform(picture)
            cropped = clock()
            transform(torch.from_numpy(stored.copy()).permute(2, 0, 1))
            size, spent = size + stored.nbytes, spent + np.diff([start, loaded, resized, cropped, clock()])
    scale = len(dataset) / len(chosen)
    decode, resize, crop_file, crop_stored = (spent * scale).tolist()
    size, build = (0, 0.0) if job.folder.exists() else (round(size * scale), (decode + resize) / thread_count())
    return StoreForecast(size, free_bytes(job.store.root), build, decode + crop_file, crop_stored)


def read_fast(
    dataset: PhotoDataset,
    weights: Any,
    augment: str = "none",
    *,
    epochs: int,
    folder: str | Path | None = None,
    notify: Notify | None = None,
) -> PixelDataset | PhotoDataset:
    """Return the data set with the transform for training, through a store where that pays.

    The decision is kept as an artifact and used from then on: measured seconds vary, but a resumed run, and all
    processes that train together, have to see the same pixels. If the store cannot be written, `notify` gets a line
    about it and pictures are read from their files.

    Parameters
    ----------
    dataset, weights, augment, folder
        Same as in :func:`store_pixels`.
    epochs
        Number of times that every picture will be read.
    notify
        Called with the reason of the decision, one line, and as in :func:`store_pixels`.
    """
    notify, job = notify or print_to_stderr, _Job(dataset, weights, augment, folder)

    def decide(_file: DataWriter | None = None) -> dict[str, Any]:
        forecast = forecast_store(dataset, weights, augment, folder=folder)
        pays = forecast.pays(epochs)
        summary = {"holds": f"decision to read {'a store' if pays else 'files'}", "pictures": len(dataset)}
        return {"pays": pays, "reason": forecast.reason(epochs), "summary": summary}

    question = job.key | {"augment": augment, "epochs": epochs}
    try:
        decision = job.store.find_or_write(f"{job.folder.name}-{augment}-{epochs}", question, decide, notify).content
    except CourseError:  # it cannot be kept
        decision = decide()
    notify(decision["reason"])
    if decision["pays"]:
        try:
            return store_pixels(dataset, weights, augment, folder=folder, notify=notify)
        except CourseError as error:
            notify(f"Pictures are read from their files after all. {error}")
    return dataset.with_transform(train_transform(weights, augment))


def training_pictures(
    dataset: PhotoDataset, weights: Any, augment: str, *, epochs: int, share: float, notify: Notify | None = None
) -> PixelDataset | PhotoDataset | MemoryDataset:
    """Return pictures to train on: in memory without augmentation if there is room, else as :func:`read_fast` decides.

    The parameters are those of :func:`read_fast`; `share` is that of
    :func:`~course_utils.datasets.in_memory_if_it_fits`.
    """
    if augment == "none":
        finished = in_memory_if_it_fits(dataset.with_transform(train_transform(weights, augment)), share)
        if isinstance(finished, MemoryDataset):
            return finished
    return read_fast(dataset, weights, augment, epochs=epochs, notify=notify)


# --- making one --------------------------------------------------------------------------------------------------


def stores_root(folder: str | Path | None = None) -> Path:
    """Return the folder of all stores: the given one, or ``pixels`` in the course's cache."""
    return Path(folder).expanduser() if folder is not None else load_settings().cache / "pixels"


def store_pixels(
    dataset: PhotoDataset,
    weights: Any,
    augment: str = "none",
    *,
    folder: str | Path | None = None,
    notify: Notify | None = None,
) -> PixelDataset:
    """Return pictures that were decoded and resized once, with ``train_transform(weights, augment)``.

    Parameters
    ----------
    dataset
        Photos; their transform is not used.
    weights, augment
        Same as in :func:`~course_utils.transforms.train_transform`. They decide the size of the stored pictures.
    folder
        Folder of all stores; None for ``pixels`` in the course's cache.
    notify
        Called with a line about damage or a wait. None prints to stderr.

    Raises
    ------
    CourseError
        If there is no picture, one cannot be read, the disk has no room, or the folder cannot be written to.
    """
    if not len(dataset):
        raise CourseError("The data set is empty: there are no pixels to store.")
    job = _Job(dataset, weights, augment, folder)
    artifact = job.store.find_or_write(job.label, job.key, job.fill, notify)
    photos = dataset.with_transform(train_transform(weights, augment))
    return PixelDataset(artifact.folder, np.array(artifact.content["sizes"], dtype=np.int64), photos)


class _Job:
    """The pictures of one store, and how they are resized."""

    def __init__(self, dataset: PhotoDataset, weights: Any, augment: str, folder: str | Path | None) -> None:
        train_transform(weights, augment)  # raises an error for a wrong value of either
        self.preset = preset = preset_of(weights)
        smallest = min(preset.resize_size)
        if augment != "none":
            smallest = max(smallest, math.ceil(image_size(weights) / math.sqrt(SMALLEST_CROP[augment])))
        self.paths, self.side = dataset.paths, min(smallest, SMALLEST_SIDE)
        pictures = key_of_data(dataset.with_transform(None))["pictures"]
        self.key = {"format": FORMAT, "pictures": pictures, "side": self.side, "PIL": PIL.__version__}
        self.key |= {"interpolation": str(preset.interpolation), "antialias": preset.antialias}
        self.store, self.label = ArtifactStore(stores_root(folder)), f"{len(dataset)}x{self.side}"
        self.folder = self.store.folder(self.label, self.key)

    def resized(self, picture: Image.Image) -> np.ndarray:
        """Return ``(H, W, 3)``, uint8: the picture as the weights' own transform resizes it, before it crops."""
        options = {"interpolation": self.preset.interpolation, "antialias": self.preset.antialias}
        return np.asarray(functional.resize(picture, [self.side], **options))

    def fill(self, file: DataWriter) -> dict[str, Any]:
        """Write all pictures, and return the entries of the manifest."""
        sizes = []
        decoded = in_threads(lambda path: self.resized(load_picture(path)), self.paths, ahead=4 * thread_count())
        for pixels in progress(decoded, "decoding the pictures once", total=len(self.paths)):
            file.write(np.ascontiguousarray(pixels))
            sizes.append(pixels.shape[:2])
        summary = {"holds": f"pixels, {self.side} the shorter side", "pictures": len(sizes), "numbers": "uint8"}
        return {"sizes": sizes, "summary": summary}
