"""Kills runs of ``fit`` with SIGKILL at many points, resumes them, and tells what came out. A script for a fresh process.

Importing torch takes seconds; so one process imports it, and every run is a fork of that one. It has a single thread:
a fork of several does not work.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import ColourPatches

from course_utils import checkpoints, run_log
from course_utils.fine_tuning import DISCRIMINATIVE, FROM_SCRATCH, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.provenance import describe_model, weights_digest
from course_utils.training import fit


class Noisy(ColourPatches):
    """Augmentation that draws from all three generators."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image) + 0.1 * random.random() + 0.1 * np.random.rand(), label


UNBALANCED = {"class_weights": [3, 1, 1], "label_smoothing": 0.1, "oversample": True}
EARLY = Strategy("early", starts=(0, None), rates=(1e-9,))
# Model, strategy, options, random points at which it is killed, in what of the checkpoint's writing it is killed.
CASES: dict[str, tuple[str, Strategy, dict[str, Any], int, tuple[str, ...]]] = {
    "progressive": ("resnet18_mini", PROGRESSIVE, {"epochs": 4}, 9, ("half written", "before rename", "after rename")),
    "dropout": ("vgg11_mini", LAST_BLOCK, {"epochs": 2}, 4, ("half written", "before unlink")),
    "discriminative": ("mobilenet_v3_small_mini", DISCRIMINATIVE, {"epochs": 2}, 3, ("after unlink",)),
    "unbalanced": ("resnet18_mini", FROM_SCRATCH, {"epochs": 2, **UNBALANCED}, 3, ("before rename",)),
    "early": ("resnet18_mini", EARLY, {"epochs": 9, "patience": 1}, 3, ("after rename",)),
}


def train(name: str, root: Path, **options: Any) -> dict[str, Any]:
    """Run a case and tell what came out, as plain values."""
    os.environ["COURSE_RUNS"] = str(root)
    network, strategy, more, _, _ = CASES[name]
    model = strategy.starting_model(network, 3)
    settings = {"batch_size": 3, "seed": 5, "device": "cpu", "log": "light", "resume": True} | more | options
    run = fit(model, Noisy(7, 1, side=32), Noisy(4, 2, side=32), strategy, **settings)
    return {
        "weights": weights_digest(model.state_dict()),
        "history": [asdict(record) | {"seconds": 0} for record in run.history],
        "stopped": run.stopped,
        "best": run.best.epoch,
        "resumed": run.resumed,
        "left": sorted(path.name for path in run.folder.iterdir()) if run.folder else [],
        "rows": len(run_log.read_history(run.folder / "history.csv")) if run.folder else 0,
    }


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def forked(act: Callable[[], Any], answer: Path) -> bool:
    """Run `act` in a fork and write what it returns as JSON; False if the fork was killed."""
    process = os.fork()
    if process == 0:
        try:
            answer.write_text(json.dumps(act()), encoding="utf-8")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "a run failed; see above"
    return True


class Moments:
    """Counts calls and returns of Python and C functions, and dies at a given one: any moment can be meant."""

    def __init__(self, deadly: int | None = None) -> None:
        self.count, self.deadly = 0, deadly

    def __call__(self, *_event: Any) -> None:
        self.count += 1
        if self.count == self.deadly:
            die()


@contextlib.contextmanager
def moments(deadly: int | None = None):
    """Count in the block."""
    counter = Moments(deadly)
    sys.setprofile(counter)
    try:
        yield counter
    finally:
        sys.setprofile(None)


def deadly_writing(where: str, number: int) -> None:
    """Die in the writing of the n-th checkpoint, or when the last one is deleted."""
    seen = []

    def now(path: Any) -> bool:
        if "checkpoint-" in str(path):
            seen.append(path)
        return len(seen) == number

    def half_open(path: Path, mode: str) -> Any:
        file = open(path, mode, buffering=0)
        if "w" in mode and now(path):
            file.write(b"course_utils checkpoint 1 and then")
            die()
        return file

    def replace(source: Any, target: Any, real: Callable = os.replace) -> None:
        if where == "before rename" and now(target):
            die()
        real(source, target)
        if where == "after rename" and now(target):
            die()

    def unlink(path: Path, missing_ok: bool = False, real: Callable = Path.unlink) -> None:
        doomed = path.name.startswith("checkpoint-")
        if doomed and where == "before unlink":
            die()
        real(path, missing_ok=missing_ok)
        if doomed and where == "after unlink":
            die()

    if where == "half written":
        checkpoints.open = half_open
    os.replace, Path.unlink = replace, unlink


def killed_at(name: str, root: Path, deadly: int) -> dict[str, Any]:
    """Run a case that dies at a moment."""
    with moments(deadly):
        return train(name, root)


def killed_while_writing(name: str, root: Path, where: str) -> dict[str, Any]:
    """Run a case that dies while it writes its second checkpoint."""
    deadly_writing(where, 2)
    return train(name, root)


def counted(name: str, root: Path) -> dict[str, Any]:
    """Run a case to its end and count its moments."""
    with moments() as counter:
        result = train(name, root, resume=False)
    return result | {"moments": counter.count}


def main(folder: Path) -> None:
    """Write ``results.json``: a list of what was killed where, and whether it came to the same."""
    torch.set_num_threads(1)
    for network in {case[0] for case in CASES.values()}:
        describe_model(FROM_SCRATCH.starting_model(network, 3))  # its answer is remembered, and forks have it too
    draw, results = random.Random(1), []
    for name, (_, _, _, points, writing) in CASES.items():
        assert forked(lambda: counted(name, folder / name / "whole"), folder / "whole.json")  # noqa: B023
        whole = json.loads((folder / "whole.json").read_text())
        kills = [draw.randrange(1, whole["moments"]) for _ in range(points)]
        for number, kill in enumerate([*kills, *writing]):
            results.append(killed_and_resumed(name, folder / name / str(number), kill, draw) | {"whole": whole})
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def killed_and_resumed(name: str, root: Path, kill: int | str, draw: random.Random) -> dict[str, Any]:
    """Kill a run, a third of them once more, and let the last call come to its end."""
    answer, kills = root.with_suffix(".json"), 0
    root.parent.mkdir(exist_ok=True)
    act = killed_while_writing if isinstance(kill, str) else killed_at
    kills += not forked(lambda: act(name, root, kill), answer)
    if isinstance(kill, int) and kill % 3 == 0:
        kills += not forked(lambda: killed_at(name, root, draw.randrange(1, kill + 1)), answer)
    assert forked(lambda: train(name, root), answer)
    return {"case": name, "kill": kill, "kills": kills, "result": json.loads(answer.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
