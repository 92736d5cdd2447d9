"""The origin of a result: model, data, versions, machine and commit, as plain values that JSON can hold."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import accelerate
import numpy
import torch
import torchvision
from torch import Tensor, nn
from torchvision import models

import course_utils
from course_utils.data.samples import classes_of, labels_of
from course_utils.mini.networks import BUILDERS
from course_utils.pretrained_models import add_head_dropout, available_models, family_of, head_dropout, last_layer

GIT_SECONDS = 5


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return name (see :func:`model_name`), class, family, number of parameters and outputs of a network.

    A head of the reader's own has its ``head_dropout`` too.
    """
    dropout = head_dropout(model)
    return {
        "name": model_name(model),
        "class": type(model).__name__,
        "family": family_of(model).name,
        "parameters": _count(model),
        "outputs": last_layer(model).out_features,
    } | ({"head_dropout": dropout} if dropout else {})


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def model_name(model: nn.Module) -> str | None:
    """Return the name under which ``load_pretrained`` builds this network; None if there is no such name.

    Dropout that a reader has put in front of the last layer (``fc = Sequential(Dropout, Linear)``) may come on top.
    It is the name of the builder whose network prints the same, line by line: that compares every layer with its sizes,
    strides and dropout, whoever built the model.
    """
    head, printed, dropout = last_layer(model), str(model), tuple(head_dropout(model))
    body = _count(model) - _count(head)
    for name in available_models():
        # Building all EfficientNets takes seconds, even without memory. Their sizes are known without that.
        fits = name.startswith(family_of(model).prefixes) and _body_parameters(name, head.in_features) in (None, body)
        if fits and _printed(name, head.out_features, dropout) == printed:
            return name
    return None


def _body_parameters(name: str, features: int) -> int | None:
    """Return the number of parameters in front of the last layer by the weights entry; None if unknown."""
    meta = next(iter(models.get_model_weights(name))).meta
    # torchvision's entries without a classifier count its parameters all the same.
    classes = len(meta["categories"] or []) or (0 if name in BUILDERS else 1000)
    return meta["num_params"] - (features + 1) * classes if classes and "num_params" in meta else None


@functools.lru_cache(maxsize=32)
def _printed(name: str, outputs: int, dropout: tuple[float, ...]) -> str:
    with torch.device("meta"):  # no memory, no random numbers
        return str(add_head_dropout(models.get_model(name, weights=None, num_classes=outputs), dropout))


def describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return class and number of parameters of any network, and a digest of its layers, whatever its weights are.

    The digest has 16 hexadecimal digits over the printed model, and over name, shape and type of every tensor.
    """
    lines = [_one_line(str(model))]
    lines += [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in model.state_dict().items()]
    layers = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return {"class": type(model).__name__, "parameters": _count(model), "layers": layers}


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits over names and values of a state dict, the same on every device, in any layout."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def describe_data(dataset: Sized) -> dict[str, Any]:
    """Return a description of any data set, without opening a picture, as far as it has the attributes for it.

    Returns
    -------
    dict
        ``pictures`` (their number), ``classes`` (name → number, None if the labels are not known), ``transform`` (the
        printed one, or None) and ``fingerprint``: another value means other pictures, labels or another order.
    """
    labels, transform = labels_of(dataset), getattr(dataset, "transform", None)
    return {
        "pictures": len(dataset),
        "classes": None if labels is None else _counts(labels, classes_of(dataset)),
        "transform": None if transform is None else _one_line(repr(transform)),
        "fingerprint": None if labels is None else _fingerprint(labels, getattr(dataset, "paths", ())),
    }


def _counts(labels: Sequence[int], classes: Sequence[str]) -> dict[str, int]:
    found = Counter(labels)
    names = classes or [str(i) for i in range(max(found, default=-1) + 1)]
    return {name: found[i] for i, name in enumerate(names)}


def _one_line(text: str) -> str:
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", text).split())  # an address is another one in every process


def _fingerprint(labels: Any, paths: Any) -> str:
    """Return 16 hexadecimal digits over the labels and the last two parts of the paths; others differ by machine."""
    names = ["/".join(Path(path).parts[-2:]) for path in paths] or [""] * len(labels)
    text = "\n".join(f"{label} {name}" for label, name in zip(labels, names, strict=False))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, the course, and the libraries that compute."""
    libraries = {"torch": torch, "torchvision": torchvision, "accelerate": accelerate, "numpy": numpy}
    return {"python": platform.python_version(), "course_utils": course_utils.__version__} | {
        name: str(library.__version__) for name, library in libraries.items()
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return operating system, device and its name, and number of CPU threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    about = {"platform": platform.platform(), "device": device.type, "device_name": name}
    return about | {"threads": torch.get_num_threads()}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the commit that a folder (None: the current one) is at.

    Returns
    -------
    dict or None
        ``commit`` (None before the first one) and ``dirty``: True if a file that git knows has uncommitted changes.
        None where there is no git, no repository, or no answer within a few seconds.
    """
    # Git must not lock, refresh or start anything for this: somebody may be in the middle of a commit.
    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        asked = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = asked.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    if asked.returncode != 0 or commit is None:
        return None
    dirty = any(not line.startswith("#") for line in lines)
    return {"commit": None if commit == "(initial)" else commit, "dirty": dirty}
