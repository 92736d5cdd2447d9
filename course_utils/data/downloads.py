"""Fetch an archive once, unpack it safely, and check every file against a list of SHA-256 sums.

An archive from the network may be cut short, replaced by a login page, or made to write outside its folder. So it is
unpacked into a scratch folder and compared with a manifest that is part of the package; only a complete folder gets its
final name. A run that is interrupted, or that meets a full disk, leaves nothing half-done behind.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch
from requests.exceptions import RequestException

from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of

MAX_UNPACKED_BYTES = 500_000_000
MAX_UNPACKED_FILES = 20_000
# What Windows, macOS, network disks, Android, Linux and Python put beside the files of a reader, in small letters; most
# of the rest (.git, .DS_Store, .thumbnails, .ipynb_checkpoints) begins with a dot.
SYSTEM_NAMES = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        *("__macosx", "icon\r", "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "lost.dir", "lost+found"),
        *("__pycache__", "thumbnails", "_thumbnails", "_thumbs"),
    )
)


@dataclass(frozen=True)
class Manifest:
    """The contents that an archive must have, file by file.

    Parameters
    ----------
    url, sha256
        Address of the archive, and its SHA-256.
    folder
        The one folder in the archive that holds everything.
    credit
        Origin and terms of the data.
    files
        Path inside ``folder``, with ``/`` on every system → SHA-256.
    quarantine
        Files that belong to the archive but not to the data set: path → ``sha256`` and ``reason``.
    """

    name: str
    url: str
    sha256: str
    folder: str
    credit: str
    files: dict[str, str]
    quarantine: dict[str, dict[str, str]]

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def all_files(self) -> dict[str, str]:
        """Path → SHA-256 of every file that the archive must hold, quarantined ones too."""
        return self.files | {path: entry["sha256"] for path, entry in self.quarantine.items()}


def read_manifest(name: str) -> Manifest:
    """Return the manifest of a data set from the package."""
    entries = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return Manifest(**{field: entries[field] for field in Manifest.__dataclass_fields__})


def fetch(manifest: Manifest, cache: Path, mirror: Path | None = None) -> Path:
    """Return a folder that holds exactly the files of the manifest.

    These are tried in turn: the folder made last time in ``cache``; ``mirror`` (an unpacked folder, or the archive); an
    archive in ``cache``; the manifest's address.

    Parameters
    ----------
    cache
        Folder for the archive and the unpacked folder; made when needed.
    mirror
        Folder that is searched before a download and never written to, or None.

    Raises
    ------
    CourseError
        If an archive or folder does not hold what the manifest says, if nothing was found and the network is out of
        reach, or if the disk is full or read-only.
    """
    target = cache / manifest.folder
    try:
        if target.is_dir() and not differences(target, manifest):
            return target
        if mirror is not None and (mirror / manifest.folder).is_dir():
            _require_intact(mirror / manifest.folder, manifest, mirror / manifest.folder)
            return mirror / manifest.folder
        cache.mkdir(parents=True, exist_ok=True)
        for place in (mirror, cache):
            if place is not None and (place / manifest.archive).is_file():
                return _install(place / manifest.archive, manifest, target)
        return _install(_download(manifest, cache, mirror), manifest, target)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise CourseError(
            f"{cache} cannot be read or written: {reason}. Make room there, or set COURSE_CACHE to a folder that you "
            "may write to. Nothing half-done was left behind."
        ) from error


def differences(folder: Path, manifest: Manifest) -> list[str]:
    """Return one line per missing, unknown or changed file of a folder; hidden files are not counted."""
    expected = manifest.all_files
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = {name for name in found if not is_hidden(name)}
    changed = sorted(name for name in expected.keys() & found if sha256_of(folder / name) != expected[name])
    return [
        *(f"{name} is missing" for name in sorted(expected.keys() - found)),
        *(f"{name} does not belong there" for name in sorted(found - expected.keys())),
        *(f"{name} has other contents" for name in changed),
    ]


def unpack_zip(
    archive: Path, folder: Path, *, max_bytes: int = MAX_UNPACKED_BYTES, max_files: int = MAX_UNPACKED_FILES
) -> None:
    """Unpack a zip file into a folder, and nowhere else; hidden files and macOS's ``__MACOSX`` are left out.

    Parameters
    ----------
    archive, folder
        The zip file, and an existing folder.
    max_bytes, max_files
        Largest size and number of files, checked before anything is written: a small archive cannot fill the disk.

    Raises
    ------
    CourseError
        If the file is no zip, is damaged or encrypted, holds a link or a path that leads out of ``folder``, or is
        larger unpacked than the limits.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = [member for member in source.infolist() if not member.is_dir()]
            for member in members:
                _require_harmless(member, archive)
            size = sum(member.file_size for member in members)
            if size > max_bytes or len(members) > max_files:
                raise CourseError(
                    f"{archive} would unpack to {len(members)} files and {size / 1e6:.0f} MB; at most {max_files} "
                    f"files and {max_bytes / 1e6:.0f} MB are expected. It is not the archive that it should be."
                )
            for member in members:
                if not is_hidden(member.filename):
                    path = folder / PurePosixPath(member.filename)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # "x": two members of the same name (on Windows also if only their case differs) are an error.
                    with source.open(member) as reader, path.open("xb") as writer:
                        shutil.copyfileobj(reader, writer)
    except FileExistsError as error:
        raise CourseError(f"{archive} holds two files of the same name; do not use this archive.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise CourseError(f"{archive} is damaged or no zip file ({error}). Delete it and fetch it again.") from error


def is_hidden(name: str) -> bool:
    """True if a path with ``/`` was left behind by a system or program, such as ``.DS_Store`` or ``@eaDir/x.jpg``."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in PurePosixPath(name).parts)


def _require_harmless(member: zipfile.ZipInfo, archive: Path) -> None:
    name = member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)  # the Unix mode; 0 where the archive was made without one
    if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
        fault = f"a path that leads out of its folder, {name!r}"
    elif kind not in (0, stat.S_IFREG):
        fault = f"a link or special file, {name!r}"
    elif member.flag_bits & 0x1:
        fault = f"an encrypted file, {name!r}"
    else:
        return
    raise CourseError(f"{archive} holds {fault}. Nothing was unpacked; do not use this archive.")


def _install(archive: Path, manifest: Manifest, target: Path) -> Path:
    prefix = f".{manifest.name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as scratch:
        unpacked = Path(scratch, manifest.folder)
        try:
            unpack_zip(archive, Path(scratch))
            _require_intact(unpacked, manifest, archive)
            if target.exists() and differences(target, manifest):
                os.replace(target, Path(scratch, "outdated"))
            os.replace(unpacked, target)
        except OSError:
            # Another process may have been quicker. Its folder is as good as ours, if it is complete.
            if not target.is_dir() or differences(target, manifest):
                raise
    return target


def _require_intact(folder: Path, manifest: Manifest, origin: Path) -> None:
    lines = differences(folder, manifest)
    if lines:
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise CourseError(
            f"{origin} is not the {manifest.name} data that the course knows: {'; '.join(lines[:3])}{more}. Delete it "
            f"and fetch {manifest.url} again; COURSE_DATASET=pets needs no download."
        )


def _download(manifest: Manifest, cache: Path, mirror: Path | None) -> Path:
    web, sha256 = pooch.HTTPDownloader(timeout=30), f"sha256:{manifest.sha256}"
    try:
        return Path(pooch.retrieve(manifest.url, sha256, manifest.archive, path=cache, downloader=web))
    except RequestException as error:
        looked = f" ({mirror} has neither)" if mirror is not None else ""
        raise CourseError(
            f"The {manifest.name} data is not on this machine and {manifest.url} cannot be reached "
            f"({type(error).__name__}). Fetch that file elsewhere and put it into {cache}, or set COURSE_DATA_MIRROR "
            f"to a folder that holds {manifest.archive} or an unpacked {manifest.folder}{looked}. "
            "COURSE_DATASET=pets, the default, needs no download."
        ) from error
    except ValueError as error:
        raise CourseError(
            f"What {manifest.url} sent is not the known archive: {error} Try again later, or from another network (a "
            "login page is often what comes instead). COURSE_DATASET=pets, the default, needs no download."
        ) from error
