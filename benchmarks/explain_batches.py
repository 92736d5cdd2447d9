"""(f) Grad-CAM of 64 pictures in batches against one call for each picture.

Both are :func:`course_utils.gradcam.explain` on the same network and pictures. The two ways take turns, so that a busy
machine slows both; the ratio is the median over the turns.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from common import make_entry, make_parser, report, timed

from course_utils.gradcam import CAM_BATCH, explain
from course_utils.pretrained_models import cam_layer, load_pretrained, weights_entry
from course_utils.settings import best_device
from course_utils.transforms import image_size


def batched(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """The maps of all pictures from one call."""
    return explain(model, images, 0).heat


def one_by_one(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """The same maps from a call for each picture."""
    return np.concatenate([explain(model, image[None], 0).heat for image in images])


def arithmetic_alone(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Forward through the network in batches, and the gradient back to the explained layer: nothing else."""
    kept: list[torch.Tensor] = []
    handle = cam_layer(model).register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        for batch in images.split(CAM_BATCH):
            logits = model(batch.clone().requires_grad_(True))
            torch.autograd.grad(logits[:, 0].sum(), kept.pop())
    finally:
        handle.remove()


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark and return its entry."""
    parser = make_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    count, turns = (4, 1) if options.quick else (options.pictures, options.turns)
    rows, numbers = [], {}
    for name in ("resnet18_mini", "efficientnet_b0_mini"):
        torch.manual_seed(0)
        model = load_pretrained(name).to(best_device()).eval()
        images = torch.randn(count, 3, *[image_size(weights_entry(name))] * 2)
        apart = float(abs(batched(model, images) - one_by_one(model, images)).max())  # warms up, too
        on_device = images.to(best_device())
        seconds = [
            (timed(lambda m=model, x=images: batched(m, x))[0], timed(lambda m=model, x=images: one_by_one(m, x))[0])
            for _ in range(turns)
        ]
        alone = min(timed(lambda m=model, x=on_device: arithmetic_alone(m, x))[0] for _ in range(turns))
        ratio = statistics.median(single / together for together, single in seconds)
        together, single = (statistics.median(column) for column in zip(*seconds, strict=True))
        numbers[name] = {"seconds": seconds, "ratio": ratio, "alone": alone, "apart": apart}
        rows.append([name, f"{together:.2f}", f"{single:.2f}", f"{ratio:.1f}", f"{alone:.2f}"])
    slowest = min(found["ratio"] for found in numbers.values())
    entry = make_entry(
        f"Grad-CAM of {count} pictures: batches of {CAM_BATCH} and one call for each picture",
        columns=["network", "s, batched", "s, one by one", "times faster", "s, arithmetic alone"],
        rows=rows,
        findings=[
            f"At least {slowest:.1f} times faster in batches (goal: more than 1).",
            f"The maps differ by at most {max(found['apart'] for found in numbers.values()):.1g}.",
        ],
        limit="forward, and the gradient back to the explained layer, in batches: the last column.",
        notes=[f"Medians over {turns} turns."],
        numbers=numbers,
    )
    report("f", entry, options)
    return entry


if __name__ == "__main__":
    main()
