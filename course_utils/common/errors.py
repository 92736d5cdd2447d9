"""The one error type that the course raises on purpose."""

from __future__ import annotations


class CourseError(ValueError):
    """The error for input that cannot be used; its message says what was given, what is allowed, and what to do.

    The ``course`` command prints such an error as one line, without a traceback.
    """
