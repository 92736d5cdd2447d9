"""How many processes load pictures: a rule that holds in scripts and notebooks, on every system.

Workers start anew in every epoch. (Those that stay from one to the next keep the data set as it was in the first, and
with it the numbers that augmentation draws.) That takes a tenth of a second where Python forks, and seconds where it
starts workers afresh (``spawn``, on Windows and macOS, or ``forkserver``) and each of them imports torch. So they pay
where an epoch has enough to decode or to change, and where there are cores that the training does not need. Afresh,
workers also import classes by name, and what is defined in a cell of a notebook, or in the script itself, has no name
that they could import.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

MOST_WORKERS = 8
# Measured on one core of a server, at 128 and 224 pixels, with light augmentation: a photo of half a megapixel, and
# the same from course_utils.engine.pixel_store. One loader with its workers took 0.08 s to start by fork and 4.5 s
# afresh.
SECONDS_PER_PICTURE = {"file": 0.004, "store": 0.0007}
SECONDS_TO_START = {"fork": 0.1, "spawn": 4.5, "forkserver": 4.5}


def workers_for(dataset: Any, processes: int | None = None) -> tuple[int, str]:
    """Choose ``num_workers`` of a ``DataLoader`` for a data set here.

    Parameters
    ----------
    dataset
        The training set. What its samples come from and where its class and its transform are defined is looked at.
    processes
        That train on this machine at the same time: they share the cores. None for what ``torchrun`` or
        ``accelerate launch`` says, 1 without them.

    Returns
    -------
    workers, reason
        The reason is a sentence for the reader.
    """
    return choose_workers(
        source=_source(dataset),
        pictures=len(dataset),
        at_home=sorted({_name(part) for part in _parts(dataset) if _unreachable(part)}),
        start_method=multiprocessing.get_start_method(allow_none=False),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if processes is None else processes,
    )


def choose_workers(
    *, source: str, pictures: int, at_home: list[str], start_method: str, cores: int, processes: int
) -> tuple[int, str]:
    """The rule itself.

    Parameters
    ----------
    source
        Where samples come from: ``"file"``, ``"store"`` or ``"memory"``.
    pictures
        How many there are in an epoch.
    at_home
        Names of classes and functions that have no place from where they could be imported: those of a notebook's
        cell, of the script that runs, or of another function.
    start_method
        Of Python's ``multiprocessing``: ``"fork"``, ``"spawn"`` or ``"forkserver"``.
    cores, processes
        At least 1 each.

    Examples
    --------
    >>> choose_workers(source="file", pictures=500, at_home=[], start_method="fork", cores=8, processes=1)
    (7, 'Workers: 7, and of 8 cores one is left for the training itself.')
    """
    if source not in SECONDS_PER_PICTURE:
        return 0, "No workers: the pictures are in memory, and a worker would only carry them."
    if at_home and start_method != "fork":
        return 0, (
            f"No workers: a new process cannot import {', '.join(at_home)}, which stands in this notebook or script. "
            "Move it into a module."
        )
    workers = min(cores // processes - 1, MOST_WORKERS)
    if workers < 2:  # with two cores, one worker made an epoch longer by a quarter: the training itself uses both
        return 0, f"No workers: {cores} cores for {processes} training process{'es' if processes > 1 else ''}."
    saved = pictures * SECONDS_PER_PICTURE[source] * (1 - 1 / workers)
    start = SECONDS_TO_START[start_method]
    if saved <= start:
        return 0, (
            f"No workers: they would save about {saved:.1f} s in an epoch of {pictures} pictures, and take {start:g} s "
            "to start."
        )
    return workers, f"Workers: {workers}, and of {cores // processes} cores one is left for the training itself."


def _source(dataset: Any) -> str:
    from course_utils.datasets import PhotoDataset

    parts = list(_parts(dataset))
    if any(getattr(part, "fixed", False) for part in parts):
        return "memory"
    if any(hasattr(part, "pixels") for part in parts):
        return "store"
    # A data set of the reader's own: one with paths reads files, of others nothing is known and nothing is risked.
    files = any(isinstance(part, PhotoDataset) or getattr(part, "paths", None) for part in parts)
    return "file" if files else "memory"


def _parts(dataset: Any) -> Iterator[Any]:
    """The data set, those that it wraps, and their transforms with what these are made of."""
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
    """Whether another process could not import the class of an object, or a function."""
    local = {"<lambda>", "<locals>"} & set(_name(part).split("."))
    return getattr(part, "__module__", None) == "__main__" or bool(local)


def _name(part: Any) -> str:
    return getattr(part, "__qualname__", None) or type(part).__qualname__
