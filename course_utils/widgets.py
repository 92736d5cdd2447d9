"""Explorers for JupyterLab: turn the knobs, see what changes.

What is drawn is a pure function of the knobs, :func:`draw_view`, so the same picture can stand beside the explorer as a
static figure, for everybody who reads the notebook where no kernel runs.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.common.tables import percent
from course_utils.gradcam import METHODS, Explanation, explain, overlay
from course_utils.pretrained_models import count_classes, map_stages
from course_utils.transforms import denormalise

SHOWN_CLASSES = 5
KEPT_MAPS = 200


@dataclass(frozen=True)
class View:
    """The position of the explorer's knobs: numbers of the picture and the class, names of all others.

    The class to explain is the most probable one if `target` is None. `opacity`, that of the map, is in [0, 1].
    """

    picture: int
    model: str
    stage: str
    target: int | None = None
    method: str = "gradcam"
    opacity: float = 0.6


@dataclass(frozen=True)
class Gallery:
    """The networks and the pictures that the explorer can show.

    The networks' heads may have different numbers of classes. The data set has transformed pictures with their labels,
    such as ``in_memory(splits.test)``; `weights` is the entry that they were transformed for. A :class:`CourseError` is
    raised if there is no model or no picture.
    """

    models: Mapping[str, nn.Module]
    dataset: Any
    weights: Any

    def __post_init__(self) -> None:
        if not self.models or not len(self.dataset):
            raise CourseError(
                f"{len(self.models)} models and {len(self.dataset)} pictures were given; an explorer needs one of each."
            )

    def class_names(self, model: str) -> list[str]:
        """Return names for the outputs of a model: from the data set, from the weights, or numbers."""
        outputs = count_classes(self.models[model])
        for names in (self.dataset.classes, (getattr(self.weights, "meta", None) or {}).get("categories") or ()):
            if len(names) == outputs:
                return [str(name) for name in names]
        return [f"class {i}" for i in range(outputs)]

    def image(self, picture: int) -> Tensor:
        """Return one picture as a batch ``(1, 3, H, W)``."""
        return self.dataset[picture][0][None]


def explain_view(gallery: Gallery, view: View) -> Explanation:
    """Return the map of a view, whatever its opacity; for errors see :func:`~course_utils.gradcam.explain`."""
    model = gallery.models[view.model]
    return explain(model, gallery.image(view.picture), view.target, view.method, view.stage)


def draw_view(gallery: Gallery, view: View, found: Explanation | None = None) -> Figure:
    """Return a figure of what the explorer shows: the picture, the map on it, and the most probable classes.

    `found` is the result of :func:`explain_view`, given to save computing it again.
    """
    found = explain_view(gallery, view) if found is None else found
    picture = denormalise(gallery.image(view.picture), gallery.weights)
    names, target = gallery.class_names(view.model), int(found.targets[0])
    figure, axes = plots.new_figure(1, 3, width=11, height=3.8)
    for axis, shown, title in (
        (axes[0, 0], overlay(picture, found.heat, 0)[0], f"true: {_true_class(gallery, view)}"),
        (axes[0, 1], overlay(picture, found.heat, view.opacity)[0], f"for {names[target]}"),
    ):
        axis.imshow(shown)
        axis.set_title(plots.label(title))
        axis.axis("off")
    _draw_answers(axes[0, 2], found.probabilities[0], names, target)
    return figure


def _draw_answers(axis: Any, probabilities: np.ndarray, names: Sequence[str], target: int) -> None:
    """Bars of the most probable classes; the explained one is there in any case, in the second colour."""
    best = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES].tolist()
    if target not in best:
        best[-1] = target
    values = 100 * probabilities[best]
    colors = [plots.COLORS[1] if i == target else plots.COLORS[0] for i in best]
    bars = axis.barh(range(len(best)), values, color=colors)
    axis.bar_label(bars, [f"{value:.0f} %" for value in values], padding=3)
    axis.set_yticks(range(len(best)), [plots.label(names[i], 18) + (" (shown)" if i == target else "") for i in best])
    axis.set(xlabel="probability (%)", xlim=(0, 118), ylim=(len(best) - 0.4, -0.6))


def _true_class(gallery: Gallery, view: View) -> str:
    return str(gallery.dataset.classes[int(gallery.dataset.labels[view.picture])])


def describe_view(gallery: Gallery, view: View, found: Explanation) -> str:
    """Return the view in one sentence, for those who cannot see it."""
    names, target = gallery.class_names(view.model), int(found.targets[0])
    share = percent(found.probabilities[0, target], 0)
    where = _where(found.heat[0])
    return (
        f"Picture {view.picture} ({_true_class(gallery, view)}), {view.model}, {view.method} at {view.stage}: the map "
        f"for {names[target]} ({share}) is {where}."
    )


def _where(heat: np.ndarray) -> str:
    if not heat.max() > 0:
        return "0 everywhere: nothing speaks for this class"
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    vertical = ("top", "middle", "bottom")[3 * row // heat.shape[0]]
    horizontal = ("left", "centre", "right")[3 * column // heat.shape[1]]
    return f"strongest at the {vertical} {horizontal}"


def explorer(models: Mapping[str, nn.Module], dataset: Any, weights: Any) -> w.VBox:
    """Return an explorer of heat maps: choose picture, network, stage, class, method and opacity.

    Parameters are those of :class:`Gallery`. JupyterLab shows the result when it is the last line of a cell. Maps are
    computed when they are first looked at and kept, so turning the opacity costs only the drawing.
    """
    return _Explorer(Gallery(models, dataset, weights)).box


class _Explorer:
    """The knobs of the explorer, and the drawing that follows them."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.map_of = functools.lru_cache(KEPT_MAPS)(functools.partial(explain_view, gallery))
        wide = {"description_width": "70px"}
        last = len(gallery.dataset) - 1
        self.picture = w.IntSlider(0, 0, last, description="picture", style=wide, continuous_update=False)
        self.model = w.Dropdown(options=list(gallery.models), description="network", style=wide)
        self.stage = w.Dropdown(description="stage", style=wide)
        self.target = w.Dropdown(description="class", style=wide)
        self.method = w.Dropdown(options=list(METHODS), description="method", style=wide)
        self.opacity = w.FloatSlider(0.6, min=0, max=1, step=0.05, description="opacity", style=wide)
        self.image = w.Image(format="png")
        self.text = w.HTML()
        self.knobs = (self.picture, self.model, self.stage, self.target, self.method, self.opacity)
        self.box = w.VBox([w.HBox(self.knobs[:3]), w.HBox(self.knobs[3:]), self.image, self.text])
        self.setting = False
        self._offer_what_the_model_has()
        self.model.observe(lambda _: self._offer_what_the_model_has(), "value")
        for knob in self.knobs:
            knob.observe(lambda _: self.draw(), "value")
        self.draw()

    @property
    def view(self) -> View:
        """The position of the knobs."""
        return View(*(knob.value for knob in self.knobs))

    def _offer_what_the_model_has(self) -> None:
        """Offer stages and classes of the chosen network; what was chosen before stays where it exists."""
        network, before = self.model.value, (self.stage.value, self.target.value)
        offered = map_stages(self.gallery.models[network])
        classes = self.gallery.class_names(network)
        self.setting = True
        self.stage.options = offered
        self.stage.value = before[0] if before[0] in offered else offered[-1]
        self.target.options = [("the most probable", None), *((name, i) for i, name in enumerate(classes))]
        self.target.value = before[1] if before[1] is not None and before[1] < len(classes) else None
        self.setting = False

    def draw(self) -> None:
        """Show the view, or say why it cannot be shown: an exception in a callback would vanish unseen."""
        if self.setting:
            return
        view = self.view
        try:
            found = self.map_of(replace(view, opacity=0))  # all opacities share a map
        except CourseError as error:
            self.image.value, self.text.value = b"", html.escape(str(error))
            return
        self.image.value = plots.png_bytes(draw_view(self.gallery, view, found))
        self.text.value = html.escape(describe_view(self.gallery, view, found))
