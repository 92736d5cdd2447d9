"""One progress bar for everything, and one switch that turns it off."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, text: str, total: int | None = None) -> tqdm:
    """Return an iterator over `items` with a progress bar, which disappears at the end.

    Nothing is shown with ``COURSE_PROGRESS=0`` (stored notebooks hold results, not bars), and if the output is neither
    a terminal nor a notebook. ``TQDM_DISABLE`` is not enough: the bar of notebooks ignores it.

    Parameters
    ----------
    items
        Items to iterate over.
    text
        Text before the bar.
    total
        Number of items, if ``len(items)`` is not known.
    """
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    silent = os.environ.get("COURSE_PROGRESS") == "0" or not watched
    return tqdm(items, desc=text, total=total, leave=False, disable=silent)
