"""(b) Training the last block: every epoch from cached activations against every epoch through the whole network.

Both are the same call of ``fit`` on the same pictures, hymenoptera at 224 pixels, with and without the cache, for a
ResNet-18, whose last block is nearly a quarter of all multiply-adds, and an EfficientNet-B0, whose last stage is a
smaller part. The seconds of an epoch are the median over all but the first, in which memory is still being found.
Without the cache the pictures are once files, as in the tutorial, and once tensors in memory, which nobody can decode
faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import make_entry, make_parser, report, timed
from torch.utils.data import Dataset
from tutorial import BATCH as TUTORIAL_BATCH
from tutorial import pictures

from course_utils.datasets import in_memory
from course_utils.engine.activation_cache import cut
from course_utils.engine.artifact_store import DATA_FILE
from course_utils.engine.history import Run
from course_utils.engine.inputs import CacheOptions
from course_utils.feature_extraction import train_mode
from course_utils.fine_tuning import LAST_BLOCK
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.training import fit
from course_utils.transforms import eval_transform, image_size

GOAL = 3
WAYS = {
    "files": "files, through the whole network",
    "memory": "tensors in memory, through the whole network",
    "cached": "cached in front of the last block",
}


def run(name: str, train: Dataset, val: Dataset, epochs: int, batch_size: int, cache: object) -> Run:
    """One training from random weights, the same for every call."""
    torch.manual_seed(0)
    model = load_pretrained(name, num_classes=2, weights=None)
    options = {"epochs": epochs, "batch_size": batch_size, "log": "off", "device": "cpu", "cache": cache}
    return fit(model, train, val, LAST_BLOCK, **options)


def epoch_seconds(done: Run) -> float:
    """The median over all epochs but the first."""
    return statistics.median(record.seconds for record in done.history[1:])


def tail_alone(name: str, border: str, activations: torch.Tensor, val: torch.Tensor, batch_size: int) -> float:
    """Seconds of an epoch's arithmetic behind the border: forward and backward for train, forward for val."""
    torch.manual_seed(0)
    model = train_mode(load_pretrained(name, num_classes=2, weights=None))
    model.to(memory_format=torch.channels_last)
    _, tail = cut(model, border)

    def epoch() -> None:
        for batch in activations.split(batch_size):
            tail(_layout(batch)).sum().backward()
        with torch.no_grad():
            for batch in val.split(batch_size):
                tail(_layout(batch))

    epoch()  # the first one plans
    return min(timed(epoch)[0] for _ in range(3))


def with_cache(epochs: int) -> int:
    """How many epochs a turn has that reads the cache: short ones vary more, and cost less."""
    return 1 + 4 * (epochs - 1)


def measure(name: str, options: argparse.Namespace, epochs: int, rounds: int) -> dict[str, Any]:
    """Seconds per epoch of one network in three ways that take turns, and what limits them."""
    transform = eval_transform(weights_entry(name))
    train, val = (data.with_transform(transform) for data in pictures(options.quick))
    decoded = [in_memory(data) for data in (train, val)]
    arguments = {"epochs": epochs, "batch_size": options.batch_size}
    more = arguments | {"epochs": with_cache(epochs)}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "files": lambda: run(name, train, val, cache="off", **arguments),
            "memory": lambda: run(name, *decoded, cache="off", **arguments),
            "cached": lambda: run(name, train, val, cache=CacheOptions("on", folder=folder), **more),
        }
        # Fills the cache, and has as many epochs as the others: by these a schedule is laid out.
        equal = run(name, train, val, cache=CacheOptions("on", folder=folder), **arguments)
        runs = [{way: train_it() for way, train_it in ways.items()} for _ in range(rounds)]
        size = sum(path.stat().st_size for path in Path(folder).rglob(DATA_FILE))
    files = runs[-1]["files"]
    activations = [torch.rand(len(data), *_shape(name, equal.cached)) for data in (train, val)]
    return {
        "seconds": {way: [epoch_seconds(turn[way]) for turn in runs] for way in ways},
        "tail_alone": tail_alone(name, equal.cached, *activations, options.batch_size),
        "bytes": size,
        "apart": max(abs(a.train_loss - b.train_loss) for a, b in zip(files.history, equal.history, strict=True)),
    }


def times(seconds: dict[str, list[float]], way: str) -> list[float]:
    """How many times longer than from the cache one way took: the median over the rounds, the least, the most."""
    found = [one / cached for one, cached in zip(seconds[way], seconds["cached"], strict=True)]
    return [statistics.median(found), min(found), max(found)]


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "efficientnet_b0"], metavar="NAME")
    parser.add_argument("--epochs", type=int, default=2, help="of each turn, at least 2")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each way has")
    parser.add_argument("--batch-size", type=int, default=32, help=f"the tutorial has {TUTORIAL_BATCH}")
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs: at least 2, because the first one is not counted")
    models, epochs, rounds = options.models, options.epochs, options.rounds
    if options.quick:
        models, epochs, rounds = ["resnet18_mini"], 2, 1
    found = {name: measure(name, options, epochs, rounds) for name in models}
    entry = make_entry(
        f"last block on hymenoptera, {', '.join(models)}: an epoch from the cache and through the whole network",
        columns=["network", "pictures", "seconds per epoch", "times slower than from the cache"],
        rows=[
            [name, text, f"{statistics.median(facts['seconds'][way]):.2f}", f"{times(facts['seconds'], way)[0]:.1f}"]
            for name, facts in found.items()
            for way, text in WAYS.items()
        ],
        findings=["; ".join(_finding(name, facts) for name, facts in found.items()) + f" (goal: {GOAL})."],
        limit="what lies behind the border alone, forward and backward: "
        + "; ".join(
            f"{name} {facts['tail_alone']:.2f} s per epoch, which reads {facts['bytes'] / 1e6:.1f} MB"
            for name, facts in found.items()
        )
        + ".",
        notes=[
            f"The training losses differ by at most {max(facts['apart'] for facts in found.values()):.1g}.",
            f"Batches of {options.batch_size}; random weights; medians over {rounds} rounds in which all take their "
            f"turn, of {epochs} epochs each ({with_cache(epochs)} from the cache), the first of which does not count.",
        ],
        numbers=found,
        device="cpu",
    )
    report("b", entry, options)
    return entry


def _finding(name: str, facts: dict[str, Any]) -> str:
    files, least, most = times(facts["seconds"], "files")
    possible = statistics.median(facts["seconds"]["files"]) / facts["tail_alone"]
    return (
        f"{name}: {files:.1f} times faster per epoch than from files ({least:.1f} to {most:.1f}; what lies behind the "
        f"border allows {possible:.1f}), {times(facts['seconds'], 'memory')[0]:.1f} times than from tensors in memory"
    )


def _layout(batch: torch.Tensor) -> torch.Tensor:
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def _shape(name: str, border: str) -> tuple[int, ...]:
    """Of the activations of one picture in front of the border."""
    side = image_size(weights_entry(name))
    front, _ = cut(load_pretrained(name, weights=None).eval(), border)
    with torch.no_grad():
        return tuple(front(torch.zeros(1, 3, side, side)).shape[1:])


if __name__ == "__main__":
    main()
