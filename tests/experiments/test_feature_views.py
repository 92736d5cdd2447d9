"""feature_views.py: the strongest places are found where they are, and planes keep the most spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import ColourPatches, cheap_model, copy_of, generators_untouched, mini, moved, no_hooks

from course_utils.common.errors import CourseError
from course_utils.experiments.feature_views import plane_of, plot_planes, plot_top_activations, top_activations
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.pretrained_models import cam_layer

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET


@pytest.fixture(scope="module")
def data():
    return ColourPatches(9, seed=4, side=32)


@pytest.mark.parametrize("name", ["resnet18_mini", "vgg11_mini"])
def test_the_strongest_places_are_those_of_the_maps(name, data):
    model, channels = cheap_model(name, num_classes=3), [5, 0]
    stage = {"resnet18_mini": "layer2", "vgg11_mini": "block2"}[name]
    caught = []
    handle = cam_layer(model, stage).register_forward_hook(
        lambda _module, _inputs, output: caught.append(output.detach())
    )
    model(data.images)
    handle.remove()
    maps = caught[0]
    found = top_activations(model, data, channels, stage, count=4, side=10, batch_size=4)
    assert found.crops.shape == (2, 4, 3, 10, 10) and found.channels.tolist() == channels
    for row, channel in enumerate(channels):
        strongest = maps[:, channel].flatten(1).max(1).values
        order = strongest.argsort(descending=True)[:4]
        assert found.indices[row].tolist() == order.tolist()
        np.testing.assert_allclose(found.values[row], strongest[order], rtol=1e-4)
        for index, (top, left) in zip(order, found.places[row], strict=True):
            cell = 32 // maps.shape[2]
            value = maps[index, channel, top // cell, left // cell]
            assert value == pytest.approx(float(strongest[index]), rel=1e-4)


def test_a_crop_is_the_part_of_the_picture_around_its_place(data):
    found = top_activations(mini().eval(), data, [0, 1, 2], "layer3", count=9, side=8)
    for row in range(3):
        assert sorted(found.indices[row]) == list(range(9)), "each picture once"
        for index, (y, x), crop in zip(found.indices[row], found.places[row], found.crops[row], strict=True):
            top, left = min(max(y - 4, 0), 24), min(max(x - 4, 0), 24)
            assert torch.equal(crop, data.images[index, :, top : top + 8, left : left + 8])


def test_the_model_and_the_generators_are_left_alone(data):
    model = mini().train()
    before = copy_of(model)
    with generators_untouched():
        top_activations(model, data, [3], count=2, side=32)
    assert model.training and no_hooks(model) and not moved(before, copy_of(model))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"channels": [144]}, "channel 144 was asked for; this stage has 144, numbered from 0 to 143."),
        ({"channels": []}, "no channel was asked for; this stage has 144, numbered from 0 to 143."),
        ({"count": 10}, "count=10 crops of different pictures were asked for; the data set has 9."),
        ({"side": 33}, "side=33: a crop has 1 to 32 pixels in pictures of 32 × 32."),
        ({"stage": "head"}, "The stage 'head' gives no map (it lies behind the pooling)."),
    ],
)
def test_wrong_arguments(data, arguments, told):
    model = mini()
    with pytest.raises(CourseError) as caught:
        top_activations(model, data, **{"channels": [0], "side": 8} | arguments)
    assert str(caught.value).startswith(told) and no_hooks(model)


def test_crops_are_drawn_in_rows(data):
    found = top_activations(mini(), data, [7, 2], "layer1", count=3, side=8)
    figure = plot_top_activations(found, WEIGHTS)
    titles = [axis.get_title() for axis in figure.axes]
    assert (
        len(titles) == 6 and titles[0] == f"channel 7: {found.values[0, 0]:.1f}" and titles[3].startswith("channel 2")
    )


def test_a_plane_keeps_the_most_spread():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 2, generator=generator) * torch.tensor([5.0, 2.0])
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q[:2]
    points, shares = plane_of(hidden @ axes + 0.01 * torch.randn(200, 6, generator=generator))
    assert points.shape == (200, 2) and shares.sum() > 0.999 and shares[0] > shares[1]
    assert abs(np.corrcoef(points[:, 0], hidden[:, 0])[0, 1]) > 0.99
    with generators_untouched():
        again, _ = plane_of(hidden @ axes + 0.0)
    assert again.shape == (200, 2)
    for wrong in (torch.zeros(2, 6), torch.zeros(9, 1), torch.zeros(9)):
        with pytest.raises(CourseError, match="three pictures or more"):
            plane_of(wrong)


def test_planes_show_every_picture_in_the_colour_of_its_class():
    labels = [0, 1, 1, 2, 2, 2]
    features = {"before": torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), "after": torch.eye(6)}
    figure = plot_planes(features, labels, ("red", "green", "blue"))
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis, values in zip(figure.axes, features.values(), strict=True):
        assert [len(line.get_xdata()) for line in axis.lines] == [1, 2, 3]
        points, shares = plane_of(values)
        np.testing.assert_allclose(axis.lines[2].get_ydata(), points[3:, 1])
        assert axis.get_xlabel() == f"component 1 ({shares[0]:.0%})"
    assert [text.get_text() for text in figure.legends[0].texts] == ["red", "green", "blue"]
    with pytest.raises(CourseError, match=r"after: 6 features and 5 labels"):
        plot_planes({"after": torch.eye(6)}, labels[:5], ("red", "green", "blue"))
