"""Figures: small enough to store, the same for the same input, described, and with all that was given in them."""

import io

import numpy as np
import pytest
import torch
from helpers import ColourPatches, mini
from PIL import Image

from course_utils import plots
from course_utils.errors import CourseError
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, PROGRESSIVE
from course_utils.training import fit


def size_of(png):
    return Image.open(io.BytesIO(png)).size


def test_the_same_figure_gives_the_same_bytes():
    first, second = (plots.png_bytes(plots.dots_with_mean({"a": [1, 2, 3]}, "%")) for _ in range(2))
    assert first == second


def test_a_figure_of_noise_is_made_small_enough():
    noise = [np.random.default_rng(i).random((160, 160, 3)) for i in range(12)]
    figure = plots.picture_grid(noise, [str(i) for i in range(12)])
    png = plots.png_bytes(figure, limit=60_000)
    assert len(png) <= 60_000
    assert size_of(png)[0] >= 300


def test_a_limit_that_cannot_be_met_is_an_error():
    with pytest.raises(CourseError, match="fewer pictures"):
        plots.png_bytes(plots.dots_with_mean({"a": [1.0]}, "%"), limit=100)


def test_show_stores_alt_text_and_a_visible_line(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(plots.dots_with_mean({"a": [1.0]}, "%"), alt="one dot")
    data, metadata = shown[0]._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "one dot"
    assert "image/png" in data
    assert shown[1].data == "*one dot*"


def test_show_without_a_description_is_an_error():
    with pytest.raises(CourseError, match="description"):
        plots.show(plots.dots_with_mean({"a": [1.0]}, "%"), alt=" ")


def test_picture_grid_takes_pil_arrays_and_tensors_and_leaves_spare_axes_empty():
    pictures = [Image.new("RGB", (8, 8)), np.zeros((8, 8)), torch.rand(3, 8, 8)]
    figure = plots.picture_grid(pictures, ["a", "b", "c"], columns=2)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 0]
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", ""]


def test_each_filter_is_stretched_to_the_full_range():
    bank = torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(0)) * 0.01
    tiles = plots._mosaic(bank.numpy(), columns=4)
    assert tiles.shape == (2 * 9, 4 * 9, 3)
    assert tiles[1:8, 1:8].min() == 0
    assert tiles[1:8, 1:8].max() == pytest.approx(1)


def test_plan_map_shows_when_and_how_fast_each_stage_learns():
    grid = plots._plan_grid(PROGRESSIVE.plan(mini()), epochs=6)
    frozen = np.isnan(grid)
    assert frozen.sum(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert grid[0, 0] == pytest.approx(np.log10(PROGRESSIVE.rates[0]))
    figure = plots.plan_map({s.name: s.plan(mini()) for s in (FEATURE_EXTRACTION, FULL)}, epochs=6)
    assert [axis.get_title() for axis in figure.axes[:2]] == [FEATURE_EXTRACTION.name, FULL.name]


def test_learning_curves_draw_what_the_run_recorded():
    model, data = mini(), ColourPatches()
    run = fit(model, data, data, FEATURE_EXTRACTION, epochs=2, batch_size=4, device="cpu")
    figure = plots.learning_curves({"head": run})
    loss, accuracy = (axis.lines[0].get_ydata() for axis in figure.axes)
    assert list(loss) == [record.val_loss for record in run.history]
    assert list(accuracy) == [100 * record.val_accuracy for record in run.history]


def test_spread_is_the_range_and_the_line_its_mean():
    figure = plots.curves_with_spread([1, 10], {"a": [[1, 3], [4, 6]]}, "n", "%")
    assert list(figure.axes[0].lines[0].get_ydata()) == [2, 5]


def test_confusion_writes_every_count():
    figure = plots.confusion(np.array([[5, 1], [0, 7]]), ["ant", "bee"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "1", "0", "7"]


def test_dots_show_every_run_and_schedules_leave_zero_out():
    figure = plots.dots_with_mean({"a": [1, 2, 3], "b": [4]}, "%", {"majority": 2})
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [3, 2, 1, 2, 2]
    line = plots.schedules({"head": [0.0, 0.1, 0.2]}).axes[0].lines[0]
    assert np.isnan(line.get_ydata()[0])
