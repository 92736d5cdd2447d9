"""Hooks: behaviours that are attached to the training loop, one per class.

A hook is any object with one or more of these methods. Give your own to ``fit(..., hooks=[…])``.

=================================  ================================================================================
``on_train_begin(run, model)``     before the first epoch
``on_epoch_end(run, model)``       after each epoch: ``run.history[-1]`` is its record, the model has its weights
``on_stop(run, model)``            after a Stop or an error: the model is as the loop left it
``on_train_end(run, model)``       at every end: ``run.stopped`` is the reason, the model has its best weights
=================================  ================================================================================

A hook ends the training by setting ``run.stopped`` to a word other than ``"running"``. It must change neither weights
nor the global random generators.

>>> class Report:
...     def on_epoch_end(self, run, model):
...         print(f"epoch {run.history[-1].epoch + 1}: {run.history[-1].val_accuracy:.1%}")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from course_utils.common.errors import CourseError
from course_utils.common.progress import progress
from course_utils.common.state import generator_states, set_generator_states
from course_utils.engine.checkpoints import Checkpoint, Checkpoints, describe_call, find_checkpoint
from course_utils.engine.history import EpochRecord, Run, best_epoch
from course_utils.engine.run_log import RunLog, hold, let_go
from course_utils.engine.setup import Setup
from course_utils.feature_extraction import same_bits

EVENTS = ("on_train_begin", "on_epoch_end", "on_stop", "on_train_end")


def check_hooks(hooks: Sequence[Any]) -> None:
    """Raise a :class:`CourseError` for an object that has no method of a hook."""
    for hook in hooks:
        if isinstance(hook, type) or not any(callable(getattr(hook, event, None)) for event in EVENTS):
            what = f"the class {hook.__name__}" if isinstance(hook, type) else f"a {type(hook).__name__}"
            raise CourseError(f"hooks has {what}: give objects with one of the methods {', '.join(EVENTS)}.")


def call(hooks: Sequence[Any], event: str, run: Run, model: nn.Module) -> None:
    """Call a method of all hooks that have it, in order."""
    for hook in hooks:
        if method := getattr(hook, event, None):
            method(run, model)


class BestWeights:
    """Keeps a copy of the best weights, and puts them back at the end; before the first epoch the given ones count."""

    # Best epoch, its weights, its answers; no epoch and no copy until the training begins.
    kept: tuple[EpochRecord | None, dict[str, Tensor] | None, tuple[Tensor, Tensor] | None] = (None, None, None)

    def on_train_begin(self, run: Run, model: nn.Module) -> None:
        """Copy the weights as they are."""
        self._keep(run, model)

    def on_epoch_end(self, run: Run, model: nn.Module) -> None:
        """Copy the weights if there were no better ones before."""
        if run.best is run.history[-1]:
            self._keep(run, model)

    def on_train_end(self, run: Run, model: nn.Module) -> None:
        """Put the best weights back, in eval mode."""
        model.load_state_dict(self.state(run, model))
        model.eval()

    def _keep(self, run: Run, model: nn.Module) -> None:
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        # One statement, because a Stop may come between two.
        self.kept = (run.best, state, run.answers)

    def state(self, run: Run, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights of the best epoch."""
        best, state, _ = self.kept
        # A Stop may come behind the best epoch and before its weights are copied: then the model has them itself.
        return state if state is not None and best is run.best else model.state_dict()

    def answers(self, run: Run) -> tuple[Tensor, Tensor] | None:
        """Return the answers of the best epoch's validation, if they are kept."""
        best, _, answers = self.kept
        return answers if best is run.best else run.answers


class EarlyStop:
    """Ends the training after `patience` epochs (at least 1) without a better one."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(self, run: Run, model: nn.Module) -> None:
        """Check the history of a resumed run."""
        self.on_epoch_end(run, model)

    def on_epoch_end(self, run: Run, _model: nn.Module) -> None:
        """End the training if the best epoch is too long ago."""
        if run.history and run.history[-1].epoch - run.best.epoch >= self.patience:
            run.stopped = "early"


class Progress:
    """Shows a bar with the number of finished epochs, of `epochs` in all."""

    bar: tqdm | None = None

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_begin(self, run: Run, _model: nn.Module) -> None:
        """Show the bar."""
        self.bar = progress(range(len(run.history), self.epochs), run.strategy.name)

    def on_epoch_end(self, _run: Run, _model: nn.Module) -> None:
        """Move it."""
        self.bar.update()

    def on_train_end(self, _run: Run, _model: nn.Module) -> None:
        """Remove it."""
        if self.bar is not None:
            self.bar.close()


class LogRun:
    """Writes the run's folder while the training goes on; `best` has the weights."""

    def __init__(self, log: RunLog, best: BestWeights) -> None:
        self.log, self.best = log, best

    def on_epoch_end(self, run: Run, model: nn.Module) -> None:
        """Write the record of the epoch."""
        self.log.epoch(run, self.best.state(run, model))

    def on_train_end(self, run: Run, model: nn.Module) -> None:
        """Write the end of the run."""
        self.log.end(run, self.best.state(run, model), self.best.answers(run))


class KeepCheckpoint:
    """Continues from the checkpoint `found`, if there is one, and writes one after every epoch."""

    def __init__(self, checkpoints: Checkpoints, found: Checkpoint | None, setup: Setup, best: BestWeights) -> None:
        self.checkpoints, self.found, self.setup, self.best = checkpoints, found, setup, best
        self.epochs_tried = 0  # number of epochs in the last checkpoint that was written, or could not be

    def on_train_begin(self, run: Run, model: nn.Module) -> None:
        """Restore the state after the last finished epoch."""
        if self.found is None:
            return
        history, state, self.found = self.found.header.history, self.found.state, None
        device = self.setup.group.device
        best = {name: tensor.to(device) for name, tensor in (state["model"] | state["best"]).items()}
        model.load_state_dict(state["model"])
        self.setup.optimizer.load_state_dict(state["optimizer"])
        self.setup.schedule.load_state_dict(state["schedule"])
        if state["scaler"] is not None:
            self.setup.accelerator.scaler.load_state_dict(state["scaler"])
        self.setup.memory.count = state["pieces"]
        self.setup.average.load(state["average"])
        set_generator_states(state["random"][self.setup.group.rank])
        self.epochs_tried = len(history)
        # One statement, because a Stop may come between two.
        run.history, run.resumed, self.best.kept = history, len(history), (best_epoch(history), best, state["answers"])

    def on_epoch_end(self, run: Run, model: nn.Module) -> None:
        """Write the checkpoint of the epoch."""
        self._write(run, model, gather_object([generator_states()]))  # in every process, also in those without a file

    def on_stop(self, run: Run, model: nn.Module) -> None:
        """Write the checkpoint of a finished epoch that has none yet: the same call will look for its weights."""
        if len(run.history) > self.epochs_tried:
            # The others may have been stopped elsewhere, so nothing is gathered. All processes draw the same numbers.
            self._write(run, model, [generator_states()] * self.setup.group.world_size)

    def _write(self, run: Run, model: nn.Module, generators: list[dict[str, Any]]) -> None:
        if self.checkpoints.path is not None:
            best = self.best.state(run, model)
            self.checkpoints.write(run.history, self._state(run, model, best) | {"random": generators}, best)
        self.epochs_tried = len(run.history)

    def on_train_end(self, run: Run, _model: nn.Module) -> None:
        """Delete the checkpoint of a run that came to its end. A diverged run would diverge again."""
        if self.checkpoints.path is not None and run.stopped in ("finished", "early", "diverged"):
            self.checkpoints.delete()

    def _state(self, run: Run, model: nn.Module, best: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the next epoch depends on beside generators; which stages learn follows from its number."""
        setup = self.setup
        weights = setup.average.learning_weights(model)
        return {
            "model": weights,
            "best": {name: t for name, t in best.items() if not same_bits(t, weights[name])},
            "answers": self.best.answers(run),
            "optimizer": setup.optimizer.state_dict(),
            "schedule": setup.schedule.state_dict(),
            "scaler": None if setup.accelerator.scaler is None else setup.accelerator.scaler.state_dict(),
            "pieces": setup.memory.count,
            "average": setup.average.state(model),
        }


def own_hooks(run: Run, model: nn.Module, train: Dataset, val: Dataset, setup: Setup) -> list[Any]:
    """Return the hooks that the options ask for; best weights first, since the others use them."""
    options, accelerator, best = setup.options, setup.accelerator, BestWeights()
    first = setup.is_first_process
    checkpoints = found = None
    if options.resume:
        described = describe_call(model, train, val, run.plan, setup.settings, setup.machine) if first else {}
        checkpoints = Checkpoints(described, model)
        found = find_checkpoint(checkpoints, setup)
    level = options.log if first else "off"
    run.folder = found.path.parent if found and first else None
    log = RunLog(level, setup.settings, run.plan, model, train, val, accelerator.device, run.folder)
    if log.folder is None:
        let_go(run.folder)
    elif run.folder is None:
        hold(log.folder)
    run.folder = log.folder
    hooks = [best, LogRun(log, best)]
    if checkpoints:
        if level != "off":
            checkpoints.begin(run.folder, found)
        hooks.append(KeepCheckpoint(checkpoints, found, setup, best))
    if options.patience:
        hooks.append(EarlyStop(options.patience))
    return [*hooks, Progress(options.epochs)] if accelerator.is_local_main_process else hooks
