"""Figures of the notebooks: legible on a projector, safe for colour-blind eyes, described in words.

Every function returns a matplotlib figure; :func:`show` puts it into the notebook together with its description.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from course_utils.errors import CourseError

if TYPE_CHECKING:
    import torch

    from course_utils.fine_tuning import Plan
    from course_utils.training import Run

# Okabe & Ito (2008), https://jfly.uni-koeln.de/color/: eight colours that stay apart for every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LARGEST_PNG = 60_000
THUMBNAIL = 160  # pixels

STYLE = {
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


def new_figure(rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 4.0) -> tuple[Figure, np.ndarray]:
    """A figure with the course's style and an array ``(rows, columns)`` of axes; sizes in inches.

    It does not go through pyplot, so nothing stays open and no backend is needed.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def png_bytes(figure: Figure, limit: int = LARGEST_PNG) -> bytes:
    """Draw a figure as PNG with 256 colours, of at most `limit` bytes, with fewer pixels if it must be.

    Raises
    ------
    CourseError
        If it does not fit at less than half the resolution either.
    """
    from PIL import Image

    with mpl.rc_context(STYLE):
        for scale in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
            drawn, stored = io.BytesIO(), io.BytesIO()
            figure.savefig(drawn, format="png", dpi=90 * scale)
            # A notebook in git should stay small; 256 colours take a third of the bytes and look the same.
            Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(stored, "png", optimize=True)
            if stored.tell() <= limit:
                return stored.getvalue()
    raise CourseError(f"The figure takes more than {limit:,} bytes at every resolution. Show fewer pictures in it.")


def show(figure: Figure, alt: str) -> None:
    """Put a figure into the notebook with its description.

    Parameters
    ----------
    figure
        From one of the functions of this module.
    alt
        What somebody who cannot see it needs to know. It becomes the alternative text in the file's metadata, which
        GitHub and screen readers use, and a visible line below, because JupyterLab and nbconvert ignore the metadata.

    Raises
    ------
    CourseError
        If `alt` is empty.
    """
    from IPython.display import Image, Markdown, display

    if not alt.strip():
        raise CourseError("Every figure needs a description: show(figure, alt='what it shows').")
    # The width is that of the figure, even where the file has fewer pixels: a projector needs the size.
    display(Image(png_bytes(figure), format="png", alt=alt, width=round(90 * figure.get_figwidth())))
    display(Markdown(f"*{alt}*"))


# --- pictures ----------------------------------------------------------------------------------------------------


def picture_grid(
    pictures: Sequence, titles: Sequence[str], columns: int = 6, colors: Sequence[str] | None = None
) -> Figure:
    """Pictures in rows, each with a title.

    Parameters
    ----------
    pictures
        PIL pictures, arrays ``(H, W)`` or ``(H, W, 3)``, or tensors ``(3, H, W)`` with values in [0, 1].
    titles
        One for each.
    columns
        Per row.
    colors
        One per title, or None for black.
    """
    rows = -(-len(pictures) // columns)
    figure, axes = new_figure(rows, columns, width=2.0 * columns, height=2.25 * rows)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(pictures):
            axis.imshow(_as_array(pictures[i]), cmap="gray")
            axis.set_title(titles[i], fontsize=12, color=colors[i] if colors else "black")
    return figure


def _as_array(picture: object) -> np.ndarray:
    from PIL import Image, ImageOps

    if hasattr(picture, "permute"):
        picture = picture.permute(1, 2, 0).clamp(0, 1).numpy()
    if isinstance(picture, Image.Image):  # photographs come in all shapes; the middle is what the network sees too
        picture = ImageOps.fit(picture, (THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def filters(weights: Mapping[str, torch.Tensor], columns: int = 8) -> Figure:
    """First-layer filters of several networks, one panel each.

    Parameters
    ----------
    weights
        Name → filters ``(out, 3, k, k)``. Each filter is stretched to the full range by itself, so that its pattern
        shows; the colours of two filters cannot be compared.
    columns
        Filters per row.
    """
    figure, axes = new_figure(1, len(weights), width=4.4 * len(weights), height=2.7)
    for axis, (name, bank) in zip(axes.flat, weights.items(), strict=True):
        axis.imshow(_mosaic(bank.numpy()[: 3 * columns], columns))
        axis.set_title(name)
        axis.axis("off")
    return figure


def _mosaic(bank: np.ndarray, columns: int) -> np.ndarray:
    low, high = bank.min((1, 2, 3), keepdims=True), bank.max((1, 2, 3), keepdims=True)
    tiles = ((bank - low) / (high - low + 1e-12)).transpose(0, 2, 3, 1)
    tiles = np.pad(tiles, ((0, -len(tiles) % columns), (1, 1), (1, 1), (0, 0)), constant_values=1)
    rows = tiles.reshape(-1, columns, *tiles.shape[1:])
    return rows.swapaxes(1, 2).reshape(rows.shape[0] * rows.shape[2], -1, 3)


# --- training ----------------------------------------------------------------------------------------------------


def learning_curves(runs: Mapping[str, Run]) -> Figure:
    """Validation loss and accuracy by epoch, one line per run, told apart by colour and marker."""
    figure, axes = new_figure(1, 2, width=11, height=4)
    for i, (name, run) in enumerate(runs.items()):
        epochs = [record.epoch + 1 for record in run.history]
        for axis, values in (
            (axes[0, 0], [record.val_loss for record in run.history]),
            (axes[0, 1], [100 * record.val_accuracy for record in run.history]),
        ):
            axis.plot(epochs, values, marker=MARKERS[i % 7], color=COLORS[i % 7], label=name)
    for axis, label in ((axes[0, 0], "validation loss (nats)"), (axes[0, 1], "validation accuracy (%)")):
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")  # a first epoch from scratch would squeeze all others into a line
    axes[0, 1].legend()
    return figure


def plan_map(plans: Mapping[str, Plan], epochs: int) -> Figure:
    """Stage × epoch: which stage learns when, and how fast.

    Parameters
    ----------
    plans
        Name → plan, one panel each, three in a row.
    epochs
        How many columns a panel has.
    """
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
        axis.set(title=name, xlabel="epoch" if i >= len(plans) - columns else "")
        axis.set_yticks(range(len(plan.rows)), [row.stage for row in reversed(plan.rows)] if i % columns == 0 else [])
        axis.set_xticks(range(epochs), range(1, epochs + 1))
        axis.set_facecolor("#dddddd")
        axis.grid(False)
    ticks = np.unique(np.round(rates).astype(int))
    bar = figure.colorbar(image, ax=list(axes.flat), ticks=ticks, label="learning rate (grey: frozen)")
    bar.ax.set_yticklabels([f"$10^{{{tick}}}$" for tick in ticks])
    return figure


def _plan_grid(plan: Plan, epochs: int) -> np.ndarray:
    """log10 of the rate, ``(stages, epochs)`` with the head on top; NaN where a stage is frozen."""
    grid = np.full((len(plan.rows), epochs), np.nan)
    for i, row in enumerate(reversed(plan.rows)):
        if row.start is not None:
            grid[i, row.start :] = np.log10(row.rate)
    return grid


def dots_with_mean(
    groups: Mapping[str, Sequence[float]], xlabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Every single result as a dot and the mean of each group as a bar across: the spread is what one sees first.

    Parameters
    ----------
    groups
        Name → values in percent.
    xlabel
        What the values are.
    marks
        Name → value of vertical lines to compare with, such as the majority baseline.
    """
    figure, axes = new_figure(1, 1, width=8, height=0.75 * len(groups) + 1.5)
    axis = axes[0, 0]
    for i, values in enumerate(groups.values()):
        offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axis.plot(values, i + np.asarray(offsets), MARKERS[i % 7], color=COLORS[i % 7], markersize=9, alpha=0.8)
        axis.plot([np.mean(values)] * 2, [i - 0.32, i + 0.32], color=COLORS[i % 7], linewidth=3)
    for j, (name, value) in enumerate((marks or {}).items()):
        axis.axvline(value, color="black", linestyle=("--", ":")[j % 2], linewidth=1.5, label=name)
    axis.set_yticks(range(len(groups)), groups)
    axis.set(xlabel=xlabel, ylim=(len(groups) - 0.4, -0.6))
    if marks:
        figure.legend(loc="outside upper right")
    return figure


def curves_with_spread(
    xs: Sequence[float], groups: Mapping[str, Sequence[Sequence[float]]], xlabel: str, ylabel: str, log_x: bool = True
) -> Figure:
    """One line per group through the means, a band from the lowest to the highest value.

    Parameters
    ----------
    xs
        Positions.
    groups
        Name → one sequence of values per position.
    xlabel, ylabel
        With units.
    log_x
        Whether the positions are spaced by their logarithm.
    """
    figure, axes = new_figure(1, 1, width=8, height=4.2)
    axis = axes[0, 0]
    for i, (name, values) in enumerate(groups.items()):
        axis.fill_between(xs, [min(v) for v in values], [max(v) for v in values], color=COLORS[i % 7], alpha=0.2)
        axis.plot(xs, [np.mean(v) for v in values], marker=MARKERS[i % 7], color=COLORS[i % 7], label=name)
    if log_x:
        axis.set_xscale("log")
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
        axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of true (rows) against predicted (columns) classes; the number stands in each cell."""
    side = 1.1 * len(classes) + 2
    figure, axes = new_figure(1, 1, width=side + 1, height=side)
    axis = axes[0, 0]
    axis.imshow(matrix, cmap="Blues", vmin=0)
    for (i, j), count in np.ndenumerate(matrix):
        axis.text(j, i, f"{count}", ha="center", va="center", color="white" if count > matrix.max() / 2 else "black")
    axis.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")
    axis.grid(False)
    return figure


def schedules(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Learning rate by step, one line per group of parameters, on a logarithmic scale."""
    figure, axes = new_figure(1, 1, width=8, height=3.6)
    axis = axes[0, 0]
    for i, (name, values) in enumerate(curves.items()):
        visible = [value if value > 0 else np.nan for value in values]
        axis.plot(visible, color=COLORS[i % 7], linestyle=("-", "--", ":", "-.")[i % 4], linewidth=2.5, label=name)
    axis.set(xlabel="step", ylabel="learning rate", yscale="log")
    axis.legend()
    return figure
