"""Results of the ladder's rungs: compared with each other, chosen from, and kept on disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from course_utils.common.errors import CourseError
from course_utils.common.files import written_whole
from course_utils.datasets import Splits
from course_utils.engine.runs import load_run
from course_utils.evaluation import SIGNIFICANT, PairedComparison, Report, compare_models, interval_text

FORMAT = 3
COLUMNS = ("network", "rung", "validation accuracy (95 % interval)", "seconds", "memory MB", "trainable", "run")
REPORTS = ("report", "last")  # of a RungResult
STEP_COLUMNS = ("network", "rung", "against", "points (95 % interval)", "p (Holm)", "seconds", "verdict")


@dataclass(frozen=True)
class RungResult:
    """The result of one rung with one network.

    Parameters
    ----------
    report
        Answers to the validation pictures, for a rung that trains in its best epoch.
    last
        The same after the last epoch, which nothing has chosen; None for a rung that has no epochs.
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
    last: Report | None = None

    @property
    def unchosen(self) -> Report:
        """Answers that no look at the validation pictures has chosen: those that can be tested on them."""
        return self.last or self.report

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
    """A rung beside the best one below it with the same network, compared on the same validation pictures.

    The best of E epochs would not be a single look at these pictures, so rungs are compared as their last epoch left
    them. `p` is the p-value of the exact McNemar test, corrected for all steps of the ladder (:func:`holm`).
    """

    result: RungResult
    below: RungResult
    comparison: PairedComparison
    p: float

    @property
    def worth(self) -> bool:
        """True if the rung is better by more than chance explains."""
        return self.p < SIGNIFICANT and self.comparison.difference > 0

    @property
    def verdict(self) -> str:
        """``"worth it"``, or in which way it is not."""
        if self.comparison.difference <= 0:
            return "not worth it"
        return "worth it" if self.worth else "not shown to be worth it"

    def row(self) -> list[str]:
        """Return the values that stand under ``STEP_COLUMNS``."""
        low, high = self.comparison.interval
        return [
            self.result.model,
            self.result.rung,
            self.below.rung,
            f"{100 * self.comparison.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            f"{self.p:.2f}" if self.p >= 0.01 else f"{self.p:.3f}" if self.p >= 0.001 else "< 0.001",
            f"× {self.result.seconds / max(self.below.seconds, 1e-3):.1f}",
            self.verdict,
        ]


def steps(results: Sequence[RungResult]) -> list[Step]:
    """Return every rung beside the best of those below it, network by network.

    If no rung is better than the best below it, a ladder says "worth it" anywhere with a probability of at most 5 %.
    """
    pairs, best = [], {}
    for result in results:
        below = best.get(result.model)
        if below is not None:
            comparison = compare_models(result.unchosen, below.unchosen, (result.rung, below.rung))
            pairs.append((result, below, comparison))
        if below is None or result.unchosen.right > below.unchosen.right:
            best[result.model] = result
    corrected = holm([comparison.p_value for _, _, comparison in pairs])
    return [Step(*pair, p) for pair, p in zip(pairs, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number m, in the same order.

    The smallest is multiplied by m, the next one by m - 1 and so on, and none gets smaller than one before it. Calling
    those below 5 % real is wrong anywhere with a probability of at most 5 %, however the tests depend on each other
    (Holm 1979, Scandinavian Journal of Statistics 6, 65-70, https://www.jstor.org/stable/4615733).

    >>> holm([0.25, 0.01, 0.02])
    [0.25, 0.03, 0.04]
    """
    order, factors = np.argsort(p_values, kind="stable"), np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return corrected.tolist()


def fewest_to_tell(comparisons: int = 1) -> int:
    """Return on how many pictures a rung alone must be right, against none for the other, to be told apart.

    With several `comparisons` it is the number for the first of them to be told apart.
    """
    return next(k for k in itertools.count(1) if PairedComparison(0, k, 0, 0).p_value * comparisons < SIGNIFICANT)


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
        reports = {name: report for name in REPORTS if (report := getattr(result, name)) is not None}
        answers = {name: np.ascontiguousarray(report.probabilities) for name, report in reports.items()}
        facts = {key: value for key, value in vars(result).items() if key not in REPORTS}
        header = {"format": FORMAT, "weights": weights, "sha256": _sha256(answers), "facts": facts}
        with written_whole(self._path(split, result.name)) as beside:
            beside.write_bytes(save(answers, {"ladder": json.dumps(header)}))

    def load(self, model: str, rung: str, weights: str, split: str = "val") -> RungResult | None:
        """Return a result that was kept; None if there is none, it is damaged, or its network is gone."""
        try:
            with safe_open(self._path(split, f"{model}, {rung}"), framework="numpy") as file:
                header = json.loads(file.metadata()["ladder"])
                answers = {name: file.get_tensor(name) for name in REPORTS if name in file.keys()}  # noqa: SIM118
            if (header["format"], header["weights"], header["sha256"]) != (FORMAT, weights, _sha256(answers)):
                return None
            reports = {name: report_on(self.splits, split, rows) for name, rows in answers.items()}
            result = RungResult(**reports, **header["facts"])
            there = result.run is None or (load_run(result.run).folder / "best.safetensors").is_file()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, CourseError):
            return None
        return result if there else None

    def _path(self, split: str, name: str) -> Path:
        return self.folder / f"{split}-{slug(name)}.safetensors"


def report_on(splits: Splits, split: str, probabilities: np.ndarray) -> Report:
    """Return answers ``(N, C)`` to the pictures of a split as a report."""
    return Report(splits.classes, np.asarray(getattr(splits, split).labels), probabilities)


def slug(text: str) -> str:
    """Return a text as the name of a file: small letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def _sha256(answers: Mapping[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(rows.tobytes() for rows in answers.values())).hexdigest()
