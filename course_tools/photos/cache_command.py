"""See what is cached, how much room it takes, and clear it.

``course cache`` lists the activations of frozen stages (:mod:`course_utils.engine.activation_cache`) and the decoded
pictures (:mod:`course_utils.engine.pixel_store`) with what they were made of, ``course cache --clear NAME`` removes
one, ``course cache --clear`` all. Nothing is lost but time: what is missing is computed again when it is needed.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from course_utils.common.errors import CourseError
from course_utils.common.tables import text_table
from course_utils.engine.activation_cache import (
    ARRAY_FILE,
    MANIFEST_FILE,
    Damaged,
    caches_root,
    checked,
    read_manifest,
    remove_leftovers,
    unused,
)
from course_utils.engine.pixel_store import CHOICE, PIXELS, read_store, stores_root

COLUMNS = ("name", "holds", "pictures", "views", "numbers", "MB", "last used", "status")


@dataclass(frozen=True)
class CacheRecord:
    """Something that was cached.

    Parameters
    ----------
    path
        Of a folder of activations, or of the manifest of stored pixels.
    content
        What its manifest holds; empty for a damaged one.
    problem
        Why it cannot be used; empty for a good one.
    """

    path: Path
    content: dict[str, Any]
    problem: str = ""

    @property
    def name(self) -> str:
        """By which the command knows it."""
        return self.path.name if self.activations else self.path.stem

    @property
    def activations(self) -> bool:
        """Whether it is activations rather than pictures."""
        return self.path.suffix != ".json"

    @property
    def files(self) -> list[Path]:
        """What it consists of, the manifest first where there is one."""
        if self.activations:
            return sorted((path for path in self.path.iterdir() if path.is_file()), key=_is_no_manifest)
        return [path for end in (".json", PIXELS, CHOICE) if (path := self.path.with_suffix(end)).exists()]

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def used(self) -> float:
        """When it was last of use, in seconds since 1970."""
        return (self.files or [self.path])[0].stat().st_mtime

    def row(self) -> list[object]:
        """For the table."""
        day = f"{datetime.fromtimestamp(self.used).astimezone():%Y-%m-%d %H:%M}"
        about, status = [None] * 4, f"damaged: {self.problem}"
        if not self.problem:
            about, status = self._about(), "good"
        return [self.name, *about, f"{self.size / 1e6:.1f}", day, status]

    def _about(self) -> list[object]:
        if not self.activations:
            return [f"pixels, {self.content['side']} the shorter side", len(self.content["sizes"]), None, "uint8"]
        views, pictures, *_ = self.content["shape"]
        return [f"activations in front of {self.content['border']}", pictures, views, self.content["dtype"]]

    def delete(self) -> bool:
        """Remove it, unless a process is computing it just now.

        Returns
        -------
        bool
            Whether it is gone. On Windows a cache that another process has open stays.
        """
        with unused(self.path.parent, self.name) as free:
            if free and self.activations:
                shutil.rmtree(self.path, ignore_errors=True)
            elif free:
                _remove(self.files)
        return not self.path.exists()


def _is_no_manifest(path: Path) -> bool:
    return path.name != MANIFEST_FILE


def _remove(files: Sequence[Path]) -> None:
    for path in files:  # the manifest first: pixels without one are no store
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def list_caches(root: Path | None = None, thorough: bool = False, pixels: Path | None = None) -> list[CacheRecord]:
    """All that is cached, the one that was used last first.

    Parameters
    ----------
    root
        Folder of activations; None for the course's own.
    thorough
        Read every byte and compare the checksums; otherwise the manifest and the size of the array have to be right.
    pixels
        Folder of stored pixels; None for the course's own.

    Raises
    ------
    CourseError
        If a folder is there and cannot be read.
    """
    root = caches_root() if root is None else Path(root)
    pixels = stores_root() if pixels is None else Path(pixels)
    try:
        folders = [path for path in root.iterdir() if _is_cache(path)] if root.is_dir() else []
        manifests = [path for path in pixels.glob("*.json") if not path.name.startswith(".")]
        records = [_read(path, thorough) for path in (*folders, *manifests)]
        return sorted(records, key=lambda record: (-record.used, record.name))
    except OSError as error:
        raise CourseError(f"{error.filename or root} cannot be read: {error.strerror or error}.") from error


def _is_cache(path: Path) -> bool:
    # A folder that holds neither file is not ours: it is neither listed nor removed.
    named = not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
    return named and ((path / MANIFEST_FILE).is_file() or (path / ARRAY_FILE).is_file())


def _read(path: Path, thorough: bool) -> CacheRecord:
    try:
        if path.suffix == ".json":
            return CacheRecord(path, read_store(path, thorough))
        return CacheRecord(path, (checked if thorough else read_manifest)(path))
    except Damaged as problem:
        return CacheRecord(path, {}, str(problem))


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
    places = sorted({str(record.path.parent) for record in records})
    print(f"\n{_count(records)}, {total / 1e6:,.1f} MB in {' and '.join(places)}")
    return 0


def _count(records: list[CacheRecord]) -> str:
    return f"{len(records)} cache{'' if len(records) == 1 else 's'}"


def _chosen(records: list[CacheRecord], names: list[str], root: Path) -> list[CacheRecord]:
    chosen = []
    for name in names:
        found = [record for record in records if name in record.name]
        if not found:
            near = difflib.get_close_matches(name, [record.name for record in records], n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else " `course cache` lists all."
            raise CourseError(f"There is no cache {name!r} in {root}.{hint}")
        chosen += [record for record in found if record not in chosen]
    return chosen if names else records


def _clear(records: list[CacheRecord], root: Path) -> int:
    size = sum(record.size for record in records)
    kept = [record for record in records if not record.delete()]
    size -= sum(record.size for record in kept)
    leftovers = remove_leftovers(root) if root.is_dir() else []
    print(
        f"{len(records) - len(kept)} of {_count(records)} removed, {size / 1e6:,.1f} MB"
        + (f"; {len(leftovers)} half-done of killed processes too" if leftovers else "")
    )
    for record in kept:
        print(f"{record.name} is in use and stays")
    return 1 if kept else 0
