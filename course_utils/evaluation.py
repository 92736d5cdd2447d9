"""How good is it, and how sure is that: a report with intervals, a paired test of two models, baselines.

The way through it: ``evaluate(model, dataset)`` asks a model about every sample once and gives a :class:`Report`, which
holds the answers and computes everything else from them. ``compare_models(first, second)`` takes two reports on the
same samples. ``plot_confusion(report)`` and ``plot_mistakes(report, dataset)`` draw.
"""

from __future__ import annotations

import math
import os
import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating
from course_utils.common.tables import markdown_table, percent, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from sklearn.pipeline import Pipeline

Z95 = 1.959963984540054
FEWEST_RESAMPLES = 100
SIGNIFICANT = 0.05


def wilson_interval(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Where the true accuracy plausibly lies when `right` of `total` answers were right.

    Parameters
    ----------
    right, total
        Counts, ``0 <= right <= total`` and ``total >= 1``.
    z
        Standard normal quantile; 1.96 gives 95 %.

    Returns
    -------
    low, high
        In [0, 1]. Unlike ``p ± z·sd`` it stays there, and it has a width even at 0 % and 100 %
        (Wilson 1927, https://doi.org/10.2307/2276774).
    """
    if total < 1 or not 0 <= right <= total:
        raise CourseError(f"{right} right of {total}: an interval needs 0 <= right <= total and total >= 1.")
    p = right / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def interval_text(right: int, total: int) -> str:
    """Accuracy, its 95 % interval and the number of samples: ``"83.3 % (75.7 to 88.9, n = 120)"``."""
    low, high = wilson_interval(right, total)
    return f"{right / total:.1%} ({100 * low:.1f} to {100 * high:.1f}, n = {total})".replace("%", " %")


@dataclass(frozen=True)
class Report:
    """What a model answered on a data set, and what follows from it.

    Only the answers are stored; every number is computed from them, with the definitions of scikit-learn.

    Parameters
    ----------
    classes
        Names, in the order of the labels.
    labels, probabilities
        int ``(N,)`` with N at least 1, and float ``(N, C)`` with rows that sum to 1.
    names
        File name of each sample, from the folder that all of them share and with ``/`` on every system; empty if the
        data set does not know them.

    Raises
    ------
    CourseError
        If the lengths do not fit together or a label is no index into ``classes``.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.labels)
        if size == 0 or self.probabilities.shape != (size, len(self.classes)) or len(self.names) not in (0, size):
            raise CourseError(
                f"{size} labels, probabilities of shape {self.probabilities.shape}, {len(self.classes)} classes and "
                f"{len(self.names)} names make no report: it needs N labels (one or more), probabilities (N, C), the "
                "names of the C classes, and a name for each of the N samples or for none."
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise CourseError(
                f"The labels run from {self.labels.min()} to {self.labels.max()}; with {len(self.classes)} classes "
                f"they must be from 0 to {len(self.classes) - 1}."
            )

    # --- answers -------------------------------------------------------------------------------------------------

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each sample, int ``(N,)``."""
        return self.probabilities.argmax(1)

    @property
    def right(self) -> int:
        """How many samples were answered right."""
        return int((self.predictions == self.labels).sum())

    def mistakes(self) -> list[int]:
        """Indices of the wrong answers, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")].tolist()

    def samples(self) -> list[dict[str, Any]]:
        """Every answer by itself, in the order of the data set.

        Returns
        -------
        list of dict
            Per sample: ``index``, ``name`` (None if unknown), ``true`` and ``predicted`` (names of classes),
            ``probability`` of the predicted class in [0, 1], and ``right`` (bool).
        """
        return [
            {
                "index": i,
                "name": self.names[i] if self.names else None,
                "true": self.classes[label],
                "predicted": self.classes[answer],
                "probability": float(self.probabilities[i, answer]),
                "right": bool(label == answer),
            }
            for i, (label, answer) in enumerate(zip(self.labels, self.predictions, strict=True))
        ]

    # --- all classes together ------------------------------------------------------------------------------------

    @property
    def accuracy(self) -> float:
        """Share of samples answered right, in [0, 1]."""
        return self.right / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson_interval(self.right, len(self.labels))

    @property
    def macro_f1(self) -> float:
        """Mean of :attr:`f1` over the classes that occur, in [0, 1]: a rare class counts as much as a frequent one.

        A class without samples is left out, because there was nothing to find. (scikit-learn counts it as 0 as soon as
        the model answers with it once; ``f1_score(..., labels=np.unique(labels))`` is what is computed here.)
        """
        matrix = self.confusion
        return float(_macro_f1(np.diag(matrix), matrix.sum(1), matrix.sum(0)))

    def macro_f1_interval(self, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the macro F1 by the bootstrap: how it varies over test sets drawn from this one.

        Wilson's formula holds for shares of samples, which F1 is none of. The bootstrap needs no formula: draw N of
        the N samples with replacement, compute the score, repeat, and cut off 2.5 % at either end
        (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

        Parameters
        ----------
        resamples
            How often it is repeated, at least 100.
        seed
            Of a generator of its own; the same seed gives the same interval.

        Returns
        -------
        low, high
            In [0, 1]. Without a single mistake both are 1: what did not happen in the test set cannot be drawn from
            it. Look at :attr:`interval` then.

        Raises
        ------
        CourseError
            If `resamples` is below 100.
        """
        if resamples < FEWEST_RESAMPLES:
            raise CourseError(
                f"resamples={resamples} was given: to cut off 2.5 % at either end takes at least "
                f"{FEWEST_RESAMPLES}, and 2000 are usual."
            )
        generator = np.random.default_rng(seed)
        size, classes, predictions = len(self.labels), len(self.classes), self.predictions
        counts = np.empty((3, resamples, classes))
        for i in range(resamples):
            drawn = generator.integers(0, size, size)
            true, predicted = self.labels[drawn], predictions[drawn]
            for j, found in enumerate((true[true == predicted], true, predicted)):
                counts[j, i] = np.bincount(found, minlength=classes)
        low, high = np.quantile(_macro_f1(*counts), [0.025, 0.975])
        return float(low), float(high)

    # --- class by class ------------------------------------------------------------------------------------------

    @property
    def confusion(self) -> np.ndarray:
        """Counts ``(C, C)``: rows are the true classes, columns the predicted ones."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predictions, minlength=size * size).reshape(size, size)

    @property
    def precisions(self) -> np.ndarray:
        """For each class, the share of the answers with it that were right, ``(C,)``; 0 for one never answered."""
        return _share(np.diag(self.confusion), self.confusion.sum(0))

    @property
    def recalls(self) -> np.ndarray:
        """For each class, the share of its samples that was recognised, ``(C,)``; NaN for a class without samples."""
        return _share(np.diag(self.confusion), self.confusion.sum(1), nothing=np.nan)

    @property
    def recall_intervals(self) -> np.ndarray:
        """Wilson's 95 % interval of each recall, ``(C, 2)``; NaN for a class without samples."""
        matrix = self.confusion
        rows = zip(np.diag(matrix), matrix.sum(1), strict=True)
        return np.array([wilson_interval(int(k), int(n)) if n else (np.nan, np.nan) for k, n in rows])

    @property
    def f1(self) -> np.ndarray:
        """For each class, the harmonic mean of precision and recall, ``(C,)`` in [0, 1].

        It is high only if both are. 0 where no sample was recognised, for a class without samples too
        (scikit-learn's ``zero_division=0``).
        """
        return _f1(np.diag(self.confusion), self.confusion.sum(1), self.confusion.sum(0))

    # --- to print and to store -----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain Python values, ready for ``json.dump``.

        Returns
        -------
        dict
            ``n``, ``right``, ``classes``, ``accuracy``, ``accuracy_interval``, ``macro_f1``, ``macro_f1_interval``,
            ``per_class`` (one dict each: ``class``, ``n``, ``predicted``, ``precision``, ``recall``,
            ``recall_interval``, ``f1``; the recall of a class without samples is None) and ``confusion``. Shares are
            in [0, 1], intervals ``[low, high]`` hold 95 %. The answers themselves are in :meth:`samples`.
        """
        return {
            "n": len(self.labels),
            "right": self.right,
            "classes": list(self.classes),
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            "macro_f1": self.macro_f1,
            "macro_f1_interval": list(self.macro_f1_interval()),
            "per_class": self._per_class(),
            "confusion": self.confusion.tolist(),
        }

    def to_markdown(self) -> str:
        """The report as Markdown: one line for all, a table of the classes, and the confusion matrix."""
        names = [_for_markdown(name) for name in self.classes]
        rows = [[name, *row[1:]] for name, row in zip(names, self._rows(), strict=True)]
        matrix = [[f"**{name}**", *counts] for name, counts in zip(names, self.confusion.tolist(), strict=True)]
        parts = [
            self._all_in_one_line(),
            markdown_table(_COLUMNS, rows),
            "Confusion matrix: true classes in rows, predicted ones in columns.",
            markdown_table(["", *names], matrix),
        ]
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        """Precision, recall and F1 by class, then all classes in one line; a dash where there is nothing to divide."""
        return text_table(_COLUMNS, self._rows()) + "\n" + self._all_in_one_line()

    def _all_in_one_line(self) -> str:
        low, high = self.macro_f1_interval()
        return (
            f"all: accuracy {interval_text(self.right, len(self.labels))}, "
            f"macro F1 {percent(self.macro_f1)} ({100 * low:.1f} to {100 * high:.1f})"
        )

    def _per_class(self) -> list[dict[str, Any]]:
        numbers = zip(
            self.classes,
            self.confusion.sum(1).tolist(),
            self.confusion.sum(0).tolist(),
            self.precisions.tolist(),
            self.recalls.tolist(),
            self.recall_intervals.tolist(),
            self.f1.tolist(),
            strict=True,
        )
        return [
            {
                "class": name,
                "n": n,
                "predicted": predicted,
                "precision": precision,
                "recall": recall if n else None,  # JSON has no NaN
                "recall_interval": interval if n else None,
                "f1": f1,
            }
            for name, n, predicted, precision, recall, interval, f1 in numbers
        ]

    def _rows(self) -> list[list[object]]:
        """One row of text per class."""
        return [
            [
                row["class"],
                row["n"],
                percent(row["precision"]) if row["predicted"] else None,
                _share_and_interval(row["recall"], *row["recall_interval"]) if row["n"] else "no samples",
                percent(row["f1"]) if row["n"] else None,
            ]
            for row in self._per_class()
        ]


_COLUMNS = ("class", "n", "precision", "recall (95 % interval)", "F1")


def _share(part: np.ndarray, whole: np.ndarray, nothing: float = 0.0) -> np.ndarray:
    """``part / whole``, and `nothing` where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(whole), nothing), where=whole > 0)


def _f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 of each class from counts ``(…, C)``: how many were recognised, how many there are, how many were answered."""
    return _share(2 * hits, true + predicted)


def _macro_f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 ``(…)`` over the classes that occur."""
    return (_f1(hits, true, predicted) * (true > 0)).sum(-1) / (true > 0).sum(-1)


def _share_and_interval(share: float, low: float, high: float) -> str:
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def _for_markdown(name: str) -> str:
    return name.replace("|", "\\|")


def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64) -> Report:
    """Ask a model about every sample of a data set.

    Parameters
    ----------
    model
        Run in eval mode without gradients, left as it was found.
    dataset
        Gives ``(image, label)``; has ``classes``, or the classes are numbered. From its ``paths``, where it has them,
        come the names of the samples.
    batch_size
        Pictures per forward pass.

    Raises
    ------
    CourseError
        If the data set is empty, has another number of classes than the model has outputs, or labels beyond them; if
        the model's answers are no numbers.
    """
    if len(dataset) == 0:
        raise CourseError("The data set is empty: there is nothing to evaluate on.")
    probabilities, labels = [], []
    device = next(model.parameters()).device
    with evaluating(model):
        # A loader draws a number even when it does not shuffle; its own generator keeps the caller's untouched.
        for images, targets in DataLoader(dataset, batch_size=batch_size, generator=torch.Generator()):
            probabilities.append(model(images.to(device)).float().softmax(1).cpu().numpy())
            labels.append(np.asarray(targets))
    scores = np.concatenate(probabilities)
    names = getattr(dataset, "classes", None) or [str(i) for i in range(scores.shape[1])]
    if len(names) != scores.shape[1]:
        raise CourseError(
            f"The model has {scores.shape[1]} outputs, the data set {len(names)} classes ({', '.join(names[:6])}). "
            f"Give the model a head for them: replace_head(model, {len(names)})."
        )
    broken = int((~np.isfinite(scores).all(1)).sum())
    if broken:
        raise CourseError(
            f"For {broken} of {len(scores)} samples the model's answer is not a number (NaN). Either its weights are "
            "damaged, as after a training that diverged, or these pictures hold values that are no numbers."
        )
    return Report(tuple(names), np.concatenate(labels), scores, _sample_names(dataset))


def _sample_names(dataset: Dataset) -> tuple[str, ...]:
    """Files of a data set that has ``paths``, named from the deepest folder that all of them lie in."""
    try:
        paths = [Path(path) for path in getattr(dataset, "paths", ())]
    except TypeError:  # somebody's own data set may mean something else by that word
        return ()
    if len(paths) != len(dataset):
        return ()
    try:
        shared = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # two drives, or absolute paths among relative ones: there is no such folder
        return tuple(path.name for path in paths)
    return tuple(path.relative_to(shared).as_posix() for path in paths)


# --- two models on the same samples ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """Two models that answered the same samples: where they differ, and whether chance would do that.

    It is about these two trained networks and what other test pictures would say. How much another training seed would
    change is another question, which takes several runs to answer.

    Parameters
    ----------
    both_right, only_first, only_second, both_wrong
        How many samples were answered right by whom.
    names
        What the two are called when this is printed.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    names: tuple[str, str] = ("the first model", "the second model")

    @property
    def n(self) -> int:
        """How many samples both models answered."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    @property
    def accuracies(self) -> tuple[float, float]:
        """Share of right answers of the first and of the second model."""
        return (self.both_right + self.only_first) / self.n, (self.both_right + self.only_second) / self.n

    @property
    def difference(self) -> float:
        """Accuracy of the first minus accuracy of the second, in [-1, 1]."""
        return (self.only_first - self.only_second) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, by Newcombe's method for paired proportions.

        The distances from each accuracy to the ends of its Wilson interval are combined like two sides of a triangle
        to the third. The correlation of the two models' successes is the cosine of the angle between them: models that
        fail on the same samples can be told apart more finely.
        (Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10, https://pubmed.ncbi.nlm.nih.gov/9839354)
        """
        first, second = self.accuracies
        low1, high1 = wilson_interval(self.both_right + self.only_first, self.n)
        low2, high2 = wilson_interval(self.both_right + self.only_second, self.n)
        phi = self._correlation()
        return (
            self.difference - _third_side(first - low1, high2 - second, phi),
            self.difference + _third_side(high1 - first, second - low2, phi),
        )

    def _correlation(self) -> float:
        """Phi of the four counts; a positive one is made smaller by Newcombe's correction for small samples."""
        a, b, c, d = self.both_right, self.only_first, self.only_second, self.both_wrong
        product = (a + b) * (c + d) * (a + c) * (b + d)
        numerator = a * d - b * c
        if numerator > 0:
            numerator = max(numerator - self.n / 2, 0)
        return numerator / math.sqrt(product) if product else 0.0

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: how often chance makes the difference at least as large, in [0, 1].

        Samples on which both are right or both wrong say nothing about which one is better. Among the others, equally
        good models would share out the successes like a fair coin (McNemar 1947, https://doi.org/10.1007/BF02295996).
        """
        from scipy.stats import binomtest

        disagreements = self.only_first + self.only_second
        return float(binomtest(self.only_first, disagreements).pvalue) if disagreements else 1.0

    @property
    def distinguishable(self) -> bool:
        """Whether chance is an unlikely explanation: a p-value below 0.05.

        Close to that border the interval, which is an approximation, may say otherwise; the test is exact.
        """
        return self.p_value < SIGNIFICANT

    def __str__(self) -> str:
        (first, second), (a, b) = self.names, self.accuracies
        low, high = self.interval
        return "\n".join(
            [
                f"{first} {percent(a)}, {second} {percent(b)} of the same {self.n} samples: difference "
                f"{100 * self.difference:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})",
                f"right: both {self.both_right}, only {first} {self.only_first}, only {second} {self.only_second}, "
                f"neither {self.both_wrong}",
                self._verdict(),
            ]
        )

    def _verdict(self) -> str:
        disagreements = self.only_first + self.only_second
        if not disagreements:
            return f"not distinguishable with n = {self.n}: they are right and wrong on the very same samples"
        better = self.names[0] if self.difference > 0 else self.names[1]
        verdict = f"{better} is better" if self.distinguishable else "not distinguishable"
        p = f"p = {self.p_value:.2g}" if self.p_value >= 0.001 else "p < 0.001"
        low, high = self.interval
        border = "; the interval, an approximation, says otherwise: a border case"
        return (
            f"{verdict} with n = {self.n}: only one of them is right on {disagreements} samples, and chance would "
            f"share these out {self.only_first} to {self.only_second} or more unevenly with {p} (exact McNemar test)"
            f"{border if self.distinguishable == (low <= 0 <= high) else ''}"
        )


def _third_side(side: float, other: float, cosine: float) -> float:
    # Rounding may push the square of a length of nearly zero below it.
    return math.sqrt(max(0.0, side * side + other * other - 2 * cosine * side * other))


def compare_models(
    first: Report, second: Report, names: tuple[str, str] = ("the first model", "the second model")
) -> PairedComparison:
    """Compare two models sample by sample, which sees smaller differences than two accuracies with their intervals.

    Parameters
    ----------
    first, second
        Reports on the same data set, in the same order.
    names
        What the two are called when the result is printed.

    Raises
    ------
    CourseError
        If the reports are not about the same samples.
    """
    _require_same_samples(first, second)
    a, b = first.predictions == first.labels, second.predictions == second.labels
    counts = (int(part.sum()) for part in (a & b, a & ~b, ~a & b, ~a & ~b))
    return PairedComparison(*counts, names=tuple(names))


def _require_same_samples(first: Report, second: Report) -> None:
    advice = "Evaluate both models on one data set, in one order, and compare these two reports."
    if first.classes != second.classes:
        raise CourseError(
            f"The first report has the classes {', '.join(first.classes[:6])}, the second "
            f"{', '.join(second.classes[:6])}. {advice}"
        )
    if len(first.labels) != len(second.labels):
        raise CourseError(
            f"The first report is about {len(first.labels)} samples, the second about {len(second.labels)}. {advice}"
        )
    if first.names and second.names and first.names != second.names:
        i = next(i for i, pair in enumerate(zip(first.names, second.names, strict=True)) if pair[0] != pair[1])
        raise CourseError(
            f"The reports are about different samples: number {i} is {first.names[i]} in the first and "
            f"{second.names[i]} in the second. {advice}"
        )
    different = int((first.labels != second.labels).sum())
    if different:
        raise CourseError(
            f"The reports are about different samples: {different} of {len(first.labels)} labels differ. {advice}"
        )


# --- figures -----------------------------------------------------------------------------------------------------


def plot_confusion(report: Report, normalise: bool = False) -> Figure:
    """Draw the confusion matrix of a report.

    Parameters
    ----------
    report
        From :func:`evaluate`.
    normalise
        Show what share of each true class went where, instead of counts: with classes of different sizes the colours
        of the rows can then be compared. The diagonal holds the recalls.
    """
    from course_utils import plots

    return plots.confusion(report.confusion, report.classes, normalise=normalise)


def plot_mistakes(report: Report, dataset: Dataset, n: int = 12, columns: int = 6, weights: Any = None) -> Figure:
    """Draw the wrong answers that the model was surest of, under titles such as "ant → bee, 93 %".

    Parameters
    ----------
    report
        From :func:`evaluate`.
    dataset
        What it was evaluated on. A :class:`~course_utils.datasets.PhotoDataset` is asked for its pictures without the
        transform; any other has to give PIL pictures, or tensors in [0, 1], or normalised tensors with `weights`.
    n
        How many at most, at least 1.
    columns
        Pictures per row.
    weights
        Weights entry whose normalisation the tensors of `dataset` have.

    Returns
    -------
    Figure
        If everything was answered right, it says so in words: a cell that draws mistakes must not fail on the reader's
        own data because the model is good.

    Raises
    ------
    CourseError
        If the data set is not the one of the report, or its tensors cannot be shown as they are.
    """
    from course_utils import plots

    if n < 1 or columns < 1:
        raise CourseError(f"n={n} pictures in {columns} columns were asked for: both must be 1 or more.")
    if len(dataset) != len(report.labels):
        raise CourseError(
            f"The report is about {len(report.labels)} samples, the data set has {len(dataset)}. Give the data set "
            "that the model was evaluated on."
        )
    worst = report.mistakes()[:n]
    if not worst:
        return plots.message(f"No mistakes: all {len(dataset)} samples were answered right.")
    if hasattr(dataset, "with_transform"):
        dataset = dataset.with_transform(None)
    pictures = [_picture(report, dataset, i, weights) for i in worst]
    return plots.picture_grid(pictures, [_title(report, i) for i in worst], columns=min(columns, len(worst)))


def _title(report: Report, index: int) -> str:
    true, answer = report.labels[index], report.predictions[index]
    percent = f"{100 * report.probabilities[index, answer]:.0f}\N{NO-BREAK SPACE}%"  # never a line with "%" alone
    return textwrap.fill(f"{report.classes[true]} → {report.classes[answer]}, {percent}", 20)  # fits above a picture


def _picture(report: Report, dataset: Dataset, index: int, weights: Any) -> Any:
    """Sample of a data set as something that can be shown, after a look at whether it is the one of the report."""
    picture, label = dataset[index]
    if int(label) != report.labels[index]:
        raise CourseError(
            f"Sample {index} has the label {int(label)} in the data set and {report.labels[index]} in the report. Give "
            "the data set that the model was evaluated on, in the same order."
        )
    if not isinstance(picture, torch.Tensor):
        return picture
    if weights is not None:
        from course_utils.transforms import denormalise

        return denormalise(picture, weights)
    low, high = float(picture.min()), float(picture.max())
    if low < -0.01 or high > 1.01:  # interpolation may overshoot by a trifle
        raise CourseError(
            f"Sample {index} is a tensor with values from {low:.2f} to {high:.2f}; only values from 0 to 1 are "
            "colours. Give the weights entry whose transform made it, plot_mistakes(..., weights=entry), or a data set "
            "of PIL pictures."
        )
    return picture


# --- baselines ---------------------------------------------------------------------------------------------------


def majority_baseline(train_labels: Sequence[int], test_labels: Sequence[int]) -> int:
    """How many test samples are right when every answer is the most frequent class of the training labels."""
    if not len(train_labels):
        raise CourseError("There are no training labels: no class is the most frequent one.")
    counts = Counter(int(label) for label in train_labels)
    answer = min(counts, key=lambda label: (-counts[label], label))
    return sum(int(label) == answer for label in test_labels)


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, test_features: torch.Tensor, penalty: float = 1.0
) -> np.ndarray:
    """Logistic regression on fixed features: what a new head is, fitted by scikit-learn.

    Parameters
    ----------
    features, labels
        Training data ``(N, D)`` and ``(N,)``.
    test_features
        ``(M, D)``, answered after the same standardisation.
    penalty
        Strength of the L2 penalty, above 0; scikit-learn's ``1 / C``.

    Returns
    -------
    ndarray
        Predicted labels ``(M,)``.
    """
    return probe(penalty).fit(np.asarray(features), np.asarray(labels)).predict(np.asarray(test_features))


def probe(penalty: float = 1.0) -> Pipeline:
    """The unfitted model behind :func:`linear_probe`: standardise, then logistic regression.

    Parameters
    ----------
    penalty
        As there.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=2000))


def color_histograms(dataset: Dataset, bins: int = 6) -> torch.Tensor:
    """How much of each colour a picture has, and nothing else: the baseline that cannot see form.

    Parameters
    ----------
    dataset
        Gives ``(image, label)`` with PIL pictures: use ``dataset.with_transform(None)``.
    bins
        Per channel, so the result has ``bins ** 3`` columns.

    Returns
    -------
    Tensor
        Shares ``(N, bins³)``; each row sums to 1.
    """
    rows = []
    for i in range(len(dataset)):
        pixels = np.asarray(dataset[i][0].convert("RGB")).reshape(-1, 3)
        cell = (pixels.astype(np.int64) * bins // 256) @ np.array([bins * bins, bins, 1])
        rows.append(np.bincount(cell, minlength=bins**3) / len(pixels))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is NaN for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
