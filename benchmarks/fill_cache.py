"""(h) Filling the cache, and ``course predict``, against decoding and a bare forward pass.

Pictures are JPEG files, drawn at random: of 400 × 300 pixels for EfficientNet-Lite0 at 224, where the network takes
most of the time, and of 64 × 64 for resnet18_mini, where everything around it shows. The baseline decodes and prepares
every picture in a plain loop, then runs the network over the tensors in batches. Ours starts from the files too, with
an empty cache. All take turns; ratios are medians over the turns.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import make_entry, make_parser, report, timed
from PIL import Image

from course_tools.photos import predict_command
from course_utils.datasets import PhotoDataset
from course_utils.engine.activation_cache import cache_activations
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.settings import best_device
from course_utils.transforms import eval_transform

BATCH, GOAL = 64, 1.25
CASES = {"efficientnet_lite0": (400, 300), "resnet18_mini": (64, 64)}  # network → width and height of the pictures


def draw(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Write pictures of smooth noise, which compress as photographs do, and return their paths."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def decoded(paths: list[Path], prepare: object) -> torch.Tensor:
    """Return all pictures as the network wants them, read one after another."""
    tensors = []
    for path in paths:
        with Image.open(path) as picture:
            tensors.append(prepare(picture.convert("RGB")))
    return torch.stack(tensors)


@torch.inference_mode()
def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Run the network over prepared pictures, and do nothing else."""
    for batch in images.split(BATCH):
        model(batch.contiguous(memory_format=torch.channels_last))


def fill(model: torch.nn.Module, paths: list[Path], prepare: object) -> None:
    """Cache the activations in front of the head in a new folder."""
    dataset = PhotoDataset(paths, [0] * len(paths), ("all",), prepare)
    with tempfile.TemporaryDirectory() as folder:
        cache_activations(model, dataset, "head", folder=Path(folder), notify=lambda _line: None)


def predict(folder: Path, name: str) -> None:
    """Answer all pictures by the command."""
    with contextlib.redirect_stdout(io.StringIO()):
        predict_command.main([str(folder), "--model", name])


def measure(name: str, count: int, turns: int) -> list[dict[str, float]]:
    """Return the seconds of each way in every turn."""
    prepare, seconds = eval_transform(weights_entry(name)), []
    model = load_pretrained(name).to(best_device(), memory_format=torch.channels_last).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), count, CASES[name])
        images = decoded(paths, prepare)
        forward(model, images[:BATCH])  # warms up
        for _ in range(turns):
            ways = {
                "decoding": lambda: decoded(paths, prepare),
                "forward": lambda: forward(model, images),
                "filling": lambda: fill(model, paths, prepare),
                "predict": lambda: predict(Path(folder), name),
            }
            seconds.append({way: timed(run)[0] for way, run in ways.items()})
    return seconds


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    count, turns = (8, 1) if options.quick else (options.pictures, options.turns)
    rows, numbers = [], {}
    for name, (width, height) in CASES.items():
        seconds = measure(name, count, turns)
        middle = {way: statistics.median(s[way] for s in seconds) for way in seconds[0]}
        ratios = {
            way: statistics.median(s[way] / (s["decoding"] + s["forward"]) for s in seconds)
            for way in ("filling", "predict")
        }
        numbers[name] = {"seconds": seconds, "ratios": ratios}
        rows.append(
            [f"{name}, {width} × {height}", *(f"{middle[way]:.1f}" for way in middle)]
            + [f"{ratios[way]:.2f}" for way in ratios]
        )
    found = numbers["efficientnet_lite0"]["ratios"]
    entry = make_entry(
        f"{count:,} pictures: the cache and `course predict` against decoding and a bare forward pass",
        columns=["network, pictures", "s, decoding", "s, forward", "s, filling", "s, predict", "filling", "predict"],
        rows=rows,
        findings=[
            f"With EfficientNet-Lite0 filling the cache takes {found['filling']:.2f} times, `course predict` "
            f"{found['predict']:.2f} times as long as decoding and a bare forward pass (goal: at most {GOAL})."
        ],
        limit="decoding and forward. Both ways read pictures while the network computes, so they can be below 1.",
        notes=[f"Medians over {turns} turns, batches of {BATCH}. `course predict` loads the network too."],
        numbers=numbers,
    )
    report("h", entry, options)
    return entry


if __name__ == "__main__":
    main()
