"""Shared parts of the command lines: the parser, exit codes, and types of arguments.

Only the standard library is imported here, because ``course_tools/cli.py`` imports this module at its top.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from course_utils.common.errors import CourseError

INCOMPLETE = 3  # exit code where a part of what was given could not be used


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line; its sub-parsers are of the same class.

    argparse prints the whole usage before an error, and the line that helps is easily missed.
    """

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def exit_code(command: Callable[[], int | None]) -> int:
    r"""Return the exit code of a command, and print one line on stderr about an error that stopped it.

    It is 1 for a :class:`CourseError`, 130 for Ctrl-C, 141 when what reads the output has gone (``course … | head``),
    otherwise the result of `command`, with 0 for None. What a terminal's encoding lacks is printed as ``\u2192``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return command() or 0
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        if _is_read():
            raise
        return 141
    except CourseError as error:
        print(f"course: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncourse: stopped", file=sys.stderr)
        return 130


def _is_read() -> bool:
    """True if somebody reads stdout; where nobody does, let it lead nowhere, or Python would complain at its end."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def at_least_one(text: str) -> int:
    """Return the whole number from 1 upwards that `text` stands for; a ``type`` for ``add_argument``."""
    return _whole_number(text, 1)


def from_zero(text: str) -> int:
    """Return the whole number from 0 upwards that `text` stands for; a ``type`` for ``add_argument``."""
    return _whole_number(text, 0)


def _whole_number(text: str, smallest: int) -> int:
    if not text.isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest} upwards")
    return int(text)
