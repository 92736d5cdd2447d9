"""Quality of a model, and how sure it is: a report with intervals, a paired test of two models, baselines.

``evaluate(model, dataset)`` asks a model about every sample once and gives a :class:`Report`, which stores the answers
and computes everything else from them. ``compare_models(first, second)`` takes two reports on the same samples.
``plot_confusion(report)`` and ``plot_mistakes(report, dataset)`` draw.
"""

from __future__ import annotations

import functools
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.sparse import csr_array
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset

from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.common.files import names_from_shared_folder
from course_utils.common.state import evaluating
from course_utils.common.tables import markdown_table, percent, shortened, text_table
from course_utils.data.samples import classes_of, loader_in_order
from course_utils.transforms import denormalise

FEWEST_RESAMPLES = 100
SIGNIFICANT = 0.05


def wilson_interval(right: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval in which the true accuracy plausibly lies when `right` of `total` answers were right.

    `level` is the confidence, between 0 and 1. Unlike ``p ± z·sd`` the interval stays in [0, 1], and it has a width
    even at 0 % and 100 % (Wilson 1927, https://doi.org/10.2307/2276774).
    """
    if total < 1 or not 0 <= right <= total:
        raise CourseError(f"{right} right of {total}: an interval needs 0 <= right <= total and total >= 1.")
    low, high = binomtest(right, total).proportion_ci(level, method="wilson")
    share = right / total  # rounding must not leave it outside: at n of n some versions of SciPy end a hair below 1
    return max(0.0, min(float(low), share)), min(1.0, max(float(high), share))


def interval_text(right: int, total: int) -> str:
    """Return accuracy, 95 % interval and number of samples as text: ``"83.3 % (75.7 to 88.9, n = 120)"``."""
    return _with_interval(right / total, wilson_interval(right, total), f", n = {total}")


def _with_interval(share: float, interval: Sequence[float], more: str = "") -> str:
    low, high = interval
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f}{more})"


@dataclass(frozen=True)
class Report:
    """The answers of a model on a data set, and the scores computed from them with the definitions of scikit-learn.

    The C classes are in the order of the labels, int ``(N,)`` with N at least 1. Probabilities are float ``(N, C)``
    with rows that sum to 1. The names are those of the samples' files, from the folder that all of them share and with
    ``/`` on every system; empty if unknown. A :class:`CourseError` is raised if the lengths do not fit together or a
    label is no index into ``classes``.
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
        """Most probable class of each sample, int ``(N,)``."""
        return self.probabilities.argmax(1)

    @property
    def right(self) -> int:
        """Number of samples answered right."""
        return int((self.predictions == self.labels).sum())

    def mistakes(self) -> list[int]:
        """Return the indices of the wrong answers, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")].tolist()

    def samples(self) -> list[dict[str, Any]]:
        """Return a dict for each sample, in the order of the data set.

        It has ``index``, ``name`` (None if unknown), ``true`` and ``predicted`` (names of classes), ``probability`` of
        the predicted class in [0, 1], and ``right`` (bool).
        """
        columns = {
            "index": range(len(self.labels)),
            "name": self.names or [None] * len(self.labels),
            "true": [self.classes[label] for label in self.labels],
            "predicted": [self.classes[answer] for answer in self.predictions],
            "probability": self.probabilities.max(1).tolist(),
            "right": (self.predictions == self.labels).tolist(),
        }
        return _as_rows(columns)

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

        A class without samples is left out, because there was nothing to find. (By default scikit-learn counts it as 0
        as soon as the model answers with it once.)
        """
        occurring = np.unique(self.labels)
        return float(f1_score(self.labels, self.predictions, labels=occurring, average="macro", zero_division=0))

    def macro_f1_interval(self, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Return the 95 % interval of the macro F1 by the bootstrap, in [0, 1].

        Draw N of the N samples with replacement, compute the score, repeat `resamples` times (at least 100), and cut
        off 2.5 % at either end (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). Without a
        mistake both ends are 1, because an error that is not in the test set cannot be drawn from it; look at
        :attr:`interval` then. The same `seed` gives the same interval.
        """
        if resamples < FEWEST_RESAMPLES:
            raise CourseError(
                f"resamples={resamples} was given: to cut off 2.5 % at either end takes at least "
                f"{FEWEST_RESAMPLES}, and 2000 are usual."
            )
        if (resamples, seed) not in self._intervals:
            self._intervals[resamples, seed] = _bootstrap_of_macro_f1(self.confusion, resamples, seed)
        return self._intervals[resamples, seed]

    @functools.cached_property
    def _intervals(self) -> dict[tuple[int, int], tuple[float, float]]:
        return {}  # by number of repetitions and seed: a report is printed and stored more than once

    # --- class by class ------------------------------------------------------------------------------------------

    @property
    def confusion(self) -> np.ndarray:
        """Counts ``(C, C)``: rows are the true classes, columns the predicted ones."""
        return confusion_matrix(self.labels, self.predictions, labels=range(len(self.classes)))

    @property
    def precisions(self) -> np.ndarray:
        """For each class, the share of the answers with it that were right, ``(C,)``; 0 for one never answered."""
        return self._of_each_class(precision_score, zero_division=0)

    @property
    def recalls(self) -> np.ndarray:
        """For each class, the share of its samples that was recognised, ``(C,)``; NaN for a class without samples."""
        return self._of_each_class(recall_score, zero_division=np.nan)

    @property
    def recall_intervals(self) -> np.ndarray:
        """Wilson's 95 % interval of each recall, ``(C, 2)``; NaN for a class without samples."""
        matrix = self.confusion
        rows = zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True)
        return np.array([wilson_interval(right, n) if n else (np.nan, np.nan) for right, n in rows])

    @property
    def f1(self) -> np.ndarray:
        """For each class, the harmonic mean of precision and recall, ``(C,)``; 0 where no sample was recognised."""
        return self._of_each_class(f1_score, zero_division=0)

    def _of_each_class(self, score: Callable[..., np.ndarray], zero_division: float) -> np.ndarray:
        """Return a score of scikit-learn ``(C,)``; `zero_division` stands where there is nothing to divide by."""
        known = range(len(self.classes))
        return score(self.labels, self.predictions, labels=known, average=None, zero_division=zero_division)

    # --- to print and to store -----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain Python values for ``json.dump``, without the answers of :meth:`samples`.

        Shares are in [0, 1], intervals ``[low, high]`` hold 95 %, and the recall of a class without samples is None.
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
        """Return the report as Markdown: one line for all, a table of the classes, and the confusion matrix."""
        matrix = [[f"**{name}**", *counts] for name, counts in zip(self.classes, self.confusion.tolist(), strict=True)]
        heading = "Confusion matrix: true classes in rows, predicted ones in columns."
        tables = markdown_table(_COLUMNS, self._rows()), markdown_table(["", *self.classes], matrix)
        return f"{self._all_in_one_line()}\n\n{tables[0]}\n\n{heading}\n\n{tables[1]}\n"

    def __str__(self) -> str:
        """Return precision, recall and F1 by class, then a line for all; a dash where there is nothing to divide."""
        return text_table(_COLUMNS, self._rows()) + "\n" + self._all_in_one_line()

    def _all_in_one_line(self) -> str:
        accuracy = interval_text(self.right, len(self.labels))
        return f"all: accuracy {accuracy}, macro F1 {_with_interval(self.macro_f1, self.macro_f1_interval())}"

    def _per_class(self) -> list[dict[str, Any]]:
        matrix = self.confusion
        columns = {
            "class": self.classes,
            "n": matrix.sum(1).tolist(),
            "predicted": matrix.sum(0).tolist(),
            "precision": self.precisions.tolist(),
            "recall": self.recalls.tolist(),
            "recall_interval": self.recall_intervals.tolist(),
            "f1": self.f1.tolist(),
        }
        unknown = {"recall": None, "recall_interval": None}  # JSON has no NaN
        return [row if row["n"] else {**row, **unknown} for row in _as_rows(columns)]

    def _rows(self) -> list[list[object]]:
        """Return one row of text per class."""
        return [
            [
                row["class"],
                row["n"],
                percent(row["precision"]) if row["predicted"] else None,
                _with_interval(row["recall"], row["recall_interval"]) if row["n"] else "no samples",
                percent(row["f1"]) if row["n"] else None,
            ]
            for row in self._per_class()
        ]


def _bootstrap_of_macro_f1(confusion: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the middle 95 % of the macro F1 over draws of as many samples as the matrix ``(C, C)`` counts."""
    # The score depends on the counts alone, and those of N samples drawn with replacement are multinomial. Only the
    # cells that are not empty can be drawn: with many classes they are few.
    true, answer = confusion.nonzero()
    counts, cells = confusion[true, answer], np.arange(len(true))
    member = [csr_array((np.ones(len(cells)), (cells, of)), (len(cells), len(confusion))) for of in (true, answer)]
    hit, generator, scores = true == answer, np.random.default_rng(seed), []
    for start in range(0, resamples, FEWEST_RESAMPLES):  # in blocks, which limits the memory
        draws = generator.multinomial(counts.sum(), counts / counts.sum(), min(FEWEST_RESAMPLES, resamples - start))
        samples, answers, hits = draws @ member[0], draws @ member[1], (draws * hit) @ member[0]
        f1 = 2 * hits / np.maximum(samples + answers, 1)  # 0 for a class that was not drawn, and it does not count
        scores.append(f1.sum(1) / (samples > 0).sum(1))
    low, high = np.quantile(np.concatenate(scores), [0.025, 0.975])
    return float(low), float(high)


_COLUMNS = ("class", "n", "precision", "recall (95 % interval)", "F1")


def _as_rows(columns: Mapping[str, Sequence[object]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64, mirrored: bool = False) -> Report:
    """Return the report of a model's answers on every sample of a data set.

    The model runs in eval mode without gradients and is left as it was found. The data set has pairs ``(image,
    label)``; its ``classes`` and ``paths``, where it has them, name the classes and samples. With `mirrored` the mirror
    image of every picture is asked too, and the two answers are averaged: test-time augmentation, at twice the time.

    A :class:`CourseError` is raised if the data set is empty, has another number of classes than the model has
    outputs, or labels beyond them; or if the model's answers are no numbers.
    """
    if len(dataset) == 0:
        raise CourseError("The data set is empty: there is nothing to evaluate on.")
    probabilities, labels = [], []
    device = next(model.parameters()).device
    with evaluating(model):
        for images, targets in loader_in_order(dataset, batch_size):
            views = [images, images.flip(-1)] if mirrored else [images]
            answers = [model(view.to(device)).float().softmax(1) for view in views]
            probabilities.append(torch.stack(answers).mean(0).cpu().numpy())
            labels.append(np.asarray(targets))
    scores = np.concatenate(probabilities)
    names = classes_of(dataset) or [str(i) for i in range(scores.shape[1])]
    if len(names) != scores.shape[1]:
        raise CourseError(
            f"The model has {scores.shape[1]} outputs, the data set {len(names)} classes ({', '.join(names[:6])}). "
            f"Give the model a head for them: replace_head(model, {len(names)})."
        )
    if broken := int((~np.isfinite(scores).all(1)).sum()):
        raise CourseError(
            f"For {broken} of {len(scores)} samples the model's answer is not a number (NaN). Either its weights are "
            "damaged, as after a training that diverged, or these pictures hold values that are no numbers."
        )
    return Report(tuple(names), np.concatenate(labels), scores, _sample_names(dataset))


def _sample_names(dataset: Dataset) -> tuple[str, ...]:
    """Return the files in a data set's ``paths``, named from the deepest folder that all of them lie in."""
    try:
        paths = [Path(path) for path in getattr(dataset, "paths", ())]
    except TypeError:  # a data set of another author may use this name for something else
        return ()
    return names_from_shared_folder(paths) if len(paths) == len(dataset) else ()


# --- two models on the same samples ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """Counts of where two models that answered the same samples differ, and a test of whether chance explains it.

    It is about these two trained networks and other test pictures. Several runs are needed to learn how much another
    training seed would change. The names of the models are for printing.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    names: tuple[str, str] = ("the first model", "the second model")

    @property
    def n(self) -> int:
        """Number of samples that both models answered."""
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

        The distances from each accuracy to the ends of its Wilson interval are two sides of a triangle, and the
        correlation of the two models' successes is the cosine of the angle between them.
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
        """Return phi of the four counts; a positive one is reduced by Newcombe's correction for small samples."""
        a, b, c, d = self.both_right, self.only_first, self.only_second, self.both_wrong
        product = (a + b) * (c + d) * (a + c) * (b + d)
        numerator = a * d - b * c
        if numerator > 0:
            numerator = max(numerator - self.n / 2, 0)
        return numerator / math.sqrt(product) if product else 0.0

    @property
    def p_value(self) -> float:
        """P-value of the exact two-sided McNemar test, in [0, 1].

        Only samples on which the models disagree count: on them, each of two equally good models is right as often as
        a coin shows heads (McNemar 1947, https://doi.org/10.1007/BF02295996).
        """
        disagreements = self.only_first + self.only_second
        return float(binomtest(self.only_first, disagreements).pvalue) if disagreements else 1.0

    @property
    def distinguishable(self) -> bool:
        """True if chance is an unlikely explanation: a p-value below 0.05.

        Close to that border the interval, which is an approximation, may say otherwise; the test is exact.
        """
        return self.p_value < SIGNIFICANT

    def __str__(self) -> str:
        (first, second), (a, b), (low, high) = self.names, self.accuracies, self.interval
        return (
            f"{first} {percent(a)}, {second} {percent(b)} of the same {self.n} samples: difference "
            f"{100 * self.difference:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})\n"
            f"right: both {self.both_right}, only {first} {self.only_first}, only {second} {self.only_second}, "
            f"neither {self.both_wrong}\n{self._verdict()}"
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
    # Rounding may make the square of a length near zero negative.
    return math.sqrt(max(0.0, side * side + other * other - 2 * cosine * side * other))


def compare_models(
    first: Report, second: Report, names: tuple[str, str] = ("the first model", "the second model")
) -> PairedComparison:
    """Return the comparison of two models sample by sample: it sees smaller differences than two accuracies do.

    Both reports have to be about the same samples in the same order, otherwise a :class:`CourseError` says how they
    differ. The `names` of the models are for printing.
    """
    if mismatch := _mismatch(first, second):
        raise CourseError(
            f"{mismatch} Evaluate both models on one data set, in one order, and compare these two reports."
        )
    a, b = first.predictions == first.labels, second.predictions == second.labels
    return PairedComparison(*(int(part.sum()) for part in (a & b, a & ~b, ~a & b, ~a & ~b)), names=tuple(names))


def _mismatch(first: Report, second: Report) -> str | None:
    """Return a sentence on how the samples of two reports differ, None if they do not."""
    if first.classes != second.classes:
        ours, theirs = (", ".join(report.classes[:6]) for report in (first, second))
        return f"The first report has the classes {ours}, the second {theirs}."
    if len(first.labels) != len(second.labels):
        return f"The first report is about {len(first.labels)} samples, the second about {len(second.labels)}."
    different = "The reports are about different samples:"
    if first.names and second.names:
        for i, (ours, theirs) in enumerate(zip(first.names, second.names, strict=True)):
            if ours != theirs:
                return f"{different} number {i} is {ours} in the first and {theirs} in the second."
    if unequal := int((first.labels != second.labels).sum()):
        return f"{different} {unequal} of {len(first.labels)} labels differ."
    return None


# --- figures -----------------------------------------------------------------------------------------------------


def plot_confusion(report: Report, normalise: bool = False) -> Figure:
    """Return the confusion matrix of a report as a figure.

    With `normalise` it shows the share of each true class instead of counts, and the diagonal holds the recalls: with
    classes of different sizes the colours of the rows can then be compared.
    """
    return plots.confusion(report.confusion, report.classes, normalise=normalise)


def plot_mistakes(report: Report, dataset: Dataset, n: int = 12, columns: int = 6, weights: Any = None) -> Figure:
    """Return a figure of the most confident wrong answers, under titles such as "ant → bee, 93 %".

    Parameters
    ----------
    dataset, weights
        Data set of the report, otherwise a :class:`CourseError` is raised. A
        :class:`~course_utils.datasets.PhotoDataset` is asked for its pictures without the transform; any other has to
        give PIL pictures, or tensors in [0, 1], or normalised tensors with their `weights`.
    n, columns
        Largest number of pictures, and pictures per row, at least 1 each.

    Returns
    -------
    Figure
        A sentence if everything was answered right: a good model is no reason for a cell to fail.
    """
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
    sure = f"{100 * report.probabilities[index, answer]:.0f}\N{NO-BREAK SPACE}%"  # never a line with "%" alone
    names = (shortened(report.classes[label]) for label in (true, answer))
    return textwrap.fill(f"{' → '.join(names)}, {sure}", 20)  # fits above a picture


def _picture(report: Report, dataset: Dataset, index: int, weights: Any) -> Any:
    """Return a sample as something that can be shown, after a check that it is the one of the report."""
    picture, label = dataset[index]
    if int(label) != report.labels[index]:
        raise CourseError(
            f"Sample {index} has the label {int(label)} in the data set and {report.labels[index]} in the report. Give "
            "the data set that the model was evaluated on, in the same order."
        )
    if not isinstance(picture, torch.Tensor):
        return picture
    if weights is not None:
        return denormalise(picture, weights)
    low, high = float(picture.min()), float(picture.max())
    if low < -0.01 or high > 1.01:  # interpolation may overshoot a little
        raise CourseError(
            f"Sample {index} is a tensor with values from {low:.2f} to {high:.2f}; only values from 0 to 1 are "
            "colours. Give the weights entry whose transform made it, plot_mistakes(..., weights=entry), or a data set "
            "of PIL pictures."
        )
    return picture


# --- baselines ---------------------------------------------------------------------------------------------------


def majority_baseline(train_labels: Sequence[int], test_labels: Sequence[int]) -> int:
    """Return how many test samples are right when every answer is the most frequent class of the training labels."""
    if not len(train_labels):
        raise CourseError("There are no training labels: no class is the most frequent one.")
    classes, counts = np.unique(np.asarray(train_labels), return_counts=True)
    return int((np.asarray(test_labels) == classes[counts.argmax()]).sum())  # of equally frequent classes the first


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, test_features: torch.Tensor, penalty: float = 1.0
) -> np.ndarray:
    """Return the answers of a logistic regression on fixed features: a new head, fitted by scikit-learn.

    It is trained on ``(N, D)`` and ``(N,)`` and returns the labels ``(M,)`` that it predicts for ``(M, D)``. `penalty`
    is the strength of the L2 penalty, above 0; scikit-learn's ``1 / C``.
    """
    return probe(penalty).fit(np.asarray(features), np.asarray(labels)).predict(np.asarray(test_features))


def probe(penalty: float = 1.0) -> Pipeline:
    """Return the unfitted model of :func:`linear_probe`: standardise, then logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=2000))


def color_histograms(dataset: Dataset, bins: int = 6) -> torch.Tensor:
    """Return how much of each colour a picture has: features of a baseline that cannot see form.

    The data set gives PIL pictures: use ``dataset.with_transform(None)``. With `bins` per channel the shares are
    ``(N, bins³)``; each row sums to 1.
    """
    rows = []
    for i in range(len(dataset)):
        pixels = np.asarray(dataset[i][0].convert("RGB")).reshape(-1, 3)
        cell = (pixels.astype(np.int64) * bins // 256) @ np.array([bins * bins, bins, 1])
        rows.append(np.bincount(cell, minlength=bins**3) / len(pixels))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1); the latter is NaN for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
