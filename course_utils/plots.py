"""Figures of the notebooks: legible on a projector, safe for colour-blind eyes, described in words.

Every function returns a matplotlib figure; :func:`show` puts it into the notebook together with its description.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from IPython import display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image, ImageOps

from course_utils.common.errors import CourseError
from course_utils.common.tables import shortened

if TYPE_CHECKING:  # a room on the same floor
    from course_utils.fine_tuning import Plan

# Okabe & Ito (2008), https://jfly.uni-koeln.de/color/: eight colours that stay apart for every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
LARGEST_PNG = 90_000
THUMBNAIL = 160  # pixels

# Fonts of the common systems for what matplotlib's own font lacks: Chinese, Japanese and Korean.
EAST_ASIAN = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS"),
)
INSTALLED = {font.name for font in fontManager.ttflist}

STYLE = {
    "font.family": ["DejaVu Sans", *(name for name in EAST_ASIAN if name in INSTALLED)],
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.dpi": 90,
    "axes.prop_cycle": mpl.cycler(color=COLORS),
}


# Matplotlib reads a text's size when the text is made, so the style has to hold in the whole of a drawing function:
# ``@styled()`` above it does that.
@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Hold the course's style in a block, or in a function that draws."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # No font has every character. A box in its place says that; a page of warnings says no more.
        warnings.filterwarnings("ignore", r"Glyph .* missing from|Matplotlib currently does not support", UserWarning)
        yield


def label(name: object, longest: int = 40) -> str:
    """Return a name as it can stand in a figure: of at most so many characters, and never taken for something else.

    Names come from readers' folders. To matplotlib ``$20_to_$50`` is a formula, a legend leaves out what begins with
    ``_``, and a name that is not UTF-8 cannot be drawn.
    """
    text = shortened(str(name).encode("utf-8", "backslashreplace").decode(), longest).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _labels(names: Iterable[object], longest: int = 40) -> list[str]:
    return [label(name, longest) for name in names]


def look(i: int) -> dict[str, str]:
    """Return colour, marker and line of the i-th group: each alone tells 7 groups apart, all together 28."""
    return {"color": COLORS[i % 7], "marker": MARKERS[i % 7], "linestyle": LINES[i // 7 % 4]}


@styled()
def new_figure(rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 4.0) -> tuple[Figure, np.ndarray]:
    """Return a figure with the course's style and an array ``(rows, columns)`` of axes; sizes in inches.

    It does not go through pyplot, so nothing stays open and no backend is needed.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def one_axis(width: float = 8.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return a figure of :func:`new_figure` with a single pair of axes."""
    figure, axes = new_figure(1, 1, width, height)
    return figure, axes[0, 0]


def png_bytes(figure: Figure, limit: int = LARGEST_PNG) -> bytes:
    """Return a figure as PNG of at most `limit` bytes, with 256 colours, or fewer colours and pixels where needed.

    A :class:`CourseError` is raised if it does not fit at less than half the resolution either.
    """
    with styled():
        for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", dpi=90 * scale)
            picture = Image.open(drawn).convert("RGB")
            # A notebook in git should stay small; 256 colours take a third of the bytes and look the same. 96 colours
            # show as faint steps on a smooth wall, which harms less than a lower resolution.
            for colors in (256, 96):
                stored = io.BytesIO()
                picture.quantize(colors, dither=Image.Dither.NONE).save(stored, "png", optimize=True)
                if stored.tell() <= limit:
                    return stored.getvalue()
    raise CourseError(f"The figure takes more than {limit:,} bytes at every resolution. Show fewer pictures in it.")


def show(figure: Figure, alt: str, limit: int = LARGEST_PNG) -> None:
    """Put a figure into the notebook with its description, as a PNG of at most `limit` bytes.

    `alt` describes it for somebody who cannot see it; a :class:`CourseError` asks for it if it is empty. It becomes
    the alternative text in the file's metadata, which GitHub and screen readers use, and a visible line below, because
    JupyterLab and nbconvert ignore the metadata.
    """
    if not alt.strip():
        raise CourseError("Every figure needs a description: show(figure, alt='what it shows').")
    # The width is that of the figure, even where the file has fewer pixels: a projector needs the size.
    width = round(90 * figure.get_figwidth())
    display.display(display.Image(png_bytes(figure, limit), format="png", alt=alt, width=width))
    display.display(display.Markdown("*" + alt.replace("$", r"\$") + "*"))  # a name with $ is no formula


# --- pictures ----------------------------------------------------------------------------------------------------


@styled()
def picture_grid(
    pictures: Sequence, titles: Sequence[str], columns: int = 6, colors: Sequence[str] | None = None
) -> Figure:
    """Return a figure of pictures in rows, each with a title in its colour (None: black).

    The pictures are PIL pictures, arrays ``(H, W)`` or ``(H, W, 3)``, or tensors ``(3, H, W)`` with values in [0, 1].
    Without any picture the figure says so.
    """
    if not len(pictures):
        return message("There is no picture to show.")
    rows = -(-len(pictures) // columns)
    figure, axes = new_figure(rows, columns, width=2.0 * columns, height=2.25 * rows)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(pictures):
            axis.imshow(_as_array(pictures[i]), cmap="gray")
            title = "\n".join(_labels(str(titles[i]).split("\n")))
            axis.set_title(title, fontsize=12, color=colors[i] if colors else "black")
    return figure


@styled()
def message(text: str) -> Figure:
    """Return a figure with a sentence, for where there is nothing to draw."""
    figure, axis = one_axis(8, 1.2)
    axis.axis("off")
    written = axis.text(0.5, 0.5, label(text, 400), ha="center", va="center", wrap=True, fontsize=14)
    written.set_in_layout(False)  # its lines are broken after the layout was made
    return figure


def _as_array(picture: object) -> np.ndarray:
    if isinstance(picture, torch.Tensor):
        picture = picture.permute(1, 2, 0).clamp(0, 1).numpy()
    if isinstance(picture, Image.Image):  # photographs come in all shapes; the middle is what the network sees too
        picture = ImageOps.fit(picture, (THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


@styled()
def filters(weights: Mapping[str, torch.Tensor], columns: int = 8) -> Figure:
    """Return a figure of the first-layer filters of several networks, one panel each.

    The filters of a network are ``(out, 3, k, k)``; three rows of `columns` are shown. Each is stretched to the full
    range by itself, so that its pattern shows; the colours of two filters cannot be compared.
    """
    figure, axes = new_figure(1, len(weights), width=4.4 * len(weights), height=2.7)
    for axis, (name, bank) in zip(axes.flat, weights.items(), strict=True):
        axis.imshow(_mosaic(bank.numpy()[: 3 * columns], columns))
        axis.set_title(label(name))
        axis.axis("off")
    return figure


def _mosaic(bank: np.ndarray, columns: int) -> np.ndarray:
    low, high = bank.min((1, 2, 3), keepdims=True), bank.max((1, 2, 3), keepdims=True)
    tiles = ((bank - low) / (high - low + 1e-12)).transpose(0, 2, 3, 1)
    tiles = np.pad(tiles, ((0, -len(tiles) % columns), (1, 1), (1, 1), (0, 0)), constant_values=1)
    rows = tiles.reshape(-1, columns, *tiles.shape[1:])
    return rows.swapaxes(1, 2).reshape(rows.shape[0] * rows.shape[2], -1, 3)


# --- training ----------------------------------------------------------------------------------------------------


@styled()
def learning_curves(runs: Mapping[str, Any]) -> Figure:
    """Return a figure of validation loss and accuracy by epoch, one line per :class:`~course_utils.training.Run`."""
    figure, axes = new_figure(1, 2, width=11, height=4)
    loss, accuracy = axes.flat
    for i, (name, run) in enumerate(runs.items()):
        epochs = [record.epoch + 1 for record in run.history]
        loss.plot(epochs, [record.val_loss for record in run.history], **look(i))
        accuracy.plot(epochs, [100 * record.val_accuracy for record in run.history], **look(i), label=label(name))
    for axis, ylabel in ((loss, "validation loss (nats)"), (accuracy, "validation accuracy (%)")):
        axis.set(xlabel="epoch", ylabel=ylabel)
        axis.xaxis.get_major_locator().set_params(integer=True)
    loss.set_yscale("log")  # a first epoch from scratch would squeeze all others into a line
    accuracy.legend()
    return figure


@styled()
def plan_map(plans: Mapping[str, Plan], epochs: int) -> Figure:
    """Return a figure of stage × epoch, a panel for each plan: which stage learns when, and at which rate."""
    columns = min(3, len(plans))
    rows = -(-len(plans) // columns)
    figure, axes = new_figure(rows, columns, width=3.3 * columns, height=2.8 * rows)
    rates = [np.log10(row.rate) for plan in plans.values() for row in plan.rows if row.start is not None]
    for axis in axes.flat[len(plans) :]:
        axis.axis("off")
    for i, (axis, (name, plan)) in enumerate(zip(axes.flat, plans.items(), strict=False)):
        image = axis.imshow(
            _plan_grid(plan, epochs), vmin=min(rates) - 0.1, vmax=max(rates) + 0.1, cmap="viridis", aspect="auto"
        )
        axis.set(title=label(name), xlabel="epoch" if i >= len(plans) - columns else "")
        axis.set_yticks(range(len(plan.rows)), [row.stage for row in reversed(plan.rows)] if i % columns == 0 else [])
        axis.set_xticks(range(epochs), range(1, epochs + 1))
        axis.set_facecolor("#dddddd")
        axis.grid(False)
    ticks = np.unique(np.round(rates).astype(int))
    bar = figure.colorbar(image, ax=list(axes.flat), ticks=ticks, label="learning rate (grey: frozen)")
    bar.ax.set_yticklabels([f"$10^{{{tick}}}$" for tick in ticks])
    return figure


def _plan_grid(plan: Plan, epochs: int) -> np.ndarray:
    """Return log10 of the rate, ``(stages, epochs)`` with the head on top; NaN where a stage is frozen."""
    grid = np.full((len(plan.rows), epochs), np.nan)
    for i, row in enumerate(reversed(plan.rows)):
        if row.start is not None:
            grid[i, row.start :] = np.log10(row.rate)
    return grid


@styled()
def dots_with_mean(
    groups: Mapping[str, Sequence[float]], xlabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Return a figure with every single result as a dot and the mean of each group as a bar across.

    `groups` hold values in percent, `marks` vertical lines to compare with, such as the majority baseline.
    """
    figure, axis = one_axis(8, 0.75 * len(groups) + 1.5)
    for i, values in enumerate(groups.values()):
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axis.plot(values, i + np.asarray(offsets), MARKERS[i % 7], color=COLORS[i % 7], markersize=9, alpha=0.8)
        axis.plot([np.mean(values)] * 2, [i - 0.32, i + 0.32], color=COLORS[i % 7], linewidth=3)
    for j, (name, value) in enumerate((marks or {}).items()):
        axis.axvline(value, color="black", linestyle=("--", ":")[j % 2], linewidth=1.5, label=label(name))
    axis.set_yticks(range(len(groups)), _labels(groups))
    axis.set(xlabel=xlabel, ylim=(len(groups) - 0.4, -0.6))
    if marks:
        figure.legend(loc="outside upper right")
    return figure


@styled()
def curves_with_spread(
    xs: Sequence[float], groups: Mapping[str, Sequence[Sequence[float]]], xlabel: str, ylabel: str, log_x: bool = True
) -> Figure:
    """Return a figure with a line per group through the means, and a band from the lowest to the highest value.

    A group has a sequence of values for each of the positions `xs`. The labels name units.
    """
    figure, axis = one_axis(8, 4.2)
    for i, (name, values) in enumerate(groups.items()):
        axis.fill_between(xs, [min(v) for v in values], [max(v) for v in values], color=COLORS[i % 7], alpha=0.2)
        axis.plot(xs, [np.mean(v) for v in values], **look(i), label=label(name))
    if log_x:
        axis.set_xscale("log")
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure


@styled()
def confusion(matrix: np.ndarray, classes: Sequence[str], normalise: bool = False) -> Figure:
    """Return a figure of true (rows) against predicted (columns) classes.

    Parameters
    ----------
    matrix, classes
        Counts ``(C, C)`` and C names. The number stands in each cell as long as the cells are large enough, up to
        about 25 classes; otherwise a colour bar stands beside the matrix.
    normalise
        True to show the share of each row instead of counts; the row of a class without samples is grey.
    """
    matrix = np.asarray(matrix)
    shown, highest = matrix, max(matrix.max(), 1)
    if normalise:
        totals = matrix.sum(1, keepdims=True)
        shown, highest = matrix / np.where(totals == 0, np.nan, totals), 1
    side = min(1.1 * len(classes) + 2, 12)
    cell = 72 * (side - 2) / len(classes)  # in points, as fonts are
    figure, axis = one_axis(side + 1, side)
    image = axis.imshow(shown, cmap="Blues", vmin=0, vmax=highest)
    if cell >= 28:
        _write_in_cells(axis, shown, highest, "{:.0%}" if normalise else "{:.0f}", min(13, cell / 3))
    else:
        figure.colorbar(image, ax=axis, label="share of the true class" if normalise else "samples", shrink=0.7)
    every = math.ceil(12 / cell)  # with hundreds of classes only some of the names fit
    ticks, names, font = range(0, len(classes), every), _labels(classes[::every], 30), min(13, max(9, cell / 3))
    angle, upright = (30, "top") if cell >= 50 else (90, "center")
    axis.set_xticks(ticks, names, rotation=angle, ha="right", va=upright, rotation_mode="anchor", fontsize=font)
    axis.set_yticks(ticks, names, fontsize=font)
    axis.set(xlabel="predicted", ylabel="true", facecolor="#dddddd")
    axis.grid(False)
    return figure


def _write_in_cells(axis: Axes, values: np.ndarray, highest: float, form: str, font: float) -> None:
    for (i, j), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else form.format(value).replace("%", " %")
        color = "white" if value > highest / 2 else "black"
        axis.text(j, i, text, ha="center", va="center", color=color, fontsize=font)


@styled()
def schedules(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Return a figure of the learning rate by step, one line per group of parameters, on a logarithmic scale."""
    figure, axis = one_axis(8, 3.6)
    for i, (name, values) in enumerate(curves.items()):
        line = {"color": COLORS[i % 7], "linestyle": LINES[i % 4], "linewidth": 2.5}
        axis.plot(_visible(values, log=True), **line, label=label(name))
    axis.set(xlabel="step", ylabel="learning rate", yscale="log")
    axis.legend(loc="lower center", ncols=2)  # below the curves, which end on the right
    return figure


# --- numbers -----------------------------------------------------------------------------------------------------


@styled()
def lines(
    curves: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    xs: Sequence[float] | None = None,
) -> Figure:
    """Return a figure with a line per curve, such as a loss by epoch or a gradient by depth.

    The curves have values of any lengths. A value that is not finite, or not above zero on a logarithmic scale, leaves
    a gap. `xs` are the positions of the values, at least as many as the longest curve has, otherwise a
    :class:`CourseError` is raised; None for 1, 2, 3, …. The labels name units.
    """
    _require_some(curves, "lines")
    longest = max(curves, key=lambda name: len(curves[name]))
    positions = range(1, len(curves[longest]) + 1) if xs is None else xs
    if len(curves[longest]) > len(positions):
        raise CourseError(
            f"lines: {longest!r} has {len(curves[longest])} values for {len(positions)} positions; xs needs as many as "
            "the longest curve has."
        )
    figure, axis = one_axis(8, 4.2)
    for i, (name, values) in enumerate(curves.items()):
        heights = _visible(values, log_y)
        every = max(1, len(heights) // 12)
        axis.plot(positions[: len(heights)], heights, **look(i), label=label(name), markevery=every)
    axis.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    if xs is None:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    return figure


def _visible(values: Sequence[float], log: bool) -> np.ndarray:
    """Return values as floats, NaN (a gap) where the axis has no place for them."""
    heights = np.asarray(values, dtype=float)
    return np.where(np.isfinite(heights) & ((heights > 0) | (not log)), heights, np.nan)


@styled()
def bars(
    values: Mapping[str, float],
    xlabel: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    form: str = ".1f",
) -> Figure:
    """Return a figure of horizontal bars, the first on top, each with its number at the end.

    `intervals` are (low, high) around a value, drawn as thin lines; names may be left out. `form` is the format of the
    numbers, as in ``format(value, form)``: ``".1f"``, ``",d"``, ``".1%"``, …. The label names units.

    Raises
    ------
    CourseError
        If there is no bar, a value is not finite, or an interval belongs to no bar or does not hold its value.
    """
    _require_some(values, "bars")
    _require_finite(values, "bars")
    intervals = _checked_intervals(values, intervals or {}, "bars")
    figure, axis = one_axis(8, 0.5 * len(values) + 1.2)
    axis.barh(range(len(values)), list(values.values()), height=0.65, color=COLORS[0])
    for i, (name, value) in enumerate(values.items()):
        low, high = intervals.get(name, (value, value))
        if name in intervals:
            axis.plot([low, high], [i, i], color="black", linewidth=2, marker="|", markersize=10)
        end = (max(high, 0), i)
        axis.annotate(format(value, form), end, (7, 0), textcoords="offset points", ha="left", va="center")
    axis.set_yticks(range(len(values)), _labels(values))
    axis.set(xlabel=xlabel, ylim=(len(values) - 0.5, -0.5))
    axis.grid(False, axis="y")
    return figure


@styled()
def scatter(
    points: Mapping[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Return a figure of named points, such as size against accuracy; each name stands where there is room for it.

    Points are (x, y), `intervals` (low, high) around y, drawn as thin lines; names may be left out. The labels name
    units.

    Raises
    ------
    CourseError
        If there is no point, a coordinate is not finite, x is not above zero on a logarithmic scale, or an interval
        belongs to no point or does not hold its y.
    """
    _require_some(points, "scatter")
    for coordinate in (0, 1):
        _require_finite({name: point[coordinate] for name, point in points.items()}, "scatter")
    if log_x and min(x for x, _ in points.values()) <= 0:
        name, (x, _) = min(points.items(), key=lambda item: item[1][0])
        raise CourseError(f"scatter: {name!r} has x = {x}, which has no place on a logarithmic axis: use log_x=False.")
    intervals = _checked_intervals({name: y for name, (_, y) in points.items()}, intervals or {}, "scatter")
    figure, axis = one_axis(8, 4.6)
    for i, (name, (x, y)) in enumerate(points.items()):
        if name in intervals:
            axis.plot([x, x], intervals[name], color=COLORS[i % 7], linewidth=2, alpha=0.6)
        axis.plot([x], [y], color=COLORS[i % 7], marker=MARKERS[i % 7], markersize=11)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
    axis.margins(0.15)
    if log_x:
        _plain_ticks(axis)
    _write_beside(figure, axis, points)
    return figure


def _plain_ticks(axis: Axes) -> None:
    """Set ticks at 1, 2, 5, 10, … written as ordinary numbers; only the powers of ten if there are many."""
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if high / low > 300 else (1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
    axis.minorticks_off()


def _short(x: float) -> str:
    """Return a number as text without an exponent: 0.5, 2,000, 5 M (million), 20 G (10⁹)."""
    for size, letter in ((1e9, " G"), (1e6, " M")):
        if x >= size:
            return f"{x / size:,.4g}{letter}"
    return f"{x:,.0f}" if x >= 100 else f"{x:g}"


# Where a name may stand: offset in points and alignment, the best place first.
_PLACES = (
    ((10, 0), "left", "center"),
    ((-10, 0), "right", "center"),
    ((0, 10), "center", "bottom"),
    ((0, -10), "center", "top"),
    ((8, 8), "left", "bottom"),
    ((8, -8), "left", "top"),
    ((-8, 8), "right", "bottom"),
    ((-8, -8), "right", "top"),
)


def _write_beside(figure: Figure, axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each name in the first place where it covers no marker and no other name; in the first of all if none."""
    figure.draw_without_rendering()  # the layout has to be known before two boxes can be compared
    frame, taken = axis.get_window_extent(), [line.get_window_extent().padded(5) for line in axis.lines]
    for name, point in points.items():
        text = axis.annotate(label(name), point, _PLACES[0][0], textcoords="offset points")
        for offset, horizontal, vertical in (*_PLACES, _PLACES[0]):
            text.set(position=offset, ha=horizontal, va=vertical)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken):
                break
        taken.append(box)


def _require_some(values: Mapping, what: str) -> None:
    if not values:
        raise CourseError(f"{what}: nothing was given to draw; give at least one name with its numbers.")


def _require_finite(values: Mapping[str, float], what: str) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise CourseError(f"{what}: {name!r} is {value}, which cannot be drawn. Leave it out, and say why.")


def _checked_intervals(
    values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], what: str
) -> Mapping[str, tuple[float, float]]:
    for name, (low, high) in intervals.items():
        if name not in values:
            raise CourseError(
                f"{what}: there is an interval for {name!r}, but no value. There are {', '.join(values)}."
            )
        if not low <= values[name] <= high:
            raise CourseError(
                f"{what}: the interval of {name!r} runs from {low} to {high} and does not hold its value "
                f"{values[name]}. Are both in the same unit?"
            )
    return intervals
