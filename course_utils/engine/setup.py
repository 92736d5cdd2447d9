"""Everything around the training loop, prepared before it: device, precision, processes, memory, cached inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from course_utils.engine.devices import make_accelerator
from course_utils.engine.inputs import Inputs, cache_options, inputs_for
from course_utils.engine.loading import workers_for
from course_utils.engine.memory import MemoryPieces
from course_utils.engine.metrics import EpochMetrics
from course_utils.engine.options import FitOptions
from course_utils.engine.processes import Batches, ProcessGroup, loss_of_shard
from course_utils.engine.sampling import seeded_draws, training_order
from course_utils.fine_tuning import Plan, parameter_groups, rate_factor


@dataclass(frozen=True)
class Setup:
    """Everything that the training loop needs beside the model.

    ``settings`` are the options as plain values for the log; ``inputs`` are pictures, or cached activations with the
    part of the network that takes them; ``criterion`` has label smoothing and class weights; ``optimizer`` is AdamW
    over the plan's parameter groups; ``memory`` computes a batch in pieces where the memory is too small.
    """

    plan: Plan
    options: FitOptions
    settings: dict[str, Any]
    accelerator: Accelerator
    group: ProcessGroup
    inputs: Inputs
    train: Batches
    val: Batches
    criterion: nn.CrossEntropyLoss
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    memory: MemoryPieces

    @property
    def machine(self) -> dict[str, Any]:
        """Device, precision and number of processes; on another machine the last bits differ."""
        return {
            "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
            "processes": self.accelerator.num_processes,
        }

    @property
    def is_first_process(self) -> bool:
        """True in the process that writes files."""
        return self.accelerator.is_main_process

    def networks(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the network for the stages that learn now, wrapped for several processes and bare.

        DDP decides at wrapping time whose gradients it exchanges, so the bare model is wrapped anew whenever other
        stages learn.
        """
        if self.group.world_size > 1:  # drop the old wrapper; collecting garbage takes a quarter of a second
            self.accelerator.free_memory()
        bare = self.inputs.learner(self.accelerator.unwrap_model(model, keep_fp32_wrapper=False))
        return self.accelerator.prepare_model(bare), bare

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch; of several processes each gets its share."""
        return loss_of_shard(self.criterion, logits, labels, self.group)

    def metrics(self, keep_answers: bool = False) -> EpochMetrics:
        """Return an empty count of losses and hits."""
        return EpochMetrics(self.group, keep_answers)

    def release(self) -> None:
        """Free gradients and optimizer state, even where something (a traceback, say) still refers to this object."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.optimizer.state.clear()


def prepare(model: nn.Module, train: Dataset, val: Dataset, plan: Plan, options: FitOptions) -> Setup:
    """Return everything that the training loop needs; the model goes to its device.

    Raises
    ------
    CourseError
        For a device that is not there, or a cache that cannot be where it is asked for.
    KeyboardInterrupt
        If it is stopped while activations are cached.
    """
    order = training_order(train, options.seed, options.oversample)
    accelerator = make_accelerator(options.device)
    device, caching = accelerator.device, cache_options(options.cache)
    inputs = inputs_for(caching, model, train, val, plan, epochs=options.epochs, seed=options.seed, device=device)
    if device.type != "mps":  # slower there
        model.to(memory_format=torch.channels_last)
    model.to(device)
    group = ProcessGroup(accelerator)

    def batches(dataset: Dataset, order: Any) -> Batches:
        workers = options.num_workers
        if workers == "auto":
            workers, _ = workers_for(dataset, epochs=options.epochs)
        return Batches(dataset, order, options.batch_size, group, workers)

    train_batches = batches(seeded_draws(inputs.train), order)
    optimizer = torch.optim.AdamW(parameter_groups(model, plan))
    optimizer.zero_grad(set_to_none=True)  # gradients that an earlier backward() left would count in the first step
    steps = len(train_batches) * options.epochs
    starts = [group["start"] * len(train_batches) for group in optimizer.param_groups]
    climbs = [round(plan.strategy.warmup * (steps - start)) for start in starts]  # steps of warm-up
    # One function per group. The schedule is not handed to accelerate, which would step once for each process.
    schedule = LambdaLR(
        optimizer, [lambda step, s=s, c=c: rate_factor(step, s, steps, c) for s, c in zip(starts, climbs, strict=True)]
    )
    prepared = accelerator.prepare(optimizer)
    weights = options.class_weights
    weight = None if weights is None else torch.tensor(list(weights), dtype=torch.float32, device=device)
    criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=options.label_smoothing)
    return Setup(
        plan,
        options,
        options.as_settings() | {"cache": inputs.facts(caching)},
        accelerator,
        group,
        inputs,
        train_batches,
        batches(inputs.val, range(len(inputs.val))),
        criterion,
        prepared,
        schedule,
        MemoryPieces(criterion, prepared, group),
    )
