"""300 bad inputs and 50 kills: ``python tests/hostile.py`` prints what becomes of them, in one table.

A case writes its files, then acts on them. It ends in one of five ways:

=========  =========================================================================================================
right      it worked, and what came out is what it should be
told       it was refused by a ``CourseError``, or by one line on stderr and an exit code that is not 0
wrong      it worked, and something else came out
traceback  any other exception
lost       a file that the case wrote is gone or has other bytes
=========  =========================================================================================================

The last three are faults; with one of them the exit code is 1.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json
import os
import sys
import tempfile
import traceback
import unittest.mock
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import ColourPatches
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from course_tools import cli
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of
from course_utils.common.tables import text_table
from course_utils.data.pictures import load_picture
from course_utils.datasets import open_dataset
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL
from course_utils.pretrained_models import load_pretrained
from course_utils.training import fit

ENDS = ("right", "told", "wrong", "traceback", "lost")
FAULTS = ENDS[2:]
SIDE = 24
NEITHER = {  # contents that are neither a picture nor weights, whatever the file is called
    "a page of HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "text": b"hello",
    "zeros": bytes(4096),
    "an empty zip": b"PK\x05\x06" + bytes(18),
}


def nothing(_folder: Path) -> None:
    """Write no file."""


@dataclass(frozen=True)
class Case:
    """A bad input: `write` makes its files, `act` uses them and returns True if what came out is right."""

    kind: str
    name: str
    act: Callable[[Path], bool]
    write: Callable[[Path], Any] = nothing

    def ending(self, folder: Path) -> tuple[str, str]:
        """Return how it ended, and the message or traceback."""
        folder.mkdir(parents=True)
        self.write(folder)
        before = digests(folder)
        with silence():
            end, text = self._ending(folder)
        after = digests(folder)
        changed = [name for name in before if after.get(name) != before[name]]
        return ("lost", f"changed: {changed}") if changed else (end, text)

    def _ending(self, folder: Path) -> tuple[str, str]:
        try:
            return ("right" if self.act(folder) else "wrong"), ""
        except CourseError as error:
            return "told", str(error)
        except Told as told:
            return "told", str(told)
        except Exception:
            return "traceback", traceback.format_exc(limit=-3)


class Told(Exception):
    """A command refused, by one line on stderr."""


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    return {str(path): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep warnings and progress off the screen."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# --- pictures ----------------------------------------------------------------------------------------------------


def picture(number: int) -> Image.Image:
    """Return a small picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[: SIDE // 2] //= 4
    return Image.fromarray(pixels)


def encoded(form: str) -> bytes:
    """Return the bytes of a picture in a format that Pillow writes."""
    file = io.BytesIO()
    picture(1).save(file, form)
    return file.getvalue()


def same_or_told(content: bytes, form: str, folder: Path) -> bool:
    """Return True if a damaged picture looks as the sound one does (the damage was behind its end, say)."""
    path = folder / f"damaged.{form.lower()}"
    sound = Image.open(io.BytesIO(encoded(form))).convert("RGB")
    return np.array_equal(np.asarray(load_picture(path)), np.asarray(sound))


def picture_cases() -> Iterator[Case]:
    """Yield pictures that end too soon, have other bytes in the middle, or are something else."""
    for form, share in itertools.product(
        ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"), (0, 0.02, 0.1, 0.3, 0.6, 0.9, 0.99)
    ):
        content = encoded(form)
        short = content[: int(share * len(content))]
        yield _picture_case(f"{form} cut at {share:.0%}", short, form)
    content = encoded("PNG")
    for place in range(40, len(content) - 12, len(content) // 12):
        flipped = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        yield _picture_case(f"PNG with byte {place} turned over", flipped, "PNG")
    others = NEITHER | {
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    }
    for name, content in others.items():
        yield _picture_case(f"{name}, called .png", content, "PNG")


def _picture_case(name: str, content: bytes, form: str) -> Case:
    return Case(
        "pictures",
        name,
        functools.partial(same_or_told, content, form),
        lambda folder: (folder / f"damaged.{form.lower()}").write_bytes(content),
    )


# --- folders and lists -------------------------------------------------------------------------------------------

WORDS = {  # a word for each split, as people write it
    "plain": ("train", "val", "test"),
    "capitals": ("Train", "Val", "Test"),
    "loud": ("TRAIN", "VALID", "TEST"),
    "gerunds": ("Training", "Validation", "Testing"),
    "sets": ("training_set", "validation_set", "test_set"),
    "short sets": ("trainset", "valset", "testset"),
    "hyphens": ("train-set", "dev-set", "test-set"),
}


def write_pictures(folder: Path, names: Sequence[str], first: int = 0) -> None:
    """Write pictures that differ from each other."""
    for number, name in enumerate(names, first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)


def tree(words: Sequence[str], classes: Sequence[str] = ("cat", "dog"), count: int = 6) -> list[str]:
    """Return names of pictures in folders of splits that have folders of classes."""
    return [f"{word}/{name}/{i}.png" for word in words for name in classes for i in range(count)]


def splits_are(words: Sequence[str], folder: Path, classes: Sequence[str] = ("cat", "dog")) -> bool:
    """Return True if the three splits are those of the folders, and no class is one of the words."""
    splits = open_dataset(folder)
    for word, part in zip(words, (splits.train, splits.val, splits.test), strict=False):
        if {path.relative_to(folder).parts[0] for path in part.paths} != {word}:
            return False
    return tuple(splits.classes) == tuple(sorted(classes))


def never_learned(mark: str, folder: Path, classes: Sequence[str] = ("cat", "dog")) -> bool:
    """Return True if the classes are these and no picture whose path has `mark` is learned from or chosen by."""
    splits = open_dataset(folder)
    seen = [str(path.relative_to(folder)) for part in (splits.train, splits.val) for path in part.paths]
    return tuple(splits.classes) == tuple(sorted(classes)) and not any(mark in name for name in seen)


def folder_cases() -> Iterator[Case]:
    """Yield folders whose names mean splits, junk, masks, or the same class twice."""
    for name, words in WORDS.items():
        yield Case(
            "folders",
            f"split folders, {name}",
            functools.partial(splits_are, words),
            functools.partial(write_pictures, names=tree(words)),
        )
        two = (words[0], words[2])
        yield Case(
            "folders",
            f"train and test only, {name}",
            functools.partial(never_learned, f"{words[2]}/"),
            functools.partial(write_pictures, names=tree(two)),
        )
        yield Case(
            "folders",
            f"val and test without train, {name}",
            refused,
            functools.partial(write_pictures, names=tree(words[1:])),
        )
        flat = [f"{word}/{animal}.{i}.png" for word in two for animal in ("cat", "dog") for i in range(6)]
        yield Case(
            "folders",
            f"pictures right in the split folders, {name}",
            refused,
            functools.partial(write_pictures, names=flat),
        )
        mixed = [*tree(["."], count=6), *(f"{words[2]}/{i}.png" for i in range(6))]
        yield Case(
            "folders",
            f"classes beside a folder of test pictures, {name}",
            functools.partial(never_learned, f"{words[2]}/"),
            functools.partial(write_pictures, names=mixed),
        )
    for junk in (
        "masks",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__pycache__",
        "__MACOSX",
        ".thumbnails",
    ):
        yield Case(
            "folders",
            f"{junk} beside the classes",
            functools.partial(never_learned, junk),
            functools.partial(write_pictures, names=[*tree(["."]), *(f"{junk}/x/{i}.png" for i in range(6))]),
        )
        yield Case(
            "folders",
            f"{junk} in a class",
            functools.partial(never_learned, junk),
            functools.partial(write_pictures, names=[*tree(["."]), *(f"cat/{junk}/{i}.png" for i in range(6))]),
        )
    for pair in (("Cat", "cat"), ("cat ", "cat"), ("caf\u00e9", "cafe\u0301")):
        yield Case(
            "folders",
            f"classes {pair[0]!r} and {pair[1]!r}",
            refused,
            functools.partial(write_pictures, names=tree(["."], [*pair, "dog"])),
        )
    for name, names in {
        "no picture": [],
        "one class": tree(["."], ["cat"]),
        "one picture in a class": [*tree(["."], ["cat"]), "dog/0.png"],
        "pictures without folders": [f"{i}.png" for i in range(9)],
    }.items():
        yield Case("folders", name, refused, functools.partial(write_pictures, names=names))


def refused(folder: Path) -> bool:
    """Open a folder that cannot be right; False when it is taken."""
    open_dataset(folder)
    return False


def list_cases() -> Iterator[Case]:
    """Yield lists of files and labels with other headings, delimiters, split words and faults."""
    files = tree(["."], count=8)
    for word, heading in itertools.product(
        ("test", "Test", "TEST", "testing", "test_set"), ("split", "Split", "SPLIT", "set", "subset", "partition")
    ):
        rows = [(name, name[2:5], word if i % 8 < 3 else "train") for i, name in enumerate(files)]
        yield Case(
            "lists",
            f"column {heading!r} with {word!r}",
            functools.partial(list_is_right, rows),
            functools.partial(write_list, files=files, rows=[("file", "label", heading), *rows]),
        )
    plain = [(name, name[2:5]) for name in files]
    for delimiter, heading, start in itertools.product(
        ",;\t|", (("file", "label"), ("File", "Label")), ("", "\ufeff", "sep={}\n")
    ):
        yield Case(
            "lists",
            f"delimiter {delimiter!r}, headings {heading}, begins with {start!r}",
            functools.partial(list_is_right, [(*row, "") for row in plain]),
            functools.partial(
                write_list, files=files, rows=[heading, *plain], delimiter=delimiter, start=start.format(delimiter)
            ),
        )
    for name, rows in {
        "no row": [("file", "label")],
        "no heading": plain,
        "empty labels": [("file", "label"), *((name, "") for name, _ in plain)],
        "one label": [("file", "label"), *((name, "cat") for name, _ in plain)],
        "files that are not there": [("file", "label"), *((f"no/{name}", label) for name, label in plain)],
        "paths of another machine": [("file", "label"), *((f"D:\\photos\\{name[2:]}", lab) for name, lab in plain)],
        "a file outside": [("file", "label"), ("../../../../etc/hostname", "cat"), *plain],
        "one file with two labels": [("file", "label"), *plain, (plain[0][0], "dog")],
        "a split that means nothing": [("file", "label", "split"), *((*row, "purple") for row in plain)],
        "no row for learning": [("file", "label", "split"), *((*row, "test") for row in plain)],
    }.items():
        yield Case("lists", name, refused_list, functools.partial(write_list, files=files, rows=rows))


def write_list(
    folder: Path, files: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",", start: str = ""
) -> None:
    """Write pictures and a list."""
    write_pictures(folder, files)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        file.write(start)
        csv.writer(file, delimiter=delimiter).writerows(rows)


def list_is_right(rows: Sequence[tuple[str, str, str]], folder: Path) -> bool:
    """Return True if every picture has its label, and those that the list calls test are in test, and no others."""
    splits = open_dataset(folder / "labels.csv")
    label = {str((folder / name).resolve()): (label, split) for name, label, split in rows}
    has_test = any(split not in ("", "train") for _, _, split in rows)
    for part in (splits.train, splits.val, splits.test):
        for path, number in zip(part.paths, part.labels, strict=True):
            wanted, split = label[str(path.resolve())]
            in_test = part is splits.test
            if splits.classes[number] != wanted or (has_test and in_test != (split != "train")):
                return False
    return True


def refused_list(folder: Path) -> bool:
    """Open a list that cannot be right; False when every row of it is taken."""
    splits = open_dataset(folder / "labels.csv")
    # A row that cannot be used is named, and the others are taken: that is right too.
    return bool(splits.quarantine)


# --- the door of fit ---------------------------------------------------------------------------------------------


class Brought(Dataset):
    """A data set as somebody brings it along."""

    def __init__(self, image: Callable = lambda i: noise(i), label: Callable = lambda i: i % 3, **attributes: Any):
        self.image, self.label = image, label
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return self.image(index), self.label(index)


class Three(Brought):
    """A name beside image and label."""

    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), "name"


class Named(Brought):
    """Dicts, as Hugging Face's data sets give them."""

    def __getitem__(self, index: int) -> Any:
        return dict(zip(("image", "label"), super().__getitem__(index), strict=True))


class Stream(IterableDataset):
    """Samples without a number."""

    def __iter__(self) -> Iterator[Any]:
        yield noise(0), 0


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Return a picture of noise."""
    return torch.randn(shape or (3, SIDE, SIDE), generator=torch.Generator().manual_seed(int(seed)))


def network(num_classes: int = 3) -> nn.Module:
    """Return the small ResNet."""
    return FEATURE_EXTRACTION.starting_model("resnet18_mini", num_classes)


def with_head(*layers: nn.Module) -> nn.Module:
    """Return the small ResNet with another head."""
    model = network()
    model.fc = nn.Sequential(*layers, nn.Linear(model.fc.in_features, 3))
    return model


BAD_DATA: dict[str, Dataset | Any] = {
    "labels 1 to 3": Brought(label=lambda i: i % 3 + 1),
    "labels 1 to 3 with .targets": Brought(label=lambda i: i % 3 + 1, targets=[i % 3 + 1 for i in range(24)]),
    "label 7 once": Brought(label=lambda i: 7 if i == 13 else 0),
    "label -1 once": Brought(label=lambda i: -1 if i == 13 else 0),
    "labels 0.5": Brought(label=lambda i: 0.5),
    "one-hot labels": Brought(label=lambda i: torch.eye(3)[i % 3]),
    "labels as words": Brought(label=lambda i: "cat"),
    "labels None": Brought(label=lambda i: None),
    "words in .labels": Brought(labels=["cat", "dog", "fox"] * 8),
    "one-hot .labels": Brought(labels=np.eye(3)[[i % 3 for i in range(24)]]),
    "bytes as pictures": Brought(image=lambda i: torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)),
    "float64 pictures": Brought(image=lambda i: noise(i).double()),
    "one channel": Brought(image=lambda i: noise(i, 1, SIDE, SIDE)),
    "four channels": Brought(image=lambda i: noise(i, 4, SIDE, SIDE)),
    "channels last": Brought(image=lambda i: noise(i, SIDE, SIDE, 3)),
    "no channels": Brought(image=lambda i: noise(i, SIDE, SIDE)),
    "a batch as a picture": Brought(image=lambda i: noise(i, 1, 3, SIDE, SIDE)),
    "unequal sizes": Brought(image=lambda i: noise(i, 3, SIDE, SIDE + i)),
    "empty pictures": Brought(image=lambda i: torch.zeros(3, 0, 0)),
    "PIL pictures": Brought(image=picture),
    "NumPy pictures": Brought(image=lambda i: np.zeros((SIDE, SIDE, 3), np.uint8)),
    "None as a picture": Brought(image=lambda i: None),
    "a NaN in one picture": Brought(image=lambda i: noise(i) * (np.nan if i == 13 else 1)),
    "an infinity in one picture": Brought(image=lambda i: noise(i) * (np.inf if i == 13 else 1)),
    "three values": Three(),
    "dicts": Named(),
    "a stream": Stream(),
    "a loader": DataLoader(Brought()),
    "a list of numbers": [1, 2, 3],
    "nothing": [],
    "other classes than val": Brought(classes=["a", "b", "d"]),
    "classes in another order": Brought(classes=["b", "a", "c"]),
}
BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "epochs=0": {"epochs": 0},
    "epochs=-1": {"epochs": -1},
    "epochs=1.5": {"epochs": 1.5},
    "epochs='3'": {"epochs": "3"},
    "batch_size=0": {"batch_size": 0},
    "batch_size=2.5": {"batch_size": 2.5},
    "seed=-1": {"seed": -1},
    "seed=1.5": {"seed": 1.5},
    "patience=0": {"patience": 0},
    "label_smoothing=1": {"label_smoothing": 1.0},
    "label_smoothing=nan": {"label_smoothing": float("nan")},
    "class weight 0": {"class_weights": [0.0, 1.0, 1.0]},
    "class weight -1": {"class_weights": [-1.0, 1.0, 1.0]},
    "class weight nan": {"class_weights": [float("nan"), 1.0, 1.0]},
    "two class weights": {"class_weights": [1.0, 1.0]},
    "device='gpu'": {"device": "gpu"},
    "device='cuda'": {"device": "cuda"},
    "log='yes'": {"log": "yes"},
    "resume=''": {"resume": ""},
    "resume of no run": {"resume": "no-such-run", "log": "light"},
    "cache='yes'": {"cache": "yes"},
    "num_workers=-1": {"num_workers": -1},
    "num_workers='many'": {"num_workers": "many"},
}


def must_be_told(folder: Path, model: Callable[[], nn.Module] = network, **call: Any) -> bool:
    """Call fit with something that cannot be right; False when it trains."""
    trains(folder, model, **call)
    return False


def trains(
    folder: Path, model: Callable[[], nn.Module] = network, data: Any = None, strategy: Any = FULL, **options: Any
) -> bool:
    """Return True if fit trains to a finite loss."""
    data = Brought(classes=["a", "b", "c"]) if data is None else data
    options = {"epochs": 1, "batch_size": 8, "log": "off", "device": "cpu"} | options
    with unittest.mock.patch.dict(os.environ, {"COURSE_RUNS": str(folder / "runs")}):
        run = fit(model(), data, Brought(classes=["a", "b", "c"]), strategy, **options)
    return bool(np.isfinite(run.history[-1].train_loss))


def fit_cases() -> Iterator[Case]:
    """Yield data, options and networks that fit cannot train with, and some that it has to."""
    for name, data in BAD_DATA.items():
        yield Case("fit", f"data: {name}", functools.partial(must_be_told, data=data))
    for name, options in BAD_OPTIONS.items():
        yield Case("fit", f"option: {name}", functools.partial(must_be_told, **options))
    numbers = {
        "NumPy's int32": lambda i: np.int32(i % 3),
        "tensor(y)": lambda i: torch.tensor(i % 3),
        "whole floats": lambda i: float(i % 3),
        "-100 for some": lambda i: -100 if i % 4 else i % 3,
    }
    for name, label in numbers.items():
        yield Case("fit", f"labels: {name}", functools.partial(trains, data=Brought(label=label)))
    few = Brought(labels=[0, 1, 2])  # not one for each sample: they are something else
    yield Case("fit", "data: too few .labels", functools.partial(trains, data=few))
    networks = {
        "Sequential(Dropout, Linear) as head": lambda: with_head(nn.Dropout(0.5)),
        "Sequential(Linear) as head": with_head,
        "float64 network and pictures": lambda: network().double(),
        "five classes for three": lambda: network(5),
    }
    for name, model in networks.items():
        data = Brought(image=lambda i: noise(i).double()) if "64" in name else None
        if data is not None:
            yield Case("fit", f"network: {name}", functools.partial(trains_in_double, model))
        else:
            yield Case("fit", f"network: {name}", functools.partial(trains, model=model))
    for size in (9, 17, 25):
        yield Case(
            "fit",
            f"{size} pictures in batches of 8",
            functools.partial(trains, data=ColourPatches(size, side=SIDE)),
        )


def trains_in_double(model: Callable[[], nn.Module], _folder: Path) -> bool:
    """Return True if a float64 network learns from float64 pictures."""
    data = ColourPatches(12, side=SIDE, dtype=torch.float64)
    run = fit(model(), data, data, FEATURE_EXTRACTION, epochs=2, log="off", device="cpu")
    return bool(np.isfinite(run.history[-1].train_loss))


# --- files of weights --------------------------------------------------------------------------------------------


def write_weights(folder: Path, form: str, spoil: Callable[[bytes], bytes]) -> None:
    """Write weights of the small ResNet, and spoil the file."""
    from safetensors.torch import save_file

    path, state = folder / f"weights.{form}", network().state_dict()
    if form == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    path.write_bytes(spoil(path.read_bytes()))


def loads_as_written(form: str, folder: Path) -> bool:
    """Return True if the network that comes back has the weights that were saved."""
    model = load_pretrained("resnet18_mini", checkpoint=folder / f"weights.{form}")
    there, here = model.state_dict(), network().state_dict()
    return all(torch.equal(there[name], here[name]) for name in here)


def weight_cases() -> Iterator[Case]:
    """Yield files of weights that end too soon or are something else."""
    for form, share in itertools.product(("safetensors", "pt"), (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999)):

        def cut(content: bytes, share: float = share) -> bytes:
            return content[: int(share * len(content))]

        yield _weights_case(f"{form} cut at {share:.2%}", form, cut)
    others = NEITHER | {"a pickle that prints": b"cbuiltins\nprint\n(S'owned'\ntR."}
    for (name, content), form in itertools.product(others.items(), ("pt", "safetensors")):
        yield _weights_case(f"{name}, called .{form}", form, lambda _, content=content: content)


def _weights_case(name: str, form: str, spoil: Callable[[bytes], bytes]) -> Case:
    return Case(
        "weights",
        name,
        functools.partial(loads_as_written, form),
        functools.partial(write_weights, form=form, spoil=spoil),
    )


# --- commands ----------------------------------------------------------------------------------------------------


def command(*words: str, folder: Path) -> bool:
    """Run a command in a folder of photos; Told if it refuses by one line, True if its exit code is 0."""
    said = io.StringIO()
    words = [word.format(folder=folder) for word in words]
    environ = {"COURSE_RUNS": str(folder / "runs"), "COURSE_ACTIVATIONS": str(folder / "activations")}
    with unittest.mock.patch.dict(os.environ, environ), contextlib.redirect_stderr(said):
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code
    lines = said.getvalue().splitlines()
    if code and len(lines) == 1 and "Traceback" not in lines[0]:
        raise Told(lines[0])
    if code:
        raise RuntimeError(f"exit code {code}, {len(lines)} lines: {said.getvalue()[-500:]}")
    return False  # every one of these has to be refused


COMMANDS = (
    "predict {folder}/nothing.jpg",
    "predict {folder}/empty",
    "predict {folder}/labels.txt",
    "predict {folder}/broken.jpg",
    "predict {folder}/photos/*.tiff",
    "predict {folder}/photos --run nothing",
    "predict {folder}/photos --checkpoint {folder}/nothing.pt",
    "predict {folder}/photos --checkpoint {folder}/labels.txt",
    "predict {folder}/photos --model resnet9000",
    "predict",
    "explain {folder}/nothing.jpg",
    "explain {folder}/empty",
    "explain {folder}/broken.jpg",
    "explain {folder}/photos/cat --run nothing",
    "train {folder}/nothing",
    "train {folder}/empty",
    "train {folder}/labels.txt",
    "train {folder}/photos/cat",
    "train {folder}/photos --epochs 0",
    "train {folder}/photos --epochs many",
    "train {folder}/photos --strategy best",
    "train {folder}/photos --model resnet9000",
    "train {folder}/photos --batch-size 0",
    "train {folder}/photos --seed -1",
    "train {folder}/photos --nonsense",
    "train pets hymenoptera",
    "ladder {folder}/nothing",
    "ladder {folder}/empty",
    "ladder {folder}/photos --epochs 0",
    "ladder {folder}/photos --models resnet9000",
    "runs nothing",
    "runs --delete nothing",
    "cache --delete nothing",
    "run day99",
    "run day20 --data {folder}/nothing",
    "quiz --topic nothing",
    "nonsense",
)


def write_photos(folder: Path) -> None:
    """Write what the commands are pointed at."""
    write_pictures(folder / "photos", tree(["."], count=5))
    (folder / "empty").mkdir()
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "broken.jpg").write_bytes(encoded("JPEG")[:200])


def command_cases() -> Iterator[Case]:
    """Yield command lines that cannot be right."""
    for line in COMMANDS:

        def act(folder: Path, line: str = line) -> bool:
            return command(*line.split(), folder=folder)

        yield Case("commands", line.format(folder="FOLDER"), act, write_photos)


# --- all of them -------------------------------------------------------------------------------------------------

KINDS = (picture_cases, folder_cases, list_cases, fit_cases, weight_cases, command_cases)


def all_cases() -> list[Case]:
    """Return every case, kind by kind."""
    return [case for kind in KINDS for case in kind()]


def count_kills(folder: Path) -> Counter[str]:
    """Return how many kills of a run ended, after it was taken up again, in the bits of the unbroken run, or not."""
    sys.path.insert(0, str(Path(__file__).parent / "engine"))
    from interrupted_runs import kill_many

    folder.mkdir()
    kill_many(folder, times=3)
    ends = Counter()
    for kill in json.loads((folder / "results.json").read_text(encoding="utf-8"))["kills"]:
        same = all(kill["result"][key] == kill["whole"][key] for key in ("weights", "history", "best"))
        ends["right" if same else "wrong"] += kill["kills"]
    return ends


def main() -> int:
    """Run all cases and kills, or the cases with a word of the command line in kind or name; return the exit code."""
    words, faults, counts = sys.argv[1:], [], {}
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate(all_cases()):
            if words and not any(word in f"{case.kind} {case.name}" for word in words):
                continue
            end, text = case.ending(Path(place, str(number)))
            counts.setdefault(case.kind, Counter())[end] += 1
            if end in FAULTS:
                faults.append(f"{end}: {case.kind}, {case.name}\n{text}")
        if not words:
            counts["kill -9"] = count_kills(Path(place, "kills"))
            faults += ["wrong: a run that was killed came to other weights"] * counts["kill -9"]["wrong"]
    rows = [[kind, sum(ends.values()), *(ends[end] for end in ENDS)] for kind, ends in counts.items()]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print("\n".join(faults), "\n")
    print(text_table(["bad input", "cases", *ENDS], rows))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
