"""Facts for a bug report, and the faults of a set-up: ``course doctor``.

Each check is a generator of :class:`Line`. A check that fails is a finding, never a crash: that is why checks import
what may be broken, such as torch, themselves.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import course_utils
from course_tools.authoring.notebooks import PACKAGE, find_notebooks, run_notebook, write_notebook
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of

GIB = 2**30
AGAIN = "install again: delete the folder .venv and run `python3 start.py doctor`"


@dataclass(frozen=True)
class Line:
    """One finding: its subject, the facts, and the remedy if the course cannot work like that."""

    subject: str
    found: str
    todo: str = ""

    def __str__(self) -> str:
        line = f"{'PROBLEM' if self.todo else 'ok':<8}{self.subject:<11}{self.found}"
        return f"{line}\n{'':<19}-> {self.todo}" if self.todo else line


def main(root: Path) -> int:
    """Print each finding as soon as it is known; return 1 when something that the course needs is broken, else 0."""
    problems = 0
    for line in (line for check in CHECKS for line in findings(check, root)):
        print(line, flush=True)
        problems += bool(line.todo)
    print(f"\n{problems} problem{'s' if problems > 1 else ''} found." if problems else "\nEverything works.")
    return 1 if problems else 0


def findings(check: Callable[[Path], Iterator[Line]], root: Path) -> list[Line]:
    """Return the findings of a check; an error inside it is one too, with the error's own words."""
    subject = check.__name__.strip("_")
    try:
        return list(check(root))
    except CourseError as error:
        return [Line(subject, "not usable", str(error))]
    except Exception as error:
        return [Line(subject, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", AGAIN)]


def _course(root: Path) -> Iterator[Line]:
    yield Line("course", f"{course_utils.__version__}, {_commit(root)}, {len(find_notebooks(root))} notebooks")


def _commit(root: Path) -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        asked = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "git not available"
    return f"commit {asked.stdout.strip()}" if asked.returncode == 0 else "no git commit"


def _python(root: Path) -> Iterator[Line]:
    yield Line("python", f"{platform.python_version()} ({platform.python_implementation()}, {sys.prefix})")
    yield Line("system", platform.platform())


def _packages(root: Path) -> Iterator[Line]:
    versions, missing = [], []
    for requirement in metadata.requires("transfer-learning-course"):
        if "extra ==" in requirement:
            continue
        name = re.match(r"[\w.-]+", requirement)[0]
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Line("packages", ", ".join(versions))
    if missing:
        yield Line("packages", f"missing: {', '.join(missing)}", AGAIN)


def _device(root: Path) -> Iterator[Line]:
    import torch

    names = [f"CPU, {torch.get_num_threads()} threads"]
    names += [f"CUDA {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    names += ["MPS"] if torch.backends.mps.is_available() else []
    yield Line("device", "; ".join(names))


def _memory(root: Path) -> Iterator[Line]:
    import psutil

    memory = psutil.virtual_memory()
    todo = "close other programs: the notebooks need about 2 GiB" if memory.available < 1.5 * GIB else ""
    yield Line("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free", todo)


def _disk(root: Path) -> Iterator[Line]:
    free = shutil.disk_usage(root).free
    yield Line("disk", f"{free / GIB:.1f} GiB free", "free some space: data sets need 1 GiB" if free < GIB else "")


def _settings(root: Path) -> Iterator[Line]:
    from course_utils.settings import load_settings

    settings = load_settings()
    yield Line("settings", str(settings))
    yield Line("data", _contents(settings.cache))
    if settings.mirror is not None:
        if settings.mirror.is_dir():
            yield Line("mirror", str(settings.mirror))
        else:
            yield Line("mirror", f"{settings.mirror} is no folder", "correct or unset COURSE_DATA_MIRROR")


def _downloads(root: Path) -> Iterator[Line]:
    import torch

    yield Line("weights", f"downloaded: {_contents(Path(torch.hub.get_dir()) / 'checkpoints')}")


def _contents(folder: Path) -> str:
    """Return the entries of a cache folder with their sizes, as text; a folder that is not there is empty."""
    sizes = []
    for entry in sorted(folder.glob("[!.]*")):
        size = sum(file.stat().st_size for file in (entry, *entry.rglob("*")) if file.is_file())
        sizes.append(f"{entry.name} {size / 1e6:.1f} MB")
    return f"{folder}: {', '.join(sizes)}" if sizes else f"nothing yet in {folder}"


def _embedded(root: Path) -> Iterator[Line]:
    """Compare the weights inside the package with the SHA-256 on the card beside each."""
    todo = "restore it: git checkout course_utils/mini/weights"
    cards = sorted((PACKAGE / "mini" / "weights").glob("*.json"))
    for card in cards:
        meta = json.loads(card.read_text(encoding="utf-8"))
        path = card.parent / meta["file"]
        if not path.exists():
            yield Line("embedded", f"{path.name} is missing", todo)
        elif sha256_of(path) != meta["sha256"]:
            yield Line("embedded", f"{path.name} is not the file that its card describes", todo)
        else:
            yield Line("embedded", f"{path.name} {path.stat().st_size / 1e6:.1f} MB, SHA-256 as in its card")
    if not cards:
        yield Line("embedded", "no weights in the package", todo)


def _notebook(root: Path) -> Iterator[Line]:
    """Run a notebook of two cells for real: kernel, plots and the package."""
    from nbformat.v4 import new_code_cell, new_notebook

    imports = "import torch, torchvision\nimport matplotlib.pyplot as plt\nimport course_utils"
    figure = "figure = plt.figure(figsize=(1, 1))\nprint(int(torch.ones(2, 2).sum()))\nplt.show()"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.ipynb"
        write_notebook(new_notebook(cells=[new_code_cell(imports), new_code_cell(figure)]), path)
        execution = run_notebook(path, environ=os.environ, timeout=120)
    if execution.failure:
        yield Line("notebook", f"a trial notebook failed: {execution.failure.error}", AGAIN)
        return
    shown = "display_data" in [output.output_type for output in execution.notebook.cells[1].outputs]
    todo = "" if shown else "unset MPLBACKEND, and look for a matplotlibrc file that sets a backend"
    yield Line("notebook", f"ran in {execution.seconds:.1f} s, {'with' if shown else 'without'} its figure", todo)


CHECKS = (_course, _python, _packages, _device, _memory, _disk, _settings, _downloads, _embedded, _notebook)
