"""Computed data on disk, in folders that appear whole or not at all and are found by everything they depend on.

Activations (:mod:`course_utils.engine.activation_cache`) and decoded pictures (:mod:`course_utils.engine.pixel_store`)
are artifacts: folders of two files, the payload ``data.bin``, and ``manifest.json`` with the key, its fingerprint, a
summary for ``course cache``, and checksums of both files.

The key holds everything that the payload depends on. Its hash, the fingerprint, is part of the folder's name, so an
artifact that is out of date is never found. An artifact whose checksums do not fit is computed again. The writer fills
a hidden folder, the draft, and renames it at the end. It holds a lock meanwhile: a second process waits for it, and a
draft without a lock was left by a writer that was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from course_utils.common.errors import CourseError
from course_utils.common.files import is_full, sha256_of

DATA_FILE, MANIFEST_FILE, DRAFT = "data.bin", "manifest.json", ".partial"
SPARE_BYTES = 20_000_000  # left free on the disk
PLACE = "COURSE_CACHE (for activations alone COURSE_ACTIVATIONS) to a folder on another disk that you may write to"
ADVICE = f"Free some space (`course cache` lists what is there), or set {PLACE}"

Notify = Callable[[str], None]


class Damaged(Exception):
    """A folder that should be an artifact and cannot be used; the message is the reason."""


def print_to_stderr(line: str) -> None:
    """Print a line to stderr: the usual `notify`."""
    print(line, file=sys.stderr)


def fingerprint(key: Any) -> str:
    """Return the SHA-256 of plain data as 64 hexadecimal digits, whatever the order in its dictionaries."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def lock_of(folder: Path) -> FileLock:
    """Return the lock that the writer of an artifact holds."""
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk where a folder is, or would be made."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def read_manifest(folder: Path, *, thorough: bool) -> dict[str, Any]:
    """Return the content of a manifest; Damaged if a file is missing or changed (`thorough` reads every byte)."""
    data = folder / DATA_FILE
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        content = manifest["content"]
        if manifest["sha256"] != fingerprint(content):
            raise Damaged("its manifest was changed")
        if (size := data.stat().st_size) != content["bytes"]:
            raise Damaged(f"{DATA_FILE} has {size:,} bytes instead of {content['bytes']:,}")
        if thorough and sha256_of(data) != content["sha256"]:
            raise Damaged(f"bytes in {DATA_FILE} have changed")
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return content


@dataclass(frozen=True)
class Artifact:
    """One artifact on disk.

    ``content`` is that of its manifest, empty for a damaged one; ``problem`` is the reason why it cannot be used, empty
    for a good one; ``reused`` is False if it was computed just now.
    """

    folder: Path
    content: dict[str, Any]
    problem: str = ""
    reused: bool = True

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    @property
    def last_used(self) -> float:
        """Time of the last use, in seconds since 1970."""
        manifest = self.folder / MANIFEST_FILE
        return (manifest if manifest.exists() else self.folder).stat().st_mtime

    def remove(self) -> bool:
        """Remove the folder and return True, or False if it is being written, protected, or open (on Windows)."""
        with contextlib.suppress(OSError), lock_of(self.folder).acquire(timeout=0):  # Timeout is an OSError
            shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()


@dataclass
class DataWriter:
    """A payload that is being written, with its size and checksum so far.

    Not a memory map: on a full disk a write is an error, while a page of a map that cannot be stored kills the process.
    """

    file: BinaryIO
    size: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def write(self, data: Any) -> None:
        """Append bytes, or an array that lies in one piece."""
        data = memoryview(data).cast("B")
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)


Fill = Callable[[DataWriter], dict[str, Any]]


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts in the folder `root`, which is made with the first of them."""

    root: Path

    def folder(self, label: str, key: Any) -> Path:
        """Return the folder of an artifact, which ends in 16 of the 64 digits of its fingerprint."""
        return self.root / f"{label}-{fingerprint(key)[:16]}"

    def find_or_write(self, label: str, key: Any, fill: Fill, notify: Notify | None = None) -> Artifact:
        """Return the artifact with this key: the one on disk, or a new one.

        Parameters
        ----------
        label, key
            Beginning of the folder's name, and everything that the payload depends on, as plain data.
        fill
            Function that writes the payload and returns plain data for the manifest, with columns of ``course cache``
            in ``"summary"``.
        notify
            Called with a line about damage or a wait. None prints to stderr.

        Raises
        ------
        CourseError
            If the disk is full or the folder cannot be written to. The draft is removed after any error.
        """
        folder, notify = self.folder(label, key), notify or print_to_stderr
        with contextlib.suppress(Damaged):  # reported below, by the process that holds the lock
            if found := _find(folder, key):
                return found
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _acquired(folder, notify):
                try:
                    found = _find(folder, key)
                except Damaged as problem:
                    notify(f"The cache {folder.name} is damaged ({problem}); it is computed anew.")
                    found = None
                if not found:
                    self.remove_drafts(held=folder.name)
                    found = _write(folder, key, fill)
        except OSError as error:
            raise CourseError(
                f"The cache {folder.name} could not be written to {self.root}: {error.strerror or error}. Nothing "
                f"half-done is left. {ADVICE if is_full(error) else f'Set {PLACE}'}."
            ) from error
        return found

    def check_room(self, size: int, advice: str = "") -> None:
        """Raise a CourseError if `size` bytes do not fit on the disk; `advice` says how to need less."""
        free = free_bytes(self.root)
        if size + SPARE_BYTES > free:
            raise CourseError(
                f"The cache would take {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free in {self.root}. "
                f"{ADVICE}{advice}."
            )

    def artifacts(self, *, thorough: bool = False) -> list[Artifact]:
        """Return all artifacts, the one that was used last first; `thorough` reads every byte to find damage."""
        try:
            folders = [path for path in self.root.iterdir() if _is_artifact(path)] if self.root.is_dir() else []
            found = [_read(folder, thorough) for folder in folders]
            return sorted(found, key=lambda artifact: (-artifact.last_used, artifact.folder))
        except OSError as error:
            raise CourseError(f"{error.filename or self.root} cannot be read: {error.strerror or error}.") from error

    def remove_drafts(self, held: str | None = None) -> int:
        """Remove the drafts whose lock nobody holds, and those of `held`, the caller's own; return their number."""
        removed = 0
        for draft in self.root.glob(f".*{DRAFT}"):
            name = draft.name[1:].removesuffix(DRAFT).rpartition(".")[0]
            lock = lock_of(self.root / name)
            with contextlib.suppress(Timeout), contextlib.nullcontext() if name == held else lock.acquire(timeout=0):
                shutil.rmtree(draft, ignore_errors=True)
                removed += 1
        return removed


def _is_artifact(path: Path) -> bool:
    visible = not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
    return visible and any((path / name).is_file() for name in (MANIFEST_FILE, DATA_FILE))


def _read(folder: Path, thorough: bool) -> Artifact:
    try:
        return Artifact(folder, read_manifest(folder, thorough=thorough))
    except Damaged as problem:
        return Artifact(folder, {}, str(problem))


def _find(folder: Path, key: Any) -> Artifact | None:
    if not folder.is_dir():
        return None
    content = read_manifest(folder, thorough=True)
    if content["fingerprint"] != fingerprint(key):
        raise Damaged("its fingerprint is another one")
    with contextlib.suppress(OSError):  # the time of the last use; a read-only folder can be used without
        os.utime(folder / MANIFEST_FILE)
    return Artifact(folder, content)


def _acquired(folder: Path, notify: Notify) -> contextlib.AbstractContextManager:
    lock = lock_of(folder)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        notify(f"Another process is computing the cache {folder.name}: waiting for it.")
    return lock.acquire()


def _write(folder: Path, key: Any, fill: Fill) -> Artifact:
    start = time.perf_counter()
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{DRAFT}")
    try:
        draft.mkdir()
        with open(draft / DATA_FILE, "wb") as file:
            writer = DataWriter(file)
            content = {"fingerprint": fingerprint(key), "key": key} | fill(writer)
            _to_disk(file)
        content |= {"bytes": writer.size, "sha256": writer.sha256.hexdigest()}
        content["seconds"] = round(time.perf_counter() - start, 3)
        with open(draft / MANIFEST_FILE, "w", encoding="utf-8") as file:
            json.dump({"sha256": fingerprint(content), "content": content}, file, indent=1)
            _to_disk(file)
        if folder.exists():  # damaged, otherwise it would have been found
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Artifact(folder, content, reused=False)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
