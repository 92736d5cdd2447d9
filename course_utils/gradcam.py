"""Where a network looks, and whether the map that says so means anything.

:func:`explain` makes heat maps with the ``grad-cam`` package for every network of the course, frozen or not, and
leaves the network as it found it. The rest of this module asks whether to believe them:

* where there is a mask of the object, :func:`pointing_game` and :func:`energy_inside` score a map against it, beside
  :func:`centred_blob`, the map of somebody who has never seen the picture;
* where there is none, :func:`road` removes what the map marks and watches the answer;
* :func:`randomisation_check` destroys what was learned, stage by stage: a map that does not change shows the picture,
  not the network (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292);
* :func:`patch_check` moves a piece of a picture: the map has to follow.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating, generators_put_back
from course_utils.mini.networks import initialise_convolutions
from course_utils.pretrained_models import cam_layer, last_layer, map_stages, stages
from course_utils.transforms import eval_transform

if TYPE_CHECKING:
    from course_utils.datasets import PhotoDataset

# Name → class of the grad-cam package, and what is multiplied with what.
METHODS = {
    "gradcam": ("GradCAM", "channels, each weighted by its mean gradient"),
    "gradcam++": ("GradCAMPlusPlus", "channels, weighted by their positive gradients alone"),
    "hirescam": ("HiResCAM", "every position of every channel times its own gradient"),
    "eigencam": ("EigenCAM", "the first principal component of the channels; knows no class"),
    "scorecam": ("ScoreCAM", "channels, weighted by the answer when only they show through; slow, no gradient"),
}
MEASURES = ("rank", "ssim")
CAM_BATCH = 32


# --- heat maps ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """Heat maps of N pictures; made by :func:`explain`.

    Parameters
    ----------
    heat
        Float32 ``(N, H, W)`` in [0, 1], as large as the pictures. Each is stretched by itself to the full range, so
        two of them can be compared in form and not in strength. All 0 where nothing speaks for the class.
    signed
        Float32 ``(N, h, w)``: what the method computed at the stage, before negative values are cut off and before it
        is enlarged.
    targets
        Int ``(N,)``: the class that each map explains.
    probabilities
        Float32 ``(N, C)``: what the network answered.
    method, stage
        As they were asked for.
    """

    heat: np.ndarray
    signed: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray
    method: str
    stage: str

    @property
    def raw(self) -> np.ndarray:
        """The maps as the method computed them, without stretching: float32 ``(N, H, W)``, 0 and above.

        In the method's own unit, the same for all pictures: for ``"gradcam"`` and ``"hirescam"`` on a network that
        averages its last map, the positions of ``signed`` add up to the logit without its bias.
        """
        positive = torch.from_numpy(self.signed).clamp(min=0)[:, None]
        return F.interpolate(positive, self.heat.shape[1:], mode="bilinear", align_corners=False)[:, 0].numpy()


def common_scale(*explanations: Explanation) -> list[np.ndarray]:
    """Maps of several explanations on one scale: 1 is the strongest place among all of them.

    Parameters
    ----------
    *explanations
        Made with one method, of other networks, classes or pictures.

    Returns
    -------
    list of ndarray
        ``raw`` of each, divided by the largest value of all, so in [0, 1].

    Raises
    ------
    CourseError
        If the methods differ: their values have different units.
    """
    methods = sorted({explanation.method for explanation in explanations})
    if len(methods) != 1:
        raise CourseError(
            f"common_scale was given maps of {', '.join(methods) or 'no method'}: their values have different units. "
            "Give explanations of one method."
        )
    largest = max(float(explanation.raw.max()) for explanation in explanations)
    return [explanation.raw / (largest or 1.0) for explanation in explanations]


def explain(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    method: str = "gradcam",
    stage: str | None = None,
    batch_size: int = CAM_BATCH,
) -> Explanation:
    """Which places of a picture speak for a class, according to one stage of a network.

    Parameters
    ----------
    model
        A network of one of the families, on any device, frozen or not, in any mode. Afterwards modes,
        ``requires_grad``, ``grad``, hooks and random generators are as they were.
    images
        ``(N, 3, H, W)``, transformed as for the network.
    target
        The class to explain: one for all pictures, or one for each; None takes the most probable class of each. Its
        logit is explained, before softmax: a probability also rises where others fall.
    method
        One of ``METHODS``.
    stage
        One of :func:`~course_utils.pretrained_models.map_stages`; None for the last.
    batch_size
        Pictures at a time. ``"scorecam"`` takes one at a time whatever it is: each needs memory for as many copies of
        the picture as the stage has channels.

    Returns
    -------
    Explanation
        On the CPU, as NumPy arrays.

    Raises
    ------
    CourseError
        If there are no pictures, or not of this shape; for an unknown method or class; if the model is of no known
        family, or the stage has no map of at least two positions; if an answer of the model is not a finite number.

    Notes
    -----
    Selvaraju, R. R. et al. (2017). Grad-CAM. https://arxiv.org/abs/1610.02391. The maps are computed by the
    ``grad-cam`` package; the exceptions are EigenCAM's sign, which is arbitrary there, and its singular value
    decomposition, which there needs hundreds of megabytes for an early stage.
    """
    layer = cam_layer(model, stage)
    _check_method(method)
    _check_images(images)
    classes = last_layer(model).out_features
    wanted = None if target is None else _targets(target, len(images), classes)
    parts: list[Explanation] = []
    size = 1 if method == "scorecam" else _at_least_one(batch_size)
    with _borrowed(model), _cam(method, model, layer) as cam:
        for start in range(0, len(images), size):
            chosen = None if wanted is None else wanted[start : start + size]
            parts.append(
                _explain_batch(cam, images[start : start + size], chosen, method, stage or map_stages(model)[-1])
            )
    columns = ("heat", "signed", "targets", "probabilities")
    joined = [np.concatenate([getattr(part, column) for part in parts]) for column in columns]
    return Explanation(*joined, parts[0].method, parts[0].stage)


def _explain_batch(cam: Any, images: Tensor, wanted: np.ndarray | None, method: str, stage: str) -> Explanation:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    first = next(cam.model.parameters())
    # A fresh copy that asks for a gradient: in a frozen network nothing else does, and there would be no map.
    inputs = images.detach().to(first.device, first.dtype).clone().requires_grad_(cam.uses_gradients)
    targets = None if wanted is None else [ClassifierOutputTarget(int(number)) for number in wanted]
    # Score-CAM draws a progress bar for each picture, which nothing but this switches off.
    with contextlib.redirect_stderr(io.StringIO()) if method == "scorecam" else contextlib.nullcontext():
        heat = cam(input_tensor=inputs, targets=targets)
    logits = cam.outputs.detach().float().cpu()
    if not logits.isfinite().all():
        raise CourseError(
            "The model's answer to at least one picture is not a finite number, so nothing can be explained. Look for "
            "NaN in the pictures and in the weights (a training that diverged leaves such weights)."
        )
    if cam.signed.shape[1:] == (1, 1):
        raise CourseError(
            f"The stage {stage!r} sees these pictures of {images.shape[2]} × {images.shape[3]} pixels as a map of one "
            f"position, which points nowhere. Give larger pictures or an earlier stage."
        )
    chosen = logits.argmax(1).numpy() if wanted is None else wanted
    return Explanation(heat, np.float32(cam.signed), chosen, logits.softmax(1).numpy(), method, stage)


class _Keeping:
    """Mixed into a class of the grad-cam package: keeps the map before it is cut off, enlarged and stretched."""

    def get_cam_image(self, *args: Any, **kwargs: Any) -> np.ndarray:
        self.signed = super().get_cam_image(*args, **kwargs)
        return self.signed


class _Oriented:
    """Mixed into EigenCAM: positive is where the channels are strong.

    A principal component has no sign of its own: which one comes out depends on the machine, and the package takes it
    as it comes, so that half of its maps would show the background.
    """

    def get_cam_image(
        self, input_tensor: Tensor, target_layer: nn.Module, targets: list, activations: np.ndarray, *_: Any
    ) -> np.ndarray:
        positions = np.nan_to_num(activations.reshape(*activations.shape[:2], -1)).swapaxes(1, 2)  # (N, h·w, C)
        centred = positions - positions.mean(1, keepdims=True)
        _, _, components = np.linalg.svd(centred, full_matrices=False)
        maps = (centred @ components[:, 0, :, None])[..., 0]
        strength = np.abs(positions).sum(2)
        sign = np.where((maps * (strength - strength.mean(1, keepdims=True))).sum(1) < 0, -1, 1)
        return (maps * sign[:, None]).reshape(len(maps), *activations.shape[2:])


@contextlib.contextmanager
def _cam(method: str, model: nn.Module, layer: nn.Module) -> Iterator[Any]:
    import pytorch_grad_cam

    base = getattr(pytorch_grad_cam, METHODS[method][0])
    mixed = (_Keeping, _Oriented, base) if method == "eigencam" else (_Keeping, base)
    cam = type(base.__name__, mixed, {})(model, [layer])
    # Not "with cam": the package's own way out swallows an IndexError.
    try:
        yield cam
    finally:
        cam.activations_and_grads.release()


@contextlib.contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, none of them for parameters; afterwards everything is as it was."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise CourseError(
            "The model was made inside torch.inference_mode(), so no gradient can go through it. Make or load it "
            "outside of that block; explain may be called inside."
        )
    device = next(model.parameters()).device
    # The package clears grad, which a caller may be accumulating.
    was = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        with (
            evaluating(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            for parameter, _, _ in was:
                parameter.requires_grad_(False)
            yield
    finally:
        for parameter, learning, gradient in was:
            parameter.requires_grad_(learning)
            parameter.grad = gradient


def _check_method(method: str) -> None:
    if method not in METHODS:
        near = difflib.get_close_matches(str(method).lower(), METHODS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise CourseError(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.{hint}")


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        given = f"a tensor of {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        hint = " For a single picture write image[None]." if getattr(images, "ndim", 0) == 3 else ""
        raise CourseError(f"Pictures have to be a tensor (N, 3, H, W), this is {given}.{hint}")
    if not images.is_floating_point():
        raise CourseError(
            f"The pictures hold whole numbers ({images.dtype}); the network wants them prepared by "
            "course_utils.transforms.eval_transform(weights)."
        )
    if not len(images):
        raise CourseError("The batch is empty: there is no picture to explain.")


def _targets(target: int | Sequence[int] | Tensor, pictures: int, classes: int) -> np.ndarray:
    """One class number per picture, int64 ``(N,)``."""
    numbers = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
        raise CourseError(
            f"target={target!r}: give a class as a whole number from 0 to {classes - 1}, or one for each."
        )
    if numbers.ndim == 1 and len(numbers) != pictures:
        raise CourseError(f"{len(numbers)} targets were given for {pictures} pictures: one for each, or one for all.")
    for number in numbers.ravel():
        if not 0 <= number < classes:
            raise CourseError(
                f"target={number} is out of range: the model has {classes} classes, numbered from 0 to {classes - 1}."
            )
    return np.broadcast_to(numbers, (pictures,)).astype(np.int64)


def _at_least_one(batch_size: int) -> int:
    if batch_size < 1:
        raise CourseError(f"batch_size={batch_size}: at least one picture has to go through at a time.")
    return batch_size


# --- looking at them ---------------------------------------------------------------------------------------------


def overlay(pictures: Tensor, maps: np.ndarray, opacity: float = 0.6, colors: str = "inferno") -> np.ndarray:
    """Lay maps over pictures: the picture loses colour, and what is hot takes on that of the map.

    An orange cat would otherwise look hot by itself.

    Parameters
    ----------
    pictures
        ``(N, 3, H, W)`` in [0, 1]: ``denormalise(images, weights)``.
    maps
        ``(N, H, W)`` in [0, 1].
    opacity
        How much of the picture's colour is lost, and how much of it the hottest places hide: from 0, the picture as it
        is, to 1.
    colors
        A colour map of matplotlib. ``"inferno"`` gets lighter from end to end, so that it reads in grey and for
        colour-blind eyes too; the usual ``"jet"`` does not.

    Returns
    -------
    ndarray
        uint8 ``(N, H, W, 3)``.

    Raises
    ------
    CourseError
        If shapes or ranges are others.
    """
    import matplotlib as mpl

    if not 0 <= opacity <= 1:
        raise CourseError(f"opacity={opacity}: it is a share, from 0 (picture alone) to 1.")
    if pictures.ndim != 4 or (pictures.shape[0], *pictures.shape[2:]) != maps.shape:
        raise CourseError(
            f"Pictures of {tuple(pictures.shape)} and maps of {maps.shape} do not fit: (N, 3, H, W) and (N, H, W) do."
        )
    shown = pictures.detach().cpu().permute(0, 2, 3, 1).numpy()
    for name, values in (("pictures", shown), ("maps", maps)):
        if values.size and not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
            raise CourseError(
                f"The {name} run from {values.min():.3g} to {values.max():.3g}; both have to be in [0, 1] "
                "(pictures: denormalise(images, weights); maps: .heat, or common_scale)."
            )
    grey = shown @ np.array([0.299, 0.587, 0.114])  # how bright the three colours look (ITU-R BT.601)
    paler = shown + opacity * (grey[..., None] - shown)
    share = opacity * maps[..., None]
    mixed = (1 - share) * paler + share * mpl.colormaps[colors](maps)[..., :3]
    return np.uint8(np.clip(255 * mixed, 0, 255).round())


def as_seen(picture: Image.Image, weights: Any, side: int | None = None) -> Image.Image:
    """The part of a picture that a network is shown: resized and cropped as its weights ask for, nothing else.

    Parameters
    ----------
    picture
        PIL, of any mode. Masks too: then the mask lies on the network's picture.
    weights
        As for :func:`~course_utils.transforms.eval_transform`.
    side
        Side of the result in pixels; None for what the network sees. Larger shows the same part in more detail.
    """
    from torchvision.transforms.v2 import functional as v2

    preset = eval_transform(weights)
    factor = 1 if side is None else side / preset.crop_size[0]
    resized = v2.resize(picture, [round(factor * n) for n in preset.resize_size], interpolation=preset.interpolation)
    return v2.center_crop(resized, [round(factor * n) for n in preset.crop_size])


def masks_of(dataset: PhotoDataset, weights: Any) -> np.ndarray:
    """The masks of a data set, cropped as the network's pictures are.

    Parameters
    ----------
    dataset
        The pets; photographs have no masks.
    weights
        As for :func:`~course_utils.transforms.eval_transform`.

    Returns
    -------
    ndarray
        bool ``(N, H, W)``, True where the animal is; nowhere in a picture of an empty room.

    Raises
    ------
    CourseError
        If there are no pictures, or one has no mask.
    """
    masks = [dataset.mask(i) for i in range(len(dataset))]
    if not masks or any(mask is None for mask in masks):
        lacking = sum(mask is None for mask in masks)
        raise CourseError(
            f"{lacking} of {len(masks)} pictures have no mask, so nobody knows where the object is in them. "
            "The drawn pets have masks; for other pictures score maps with road()."
        )
    return np.stack([np.asarray(as_seen(mask, weights)) > 127 for mask in masks])


# --- scores ------------------------------------------------------------------------------------------------------


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Which share of a map lies on the object.

    Parameters
    ----------
    maps
        ``(N, H, W)``, 0 and above: ``.heat`` or ``.raw``.
    masks
        bool ``(N, H, W)``, or ``(H, W)`` for all.

    Returns
    -------
    ndarray
        ``(N,)`` in [0, 1]. A map that is 0 everywhere counts as one that is the same everywhere: the share of the
        picture that the object takes, which is what chance gives. NaN where there is no object.

    Raises
    ------
    CourseError
        If shapes do not fit, a mask is not bool, or a map has negative values or NaN.

    Notes
    -----
    Called the energy-based pointing game by Wang et al. (2020), Score-CAM, https://arxiv.org/abs/1910.01279.
    """
    maps, masks = _maps_and_masks(maps, masks)
    whole = maps.sum((1, 2))
    inside = np.where(whole > 0, (maps * masks).sum((1, 2)) / np.where(whole > 0, whole, 1), masks.mean((1, 2)))
    return np.where(masks.any((1, 2)), inside, np.nan)


def pointing_game(maps: np.ndarray, masks: np.ndarray, tolerance: float = 0) -> np.ndarray:
    """Whether the highest place of a map lies on the object.

    Parameters
    ----------
    maps, masks
        As for :func:`energy_inside`.
    tolerance
        How many pixels beside the object still count. A map of 8 × 8 positions on 128 pixels is not finer than 8.

    Returns
    -------
    ndarray
        ``(N,)``: 1 for a hit, 0 for a miss. Where several places are equally high, the share of them that hit; so a
        map that is the same everywhere gets what chance gives. NaN where there is no object.

    Raises
    ------
    CourseError
        As :func:`energy_inside`, and for a negative tolerance.

    Notes
    -----
    Zhang, J. et al. (2016). Top-down Neural Attention by Excitation Backprop. https://arxiv.org/abs/1608.00507
    """
    from scipy.ndimage import distance_transform_edt

    maps, masks = _maps_and_masks(maps, masks)
    if tolerance < 0:
        raise CourseError(f"tolerance={tolerance}: it is a distance in pixels, 0 or more.")
    there = masks.any((1, 2))
    if tolerance:
        masks = np.stack([distance_transform_edt(~mask) <= tolerance for mask in masks])
    highest = maps == maps.max((1, 2), keepdims=True)
    return np.where(there, (highest & masks).sum((1, 2)) / highest.sum((1, 2)), np.nan)


def centred_blob(shape: tuple[int, int, int], spread: float = 0.25) -> np.ndarray:
    """The same round blob in the middle of every picture: what a map has to beat, since photographers aim.

    A narrow blob has more energy on a centred object than a wide one, and maps of 8 × 8 positions cannot be narrow. Say
    which spread you compare with, and compare with the maps of other pictures too, ``np.roll(maps, 1, axis=0)``: they
    are as wide and as centred as the maps themselves, and know nothing about the picture.

    Parameters
    ----------
    shape
        ``(N, H, W)``, as of the maps to compare with.
    spread
        Standard deviation of the blob, as a share of the shorter side, above 0.

    Returns
    -------
    ndarray
        Float32 `shape` with 1 in the middle, not to be written to.
    """
    if not spread > 0:
        raise CourseError(f"spread={spread}: the blob needs a width above 0; 0.25 is a quarter of the side.")
    _, height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
    blob = np.exp(-distance / (2 * (spread * min(height, width)) ** 2))
    return np.broadcast_to((blob / blob.max()).astype(np.float32), shape)


class Mean(NamedTuple):
    """A mean with its 95 % interval and how many values it is of; ``str()`` writes it as in a table."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


def mean_with_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Mean:
    """Mean of scores with a 95 % bootstrap interval over pictures.

    Parameters
    ----------
    values
        ``(N,)``; NaN (no object in the picture) is left out. Of two ways to make maps, give the differences picture by
        picture: an interval that lies above 0 says that the first is better.
    resamples, seed
        How often N of the N values are drawn with replacement, and with which numbers. The global generators stay as
        they are.

    Raises
    ------
    CourseError
        If fewer than two values are left: one value says nothing about its spread.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if len(known) < 2:
        raise CourseError(f"{len(known)} of {len(values)} values are known; a mean with an interval needs two or more.")
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
    """Remove what a map marks, then what it leaves out, and compare how much the answer suffers. Needs no mask.

    Parameters
    ----------
    model, images
        As for :func:`explain`; the model is left as it was found.
    maps
        ``(N, H, W)``: ``.heat``. Only the order of its values counts.
    target
        The class whose probability is watched, one for all or one for each: ``.targets``.
    percentiles
        Shares of the pixels that stay, in percent, above 0 and below 100; the score is the mean over them.
    seed
        Of the order among equal values and of the noise on what is filled in. The global generators stay as they are.
    batch_size
        Pictures at a time.

    Returns
    -------
    ndarray
        ``(N,)`` from -0.5 to 0.5: half of (probability without the *least* marked pixels minus probability without the
        *most* marked ones). 0 is what a random map gets on average.

    Raises
    ------
    CourseError
        If shapes do not fit, or for a class or percentile out of range.

    Notes
    -----
    Rong, Y. et al. (2022). A Consistent and Efficient Evaluation Strategy for Attribution Methods (ROAD).
    https://arxiv.org/abs/2202.00449, through the ``grad-cam`` package: removed pixels are filled in from their
    neighbours, because a black hole is a shape too. That solves a system of equations for each picture and percentile,
    twice: about 0.8 seconds for a picture of 128 pixels with four percentiles.
    """
    _check_images(images)
    if maps.shape != (len(images), *images.shape[2:]):
        raise CourseError(f"Maps of {maps.shape} do not fit pictures of {tuple(images.shape)}: give one for each.")
    if not len(percentiles) or not all(0 < percentile < 100 for percentile in percentiles):
        raise CourseError(f"percentiles={tuple(percentiles)}: give shares in percent, above 0 and below 100.")
    targets = _targets(target, len(images), last_layer(model).out_features)
    order = _ranks(maps, seed)
    first = next(model.parameters())
    scores = []
    with evaluating(model), generators_put_back(seed):
        for start in range(0, len(images), _at_least_one(batch_size)):
            part = slice(start, start + batch_size)
            inputs = images[part].to(first.device, first.dtype)
            scores.append(_road_of_batch(model, inputs, order[part], targets[part], list(percentiles)))
    return np.concatenate(scores)


def _road_of_batch(
    model: nn.Module, inputs: Tensor, order: np.ndarray, targets: np.ndarray, percentiles: list[int]
) -> np.ndarray:
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    watched = [ClassifierOutputSoftmaxTarget(int(number)) for number in targets]
    return ROADCombined(percentiles)(inputs, order, watched, model)


def _ranks(maps: np.ndarray, seed: int) -> np.ndarray:
    """Values → ranks in [0, 1], equal values in random order.

    A Grad-CAM is 0 in large parts of a picture. A threshold at 0 would remove all of it, and nothing would be left to
    fill the holes from.
    """
    flat = maps.reshape(len(maps), -1)
    chance = np.random.default_rng(seed).random(flat.shape)
    order = np.lexsort((chance, flat), axis=1)
    ranks = np.empty(flat.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, np.linspace(0, 1, flat.shape[1], dtype=np.float32)[None], axis=1)
    return ranks.reshape(maps.shape)


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


# --- sanity checks -----------------------------------------------------------------------------------------------


def similarity(first: np.ndarray, second: np.ndarray, measure: str = "rank") -> np.ndarray:
    """How much two maps of the same picture are alike.

    Parameters
    ----------
    first, second
        ``(N, H, W)`` in [0, 1].
    measure
        ``"rank"``: Spearman's rank correlation over the pixels; 1 the same order, 0 none, -1 the reverse. ``"ssim"``:
        structural similarity, which compares light, contrast and form in small windows; 1 the same picture.

    Returns
    -------
    ndarray
        ``(N,)`` in [-1, 1]. A map that is the same everywhere has no order: its rank correlation is given as 0.

    Raises
    ------
    CourseError
        For an unknown measure or different shapes.

    Notes
    -----
    Wang, Z. et al. (2004). Image quality assessment: from error visibility to structural similarity.
    https://doi.org/10.1109/TIP.2003.819861 (Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03)
    """
    if measure not in MEASURES:
        raise CourseError(f"measure={measure!r} is unknown: choose one of {', '.join(MEASURES)}.")
    if first.shape != second.shape or first.ndim != 3:
        raise CourseError(f"Maps of {first.shape} and {second.shape} cannot be compared: both have to be (N, H, W).")
    return _rank_correlation(first, second) if measure == "rank" else _structural_similarity(first, second)


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks = (rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second))
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(norm > 0, (a * b).sum(1) / np.where(norm > 0, norm, 1), 0.0)


def _structural_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

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
    """One step of :func:`randomisation_check`.

    Parameters
    ----------
    stage
        The foremost stage that is random by now, with all behind it; None for the trained network.
    similarity
        ``(N,)``: how much each map is still like that of the trained network.
    heat
        ``(N, H, W)``, the maps of this step.
    """

    stage: str | None
    similarity: np.ndarray
    heat: np.ndarray


def randomisation_check(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    method: str = "gradcam",
    stage: str | None = None,
    measure: str = "rank",
    seed: int = 0,
) -> list[RandomisedStep]:
    """Destroy what a network has learned, from the head towards the pixels, and watch its maps change.

    Parameters
    ----------
    model
        Trained; a copy of it is randomised.
    images, target, method, stage
        As for :func:`explain`. Without a target, what the trained network takes for most probable is explained in
        every step.
    measure
        As for :func:`similarity`.
    seed
        Of the random weights. The global generators stay as they are.

    Returns
    -------
    list of RandomisedStep
        The trained network, then one step for every stage, the head first. A method whose maps stay alike while the
        network forgets everything shows edges of the picture, not what was learned.

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
    """Give one stage of a network new random weights, as if it had never been trained.

    Parameters
    ----------
    model
        Changed in place: convolutions as He et al. draw them, norms as the identity, linear layers as torch draws them.
    stage
        Name of any stage.
    seed
        The same seed gives the same weights. The global generator stays as it is.
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
    """Maps of pictures that differ only in where a patch lies; made by :func:`patch_check`.

    Parameters
    ----------
    images
        ``(P, 3, H, W)``, one for each place.
    masks
        bool ``(P, H, W)``, True on the patch.
    heat
        ``(P, H, W)``.
    energy
        ``(P, P)``: in row i and column j, the share of map i that lies where the patch of picture j is. A map that
        follows has its largest values on the diagonal.
    """

    images: Tensor
    masks: np.ndarray
    heat: np.ndarray
    energy: np.ndarray

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
    """Put the same patch at several places of the same picture: a map that shows the patch has to move with it.

    Parameters
    ----------
    model
        As for :func:`explain`.
    background, patch
        ``(3, H, W)`` and ``(3, h, w)``, both transformed as for the network.
    places
        ``(top, left)`` of the patch in pixels, two places or more.
    target
        The class that the patch speaks for.
    method, stage
        As for :func:`explain`.

    Raises
    ------
    CourseError
        If there are fewer than two places, or the patch reaches over the edge at one of them.
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
        image[:, top : top + height, left : left + width] = patch
        mask[top : top + height, left : left + width] = True
    heat = explain(model, images, target, method, stage).heat
    energy = np.stack([energy_inside(heat, mask) for mask in masks], axis=1)
    return PatchCheck(images, masks, heat, energy)
