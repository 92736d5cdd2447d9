"""Transforms as plain data: kept in the record of a run, compared on resuming, and built again without unpickling.

A transform of torchvision is its class and its attributes: numbers, text, enums, types of numbers, other transforms. A
row of them may be a ``Compose`` or an ``nn.Sequential``. Anything else, such as a function or an object of your own
class, is written as its name and a digest of its code and its values. Another digest means another behaviour; nothing
can be built from it.
"""

from __future__ import annotations

import enum
import importlib
import json
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from course_utils.common.errors import CourseError
from course_utils.engine.fingerprints import describe_behaviour, digest

HOME = "torchvision.transforms."
LARGEST_TENSOR = 16  # numbers; a mean or a matrix of colours is written in full


class CannotBuild(CourseError):
    """A record of a transform from which it cannot be built; the message is the reason."""


def as_plain(thing: Any) -> Any:
    """Return a transform, or anything in it, as plain data for JSON: equal data mean equal behaviour."""
    kind = type(thing)
    if thing is None or kind in (bool, int, float, str):
        return thing
    if isinstance(thing, np.bool_ | np.number):
        return thing.item()
    if isinstance(thing, torch.dtype):
        return {"dtype": str(thing).removeprefix("torch.")}
    if isinstance(thing, Tensor) and thing.numel() <= LARGEST_TENSOR:
        return {"tensor": thing.tolist()} | as_plain(thing.dtype)
    if kind is list:
        return list(map(as_plain, thing))
    if kind is tuple:
        return {"tuple": list(map(as_plain, thing))}
    if kind is dict and all(isinstance(key, str) for key in thing):
        return {"dict": {key: as_plain(value) for key, value in thing.items()}}
    if _is_known(kind):
        if isinstance(thing, enum.Enum):
            return {"enum": _path(kind), "name": thing.name}
        usual = vars(nn.Module()) if isinstance(thing, nn.Module) else {}
        own = {name: value for name, value in vars(thing).items() if name not in usual or value != usual[name]}
        return {"class": _path(kind)} | {name: as_plain(value) for name, value in own.items()}
    named = thing if isinstance(thing, types.FunctionType | type) else kind
    does = json.dumps(describe_behaviour(thing), sort_keys=True)
    return {"other": f"{named.__module__}.{named.__qualname__}", "digest": digest(does)[:16]}


def is_complete(plain: Any) -> bool:
    """Return True if plain data of :func:`as_plain` say everything, so that :func:`build` can build it."""
    if isinstance(plain, dict):
        return "other" not in plain and all(map(is_complete, plain.values()))
    return not isinstance(plain, list) or all(map(is_complete, plain))


def one_line(text: str) -> str:
    """Return a printed object without line breaks and addresses, which are others in every process."""
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", text).split())


def _is_known(kind: type) -> bool:
    """Return True for a class that is written by its attributes and built again: torchvision's, and a row of them."""
    return f"{kind.__module__}.".startswith(HOME) or kind is nn.Sequential


def _path(kind: type) -> str:
    """Return where a class is imported from, by its public name if it has one."""
    homes = (home for home in (v2, transforms) if getattr(home, kind.__name__, None) is kind)
    return f"{next(homes, sys.modules[kind.__module__]).__name__}.{kind.__qualname__}"


# --- building ----------------------------------------------------------------------------------------------------


def build_transform(plain: Any) -> Callable[[Image.Image], Tensor]:
    """Return the transform that :func:`as_plain` was given, tried once: PIL RGB → tensor ``(3, H, W)``.

    Raises
    ------
    CannotBuild
        If a part of it is a function, or of a class that is not torchvision's; if the record is damaged, or was written
        with a torchvision that this one does not understand.
    """
    transform = build(plain)
    try:
        fits = transform(Image.new("RGB", (96, 80))).ndim == 3
    except Exception as error:  # whatever torchvision raises where an attribute is missing
        raise CannotBuild(f"what the record says stops with {type(error).__name__}: {error}") from error
    if not fits:
        raise CannotBuild("what the record says gives no tensor (3, H, W)")
    return transform


def build(plain: Any) -> Any:
    """Return what :func:`as_plain` was given; errors as in :func:`build_transform`."""
    if isinstance(plain, list):
        return list(map(build, plain))
    if not isinstance(plain, dict):
        return plain
    match plain:
        case {"other": str(name)}:
            raise CannotBuild(f"{name} is none of torchvision's transforms")
        case {"tuple": list(items)}:
            return tuple(map(build, items))
        case {"dict": dict(items)}:
            return {key: build(value) for key, value in items.items()}
        case {"tensor": numbers, **dtype}:
            return torch.tensor(numbers, dtype=build(dtype))
        case {"dtype": str(name)} if isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        case {"enum": str(path), "name": str(name)} if name in getattr(kind := _class(path), "__members__", ()):
            return kind[name]
        case {"class": str(path), **attributes}:
            thing = object.__new__(_class(path))
            if isinstance(thing, nn.Module):
                nn.Module.__init__(thing)
            vars(thing).update({name: build(value) for name, value in attributes.items()})
            return thing
    raise CannotBuild(f"this version cannot read {str(plain)[:60]}")


def _class(path: str) -> type:
    """Return a known class by its path; nothing outside of ``torchvision.transforms`` is imported or found."""
    if path == _path(nn.Sequential):
        return nn.Sequential
    module, _, name = path.rpartition(".")
    if f"{module}.".startswith(HOME):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
        if isinstance(found, type) and f"{found.__module__}.".startswith(HOME):
            return found
    raise CannotBuild(f"this torchvision has no {path}")
