"""See which activations are cached, how much room they take, and clear them.

``course cache`` lists them with what they were made of, ``course cache --clear NAME`` removes one,
``course cache --clear`` all. Nothing is lost but time: what is missing is computed again when it is needed.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from course_utils.activation_cache import (
    ARRAY_FILE,
    MANIFEST_FILE,
    Damaged,
    caches_root,
    checked,
    read_manifest,
    remove_leftovers,
    unused,
)
from course_utils.errors import CourseError
from course_utils.tables import text_table

COLUMNS = ("name", "in front of", "pictures", "views", "numbers", "MB", "last used", "status")


@dataclass(frozen=True)
class CacheRecord:
    """One folder of cached activations.

    Parameters
    ----------
    folder
        Where it is.
    content
        What its manifest holds; empty for a damaged one.
    problem
        Why it cannot be used; empty for a good one.
    """

    folder: Path
    content: dict[str, Any]
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes that the folder takes."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @property
    def used(self) -> float:
        """When it was last of use, in seconds since 1970."""
        path = self.folder / MANIFEST_FILE
        return (path if path.exists() else self.folder).stat().st_mtime

    def row(self) -> list[object]:
        """For the table."""
        day = f"{datetime.fromtimestamp(self.used).astimezone():%Y-%m-%d %H:%M}"
        if self.problem:
            return [self.folder.name, *[None] * 4, f"{self.size / 1e6:.1f}", day, f"damaged: {self.problem}"]
        views, pictures, *_ = self.content["shape"]
        about = [self.content["border"], pictures, views, self.content["dtype"]]
        return [self.folder.name, *about, f"{self.size / 1e6:.1f}", day, "good"]


def list_caches(root: Path | None = None, thorough: bool = False) -> list[CacheRecord]:
    """All caches, the one that was used last first.

    Parameters
    ----------
    root
        Folder of caches; None for the course's own.
    thorough
        Read every byte and compare the checksums; otherwise the manifest and the size of the array have to be right.

    Raises
    ------
    CourseError
        If the folder is there and cannot be read.
    """
    root = caches_root() if root is None else Path(root)
    try:
        folders = [path for path in root.iterdir() if _is_cache(path)] if root.is_dir() else []
        records = [_read(folder, thorough) for folder in folders]
        return sorted(records, key=lambda record: (-record.used, record.folder.name))
    except OSError as error:
        raise CourseError(f"The folder of caches {root} cannot be read: {error.strerror or error}.") from error


def _is_cache(path: Path) -> bool:
    # A folder that holds neither file is not ours: it is neither listed nor removed.
    named = not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
    return named and ((path / MANIFEST_FILE).is_file() or (path / ARRAY_FILE).is_file())


def _read(folder: Path, thorough: bool) -> CacheRecord:
    try:
        return CacheRecord(folder, (checked if thorough else read_manifest)(folder))
    except Damaged as problem:
        return CacheRecord(folder, {}, str(problem))


def delete_cache(record: CacheRecord) -> bool:
    """Remove a cache, unless a process is computing it just now.

    Returns
    -------
    bool
        Whether it is gone. On Windows a cache that another process has open stays.
    """
    with unused(record.folder.parent, record.folder.name) as free:
        if free:
            shutil.rmtree(record.folder, ignore_errors=True)
    return not record.folder.exists()


# --- course cache ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``course cache`` command; returns an exit code."""
    parser = argparse.ArgumentParser(prog="course cache", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="caches, or parts of their names; all without any")
    parser.add_argument("--clear", action="store_true", help="remove them instead of listing them")
    parser.add_argument("--unused", type=float, metavar="DAYS", help="only those that were of no use for so many days")
    parser.add_argument("--check", action="store_true", help="read every byte, to find damage")
    options = parser.parse_args(arguments)
    if options.unused is not None and options.unused < 0:
        parser.error("--unused takes a number of days, 30 for instance")
    root = caches_root()
    records = _chosen(list_caches(root, options.check), options.names, root)
    if options.unused is not None:
        records = [record for record in records if time.time() - record.used >= 86400 * options.unused]
    if options.clear:
        return _clear(records, root)
    total = sum(record.size for record in records)
    if not records:
        print(f"No cached activations in {root}. Training with frozen stages writes them there.")
        return 0
    print(text_table(COLUMNS, [record.row() for record in records]))
    print(f"\n{_count(records)}, {total / 1e6:,.1f} MB in {root}")
    return 0


def _count(records: list[CacheRecord]) -> str:
    return f"{len(records)} cache{'' if len(records) == 1 else 's'}"


def _chosen(records: list[CacheRecord], names: list[str], root: Path) -> list[CacheRecord]:
    chosen = []
    for name in names:
        found = [record for record in records if name in record.folder.name]
        if not found:
            near = difflib.get_close_matches(name, [record.folder.name for record in records], n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else " `course cache` lists all."
            raise CourseError(f"There is no cache {name!r} in {root}.{hint}")
        chosen += [record for record in found if record not in chosen]
    return chosen if names else records


def _clear(records: list[CacheRecord], root: Path) -> int:
    size = sum(record.size for record in records)
    kept = [record for record in records if not delete_cache(record)]
    size -= sum(record.size for record in kept)
    leftovers = remove_leftovers(root) if root.is_dir() else []
    print(
        f"{len(records) - len(kept)} of {_count(records)} removed, {size / 1e6:,.1f} MB"
        + (f"; {len(leftovers)} half-done of killed processes too" if leftovers else "")
    )
    for record in kept:
        print(f"{record.folder.name} is in use and stays")
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main())
