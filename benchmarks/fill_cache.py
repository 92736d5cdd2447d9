"""(h) Filling the cache, and ``course predict``, against decoding and a bare forward pass.

Pictures are JPEG files of 400 × 300 pixels, drawn at random; the network is EfficientNet-Lite0 at 224 pixels with its
weights. The baseline decodes and prepares every picture in a plain loop, then runs the network over the tensors in
batches. Ours starts from the files too, with an empty cache. All take turns; ratios are medians over the turns.
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

MODEL, BATCH = "efficientnet_lite0", 64


def draw(folder: Path, count: int) -> list[Path]:
    """Write pictures of smooth noise, which compress as photographs do, and return their paths."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)
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


def predict(folder: Path) -> None:
    """Answer all pictures by the command, with the network of the settings."""
    with contextlib.redirect_stdout(io.StringIO()):
        predict_command.main([str(folder), "--model", MODEL])


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    count, turns = (8, 1) if options.quick else (options.pictures, options.turns)
    prepare = eval_transform(weights_entry(MODEL))
    model = load_pretrained(MODEL).to(best_device(), memory_format=torch.channels_last).eval()
    with tempfile.TemporaryDirectory() as name:
        paths = draw(Path(name), count)
        images = decoded(paths, prepare)
        forward(model, images[:BATCH])  # warms up
        seconds = []
        for _ in range(turns):
            decoding, _ = timed(lambda: decoded(paths, prepare))
            bare, _ = timed(lambda: forward(model, images))
            filling, _ = timed(lambda: fill(model, paths, prepare))
            predicting, _ = timed(lambda: predict(Path(name)))
            seconds.append({"decoding": decoding, "forward": bare, "filling": filling, "predict": predicting})
    limits = [s["decoding"] + s["forward"] for s in seconds]
    ratios = {
        way: statistics.median(s[way] / limit for s, limit in zip(seconds, limits, strict=True))
        for way in ("filling", "predict")
    }
    middle = {way: statistics.median(s[way] for s in seconds) for way in seconds[0]}
    entry = make_entry(
        f"{count:,} pictures through EfficientNet-Lite0: the cache and `course predict` against a bare forward pass",
        columns=["what", "seconds", "of decoding and a bare forward pass"],
        rows=[
            ["decoding, one after another", f"{middle['decoding']:.1f}", ""],
            ["bare forward pass", f"{middle['forward']:.1f}", ""],
            ["filling the cache", f"{middle['filling']:.1f}", f"{ratios['filling']:.2f}"],
            ["course predict", f"{middle['predict']:.1f}", f"{ratios['predict']:.2f}"],
        ],
        findings=[
            f"Filling the cache takes {ratios['filling']:.2f} times, `course predict` {ratios['predict']:.2f} times as "
            "long as decoding and a bare forward pass (goal: at most 1.25)."
        ],
        limit="the first two rows. Both ways read pictures while the network computes, so they can be below 1.",
        notes=[f"Medians over {turns} turns, batches of {BATCH}, 400 × 300 pixels made 224 × 224."],
        numbers={"seconds": seconds, "ratios": ratios},
    )
    report("h", entry, options)
    return entry


if __name__ == "__main__":
    main()
