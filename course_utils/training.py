"""The training loop: one call for every strategy, on a CPU, a GPU or several processes.

``fit`` is the loop that everybody writes, with the details that are easily forgotten: frozen stages stay in eval
mode, accuracy is counted over samples, the best weights on the validation split come back, a Stop keeps what was
learned, the same seed gives the same weights to the last bit, and what was done is on disk afterwards
(:mod:`course_utils.engine.run_log`). With ``resume=True`` a run that was stopped or killed goes on where it was
(:mod:`course_utils.engine.checkpoints`). A batch that the memory is too small for is computed in pieces. Moving to a
GPU, mixed precision and several processes are accelerate's work (https://huggingface.co/docs/accelerate).
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import generator_states, generators_put_back, set_generator_states
from course_utils.engine.checkpoints import (
    BUSY,
    Checkpoints,
    Found,
    describe_call,
    read_checkpoint,
)
from course_utils.engine.inputs import CacheOptions, Inputs, inputs_for, options_of
from course_utils.engine.loading import workers_for
from course_utils.engine.processes import Batches, Team, acting_as_one, gathered, loss_of_share, summed
from course_utils.engine.run_log import LEVELS, EpochRecord, RunLog, best_epoch, history_table
from course_utils.engine.sampling import BalancedOrder, SeededDraws, SeededOrder, seeded_draws
from course_utils.feature_extraction import same_bits, set_learning, train_mode
from course_utils.fine_tuning import Plan, Strategy, parameter_groups, rate_factor
from course_utils.pretrained_models import last_layer
from course_utils.settings import best_device

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
        Where the log is, see :mod:`course_utils.engine.run_log`; None without one.
    resumed
        How many of the epochs were there already when this call of ``fit`` took the run up.
    cached
        The border in front of which activations came from a cache; None if every epoch went through all stages.
    """

    strategy: Strategy
    plan: Plan
    seed: int
    history: list[EpochRecord] = field(default_factory=list)
    stopped: str = "finished"
    folder: Path | None = None
    resumed: int = 0
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
    num_workers: int | str = 0,
    device: str | None = None,
    log: str = "full",
    resume: bool | str | Path = False,
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
        often on average (:class:`~course_utils.engine.sampling.BalancedOrder`). The data set needs ``labels``. Together
        with class weights the rare classes count twice.
    num_workers
        Processes that load pictures. 0 is right for small sets and for data that is in memory; ``"auto"`` goes by a
        rule (:mod:`course_utils.engine.loading`). What is learned does not depend on it.
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``; None takes the best there is. On CUDA: mixed precision (bfloat16, or
        float16 where that is missing), channels_last, pinned memory and copies that do not block.
    log
        What is kept of the run in a folder of its own (:mod:`course_utils.engine.run_log`): ``"full"``; ``"light"``,
        without weights, report and figures, for comparisons of many runs; ``"off"``, nothing. The weights that come out
        are the same, and a folder that cannot be written is a warning, no error.
    resume
        True keeps a checkpoint in the run's folder after every epoch, and begins by looking for one: the same call
        again, after a Stop or a killed kernel, goes on there and comes to the weights and the history of the unbroken
        run, bit by bit. An epoch that was cut off begins anew. A run that came to its end has no checkpoint: the same
        call again is a new run. The name or folder of a run (``course runs``) takes up that one. See
        :mod:`course_utils.engine.checkpoints`.
    cache
        Whether the frozen stages run once, and their activations come from disk in every epoch
        (:mod:`course_utils.engine.activation_cache`). ``"auto"``: where the border stays the same, nothing is augmented
        at random, and the data are of the course; ``"on"``: an error where it cannot be; ``"off"`` or None: never;
        :class:`~course_utils.engine.inputs.CacheOptions` for augmented views, half precision or another folder. Losses
        are the same to about 1e-6. `train` and `val` may also be caches themselves.

    Returns
    -------
    Run
        One record per epoch. The model has the weights of the best epoch and is in eval mode, on its device.

    Raises
    ------
    CourseError
        For arguments that cannot be right; for a checkpoint that is damaged or of another call; when the memory is too
        small even for one picture at a time. Where it is too small for a batch, a warning says so, and the batch is
        computed in pieces: the gradient and the learning rate stay those of the whole batch, but BatchNorm in stages
        that learn then sees the pictures of a piece only. (Not with several processes.)
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
        "resume": resume if isinstance(resume, bool) else str(resume),
    }
    trouble: CourseError | None = None
    caching = options_of(cache)
    with generators_put_back(seed):
        _check(model, train, val, epochs, batch_size, patience, label_smoothing, class_weights)
        _check_log(log, resume)
        _check_workers(num_workers)
        order = _order(train, seed, oversample)
        target = _accelerator(device).device
        try:
            inputs = inputs_for(caching, model, train, val, plan, epochs=epochs, seed=seed, device=target)
        except KeyboardInterrupt:
            return _stopped_while_caching(run, model)
        settings["cache"], run.cached = inputs.facts(caching), inputs.border
        trainer = _Trainer(model, inputs, order, plan, epochs, batch_size, num_workers, device)
        trainer.loss = _loss(class_weights, label_smoothing, trainer.accelerator.device)
        checkpoints = found = None
        if resume:
            checkpoints = Checkpoints(describe_call(model, train, val, strategy, settings, trainer.machine), model)
            found = trainer.find(checkpoints, resume)
        level = log if trainer.accelerator.is_main_process else "off"
        folder = found.path.parent if found else None
        run_log = RunLog(level, settings, plan, model, train, val, trainer.accelerator.device, folder)
        # The answers of all processes are gathered, so all have to keep them although one writes the log.
        run.folder, trainer.keeps_answers = run_log.folder, log == "full"
        if checkpoints and level != "off":
            checkpoints.begin(run.folder, found)
        try:
            if found:
                run.history, run.resumed = found.heading.history, len(found.heading.history)
                trainer.load(found.state)
            with acting_as_one(model, trainer.team):
                _train_epochs(run, trainer, run_log, checkpoints, epochs, patience)
        except KeyboardInterrupt:
            run.stopped = "interrupted"
        except _NotANumber as error:
            run.stopped, trouble = "diverged", TrainingDiverged(_advice(error, plan), run)
        except (_OutOfMemory, torch.OutOfMemoryError):
            run.stopped, trouble = "failed", CourseError(_smaller(trainer))
        except BaseException as error:
            run.stopped, run_log.error = "failed", f"{type(error).__name__}: {error}"
            raise
        finally:
            run_log.error = str(trouble) if trouble else run_log.error
            try:
                trainer.restore_best()
                run_log.end(run, *trainer.best)
                if checkpoints:
                    checkpoints.end(run.stopped)
            finally:  # a second Stop comes in here
                BUSY.discard(run.folder)
                trainer.release(run.stopped)
        # Out here, because an error that is raised while another one is handled keeps that one, its traceback, and
        # with it every tensor that was in use.
        if trouble:
            raise trouble
    return run


def _stopped_while_caching(run: Run, model: nn.Module) -> Run:
    """Nothing was learned yet, and half a cache is none: there is nothing to take up."""
    run.stopped = "interrupted"
    model.eval()
    clear_device_cache(garbage_collection=True)
    print("Stopped while the frozen stages ran over the pictures, before the first epoch. The same call begins anew.")
    return run


def _train_epochs(
    run: Run,
    trainer: _Trainer,
    run_log: RunLog,
    checkpoints: Checkpoints | None,
    epochs: int,
    patience: int | None,
) -> None:
    todo = range(len(run.history), epochs)
    for epoch in progress(todo, run.strategy.name) if trainer.accelerator.is_local_main_process else todo:
        if _no_better(run, patience):
            break
        record = trainer.epoch(epoch)
        history = [*run.history, record]
        best = trainer.as_it_is() if best_epoch(history) is record else trainer.best
        if checkpoints and checkpoints.path:
            checkpoints.write(history, trainer.state(best), best.state)
        # In one statement, because a Stop may come between two: the best weights belong to an epoch of the history.
        run.history, trainer.best = history, best
        run_log.epoch(run, best.state)
    if _no_better(run, patience):
        run.stopped = "early"


def _no_better(run: Run, patience: int | None) -> bool:
    return bool(patience and run.history) and run.history[-1].epoch - run.best.epoch >= patience


class _NotANumber(ArithmeticError):
    pass


class _OutOfMemory(Exception):
    pass


def _smaller(trainer: _Trainer) -> str:
    where = trainer.accelerator.device.type
    if trainer.accelerator.num_processes > 1:
        return (
            f"A process ran out of memory ({where}). With several processes a batch is not split any further: give a "
            "smaller batch_size."
        )
    return (
        f"There is not enough memory ({where}) to train this model, even one picture at a time. Take smaller "
        "pictures or a smaller model, let fewer stages learn (LAST_BLOCK, FEATURE_EXTRACTION), or close other programs."
    )


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
        image, label = seeded_draws(dataset, 0)[0]  # a look that moves no generator
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


def _check_log(log: str, resume: bool | str | Path) -> None:
    if log not in LEVELS:
        raise CourseError(f"log={log!r} is unknown: give one of {', '.join(LEVELS)}.")
    if not isinstance(resume, bool | str | Path) or resume == "":
        raise CourseError(f"resume={resume!r}: give True, False, or the name or folder of a run (`course runs`).")
    if resume and log == "off":
        raise CourseError(
            "resume keeps its checkpoint in the run's folder, and with log='off' there is none. Use log='light'."
        )


def _check_workers(num_workers: int | str) -> None:
    if num_workers != "auto" and (not isinstance(num_workers, int) or num_workers < 0):
        raise CourseError(f"num_workers={num_workers!r}: give a number from 0 upwards, or 'auto'.")


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


class _Best(NamedTuple):
    """The weights of the best epoch, and what they answered in its validation: probabilities (N, C), labels (N,)."""

    state: dict[str, Tensor]
    answers: tuple[Tensor, Tensor] | None = None


class _Trainer:
    """What lives as long as one call of fit: the wrapped model, the optimizer, the best weights."""

    loss: nn.CrossEntropyLoss
    keeps_answers = False
    answers: tuple[Tensor, Tensor] | None = None  # of the last validation, on the CPU
    pieces = 1  # in how many a batch is computed; more where the memory is short

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        order: SeededOrder,
        plan: Plan,
        epochs: int,
        batch_size: int,
        num_workers: int | str,
        device: str | None,
    ) -> None:
        self.accelerator = accelerator = _accelerator(device)
        self.team = Team(accelerator)
        self.model, self.inputs, self.plan = model, inputs, plan
        cuda = accelerator.device.type == "cuda"
        if accelerator.device.type != "mps":  # slower there
            model.to(memory_format=torch.channels_last)
        model.to(accelerator.device)
        self.pictures = seeded_draws(inputs.train, order.seed)
        loader = {"batch_size": batch_size, "team": self.team, "pin_memory": cuda}
        self.train_batches, self.val_batches = (
            Batches(data, indices, num_workers=workers_for(data)[0] if num_workers == "auto" else num_workers, **loader)
            for data, indices in ((self.pictures, order), (inputs.val, range(len(inputs.val))))
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
        self.best = self.as_it_is()  # should not even one epoch be completed, the model goes back to how it came

    @property
    def machine(self) -> dict[str, Any]:
        """On what is computed; on another one the last bits differ."""
        accelerator = self.accelerator
        return {
            "device": accelerator.device.type,
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
        }

    def epoch(self, epoch: int) -> EpochRecord:
        start = time.perf_counter()
        self._set_learning(self.plan.learning_at(epoch))
        self.train_batches.set_epoch(epoch)
        if isinstance(self.pictures, SeededDraws):  # which the loader only sees to where there is one process
            self.pictures.set_epoch(epoch)
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
        self.learner = self.inputs.learner(bare)
        self.wrapped = self.accelerator.prepare_model(self.learner)

    def _train(self, epoch: int) -> tuple[float, float]:
        train_mode(self.model)
        tally = _Tally(self.team)
        for step, (images, labels) in enumerate(self.train_batches):
            logits = self._in_pieces(self._gradients, images, labels)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            tally.add(logits, labels)
            if step % CHECK_EVERY == 0:
                tally.check(epoch)
        tally.check(epoch)
        return tally.means()

    def _validate(self, epoch: int) -> tuple[float, float]:
        self.model.eval()
        tally = _Tally(self.team, keeps_answers=self.keeps_answers)
        with torch.no_grad():
            for images, labels in self.val_batches:
                tally.add(self._in_pieces(self._logits, images, labels), labels)
        tally.check(epoch)  # the last step of an epoch can break the weights after the last training loss
        self.answers = tally.answers()
        return tally.means()

    # --- a batch that the memory may be too small for

    def _in_pieces(self, compute: Callable[..., Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """Compute the logits ``(N, C)`` of a batch, in twice as many pieces whenever the memory is too small."""
        while True:
            pieces = max(1, min(self.pieces, len(images)))  # of several processes, one may have nothing to do
            try:
                return compute(images.tensor_split(pieces), labels.tensor_split(pieces))
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                    raise
            # Only out here is the traceback gone, and with it the activations that filled the memory.
            self.optimizer.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            self._split(len(images))

    def _split(self, size: int) -> None:
        # Processes that wait for the gradient of one that begins its batch anew would wait for ever.
        if self.pieces >= size or self.accelerator.num_processes > 1:
            raise _OutOfMemory
        self.pieces *= 2
        warnings.warn(
            f"Not enough memory for {size} pictures: from now on a batch is computed in {self.pieces} pieces, "
            f"{math.ceil(size / self.pieces)} pictures at a time. A step still learns from {size} of them at the same "
            "rate.",
            stacklevel=7,
        )

    def _gradients(self, images: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Add up the gradients of the pieces; their sum is that of the mean loss over the whole batch."""
        weights = [self._weight(piece) for piece in labels]
        answers = []
        for image, label, weight in zip(images, labels, weights, strict=True):
            logits = self.wrapped(_layout(image))
            # Each piece counts by what is in it. The mean of their means would favour the pictures of small pieces.
            share = weight / sum(weights) if len(weights) > 1 else 1
            self.accelerator.backward(loss_of_share(self.loss, logits, label, self.team) * share)
            answers.append(logits.detach())
        return torch.cat(answers)

    def _weight(self, labels: Tensor) -> Tensor | int:
        """What the loss divides by to get a mean."""
        return len(labels) if self.loss.weight is None else self.loss.weight[labels].sum()

    def _logits(self, images: Sequence[Tensor], _labels: Sequence[Tensor]) -> Tensor:
        # Not through the wrapper: nothing has to be exchanged, and no process has to wait for another.
        return torch.cat([self.learner(_layout(piece)) for piece in images])

    # --- what outlives an epoch

    def as_it_is(self) -> _Best:
        """Copy the weights as they are now."""
        return _Best({name: t.detach().clone() for name, t in self.model.state_dict().items()}, self.answers)

    def restore_best(self) -> None:
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.load_state_dict(self.best.state)
        self.model.eval()

    def state(self, best: _Best) -> dict[str, Any]:
        """Collect all that the next epoch depends on. Which stages learn is not in it: that follows from the epoch."""
        weights, scaler = self.model.state_dict(), self.accelerator.scaler
        return {
            "model": weights,
            "best": {name: t for name, t in best.state.items() if not same_bits(t, weights[name])},
            "answers": best.answers,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "pieces": self.pieces,
            "random": generator_states(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state` was called, and empty what it gave."""
        self.model.load_state_dict(state["model"] | state["best"])
        self.answers = state["answers"]
        self.best = self.as_it_is()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.pieces = state["pieces"]
        set_generator_states(state["random"])
        state.clear()  # all of it is copied; a second model and optimizer in memory would be one too many

    def find(self, checkpoints: Checkpoints, resume: bool | str | Path) -> Found | None:
        """Look for a checkpoint; None if there is none. All processes find the same one."""
        paths = [checkpoints.find(resume) if self.accelerator.is_main_process else None]
        path = broadcast_object_list(paths)[0] if self.accelerator.num_processes > 1 else paths[0]
        found = None if path is None else read_checkpoint(path)
        self.accelerator.wait_for_everyone()  # of a complete run one process deletes it soon
        return found

    def release(self, stopped: str) -> None:
        """Let go of what only training needs, whoever still holds on to this object (a traceback, say)."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.optimizer.state.clear()
        self.best = _Best({})
        if stopped not in ("finished", "early"):  # the reader is there and wants to do something else
            clear_device_cache(garbage_collection=True)


class _Tally:
    """Sums over samples. A mean of batch means would weigh the pictures of a short last batch too much.

    The sums stay on the device: asking a GPU for a number in every step makes it wait for the CPU. Each process counts
    its own samples, each of which it has once; what is said about them is said about those of all.
    """

    def __init__(self, team: Team, keeps_answers: bool = False) -> None:
        self.team, self.seen = team, 0
        self.kept: list[tuple[Tensor, Tensor, range]] | None = [] if keeps_answers else None
        self.loss = torch.zeros((), device=team.device)
        self.right = torch.zeros((), dtype=torch.long, device=team.device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        part = self.team.part
        self.loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        self.right += (logits.argmax(1) == labels).sum()
        if self.kept is not None:
            places = range(self.seen + part.start, self.seen + part.stop)
            self.kept.append((logits.float().softmax(1).cpu(), labels.cpu(), places))
        self.seen += part.whole

    def check(self, epoch: int) -> None:
        # All processes have to come to the same conclusion, or those that go on wait for the one that stopped.
        value = summed(self.loss, self.team).item()  # a sum that was once infinite or NaN stays so
        if not math.isfinite(value):
            raise _NotANumber(value, epoch)

    def means(self) -> tuple[float, float]:
        loss, right = summed(self.loss, self.team).item(), summed(self.right, self.team).item()
        return loss / self.seen, right / self.seen

    def answers(self) -> tuple[Tensor, Tensor] | None:
        """Probabilities ``(N, C)`` and labels ``(N,)`` of all samples, if they were kept."""
        if not self.kept:
            return None
        probabilities, labels, places = zip(*self.kept, strict=True)
        places = [place for batch in places for place in batch]
        return tuple(gathered(torch.cat(rows), places, self.seen, self.team) for rows in (probabilities, labels))


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
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > 1 and not cuda and device is None:
        device = "cpu"  # accelerate brings processes together on CUDA, or on the CPU when it is told to use that
    precision = "no"
    if cuda:
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # accelerate keeps its state for the whole process and refuses another device or precision later.
    _forget_other_device(device, precision)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
    )
    if started > 1 and accelerator.num_processes == 1:
        raise CourseError(
            f"{started} processes were started, and this one would train a network of its own. Several processes meet "
            "on CUDA or on the CPU: use device=None or 'cpu'. The first call of fit in a process decides."
        )
    return accelerator


def _forget_other_device(device: str | None, precision: str) -> None:
    from accelerate.state import AcceleratorState, PartialState

    state = AcceleratorState._shared_state
    if not state or PartialState().num_processes > 1:
        return
    other_device = PartialState().device.type != (device or best_device())
    if other_device or AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state(reset_partial_state=True)
