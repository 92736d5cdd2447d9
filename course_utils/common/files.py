"""Files that are complete or absent: hashing, and writing to a temporary file before renaming."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from course_utils.common.errors import CourseError


def write_record(path: Path, record: dict, page: str) -> None:
    """Write a record as JSON to `path`, and a Markdown page for readers beside it, with the same name and ``.md``.

    If one of them cannot be written a :class:`CourseError` is raised; what was there before is untouched.
    """
    for place, text in (
        (path, json.dumps(record, indent=1, ensure_ascii=False) + "\n"),
        (path.with_suffix(".md"), page),
    ):
        with written_whole(place) as beside:
            beside.write_text(text, encoding="utf-8")


def put_between(path: Path, start: str, end: str, section: str) -> None:
    """Replace the text of a file from one marker to another by a section with both markers in it.

    If a marker is missing a :class:`CourseError` is raised; the file is unchanged then.
    """
    text = path.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise CourseError(f"{path} has no place for the results: it needs the lines {start} and {end}.")
    with written_whole(path) as beside:
        beside.write_text(text.partition(start)[0] + section + text.partition(end)[2], encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; that file becomes `path` only when the block ends without an error.

    A reader of `path` sees the old file or the new one, never half of one, even if the writer is killed. The folder of
    `path` is made. The yielded file lies in it too, where renaming is one step. If the disk is full or the folder
    cannot be written to a :class:`CourseError` is raised; `path` is unchanged then.
    """
    path = Path(path)
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile.mkstemp: its files are readable for their owner alone, and renaming keeps that.
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        fresh.touch(exist_ok=False)
        beside = fresh
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise CourseError(
            f"{path} could not be written ({error.strerror or error}). What was there before is untouched. Free some "
            "space, or choose a folder that you may write to."
        ) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
