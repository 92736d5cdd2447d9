"""Kills runs of ``fit`` with SIGKILL at many points, resumes them, and tells what came out: a script.

Importing torch takes seconds; so one process imports it, and every run is a fork of that one. It has a single thread:
a fork of several does not work.
"""

from __future__ import annotations

import contextlib
import functools
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

import torch
from helpers import Noisy
from torch import nn

from course_utils.engine import checkpoints, run_log
from course_utils.engine.provenance import describe_model, weights_digest
from course_utils.fine_tuning import DISCRIMINATIVE, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.training import fit


class Waiting(Noisy):
    """In the third epoch it says so, and waits for what never comes."""

    accesses = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.accesses += 1
        if self.accesses == 2 + len(self) + 2 * len(self) + 5:  # fit looks at two before the first epoch, resume at all
            print("in epoch 3", flush=True)
            sys.stdin.read()
        return super().__getitem__(index)


UNBALANCED = {"class_weights": [3, 1, 1], "label_smoothing": 0.1, "oversample": True, "choose_by": "macro_f1"}
EARLY = Strategy("early", starts=(0, None), rates=(1e-12,))
# Model, strategy, options, random points at which it is killed, in what of the checkpoint's writing it is killed.
CASES: dict[str, tuple[str, Strategy, dict[str, Any], int, tuple[str, ...]]] = {
    "progressive": ("resnet18_mini", PROGRESSIVE, {"epochs": 3}, 5, ("half written", "before rename", "after rename")),
    "dropout": ("vgg11_mini", LAST_BLOCK, {"epochs": 2}, 3, ("half written", "before unlink")),
    "unbalanced": ("resnet18_mini", DISCRIMINATIVE, {"epochs": 2, **UNBALANCED}, 2, ("before rename", "after unlink")),
    "averaged": ("resnet18_mini", DISCRIMINATIVE, {"epochs": 2, "ema": 0.9, "mix": "mixup"}, 3, ("before rename",)),
    "early": ("resnet18_mini", EARLY, {"epochs": 9, "patience": 1}, 2, ("after rename",)),
}


@functools.cache
def starting_model(name: str) -> nn.Module:
    """Build the model of a case; every fork has its own copy."""
    network, strategy, *_ = CASES[name]
    return strategy.starting_model(network, 3)


def train(
    name: str, root: Path, counter: Moments | None = None, pictures: type[Noisy] = Noisy, **options: Any
) -> dict[str, Any]:
    """Run a case and tell what came out, as plain values."""
    os.environ["COURSE_RUNS"] = str(root)
    _, strategy, more, _, _ = CASES[name]
    model = starting_model(name)
    settings = {"batch_size": 3, "seed": 5, "device": "cpu", "log": "light", "resume": True} | more | options
    with counter or contextlib.nullcontext():
        run = fit(model, pictures(8, 1), Noisy(3, 2), strategy, **settings)
    return {
        "weights": weights_digest(model.state_dict()),
        "history": [asdict(record) | {"seconds": 0} for record in run.history],
        "stopped": run.stopped,
        "best": run.best and run.best.epoch,
        "resumed": run.resumed,
        "left": sorted(path.name for path in run.folder.glob("[!.]*")) if run.folder else [],
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

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *_error: object) -> None:
        sys.setprofile(None)


class Stops(Moments):
    """Counts, and comes as Stop does at the given moment."""

    def __call__(self, *_event: Any) -> None:
        self.count += 1
        if self.count == self.deadly:
            sys.setprofile(None)
            raise KeyboardInterrupt


def deadly_writing(where: str, number: int) -> None:
    """Die in the writing of the n-th checkpoint, or when the last one is deleted."""
    seen = []

    def now(path: Any) -> bool:
        if "checkpoint-" in str(path):
            seen.append(path)
        return len(seen) == number

    def half_open(path: Path, mode: str) -> Any:
        if "w" in mode and now(path):
            Path(path).write_bytes(b"course_utils checkpoint 1 and then")
            die()
        return open(path, mode)

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
    return train(name, root, Moments(deadly))


def killed_while_writing(name: str, root: Path, where: str) -> dict[str, Any]:
    """Run a case that dies while it writes its second checkpoint."""
    deadly_writing(where, 2)
    return train(name, root)


def stopped_at(name: str, root: Path, moment: int) -> dict[str, Any]:
    """Stop a case and call fit again, as the cell of a notebook would: with the model as the Stop left it."""
    with contextlib.suppress(KeyboardInterrupt):
        return train(name, root, Stops(moment))  # Python ignores what is raised while an object is deleted: no Stop
    return train(name, root)


def counted(name: str, root: Path) -> dict[str, Any]:
    """Run a case to its end, unbroken, and count its moments."""
    counter = Moments()
    return train(name, root, counter) | {"moments": counter.count}


def main(folder: Path) -> None:
    """Write ``results.json`` (see :func:`kill_many`). Then be a run to be killed."""
    kill_many(folder)
    train("progressive", folder / "alone", pictures=Waiting)


def kill_many(folder: Path, times: int = 1) -> None:
    """Write ``results.json``: a list of what was killed where, `times` as often as in CASES, and what came of it."""
    torch.set_num_threads(1)
    for name in CASES:
        describe_model(starting_model(name))  # its answer is remembered, and forks have it too
    draw, results = random.Random(1), []
    for name, (_, _, _, points, writing) in CASES.items():
        points *= times
        assert forked(lambda: counted(name, folder / name / "whole"), folder / "whole.json")  # noqa: B023
        whole = json.loads((folder / "whole.json").read_text())
        # One in each part of the run, so that chance does not leave out its end.
        kills = [int((part + draw.random()) * whole["moments"] / points) + 1 for part in range(points)]
        for number, kill in enumerate([*kills, *writing]):
            results.append(killed_and_resumed(name, folder / name / str(number), kill, draw) | {"whole": whole})
        if name == "progressive":
            stops = stopped_and_resumed(name, folder, whole, draw)
    (folder / "results.json").write_text(json.dumps({"kills": results, "stops": stops}), encoding="utf-8")


def stopped_and_resumed(name: str, folder: Path, whole: dict[str, Any], draw: random.Random) -> list[dict[str, Any]]:
    """Stop a run anywhere; the last two times where it is complete and its end is being written."""
    results = []
    for number, (first, last) in enumerate([(0.0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.95, 0.97), (0.97, 0.99)]):
        moment, answer = int(draw.uniform(first, last) * whole["moments"]), folder / "answer.json"
        assert forked(lambda: stopped_at(name, folder / f"stop{number}", moment), answer)  # noqa: B023
        results.append({"moment": moment, "result": json.loads(answer.read_text(encoding="utf-8")), "whole": whole})
    return results


def killed_and_resumed(name: str, root: Path, kill: int | str, draw: random.Random) -> dict[str, Any]:
    """Kill a run, every second one once more soon after, and let the last call come to its end."""
    answer, kills = root.with_suffix(".json"), 0
    root.parent.mkdir(exist_ok=True)
    act = killed_while_writing if isinstance(kill, str) else killed_at
    kills += not forked(lambda: act(name, root, kill), answer)
    if isinstance(kill, int) and kill % 2 == 0:
        kills += not forked(lambda: killed_at(name, root, draw.randrange(1, kill // 2)), answer)
    assert forked(lambda: train(name, root), answer)
    return {"case": name, "kill": kill, "kills": kills, "result": json.loads(answer.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
