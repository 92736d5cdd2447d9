"""The origin of a result: model, data, versions, machine and commit, as plain values that JSON can hold."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import accelerate
import numpy
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision import models
from torchvision.datasets import DatasetFolder

import course_utils
from course_utils.common.timm_weights import PREFIX as TIMM
from course_utils.data.samples import classes_of, labels_of
from course_utils.engine.fingerprints import describe_modules
from course_utils.engine.written_transforms import one_line
from course_utils.families import family_of
from course_utils.mini.networks import BUILDERS
from course_utils.pretrained_models import (
    add_head_dropout,
    available_models,
    count_classes,
    feature_dim,
    head_dropout,
    last_layer,
    replace_head,
    without_memory,
)

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
        "outputs": count_classes(model),
    } | ({"head_dropout": dropout} if dropout else {})


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def model_name(model: nn.Module) -> str | None:
    """Return the name under which ``load_pretrained`` builds this network; None if there is no such name.

    It is the name of the builder whose network computes the same with the same weights, whoever built the model: every
    module has the same class and attributes, no hook, and no ``forward`` of its own. Further attributes do not matter.
    Dropout that a reader has put in front of the last layer (``fc = Sequential(Dropout, Linear)``) may come on top.
    """
    described, dropout, classes = describe_modules(model), tuple(head_dropout(model)), count_classes(model)
    for name in _candidates(model):
        if _holds(described, _described(name, classes, dropout)):
            return name
    return None


def _candidates(model: nn.Module) -> Iterator[str]:
    prefixes, body = family_of(model).prefixes, _count(model) - _count(last_layer(model))
    for name in available_models():
        # Building all EfficientNets takes seconds, even without memory. Their sizes are known without that.
        if name.startswith(prefixes) and body in (_body_parameters(name, feature_dim(model)) or [body]):
            yield name
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")  # what timm writes down
    if architecture:
        yield f"{TIMM}{architecture}"


def _body_parameters(name: str, features: int) -> list[int]:
    """Return the number of parameters in front of a last layer with or without biases; [] if it is not known."""
    if name.startswith("inception"):  # its entry counts the auxiliary head
        return []
    meta = next(iter(models.get_model_weights(name))).meta
    # torchvision's entries without a classifier count its parameters all the same.
    classes = len(meta["categories"] or []) or (0 if name in BUILDERS else 1000)
    known = classes and "num_params" in meta
    return [meta["num_params"] - inputs * classes for inputs in (features + 1, features)] if known else []


@functools.lru_cache(maxsize=32)
def _described(name: str, outputs: int, dropout: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    model = replace_head(without_memory(name), outputs)
    return describe_modules(add_head_dropout(model, dropout))


def _holds(described: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> bool:
    """Return True for the same modules, if each has all that is wanted of it."""
    facts = [(described.get(name, {}), wanted[name]) for name in wanted]
    return described.keys() == wanted.keys() and all(own.get(key) == of[key] for own, of in facts for key in of)


def describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return class and number of parameters of any network, and a digest of its layers, whatever its weights are.

    The digest has 16 hexadecimal digits over what every module does
    (:func:`~course_utils.engine.fingerprints.describe_modules`), and over name, shape and type of every tensor.
    """
    tensors = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in model.state_dict().items()]
    layers = hashlib.sha256(json.dumps([describe_modules(model), tensors]).encode()).hexdigest()[:16]
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
        ``pictures`` (their number), ``classes`` (name → number, which is None if the labels are not known; None if the
        names are not known either), ``transform`` (the printed one, or None) and ``fingerprint``: another value means
        other files, labels or another order.
    """
    labels, names, transform = labels_of(dataset), classes_of(dataset), transform_of(dataset)
    return {
        "pictures": len(dataset),
        "classes": dict.fromkeys(names) or None if labels is None else _counts(labels, names),
        "transform": None if transform is None else one_line(repr(transform)),
        "fingerprint": None if labels is None else _fingerprint(labels, files_of(dataset)),
    }


def _counts(labels: Sequence[int], classes: Sequence[str]) -> dict[str, int]:
    found = Counter(labels)
    names = classes or [str(i) for i in range(max(found, default=-1) + 1)]
    return {name: found[i] for i, name in enumerate(names)}


def _fingerprint(labels: Sequence[int], files: Sequence[Path]) -> str:
    """Return 16 hexadecimal digits over the labels and the last two parts of the paths; others differ by machine."""
    names = ["/".join(path.parts[-2:]) for path in files] or [""] * len(labels)
    text = "\n".join(f"{label} {name}" for label, name in zip(labels, names, strict=True))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def innermost(dataset: Any) -> Any:
    """Return the data set that a ``Subset`` is of, or the given one if it is none."""
    return innermost(dataset.dataset) if isinstance(dataset, Subset) else dataset


def transform_of(dataset: Any) -> Any:
    """Return what a data set, or the one that it is a part of, prepares its pictures with; None if it does not say."""
    return getattr(innermost(dataset), "transform", None)


def files_of(dataset: Any) -> list[Path]:
    """Return the file of every sample, of the course's data sets and torchvision's folders; [] if it is not known."""
    if isinstance(dataset, Subset):
        inner = files_of(dataset.dataset)
        return [inner[index] for index in dataset.indices] if inner else []
    paths = (
        [path for path, _ in dataset.samples] if isinstance(dataset, DatasetFolder) else getattr(dataset, "paths", ())
    )
    return [Path(path) for path in paths] if len(paths) == len(dataset) else []


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
