"""Everything around the training loop, prepared before it: device, precision, processes, memory, cached inputs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from course_utils.data.samples import Collate
from course_utils.engine.averaging import WeightAverage
from course_utils.engine.devices import make_accelerator, precision_of
from course_utils.engine.inputs import Inputs, cache_options, inputs_for
from course_utils.engine.loading import workers_for
from course_utils.engine.memory import MemoryPieces
from course_utils.engine.metrics import EpochMetrics, LossIsNoNumber
from course_utils.engine.mixing import mixing
from course_utils.engine.options import FitOptions
from course_utils.engine.processes import Batches, ProcessGroup, loss_of_shard
from course_utils.engine.sampling import seeded_draws, training_order
from course_utils.fine_tuning import Plan, make_schedule, parameter_groups
from course_utils.pretrained_models import count_classes

SMALLEST_SCALE = 1e-4  # of the loss in float16; as in fairseq


@dataclass(frozen=True)
class Setup:
    """Everything that the training loop needs beside the model.

    ``settings`` are the options as plain values for the log, with the precision that ``"auto"`` came to; ``inputs``
    are pictures, or cached activations with the part of the network that takes them; ``criterion`` has label smoothing
    and class weights; ``optimizer`` is AdamW over the plan's parameter groups; ``memory`` computes a batch in pieces
    where the memory is too small; ``mix`` and ``average`` do what the options of these names say, or nothing.
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
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    average: WeightAverage

    @property
    def machine(self) -> dict[str, Any]:
        """Device, precision and number of processes; on another machine the last bits differ."""
        return {
            "device": self.accelerator.device.type,
            "precision": self.settings["precision"],
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
        # Not by accelerate, which puts the precision into model.forward and marks the model as prepared: the mark
        # stays, and from the second call on, in this fit or the next one, everything is computed in float32.
        bare = self.inputs.learner(model)
        if self.group.world_size == 1:
            return bare, bare
        gc.collect()  # the old wrapper, whose hooks hang on the parameters; it takes a quarter of a second
        gpus = [self.accelerator.device] if self.accelerator.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(bare, device_ids=gpus), bare

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return logits ``(n, C)``, computed in the precision of the run and given in float32 where that is less.

        Of a network with auxiliary heads, which gives several answers in training, they are those of the main head.
        """
        with self.accelerator.autocast():
            logits = network(images)
        logits = getattr(logits, "logits", logits)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch; of several processes each gets its share."""
        return loss_of_shard(self.criterion, logits, labels, self.group)

    def check_scaling(self) -> None:
        """Raise LossIsNoNumber where float16's gradients are no numbers, however small the loss has been scaled."""
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:  # every step is left out, and nothing learns
            raise LossIsNoNumber("The gradients became too large for float16, or no numbers,")

    def advice(self, epoch: int) -> str:
        """Return what to do about training that diverged in an epoch (counted from 0), beginning within a sentence."""
        rate = max(row.rate for row in self.plan.rows if row.start is not None)
        float16 = " Or give precision='float32': numbers end at 65,504 in float16."
        return (
            f"in epoch {epoch + 1}: training has diverged. Highest learning rate: {rate:g}. Try a tenth of it, a "
            "longer warm-up, or look for pictures that are not finite numbers."
            + (float16 if self.settings["precision"] == "float16" else "")
        )

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
    accelerator = make_accelerator(options.device, options.precision)
    device, caching = accelerator.device, cache_options("off" if options.mix else options.cache)
    machine = {"device": device, "precision": accelerator.mixed_precision}
    inputs = inputs_for(caching, model, train, val, plan, epochs=options.epochs, seed=options.seed, **machine)
    if device.type != "mps":  # slower there
        model.to(memory_format=torch.channels_last)
    model.to(device)
    group = ProcessGroup(accelerator)

    def batches(name: str, dataset: Dataset, order: Any) -> Batches:
        workers = options.num_workers
        if workers == "auto":
            workers, _ = workers_for(dataset, epochs=options.epochs)
        collate = Collate(f"{name} split", count_classes(model))
        return Batches(dataset, order, options.batch_size, group, workers, collate, training=name == "train")

    train_batches = batches("train", seeded_draws(inputs.train), order)
    optimizer = torch.optim.AdamW(parameter_groups(model, plan))
    optimizer.zero_grad(set_to_none=True)  # gradients that an earlier backward() left would count in the first step
    # Not handed to accelerate, which would step once for each process.
    schedule = make_schedule(optimizer, plan, options.epochs, len(train_batches))
    # The schedule follows the batches, also those whose step the scaling of float16 leaves out: it would not come to
    # its end otherwise, and a stage that wakes in a later epoch would learn at the rate of an earlier one. When the
    # very first step is left out, torch would warn of a schedule that steps before the optimizer.
    optimizer._opt_called = True
    prepared = accelerator.prepare(optimizer)
    weights = options.class_weights
    exact = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    weight = None if weights is None else torch.tensor([float(w) for w in weights], dtype=exact, device=device)
    criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=options.label_smoothing)
    return Setup(
        plan,
        options,
        options.as_settings() | {"cache": inputs.facts(caching), "precision": precision_of(accelerator)},
        accelerator,
        group,
        inputs,
        train_batches,
        batches("val", inputs.val, range(len(inputs.val))),
        criterion,
        prepared,
        schedule,
        MemoryPieces(model, criterion, prepared, group),
        mixing(options.mix, count_classes(model)),
        WeightAverage(model, options.ema),
    )
