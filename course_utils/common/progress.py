"""One progress bar for everything, and one switch that turns it off."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm
from tqdm.std import TqdmDefaultWriteLock

from course_utils.common.threads import start_method


def progress(items: Iterable, text: str, total: int | None = None) -> tqdm:
    """Return an iterator over `items` with `text` and a progress bar, which disappears at the end.

    `total` is the number of items, if ``len(items)`` is not known.

    Nothing is shown with ``COURSE_PROGRESS=0`` (stored notebooks hold results, not bars), and if the output is neither
    a terminal nor a notebook. ``TQDM_DISABLE`` is not enough: the bar of notebooks ignores it.
    """
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    silent = os.environ.get("COURSE_PROGRESS") == "0" or not watched
    if not hasattr(TqdmDefaultWriteLock, "mp_lock"):  # the lock that tqdm makes fixes the program's start method
        TqdmDefaultWriteLock.mp_lock = multiprocessing.get_context(start_method()).RLock()
    return tqdm(items, desc=text, total=total, leave=False, disable=silent)
