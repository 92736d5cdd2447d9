"""Digests of the weights after ``fit``, for every strategy and embedded network: what is learned stayed the same.

Run it before a change, and again after it::

    python benchmarks/same_weights.py --write before.json
    python benchmarks/same_weights.py --compare before.json

Digests belong to a machine, a version of torch and one thread; they cannot be compared across those.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from helpers import ColourPatches, Noisy

from course_utils.common.command_line import OneLineParser
from course_utils.engine.provenance import weights_digest
from course_utils.fine_tuning import FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, STRATEGIES, Strategy
from course_utils.training import fit

NETWORKS = ("resnet18_mini", "vgg11_mini", "efficientnet_b0_mini", "mobilenet_v3_small_mini")
VAL = 6  # pictures to choose by
IN_EPOCH_2 = 13  # an access to a validation picture that falls into the second epoch


class Stopped(ColourPatches):
    """Validation pictures; one access, of all that are made, is a Stop."""

    deadly: int | None = None
    accesses = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Give a picture, or stop."""
        Stopped.accesses += 1
        if Stopped.accesses == Stopped.deadly:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@dataclass(frozen=True)
class Case:
    """One training whose weights are compared."""

    strategy: Strategy
    network: str
    augmented: bool = False
    resumed: bool = False
    cached: bool = False
    processes: int = 1

    @property
    def name(self) -> str:
        """What it is called in the file."""
        words = [self.strategy.name, self.network]
        words += [word for word in ("augmented", "resumed", "cached") if getattr(self, word)]
        return ", ".join([*words, *(["two processes"] if self.processes > 1 else [])])

    def digest(self) -> str:
        """SHA-256 of the weights that training comes to."""
        model = self.strategy.starting_model(self.network, 3)
        train = (Noisy if self.augmented else ColourPatches)(10, seed=1)
        options: dict[str, Any] = {"epochs": 3 if self.strategy is PROGRESSIVE else 2, "batch_size": 4, "seed": 7}
        options |= {"device": "cpu", "log": "light" if self.resumed else "off", "resume": self.resumed}
        options |= {"cache": "on" if self.cached else "off"}
        Stopped.accesses, Stopped.deadly = 0, IN_EPOCH_2 if self.resumed else None
        if self.resumed:
            with contextlib.suppress(KeyboardInterrupt):
                fit(model, train, Stopped(VAL, seed=2), self.strategy, **options)
            Stopped.deadly = None
        run = fit(model, train, Stopped(VAL, seed=2), self.strategy, **options)
        assert (run.stopped, run.resumed) == ("finished", int(self.resumed)), (self.name, run)
        return weights_digest(model.state_dict())


def cases() -> Iterator[Case]:
    """Every training that is compared."""
    for strategy in STRATEGIES:
        for network in NETWORKS:
            for augmented in (False, True):
                yield Case(strategy, network, augmented)
                yield Case(strategy, network, augmented, resumed=True)
            if strategy in (FEATURE_EXTRACTION, LAST_BLOCK):
                yield Case(strategy, network, cached=True)
            yield Case(strategy, network, augmented=True, processes=2)


def on_this_rank(file: str) -> None:
    """Train every case that wants two processes; for accelerate's launcher, in each of the two."""
    from accelerate import PartialState

    digests = {case.name: case.digest() for case in cases() if case.processes == 2}
    Path(f"{file}.{PartialState().process_index}").write_text(json.dumps(digests), encoding="utf-8")


def all_digests() -> dict[str, str]:
    """Train all cases; a digest by name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"COURSE_RUNS": f"{folder}/runs", "COURSE_ACTIVATIONS": f"{folder}/activations"}
        digests = {case.name: case.digest() for case in cases() if case.processes == 1}
        code = (
            "import sys, torch; from accelerate import debug_launcher; torch.set_num_threads(1); import same_weights; "
            "debug_launcher(same_weights.on_this_rank, (sys.argv[1],), num_processes=2)"
        )
        paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        command = [sys.executable, "-c", code, f"{folder}/two"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths}, capture_output=True)
        ranks = [json.loads(Path(f"{folder}/two.{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert ranks[0] == ranks[1], "the two processes came to different weights"
    return digests | ranks[0]


def main(argv: list[str] | None = None) -> int:
    """Write the digests, or compare them with those of a file; 1 if one differs."""
    parser = OneLineParser(prog="same_weights.py", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", metavar="FILE", type=Path)
    what.add_argument("--compare", metavar="FILE", type=Path)
    arguments = parser.parse_args(argv)
    digests = all_digests()
    if arguments.write:
        arguments.write.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        print(f"{len(digests)} digests in {arguments.write}")
        return 0
    before = json.loads(arguments.compare.read_text(encoding="utf-8"))
    other = [name for name in before | digests if before.get(name) != digests.get(name)]
    print("\n".join([*other, f"{len(digests) - len(other)} of {len(digests)} trainings come to the same weights"]))
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
