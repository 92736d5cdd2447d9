"""widgets.py: what the explorer draws is a function of its knobs, and every position of every knob draws something."""

from __future__ import annotations

import html
import io

import ipywidgets
import numpy as np
import pytest
from helpers import ColourPatches, cheap_model, mini
from PIL import Image

from course_utils import plots, widgets
from course_utils.common.errors import CourseError
from course_utils.gradcam import METHODS, explain, overlay
from course_utils.mini.networks import BUILDERS, ResNet18_Mini_Weights
from course_utils.pretrained_models import map_stages
from course_utils.transforms import denormalise
from course_utils.widgets import Gallery, View, describe_view, draw_view, explain_view, explorer

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET
FAST = [method for method in METHODS if method != "scorecam"]
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture(scope="module")
def gallery():
    models = {name: cheap_model(name, num_classes=3) for name in sorted(BUILDERS)} | {"many": mini(num_classes=7)}
    return Gallery(models, ColourPatches(3, side=64), WEIGHTS)


def test_every_position_of_the_knobs_draws(gallery):
    views = [
        View(i % 3, name, stage, (None, 0, 2)[i % 3], FAST[i % len(FAST)], (0, 0.5, 1)[i % 3])
        for name, model in gallery.models.items()
        for i, stage in enumerate(map_stages(model))
    ]
    assert {view.method for view in views} == set(FAST)
    assert {view.picture for view in views} == {0, 1, 2} and {view.opacity for view in views} == {0, 0.5, 1}
    for view in [*views, View(0, "resnet18_mini", "layer1", 1, "scorecam")]:
        found = explain_view(gallery, view)
        figure = draw_view(gallery, view, found)
        assert [len(axis.images) for axis in figure.axes] == [1, 1, 0]
        assert 1 <= len(figure.axes[2].patches) <= widgets.SHOWN_CLASSES
        assert view.stage in describe_view(gallery, view, found)


def test_a_figure_shows_the_picture_the_map_and_the_answers(gallery):
    view = View(1, "resnet18_mini", "layer4", 2, opacity=0.8)
    found = explain_view(gallery, view)
    figure = draw_view(gallery, view)
    picture = denormalise(gallery.dataset.images[1:2], WEIGHTS)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), overlay(picture, found.heat, 0.8)[0])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), overlay(picture, found.heat, 0)[0])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["true: green", "for blue"]
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    np.testing.assert_allclose(widths, 100 * np.sort(found.probabilities[0])[::-1], rtol=1e-5)
    labels = [tick.get_text() for tick in figure.axes[2].get_yticklabels()]
    assert [label for label in labels if label.endswith("(shown)")] == ["blue (shown)"]
    assert plots.png_bytes(figure) == plots.png_bytes(draw_view(gallery, view))


def test_the_explained_class_is_among_the_bars_even_when_it_is_improbable(gallery):
    probabilities = explain_view(gallery, View(0, "many", "layer4")).probabilities[0]
    last = int(probabilities.argmin())
    figure = draw_view(gallery, View(0, "many", "layer4", last))
    labels = [tick.get_text() for tick in figure.axes[2].get_yticklabels()]
    assert len(labels) == 5 and labels[-1] == f"class {last} (shown)"


def test_names_of_the_outputs(gallery):
    assert gallery.class_names("vgg11_mini") == ["red", "green", "blue"]
    assert gallery.class_names("many") == [f"class {i}" for i in range(7)]
    pretrained = Gallery({"tiny": mini(num_classes=200)}, gallery.dataset, WEIGHTS)
    assert pretrained.class_names("tiny") == list(WEIGHTS.meta["categories"])


def test_a_view_in_words(gallery):
    view = View(2, "resnet18_mini", "layer4", 0)
    found = explain_view(gallery, view)
    share = round(100 * float(found.probabilities[0, 0]))
    text = describe_view(gallery, view, found)
    assert text.startswith(f"Picture 2 (blue), resnet18_mini, gradcam at layer4: the map for red ({share} %) is ")
    heat = np.zeros((9, 9), np.float32)
    assert widgets._where(heat) == "0 everywhere: nothing speaks for this class"
    heat[8, 4] = 1
    assert widgets._where(heat) == "strongest at the bottom centre"


def test_an_explorer_needs_something_to_show(gallery):
    with pytest.raises(CourseError, match="0 models and 3 pictures"):
        explorer({}, gallery.dataset, WEIGHTS)
    with pytest.raises(CourseError, match="5 models and 0 pictures"):
        explorer(gallery.models, ColourPatches(0), WEIGHTS)


@pytest.fixture
def box(gallery):
    return explorer(
        {"small": gallery.models["resnet18_mini"], "many": gallery.models["many"]}, gallery.dataset, WEIGHTS
    )


def knobs(box):
    return {knob.description: knob for row in box.children[:2] for knob in row.children}


def drawn(box):
    return np.asarray(Image.open(io.BytesIO(box.children[2].value)).convert("RGB"))


def test_the_explorer_shows_what_the_function_draws(box, gallery):
    assert isinstance(box, ipywidgets.VBox)
    assert list(knobs(box)) == ["picture", "network", "stage", "class", "method", "opacity"]
    small = Gallery({"small": gallery.models["resnet18_mini"]}, gallery.dataset, WEIGHTS)
    first = View(0, "small", "layer4")
    assert box.children[2].value == plots.png_bytes(draw_view(small, first))
    knobs(box)["picture"].value = 2
    knobs(box)["stage"].value = "layer2"
    knobs(box)["class"].value = 1
    knobs(box)["method"].value = "hirescam"
    knobs(box)["opacity"].value = 0.3
    view = View(2, "small", "layer2", 1, "hirescam", 0.3)
    assert box.children[2].value == plots.png_bytes(draw_view(small, view))
    assert html.unescape(box.children[3].value) == describe_view(small, view, explain_view(small, view))


def test_another_network_offers_its_own_stages_and_classes(box, gallery):
    before = drawn(box)
    knobs(box)["class"].value = 2
    knobs(box)["network"].value = "many"
    assert knobs(box)["stage"].options == tuple(map_stages(gallery.models["many"]))
    assert [value for _, value in knobs(box)["class"].options] == [None, *range(7)]
    assert knobs(box)["class"].value == 2, "what was chosen stays where it exists"
    knobs(box)["class"].value = 6
    knobs(box)["network"].value = "small"
    assert knobs(box)["class"].value is None
    assert (drawn(box) == before).all()


def test_opacity_computes_no_new_map(box, monkeypatch):
    calls = []
    monkeypatch.setattr(widgets, "explain", lambda *_: calls.append(1))
    before = box.children[2].value
    knobs(box)["opacity"].value = 0.1
    assert box.children[2].value != before and not calls


def test_what_cannot_be_explained_is_said_in_the_explorer(gallery):
    box = explorer({"small": mini()}, ColourPatches(2, side=16), WEIGHTS)
    assert "as a map of one position, which points nowhere" in html.unescape(box.children[3].value)
    assert box.children[2].value == b""
    knobs(box)["stage"].value = "layer2"
    assert box.children[2].value and "Picture 0 (red)" in box.children[3].value


def test_old_maps_are_given_up(monkeypatch):
    monkeypatch.setattr(widgets, "KEPT_MAPS", 2)
    explained = []
    monkeypatch.setattr(widgets, "explain", lambda *given: explained.append(1) or explain(*given))
    box = explorer({"small": mini()}, ColourPatches(4, side=64), WEIGHTS)
    for picture, maps in ((1, 2), (2, 3), (3, 4), (2, 4), (3, 4), (1, 5)):
        knobs(box)["picture"].value = picture
        assert len(explained) == maps
