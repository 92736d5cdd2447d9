"""Heat maps of where a network looks, made with the ``grad-cam`` package.

:func:`explain` works for every network of the course, frozen or not, and leaves the network as it found it. Whether to
believe a map is asked in :mod:`course_utils.experiments.cam_checks`.
"""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pytorch_grad_cam
import torch
from PIL import Image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

from course_utils.common.errors import CourseError, warn
from course_utils.common.state import evaluating
from course_utils.families import family_of
from course_utils.pretrained_models import cam_layer, cam_map, count_classes, map_stages
from course_utils.transforms import eval_transform

# Name → class of the grad-cam package, and what is multiplied with what.
METHODS = {
    "gradcam": ("GradCAM", "channels, each weighted by its mean gradient"),
    "gradcam++": ("GradCAMPlusPlus", "channels, weighted by their positive gradients alone"),
    "hirescam": ("HiResCAM", "every position of every channel times its own gradient"),
    "eigencam": ("EigenCAM", "the first principal component of the channels; knows no class"),
    "scorecam": ("ScoreCAM", "channels, weighted by the answer when only they show through; slow, no gradient"),
}
CAM_BATCH = 32
FOR_RELU = ("gradcam++", "scorecam")  # methods that were made for activations that are never negative
ROUNDING = 1e-4  # a sum over channels that is smaller than this part of its terms is nothing
BETTER = "Take 'gradcam' or 'eigencam'."


@dataclass(frozen=True)
class Explanation:
    """The heat maps of N pictures; made by :func:`explain`.

    Parameters
    ----------
    heat
        Float32 ``(N, H, W)`` in [0, 1], as large as the pictures. Each is stretched by itself to the full range, so
        two of them can be compared in form and not in strength. All 0 where nothing speaks for the class.
    signed
        Float32 ``(N, h, w)``: the result at the stage, before negative values are cut off and before it is enlarged.
    targets, probabilities
        Int ``(N,)``: the class that each map explains; and float32 ``(N, C)``: the answers of the network.
    method, stage
        Same as in :func:`explain`; the stage by its name, never None.
    """

    heat: np.ndarray
    signed: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray
    method: str
    stage: str

    @property
    def raw(self) -> np.ndarray:
        """The maps without stretching: float32 ``(N, H, W)``, 0 and above, in the method's own unit.

        It is the same unit for all pictures: for ``"gradcam"`` and ``"hirescam"`` on a network that averages its last
        map, the positions of ``signed`` add up to the logit without its bias.
        """
        positive = torch.from_numpy(self.signed).clamp(min=0)[:, None]
        return F.interpolate(positive, self.heat.shape[1:], mode="bilinear", align_corners=False)[:, 0].numpy()


def common_scale(*explanations: Explanation) -> list[np.ndarray]:
    """Return ``raw`` of each explanation divided by the largest value of all of them, so in [0, 1].

    A :class:`CourseError` is raised if the methods differ: their values have different units.
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
    """Return which places of a picture speak for a class, according to one stage of a network.

    Parameters
    ----------
    model
        A network of one of the families, on any device, frozen or not, in any mode. Afterwards modes,
        ``requires_grad``, ``grad``, hooks and random generators are as they were.
    images, batch_size
        ``(N, 3, H, W)``, transformed as for the network, and number of them at a time. ``"scorecam"`` always takes one:
        it needs memory for as many copies of a picture as the stage has channels.
    target
        The class to explain: one for all pictures, or one for each; None takes the most probable class of each. Its
        logit is explained, before softmax: a probability also rises where others fall.
    method, stage
        One of ``METHODS``, and one of :func:`~course_utils.pretrained_models.map_stages`; None for the last.

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

    In a transformer the map has a place for each token of the picture; class token and registers have none. A ViT is
    explained in front of the last block's attention: behind it only the class token is used. ``"gradcam"`` and
    ``"eigencam"`` make sense there. ``"gradcam++"`` and ``"scorecam"`` were made for activations behind a ReLU, and
    ``"hirescam"`` is zero where a LayerNorm follows (Swin, inner stages of ConvNeXt). A warning says where a map means
    little.
    """
    layer = cam_layer(model, stage)
    if method not in METHODS:
        near = difflib.get_close_matches(str(method).lower(), METHODS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise CourseError(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.{hint}")
    batches = batches_of(images, 1 if method == "scorecam" else batch_size)
    wanted = None if target is None else class_numbers(target, len(images), count_classes(model))
    with _borrowed(model), _cam(method, model, layer) as cam:
        found = [_explain_batch(cam, images[rows], None if wanted is None else wanted[rows]) for rows in batches]
    heat, signed, targets, probabilities = (np.concatenate(column) for column in zip(*found, strict=True))
    maps = map_stages(model)
    stage = maps[-1] if stage is None else stage
    if signed.shape[1:] == (1, 1):
        raise CourseError(
            f"The stage {stage!r} sees these pictures of {images.shape[2]} × {images.shape[3]} pixels as a map of one "
            "position, which points nowhere. Give larger pictures or an earlier stage."
        )
    for reason in _doubts(model, method, stage == maps[0], cam.cancelled):
        warn(f"{method!r} at the stage {stage!r} of this {type(model).__name__} means little: {reason}")
    return Explanation(heat, signed, targets, probabilities, method, stage)


def _explain_batch(cam: Any, images: Tensor, wanted: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return heat, signed maps, targets and probabilities."""
    first = next(cam.model.parameters())
    # A fresh copy that asks for a gradient: in a frozen network nothing else does, and there would be no map.
    inputs = images.detach().to(first.device, first.dtype).clone().requires_grad_(cam.uses_gradients)
    targets = None if wanted is None else [ClassifierOutputTarget(int(number)) for number in wanted]
    heat = cam(input_tensor=inputs, targets=targets)
    logits = cam.outputs.detach().float().cpu()
    if not logits.isfinite().all():
        raise CourseError(
            "The model's answer to at least one picture is not a finite number, so nothing can be explained. Look for "
            "NaN in the pictures and in the weights (a training that diverged leaves such weights)."
        )
    explained = logits.argmax(1).numpy() if wanted is None else wanted
    return heat, np.float32(cam.signed), explained, logits.softmax(1).numpy()


class _Keeping:
    """A part of every class of maps: it keeps the map before it is cut off, enlarged and stretched."""

    cancelled = False  # True if all channels together are nothing, measured by each of them

    def get_cam_image(
        self, input_tensor: Tensor, target_layer: nn.Module, targets: list, activations: np.ndarray, *rest: Any
    ) -> np.ndarray:
        self.signed = super().get_cam_image(input_tensor, target_layer, targets, activations, *rest)
        if rest[0] is not None:  # gradients
            terms = np.abs(activations * rest[0]).sum(1)
            self.cancelled |= bool(np.abs(self.signed).max() < ROUNDING * terms.max())
        return self.signed


def _doubts(model: nn.Module, method: str, is_first: bool, cancelled: bool) -> Iterator[str]:
    """Give the reasons why a map means little."""
    if family_of(model).to_map and is_first:
        yield "it lies in front of all attention, where a token knows its own patch alone. Take a later stage."
    if family_of(model).to_map and method in FOR_RELU:
        yield f"the method was made for activations behind a ReLU, and a transformer's are often negative. {BETTER}"
    if method == "hirescam" and cancelled:
        yield (
            "a LayerNorm follows, which makes the channels cancel out at every place, and the map is a rounding "
            f"error. {BETTER}"
        )


class _OrientedEigenCAM(pytorch_grad_cam.EigenCAM):
    """EigenCAM that is positive where the channels are strong.

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
    base = _OrientedEigenCAM if method == "eigencam" else getattr(pytorch_grad_cam, METHODS[method][0])
    cam = type(base.__name__, (_Keeping, base), {})(model, [layer], reshape_transform=cam_map(model))
    # Not "with cam": the package's own way out swallows an IndexError.
    with contextlib.ExitStack() as stack:
        stack.callback(cam.activations_and_grads.release)
        if method == "scorecam":  # it draws a progress bar for each picture, which nothing but this switches off
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield cam


@contextlib.contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    """Set eval mode, with gradients but none for parameters; afterwards put everything back as it was."""
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise CourseError(
            "The model was made inside torch.inference_mode(), so no gradient can go through it. Make or load it "
            "outside of that block; explain may be called inside."
        )
    device = next(model.parameters()).device.type
    # The package clears grad, which a caller may be accumulating.
    was = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        try:
            model.requires_grad_(False)
            yield
        finally:
            for parameter, learning, gradient in was:
                parameter.requires_grad_(learning)
                parameter.grad = gradient


def batches_of(images: Tensor, batch_size: int) -> list[slice]:
    """Return the rows of each batch; :class:`CourseError` unless `images` are float ``(N, 3, H, W)`` with N > 0."""
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
    if batch_size < 1:
        raise CourseError(f"batch_size={batch_size}: at least one picture has to go through at a time.")
    return [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]


def class_numbers(target: int | Sequence[int] | Tensor, pictures: int, classes: int) -> np.ndarray:
    """Return a class number for each picture, int64 ``(N,)``; :class:`CourseError` if the model has no such class."""
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


def overlay(pictures: Tensor, maps: np.ndarray, opacity: float = 0.6, colors: str = "inferno") -> np.ndarray:
    """Return pictures with maps laid over them, uint8 ``(N, H, W, 3)``.

    The picture loses colour, and hot places take on that of the map: an orange cat would otherwise look hot by itself.

    Parameters
    ----------
    pictures, maps
        ``(N, 3, H, W)`` and ``(N, H, W)`` in [0, 1], such as ``denormalise(images, weights)``; otherwise a
        :class:`CourseError` is raised.
    opacity
        Share of its colour that the picture loses, and of the hottest places that the map covers, in [0, 1].
    colors
        Name of a colour map of matplotlib. ``"inferno"`` gets lighter from end to end, so that it reads in grey and for
        colour-blind eyes too; the usual ``"jet"`` does not.
    """
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
    """Return the part of a picture that a network is shown: resized and cropped as its weights ask for, nothing else.

    A mask can be given too, and then lies on the network's picture. `side` is that of the result in pixels, None for
    that of the network's picture; a larger one shows the same in more detail.
    """
    preset = eval_transform(weights)
    factor = 1 if side is None else side / preset.crop_size[0]
    resized = v2.resize(picture, [round(factor * n) for n in preset.resize_size], interpolation=preset.interpolation)
    return v2.center_crop(resized, [round(factor * n) for n in preset.crop_size])
