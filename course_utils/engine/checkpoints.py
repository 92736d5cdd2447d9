"""Checkpoints: ``fit(..., resume=True)`` continues an interrupted run; on a CPU it gives the bits of an unbroken one.

After every epoch such a run writes one file into its folder (:mod:`course_utils.engine.run_log`). The order of the
pictures and the augmentation are functions of the seed and the epoch (:mod:`course_utils.engine.sampling`), so the file
needs no position within an epoch: an epoch that was cut off begins anew.

==========  ====================================================================================================
line 1      ``course_utils checkpoint 1`` and the SHA-256 of all that follows
line 2      JSON: the call of ``fit`` it belongs to, the epochs so far, digests of weights
the rest    by ``torch.save``: model, best weights where they differ, optimizer, schedule, loss scaling,
            generators of Python, NumPy, torch and the GPU
==========  ====================================================================================================

The file's name, ``checkpoint-<key>.bin``, has a hash of the call: model, strategy, settings, data and device. The file
replaces the old one when it is complete, and is deleted at the end of the run. Only tensors, numbers and text are
unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from course_utils.common.errors import CourseError, warn
from course_utils.common.files import written_whole
from course_utils.engine.history import EpochRecord
from course_utils.engine.provenance import describe_data, describe_layers, weights_digest
from course_utils.engine.run_log import CHECKPOINTS, runs_root, this_process
from course_utils.engine.runs import flatten, load_run, read_run
from course_utils.engine.sampling import SeededDraws, sample_indices, spread_out
from course_utils.engine.setup import Setup
from course_utils.fine_tuning import Strategy

TITLE = b"course_utils checkpoint 1 "
STATE_PARTS = {"model", "best", "answers", "optimizer", "schedule", "scaler", "pieces", "random"}
IRRELEVANT = ("log", "num_workers", "device", "resume")  # arguments of fit that change nothing that is learned
PROBES = 3  # number of pictures that tell a data set from others
ACTIVE_RUNS: set[Path] = set()  # folders of the runs that this process is in the middle of


def describe_call(
    model: nn.Module, train: Sized, val: Sized, strategy: Strategy, settings: Mapping[str, Any], machine: Mapping
) -> dict[str, Any]:
    """Return a description of a call of ``fit`` as plain values: another description means another result.

    The layers of the model are described, not its weights. `settings` are the other arguments by name, of which those
    that do not change the result are left out; `machine` has device, precision and number of processes.
    """
    # Why there is no cache, and whether it was there already, is told to the reader and changes nothing.
    cache = {key: value for key, value in settings["cache"].items() if key not in ("reason", "reused")}
    call = {
        "model": describe_layers(model),
        "strategy": asdict(strategy),
        "settings": {name: value for name, value in settings.items() if name not in IRRELEVANT} | {"cache": cache},
        "data": {
            name: describe_data(data) | {"probe": _probe(data, settings["seed"])}
            for name, data in (("train", train), ("val", val))
        },
        "machine": dict(machine),
    }
    return json.loads(json.dumps(call, default=str))


def _probe(dataset: Any, seed: int) -> str:
    """Return a digest of some pictures and labels: data sets in memory have no paths to tell them by."""
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
    content = io.BytesIO()
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
        title, _, content = path.read_bytes().partition(b"\n")
        # torch.load takes flipped bytes in a tensor for numbers.
        if title != TITLE + hashlib.sha256(content).hexdigest().encode():
            raise ValueError("it is incomplete, or was changed after it was written")
        state = torch.load(io.BytesIO(content[content.index(b"\n") + 1 :]), map_location="cpu", weights_only=True)
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
        """Return the path of the checkpoint to continue; None if there is none, and a new run begins.

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
        there = [path for path, header in found.items() if self.seen[0] in header.seen and _is_idle(path.parent)]
        if there:
            return max(there, key=lambda path: (len(found[path].history), path.stat().st_mtime))
        if hint := self._near_miss(found):
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
        if not _is_idle(record.folder, on_another_machine=True):
            raise CourseError(f"The run {record.name} is still going on: stop it first.")
        other = differences(read_header(paths[0]).call, self.call)
        if other:
            raise CourseError(
                f"The run {record.name} is one of another call: {'; '.join(other[:4])}. Call fit as it was called "
                "there, or start anew with resume=True."
            )
        return paths[0]

    def _near_miss(self, same_call: Mapping[Path, Header]) -> str:
        """Return a sentence about a run that the caller may have meant; empty if there is none."""
        if same_call:
            run = next(iter(same_call)).parent
            if not _is_idle(run):
                return f"The run {run.name} of the same call is still going on (or was, on another machine)."
            return (
                f"The run {run.name} was the same call, but began with other weights, so a new run begins. "
                f"resume={run.name!r} would take it up."
            )
        for path in runs_root().glob(f"*/{CHECKPOINTS}"):
            with contextlib.suppress(CourseError):
                header = read_header(path)
                if self.seen[0] in header.seen:
                    other = "; ".join(differences(header.call, self.call)[:2])
                    return f"The interrupted run {path.parent.name} was another call ({other}), so a new run begins."
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
        ACTIVE_RUNS.add(folder)
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
    """Return the checkpoint to continue, the same one in all processes; None if there is none."""
    paths = [checkpoints.find(setup.options.resume) if setup.is_first_process else None]
    path = broadcast_object_list(paths)[0] if setup.group.world_size > 1 else paths[0]
    found = None if path is None else read_checkpoint(path)
    setup.accelerator.wait_for_everyone()  # of a complete run one process deletes it soon
    return found


def _is_idle(folder: Path, on_another_machine: bool = False) -> bool:
    """Return True if no process works on a run; `on_another_machine` is the answer where that cannot be seen."""
    record = read_run(folder)
    if record.status != "running":
        return True
    process, own = record.facts["process"], this_process()
    if process["host"] != own["host"]:
        return on_another_machine
    # A run of this very process whose end could not be written, because the disk was full.
    return process["pid"] == own["pid"] and folder not in ACTIVE_RUNS
