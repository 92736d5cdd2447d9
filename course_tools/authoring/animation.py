"""An animation of a network that learns: ``course animate`` makes it from a real run.

``fit`` trains by progressive unfreezing, and a hook, :class:`Snapshots`, keeps the weights after each epoch. All that
the animation shows (curves, answers, heat maps, shares) is computed from these; nothing is drawn by hand. Two files go
with it: the facts as JSON, and a page that says in words what every scene shows.
"""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor, nn

from course_utils import plots
from course_utils.common.command_line import OneLineParser
from course_utils.common.errors import CourseError
from course_utils.common.files import write_record, written_whole
from course_utils.common.measuring import hardware
from course_utils.common.tables import percent
from course_utils.datasets import MemoryDataset, Splits, in_memory, open_dataset
from course_utils.engine.history import Run
from course_utils.evaluation import evaluate, interval_text, majority_baseline, wilson_interval
from course_utils.experiments.cam_checks import energy_inside, masks_of, mean_with_interval
from course_utils.fine_tuning import PROGRESSIVE, Strategy
from course_utils.gradcam import Explanation, common_scale, explain, overlay
from course_utils.pretrained_models import weights_entry
from course_utils.settings import load_settings
from course_utils.training import fit
from course_utils.transforms import denormalise, eval_transform

PROJECT = Path(__file__).resolve().parents[2]
OUT = PROJECT / "notebooks" / "media" / "day20.gif"
EPOCHS, BATCH_SIZE = 8, 16
INCHES, DOTS = (8.0, 4.5), 120  # 960 × 540 pixels
COLOURS = 128
MAX_BYTES, MAX_SECONDS = 3_000_000, 60
LEARNS, FROZEN = plots.COLORS[1], "#D9D9D9"
RIGHT, WRONG = plots.COLORS[0], plots.COLORS[1]  # told apart by a mark as well
Weights = dict[str, Tensor]

# --- recording ---------------------------------------------------------------------------------------------------


class Snapshots:
    """A hook of ``fit`` that keeps copies of the weights: before the first epoch and after each, in ``states``."""

    def __init__(self) -> None:
        self.states: list[Weights] = []

    def on_train_begin(self, run: Run, model: nn.Module) -> None:
        """Keep the weights as they are now."""
        self.states.append({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()})

    on_epoch_end = on_train_begin


@dataclass(frozen=True)
class Recording:
    """A run, as the animation needs it. E is the number of epochs, K that of the pictures that are shown.

    Parameters
    ----------
    facts
        Everything that is said in words, as plain values.
    pictures
        Float ``(K, 3, H, W)`` in [0, 1].
    heat
        Float ``(E + 1, K, H, W)`` in [0, 1]: the map for the true class of each picture, before the first epoch and
        after each, all on one scale.
    """

    facts: dict[str, Any]
    pictures: Tensor
    heat: np.ndarray


def record(
    name: str, splits: Splits, strategy: Strategy = PROGRESSIVE, epochs: int = EPOCHS, seed: int = 0
) -> Recording:
    """Train a network, and keep what the animation shows of it.

    Shown are pictures of the validation split with an animal that takes a tenth of them or more: the first one of each
    class, and one more, so that there are right and wrong answers among them at the end, if there are any.

    Parameters
    ----------
    name, strategy, epochs, seed
        Same as in ``load_pretrained`` and ``fit``.
    splits
        Data set with masks, such as the drawn pets.

    Raises
    ------
    CourseError
        If pictures have no masks, or there is no such animal in those of a class.
    """
    entry = weights_entry(name)
    data = splits.with_transforms(eval_transform(entry), eval_transform(entry))
    train, val, test = (in_memory(part) for part in (data.train, data.val, data.test))
    masks, labels = masks_of(data.val, entry), np.array(val.labels)
    model = strategy.starting_model(name, len(splits.classes), seed=seed)
    snapshots = Snapshots()
    run = fit(
        model, train, val, strategy, epochs=epochs, batch_size=BATCH_SIZE, seed=seed, log="off", hooks=[snapshots]
    )
    test_report = evaluate(model, test)  # the best epoch's weights
    network = strategy.starting_model(name, len(splits.classes), seed=seed)
    answers = np.stack([_answers(network, state, val) for state in snapshots.states])
    shown = _chosen(masks, labels, answers[run.best.epoch + 1], len(splits.classes))
    maps, energies = zip(*(_maps(network, state, val, masks, shown) for state in snapshots.states), strict=True)
    epochs = [
        {
            "epoch": result.epoch + 1,
            "learning": list(result.learning),
            "val_right": round(result.val_accuracy * len(val)),
            "val_loss": round(result.val_loss, 4),
            "train_accuracy": round(result.train_accuracy, 4),
            "energy": energies[result.epoch + 1],
        }
        for result in run.history
    ]
    facts = {
        "model": name,
        "strategy": strategy.name,
        "data": splits.name,
        "seed": seed,
        "batch_size": BATCH_SIZE,
        "hardware": hardware("cpu"),
        "date": datetime.now(UTC).date().isoformat(),
        "classes": list(splits.classes),
        "stages": [row.stage for row in run.plan.rows],
        "pictures": {"train": len(train), "val": len(val), "test": len(test)},
        "start": {"val_right": int((answers[0] == labels).sum()), "energy": energies[0]},
        "epochs": epochs,
        "best_epoch": run.best.epoch + 1,
        "test_right": test_report.right,
        "majority_right": majority_baseline(train.labels, test.labels),
        "shown": [{"truth": val.classes[labels[i]], "answers": [val.classes[k] for k in answers[:, i]]} for i in shown],
    }
    return Recording(facts, denormalise(val.images[shown], entry), np.stack(common_scale(*maps)))


def _answers(network: nn.Module, state: Weights, val: MemoryDataset) -> np.ndarray:
    network.load_state_dict(state)
    return evaluate(network, val).predictions


def _chosen(masks: np.ndarray, labels: np.ndarray, answers: np.ndarray, classes: int) -> list[int]:
    large, shown = masks.mean((1, 2)) >= 0.1, []
    for label in range(classes):
        fitting = np.flatnonzero((labels == label) & large)
        if not len(fitting):
            raise CourseError(f"No validation picture of class {label} shows an animal that takes a tenth of it.")
        shown.append(int(fitting[0]))
    wrong = [i for i in shown if answers[i] != labels[i]]
    fitting = (labels == labels[wrong[0]]) & (answers == labels) if wrong else answers != labels
    others = [int(i) for i in np.flatnonzero(fitting & large) if i not in shown]
    return shown + others[:1]


def _maps(
    network: nn.Module, state: Weights, val: MemoryDataset, masks: np.ndarray, shown: list[int]
) -> tuple[Explanation, dict[str, float]]:
    """Return the maps of the shown pictures, and the share of the map on the animal in all pictures that have one."""
    network.load_state_dict(state)
    labels = np.array(val.labels)
    with_animal = np.flatnonzero(masks.any((1, 2)))
    heat = explain(network, val.images[with_animal], labels[with_animal]).heat
    energy = mean_with_interval(energy_inside(heat, masks[with_animal]))
    rounded = {key: round(value, 4) for key, value in energy._asdict().items()}
    return explain(network, val.images[shown], labels[shown]), rounded


# --- scenes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One still picture of the animation.

    Parameters
    ----------
    kind
        Key of ``DRAWN_BY``.
    seconds
        Time that it stays.
    title, caption, description
        Text that is written in it, and for readers who cannot see it, all that is not written.
    state
        Number of the epoch after which the network is shown; 0 is before the first.
    """

    kind: str
    seconds: float
    title: str
    caption: str
    description: str
    state: int = 0


def scenes_of(facts: dict[str, Any]) -> list[Scene]:
    """Return the scenes of an animation, in order, with every number in them."""
    n, classes, best = facts["pictures"], facts["classes"], facts["epochs"][facts["best_epoch"] - 1]
    names = ", ".join(picture["truth"] for picture in facts["shown"])
    title = Scene(
        "title",
        4,
        "A network learns to look",
        f"Transfer learning with {n['train']} pictures.\nEverything you will see was measured in one real run.",
        "Text only.",
    )
    task = Scene(
        "task",
        5,
        f"The task: {' or '.join([', '.join(classes[:-1]), classes[-1]])}?",
        f"{n['train']} pictures to learn from, {n['val']} to choose by,\n{n['test']} new ones for the test at the end.",
        f"{len(facts['shown'])} pictures: {names}, without heat maps.",
    )
    start = Scene(
        "state",
        6,
        "Before: borrowed eyes, new names",
        "The body has learned to see from other pictures; the last layer is random. Bright: what speaks for the true "
        f"class. {interval_text(facts['start']['val_right'], n['val'])} right.",
        f"All stages are grey, frozen. {_answers_in_words(facts, 0)} The heat on them is faint.",
    )
    comparison = Scene(
        "comparison",
        7,
        "Before and after",
        f"Share of the heat on the animal: {_energy(facts['start'])} before, {_energy(best)} after (mean of the "
        f"{best['energy']['n']} validation pictures with an animal, 95 % interval).",
        f"The same pictures in two rows, before the first and after epoch {best['epoch']}, the best one.",
        best["epoch"],
    )
    result = Scene(
        "result",
        8,
        f"{n['test']} new pictures, looked at once",
        f"right: {interval_text(facts['test_right'], n['test'])}\n"
        f"always the same answer: {interval_text(facts['majority_right'], n['test'])}",
        "Two bars with these numbers, and the intervals as lines on them.",
    )
    return [title, task, start, *_epoch_scenes(facts), comparison, result]


def _epoch_scenes(facts: dict[str, Any]) -> list[Scene]:
    scenes, awake = [], set()
    for epoch in facts["epochs"]:
        number, learning = epoch["epoch"], epoch["learning"]
        woken = [stage for stage in reversed(learning) if stage not in awake]
        awake.update(woken)
        news = f"{' and '.join(woken)} {'begin' if len(woken) > 1 else 'begins'} to learn" if woken else "all go on"
        title = f"Epoch {number} of {len(facts['epochs'])}: {news}"
        right = interval_text(epoch["val_right"], facts["pictures"]["val"])
        caption = f"{right} of the validation pictures are right."
        description = f"Learning: {', '.join(learning)}. {_answers_in_words(facts, number)} "
        description += f"Share of the heat on the animal: {_energy(epoch)}."
        scenes.append(Scene("state", 3.5, title, caption, description, number))
    return scenes


def _energy(state: dict[str, Any]) -> str:
    mean, low, high = (f"{100 * state['energy'][key]:.0f}" for key in ("mean", "low", "high"))
    return f"{mean} % ({low} to {high})"


def _answers_in_words(facts: dict[str, Any], state: int) -> str:
    return "; ".join(f"{p['truth']} is called {p['answers'][state]}" for p in facts["shown"]) + "."


# --- drawing -----------------------------------------------------------------------------------------------------


@plots.styled()
def draw(scene: Scene, recording: Recording) -> Figure:
    """Return a scene as a figure of 8 × 4.5 inches."""
    figure = Figure(figsize=INCHES)
    FigureCanvasAgg(figure)
    figure.text(0.5, 0.93, scene.title, ha="center", va="center", fontsize=19, weight="bold")
    DRAWN_BY[scene.kind](figure, scene, recording)
    return figure


def _caption(figure: Figure, scene: Scene) -> None:
    lines = [part for line in scene.caption.splitlines() for part in textwrap.wrap(line, 78)]
    figure.text(0.5, 0.085, "\n".join(lines), ha="center", va="center", fontsize=14, linespacing=1.35)


def _picture(figure: Figure, place: tuple[float, ...], pixels: np.ndarray, title: str, **style: object) -> None:
    axis = figure.add_axes(place, xticks=[], yticks=[])
    axis.imshow(pixels)
    axis.grid(visible=False)
    axis.set_title(title, **style)


def _row(
    figure: Figure,
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    bottom: float,
    height: float,
    left: float,
    font: int,
) -> None:
    """Draw pictures ``(H, W, 3)`` side by side; sizes are shares of the figure, the font's is in points."""
    width = min(0.23, height * INCHES[1] / INCHES[0])
    gap = (0.99 - left - len(pictures) * width) / (len(pictures) + 1)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        _picture(figure, (left + gap + i * (width + gap), bottom, width, height), picture, title, fontsize=font)


def _shown(recording: Recording, state: int) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield each picture with its heat, a line of its class, the answer and a mark, and the colour of that line."""
    pictures = overlay(recording.pictures, recording.heat[state], opacity=0.75)
    for picture, facts in zip(pictures, recording.facts["shown"], strict=True):
        truth, said = facts["truth"], facts["answers"][state]
        mark, color = ("✓", RIGHT) if said == truth else ("✗", WRONG)
        yield picture, f"{truth} → {said} {mark}", color


def _draw_title(figure: Figure, scene: Scene, recording: Recording) -> None:
    facts = recording.facts
    figure.text(0.5, 0.6, scene.caption, ha="center", va="center", fontsize=17, linespacing=1.6)
    about = f"{facts['model']}, {facts['strategy']} unfreezing, {len(facts['epochs'])} epochs, seed {facts['seed']}"
    figure.text(0.5, 0.25, about, ha="center", va="center", fontsize=14, color="#555555")


def _draw_task(figure: Figure, scene: Scene, recording: Recording) -> None:
    pictures = recording.pictures.permute(0, 2, 3, 1).numpy()
    _row(figure, pictures, [p["truth"] for p in recording.facts["shown"]], 0.24, 0.56, left=0.01, font=14)
    _caption(figure, scene)


def _draw_state(figure: Figure, scene: Scene, recording: Recording) -> None:
    facts = recording.facts
    learning = facts["epochs"][scene.state - 1]["learning"] if scene.state else []
    _draw_stages(figure, facts["stages"], learning)
    _draw_curve(figure, facts, scene.state)
    for i, (picture, text, color) in enumerate(_shown(recording, scene.state)):
        place = (0.55 + 0.225 * (i % 2), 0.545 - 0.36 * (i // 2), 0.2, 0.29)
        _picture(figure, place, picture, text, fontsize=11.5, color=color, pad=4)
    _caption(figure, scene)


def _draw_stages(figure: Figure, stages: Sequence[str], learning: Sequence[str]) -> None:
    """Draw the network as a column of boxes, the pixels below: what learns is orange and says so."""
    axis = figure.add_axes((0.015, 0.2, 0.16, 0.66))
    axis.axis("off")
    axis.set(xlim=(0, 1), ylim=(0, len(stages)))
    for i, stage in enumerate(stages):
        word, fill, style = "frozen", FROZEN, {"color": "#333333"}
        if stage in learning:
            word, fill, style = "learns", LEARNS, {"color": "white", "weight": "bold"}
        axis.add_patch(FancyBboxPatch((0.06, i + 0.12), 0.88, 0.74, boxstyle="round,pad=0.02", color=fill))
        label = f"{stage}\n{word}"
        axis.text(0.5, i + 0.49, label, ha="center", va="center", fontsize=11, linespacing=0.95, **style)


def _draw_curve(figure: Figure, facts: dict[str, Any], state: int) -> None:
    """Draw the accuracy on training and validation up to a state of the network."""
    axis = figure.add_axes((0.255, 0.3, 0.255, 0.52))
    val = [100 * s["val_right"] / facts["pictures"]["val"] for s in (facts["start"], *facts["epochs"])]
    trained = [100 * epoch["train_accuracy"] for epoch in facts["epochs"]]
    axis.plot(range(state + 1), val[: state + 1], **plots.look(0), label="validation")
    axis.plot(range(1, state + 1), trained[:state], **plots.look(1), label="training")
    axis.set(xlim=(-0.4, len(trained) + 0.4), ylim=(0, 104), xlabel="epoch")
    axis.set_title("right answers (%)", fontsize=13)
    axis.set_xticks(range(len(trained) + 1))
    axis.tick_params(labelsize=11)
    axis.legend(loc="lower right", fontsize=11)


def _draw_comparison(figure: Figure, scene: Scene, recording: Recording) -> None:
    for state, bottom, name in ((0, 0.56, "before"), (scene.state, 0.2, "after")):
        figure.text(0.06, bottom + 0.135, name, ha="center", va="center", fontsize=14, weight="bold")
        pictures, titles, _ = zip(*_shown(recording, state), strict=True)
        _row(figure, pictures, titles, bottom, 0.27, left=0.1, font=11)
    _caption(figure, scene)


def _draw_result(figure: Figure, scene: Scene, recording: Recording) -> None:
    facts = recording.facts
    n = facts["pictures"]["test"]
    axis = figure.add_axes((0.3, 0.42, 0.62, 0.4))
    for i, (right, color) in enumerate(((facts["majority_right"], FROZEN), (facts["test_right"], plots.COLORS[0]))):
        low, high = wilson_interval(right, n)
        axis.barh(i, 100 * right / n, color=color, height=0.6)
        axis.plot([100 * low, 100 * high], [i, i], color="black", linewidth=3)
    axis.set_yticks([0, 1], ["always the\nsame answer", "the network"], fontsize=13)
    axis.set(xlim=(0, 100), xlabel="right answers (%); the line is the 95 % interval")
    figure.text(0.5, 0.14, scene.caption, ha="center", va="center", fontsize=16, linespacing=1.5)


DRAWN_BY = {"title": _draw_title, "task": _draw_task, "state": _draw_state}
DRAWN_BY |= {"comparison": _draw_comparison, "result": _draw_result}


@plots.styled()
def frame(scene: Scene, recording: Recording) -> Image.Image:
    """Return a scene as a picture of 960 × 540 pixels with few colours."""
    drawn = io.BytesIO()
    draw(scene, recording).savefig(drawn, format="png", dpi=DOTS)
    return Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


# --- files -------------------------------------------------------------------------------------------------------


def gif_bytes(recording: Recording) -> bytes:
    """Return the animation; the fingerprint of its facts is the comment in the file.

    Raises
    ------
    CourseError
        If it is larger than 3 MB or lasts a minute or more.
    """
    scenes = scenes_of(recording.facts)
    seconds = sum(scene.seconds for scene in scenes)
    first, *others = (frame(scene, recording) for scene in scenes)
    times = {"duration": [round(1000 * scene.seconds) for scene in scenes], "loop": 0}
    stored, comment = io.BytesIO(), fingerprint(recording.facts).encode()
    first.save(stored, "gif", save_all=True, append_images=others, comment=comment, **times)
    if stored.tell() > MAX_BYTES or seconds >= MAX_SECONDS:
        raise CourseError(
            f"The animation has {stored.tell():,} bytes and lasts {seconds:g} s; allowed are {MAX_BYTES:,} and less "
            f"than {MAX_SECONDS}. Record fewer epochs."
        )
    return stored.getvalue()


def fingerprint(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of the facts: an animation, its page and its JSON file with the same one belong together."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def page_of(facts: dict[str, Any], file: str) -> str:
    """Return the text alternative as a Markdown page: what is shown, scene by scene, with every number."""
    scenes = scenes_of(facts)
    items = []
    for number, scene in enumerate(scenes, start=1):
        said, end = " ".join(scene.caption.split()), "" if scene.title.endswith("?") else "."
        items.append(f"{number}. **{scene.title}{end}** ({scene.seconds:g} s) “{said}” *{scene.description}*")
    paragraphs = [
        "# A network learns to look",
        "![Animation: a column of network stages that wake one after another, a rising accuracy curve, and heat maps "
        f"on {len(facts['shown'])} pictures, epoch by epoch; described scene by scene below.]({file})",
        f"{sum(scene.seconds for scene in scenes):g} seconds, captioned, without sound; it starts again at the end. "
        f"One run of `fit` with `{facts['model']}` on the {facts['data']}, strategy *{facts['strategy']}*, "
        f"{len(facts['epochs'])} epochs, batch size {facts['batch_size']}, seed {facts['seed']}; {facts['date']}, "
        f"{facts['hardware']}. Made, with this page, by `course animate`.",
        "## The same in words",
        "\n".join(items),
        "## How to read it",
        "On the left the network, pixels at the bottom: a stage is grey while it is frozen and orange while it "
        "learns. In the middle the share of right answers; training is counted while the weights still change. On the "
        "right the pictures, grey where nothing speaks for the true class and bright where much does, on one scale for "
        "the whole run; above each stand its class and what the network answers. The pictures were taken by a rule: of "
        "each class the first with an animal that is large enough, and one more, so that there are right and wrong "
        "answers at the end.",
        "One run shows how it goes, not how good the method is: five repetitions and other ways to train are in the "
        "[results](../../results/day20.md).",
    ]
    return "\n\n".join(paragraphs) + "\n"


def write(recording: Recording, path: Path) -> None:
    """Write the animation, its facts (``.json``) and its text alternative (``.md``) beside it."""
    content = gif_bytes(recording)  # first: of an animation that is too large nothing is written
    write_record(path.with_suffix(".json"), recording.facts, page_of(recording.facts, path.name))
    with written_whole(path) as beside:
        beside.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record a run on the drawn pets and write the animation; return the exit code."""
    parser = OneLineParser(prog="course animate", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=OUT, help="the .gif; .md and .json are written beside it")
    args = parser.parse_args(arguments)
    if args.out.suffix.lower() != ".gif":
        raise CourseError(f"--out {args.out}: the animation is a GIF, so give a name that ends in .gif.")
    settings = load_settings()
    splits = open_dataset("pets", seed=settings.seed, cache=settings.cache, mirror=settings.mirror)
    recording = record("resnet18_mini", splits, seed=settings.seed)
    write(recording, args.out)
    facts = recording.facts
    before, after = (s["energy"]["mean"] for s in (facts["start"], facts["epochs"][facts["best_epoch"] - 1]))
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {sum(s.seconds for s in scenes_of(facts)):g} s")
    print(f"test: {interval_text(facts['test_right'], facts['pictures']['test'])}")
    print(f"heat on the animal: {percent(before)} → {percent(after)}")
    return 0
