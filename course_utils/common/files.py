r"""Files that are complete or absent: hashing, names, and writing to a temporary file before renaming.

A name that is not UTF-8, such as ``caf\xe9`` from an old archive, reaches Python with a lone surrogate for each byte
that cannot be read, and no UTF-8 can hold that. What :func:`write_text` writes, and what commands print, has
``caf\udce9`` in its place; JSON reads that back as the very same name.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from course_utils.common.errors import CourseError


def write_record(path: Path, record: dict, page: str) -> None:
    """Write a record as JSON to `path`, and a Markdown page for readers beside it, with the same name and ``.md``.

    If one of them cannot be written a :class:`CourseError` is raised; what was there before is untouched.
    """
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_text(path.with_suffix(".md"), page)


def put_between(path: Path, start: str, end: str, section: str) -> None:
    """Replace the text of a file from one marker to another by a section with both markers in it.

    If a marker is missing a :class:`CourseError` is raised; the file is unchanged then.
    """
    text = path.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise CourseError(f"{path} has no place for the results: it needs the lines {start} and {end}.")
    write_text(path, text.partition(start)[0] + section + text.partition(end)[2])


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all as by :func:`written_whole`, with Unix ends of lines everywhere."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV for spreadsheets: with the mark by which Excel knows UTF-8, and without formulas.

    A spreadsheet computes a cell that begins with ``=``, ``+``, ``-`` or ``@``, even if it came from the name of a file
    (https://owasp.org/www-community/attacks/CSV_Injection). Such a text gets an apostrophe in front.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_no_formula(cell) for cell in row] for row in rows)
    write_text(path, f"\N{BYTE ORDER MARK}{table.getvalue()}")


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def names_from_shared_folder(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of files from the deepest folder that all of them lie in, with ``/`` on every system."""
    try:
        shared = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # no files, two drives, or absolute paths among relative ones: there is no such folder
        return tuple(path.as_posix() for path in paths)
    return tuple(path.relative_to(shared).as_posix() for path in paths)


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
        way_out = "Free some space" if is_full(error) else "Choose a folder that you may write to"
        raise CourseError(
            f"{path} could not be written ({error.strerror or error}). What was there before is untouched. {way_out}."
        ) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """True if an error says that a disk, or the reader's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
