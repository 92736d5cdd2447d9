"""One progress bar for everything, and one switch that turns it off."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, text: str, total: int | None = None) -> tqdm:
    """Iterate over `items` and show how far it is; the bar goes away at the end.

    Nothing is shown with ``COURSE_PROGRESS=0`` (so that stored notebooks hold results, not bars) and where nobody
    looks: output that is neither a terminal nor a notebook. ``TQDM_DISABLE`` would not do, it does not reach the
    notebook's bar.

    Parameters
    ----------
    items
        What to iterate over.
    text
        Stands before the bar.
    total
        How many items, when ``len(items)`` does not tell.
    """
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    silent = os.environ.get("COURSE_PROGRESS") == "0" or not watched
    return tqdm(items, desc=text, total=total, leave=False, disable=silent)
