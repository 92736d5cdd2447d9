"""Results of the ladder's rungs: compared with each other, chosen from, and kept on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole
from course_utils.datasets import Splits
from course_utils.engine.runs import load_run
from course_utils.evaluation import PairedComparison, Report, compare_models, interval_text

FORMAT = 2
COLUMNS = ("network", "rung", "validation accuracy (95 % interval)", "seconds", "memory MB", "trainable", "run")
STEP_COLUMNS = ("network", "rung", "against", "points (95 % interval)", "p", "seconds", "verdict")


@dataclass(frozen=True)
class RungResult:
    """The result of one rung with one network.

    Parameters
    ----------
    report
        Answers to the validation pictures.
    seconds, memory
        Time, and peak of memory in bytes (:class:`~course_utils.common.measuring.Measured`). For kNN and the probe the
        time that it took to read the pictures and cache their features is in it; a rung that trains finds them decoded.
    trainable
        Number of parameters that learn, in the epoch in which most of them do.
    run, detail
        Name of the run whose folder has the network, None for kNN; the choice on the way, such as ``"k = 5"``.
    """

    model: str
    rung: str
    report: Report
    seconds: float
    memory: int
    trainable: int
    run: str | None = None
    detail: str = ""

    @property
    def name(self) -> str:
        """Network and rung."""
        return f"{self.model}, {self.rung}"

    @property
    def accuracy(self) -> str:
        """Validation accuracy with its interval, as text."""
        return interval_text(self.report.right, len(self.report.labels))

    @property
    def run_id(self) -> str | None:
        """The short name of the run, which the commands take."""
        return self.run and self.run.rpartition("-")[2]

    def row(self) -> list[object]:
        """Return the values that stand under ``COLUMNS``."""
        memory = round(self.memory / 1e6)
        return [self.model, self.rung, self.accuracy, f"{self.seconds:.1f}", memory, self.trainable, self.run_id]


@dataclass(frozen=True)
class Step:
    """A rung beside the best one below it with the same network, compared on the same validation pictures."""

    result: RungResult
    below: RungResult
    comparison: PairedComparison

    @property
    def worth(self) -> bool:
        """True if the rung is better by more than chance explains."""
        return self.comparison.distinguishable and self.comparison.difference > 0

    @property
    def verdict(self) -> str:
        """``"worth it"``, or in which way it is not."""
        if self.comparison.distinguishable:
            return "worth it" if self.worth else "not worth it, it is worse"
        return "not shown to be worth it" if self.comparison.difference > 0 else "not worth it"

    def row(self) -> list[str]:
        """Return the values that stand under ``STEP_COLUMNS``."""
        low, high = self.comparison.interval
        p = self.comparison.p_value
        return [
            self.result.model,
            self.result.rung,
            self.below.rung,
            f"{100 * self.comparison.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            f"{p:.2f}" if p >= 0.01 else f"{p:.3f}" if p >= 0.001 else "< 0.001",
            f"× {self.result.seconds / max(self.below.seconds, 1e-3):.1f}",
            self.verdict,
        ]


def steps(results: Sequence[RungResult]) -> list[Step]:
    """Return every rung beside the best of those below it, network by network."""
    found, best = [], {}
    for result in results:
        below = best.get(result.model)
        if below is not None:
            pair = compare_models(result.report, below.report, (result.rung, below.rung))
            found.append(Step(result, below, pair))
        if below is None or result.report.right > below.report.right:
            best[result.model] = result
    return found


def fewest_to_tell() -> int:
    """Return on how many pictures a rung alone must be right, against none for the other, to be told apart."""
    return next(k for k in itertools.count(1) if PairedComparison(0, k, 0, 0).distinguishable)


def choose(results: Sequence[RungResult]) -> RungResult:
    """Return the result with the highest validation accuracy among those that left a network; of equals the first.

    Raises a CourseError if there is none.
    """
    networks = [result for result in results if result.run is not None]
    if not networks:
        raise CourseError("No rung of this ladder left a network, so there is none to choose; see what failed above.")
    return max(networks, key=lambda result: result.report.right)


class ResultStore:
    """The folder in which finished rungs are kept: one safetensors file each, with its facts in the header.

    Parameters
    ----------
    folder, splits
        The folder, which is made when something is written, and the data set that the answers are about.
    """

    def __init__(self, folder: Path, splits: Splits) -> None:
        self.folder, self.splits = folder, splits

    def save(self, result: RungResult, weights: str, split: str = "val") -> None:
        """Keep a result whose report is on `split`; `weights` is the fingerprint of the pre-trained weights."""
        probabilities = np.ascontiguousarray(result.report.probabilities)
        facts = {key: value for key, value in vars(result).items() if key != "report"}
        header = {"format": FORMAT, "weights": weights, "sha256": _sha256(probabilities), "facts": facts}
        with written_whole(self._path(split, result.name)) as beside:
            beside.write_bytes(save({"probabilities": probabilities}, {"ladder": json.dumps(header)}))

    def load(self, model: str, rung: str, weights: str, split: str = "val") -> RungResult | None:
        """Return a result that was kept; None if there is none, it is damaged, or its network is gone."""
        try:
            with safe_open(self._path(split, f"{model}, {rung}"), framework="numpy") as file:
                header = json.loads(file.metadata()["ladder"])
                probabilities = file.get_tensor("probabilities")
            if (header["format"], header["weights"], header["sha256"]) != (FORMAT, weights, _sha256(probabilities)):
                return None
            result = RungResult(report=report_on(self.splits, split, probabilities), **header["facts"])
            there = result.run is None or (load_run(result.run).folder / "best.safetensors").is_file()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, CourseError):
            return None
        return result if there else None

    def tested(self) -> list[str]:
        """Return the names under which answers to the test pictures are kept."""
        return sorted(path.stem for path in self.folder.glob("test-*.safetensors"))

    def _path(self, split: str, name: str) -> Path:
        return self.folder / f"{split}-{slug(name)}.safetensors"


def report_on(splits: Splits, split: str, probabilities: np.ndarray) -> Report:
    """Return answers ``(N, C)`` to the pictures of a split as a report."""
    return Report(splits.classes, np.asarray(getattr(splits, split).labels), probabilities)


def slug(text: str) -> str:
    """Return a text as the name of a file: small letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def _sha256(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()
