"""Two views of features: the crops that excite a channel most, and all pictures as points on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating
from course_utils.pretrained_models import cam_layer, cam_map
from course_utils.transforms import denormalise


class TopActivations(NamedTuple):
    """The places that excite some channels most; made by :func:`top_activations`."""

    channels: np.ndarray  # int (K,): numbers of the channels
    values: np.ndarray  # float32 (K, count): values of the channel at these places, falling along each row
    indices: np.ndarray  # int (K, count): numbers of the pictures in the data set; each appears once in a row
    places: np.ndarray  # int (K, count, 2): row and column of the place in pixels
    crops: Tensor  # (K, count, 3, side, side): the pictures around these places, still normalised


def top_activations(
    model: nn.Module,
    dataset: Dataset,
    channels: Sequence[int],
    stage: str | None = None,
    count: int = 6,
    side: int = 48,
    batch_size: int = 64,
) -> TopActivations:
    """Return the places in a data set to which some channels of a stage respond most.

    Parameters
    ----------
    model, stage, batch_size
        Same as in :func:`~course_utils.gradcam.explain`; the model is left as it was found.
    dataset
        Pairs ``(image, label)`` with images ``(3, H, W)`` of one size, already transformed.
    channels
        Numbers of the channels to look at. ``last_layer(model).weight[c].topk(4).indices`` are those that speak for
        class c, where the last layer sees the mean of each channel (ResNet, EfficientNet).
    count, side
        Number of crops for each channel, each from another picture, and their side in pixels. A channel sees a larger
        or smaller part than that; in deep stages much of the picture.

    Raises
    ------
    CourseError
        If there are fewer pictures than `count`, a channel does not exist, or a crop is larger than the picture.

    Notes
    -----
    Zeiler, M. D. & Fergus, R. (2014). Visualizing and Understanding Convolutional Networks.
    https://arxiv.org/abs/1311.2901
    """
    if not 1 <= count <= len(dataset):
        raise CourseError(f"count={count} crops of different pictures were asked for; the data set has {len(dataset)}.")
    size = tuple(dataset[0][0].shape[1:])
    if not 1 <= side <= min(size):
        raise CourseError(f"side={side}: a crop has 1 to {min(size)} pixels in pictures of {size[0]} × {size[1]}.")
    values, places = _strongest_places(model, dataset, list(channels), stage, size, batch_size)
    best = values.topk(count, dim=0)
    indices = best.indices.T  # (K, count)
    rows = torch.arange(len(indices))[:, None]
    centres = places[indices, rows]
    pairs = zip(indices.flatten(), centres.flatten(0, 1), strict=True)
    crops = torch.stack([_crop(dataset[int(i)][0], centre, side) for i, centre in pairs])
    return TopActivations(
        np.asarray(channels), best.values.T.numpy(), indices.numpy(), centres.numpy(), crops.unflatten(0, indices.shape)
    )


def _strongest_places(
    model: nn.Module, dataset: Dataset, channels: list[int], stage: str | None, size: tuple[int, int], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the highest value of each channel in each picture ``(N, K)``, and its place in pixels ``(N, K, 2)``."""
    values, places, caught = [], [], []
    device, as_map = next(model.parameters()).device, cam_map(model)
    handle = cam_layer(model, stage).register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        with evaluating(model):
            # A loader draws a number even when it does not shuffle; its own generator keeps the caller's untouched.
            for images, _ in DataLoader(dataset, batch_size=batch_size, generator=torch.Generator()):
                model(images.to(device))
                maps = as_map(caught.pop())
                _check_channels(channels, maps.shape[1])
                highest, position = maps[:, channels].flatten(2).max(2)
                height, width = maps.shape[2:]
                rows = (position // width + 0.5) * size[0] / height
                columns = (position % width + 0.5) * size[1] / width
                values.append(highest.float().cpu())
                places.append(torch.stack([rows, columns], dim=2).long().cpu())
    finally:
        handle.remove()
    return torch.cat(values).clone(), torch.cat(places).clone()


def _check_channels(channels: list[int], available: int) -> None:
    wrong = [channel for channel in channels if not 0 <= channel < available]
    if wrong or not channels:
        what = f"channel {wrong[0]}" if wrong else "no channel"
        raise CourseError(f"{what} was asked for; this stage has {available}, numbered from 0 to {available - 1}.")


def _crop(image: Tensor, centre: Tensor, side: int) -> Tensor:
    """Return the square around a place, moved inwards where it would reach over the edge."""
    highest = torch.tensor(image.shape[1:]) - side
    top, left = torch.minimum((centre - side // 2).clamp(min=0), highest).tolist()
    return image[:, top : top + side, left : left + side]


def plot_top_activations(found: TopActivations, weights: Any) -> Figure:
    """Return a figure with one row of crops per channel, the strongest first, as they were before normalisation."""
    crops = denormalise(found.crops.flatten(0, 1), weights)
    titles = [f"channel {c}: {v:.1f}" for c, row in zip(found.channels, found.values, strict=True) for v in row]
    return plots.picture_grid(list(crops), titles, columns=found.crops.shape[1])


def plane_of(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return features as points on the plane that keeps most of their spread (principal component analysis).

    The features are ``(N, D)``, of three pictures and two features or more, otherwise a :class:`CourseError` is raised.
    The points are ``(N, 2)``, and come with the share of the variance along either axis ``(2,)``. What the two shares
    lack to 1 is not in the picture: classes that overlap in it may well be apart.
    """
    if features.ndim != 2 or len(features) < 3 or features.shape[1] < 2:
        raise CourseError(
            f"A plane needs features (N, D) of three pictures or more, these are {tuple(features.shape)}."
        )
    # The "full" solver draws no random numbers.
    analysis = PCA(2, svd_solver="full")
    return analysis.fit_transform(np.asarray(features, dtype=np.float64)), analysis.explained_variance_ratio_


def plot_planes(features: Mapping[str, Tensor], labels: Sequence[int], classes: Sequence[str]) -> Figure:
    """Return a figure of the same pictures on the planes of several networks, one panel each.

    Features are ``(N, D)``, all of the same pictures in the same order, with a label for each. A class has a colour and
    a marker; after seven they repeat.
    """
    labels = np.asarray(labels)
    figure, axes = plots.new_figure(1, len(features), width=4.6 * len(features) + 1.2, height=4.2)
    for axis, (name, values) in zip(axes.flat, features.items(), strict=True):
        if len(values) != len(labels):
            raise CourseError(
                f"{name}: {len(values)} features and {len(labels)} labels; both have to be of the same pictures."
            )
        points, shares = plane_of(values)
        for i, label in enumerate(map(plots.label, classes)):
            own = points[labels == i]
            axis.plot(own[:, 0], own[:, 1], plots.MARKERS[i % 7], color=plots.COLORS[i % 7], alpha=0.7, label=label)
        axis.set(xlabel=f"component 1 ({shares[0]:.0%})", ylabel=f"component 2 ({shares[1]:.0%})")
        axis.set(title=plots.label(name), xticks=[], yticks=[])  # positions on either axis have no unit
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure
