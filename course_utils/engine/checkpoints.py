"""Checkpoints: ``fit(..., resume=True)`` continues an interrupted run; on a CPU it gives the bits of an unbroken one.

After every epoch such a run writes one file into its folder (:mod:`course_utils.engine.run_log`). The order of the
pictures and the augmentation are functions of the seed and the epoch (:mod:`course_utils.engine.sampling`), so the file
needs no position within an epoch: an epoch that was cut off begins anew.

==========  ====================================================================================================
line 1      ``course_utils checkpoint 2`` and the SHA-256 of all that follows
line 2      JSON: the call of ``fit`` it belongs to, the epochs so far, digests of weights
the rest    by ``torch.save``: model, best weights where they differ, optimizer, schedule, loss scaling,
            generators of every process
==========  ====================================================================================================

The file's name, ``checkpoint-<key>.bin``, has a hash of the call: model, strategy, settings, data and device. To the
data belong the bytes of every picture and what the transform does, but no times of files, no cache and no version of a
library. The file replaces the old one when it is complete, and is deleted at the end of the run. Only tensors, numbers
and text are unpickled.

One process works on a run at a time (:func:`course_utils.engine.run_log.hold`). Of several that train together the
first one reads and writes; the others get the state from it, so their machines need no disk in common.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from course_utils.common.errors import CourseError, warn
from course_utils.common.files import sha256_of, written_whole
from course_utils.common.progress import progress
from course_utils.common.threads import in_threads, thread_count
from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.engine.history import EpochRecord
from course_utils.engine.pixel_store import PixelDataset
from course_utils.engine.provenance import describe_data, describe_layers, files_of, innermost, weights_digest
from course_utils.engine.run_log import CHECKPOINTS, RUN_FILE, hold, let_go, runs_root, this_process
from course_utils.engine.runs import flatten, load_run, read_run
from course_utils.engine.sampling import SeededDraws, sample_indices, spread_out
from course_utils.engine.setup import Setup
from course_utils.engine.written_transforms import as_plain, is_complete
from course_utils.fine_tuning import Plan

TITLE = b"course_utils checkpoint 3 "
STATE_PARTS = {"model", "best", "answers", "optimizer", "schedule", "scaler", "pieces", "random", "average"}
IRRELEVANT = ("log", "num_workers", "device", "resume")  # arguments of fit that change nothing that is learned
# Data sets whose samples follow from their files or tensors, and from the functions that they are given.
KNOWN_DATASETS = (PhotoDataset, PixelDataset, MemoryDataset, ImageFolder, TensorDataset)
PROBES = 16  # number of samples that are looked at where that is not so


def describe_call(
    model: nn.Module, train: Sized, val: Sized, plan: Plan, settings: Mapping[str, Any], machine: Mapping
) -> dict[str, Any]:
    """Return a description of a call of ``fit`` as plain values: another description means another result.

    The layers of the model are described, not its weights. `settings` are the other arguments by name, of which those
    that do not change the result are left out; `machine` has device, precision and number of processes.
    """
    # A cache is found by times of files and versions of libraries; whether there is one moves losses by 1e-6.
    cache = {key: settings["cache"].get(key) for key in ("asked", "views", "dtype")}
    cache |= {} if settings["cache"]["used"] else {"views": 1, "dtype": "float32"}
    call = {
        "model": describe_layers(model),
        "plan": asdict(plan),
        "settings": {name: value for name, value in settings.items() if name not in IRRELEVANT} | {"cache": cache},
        "data": {
            name: describe_data(data) | _describe_samples(data, settings["seed"])
            for name, data in (("train", train), ("val", val))
        },
        "machine": dict(machine),
    }
    return json.loads(json.dumps(call, default=str))


def _describe_samples(dataset: Any, seed: int) -> dict[str, Any]:
    """Return digests of the pictures, and the functions that change them; of samples where these do not say it all."""
    inner = innermost(dataset)
    steps = [as_plain(getattr(inner, name, None)) for name in ("transform", "target_transform", "loader")]
    about = {"pixels": _pixels(dataset), "steps": dict(zip(("transform", "target", "loader"), steps, strict=True))}
    if type(inner) not in KNOWN_DATASETS or not is_complete(steps):
        about["samples"] = _probe(dataset, seed)
    return about


def _pixels(dataset: Any) -> str | None:
    """Return a digest of all pictures before the transform: of their tensors, or of the bytes of their files."""
    inner, digest = innermost(dataset), hashlib.sha256()
    if type(inner) in (MemoryDataset, TensorDataset):
        tensors = inner.tensors if type(inner) is TensorDataset else [inner.images]
        return weights_digest({str(i): tensor for i, tensor in enumerate(tensors)})
    files = files_of(dataset)
    if not files:
        return None
    digests = in_threads(_file_digest, files, ahead=4 * thread_count())
    for each in progress(digests, "looking for changed pictures", total=len(files)):
        digest.update(each.encode())
    if type(inner) is PixelDataset:
        digest.update(inner.sizes.tobytes())
    return digest.hexdigest()[:16]


def _file_digest(path: Path) -> str:
    try:
        about = os.stat(path)
        return _digest_of_version(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    except OSError:
        return ""  # a name that is no file: such a data set has its pictures elsewhere


@functools.lru_cache(maxsize=2**20)
def _digest_of_version(path: Path, *_size_and_times: int) -> str:
    return sha256_of(path)


def _probe(dataset: Any, seed: int) -> str:
    """Return a digest of some samples as they are drawn in the first epoch."""
    digest = hashlib.sha256()
    for index in sample_indices(spread_out(len(dataset), PROBES), len(dataset), seed, epoch=0):
        image, label = SeededDraws(dataset)[index]
        digest.update(weights_digest({str(int(label)): image}).encode())
    return digest.hexdigest()[:16]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the differences between two calls: ``["settings.epochs: 5 there, 6 here"]``."""
    old, new = dict(flatten("", dict(there))), dict(flatten("", dict(here)))
    names = [name for name in old | new if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name, '-')} there, {new.get(name, '-')} here" for name in names]


# --- the file ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The first lines of a checkpoint: its call (from :func:`describe_call`) and the epochs so far.

    ``seen`` has digests of the weights that the model began with and of all best weights since: a stopped ``fit``
    leaves the model with one of these.
    """

    call: dict[str, Any]
    seen: list[str]
    history: list[EpochRecord]


class Checkpoint(NamedTuple):
    """A checkpoint that was read; the tensors of its state are on the CPU."""

    path: Path
    header: Header
    state: dict[str, Any]


def write_checkpoint(path: Path, header: Header, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, or raise a CourseError; the old one at `path` stays until the new one is complete."""
    content = io.BytesIO()  # torch.save makes another error of a full disk, and of a Stop, that comes while it writes
    text = {"call": header.call, "seen": header.seen, "history": [asdict(record) for record in header.history]}
    content.write(json.dumps(text).encode() + b"\n")
    torch.save(dict(state), content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest().encode()
    with written_whole(path) as beside, open(beside, "wb") as file:
        file.write(TITLE + digest + b"\n")
        file.write(content.getbuffer())


def read_header(path: Path) -> Header:
    """Return the header of a checkpoint, without reading its tensors; CourseError if the file is no checkpoint."""
    with _unreadable_is_an_error(path), open(path, "rb") as file:
        if not file.readline(200).startswith(TITLE):
            raise ValueError("it is no checkpoint of fit, or one of another version of the course")
        text = json.loads(file.readline())
        records = [EpochRecord(**row | {"learning": tuple(row["learning"])}) for row in text["history"]]
        return Header(dict(text["call"]), list(text["seen"]), records)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file; CourseError if it was changed or holds more than tensors and plain values."""
    header = read_header(path)
    with _unreadable_is_an_error(path):
        with open(path, "rb") as file:
            title, text, content = file.readline(), file.readline(), file.read()
        digest = hashlib.sha256(text)
        digest.update(content)
        # torch.load takes flipped bytes in a tensor for numbers.
        if title != TITLE + digest.hexdigest().encode() + b"\n":
            raise ValueError("it is incomplete, or was changed after it was written")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.keys() != STATE_PARTS:
            raise ValueError("it does not have the parts that fit writes")
    return Checkpoint(path, header, state)


@contextlib.contextmanager
def _unreadable_is_an_error(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch, zip and JSON have some twenty kinds of errors for a damaged file
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).split("\n")[0] or repr(error)
        raise CourseError(
            f"The checkpoint {path} cannot be used: {reason}. Nothing was changed. Delete that file to start anew; "
            "best.safetensors beside it, if it is there, has the best weights so far."
        ) from error


# --- the checkpoint of one run -----------------------------------------------------------------------------------


class Checkpoints:
    """Finds the checkpoint that a call of ``fit`` continues, and writes and deletes that of its run.

    `call` is from :func:`describe_call`, and the model is as it was given to ``fit``. The attribute ``path`` is the
    file of this run; None while the run has no folder.
    """

    def __init__(self, call: dict[str, Any], model: nn.Module) -> None:
        self.call, self.seen = call, [weights_digest(model.state_dict())]
        key = hashlib.sha256(json.dumps(call, sort_keys=True).encode()).hexdigest()[:12]
        self.name = CHECKPOINTS.replace("*", key)
        self.path: Path | None = None
        self._warned = False

    def find(self, resume: bool | str | Path) -> Path | None:
        """Return the path of the checkpoint to continue, and hold its folder; None if there is none: a new run begins.

        True looks for an interrupted run of the same call, whose model had these weights at its beginning or after a
        Stop. The name or folder of a run continues that one, with any weights.

        Raises
        ------
        CourseError
            If the named run has no checkpoint, is still running, or is one of another call; if the checkpoint cannot
            be read.
        """
        if resume is not True:
            return self._named(resume)
        found = {path: read_header(path) for path in runs_root().glob(f"*/{self.name}")}
        there = [path for path, header in found.items() if self.seen[0] in header.seen]
        for path in sorted(there, key=lambda path: (len(found[path].history), _age(path)), reverse=True):
            if _take(path):
                return path
            if path.exists():
                warn(f"The run {path.parent.name} of the same call is still going on elsewhere, so a new run begins.")
        if not there and (hint := self._near_miss(found)):
            print(hint)
        return None

    def _named(self, resume: str | Path) -> Path:
        record = load_run(resume)
        paths = sorted(record.folder.glob(CHECKPOINTS))
        if not paths:
            raise CourseError(
                f"The run {record.name} is {record.status} and has no checkpoint: nothing can be resumed. Runs that "
                "are called with resume=True keep one until they have come to their end."
            )
        other = differences(read_header(paths[0]).call, self.call)
        if other:
            raise CourseError(
                f"The run {record.name} is one of another call: {'; '.join(other[:4])}. Give what was given "
                "there, or begin a new run by leaving its name out."
            )
        if not _take(paths[0], named=True):
            raise CourseError(f"The run {record.name} is still going on: stop it first.")
        return paths[0]

    def _near_miss(self, same_call: Mapping[Path, Header]) -> str:
        """Return a sentence about the last run, if the caller may have meant that; empty otherwise.

        Only about the last one, because a checkpoint that nobody wants any more would be mentioned again and again.
        """
        last = max((path.parent for path in runs_root().glob(f"*/{RUN_FILE}")), key=_age, default=runs_root())
        for path in last.glob(CHECKPOINTS):
            if path in same_call:
                return (
                    f"The run {last.name} was the same call, but began with other weights, so a new run begins. "
                    f"resume={last.name!r} would take it up."
                )
            with contextlib.suppress(CourseError):
                header = read_header(path)
                if self.seen[0] in header.seen:
                    other = "; ".join(differences(header.call, self.call)[:2])
                    return f"The interrupted run {last.name} was another call ({other}), so a new run begins."
        return ""

    def begin(self, folder: Path | None, found: Checkpoint | None) -> None:
        """Keep the checkpoints of this run in a folder; before this call none is written."""
        if found:
            self.seen = found.header.seen
            done, epochs = len(found.header.history), self.call["settings"]["epochs"]
            print(f"Resumed {found.path.parent.name}: {done} of {epochs} epochs were done.")
        if folder is None:
            warn("The run has no folder, so it keeps no checkpoint and cannot be resumed.")
            return
        self.path = folder / self.name
        for left in folder.glob(f".{CHECKPOINTS}.*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)

    def write(self, history: Sequence[EpochRecord], state: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Write the checkpoint of a finished epoch. An error on the disk is one warning, and the old file stays."""
        digest = weights_digest(best)
        if digest not in self.seen:
            self.seen = [*self.seen, digest]
        try:
            write_checkpoint(self.path, Header(self.call, self.seen, list(history)), state)
        except CourseError as error:
            if not self._warned:
                start = "with the last checkpoint" if self.path.exists() else "anew"
                warn(
                    f"The checkpoint of epoch {len(history)} was not written: {error} Training goes on; a resumed run "
                    f"would begin {start}. It is tried again after every epoch."
                )
            self._warned = True

    def delete(self) -> None:
        """Delete the checkpoint of a run that came to its end."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            warn(
                f"{self.path} cannot be deleted ({error.strerror or error}). Delete it before you call fit with "
                "resume=True again, or that call ends at once with the result of this one."
            )


def find_checkpoint(checkpoints: Checkpoints, setup: Setup) -> Checkpoint | None:
    """Return the checkpoint to continue, in all processes, as the first one read it; None if there is none.

    An error of the first process is raised in all of them.
    """
    found: list[Any] = [None]
    if setup.is_first_process:
        try:
            found = [_read_and_hold(checkpoints, setup.options.resume)]
        except CourseError as error:
            found = [error]
    if setup.group.world_size > 1:
        broadcast_object_list(found)
    if isinstance(found[0], CourseError):
        raise found[0]
    return found[0]


def _read_and_hold(checkpoints: Checkpoints, resume: bool | str | Path) -> Checkpoint | None:
    path = checkpoints.find(resume)
    try:
        return None if path is None else read_checkpoint(path)
    except BaseException:
        let_go(path.parent)
        raise


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its run came to an end a moment ago
        return 0.0


def _take(path: Path, named: bool = False) -> bool:
    """Return True if nobody works on the run of a checkpoint, and this process holds it from now on.

    On a disk without locks, nobody can tell whether a process of another machine still works; a `named` run is taken.
    """
    record = read_run(path.parent)
    if record.status == "running" and not (named and record.facts["process"]["host"] != this_process()["host"]):
        return False
    if not hold(path.parent):
        return False
    if not path.exists():  # the run came to its end before it was held
        let_go(path.parent)
        return False
    return True
