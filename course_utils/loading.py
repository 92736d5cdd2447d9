"""How many processes load pictures: a rule that holds in scripts and notebooks, on every system.

A worker costs a second or more to start, and a copy of every tensor that it sends. That pays where pictures come from
files, and only there. Where Python starts workers afresh (``spawn``, on Windows and macOS, or ``forkserver``) they
import classes by name, and what is defined in a cell of a notebook, or in the script itself, has no name that they
could import.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

MOST_WORKERS = 8


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
        decodes=_decodes(dataset),
        at_home=sorted({_name(part) for part in _parts(dataset) if _unreachable(part)}),
        start_method=multiprocessing.get_start_method(allow_none=False),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if processes is None else processes,
    )


def choose_workers(
    *, decodes: bool, at_home: list[str], start_method: str, cores: int, processes: int
) -> tuple[int, str]:
    """The rule itself.

    Parameters
    ----------
    decodes
        Whether samples are read from picture files.
    at_home
        Names of classes and functions that have no place from where they could be imported: those of a notebook's
        cell, of the script that runs, or of another function.
    start_method
        Of Python's ``multiprocessing``: ``"fork"``, ``"spawn"`` or ``"forkserver"``.
    cores, processes
        At least 1 each.

    Examples
    --------
    >>> choose_workers(decodes=True, at_home=[], start_method="fork", cores=8, processes=1)
    (7, 'Workers: 7, and of 8 cores one is left for the training itself.')
    """
    if not decodes:
        return 0, "No workers: the pictures are in memory or mapped into it, and a worker would only carry them."
    if at_home and start_method != "fork":
        return 0, (
            f"No workers: a new process cannot import {', '.join(at_home)}, which stands in this notebook or script. "
            "Move it into a module."
        )
    workers = min(cores // processes - 1, MOST_WORKERS)
    if workers < 1:
        share = "one core" if cores >= processes else "not even a core"
        return 0, f"No workers: for each training process there is {share}."
    return workers, f"Workers: {workers}, and of {cores // processes} cores one is left for the training itself."


def _decodes(dataset: Any) -> bool:
    from course_utils.datasets import PhotoDataset

    parts = list(_parts(dataset))
    if any(getattr(part, "fixed", False) or hasattr(part, "pixels") for part in parts):
        return False
    # A data set of the reader's own: one with paths reads files, of others nothing is known and nothing is risked.
    return any(isinstance(part, PhotoDataset) or getattr(part, "paths", None) for part in parts)


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
