"""Keys of caches: descriptions of networks, transforms and data sets in which every change shows.

A cache that is out of date raises no error, it only gives wrong results. A network is what it computes: its modules are
described by their class (a class of the reader's by the code of its methods) and their attributes. Transforms of
torchvision and the course's own data sets are described without opening a picture. Anything else raises
:class:`CannotFingerprint`; samples of unknown origin have to be read and hashed.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import json
import os
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Dataset

import course_utils
from course_utils.common.errors import CourseError
from course_utils.common.state import generator_marks, generators_put_back
from course_utils.data import pictures
from course_utils.data.samples import as_pair, classes_of
from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.engine.sampling import spread_out
from course_utils.families import family_of

CHECKED_SAMPLES = 6  # number of samples that are fetched twice, to see if anything is random
LIBRARIES = frozenset({"torch", "torchvision", "PIL", "numpy", "course_utils", *sys.stdlib_module_names})
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
OWN_ATTRIBUTES = frozenset(vars(nn.Module()))  # what every module has: its tensors, parts, hooks and mode
# Attributes of a class that compute nothing. What ``__init__`` made of a module is described itself.
IDLE = frozenset({"__init__", "__annotate__", "__annotate_func__", "__repr__", "extra_repr", "_abc_impl"})


class CannotFingerprint(CourseError):
    """A thing whose behaviour cannot be read off, such as a function or an object of an unknown class."""


def digest(*parts: str | bytes | memoryview) -> str:
    """Return the SHA-256 of texts and bytes as 64 hexadecimal digits; ``"ab", "c"`` differs from ``"a", "bc"``."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha256.update(len(data).to_bytes(8, "little"))
        sha256.update(data)
    return sha256.hexdigest()


DECODER = digest(inspect.getsource(pictures))  # as it was imported: the file may be edited while this process runs


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decode, prepare and compute, and of the course."""
    return {part.__name__: str(part.__version__) for part in (PIL, torch, torchvision, course_utils)}


# --- transforms and networks -------------------------------------------------------------------------------------


def describe(thing: Any) -> Any:
    """Return a transform of torchvision as plain data: equal descriptions mean equal behaviour.

    Raises
    ------
    CannotFingerprint
        If a part of it is a function or an object of an unknown class.
    """
    return _Describer(code=False, strict=True)(thing)


def describe_modules(network: nn.Module, strict: bool = False) -> dict[str, dict[str, Any]]:
    """Return name → description of each module of a network, without the values of its parameters and buffers.

    Parameters
    ----------
    network
        Any network.
    strict
        False describes what the network computes alike on every machine; of an object that is not known, and of a list
        outside of a function that uses it, only the class. True adds versions of libraries and the values of tensors,
        and an object that is not known is an error.

    Returns
    -------
    dict
        ``"class"``, by its name for libraries, else by the code of its methods; ``"hooks"``; ``"replaced"``: attributes
        that hide one of the class, such as a ``forward`` of its own; and every other attribute by its name.

    Raises
    ------
    CannotFingerprint
        With `strict`, if the behaviour of a part cannot be read off.
    """
    return _Describer(code=True, strict=strict).modules(network)


def describe_behaviour(thing: Any) -> Any:
    """Return anything as plain data, by the code and the values that can be read off: other data mean other behaviour.

    Equal data need not mean equal behaviour: of an object of a library only its class is known.
    """
    return _Describer(code=True, strict=False)(thing)


@dataclass
class _Describer:
    """Description of things as plain data; `code` says whether functions and classes may be known by their code."""

    code: bool
    strict: bool
    seen: set[int] = field(default_factory=set)  # functions, classes and modules that were described already

    def __call__(self, thing: Any) -> Any:
        plain = (bool, int, float, complex, str, bytes, range, np.generic, torch.dtype, torch.device, type(...))
        if thing is None or isinstance(thing, plain):
            return f"{type(thing).__name__}:{thing!r}"
        if isinstance(thing, enum.Enum):
            return f"{type(thing).__qualname__}.{thing.name}"
        if isinstance(thing, (list, tuple)):
            return [type(thing).__name__, *map(self, thing)]
        if isinstance(thing, dict):
            return {json.dumps(self(key)): self(value) for key, value in thing.items()}
        if isinstance(thing, (set, frozenset)):  # in an order of their own in every process
            return ["set", *sorted(json.dumps(self(item)) for item in thing)]
        if isinstance(thing, Tensor):
            values = "meta" if thing.is_meta else digest(_bytes_of(thing))
            return [str(thing.dtype), list(thing.shape), values]
        if isinstance(thing, type) and _is_library(thing.__module__):
            return f"{thing.__module__}.{thing.__qualname__}{self._version(thing)}"
        described = self._by_code(thing) if self.code else None
        if described is None and type(thing).__module__.startswith("torchvision.transforms."):
            values = {name: self(value) for name, value in sorted(vars(thing).items())}
            described = {"type": self(type(thing))} | values
        if described is None and self.strict:
            raise CannotFingerprint(f"what {_named(thing)} does cannot be read off")
        return described or f"{type(thing).__module__}.{type(thing).__qualname__}"

    def modules(self, network: nn.Module) -> dict[str, dict[str, Any]]:
        """Return name → description of all modules."""
        return {name: self._module(module) for name, module in network.named_modules(remove_duplicate=False)}

    def _module(self, module: nn.Module) -> dict[str, Any]:
        kind = type(module)
        attributes = {name: value for name, value in vars(module).items() if name not in OWN_ATTRIBUTES}
        if not has_own_forward(module):  # accelerate leaves the method of the class in the object
            attributes.pop("forward", None)
        if not self.strict and _is_library(kind.__module__):  # private ones differ by version
            attributes = {name: value for name, value in attributes.items() if name[0] != "_"}
        replaced = {name: self(attributes.pop(name)) for name in sorted(attributes) if hasattr(kind, name)}
        hooks = [self(hook) for hooks in HOOKS for hook in getattr(module, hooks).values()]
        rest = {name: self(value) for name, value in sorted(attributes.items())}
        return {"class": self(kind), "hooks": hooks, "replaced": replaced} | rest

    def _by_code(self, thing: Any) -> Any:
        """Return the description of a function, class, module, … of the reader's; None if it is none of these."""
        if isinstance(thing, types.CodeType):
            return [digest(thing.co_code, thing.co_exceptiontable), list(thing.co_names), self(thing.co_consts)]
        if isinstance(thing, types.ModuleType):
            return f"module {thing.__name__}"
        if isinstance(thing, np.ndarray):
            return None if thing.dtype.hasobject else [str(thing.dtype), list(thing.shape), digest(thing.tobytes())]
        if isinstance(thing, functools.partial):
            return ["partial", self(thing.func), self(thing.args), self(thing.keywords)]
        if isinstance(thing, types.MethodType):
            owner = thing.__self__  # a module is described at its place
            return ["method", self(thing.__func__), None if isinstance(owner, nn.Module) else self(owner)]
        if isinstance(thing, (staticmethod, classmethod)):
            return [type(thing).__name__, self(thing.__func__)]
        if isinstance(thing, property):
            return ["property", self(thing.fget)]
        if isinstance(thing, types.BuiltinFunctionType):
            return f"{thing.__module__}.{thing.__qualname__}"
        if is_dataclass(thing) and not isinstance(thing, type):
            return [self(type(thing)), [self(getattr(thing, part.name)) for part in fields(thing)]]
        own = not self.strict and hasattr(thing, "__dict__") and not _is_library(type(thing).__module__)
        if own or isinstance(thing, (types.FunctionType, type, nn.Module)):
            name = f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
            known = id(thing) in self.seen
            self.seen.add(id(thing))
            return name if known else [name, self._content(thing)]
        return None

    def _content(self, thing: Any) -> Any:
        if isinstance(thing, nn.Module):  # one that is not registered as a part, in a list for example
            return [self.modules(thing), [self(tensor) for tensor in _tensors(thing).values() if self.strict]]
        if isinstance(thing, type):
            values = {
                name: self(value)
                for name, value in sorted(vars(thing).items())
                if name not in IDLE and (isinstance(value, types.FunctionType) or not name.startswith("__"))
            }
            return [[self(base) for base in thing.__bases__], values]
        if isinstance(thing, types.FunctionType):
            cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]  # not empty
            if _is_library(thing.__module__):
                return [self._outside(value) for value in cells]
            used = sorted(_globals_of(thing.__code__) & thing.__globals__.keys())
            values = [self._outside(value) for value in (*cells, *(thing.__globals__[name] for name in used))]
            return [self(part) for part in (thing.__code__, thing.__defaults__, thing.__kwdefaults__)] + [used, values]
        return [self(type(thing)), self(dict(sorted(vars(thing).items())))]  # an object of the reader's

    def _outside(self, value: Any) -> Any:
        """Return the description of a variable outside of the function that uses it."""
        collects = isinstance(value, (list, dict, set, np.ndarray, Tensor))  # what a hook found so far, for example
        return type(value).__name__ if collects and not self.strict else self(value)

    def _version(self, kind: type) -> str:
        top = kind.__module__.partition(".")[0]
        return f" {getattr(sys.modules.get(top), '__version__', '')}" if self.strict and self.code else ""


def has_own_forward(module: nn.Module) -> bool:
    """Return True if a ``forward`` was set on this object that is another one than that of its class."""
    forward = vars(module).get("forward")
    return forward is not None and forward != types.MethodType(type(module).forward, module)


@functools.cache
def _is_library(module: str | None) -> bool:
    """Return True for a module whose code is known by its name and version."""
    top = (module or "").partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return top in LIBRARIES or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the names of global variables that a function reads, in the functions inside of it too."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(_globals_of(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _named(thing: Any) -> str:
    return f"a {type(thing).__name__} ({getattr(thing, '__qualname__', type(thing).__qualname__)})"


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, also those that a state dict leaves out."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def key_of_front(model: nn.Module, front: nn.Module, tail: nn.Module) -> dict[str, str]:
    """Return hashes of the frozen part of a network: of what its modules do, and of all its weights and statistics.

    Parameters
    ----------
    model, front, tail
        The network, and its two parts from :func:`course_utils.engine.activation_cache.cut`.

    Raises
    ------
    CannotFingerprint
        If the behaviour of a part cannot be read off. If the model has a ``forward`` other than that of its family, or
        a hook outside of the tail: then its stages, one after another, may be another function.
    """
    family = family_of(model)
    if has_own_forward(model) or type(model).forward is not family.class_in(model).forward:
        raise CannotFingerprint(
            f"this {type(model).__name__} has a forward of its own, not that of its family {family.name!r}"
        )
    learning = set(tail.modules())
    for name, module in model.named_modules():
        if module not in learning and (module._forward_hooks or module._forward_pre_hooks):  # there is no public way
            what = f"the frozen layer {name} ({type(module).__name__})" if name else f"this {type(module).__name__}"
            raise CannotFingerprint(f"{what} has a hook, which may change its output")
    weights = [
        digest(f"{name} {tensor.dtype} {tuple(tensor.shape)}", _bytes_of(tensor))
        for name, tensor in _tensors(front).items()
    ]
    return {"layers": digest(json.dumps(describe_modules(front, strict=True))), "weights": digest(*weights)}


# --- data sets ---------------------------------------------------------------------------------------------------


def key_of_data(dataset: Dataset) -> dict[str, Any]:
    """Return a description of a data set's samples and labels: files by path, size and times, tensors by their bytes.

    Raises
    ------
    CannotFingerprint
        If the data set's class is not in ``PICTURE_KEYS`` or its transform cannot be described. Use
        :func:`key_of_samples` then.
    """
    kind = type(dataset)
    if kind not in PICTURE_KEYS:  # a subclass may give other samples
        raise CannotFingerprint(f"what {_named(dataset)} gives cannot be read off")
    transform = None if kind is MemoryDataset else describe(dataset.transform)
    labels = digest(json.dumps([dataset.labels, dataset.classes]))
    return {"kind": kind.__name__, "pictures": PICTURE_KEYS[kind](dataset), "labels": labels, "transform": transform}


def _key_of_tensors(dataset: MemoryDataset) -> str:
    return digest(f"{dataset.images.dtype} {tuple(dataset.images.shape)}", _bytes_of(dataset.images))


def _key_of_files(dataset: PhotoDataset) -> str:
    try:
        facts = [(path.absolute(), os.stat(path)) for path in dataset.paths]
    except OSError as error:
        raise CourseError(f"The picture {error.filename} cannot be read: {error.strerror}.") from error
    # st_ctime, the last change of the entry, too: a tool that writes a file can set st_mtime back.
    return digest(DECODER, *(f"{path}\0{file.st_size}\0{file.st_mtime_ns}\0{file.st_ctime_ns}" for path, file in facts))


# Class of a data set -> function that describes its pictures before the transform.
PICTURE_KEYS: dict[type, Callable[[Any], str]] = {MemoryDataset: _key_of_tensors, PhotoDataset: _key_of_files}


def key_of_samples(dataset: Dataset, views: int, seed: int) -> tuple[dict[str, Any], bool]:
    """Return a description of any data set, and True if it draws random numbers anywhere.

    Every sample of every view is read with :func:`seeded_sample`.
    """
    samples, draws = hashlib.sha256(), False
    for view in range(views):
        for index in range(len(dataset)):
            seed_generators(index, view, seed)
            before = generator_marks()
            samples.update(sample_bytes(*read_sample(dataset, index)))
            draws = draws or generator_marks() != before
    classes = digest(json.dumps(classes_of(dataset)))
    return {"kind": "samples", "samples": samples.hexdigest(), "classes": classes}, draws


def is_random(dataset: Dataset) -> bool:
    """Return True if a data set draws random numbers: a global generator moves, or a sample differs the second time.

    A few samples are fetched twice. The generators are left as they were.
    """
    if type(dataset) is MemoryDataset:
        return False
    with generators_put_back(seed=0):
        for index in spread_out(len(dataset), CHECKED_SAMPLES):
            before = generator_marks()
            first = sample_bytes(*read_sample(dataset, index))
            if generator_marks() != before or sample_bytes(*read_sample(dataset, index)) != first:
                return True
    return False


# --- samples -----------------------------------------------------------------------------------------------------


def read_sample(dataset: Dataset, index: int) -> tuple[Tensor, int]:
    """Return image and label of one sample, or raise a CourseError if it is no such pair."""
    return as_pair(dataset[index])


def seeded_sample(dataset: Dataset, index: int, view: int, seed: int) -> tuple[Tensor, int]:
    """Return a sample drawn with all generators seeded by (seed, view, index), the same in every order of reading."""
    seed_generators(index, view, seed)
    return read_sample(dataset, index)


def seed_generators(index: int, view: int, seed: int) -> None:
    """Seed the generators of Python, NumPy and torch by (seed, view, index)."""
    words = np.random.SeedSequence([seed, view, index]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would seed the GPUs of the caller too


def sample_bytes(image: Tensor, label: int) -> bytes:
    """Return the content of a sample for hashing."""
    return f"{label} {image.dtype} {tuple(image.shape)}\n".encode() + bytes(_bytes_of(image))
