"""What the commands share in reading their arguments. Standard library only, as in ``cli.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from course_utils.common.errors import CourseError


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line.

    argparse prints the whole usage first; the line that helps is then easily missed.
    """

    def error(self, message: str) -> NoReturn:
        """Print the line and leave with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def exit_code(work: Callable[[], int | None]) -> int:
    """Return the exit code of a command, and say in one line on stderr what stopped it.

    Parameters
    ----------
    work
        The command; it returns its own exit code, or None for 0.

    Returns
    -------
    int
        1 for a :class:`CourseError`, 130 for Ctrl-C, otherwise what `work` returns.
    """
    try:
        return work() or 0
    except CourseError as error:
        print(f"course: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncourse: stopped", file=sys.stderr)
        return 130


def at_least_one(text: str) -> int:
    """A whole number from 1 upwards, as argparse's ``type``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 upwards")
    return int(text)


def from_zero(text: str) -> int:
    """A whole number from 0 upwards, as argparse's ``type``."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 upwards")
    return int(text)
