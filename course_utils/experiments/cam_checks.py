"""Checks that say whether a heat map of :mod:`course_utils.gradcam` is worth believing.

* Where there is a mask of the object, :func:`pointing_game` and :func:`energy_inside` score a map against it, beside
  :func:`centred_blob`, a map that knows nothing about the picture. Where there is none, :func:`road` removes what the
  map marks and watches the answer.
* :func:`randomisation_check` destroys what was learned, stage by stage: a map that does not change shows the picture,
  not the network. :func:`patch_check` moves a piece of a picture: the map has to follow.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating, generators_put_back
from course_utils.datasets import PhotoDataset
from course_utils.gradcam import CAM_BATCH, as_seen, batches_of, class_numbers, explain
from course_utils.mini.networks import initialise_convolutions
from course_utils.pretrained_models import count_classes, stages

MEASURES = ("rank", "ssim")


# --- scores ------------------------------------------------------------------------------------------------------


def masks_of(dataset: PhotoDataset, weights: Any) -> np.ndarray:
    """Return the masks of a data set, cropped as the network's pictures are: bool ``(N, H, W)``, True on the animal.

    Photographs have no masks: a :class:`CourseError` is raised if there are no pictures, or one has no mask.
    """
    masks = [dataset.mask(i) for i in range(len(dataset))]
    if not masks or None in masks:
        raise CourseError(
            f"{masks.count(None)} of {len(masks)} pictures have no mask, so nobody knows where the object is in them. "
            "The drawn pets have masks; for other pictures score maps with road()."
        )
    return np.stack([np.asarray(as_seen(mask, weights)) > 127 for mask in masks])


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map that lies on the object, ``(N,)`` in [0, 1].

    A map of zeros counts as one that is the same everywhere: its share is that of the object in the picture, which is
    what chance gives. NaN where there is no object.

    Maps are ``(N, H, W)``, 0 and above: ``.heat`` or ``.raw``; masks bool ``(N, H, W)``, or ``(H, W)`` for all. Others
    are a :class:`CourseError`. Wang et al. call it the energy-based pointing game (2020, Score-CAM,
    https://arxiv.org/abs/1910.01279).
    """
    maps, masks = _maps_and_masks(maps, masks)
    whole = maps.sum((1, 2))
    inside = np.where(whole > 0, (maps * masks).sum((1, 2)) / np.where(whole > 0, whole, 1), masks.mean((1, 2)))
    return np.where(masks.any((1, 2)), inside, np.nan)


def pointing_game(maps: np.ndarray, masks: np.ndarray, tolerance: float = 0) -> np.ndarray:
    """Return 1 for each map whose highest place lies on the object, else 0: ``(N,)``.

    Where several places are equally high, it is the share of them that hit; so a map that is the same everywhere gets
    what chance gives. NaN where there is no object. Parameters are those of :func:`energy_inside`, and `tolerance`: the
    distance to the object in pixels that still counts. A map of 8 × 8 positions on 128 pixels is not finer than 8.
    (Zhang, J. et al. 2016. Top-down Neural Attention by Excitation Backprop. https://arxiv.org/abs/1608.00507)
    """
    maps, masks = _maps_and_masks(maps, masks)
    if tolerance < 0:
        raise CourseError(f"tolerance={tolerance}: it is a distance in pixels, 0 or more.")
    there = masks.any((1, 2))
    if tolerance:
        masks = np.stack([distance_transform_edt(~mask) <= tolerance for mask in masks])
    highest = maps == maps.max((1, 2), keepdims=True)
    return np.where(there, (highest & masks).sum((1, 2)) / highest.sum((1, 2)), np.nan)


def _maps_and_masks(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps, masks = np.asarray(maps, dtype=np.float64), np.asarray(masks)
    if masks.dtype != bool:
        raise CourseError(f"Masks hold {masks.dtype}; they have to be bool, True on the object (see masks_of).")
    if maps.ndim != 3 or masks.shape not in (maps.shape, maps.shape[1:]):
        raise CourseError(
            f"Maps of {maps.shape} and masks of {masks.shape} do not fit: both (N, H, W), or one mask (H, W)."
        )
    if not (maps >= 0).all():
        raise CourseError("Maps have values below 0 or NaN; give .heat or .raw of an explanation.")
    return maps, np.broadcast_to(masks, maps.shape)


def centred_blob(shape: tuple[int, int, int], spread: float = 0.25) -> np.ndarray:
    """Return the same round blob in the middle of every picture, float32 in [0, 1]: since photographers aim, it scores.

    A narrow blob has more energy on a centred object than a wide one, and maps of 8 × 8 positions cannot be narrow. Say
    which spread you compare with, and compare with the maps of other pictures too, ``np.roll(maps, 1, axis=0)``: they
    are as wide and as centred as the maps themselves, and know nothing about the picture.

    `shape` is that of the maps, ``(N, H, W)``; `spread` is the standard deviation as a share of the shorter side.
    """
    if not spread > 0:
        raise CourseError(f"spread={spread}: the blob needs a width above 0; 0.25 is a quarter of the side.")
    _, height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
    blob = np.exp(-distance / (2 * (spread * min(height, width)) ** 2))
    return np.broadcast_to((blob / blob.max()).astype(np.float32), shape)


class Mean(NamedTuple):
    """The mean of `n` values with its 95 % interval, infinite below two values; ``str()`` writes it as in a table."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.2f} (one value, so no interval)" if self.n else "no value"
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


def mean_with_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Mean:
    """Return the mean of scores ``(N,)`` with a 95 % bootstrap interval over pictures.

    NaN (no object in the picture) is left out. A single value says nothing about its spread: the interval goes from
    minus to plus infinity then, and without any value the mean is NaN. Of two ways to make maps, give the differences
    picture by picture: an interval that lies above 0 says that the first is better. N of the N values are drawn
    `resamples` times with replacement, from a generator of its own; values that are all equal leave an interval without
    a width.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return Mean(float(known[0]) if len(known) else np.nan, -np.inf, np.inf, len(known))
    drawn = np.random.default_rng(seed).integers(len(known), size=(resamples, len(known)))
    low, high = np.percentile(known[drawn].mean(1), (2.5, 97.5))
    return Mean(float(known.mean()), float(low), float(high), len(known))


def road(
    model: nn.Module,
    images: Tensor,
    maps: np.ndarray,
    target: int | Sequence[int] | Tensor,
    percentiles: Sequence[int] = (20, 40, 60, 80),
    seed: int = 0,
    batch_size: int = CAM_BATCH,
) -> np.ndarray:
    """Return how much more the answer suffers without the pixels that a map marks than without the others.

    Needs no mask. ``(N,)`` from -0.5 to 0.5: half of (probability without the *least* marked pixels minus probability
    without the *most* marked ones). 0 is what a random map gets on average.

    Parameters
    ----------
    model, images, batch_size
        Same as in :func:`~course_utils.gradcam.explain`; the model is left as it was found.
    maps
        ``(N, H, W)``: ``.heat``. Only the order of its values counts.
    target
        The class whose probability is watched, one for all or one for each: ``.targets``.
    percentiles
        Shares of the pixels that stay, in percent, above 0 and below 100; the score is the mean over them.
    seed
        Seed of the order among equal values and of the noise on what is filled in.

    Notes
    -----
    Rong, Y. et al. (2022). A Consistent and Efficient Evaluation Strategy for Attribution Methods (ROAD).
    https://arxiv.org/abs/2202.00449, through the ``grad-cam`` package: removed pixels are filled in from their
    neighbours, because a black hole is a shape too. That solves a system of equations for each picture and percentile,
    twice: about 0.8 seconds for a picture of 128 pixels with four percentiles.
    """
    batches = batches_of(images, batch_size)
    if maps.shape != (len(images), *images.shape[2:]):
        raise CourseError(f"Maps of {maps.shape} do not fit pictures of {tuple(images.shape)}: give one for each.")
    if not len(percentiles) or not all(0 < percentile < 100 for percentile in percentiles):
        raise CourseError(f"percentiles={tuple(percentiles)}: give shares in percent, above 0 and below 100.")
    numbers = class_numbers(target, len(images), count_classes(model))
    watched = [ClassifierOutputSoftmaxTarget(int(number)) for number in numbers]
    order, metric, first = _ranks(maps, seed), ROADCombined(list(percentiles)), next(model.parameters())
    with evaluating(model), generators_put_back(seed):
        scores = [metric(images[b].to(first.device, first.dtype), order[b], watched[b], model) for b in batches]
    return np.concatenate(scores)


def _ranks(maps: np.ndarray, seed: int) -> np.ndarray:
    """Return the ranks of each map's values, stretched to [0, 1]; equal values get theirs in random order.

    A Grad-CAM is 0 in large parts: a threshold at 0 would leave nothing to fill the holes from.
    """
    flat = maps.reshape(len(maps), -1)
    order = np.lexsort((np.random.default_rng(seed).random(flat.shape), flat), axis=1)
    ranks = np.empty(flat.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, np.linspace(0, 1, flat.shape[1], dtype=np.float32)[None], axis=1)
    return ranks.reshape(maps.shape)


# --- sanity checks -----------------------------------------------------------------------------------------------


def similarity(first: np.ndarray, second: np.ndarray, measure: str = "rank") -> np.ndarray:
    """Return how much two maps of the same picture are alike, ``(N,)`` in [-1, 1].

    Parameters
    ----------
    first, second
        ``(N, H, W)`` in [0, 1].
    measure
        ``"rank"``: Spearman's rank correlation over the pixels; 1 the same order, 0 none (also where a map is the same
        everywhere), -1 the reverse. ``"ssim"``: structural similarity, which compares light, contrast and form in small
        windows; 1 the same picture. Any other is a :class:`CourseError`, as maps of different shapes are.

    Notes
    -----
    Wang, Z. et al. (2004). Image quality assessment: from error visibility to structural similarity.
    https://doi.org/10.1109/TIP.2003.819861 (Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03)
    """
    if measure not in MEASURES:
        raise CourseError(f"measure={measure!r} is unknown: choose one of {', '.join(MEASURES)}.")
    if first.shape != second.shape or first.ndim != 3:
        raise CourseError(f"Maps of {first.shape} and {second.shape} cannot be compared: both have to be (N, H, W).")
    if measure == "ssim":
        return _structural_similarity(first, second)
    pairs = zip(first.reshape(len(first), -1), second.reshape(len(second), -1), strict=True)
    return np.array([spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs])


def _structural_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    def blurred(maps: np.ndarray) -> np.ndarray:
        return gaussian_filter(maps, (0, 1.5, 1.5), truncate=3.5)

    a, b = first.astype(np.float64), second.astype(np.float64)
    light, contrast = 0.01**2, 0.03**2  # keep the quotients finite where both maps are dark or flat
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + light) * (2 * covariance + contrast)
    below = (mean_a**2 + mean_b**2 + light) * (var_a + var_b + contrast)
    return (above / below).mean((1, 2))


class RandomisedStep(NamedTuple):
    """One step of :func:`randomisation_check`."""

    stage: str | None  # the first one that is random by now, with all behind it; None for the trained network
    similarity: np.ndarray  # (N,), of each map to that of the trained network
    heat: np.ndarray  # (N, H, W), the maps of this step


def randomisation_check(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    method: str = "gradcam",
    stage: str | None = None,
    measure: str = "rank",
    seed: int = 0,
) -> list[RandomisedStep]:
    """Destroy what a network has learned, from the head towards the pixels, and return how its maps change.

    The first step is the trained network; one step for every stage follows, the head first. A method whose maps stay
    alike while the network forgets everything shows edges of the picture, not what was learned.

    Parameters
    ----------
    model, images, target, method, stage
        Same as in :func:`~course_utils.gradcam.explain`; a copy of the model is randomised. Without a target, what the
        trained network takes for most probable is explained in every step.
    measure, seed
        Same as in :func:`similarity`, and seed of the random weights.

    Notes
    -----
    The cascading randomisation of Adebayo, J. et al. (2018). Sanity Checks for Saliency Maps.
    https://arxiv.org/abs/1810.03292
    """
    trained = explain(model, images, target, method, stage)
    steps = [RandomisedStep(None, np.ones(len(images)), trained.heat)]
    device, copied = next(model.parameters()).device, copy.deepcopy(model)
    for name in reversed(stages(model)):
        # On the CPU, whose generator is the same on every machine.
        randomise_stage(copied.cpu(), name, seed)
        heat = explain(copied.to(device), images, trained.targets, method, stage).heat
        steps.append(RandomisedStep(name, similarity(trained.heat, heat, measure), heat))
    return steps


@torch.no_grad()
def randomise_stage(model: nn.Module, stage: str, seed: int = 0) -> nn.Module:
    """Give one stage of a network new random weights, as if it had never been trained, and return the model.

    The model is changed in place: convolutions as He et al. draw them, norms as the identity, linear layers as torch
    draws them. The global generator stays as it is.
    """
    row = stages(model)
    if stage not in row:
        raise CourseError(f"There is no stage {stage!r} in this model; it has {', '.join(row)}.")
    # Not the plain seed: training began with a head that was drawn from it, and that head would come back.
    with generators_put_back(zlib.crc32(f"randomised {stage} {seed}".encode())):
        for module in row[stage].modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        initialise_convolutions(row[stage])
    return model


@dataclass(frozen=True)
class PatchCheck:
    """The maps of P pictures that differ only in where a patch lies; made by :func:`patch_check`."""

    images: Tensor  # (P, 3, H, W)
    masks: np.ndarray  # bool (P, H, W), True on the patch
    heat: np.ndarray  # (P, H, W)
    energy: np.ndarray  # (P, P): row i, column j is the share of map i that lies where the patch of picture j is

    @property
    def followed(self) -> float:
        """Share of the places at which no other place holds as much of the map as that of the patch."""
        own = np.diag(self.energy)
        others = np.where(np.eye(len(own), dtype=bool), -1, self.energy).max(1)
        return float((own > others).mean())


def patch_check(
    model: nn.Module,
    background: Tensor,
    patch: Tensor,
    places: Sequence[tuple[int, int]],
    target: int,
    method: str = "gradcam",
    stage: str | None = None,
) -> PatchCheck:
    """Return maps of one picture with the same patch at several places: a map that shows the patch moves with it.

    Parameters
    ----------
    model, target, method, stage
        Same as in :func:`~course_utils.gradcam.explain`; the target is the class that the patch speaks for.
    background, patch
        ``(3, H, W)`` and ``(3, h, w)``, both transformed as for the network.
    places
        ``(top, left)`` of the patch in pixels: two places or more, and none of them over the edge, otherwise a
        :class:`CourseError` is raised.
    """
    if len(places) < 2:
        raise CourseError(f"{len(places)} place was given: to see whether a map moves takes two places or more.")
    height, width = patch.shape[1:]
    images = background.repeat(len(places), 1, 1, 1)
    masks = np.zeros((len(places), *background.shape[1:]), dtype=bool)
    for image, mask, (top, left) in zip(images, masks, places, strict=True):
        if not (0 <= top <= background.shape[1] - height and 0 <= left <= background.shape[2] - width):
            raise CourseError(
                f"A patch of {height} × {width} pixels at {(top, left)} reaches over the edge of a picture of "
                f"{background.shape[1]} × {background.shape[2]}."
            )
        place = slice(top, top + height), slice(left, left + width)
        image[:, *place] = patch
        mask[place] = True
    heat = explain(model, images, target, method, stage).heat
    energy = np.stack([energy_inside(heat, mask) for mask in masks], axis=1)
    return PatchCheck(images, masks, heat, energy)
