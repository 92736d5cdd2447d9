"""Classifiers on fixed features: nearest neighbours, and a linear probe that becomes a network's head."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.common.errors import CourseError
from course_utils.common.state import generators_put_back
from course_utils.evaluation import probe
from course_utils.pretrained_models import last_layer, replace_head

NEIGHBOURS = (1, 3, 5, 11, 21)
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
CHUNK = 1024
NEVER = -1e3  # a logit whose probability is 0; finite, so that a loss stays a number


def nearest_neighbours(
    features: Tensor, labels: Tensor, queries: Tensor, k: int, classes: int, leave_out: bool = False
) -> Tensor:
    """Return the share ``(M, C)`` of each class among the nearest pictures, those with the highest cosine.

    Parameters
    ----------
    features, labels, queries
        Known pictures, ``(N, D)`` and ``(N,)``, and those whose neighbours are wanted, ``(M, D)``.
    k, classes
        Number of neighbours that vote, 1 to N, and number of classes C.
    leave_out
        True if the queries are the known pictures themselves: none votes for itself, and `k` is at most N - 1.

    Raises
    ------
    CourseError
        If there are fewer than `k` neighbours.
    """
    # Not scikit-learn's KNeighborsClassifier: it cannot leave out a picture's own vote, and breaks ties in another way.
    most = len(features) - leave_out
    if not 1 <= k <= most:
        raise CourseError(f"k={k} neighbours were asked for; with {len(features)} pictures it is from 1 to {most}.")
    known, asked = F.normalize(features.float()), F.normalize(queries.float())
    votes = F.one_hot(labels, classes).float()
    shares = []
    for start in range(0, len(asked), CHUNK):
        cosines = asked[start : start + CHUNK] @ known.T
        if leave_out:
            rows = torch.arange(len(cosines))
            cosines[rows, rows + start] = -torch.inf
        shares.append(votes[cosines.topk(k).indices].mean(1))
    return torch.cat(shares)


def best_neighbours(features: Tensor, labels: Tensor, classes: int) -> int:
    """Return the k out of ``NEIGHBOURS`` with which the others recognise most pictures; the smallest of equals.

    A single picture has no others: then it is the smallest.
    """

    def right(k: int) -> int:
        shares = nearest_neighbours(features, labels, features, k, classes, leave_out=True)
        return int((shares.argmax(1) == labels).sum())

    fitting = (k for k in NEIGHBOURS if k < len(features))
    return max(fitting, key=right, default=NEIGHBOURS[0])  # of equals max takes the first


def best_penalty(features: Tensor, labels: Tensor, seed: int = 0, score: str = "accuracy") -> float:
    """Return the penalty out of ``PENALTIES`` that does best in cross-validation; the strongest of equals.

    With few pictures and many features a strong one is usually best. A class of one picture leaves nothing to
    validate with: then it is the strongest.

    Parameters
    ----------
    features, labels, seed
        ``(N, D)`` and ``(N,)``; same as in :func:`stratified_folds`.
    score
        Name of the score in scikit-learn: ``"accuracy"``, or ``"neg_log_loss"`` where the probabilities matter.
    """
    x, y = np.asarray(features), np.asarray(labels)
    split = stratified_folds(y, seed=seed)
    if split is None:
        return PENALTIES[-1]
    scores = {penalty: cross_val_score(probe(penalty), x, y, cv=split, scoring=score).mean() for penalty in PENALTIES}
    return max(PENALTIES, key=lambda penalty: (round(float(scores[penalty]), 9), penalty))


def stratified_folds(labels: np.ndarray, folds: int = 5, seed: int = 0) -> StratifiedKFold | None:
    """Return the split of pictures with `labels` ``(N,)`` for cross-validation; None if a class has a single picture.

    There are at most as many folds as the rarest class has pictures; `seed` is that of the shuffle.
    """
    folds = min(folds, int(np.unique(labels, return_counts=True)[1].min()))
    return StratifiedKFold(folds, shuffle=True, random_state=seed) if folds > 1 else None


def with_probe_as_head(model: nn.Module, fitted: Pipeline, classes: int) -> nn.Module:
    """Return a network, changed in place, with a fitted probe as its last layer: it answers as the probe does.

    `fitted` is a :func:`~course_utils.evaluation.probe` after ``fit`` on this network's features, with labels from 0 to
    ``classes - 1``. A class that none of them had is never answered, as the probe never does; a :class:`CourseError` is
    raised for labels beyond `classes`.
    """
    scaler, regression = fitted[0], fitted[-1]
    known = regression.classes_
    if known.max() >= classes:
        raise CourseError(f"The probe was fitted with labels up to {known.max()}, more than {classes} classes have.")
    rows, biases = regression.coef_, regression.intercept_
    if len(known) == 2:  # scikit-learn keeps one row, the evidence for the second class against the first
        rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
    # Standardising is linear too, so it goes into the same layer.
    rows = rows / scaler.scale_
    weight, bias = np.zeros((classes, rows.shape[1])), np.full(classes, NEVER)
    weight[known], bias[known] = rows, biases - rows @ scaler.mean_
    device = last_layer(model).weight.device
    with generators_put_back(seed=0):  # with a seed, because on a GPU it is the GPU's generator that is drawn from
        layer = last_layer(replace_head(model, classes))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    model.to(device)
    return model
