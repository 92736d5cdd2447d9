"""The training loop: one call for every strategy, on a CPU, a GPU or several processes.

``fit`` is the loop that everybody writes, with the details that are easily forgotten: frozen stages stay in eval
mode, accuracy is counted over samples, the best weights on the validation split come back, a Stop keeps what was
learned, the same seed gives the same weights to the last bit, and what was done is on disk afterwards
(:mod:`course_utils.run_log`). Moving to a GPU, mixed precision and several processes are accelerate's work
(https://huggingface.co/docs/accelerate).
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from course_utils.errors import CourseError
from course_utils.feature_extraction import set_learning, train_mode
from course_utils.fine_tuning import Plan, Strategy, parameter_groups, rate_factor
from course_utils.pretrained_models import last_layer
from course_utils.progress import progress
from course_utils.run_log import LEVELS, EpochRecord, RunLog, best_epoch, history_table
from course_utils.sampling import BalancedOrder, SeededOrder
from course_utils.settings import best_device
from course_utils.training_inputs import CacheOptions, Inputs, inputs_for, options_of

CHECK_EVERY = 20  # steps between two looks at whether the loss still is a number


@dataclass
class Run:
    """The story of one call of :func:`fit`; the trained weights are in the model itself.

    Parameters
    ----------
    strategy, plan, seed
        What was asked for.
    history
        One record per finished epoch.
    stopped
        ``"finished"``, ``"early"`` (no better for `patience` epochs), ``"interrupted"`` (Stop, Ctrl-C),
        ``"diverged"`` (the loss was no number any more) or ``"failed"`` (another error).
    folder
        Where the log is, see :mod:`course_utils.run_log`; None without one.
    cached
        The border in front of which activations came from a cache; None if every epoch went through all stages.
    """

    strategy: Strategy
    plan: Plan
    seed: int
    history: list[EpochRecord] = field(default_factory=list)
    stopped: str = "finished"
    folder: Path | None = None
    cached: str | None = None

    @property
    def best(self) -> EpochRecord | None:
        """The epoch whose weights the model has now: highest validation accuracy, then lowest loss."""
        return best_epoch(self.history)

    @property
    def seconds(self) -> float:
        """Time spent in epochs."""
        return sum(record.seconds for record in self.history)

    def __str__(self) -> str:
        return history_table(self.history)


class TrainingDiverged(CourseError):
    """The loss stopped being a number. ``run`` holds the epochs that went well."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    strategy: Strategy,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
    patience: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    oversample: bool = False,
    num_workers: int = 0,
    device: str | None = None,
    log: str = "full",
    cache: str | CacheOptions | None = "auto",
) -> Run:
    """Train a model by a strategy, in place.

    Parameters
    ----------
    model
        With a head for the classes of `train`; usually from ``strategy.starting_model(...)``. Freezing is done here.
    train, val
        Data sets of ``(image, label)``: float ``(3, H, W)`` and int. `val` chooses the best epoch and is not learned.
    strategy
        Which stage learns from when, and how fast.
    epochs
        At least 1.
    batch_size
        Pictures per step over all processes together.
    seed
        Of shuffling, augmentation and dropout. The same seed on the same machine gives bit-identical weights.
    patience
        At least 1: stop after so many epochs without a better one; None trains to the end.
    label_smoothing
        In [0, 1): how much of the target is spread over all classes (Szegedy et al. 2016).
    class_weights
        One weight per class for the loss, for unbalanced data; None weighs all alike.
    oversample
        For unbalanced data too: an epoch draws as many pictures as there are, with replacement, every class equally
        often on average (:class:`~course_utils.sampling.BalancedOrder`). The data set needs ``labels``. Together with
        class weights the rare classes count twice.
    num_workers
        Processes that load pictures. 0 is right for small sets and for data that is in memory.
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``; None takes the best there is. On CUDA: mixed precision (bfloat16, or
        float16 where that is missing), channels_last, pinned memory and copies that do not block.
    log
        What is kept of the run in a folder of its own (:mod:`course_utils.run_log`): ``"full"``; ``"light"``, without
        weights, report and figures, for comparisons of many runs; ``"off"``, nothing. The weights that come out are
        the same, and a folder that cannot be written is a warning, no error.
    cache
        Whether the frozen stages run once, and their activations come from disk in every epoch
        (:mod:`course_utils.activation_cache`). ``"auto"``: where the border stays the same, nothing is augmented at
        random, and the data are of the course; ``"on"``: an error where it cannot be; ``"off"`` or None: never;
        :class:`~course_utils.training_inputs.CacheOptions` for augmented views, half precision or another folder.
        Losses are the same to about 1e-6. `train` and `val` may also be caches themselves.

    Returns
    -------
    Run
        One record per epoch. The model has the weights of the best epoch and is in eval mode, on its device.

    Raises
    ------
    CourseError
        For arguments that cannot be right.
    TrainingDiverged
        When the loss is not a number any more; the model has its best weights up to there, those it came with when
        that was in the first epoch.
    """
    plan = strategy.plan(model)
    run = Run(strategy, plan, seed)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "patience": patience,
        "label_smoothing": label_smoothing,
        "class_weights": None if class_weights is None else [float(weight) for weight in class_weights],
        "oversample": oversample,
        "num_workers": num_workers,
        "device": device,
        "log": log,
    }
    caching = options_of(cache)
    with _seeded(seed):
        _check(model, train, val, epochs, batch_size, patience, label_smoothing, class_weights)
        _check_log(log)
        order = _order(train, seed, oversample)
        target = _accelerator(device).device
        inputs = inputs_for(caching, model, train, val, plan, epochs=epochs, seed=seed, device=target)
        settings["cache"], run.cached = inputs.facts(caching), inputs.border
        trainer = _Trainer(model, inputs, order, plan, epochs, batch_size, num_workers, device)
        trainer.loss = _loss(class_weights, label_smoothing, trainer.accelerator.device)
        level = log if trainer.accelerator.is_main_process else "off"
        run_log = RunLog(level, settings, plan, model, train, val, trainer.accelerator.device)
        run.folder, trainer.keeps_answers = run_log.folder, run_log.full
        try:
            _train_epochs(run, trainer, run_log, epochs, patience)
        except KeyboardInterrupt:
            run.stopped = "interrupted"
        except _NotANumber as error:
            run.stopped, run_log.error = "diverged", _advice(error, plan)
            raise TrainingDiverged(run_log.error, run) from None
        except BaseException as error:
            run.stopped, run_log.error = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            trainer.restore_best()
            run_log.end(run, trainer.best_state, trainer.best_answers)
    return run


def _train_epochs(run: Run, trainer: _Trainer, run_log: RunLog, epochs: int, patience: int | None) -> None:
    for epoch in progress(range(epochs), run.strategy.name):
        run.history.append(trainer.epoch(epoch))
        trainer.remember_if_best(run)
        run_log.epoch(run, trainer.best_state)
        if patience and epoch - run.best.epoch >= patience:
            run.stopped = "early"
            return


class _NotANumber(ArithmeticError):
    pass


def _advice(error: _NotANumber, plan: Plan) -> str:
    rate = max(row.rate for row in plan.rows if row.start is not None)
    return (
        f"The loss became {error.args[0]} in epoch {error.args[1] + 1}: training has diverged. Highest learning rate: "
        f"{rate:g}. Try a tenth of it, a longer warm-up, or look for pictures that are not finite numbers."
    )


def _check(
    model: nn.Module,
    train: Sized,
    val: Sized,
    epochs: int,
    batch_size: int,
    patience: int | None,
    label_smoothing: float,
    class_weights: Sequence[float] | None,
) -> None:
    """Find what cannot work before anything is spent on it."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise CourseError(f"{name}={value}: it must be at least 1.")
    if not 0 <= label_smoothing < 1:
        raise CourseError(f"label_smoothing={label_smoothing}: it is a share, from 0 up to below 1; 0.1 is usual.")
    classes = last_layer(model).out_features
    for name, dataset in (("train", train), ("val", val)):
        if len(dataset) == 0:
            raise CourseError(
                f"The {name} split is empty: there is nothing to {'learn from' if name == 'train' else 'choose by'}."
            )
        image, label = dataset[0]
        if not isinstance(image, Tensor):
            raise CourseError(
                f"The {name} split gives a {type(image).__name__} instead of a tensor: it has no transform. "
                "Use dataset.with_transform(eval_transform(weights)), or splits.with_transforms(...)."
            )
        labels = [int(label) for label in getattr(dataset, "labels", [label])]
        top = max(labels)
        if min(labels) < 0:
            raise CourseError(f"The {name} split has a label {min(labels)}: labels count from 0.")
        if top >= classes:
            raise CourseError(
                f"The {name} split has labels up to {top}, the model's head has {classes} outputs (0 to "
                f"{classes - 1}). Build the model with num_classes={top + 1}."
            )
    if class_weights is not None and len(class_weights) != classes:
        raise CourseError(f"class_weights has {len(class_weights)} entries, the head has {classes} outputs.")


def _check_log(log: str) -> None:
    if log not in LEVELS:
        raise CourseError(f"log={log!r} is unknown: give one of {', '.join(LEVELS)}.")


def _order(train: Dataset, seed: int, oversample: bool) -> SeededOrder:
    if not oversample:
        return SeededOrder(len(train), seed)
    labels = getattr(train, "labels", None)
    if labels is None or len(labels) != len(train):
        found = "has none" if labels is None else f"has {len(labels)} for {len(train)} pictures"
        raise CourseError(
            f"oversample=True draws by class, so it needs the label of every picture in advance: train.labels. This "
            f"{type(train).__name__} {found}. Use a data set of course_utils.datasets, or give yours that attribute."
        )
    return BalancedOrder([int(label) for label in labels], seed)


def _loss(class_weights: Sequence[float] | None, label_smoothing: float, device: torch.device) -> nn.Module:
    weight = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32, device=device)
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)


class _Trainer:
    """What lives as long as one call of fit: the wrapped model, the optimizer, the best weights."""

    loss: nn.Module
    best_state: dict[str, Tensor]
    keeps_answers = False
    # Of the last and of the best validation: probabilities (N, C) and labels (N,), on the CPU.
    answers: tuple[Tensor, Tensor] | None = None
    best_answers: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        order: SeededOrder,
        plan: Plan,
        epochs: int,
        batch_size: int,
        num_workers: int,
        device: str | None,
    ) -> None:
        self.accelerator = accelerator = _accelerator(device)
        self.model, self.inputs, self.plan = model, inputs, plan
        cuda = accelerator.device.type == "cuda"
        if accelerator.device.type != "mps":  # slower there
            model.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        loader = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": cuda}
        self.train_batches, self.val_batches = accelerator.prepare(
            DataLoader(inputs.train, sampler=order, **loader), DataLoader(inputs.val, **loader)
        )
        optimizer = torch.optim.AdamW(parameter_groups(model, plan))
        per_epoch = len(self.train_batches)
        # Neither the scheduler nor, with it, the number of steps is handed to accelerate: it would step once for
        # each process. One function per group, all of them there from the first step.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [_group_schedule(g["start"], per_epoch, epochs, plan) for g in optimizer.param_groups]
        )
        self.optimizer = accelerator.prepare(optimizer)
        self.learning: list[str] | None = None
        self._remember()  # should not even one epoch be completed, the model goes back to how it came

    def epoch(self, epoch: int) -> EpochRecord:
        start = time.perf_counter()
        self._set_learning(self.plan.learning_at(epoch))
        # Through accelerate's loader: it counts epochs itself and would overrule a call on the sampler.
        self.train_batches.set_epoch(epoch)
        self.inputs.set_epoch(epoch)
        train_loss, train_accuracy = self._train(epoch)
        val_loss, val_accuracy = self._validate(epoch)
        return EpochRecord(
            epoch,
            tuple(self.learning or ()),
            train_loss,
            train_accuracy,
            val_loss,
            val_accuracy,
            time.perf_counter() - start,
        )

    def _set_learning(self, learning: list[str]) -> None:
        if learning == self.learning:
            return
        self.learning = learning
        set_learning(self.model, learning)
        # DDP decides at wrapping time whose gradients it exchanges. Parameters that wake up later would go their
        # own way in every process, silently; so the bare model is wrapped anew.
        if self.accelerator.num_processes > 1:  # let the old wrapper go; collecting garbage takes a quarter second
            self.accelerator.free_memory()
        bare = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.wrapped = self.accelerator.prepare_model(self.inputs.learner(bare))

    def _train(self, epoch: int) -> tuple[float, float]:
        train_mode(self.model)
        tally = _Tally(self.accelerator)
        for step, (images, labels) in enumerate(self.train_batches):
            logits = self.wrapped(_layout(images))
            self.accelerator.backward(self.loss(logits, labels))
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            tally.add(logits.detach(), labels)
            if step % CHECK_EVERY == 0:
                tally.check(epoch)
        tally.check(epoch)
        return tally.means()

    @torch.no_grad()
    def _validate(self, epoch: int) -> tuple[float, float]:
        self.model.eval()
        tally = _Tally(self.accelerator, keeps_answers=self.keeps_answers)
        for images, labels in self.val_batches:
            tally.add(self.wrapped(_layout(images)), labels)
        tally.check(epoch)  # the last step of an epoch can break the weights after the last training loss
        self.answers = tally.answers()
        return tally.means()

    def remember_if_best(self, run: Run) -> None:
        if run.best is run.history[-1]:
            self._remember()
            self.best_answers = self.answers

    def _remember(self) -> None:
        self.best_state = {name: t.detach().clone() for name, t in self.model.state_dict().items()}

    def restore_best(self) -> None:
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.load_state_dict(self.best_state)
        self.model.eval()


class _Tally:
    """Sums over samples. A mean of batch means would weigh the pictures of a short last batch too much.

    The sums stay on the device: asking a GPU for a number in every step makes it wait for the CPU.
    """

    def __init__(self, accelerator: Accelerator, keeps_answers: bool = False) -> None:
        self.accelerator, self.seen = accelerator, 0
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keeps_answers else None
        self.loss = torch.zeros((), device=accelerator.device)
        self.right = torch.zeros((), dtype=torch.long, device=accelerator.device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        # gather_for_metrics drops the samples with which accelerate fills up the last batch of several processes.
        logits, labels = self.accelerator.gather_for_metrics((logits, labels))
        self.loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        self.right += (logits.argmax(1) == labels).sum()
        self.seen += len(labels)
        if self.kept is not None:
            self.kept.append((logits.float().softmax(1).cpu(), labels.cpu()))

    def check(self, epoch: int) -> None:
        value = self.loss.item()  # a sum that was once infinite or NaN stays so
        if not math.isfinite(value):
            raise _NotANumber(value, epoch)

    def means(self) -> tuple[float, float]:
        return self.loss.item() / self.seen, self.right.item() / self.seen

    def answers(self) -> tuple[Tensor, Tensor] | None:
        """Probabilities ``(N, C)`` and labels ``(N,)`` of all samples, if they were kept."""
        if not self.kept:
            return None
        probabilities, labels = zip(*self.kept, strict=True)
        return torch.cat(probabilities), torch.cat(labels)


def _layout(images: Tensor) -> Tensor:
    if images.device.type == "mps" or images.ndim != 4:  # activations behind a pooling have no height and width
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _group_schedule(start: int, per_epoch: int, epochs: int, plan: Plan):  # noqa: ANN202
    steps = per_epoch * epochs
    warmup = round(plan.strategy.warmup * steps)
    return lambda step: rate_factor(step, start * per_epoch, steps, warmup)


def _accelerator(device: str | None) -> Accelerator:
    if device not in (None, "cpu", "cuda", "mps"):
        raise CourseError(f"device={device!r} is unknown: give 'cuda', 'mps' or 'cpu', or None for the best there is.")
    cuda = device in (None, "cuda") and torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise CourseError(
            "device='cuda' was asked for and torch sees no GPU; `course doctor` says more. Use device=None."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise CourseError("device='mps' was asked for and this is not a Mac whose GPU torch can use. Use device=None.")
    precision = "no"
    if cuda:
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # accelerate keeps its state for the whole process and refuses another device or precision later.
    _forget_other_device(device, precision)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=cuda),
    )


def _forget_other_device(device: str | None, precision: str) -> None:
    from accelerate.state import AcceleratorState, PartialState

    state = AcceleratorState._shared_state
    if not state or PartialState().num_processes > 1:
        return
    other_device = PartialState().device.type != (device or best_device())
    if other_device or AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every generator for the block, and put all of them back where the caller had them."""
    before = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
