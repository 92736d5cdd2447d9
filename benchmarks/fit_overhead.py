"""(c) ``fit`` beside a bare loop, Lightning's Trainer and fastai's Learner on the same job.

The job: resnet18_mini, every stage learns (``FULL``), AdamW, batches of 32 in the same order, validation and a copy of
the best weights after every epoch, float32, pictures in memory, so that nothing hides behind decoding. Each round runs
all of them, in an order that rotates; what is reported is the median over the rounds of a round's own ratio, because a
machine that is busy for a minute slows down everything in that minute, with a bootstrap interval. (A run takes about
seven seconds, and the same run again was seen to take 4 % more or less.)

    python benchmarks/fit_overhead.py [--quick]

Lightning and fastai are measured where they are installed (``pip install lightning fastai``), best in an environment
of their own; where one is not, the page says so.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import make_entry, make_parser, report, timed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from course_utils.datasets import MemoryDataset
from course_utils.engine.sampling import SeededOrder
from course_utils.fine_tuning import FULL, parameter_groups, rate_factor
from course_utils.training import fit

BATCH, SEED, GOAL, FEW_ROUNDS = 32, 0, 0.03, 5
SIZES = {"train": 256, "val": 64, "epochs": 3, "side": 96, "rounds": 20}
QUICK = {"train": 70, "val": 20, "epochs": 2, "side": 32, "rounds": 2}


class Job:
    """What all of them do: the same model, pictures, order, rates and number of steps."""

    def __init__(self, train: int, val: int, epochs: int, side: int, rounds: int) -> None:
        self.epochs, self.rounds = epochs, rounds
        self.train, self.val = _pictures(train, side, 1), _pictures(val, side, 2)
        self.start = FULL.starting_model("resnet18_mini", 3).to(memory_format=torch.channels_last)

    def model(self) -> nn.Module:
        """The same weights each time, in the layout that fit uses."""
        return copy.deepcopy(self.start)

    def optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        """AdamW with the groups and the schedule of the strategy."""
        plan = FULL.plan(model)
        steps = self.epochs * len(self.loader())
        warmup = round(plan.strategy.warmup * steps)
        optimizer = torch.optim.AdamW(parameter_groups(model, plan))
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rate_factor(s, 0, steps, warmup))

    def loader(self, order: SeededOrder | None = None) -> DataLoader:
        """Batches of the training set."""
        return DataLoader(self.train, batch_size=BATCH, sampler=order or SeededOrder(len(self.train), SEED))

    def val_loader(self) -> DataLoader:
        """Batches of the validation set."""
        return DataLoader(self.val, batch_size=BATCH)


def _pictures(size: int, side: int, seed: int) -> MemoryDataset:
    """Noise with one strong colour, which is the label: learnable, so that losses can be compared."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(size, 3, side, side, generator=generator), [i % 3 for i in range(size)]
    images[torch.arange(size), torch.tensor(labels)] += 0.5
    return MemoryDataset(images, labels, ("red", "green", "blue"))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


# --- the candidates: each returns its last validation loss --------------------------------------------------------


def ours(job: Job, log: str = "off") -> float:
    """``fit``, whole."""
    run = fit(
        job.model(), job.train, job.val, FULL,
        epochs=job.epochs, batch_size=BATCH, seed=SEED, device="cpu", log=log, cache="off",
    )  # fmt: skip
    return run.history[-1].val_loss


def ours_with_record(job: Job) -> float:
    """``fit`` as it is called by default: with the folder that tells what was done."""
    return ours(job, "full")


def bare(job: Job) -> float:
    """The loop that everybody writes, with nothing in it that the job does not ask for."""
    torch.manual_seed(SEED)
    model, order = job.model(), SeededOrder(len(job.train), SEED)
    optimizer, schedule = job.optimizer(model)
    best, state = (-1.0, 0.0), None
    for epoch in range(job.epochs):
        order.epoch = epoch
        model.train()
        loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for images, labels in job.loader(order):
            logits = model(_channels_last(images))
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.detach() * len(labels)
            right += (logits.argmax(1) == labels).sum()
        model.eval()
        val_loss, val_right = torch.zeros(()), torch.zeros((), dtype=torch.long)
        with torch.no_grad():
            for images, labels in job.val_loader():
                logits = model(_channels_last(images))
                val_loss += F.cross_entropy(logits, labels, reduction="sum")
                val_right += (logits.argmax(1) == labels).sum()
        score = (val_right.item() / len(job.val), -val_loss.item())
        if score > best:
            best, state = score, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return val_loss.item() / len(job.val)


def lightning(job: Job) -> float:
    """Lightning's Trainer without logger, bar and summary; the best weights are copied in memory, not to disk."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = job.model()

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            logits = self.net(_channels_last(batch[0]))
            loss = F.cross_entropy(logits, batch[1])
            right = (logits.argmax(1) == batch[1]).float().mean()
            self.log_dict({"loss": loss, "right": right}, on_step=False, on_epoch=True, batch_size=len(logits))
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
            logits = self.net(_channels_last(batch[0]))
            right = (logits.argmax(1) == batch[1]).float().mean()
            losses = {"val_loss": F.cross_entropy(logits, batch[1]), "val_right": right}
            self.log_dict(losses, batch_size=len(logits))

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer, schedule = job.optimizer(self.net)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Best(Callback):
        best = -1.0

        def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
            if (right := float(trainer.callback_metrics["val_right"])) > self.best:
                self.best = right
                self.state = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}

    class Order(SeededOrder):
        def set_epoch(self, epoch: int) -> None:  # Lightning calls it
            self.epoch = epoch

    order = Order(len(job.train), SEED)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=job.epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Best()],
    )  # fmt: skip
    trainer.fit(Task(), job.loader(order), job.val_loader())
    return float(trainer.callback_metrics["val_loss"])


def fastai(job: Job) -> float:
    """The Learner of fastai on the same loaders, without bar and printing; its recorder keeps losses and accuracy."""
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner, Recorder
    from fastai.metrics import accuracy
    from fastai.optimizer import OptimWrapper

    order = SeededOrder(len(job.train), SEED)
    model = job.model()
    optimizer, schedule = job.optimizer(model)

    class Steps(Callback):
        best = -1.0

        def before_fit(self) -> None:  # the Learner has just set one rate for everything
            for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = rate

        def before_train(self) -> None:
            order.epoch = self.epoch

        def before_batch(self) -> None:
            self.learn.xb = (_channels_last(self.xb[0]),)

        def after_batch(self) -> None:
            if self.training:
                schedule.step()

        def after_epoch(self) -> None:
            if (right := float(self.recorder.values[-1][-1])) > self.best:
                self.best = right
                self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    Steps.order = Recorder.order + 10
    loaders = DataLoaders(job.loader(order), job.val_loader(), device=torch.device("cpu"))
    learner = Learner(
        loaders, model, loss_func=nn.CrossEntropyLoss(), opt_func=lambda *_, **__: OptimWrapper(opt=optimizer),
        metrics=accuracy, train_bn=True, cbs=[Steps()],
    )  # fmt: skip
    with learner.no_logging():  # the bar is a callback that is not imported
        learner.fit(job.epochs, lr=None)
    return float(learner.recorder.values[-1][1])


def limit(job: Job) -> float:
    """Forward and backward alone on one batch that is there, and the forward pass of the validation."""
    model, images = job.model(), _channels_last(job.train.images[:BATCH])
    labels = torch.tensor(job.train.labels[:BATCH])
    steps, val_steps = job.epochs * len(job.loader()), job.epochs * len(job.val_loader())
    model.train()
    for _ in range(steps):
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        for _ in range(val_steps):
            model(images)
    return float("nan")


# --- measuring ---------------------------------------------------------------------------------------------------

NAMES = {
    "bare": ("a bare loop", bare),
    "ours": ("fit", ours),
    "recorded": ("fit with its record (log='full')", ours_with_record),
    "lightning": ("Lightning's Trainer", lightning),
    "fastai": ("fastai's Learner", fastai),
    "limit": ("forward and backward alone", limit),
}


def candidates() -> tuple[dict[str, Callable[[Job], float]], list[str]]:
    """Those that are installed, and a sentence for each that is not."""
    chosen, missing = {}, []
    for key, (name, function) in NAMES.items():
        if key in ("lightning", "fastai") and importlib.util.find_spec(key) is None:
            missing.append(f"{name} is not installed here and was not measured.")
        else:
            chosen[key] = function
    return chosen, missing


def measure(job: Job, chosen: dict[str, Callable[[Job], float]]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds per round, and the last validation loss, of each candidate."""
    keys = list(chosen)
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    losses = {key: chosen[key](job) for key in keys}  # the first call imports, allocates and compiles
    for turn in range(job.rounds):
        if turn == FEW_ROUNDS:  # about these, nothing has to be decided
            keys = [key for key in keys if key not in ("recorded", "limit")]
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            seconds[key].append(timed(lambda key=key: chosen[key](job))[0])
    return seconds, losses


def ratios(seconds: dict[str, list[float]], key: str, base: str = "bare") -> tuple[float, float, float]:
    """One candidate's time as a multiple of the other's: the median over the rounds, and its 95 % interval."""
    values = np.array([one / other for one, other in zip(seconds[key], seconds[base], strict=False)])
    again = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.quantile(np.median(again, axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)


def beside(seconds: dict[str, list[float]], base: str, goal: float) -> str:
    """How much more time than another one ``fit`` takes, and what that says about the goal."""
    more, low, high = (ratio - 1 for ratio in ratios(seconds, "ours", base))
    met = "met" if more <= goal else "not told apart from it" if low <= goal else "not met"
    return f"beside {NAMES[base][0]} {more:+.1%} ({low:+.1%} to {high:+.1%}; goal: at most {goal:+.0%}, {met})"


def entry(job: Job, seconds: dict[str, list[float]], losses: dict[str, float], missing: list[str]) -> dict[str, Any]:
    """What is printed and kept."""
    rows = []
    for key in seconds:
        middle, low, high = ratios(seconds, key)
        loss = "" if key == "limit" else f"{losses[key]:.4f}"
        rows.append(
            [NAMES[key][0], f"{statistics.median(seconds[key]):.3f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", loss]
        )
    goals = {"bare": GOAL} | {key: 0.0 for key in ("lightning", "fastai") if key in seconds}
    finding = f"Time of fit: {'; '.join(beside(seconds, base, goal) for base, goal in goals.items())}."
    record = statistics.median(a - b for a, b in zip(seconds["recorded"], seconds["ours"], strict=False))
    share = 1 / ratios(seconds, "bare", "limit")[0]
    side = job.train.images.shape[-1]
    return make_entry(
        "fit beside a bare loop, Lightning and fastai",
        columns=["", "seconds", "of the bare loop's", "95 % interval", "last validation loss"],
        rows=rows,
        findings=[finding],
        limit=f"forward and backward passes alone, on one batch in memory, are {share:.0%} of the bare loop's time.",
        notes=[
            f"{len(job.train)} pictures of {side} pixels, {job.epochs} epochs of {len(job.loader())} steps, median of "
            f"{job.rounds} rounds in which all take their turn (the record and the last row: {FEW_ROUNDS} rounds).",
            f"The record of a run (figures, report, weights) costs {record:.2f} s, however long the run is.",
            "Equal validation losses show that the same was learned: same batches, rates and steps.",
            *missing,
        ],
        numbers={"seconds": seconds, "losses": losses},
        device="cpu",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and keep; returns the entry."""
    options = make_parser(__doc__).parse_args(arguments)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    job = Job(**(QUICK if options.quick else SIZES))
    chosen, missing = candidates()
    found = entry(job, *measure(job, chosen), missing)
    report("c", found, options)
    return found


if __name__ == "__main__":
    main()
