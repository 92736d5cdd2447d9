"""How good is it, and how sure is that: accuracy with an interval, baselines, confusion."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from course_utils.errors import CourseError
from course_utils.feature_extraction import evaluating
from course_utils.tables import text_table

Z95 = 1.959963984540054


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
    """What a model answered on a data set.

    Parameters
    ----------
    classes
        Names, in the order of the labels.
    labels, probabilities
        int ``(N,)`` and float ``(N, C)`` with rows that sum to 1.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each sample, int ``(N,)``."""
        return self.probabilities.argmax(1)

    @property
    def right(self) -> int:
        """How many samples were answered right."""
        return int((self.predictions == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of samples answered right, in [0, 1]."""
        return self.right / len(self.labels)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson_interval(self.right, len(self.labels))

    @property
    def confusion(self) -> np.ndarray:
        """Counts ``(C, C)``: rows are the true classes, columns the predicted ones."""
        size = len(self.classes)
        return np.bincount(self.labels * size + self.predictions, minlength=size * size).reshape(size, size)

    @property
    def recalls(self) -> np.ndarray:
        """For each class, the share of its samples that was recognised; NaN for a class without samples."""
        counts = self.confusion.sum(1)
        with np.errstate(invalid="ignore"):
            return np.diag(self.confusion) / np.where(counts == 0, np.nan, counts)

    def mistakes(self) -> list[int]:
        """Indices of the wrong answers, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")].tolist()

    def __str__(self) -> str:
        rows = []
        for i, name in enumerate(self.classes):
            right, total = int(self.confusion[i, i]), int(self.confusion[i].sum())
            rows.append([name, interval_text(right, total) if total else "no samples"])
        rows.append(["all", interval_text(self.right, len(self.labels))])
        return text_table(["class", "recognised (95 % interval)"], rows)


def evaluate(model: nn.Module, dataset: Dataset, batch_size: int = 64) -> Report:
    """Ask a model about every sample of a data set.

    Parameters
    ----------
    model
        Run in eval mode without gradients, left as it was found.
    dataset
        Gives ``(image, label)``; has ``classes``, or the classes are numbered.
    batch_size
        Pictures per forward pass.

    Raises
    ------
    CourseError
        If the data set is empty, or has another number of classes than the model has outputs.
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
    return Report(tuple(names), np.concatenate(labels), scores)


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
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=2000))
    return probe.fit(np.asarray(features), np.asarray(labels)).predict(np.asarray(test_features))


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
