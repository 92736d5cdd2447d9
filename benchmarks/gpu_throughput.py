"""(e) Images per second of ``fit`` on a GPU, beside a bare loop with mixed precision and channels_last.

    python benchmarks/gpu_throughput.py [--quick] [--model resnet50]

Both learn all stages of the same network from the same pictures in memory, copied to the GPU from pinned memory while
it computes, and validate after each epoch. Needs CUDA; says so and ends where there is none.
"""

from __future__ import annotations

import torch
from common import make_entry, make_parser, report, timed
from fit_overhead import ratios
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from course_utils.datasets import MemoryDataset
from course_utils.engine.devices import precision_on
from course_utils.engine.sampling import SeededOrder
from course_utils.fine_tuning import FULL, parameter_groups, rate_factor
from course_utils.training import fit

SEED = 0
SIZES = {"train": 2048, "val": 256, "side": 224, "batch": 128, "epochs": 3, "rounds": 5}
QUICK = {"train": 64, "val": 16, "side": 64, "batch": 16, "epochs": 1, "rounds": 2}


def pictures(size: int, side: int, seed: int) -> MemoryDataset:
    """Noise: what is in a picture does not change how long it takes."""
    generator = torch.Generator().manual_seed(seed)
    return MemoryDataset(
        torch.randn(size, 3, side, side, generator=generator), [i % 10 for i in range(size)], range(10)
    )


def precision() -> torch.dtype:
    """What fit chooses."""
    return getattr(torch, precision_on("cuda"))


def ours(model: nn.Module, train: MemoryDataset, val: MemoryDataset, sizes: dict[str, int]) -> None:
    """``fit``, whole, without its record."""
    options = {"epochs": sizes["epochs"], "batch_size": sizes["batch"], "seed": SEED}
    fit(model, train, val, FULL, device="cuda", log="off", cache="off", **options)


def bare(model: nn.Module, train: MemoryDataset, val: MemoryDataset, sizes: dict[str, int]) -> None:
    """The usual loop: autocast, a scaler for float16, channels_last, pinned memory, copies that do not block."""
    model.to("cuda", memory_format=torch.channels_last)
    order, scaler = SeededOrder(len(train), SEED), torch.amp.GradScaler("cuda", enabled=precision() == torch.float16)
    loader = DataLoader(train, batch_size=sizes["batch"], sampler=order, pin_memory=True)
    val_loader = DataLoader(val, batch_size=sizes["batch"], pin_memory=True)
    steps = sizes["epochs"] * len(loader)
    optimizer = torch.optim.AdamW(parameter_groups(model, FULL.plan(model)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_factor(s, 0, steps, steps // 10))
    best = -1.0
    for epoch in range(sizes["epochs"]):
        order.epoch = epoch
        model.train()
        sums = torch.zeros(2, device="cuda")
        for images, labels in loader:
            images, labels = _there(images), labels.cuda(non_blocking=True)
            with torch.autocast("cuda", precision()):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            sums += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
        model.eval()
        right = torch.zeros((), device="cuda")
        with torch.no_grad(), torch.autocast("cuda", precision()):
            for images, labels in val_loader:
                right += (model(_there(images)).argmax(1) == labels.cuda(non_blocking=True)).sum()
        if right.item() > best:
            best, state = right.item(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)


def limit(model: nn.Module, train: MemoryDataset, val: MemoryDataset, sizes: dict[str, int]) -> None:
    """As many passes on one batch that is on the GPU already, and as many forward ones as the validation has."""
    model.to("cuda", memory_format=torch.channels_last).train()
    images, labels = _there(train.images[: sizes["batch"]]), torch.tensor(train.labels[: sizes["batch"]], device="cuda")
    for _ in range(sizes["epochs"] * -(-len(train) // sizes["batch"])):
        with torch.autocast("cuda", precision()):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", precision()):
        for _ in range(sizes["epochs"] * -(-len(val) // sizes["batch"])):
            model(images)


def _there(images: Tensor) -> Tensor:
    return images.to("cuda", memory_format=torch.channels_last, non_blocking=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep; or say that there is no GPU."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="a network of torchvision or the course (default: resnet50)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch sees no CUDA GPU here (`course doctor` says more): nothing was measured.")
        return
    sizes, name = QUICK if options.quick else SIZES, options.model or ("resnet18_mini" if options.quick else "resnet50")
    train, val = (pictures(sizes[split], sizes["side"], seed) for seed, split in enumerate(("train", "val")))
    candidates = {"bare": bare, "ours": ours, "limit": limit}
    seconds: dict[str, list[float]] = {key: [] for key in candidates}
    for turn in range(
        -1, sizes["rounds"]
    ):  # the first round, which chooses algorithms and fills caches, does not count
        for key, function in candidates.items():
            model = FULL.starting_model(name, 10, weights=None)
            spent, _ = timed(lambda function=function, model=model: function(model, train, val, sizes))
            if turn >= 0:
                seconds[key].append(spent)
    report("e", entry(name, sizes, seconds), options)


def entry(name: str, sizes: dict[str, int], seconds: dict[str, list[float]]) -> dict:
    """What is printed and kept."""
    names = {"bare": "bare AMP channels_last loop", "ours": "fit", "limit": "forward and backward alone"}
    seen = sizes["epochs"] * sizes["train"]
    rows = []
    for key, times in seconds.items():
        middle, low, high = ratios(seconds, key)
        rate = f"{seen / sorted(times)[len(times) // 2]:,.0f}"
        rows.append([names[key], rate, f"{1 / middle:.3f}", f"{1 / high:.3f} to {1 / low:.3f}"])
    return make_entry(
        f"fit on a GPU beside a bare loop, {name}",
        columns=["", "training images per second", "of the bare loop's", "95 % interval"],
        rows=rows,
        findings=[f"fit reaches {1 / ratios(seconds, 'ours')[0]:.1%} of the bare loop's images per second."],
        limit="forward and backward passes alone, on a batch that is on the GPU already (last row).",
        notes=[
            f"{sizes['train']} pictures of {sizes['side']} pixels in memory, batches of {sizes['batch']}, "
            f"{str(precision()).removeprefix('torch.')}, {sizes['epochs']} epochs with validation, "
            f"{sizes['rounds']} rounds in turn.",
        ],
        numbers={"seconds": seconds},
        device="cuda",
    )


if __name__ == "__main__":
    main()
