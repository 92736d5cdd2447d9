"""``course train``: one network, one strategy, one call of ``fit``; on one process or on many.

course train photos/ --family vgg --strategy last-block           what `course ladder` found worth it
course train hymenoptera --strategy full --epochs 12 --augment light --test
course train --resume 3f9a                                        go on with a run that was stopped or killed
accelerate launch -m course_tools.photos.train_command photos/           the same on every GPU of a machine
torchrun --nproc-per-node 2 -m course_tools.photos.train_command photos/ the same without accelerate's questions
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from course_tools.photos.looks import count_look, looks_text
from course_utils.common.command_line import OneLineParser, at_least_one, exit_code, from_zero
from course_utils.common.errors import CourseError
from course_utils.common.files import write_text
from course_utils.datasets import Splits, in_memory_if_it_fits, open_dataset
from course_utils.engine.history import Run, TrainingStopped
from course_utils.engine.options import CHOOSE_BY
from course_utils.engine.pixel_store import training_pictures
from course_utils.engine.run_log import COMMAND_FILE
from course_utils.engine.runs import add_report, load_run
from course_utils.evaluation import evaluate, interval_text
from course_utils.fine_tuning import STRATEGIES, Strategy
from course_utils.pretrained_models import weights_entry
from course_utils.rate_finder import find_rate
from course_utils.settings import DATASETS, default_weights, load_settings
from course_utils.training import fit
from course_utils.transforms import eval_transform, train_transform


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``course train``."""
    parser = OneLineParser(prog="course train", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "data", nargs="?", help="pets, hymenoptera, a folder of photos, or a .csv file of files and labels"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--family", metavar="NAME", help="resnet, vgg, … : the network of the settings")
    which.add_argument("--model", metavar="NAME", help="a network by its name, such as resnet50")
    parser.add_argument("--strategy", default="progressive", metavar="NAME", help="default: progressive")
    parser.add_argument("--epochs", type=at_least_one, default=10, help="default 10")
    parser.add_argument("--batch-size", type=at_least_one, default=32, help="over all processes together (default 32)")
    parser.add_argument("--seed", type=from_zero, help="default: that of the settings")
    parser.add_argument("--augment", default="none", help="none (default), light or strong")
    scores = [name.replace("_", "-") for name in CHOOSE_BY]
    parser.add_argument("--choose-by", default=scores[0], choices=scores, help="score that chooses the best epoch")
    parser.add_argument("--patience", type=at_least_one, help="stop after so many epochs without a better one")
    parser.add_argument("--label-smoothing", type=float, default=0.0, metavar="SHARE", help="from 0 up to below 1")
    parser.add_argument("--oversample", action="store_true", help="draw every class equally often")
    parser.add_argument(
        "--workers", type=_workers, default="auto", help="processes that load pictures (default: by a rule)"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--precision", default="auto", help="auto (default), float32, bfloat16 or float16")
    parser.add_argument("--no-checkpoint", action="store_true", help="keep no checkpoint, and go on from none")
    parser.add_argument("--resume", metavar="NAME", help="go on with a run of `course runs`; all else as it was begun")
    parser.add_argument("--find-rate", action="store_true", help="sweep the learning rates first, and scale them all")
    parser.add_argument("--test", action="store_true", help="ask the test pictures at the end; do that once")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the training ended by itself.

    Each of several processes runs this; only the first one prints.
    """
    options = options_of(arguments)
    first = os.environ.get("RANK", "0") == "0"  # torchrun and accelerate number the processes that they start
    if not first:
        os.environ["COURSE_PROGRESS"] = "0"
    settings = load_settings(weights=default_weights(options.data))
    strategy = strategy_named(options.strategy)
    name = family_network(options.family, settings.models) if options.family else options.model
    name = name or settings.model
    entry = weights_entry(name)
    seed = settings.seed if options.seed is None else options.seed
    train_transform(entry, options.augment)  # complains of an unknown word before any work
    splits = open_dataset(options.data, seed=seed, cache=settings.cache, mirror=settings.mirror)
    splits = splits.with_transforms(None, eval_transform(entry))
    model = strategy.starting_model(name, len(splits.classes), seed=seed)
    if first:
        print(f"{splits.name}: {', '.join(splits.classes)}\n{splits.summary()}\n\n{name}, {strategy.name}", flush=True)
        print(f"{strategy.plan(model)}\n", flush=True)
    if options.find_rate:
        strategy = _found_rate(model, splits, strategy, options, seed, first)
    notify = None if first else lambda _: None
    try:
        run = fit(
            model,
            training_pictures(splits.train, entry, options.augment, epochs=options.epochs, share=0.5, notify=notify),
            in_memory_if_it_fits(splits.val, 0.5),
            strategy,
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=seed,
            choose_by=options.choose_by.replace("-", "_"),
            patience=options.patience,
            label_smoothing=options.label_smoothing,
            oversample=options.oversample,
            num_workers=options.workers,
            device=options.device,
            precision=options.precision,
            resume=options.resume or not options.no_checkpoint,
            hooks=[_KeepCommand(vars(options) | {"model": name, "family": None, "seed": seed, "resume": None})],
        )
    except KeyboardInterrupt as stop:
        if first:
            _print_stop(stop, splits, resumable=not options.no_checkpoint)
        raise
    if first:
        _print_run(run, splits)
    if options.test and first:
        report = evaluate(model, splits.test)
        add_report(run.folder, report)
        print(f"\nTest\n{report}")
        if run.folder is not None:
            looks = looks_text(count_look(settings.cache / "ladders", splits.test.paths, run.folder.name))
            if looks:
                print(looks)
    return 0


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a call; with ``--resume``, those with which that run was begun, where not given again."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.resume is None:
        if options.data is None:
            parser.error("give the data: pets, hymenoptera, a folder of photos, or a .csv file; or --resume NAME")
        return options
    if options.no_checkpoint:
        parser.error("--resume goes on from a checkpoint, and --no-checkpoint from none: leave one of them out")
    record = load_run(options.resume)
    try:
        begun = json.loads((record.folder / COMMAND_FILE).read_text(encoding="utf-8"))
        data = begun["data"]
        options = parser.parse_args(arguments, argparse.Namespace(**begun))
    except (OSError, ValueError, TypeError, KeyError):
        raise CourseError(
            f"The run {record.name} has no record of a `course train` that began it. If fit began it in Python, call "
            f"fit as it was called there, with resume={record.name!r}."
        ) from None
    options.data, options.resume = options.data or data, record.name
    return options


def _found_rate(
    model: nn.Module, splits: Splits, strategy: Strategy, options: argparse.Namespace, seed: int, first: bool
) -> Strategy:
    """Return the strategy with the rates of a sweep, which every process finds for itself, from the same batches."""
    train = in_memory_if_it_fits(splits.train.with_transform(splits.val.transform), 0.5)
    sweep = find_rate(model, train, strategy, batch_size=options.batch_size, seed=seed)
    if first:
        print(f"{sweep}\n\n{sweep.tuned().plan(model)}\n", flush=True)
    return sweep.tuned()


class _KeepCommand:
    """A hook: writes the options of the command into the run's folder, for ``--resume``."""

    def __init__(self, options: dict[str, Any]) -> None:
        data = options["data"]
        self.options = options | {"data": data if data in DATASETS else os.path.abspath(os.path.expanduser(data))}

    def on_train_begin(self, run: Run, _model: nn.Module) -> None:
        """Write them."""
        if run.folder is not None:
            with contextlib.suppress(CourseError):  # a full disk is told of by the run's log
                write_text(run.folder / COMMAND_FILE, json.dumps(self.options, indent=1) + "\n")


def _print_run(run: Run, splits: Splits) -> None:
    if run.resumed:
        print(f"Went on behind epoch {run.resumed}, where this training had been stopped.")
    print(run)
    if run.best is not None:
        total = len(splits.val)
        right = round(run.best.val_accuracy * total)
        print(f"\n{run.stopped}, best epoch {run.best.epoch + 1}: validation {interval_text(right, total)}")
        if run.folder is not None:
            print(f"Use it: course predict PICTURE --run {run.folder.name.rpartition('-')[2]}", flush=True)


def _print_stop(stop: KeyboardInterrupt, splits: Splits, resumable: bool) -> None:
    how = "begins anew, because no epoch was finished"
    if isinstance(stop, TrainingStopped) and stop.run.history:  # a Stop before fit is a bare KeyboardInterrupt
        _print_run(stop.run, splits)
        how = "goes on behind the last finished epoch" if resumable else "begins anew, because of --no-checkpoint"
    print(f"Stopped. The same command {how}.", file=sys.stderr)


def _workers(text: str) -> int | str:
    return text if text == "auto" else from_zero(text)


def family_network(family: str, models: dict[str, str]) -> str:
    """Return the network of a family; one that is not there is a CourseError."""
    if family not in models:
        raise CourseError(f"There is no family {family!r}; choose one of {', '.join(models)}, or give --model.")
    return models[family]


def strategy_named(text: str) -> Strategy:
    """Return a strategy by its name, ``"last block"`` or ``"last-block"``, or by a word that no other has: ``"full"``.

    A name that is none of them is a CourseError that lists all.
    """
    names = {strategy.name.replace(" ", "-"): strategy for strategy in STRATEGIES}
    wanted = "-".join(text.lower().replace("_", " ").replace("-", " ").split())
    found = [names[wanted]] if wanted in names else [s for name, s in names.items() if wanted in name.split("-")]
    if len(found) == 1:
        return found[0]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise CourseError(f"There is no strategy {text!r}; choose one of {', '.join(names)}.{hint}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
