"""The data set ``pets``: pictures of Tigger, Misty and Neither in folders, drawn instead of downloaded.

:mod:`course_utils.data.artist` draws one picture; here they are written to disk, with a mask of the animal for each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from course_utils.common.errors import CourseError
from course_utils.common.files import is_full
from course_utils.data import animals, artist, canvas, scenes
from course_utils.data.artist import CLASSES, check_arguments, draw

DEFAULT_COUNTS = {"train": 40, "val": 20, "test": 60}
# A change in one of these may change the pictures: then they are drawn anew.
SOURCES = [*(module.__file__ for module in (canvas, animals, scenes, artist)), __file__]


def picture_seed(seed: int, split: str, label: str, index: int) -> int:
    """Return the seed of one picture of the data set; no two pictures of any split share one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{split}/{label}/{index}".encode()).digest()[:6], "big")


def write_pets(
    folder: Path | str,
    counts: Mapping[str, int] | None = None,
    seed: int = 0,
    size: int = 128,
    light: str = "day",
    style: str = "photo",
) -> Path:
    """Draw the data set into ``folder``, or find it there already; return the folder.

    Parameters
    ----------
    folder
        Folder for ``train``, ``val``, ``test`` (each with a folder per class), ``masks`` with the same tree, and
        ``manifest.json``. It is left alone if it is complete and the same arguments and code made it, else drawn anew.
        Two processes may call at once: one draws, the other waits.
    counts
        Pictures *per class* in each split; default ``{"train": 40, "val": 20, "test": 60}``.
    seed, size, light, style
        Same as in :func:`~course_utils.data.artist.draw`. The same seed in other light or style gives the same scenes.

    Raises
    ------
    CourseError
        If an argument is not allowed, the folder holds files that are not ours, or it cannot be written.
    """
    folder, counts = Path(folder), dict(DEFAULT_COUNTS if counts is None else counts)
    check_arguments(CLASSES[0], size, light, style)
    if not counts or set(counts) - set(DEFAULT_COUNTS) or min(counts.values()) < 0:
        raise CourseError(f"counts={counts} is not usable. Give pictures per class for train, val and test.")
    code = hashlib.sha256(b"".join(Path(source).read_bytes() for source in SOURCES)).hexdigest()
    arguments = {"counts": counts, "seed": seed, "size": size, "light": light, "style": style, "code": code}
    if is_complete(folder, arguments):
        return folder
    refuse_other_files(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not is_complete(folder, arguments):
                replace_folder(folder, arguments)
    except OSError as problem:
        way_out = "Free some disk space (the default set takes 20 MB), or choose" if is_full(problem) else "Choose"
        raise CourseError(
            f"The pets could not be written to {folder}: {problem.strerror or problem}. {way_out} a folder you may "
            "write to (COURSE_CACHE is where caches go)."
        ) from problem
    return folder


def is_complete(folder: Path, arguments: dict[str, Any]) -> bool:
    """True if ``folder`` holds every file of the set that these arguments make."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        return manifest["arguments"] == arguments and manifest["files"] == sizes
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_other_files(folder: Path) -> None:
    """Raise when ``folder`` holds anything that :func:`write_pets` did not write: it would be lost."""
    ours = re.compile(rf"manifest\.json|(masks/)?({'|'.join(DEFAULT_COUNTS)})/({'|'.join(CLASSES)})/\d+\.png")
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    other = next((name for name in files if not ours.fullmatch(name)), None)
    if other or folder.is_file():
        raise CourseError(f"{folder} already holds something else ({other or 'it is a file'}). Choose a new folder.")


def replace_folder(folder: Path, arguments: dict[str, Any]) -> None:
    """Draw into a folder beside it, then swap; drafts that a killed run left behind are deleted first."""
    prefix = f".{folder.name}-"
    for left_over in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        draw_all(new, arguments)
        if folder.exists():
            os.replace(folder, Path(scratch, "old"))
        os.replace(new, folder)


def draw_all(folder: Path, arguments: dict[str, Any]) -> None:
    """Draw all pictures and masks; write the manifest last."""
    sizes = {}
    look = {name: arguments[name] for name in ("size", "light", "style")}
    wanted = ((s, c, i) for s, count in arguments["counts"].items() for c in CLASSES for i in range(count))
    for split, label, i in wanted:
        drawing = draw(label, picture_seed(arguments["seed"], split, label, i), **look)
        name = f"{split}/{label}/{i:03d}.png"
        for sheet, path in ((drawing.image, folder / name), (drawing.mask, folder / "masks" / name)):
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path, compress_level=1)
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    manifest = json.dumps({"arguments": arguments, "files": sizes}, indent=1)
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")
