"""A rule for the number of processes that load pictures, in scripts and notebooks, on every system.

Workers save time where the epochs have enough to decode or to change, and where the training leaves cores free. They
are started once and stay. The start takes a tenth of a second where Python forks, and seconds where it starts workers
afresh (``spawn``, on Windows and macOS, or ``forkserver``) and each of them imports torch. Workers that are started
afresh import classes by name, which fails for a class that is defined in a notebook's cell or in the script itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from course_utils.common.threads import start_method
from course_utils.datasets import PhotoDataset

MOST_WORKERS = 8
# Measured on one core of a server, at 128 and 224 pixels, with light augmentation: a photo of half a megapixel, and
# the same from course_utils.engine.pixel_store. One loader with its workers took 0.08 s to start by fork and 4.5 s
# afresh.
SECONDS_PER_PICTURE = {"file": 0.004, "store": 0.0007}
SECONDS_TO_START = {"fork": 0.1, "spawn": 4.5, "forkserver": 4.5}


def workers_for(dataset: Any, *, epochs: int = 1, processes: int | None = None) -> tuple[int, str]:
    """Return ``num_workers`` of a ``DataLoader`` for a data set that is read `epochs` times, and the reason.

    `processes` train on this machine and share its cores; None stands for their number from ``torchrun`` or
    ``accelerate launch``, 1 without them.
    """
    return choose_workers(
        source=_source(dataset),
        pictures=len(dataset),
        epochs=epochs,
        not_importable=sorted({_name(part) for part in _parts(dataset) if _unreachable(part)}),
        start_method=start_method(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if processes is None else processes,
    )


def choose_workers(
    *, source: str, pictures: int, epochs: int, not_importable: list[str], start_method: str, cores: int, processes: int
) -> tuple[int, str]:
    """Return the number of workers and the reason, a sentence for the reader.

    Parameters
    ----------
    source
        Source of the samples: ``"file"``, ``"store"`` or ``"memory"``.
    pictures, epochs, cores, processes
        Numbers of pictures in an epoch, of epochs, of cores and of training processes, at least 1.
    not_importable
        Names of classes and functions that a new process could not import.
    start_method
        Start method of Python's ``multiprocessing``: ``"fork"``, ``"spawn"`` or ``"forkserver"``.

    Examples
    --------
    >>> about = {"source": "file", "pictures": 500, "epochs": 1, "not_importable": [], "start_method": "fork"}
    >>> choose_workers(**about, cores=8, processes=1)
    (7, 'Workers: 7, and of 8 cores one is left for the training itself.')
    """
    if source not in SECONDS_PER_PICTURE:
        return 0, "No workers: the pictures are in memory, and a worker would only carry them."
    if not_importable and start_method != "fork":
        return 0, (
            f"No workers: a new process cannot import {', '.join(not_importable)}, which stands in this notebook or "
            "script. Move it into a module."
        )
    workers = min(cores // processes - 1, MOST_WORKERS)
    if workers < 2:  # with two cores, one worker made an epoch longer by a quarter: the training itself uses both
        return 0, f"No workers: {cores} cores for {processes} training process{'es' if processes > 1 else ''}."
    saved = epochs * pictures * SECONDS_PER_PICTURE[source] * (1 - 1 / workers)
    start = SECONDS_TO_START[start_method]
    if saved <= start:
        return 0, (
            f"No workers: in {epochs} epoch{'s' if epochs > 1 else ''} of {pictures} pictures they would save about "
            f"{saved:.1f} s, and take {start:g} s to start."
        )
    return workers, f"Workers: {workers}, and of {cores // processes} cores one is left for the training itself."


def _source(dataset: Any) -> str:
    parts = list(_parts(dataset))
    if any(getattr(part, "fixed", False) for part in parts):
        return "memory"
    if any(hasattr(part, "pixels") for part in parts):
        return "store"
    # Another data set is taken to read files only if it has paths.
    files = any(isinstance(part, PhotoDataset) or getattr(part, "paths", None) for part in parts)
    return "file" if files else "memory"


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield the data set, those that it wraps, and their transforms with their parts."""
    waiting, seen = [dataset], set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [getattr(part, "dataset", None), getattr(part, "transform", None)]
        inner = getattr(part, "transforms", None)
        waiting += inner if isinstance(inner, list | tuple) else []


def _unreachable(part: Any) -> bool:
    """Return True if another process could not import the class of an object, or a function."""
    local = {"<lambda>", "<locals>"} & set(_name(part).split("."))
    return getattr(part, "__module__", None) == "__main__" or bool(local)


def _name(part: Any) -> str:
    return getattr(part, "__qualname__", None) or type(part).__qualname__
