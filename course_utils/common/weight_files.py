"""Files of weights: those that torchvision offers for download, and a reader's own."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import urllib.error
import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import WeightsEnum

from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of


class WeightsInPackage(WeightsEnum):
    """A torchvision weights entry whose file lies in an installed package instead of on a server.

    A subclass says where: ``path``, and ``remedy``, what to do if the file is missing or damaged. ``meta["sha256"]`` is
    the file's full SHA-256.
    """

    path: Path
    remedy: str

    def read(self, check_hash: bool = True) -> bytes:
        """Return the content of the file.

        Raises
        ------
        CourseError
            If the file is missing, or is not the one whose accuracy ``meta`` states (another SHA-256).
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise CourseError(
                f"The weights {self.path.name} cannot be read ({error.strerror}). {self.remedy}."
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if check_hash and found != self.meta["sha256"]:
            raise CourseError(
                f"{self.path.name} has SHA-256 {found}, its entry says {self.meta['sha256']}: the file is damaged or "
                f"was replaced. {self.remedy}."
            )
        return data


def weights_path(entry: WeightsEnum) -> Path:
    """Return the path at which torchvision keeps (or would keep) the file of an entry."""
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1]


def fetch_weights(entry: WeightsEnum) -> Path:
    """Return the path of a torchvision entry's file; download it if it is not there.

    torchvision writes the first eight digits of a file's SHA-256 into its name. They are compared whenever the file
    is used, not only after a download as ``torch.hub`` does.

    Raises
    ------
    CourseError
        Without a network, or when the check fails.
    """
    path = weights_path(entry)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), progress=False)
        except (urllib.error.URLError, OSError) as error:
            raise CourseError(
                f"The weights {entry} are not on this machine and could not be downloaded ({error}). Fetch "
                f"{entry.url} with another machine and save it as {path}; or set COURSE_WEIGHTS=lite to work with "
                "ImageNet weights that are installed with the course, or COURSE_WEIGHTS=mini for its embedded ones."
            ) from error
    wanted = path.stem.rpartition("-")[2]
    if os.environ.get("COURSE_UNVERIFIED_WEIGHTS") != "1" and not (found := sha256_of(path)).startswith(wanted):
        raise CourseError(
            f"{path} has SHA-256 {found}, its name says that it begins with {wanted}: the file is damaged or another "
            "one. Delete it and run again to download it anew. (COURSE_UNVERIFIED_WEIGHTS=1 uses it all the same.)"
        )
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of your own.

    Parameters
    ----------
    path
        ``.safetensors``, or a file of ``torch.save``: a state dict, or one nested under ``state_dict`` or ``model``.
        Prefixes of DataParallel and DDP (``module.``) and of torch.compile (``_orig_mod.``) are removed.

    Raises
    ------
    CourseError
        If there is no such file, it is damaged, holds no state dict, or holds Python objects beside tensors: they are
        not unpickled, because that can run foreign code.
    """
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"There is no checkpoint {path}. Give the path of a .safetensors or .pt file.")
    content = _read_tensors(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        re.sub(r"^((module|_orig_mod)\.)+", "", str(name)): value
        for name, value in content.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise CourseError(f"{path} holds no tensors by name; found: {', '.join(map(str, content)) or 'nothing'}.")
    return tensors


def _read_tensors(path: Path) -> dict:
    with path.open("rb") as file:
        start = file.read(200)
    if found := _something_else(path, start):
        raise CourseError(f"{path} holds no weights: it is {found}.")
    try:
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CourseError(
            f"{path} is no checkpoint, or holds more than tensors. Unpickling foreign objects can run foreign code, so "
            "it is not loaded. On the machine that wrote it: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a text file makes torch.load raise KeyError, a flipped byte a dozen other errors
        raise CourseError(f"{path} cannot be read: it is damaged or incomplete ({error}). Copy it again.") from error
    if not isinstance(content, dict):
        raise CourseError(f"{path} holds a {type(content).__name__}, a state dict (name → tensor) is needed.")
    return content


def _something_else(path: Path, start: bytes) -> str:
    """Return what is often stored under the name of weights by mistake, and the way to the weights; "" otherwise."""
    if not start:
        return "empty (0 bytes). Download or copy it again"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, which a server sent instead. Open its address in a browser and download the file from there"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file that it stands for. Run git lfs pull in its repository"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):  # torch's own files are ZIP archives too
            return f"a ZIP archive of {', '.join(names[:3]) or 'nothing'}. Unpack it, and give the file of weights"
    return ""


def own_part(given: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Return the part of a file's tensors that has the names `wanted`; everything where no part, or several, have them.

    What holds a network as an attribute, such as a LightningModule, stores ``conv1.weight`` as ``model.conv1.weight``.
    """
    first = next(iter(wanted))
    prefixes = {key.removesuffix(first) for key in given if key.endswith(f".{first}")}
    needed = [key for key in wanted if not key.endswith("num_batches_tracked")]
    fitting = [prefix for prefix in prefixes if all(prefix + key in given for key in needed)]
    if len(fitting) != 1 or first in given:
        return given
    return {key.removeprefix(fitting[0]): value for key, value in given.items() if key.startswith(fitting[0])}


def check_fit(name: str, path: Path, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raise :class:`CourseError` unless the file's state dict `given` has the tensors of the network's, `wanted`."""
    problems = {
        # Old checkpoints do not count batches; torch fills that in.
        "missing": [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": [
            f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in wanted
            if key in given and given[key].shape != wanted[key].shape
        ],
    }
    if text := listed(problems):
        raise CourseError(f"{path} does not fit {name}. {text}. Was it saved from another architecture?")


def listed(problems: dict[str, list[str]]) -> str:
    """Return problems and the tensors that have them as text, at most eight of each."""
    return "; ".join(
        f"{problem}: {', '.join(names[:8])}" + (f", … and {len(names) - 8} more" if len(names) > 8 else "")
        for problem, names in problems.items()
        if names
    )
