"""The error that the course raises on purpose, and warnings that point at the reader's own line."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parents[1])


class CourseError(ValueError):
    """The error for input that cannot be used; its message says what was given, what is allowed, and what to do.

    The ``course`` command prints such an error as one line, without a traceback.
    """


def warn(message: str) -> None:
    """Warn at the line outside this package that led here: that is the line a reader can change."""
    frame, level = inspect.currentframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
