"""Checks of a data set before a number measured on it is believed: copies in two splits, and wrong labels.

They use features of a frozen network; only a probe is trained.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from sklearn.model_selection import cross_val_predict
from torch import Tensor
from torch.nn import functional as F

from course_tools.photos.probes import best_penalty, stratified_folds
from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.data.pictures import load_picture
from course_utils.evaluation import probe

SAMPLED = 24  # pictures of which altered copies are made
MISSED = 0.02  # share of the altered copies that the threshold may miss
SAME_PIXELS = 0.95
PARTNERS = 5  # of one picture: among many copies of one scene all pairs would be as many as the pictures squared
THUMBNAIL = 24
CHUNK = 2**23  # cosines that are in memory together

Embed = Callable[[list[Image.Image]], Tensor]


@dataclass(frozen=True)
class Pair:
    """Numbers of two pictures of different splits that look the same.

    `similarity` is the cosine of their centred features and `pixels` the correlation of their thumbnails, both in
    [-1, 1]; 1 for the same bytes.
    """

    first: int
    second: int
    similarity: float
    pixels: float


@dataclass(frozen=True)
class Duplicates:
    """The result of :func:`near_duplicates`, and how well its search works.

    Parameters
    ----------
    pairs, alike
        The same picture in two splits, the most similar first; pairs with features as similar as those of altered
        copies but other pixels, perhaps photographs of one scene. Every picture that has such a partner is in a pair,
        with the most similar five of them.
    threshold
        Smallest similarity of a candidate, measured on altered copies.
    altered, found
        Number of altered copies that were made to test the search, and of those that it finds.
    """

    pairs: tuple[Pair, ...]
    alike: tuple[Pair, ...]
    threshold: float
    altered: int
    found: int


@dataclass(frozen=True)
class Suspect:
    """Number of a picture whose label a probe disagrees with, its label, and the class that the probe answers.

    `probability` is that of the likely class by a probe that has not seen this picture, in [0, 1], and `margin` its
    lead over the label's, in [-1, 1].
    """

    index: int
    label: int
    likely: int
    probability: float
    margin: float


def exact_copies(digests: Sequence[str], splits: Sequence[str]) -> list[Pair]:
    """Return pairs of files with the same bytes in different splits, given each file's hash and split.

    Every file that has a copy in another split is in a pair, with the first five of each split.
    """
    members: dict[str, dict[str, list[int]]] = {}
    for i, (digest, split) in enumerate(zip(digests, splits, strict=True)):
        members.setdefault(digest, {}).setdefault(split, []).append(i)
    found = {
        (min(i, j), max(i, j))
        for group in members.values()
        for own, others in itertools.permutations(group.values(), 2)
        for i in own
        for j in others[:PARTNERS]
    }
    return [Pair(first, second, 1.0, 1.0) for first, second in sorted(found)]


def near_duplicates(
    features: Tensor, splits: Sequence[str], paths: Sequence[Path], embed: Embed, seed: int = 0
) -> Duplicates:
    """Return pictures that are in two splits, also where their files differ.

    Features name the candidates and pixels decide. The threshold for a candidate is measured on the data at hand: some
    pictures are made smaller and compressed, cropped, brightened and mirrored, and 98 % of these copies reach it.
    Then thumbnails have to agree as well: two photographs of one subject have similar features, but other pixels.

    Parameters
    ----------
    features, splits, paths
        ``(N, D)`` of the pictures of all splits, from one network; name of the split and file of each.
    embed
        Function from N pictures to features ``(N, D)`` of the same network.
    seed
        Seed of the choice of pictures to alter.

    Raises
    ------
    CourseError
        If the lengths differ, or a candidate's file can no longer be read.
    """
    if not len(features) == len(splits) == len(paths):
        raise CourseError(f"{len(features)} features, {len(splits)} splits and {len(paths)} paths: give one of each.")
    # Activations behind a ReLU are all positive, so that any two pictures have a cosine of about 0.9. Without their
    # mean, unrelated ones are near 0.
    mean = features.mean(0)
    chosen = np.random.default_rng(seed).permutation(len(paths))[:SAMPLED].tolist()
    copies = [(i, copy) for i in chosen for copy in altered(load_picture(paths[i]))]
    originals = [i for i, _ in copies]
    to_originals = F.cosine_similarity(embed([copy for _, copy in copies]) - mean, features[originals] - mean)
    threshold, usual = np.quantile(to_originals.numpy(), [MISSED, 0.5])
    seen = functools.cache(lambda i: thumbnails(load_picture(paths[i], smallest_side=4 * THUMBNAIL)))
    same = [float(agreement(seen(i), thumbnails(copy))) >= SAME_PIXELS for i, copy in copies]
    found = sum(ok and float(s) >= threshold for ok, s in zip(same, to_originals, strict=True))
    pairs, alike = {}, {}
    candidates = similar_pictures(F.normalize(features - mean), splits, float(threshold))
    for i, others, cosines in progress(candidates, "looking for duplicates", total=len(paths)):
        if not len(others):
            continue
        pixels = agreement(seen(i), np.stack([seen(j) for j in others.tolist()]))
        copied = pixels >= SAME_PIXELS
        for kept, wanted in ((pairs, copied), (alike, ~copied & (cosines >= usual))):
            for k in np.flatnonzero(wanted)[:PARTNERS]:
                both = min(i, int(others[k])), max(i, int(others[k]))
                kept.setdefault(both, Pair(*both, float(cosines[k]), float(pixels[k])))  # each names the other
    pairs, alike = (
        tuple(sorted(kept.values(), key=lambda pair: (-pair.similarity, pair.first, pair.second)))
        for kept in (pairs, alike)
    )
    return Duplicates(pairs, alike, float(threshold), len(copies), found)


def similar_pictures(
    unit: Tensor, splits: Sequence[str], threshold: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield for each row those of other splits with a cosine of `threshold` or more, the most similar first.

    `unit` has the features ``(N, D)``, each row of length 1. What is yielded are the number of the row, those of the
    others, and their cosines. Memory grows with N, not with the number of pairs.
    """
    _, number = np.unique(np.asarray(splits), return_inverse=True)
    split = torch.from_numpy(number)
    for rows in torch.arange(len(unit)).split(max(1, CHUNK // len(unit))):
        cosines = unit[rows] @ unit.T
        cosines[split[rows, None] == split[None]] = -torch.inf
        for i, row in zip(rows.tolist(), cosines, strict=True):
            others = torch.nonzero(row >= threshold).flatten()
            others = others[row[others].argsort(descending=True, stable=True)]
            yield i, others.numpy(), row[others].numpy()


def thumbnails(picture: Image.Image) -> np.ndarray:
    """Return a picture as 24 × 24 grey values, whole and with a twentieth cut off each side: ``(2, 24, 24)``.

    Each has mean 0 and length 1.
    """
    width, height = picture.size
    grey, found = picture.convert("L"), []
    for cut in (0.0, 0.05):
        box = (width * cut, height * cut, width * (1 - cut), height * (1 - cut))
        values = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, box), np.float64)
        values = values - values.mean()
        found.append(values / max(np.linalg.norm(values), 1e-9))  # a picture of one grey agrees with none
    return np.array(found, np.float32)


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how well two pictures' :func:`thumbnails` agree, whatever the size, brightness and contrast, in [-1, 1].

    It is the highest correlation over mirroring and over cutting off the edges of either. `second` may hold the
    thumbnails of several pictures, ``(…, 2, 24, 24)``; then the result is ``(…)``.
    """
    views = np.concatenate([first, first[..., ::-1]]).reshape(4, -1)
    return (second.reshape(*second.shape[:-2], -1) @ views.T).max((-2, -1))


def altered(picture: Image.Image) -> list[Image.Image]:
    """Return the picture as it may get into a collection once more: smaller, cut, brightened, and mirrored."""
    width, height = picture.size
    buffer = io.BytesIO()
    picture.resize((max(1, width // 2), max(1, height // 2))).save(buffer, "jpeg", quality=40)
    cut = (round(width * 0.05), round(height * 0.05), round(width * 0.95), round(height * 0.95))
    return [
        Image.open(buffer).convert("RGB"),
        picture.crop(cut) if min(width, height) >= 20 else picture.copy(),
        ImageEnhance.Brightness(picture).enhance(1.25),
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ]


def out_of_fold(features: Tensor, labels: Tensor, penalty: float | None = None, seed: int = 0) -> np.ndarray:
    """Return the probabilities ``(N, C)`` of each picture by a linear probe that has not seen it (cross-validation).

    Parameters
    ----------
    features, labels
        ``(N, D)`` and ``(N,)``, labels from 0 without a gap.
    penalty
        Same as in :func:`~course_utils.evaluation.probe`. None takes the one with the least log loss: a probe that is
        as accurate but too confident suspects everything that it gets wrong.
    seed
        Same as in :func:`~course_tools.photos.probes.stratified_folds`.

    Raises
    ------
    CourseError
        If a class has a single picture.
    """
    x, y = np.asarray(features), np.asarray(labels)
    split = stratified_folds(y, seed=seed)
    if split is None:
        raise CourseError("A class has fewer than two pictures: no probe can know it without having seen that one.")
    if penalty is None:
        penalty = best_penalty(features, labels, seed, "neg_log_loss")
    return cross_val_predict(probe(penalty), x, y, cv=split, method="predict_proba")


def suspected_labels(probabilities: np.ndarray, labels: Sequence[int]) -> list[Suspect]:
    """Return the pictures whose label is probably wrong, the most suspicious first.

    Confident learning (Northcutt, Jiang & Chuang 2021, https://doi.org/10.1613/jair.1.12125): a picture counts as of
    class k when its probability for k reaches the mean of the pictures labelled k, so a class that the probe is
    generally unsure about needs less. A picture is suspected if it counts as of another class than its label. On
    difficult data some of these are merely hard: somebody has to look at them.

    `probabilities` are those of :func:`out_of_fold`, ``(N, C)``; every class occurs among the `labels`, ``(N,)``.
    """
    labels = np.asarray(labels)
    usual = np.array([probabilities[labels == k, k].mean() for k in range(probabilities.shape[1])])
    # If several classes reach their mean, the most probable of them counts.
    reached = np.where(probabilities >= usual, probabilities, -1.0)
    likely = reached.argmax(1)
    found = [
        Suspect(i, int(labels[i]), int(likely[i]), float(p[likely[i]]), float(p[likely[i]] - p[labels[i]]))
        for i, p in enumerate(probabilities)
        if reached[i].max() >= 0 and likely[i] != labels[i]
    ]
    return sorted(found, key=lambda suspect: (-suspect.margin, suspect.index))
