"""The training loop: one call for every strategy, on a CPU, a GPU or several processes.

:func:`train_epochs` is the loop that everybody writes, with the details that are easily forgotten. :func:`fit` prepares
what it needs (:mod:`course_utils.engine.setup`: device, precision, processes, memory, cached inputs) and attaches what
goes along with it (:mod:`course_utils.engine.hooks`: best weights, log, checkpoint, early stop, progress).
:func:`simple_fit` is the same on one CPU without any of that, to be read in a lesson.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from course_utils.common.errors import CourseError
from course_utils.common.state import generators_put_back
from course_utils.engine.first_batch import check_call
from course_utils.engine.history import EpochRecord, Run, TrainingDiverged, TrainingStopped
from course_utils.engine.hooks import call, check_hooks, own_hooks
from course_utils.engine.memory import OutOfMemory, too_little_memory
from course_utils.engine.metrics import LossIsNoNumber, macro_f1
from course_utils.engine.options import FitOptions
from course_utils.engine.processes import layers_synchronised
from course_utils.engine.run_log import let_go
from course_utils.engine.sampling import batches_of
from course_utils.engine.setup import Setup, prepare
from course_utils.feature_extraction import set_learning, train_mode
from course_utils.fine_tuning import Strategy, make_schedule, parameter_groups


def train_epochs(run: Run, model: nn.Module, setup: Setup, hooks: Sequence[Any]) -> None:
    """Train until all epochs are done or a hook ends it; ``run.history`` gets one record per epoch."""
    learning = None
    for epoch in range(len(run.history), setup.options.epochs):  # a resumed run has some epochs already
        if run.stopped != "running":  # a hook ended it
            return
        start = time.perf_counter()

        # Which stages learn is a function of the epoch. `network` is the model, wrapped for gradients of several
        # processes, and `bare` the same without; with cached activations they are the part behind the border.
        if setup.plan.learning_at(epoch) != learning:
            learning = setup.plan.learning_at(epoch)
            set_learning(model, learning)
            network, bare = setup.networks(model)

        def forward_and_backward(images: Tensor, labels: Tensor, share: float, network: nn.Module = network) -> Tensor:
            logits = setup.forward(network, images)
            loss = setup.loss(logits, labels) * share
            setup.accelerator.backward(loss)
            return logits.detach()

        # Train. Frozen stages stay in eval mode, or their BatchNorm statistics would move.
        train_mode(model, setup.plan.update_statistics)
        metrics = setup.metrics()  # plain cross-entropy and accuracy, over samples
        for images, labels in setup.train.of_epoch(epoch):
            pictures, targets = setup.mix(images, labels)  # as they are, without MixUp or CutMix
            logits = setup.memory.in_pieces(forward_and_backward, pictures, targets)  # in one, unless memory is short
            setup.optimizer.step()  # left out by the scaling of float16 where a gradient is too large for it
            setup.schedule.step()
            setup.optimizer.zero_grad(set_to_none=True)
            setup.average.update(model)
            metrics.add(logits, labels)
        train_loss, train_accuracy = metrics.means()
        setup.check_scaling()

        with setup.average.in_place(model):  # of the weights over the last steps, if it is asked for
            val_loss, val_accuracy, val_f1 = validate(run, model, bare, setup)
            seconds = time.perf_counter() - start
            record = EpochRecord(
                epoch, tuple(learning), train_loss, train_accuracy, val_loss, val_accuracy, seconds, val_f1
            )
            run.history.append(record)
            call(hooks, "on_epoch_end", run, model)  # the first of them keeps the best weights
    if run.stopped == "running":
        run.stopped = "finished"


def validate(run: Run, model: nn.Module, network: nn.Module, setup: Setup) -> tuple[float, float, float | None]:
    """Return loss, accuracy, and macro F1 where it chooses the epoch, on the validation split.

    With log="full", or where the macro F1 is needed, ``run.answers`` gets the probabilities.
    """
    model.eval()
    by_f1 = setup.options.choose_by == "macro_f1"
    metrics = setup.metrics(keep_answers=by_f1 or setup.options.log == "full")

    def forward(images: Tensor, _labels: Tensor, _share: float) -> Tensor:
        return setup.forward(network, images)

    with torch.no_grad():
        for images, labels in setup.val.of_epoch(0):  # the same pictures in the same order, whatever the epoch
            metrics.add(setup.memory.in_pieces(forward, images, labels), labels)
    means, run.answers = metrics.means(), metrics.answers()
    return *means, macro_f1(*run.answers) if by_f1 else None


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    strategy: Strategy,
    options: FitOptions | None = None,
    *,
    hooks: Sequence[Any] = (),
    **keywords: Any,
) -> Run:
    """Train a model in place, by a strategy, and return the record of the run.

    Parameters
    ----------
    model
        Network with a head for the classes of `train`, usually from ``strategy.starting_model(...)``; not yet frozen.
    train, val
        Data sets of ``(image, label)``: float ``(3, H, W)`` and int; or caches of activations of both
        (:mod:`course_utils.engine.activation_cache`). `val` only chooses the best epoch.
    strategy
        First epoch and learning rate of every stage.
    options
        See :class:`~course_utils.engine.options.FitOptions`: epochs, batch_size, seed, device, resume, ….
    hooks
        Objects with one of the methods that :mod:`course_utils.engine.hooks` lists, called in this order, after those
        of ``fit`` itself.
    **keywords
        Single options by their names: ``fit(model, train, val, FULL, epochs=5)``.

    Returns
    -------
    Run
        One record per epoch. The model has the weights of the best epoch and is in eval mode, on its device.

    Raises
    ------
    CourseError
        For arguments out of range; for a checkpoint that is damaged or of another call; when the memory is too small
        even for one picture at a time. (Where it is too small for a batch, that is a warning, and the batch is computed
        in pieces, see :mod:`course_utils.engine.memory`.)
    TrainingDiverged
        When the loss becomes NaN or infinite; the model has its best weights so far.
    TrainingStopped
        After a Stop (Ctrl-C, *Interrupt Kernel*): a ``KeyboardInterrupt`` with the run so far as ``.run``. The model
        has its best weights, and with ``resume=True`` the same call continues there.
    """
    options = FitOptions.of(options, keywords)
    check_hooks(hooks)
    run = Run(strategy, strategy.plan(model), options.seed)
    _LAST[:] = [run]
    with generators_put_back(options.seed):
        check_call(model, train, val, options)
        run.plan.warn_if_too_short(options.epochs)
        error = _run_to_its_end(run, model, train, val, options, hooks)
    # Raised here, because an error that is raised while another one is handled keeps that one's traceback, and with it
    # every tensor that was in use.
    if error is not None:
        raise error
    return run


_LAST: list[Run] = []


def last_run() -> Run | None:
    """Return the run of the last call of :func:`fit` in this process, even if it was stopped; None before."""
    return _LAST[0] if _LAST else None


def _run_to_its_end(
    run: Run, model: nn.Module, train: Dataset, val: Dataset, options: FitOptions, hooks: Sequence[Any]
) -> BaseException | None:
    """Prepare, train and tidy up; return the error to raise, or None."""
    try:
        setup = prepare(model, train, val, run.plan, options)
    except KeyboardInterrupt:
        run.stopped = "interrupted"
        model.eval()
        clear_device_cache(garbage_collection=True)
        return TrainingStopped(
            "Stopped while the frozen stages ran over the pictures, before the first epoch; the same call begins anew.",
            run,
        )
    except torch.OutOfMemoryError:  # another program may have the GPU
        run.stopped = "failed"
        clear_device_cache(garbage_collection=True)
        return CourseError(
            "The memory of the GPU is too small for the network, or for a batch through its frozen stages. Look for "
            "other programs and notebooks that use it (nvidia-smi), or give device='cpu'."
        )
    run.cached = setup.inputs.border
    try:
        hooks = [*own_hooks(run, model, train, val, setup), *hooks]
    except BaseException:  # a checkpoint that cannot be used, or a Stop
        let_go(run.folder)
        raise
    error: BaseException | None = None
    try:
        call(hooks, "on_train_begin", run, model)
        with layers_synchronised(model, setup.group):
            train_epochs(run, model, setup, hooks)
    except KeyboardInterrupt:
        run.stopped, error = "interrupted", TrainingStopped("", run)
    except LossIsNoNumber as trouble:
        run.stopped, error = "diverged", TrainingDiverged(f"{trouble} {setup.advice(len(run.history))}", run)
    except (OutOfMemory, torch.OutOfMemoryError) as trouble:
        run.stopped, error = "failed", too_little_memory(setup.group, getattr(trouble, "pictures", None))
    except BaseException as trouble:
        run.stopped, run.error = "failed", f"{type(trouble).__name__}: {trouble}"
        raise
    finally:
        run.error = str(error) if isinstance(error, CourseError) else run.error
        _put_in_order(run, model, setup, hooks)
    if isinstance(error, TrainingStopped):
        error.args = (_stopped_message(run, options),)
    return error


def _put_in_order(run: Run, model: nn.Module, setup: Setup, hooks: Sequence[Any]) -> None:
    try:
        if run.stopped in ("interrupted", "failed"):
            call(hooks, "on_stop", run, model)
        call(hooks, "on_train_end", run, model)
    finally:  # a second Stop comes in here
        let_go(run.folder)
        setup.release()
        if run.stopped not in ("finished", "early"):  # leave the memory to whatever is done instead
            clear_device_cache(garbage_collection=True)


def _stopped_message(run: Run, options: FitOptions) -> str:
    weights = f"has the weights of epoch {run.best.epoch + 1}, the best so far" if run.best else "is as it came"
    where = f"Stopped in epoch {min(len(run.history) + 1, options.epochs)} of {options.epochs}: the model {weights}"
    if not options.resume:
        return f"{where}; the same call begins anew (fit(..., resume=True) would go on), last_run() has the history."
    if run.history and run.folder is not None:
        return f"{where}; the same call of fit takes the run {run.folder.name} up again."
    return f"{where}; the same call begins anew, because there is no checkpoint yet."


def simple_fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    strategy: Strategy,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Train a model in place by a plain loop, and return validation accuracy and loss of every epoch.

    On one CPU process it comes to the weights that :func:`fit` comes to, bit by bit (without augmentation).

    Parameters
    ----------
    model, train, val, strategy, epochs, batch_size, seed
        Same as in :func:`fit`.
    """
    plan = strategy.plan(model)
    steps_per_epoch = len(batches_of(range(len(train)), batch_size, training=True))

    # All parameter groups exist from the first step; the rate of each is a function of the step.
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(model, plan))
    schedule = make_schedule(optimizer, plan, epochs, steps_per_epoch)

    history, best = [], {}
    with generators_put_back(seed):  # dropout
        for epoch in range(epochs):
            set_learning(model, plan.learning_at(epoch))  # requires_grad for those, no gradients for the others
            train_mode(model, plan.update_statistics)  # model.train(), but frozen stages stay in eval mode
            order = np.random.default_rng([seed, epoch]).permutation(len(train)).tolist()
            batches = batches_of(order, batch_size, training=True)  # the last may be short, but not a single picture
            for images, labels in DataLoader(train, batch_sampler=batches):
                logits = model(images.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

            model.eval()
            right, total_loss = 0, torch.zeros(())
            with torch.no_grad():
                for images, labels in DataLoader(val, batch_size):
                    logits = model(images.contiguous(memory_format=torch.channels_last))
                    right += (logits.argmax(1) == labels).sum().item()
                    total_loss += F.cross_entropy(logits, labels, reduction="sum")
            # Over samples: a mean of batch means would weigh the pictures of a short last batch too much.
            history.append((right / len(val), total_loss.item() / len(val)))

            if max(history, key=lambda entry: (entry[0], -entry[1])) is history[-1]:  # the first of equal ones
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best)
    return history
