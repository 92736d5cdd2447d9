"""(b) Training the last block: every epoch from cached activations against every epoch through the whole network.

Both are the same call of ``fit`` on the same pictures, a ResNet-18 at 224 pixels on hymenoptera, with and without the
cache. The seconds of an epoch are the median over all but the first, in which memory is still being found. Without
the cache the pictures are once files, as in the tutorial, and once tensors in memory, which nobody can decode faster.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from common import make_entry, make_parser, report, timed
from torch.utils.data import Dataset
from tutorial import BATCH as TUTORIAL_BATCH
from tutorial import pictures

from course_utils.activation_cache import cut
from course_utils.datasets import in_memory
from course_utils.feature_extraction import train_mode
from course_utils.fine_tuning import LAST_BLOCK
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.training import Run, fit
from course_utils.training_inputs import CacheOptions
from course_utils.transforms import eval_transform

GOAL = 3


def run(name: str, train: Dataset, val: Dataset, epochs: int, batch_size: int, cache: object) -> Run:
    """One training from random weights, the same for every call."""
    torch.manual_seed(0)
    model = load_pretrained(name, num_classes=2, weights=None)
    options = {"epochs": epochs, "batch_size": batch_size, "log": "off", "device": "cpu", "cache": cache}
    return fit(model, train, val, LAST_BLOCK, **options)


def epoch_seconds(done: Run) -> float:
    """The median over all epochs but the first."""
    return statistics.median(record.seconds for record in done.history[1:])


def tail_alone(name: str, activations: torch.Tensor, val: torch.Tensor, batch_size: int) -> float:
    """Seconds of an epoch's arithmetic behind the border: forward and backward for train, forward for val."""
    torch.manual_seed(0)
    model = train_mode(load_pretrained(name, num_classes=2, weights=None))
    model.to(memory_format=torch.channels_last)
    _, tail = cut(model, "layer4")

    def epoch() -> None:
        for batch in activations.split(batch_size):
            tail(batch.contiguous(memory_format=torch.channels_last)).sum().backward()
        with torch.no_grad():
            for batch in val.split(batch_size):
                tail(batch.contiguous(memory_format=torch.channels_last))

    epoch()
    return timed(epoch)[0]


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=5, help="at least 2")
    parser.add_argument("--batch-size", type=int, default=32, help=f"the tutorial has {TUTORIAL_BATCH}")
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs: at least 2, because the first one is not counted")
    name = "resnet18_mini" if options.quick else "resnet18"
    transform = eval_transform(weights_entry(name))
    train, val = (data.with_transform(transform) for data in pictures(options.quick))
    epochs = 2 if options.quick else options.epochs
    arguments = {"epochs": epochs, "batch_size": options.batch_size}
    from_files = run(name, train, val, cache="off", **arguments)
    from_memory = run(name, in_memory(train), in_memory(val), cache="off", **arguments)
    with tempfile.TemporaryDirectory() as folder:
        cached = run(name, train, val, cache=CacheOptions("on", folder=folder), **arguments)
        arrays = sorted(Path(folder).rglob("*.npy"))
        size = sum(path.stat().st_size for path in arrays)
    files, memory, ours = map(epoch_seconds, (from_files, from_memory, cached))
    shape = _shape(name)
    alone = tail_alone(name, *(torch.rand(len(data), *shape) for data in (train, val)), options.batch_size)
    apart = max(abs(a.train_loss - b.train_loss) for a, b in zip(from_files.history, cached.history, strict=True))
    entry = make_entry(
        f"last block on hymenoptera, {name}: an epoch from the cache and through the whole network",
        columns=["pictures", "seconds per epoch", "times slower than from the cache"],
        rows=[
            ["files, through the whole network", f"{files:.2f}", f"{files / ours:.1f}"],
            ["tensors in memory, through the whole network", f"{memory:.2f}", f"{memory / ours:.1f}"],
            ["cached in front of layer4", f"{ours:.2f}", "1.0"],
        ],
        findings=[
            f"{files / ours:.1f} times faster per epoch than from files (goal: {GOAL}), {memory / ours:.1f} times "
            "faster than from tensors in memory.",
            f"The losses of the epochs differ by at most {apart:.1g}.",
        ],
        limit=f"what lies behind the border alone, forward and backward: {alone:.2f} s per epoch; the cache holds "
        f"{size / 1e6:.1f} MB, all of which an epoch reads.",
        notes=[f"Batches of {options.batch_size}; median over the {epochs - 1} epochs behind the first."],
        numbers={"files": files, "memory": memory, "cached": ours, "tail_alone": alone, "bytes": size, "apart": apart},
        device="cpu",
    )
    report("b", entry, options)
    return entry


def _shape(name: str) -> tuple[int, ...]:
    """Of the activations of one picture in front of layer4."""
    from course_utils.transforms import image_size

    side = image_size(weights_entry(name))
    front, _ = cut(load_pretrained(name, weights=None).eval(), "layer4")
    with torch.no_grad():
        return tuple(front(torch.zeros(1, 3, side, side)).shape[1:])


if __name__ == "__main__":
    main()
