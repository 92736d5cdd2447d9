"""Figures: small enough to store, the same for the same input, described, and with all that was given in them."""

import io
import math
import warnings
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import ColourPatches, mini
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.experiments.feature_views import plot_planes
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, PROGRESSIVE
from course_utils.training import fit


def size_of(png):
    return Image.open(io.BytesIO(png)).size


def test_the_same_figure_gives_the_same_bytes():
    first, second = (plots.png_bytes(plots.dots_with_mean({"a": [1, 2, 3]}, "%")) for _ in range(2))
    assert first == second


def test_a_figure_of_noise_is_made_small_enough():
    noise = [np.random.default_rng(i).random((160, 160, 3)) for i in range(6)]
    figure = plots.picture_grid(noise, [str(i) for i in range(6)])
    png = plots.png_bytes(figure, limit=35_000)
    assert len(png) <= 35_000
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


# --- confusion matrices of any size ------------------------------------------------------------------------------


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_shares_of_rows_and_a_class_without_samples():
    figure = plots.confusion(np.array([[3, 1], [0, 0]]), ["ant", "bee"], normalise=True)
    assert texts(figure) == ["75 %", "25 %", "–", "–"]
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_an_empty_matrix_is_drawn():
    assert texts(plots.confusion(np.zeros((2, 2), dtype=int), ["a", "b"])) == ["0"] * 4


@pytest.mark.parametrize(("classes", "numbers", "bar"), [(2, 4, 0), (25, 625, 0), (60, 0, 1), (200, 0, 1)])
def test_many_classes_get_a_colour_bar_instead_of_numbers(classes, numbers, bar):
    figure = plots.confusion(np.eye(classes, dtype=int), [f"c{i}" for i in range(classes)])
    assert len(texts(figure)) == numbers and len(figure.axes) == 1 + bar
    assert figure.get_figwidth() <= 13
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    every = -(-classes // len(names))  # all of them, or every second, third, …
    assert names == [f"c{i}" for i in range(0, classes, every)] and len(names) >= min(classes, 40)


# --- lines, bars, points -----------------------------------------------------------------------------------------


def test_lines_count_from_one_and_carry_their_names():
    figure = plots.lines({"plain": [3, 2, 1], "residual": [3, 1]}, "epoch", "loss (nats)")
    axis = figure.axes[0]
    assert [list(line.get_xdata()) for line in axis.lines] == [[1, 2, 3], [1, 2]]
    assert [list(line.get_ydata()) for line in axis.lines] == [[3, 2, 1], [3, 1]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["plain", "residual"]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ("epoch", "loss (nats)", "linear")
    assert all(x == round(x) for x in axis.get_xticks())


def test_lines_leave_gaps_where_the_axis_has_no_place():
    values = [1.0, 0.0, math.nan, math.inf, -2.0]
    linear, log = (plots.lines({"a": values}, "x", "y", log_y=log).axes[0] for log in (False, True))
    assert np.isnan(linear.lines[0].get_ydata()).tolist() == [False, False, True, True, False]
    assert np.isnan(log.lines[0].get_ydata()).tolist() == [False, True, True, True, True]
    assert log.get_yscale() == "log"


def test_lines_at_given_positions():
    axis = plots.lines({"a": [5, 6], "b": [7]}, "x", "y", xs=[10, 30]).axes[0]
    assert [list(line.get_xdata()) for line in axis.lines] == [[10, 30], [10]]
    with pytest.raises(CourseError, match="lines: 'b' has 3 values for 2 positions"):
        plots.lines({"a": [1], "b": [1, 2, 3]}, "x", "y", xs=[1, 2])


def test_bars_have_their_numbers_and_intervals():
    figure = plots.bars({"frozen": 77.25, "tuned": 80.0}, "accuracy (%)", {"tuned": (72.0, 86.0)})
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [77.25, 80.0]
    assert texts(figure) == ["77.2", "80.0"]
    assert [list(line.get_xdata()) for line in axis.lines] == [[72.0, 86.0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["frozen", "tuned"]
    low, high = axis.get_ylim()
    assert low > high  # the first is on top
    assert texts(plots.bars({"a": 1234567}, "parameters", form=",d")) == ["1,234,567"]


def test_the_number_of_a_bar_stands_behind_its_interval():
    figure = plots.bars({"a": 50.0, "b": 50.0, "c": -3.0}, "%", {"b": (40.0, 70.0)})
    assert [text.xy[0] for text in figure.axes[0].texts] == [50.0, 70.0, 0]


def test_points_have_their_names_and_intervals():
    figure = plots.scatter({"VGG": (0.9, 78), "ResNet": (0.8, 79)}, "parameters", "%", True, {"VGG": (70, 85)})
    axis = figure.axes[0]
    assert texts(figure) == ["VGG", "ResNet"]
    assert [text.xy for text in axis.texts] == [(0.9, 78), (0.8, 79)]
    interval, *points = axis.lines
    assert (list(interval.get_xdata()), list(interval.get_ydata())) == ([0.9, 0.9], [70, 85])
    assert [(line.get_marker(), line.get_color()) for line in points] == list(
        zip(plots.MARKERS[:2], plots.COLORS[:2], strict=True)
    )
    assert axis.get_xscale() == "log"


@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 100)), min_size=2, max_size=4, unique=True))
def test_names_of_points_cover_neither_each_other_nor_a_marker(points):
    figure = plots.scatter({f"network {i}": point for i, point in enumerate(points)}, "x", "y")
    axis = figure.axes[0]
    names = [text.get_window_extent() for text in axis.texts]
    markers = [line.get_window_extent() for line in axis.lines]
    frame = axis.get_window_extent()
    for i, box in enumerate(names):
        assert not box.count_overlaps(names[:i] + markers)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1


def test_names_of_points_that_coincide_are_still_written():
    assert texts(plots.scatter({f"network {i}": (1, 1) for i in range(12)}, "x", "y")) == [
        f"network {i}" for i in range(12)
    ]


@pytest.mark.parametrize(
    ("x", "text"), [(0.5, "0.5"), (2, "2"), (50, "50"), (2000, "2,000"), (5e6, "5 M"), (1.5e6, "1.5 M"), (2e10, "20 G")]
)
def test_ticks_are_ordinary_numbers(x, text):
    assert plots._short(x) == text


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.lines({}, "x", "y"), "lines: nothing was given to draw; give at least one name"),
        (lambda: plots.bars({}, "x"), "bars: nothing was given"),
        (lambda: plots.scatter({}, "x", "y"), "scatter: nothing was given"),
        (lambda: plots.bars({"a": math.nan}, "x"), "bars: 'a' is nan, which cannot be drawn. Leave it out"),
        (lambda: plots.scatter({"a": (1, math.inf)}, "x", "y"), "scatter: 'a' is inf"),
        (lambda: plots.scatter({"a": (0, 1)}, "x", "y", log_x=True), "scatter: 'a' has x = 0, which has no place on a"),
        (lambda: plots.bars({"a": 1}, "x", {"b": (0, 1)}), "there is an interval for 'b', but no value. There are a."),
        (
            lambda: plots.bars({"a": 80.0}, "x", {"a": (0.7, 0.9)}),
            "runs from 0.7 to 0.9 and does not hold its value 80",
        ),
        (lambda: plots.scatter({"a": (1, 2)}, "x", "y", intervals={"a": (3, 4)}), "scatter: the interval of 'a' runs"),
    ],
)
def test_what_cannot_be_drawn(draw, message):
    with pytest.raises(CourseError) as caught:
        draw()
    assert message in str(caught.value)


# --- style -------------------------------------------------------------------------------------------------------


def a_run():
    return SimpleNamespace(history=[SimpleNamespace(epoch=i, val_loss=1 / (i + 1), val_accuracy=0.5) for i in range(3)])


FIGURES = {
    "grid": lambda: plots.picture_grid([np.zeros((8, 8))], ["a"]),
    "message": lambda: plots.message("nothing to see"),
    "curves": lambda: plots.learning_curves({"a": a_run()}),
    "plans": lambda: plots.plan_map({"full": FULL.plan(mini())}, epochs=2),
    "dots": lambda: plots.dots_with_mean({"a": [1, 2]}, "%", {"majority": 1}),
    "spread": lambda: plots.curves_with_spread([1, 10], {"a": [[1, 3], [4, 6]]}, "n", "%"),
    "confusion": lambda: plots.confusion(np.eye(3, dtype=int), ["a", "b", "c"]),
    "schedules": lambda: plots.schedules({"head": [0.1, 0.2]}),
    "lines": lambda: plots.lines({"a": [1, 2]}, "x", "y"),
    "bars": lambda: plots.bars({"a": 1.0}, "x"),
    "scatter": lambda: plots.scatter({"a": (1, 2)}, "x", "y"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_large_enough_for_a_projector(name):
    before = dict(mpl.rcParams)
    figure = FIGURES[name]()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    written = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert written and min(text.get_fontsize() for text in written) >= 12


def test_groups_look_different_up_to_28():
    looks = [tuple(plots.look(i).values()) for i in range(28)]
    assert len(set(looks)) == 28
    for position in (0, 1):  # colour alone, or marker alone, tells the first seven apart
        assert len({each[position] for each in looks[:7]}) == 7


# --- names from a reader's folders -------------------------------------------------------------------------------


LONG = "a" * 200
NAMED = {
    "grid": lambda name: plots.picture_grid([np.zeros((8, 8))], [name]),
    "message": plots.message,
    "filters": lambda name: plots.filters({name: torch.rand(8, 3, 7, 7)}),
    "curves": lambda name: plots.learning_curves({name: a_run()}),
    "plans": lambda name: plots.plan_map({name: FULL.plan(mini())}, epochs=2),
    "dots": lambda name: plots.dots_with_mean({name: [1, 2]}, "%", {name: 1}),
    "spread": lambda name: plots.curves_with_spread([1, 10], {name: [[1, 3], [4, 6]]}, "n", "%"),
    "confusion": lambda name: plots.confusion(np.eye(2, dtype=int), [name, name]),
    "schedules": lambda name: plots.schedules({name: [0.1, 0.2]}),
    "lines": lambda name: plots.lines({name: [1, 2]}, "x", "y"),
    "bars": lambda name: plots.bars({name: 1.0}, "x"),
    "scatter": lambda name: plots.scatter({name: (1, 2)}, "x", "y"),
    "planes": lambda name: plot_planes({name: torch.rand(6, 4)}, [0, 1] * 3, [name, "dog"]),
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("name", ["$20_to_$50", "$", "$^$", "_private", "猫と犬", "caf\udce9", LONG, "a\\b"])
def test_every_name_can_be_drawn_and_is_taken_for_nothing_else(kind, name):
    with warnings.catch_warnings(action="error"):
        figure = NAMED[kind](name)
        plots.png_bytes(figure)
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    # What is drawn of a text, and whether it is taken for a formula.
    drawn = [text._preprocess_math(text.get_text()) for text in texts]
    wanted = name[:5].replace("\udce9", "\\")
    assert any(wanted in text and not formula for text, formula in drawn)
    assert kind == "message" or max(len(text) for text, _ in drawn) <= 40


def test_a_long_name_keeps_both_ends():
    assert plots.label("a" * 199 + "b") == "a" * 20 + "…" + "a" * 18 + "b"
    assert plots.label("a" * 40) == "a" * 40


def test_the_description_of_a_figure_holds_no_formula(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(plots.message("nothing"), alt="under_$20 and above_$50")
    assert shown[0].alt == "under_$20 and above_$50"
    assert shown[1].data == r"*under_\$20 and above_\$50*"


def test_a_grid_without_pictures_says_so():
    figure = plots.picture_grid([], [])
    assert [text.get_text() for text in figure.axes[0].texts] == ["There is no picture to show."]
    plots.png_bytes(figure)
