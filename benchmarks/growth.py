"""(d) Time and memory against the number of pictures: 10² to 10⁵, generated.

Pictures of noise are written as JPEG files, then cached in front of the head by ``resnet18_mini`` and trained on for
two epochs. Ours has no baseline here but itself: twice the pictures have to take twice the time, and the memory that a
picture takes beyond its activations on disk must not grow. Memory is what the process has for itself (on Linux
without the pages of mapped files, which the system can take back), at its highest, above what it had at the start.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import make_entry, make_parser, report, timed
from PIL import Image
from torchvision.transforms import v2

from course_utils.common.state import evaluating
from course_utils.datasets import PhotoDataset
from course_utils.engine.activation_cache import cache_activations, cut
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.pretrained_models import load_pretrained
from course_utils.training import fit

SIZES, QUICK_SIZES = (100, 1_000, 10_000, 100_000), (6, 12, 24)
SIDE, EPOCHS, BATCH = 64, 2, 64
TRANSFORM = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])


def write_pictures(folder: Path, count: int) -> PhotoDataset:
    """Pictures of noise in one colour more than the others, which is the class; file `i` is a function of `i`."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:06d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        if not path.exists():  # the smaller sets are the beginnings of the larger ones
            pixels = np.random.default_rng(i).integers(0, 128, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
            pixels[..., i % 3] += 100
            Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(path, quality=80)
    return PhotoDataset(paths, [i % 3 for i in range(count)], ["red", "green", "blue"], TRANSFORM)


def own_bytes() -> int:
    """Memory that this process has for itself, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return psutil.Process().memory_info().rss


def watched(function: Callable[[], Any], every: float = 0.02) -> tuple[float, int]:
    """Seconds that a call takes, and how far its memory rose above the start at its highest, in bytes."""
    before, highest, done = own_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(every):
            highest = max(highest, own_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds, _ = timed(function)
    finally:
        done.set()
        watcher.join()
    return seconds, highest


def measure(data: PhotoDataset, folder: Path) -> dict[str, float]:
    """Cache and train on one number of pictures."""
    torch.manual_seed(0)
    model = load_pretrained("resnet18_mini", num_classes=3)
    kept = []
    filling, filling_bytes = watched(lambda: kept.append(cache_activations(model, data, "head", folder=folder)))
    checking, _ = watched(lambda: cache_activations(model, data, "head", folder=folder))
    options = {"epochs": EPOCHS, "batch_size": BATCH, "log": "off", "device": "cpu"}
    val = cache_activations(model, data.subset(range(5)), "head", folder=folder)
    training, training_bytes = watched(lambda: fit(model, kept[0], val, FEATURE_EXTRACTION, **options))
    return {
        "pictures": len(data),
        "fill": filling,
        "open": checking,
        "epoch": training / EPOCHS,
        "fill_bytes": filling_bytes,
        "train_bytes": training_bytes,
        "disk_bytes": kept[0].size,
    }


def forward_alone(count: int = 512) -> float:
    """Seconds per 1,000 pictures of the frozen stages alone, on tensors."""
    front, _ = cut(load_pretrained("resnet18_mini").eval(), "head")
    images = torch.rand(count, 3, SIDE, SIDE)

    def run() -> None:
        with evaluating(front):
            for batch in images.split(BATCH):
                front(batch.contiguous(memory_format=torch.channels_last))

    run()
    return 1000 * timed(run)[0] / count


def slope(rows: list[dict[str, float]], what: str) -> tuple[float, float]:
    """Growth per 1,000 pictures between the smallest and the largest set, and the exponent between the two largest.

    An exponent of 1 is linear growth; the fixed costs of small sets pull it below that.
    """
    first, *_, before, last = rows
    per_1000 = 1000 * (last[what] - first[what]) / (last["pictures"] - first["pictures"])
    ratio = last[what] / before[what] if before[what] > 0 else math.nan
    exponent = math.log(ratio) / math.log(last["pictures"] / before["pictures"]) if ratio > 0 else math.nan
    return per_1000, exponent


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave out larger numbers of pictures")
    options = parser.parse_args(arguments)
    sizes = QUICK_SIZES if options.quick else [size for size in SIZES if size <= options.largest]
    if len(sizes) < 3:
        parser.error("--largest: at least 10000, because a slope needs three numbers of pictures")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(write_pictures(folder / "pictures", sizes[0]), folder / "warm-up")  # libraries load what they need
        rows = [measure(write_pictures(folder / "pictures", size), folder / "caches") for size in sizes]
    per_1000 = {
        what: slope(rows, what) for what in ("fill", "open", "epoch", "fill_bytes", "train_bytes", "disk_bytes")
    }
    alone = forward_alone(16 if options.quick else 2048)
    entry = make_entry(
        f"from {sizes[0]:,} to {sizes[-1]:,} pictures of {SIDE} pixels, resnet18_mini, cached in front of the head",
        columns=[
            "pictures",
            "s to fill",
            "s to open",
            "s per epoch",
            "MB while filling",
            "MB while training",
            "MB disk",
        ],
        rows=[
            [r["pictures"], f"{r['fill']:.2f}", f"{r['open']:.3f}", f"{r['epoch']:.3f}"]
            + [f"{r[what] / 1e6:.1f}" for what in ("fill_bytes", "train_bytes", "disk_bytes")]
            for r in rows
        ],
        findings=[
            f"Per 1,000 pictures: {per_1000['fill'][0]:.2f} s to fill, {per_1000['open'][0]:.4f} s to open (every byte "
            f"is checked), {per_1000['epoch'][0]:.3f} s per epoch, {per_1000['fill_bytes'][0] / 1e6:.2f} MB of memory "
            f"while filling, {round(per_1000['train_bytes'][0] / 1e6, 2) + 0.0:.2f} while training, "
            f"{per_1000['disk_bytes'][0] / 1e6:.2f} on disk.",
            f"From {sizes[-2]:,} to {sizes[-1]:,} pictures the time to fill grows with the power "
            f"{per_1000['fill'][1]:.2f} of their number, that of an epoch with "
            f"{per_1000['epoch'][1]:.2f}; 1 is linear.",
        ],
        limit=f"the frozen stages alone: {alone:.2f} s per 1,000 pictures; an epoch reads "
        f"{per_1000['disk_bytes'][0] / 1e6:.2f} MB per 1,000.",
        notes=[f"Batches of {BATCH}; the time to open contains the look at every file of pictures."],
        numbers={"rows": rows, "per_1000": per_1000, "forward_alone_per_1000": alone},
        device="cpu",
    )
    report("d", entry, options)
    return entry


if __name__ == "__main__":
    main()
