"""Compare strategies fairly: same first weights, same pictures in the same order, same number of epochs.

``course compare pets hymenoptera --seeds 5`` runs what day 20 runs, over more seeds, and writes the results file
that the README reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from course_utils import plots
from course_utils.common.command_line import OneLineParser, at_least_one
from course_utils.common.errors import CourseError
from course_utils.common.files import put_between, write_record, written_whole
from course_utils.common.measuring import circumstances
from course_utils.common.tables import markdown_table, text_table
from course_utils.datasets import Splits, in_memory, open_dataset
from course_utils.engine.history import Run
from course_utils.evaluation import evaluate, interval_text, majority_baseline, mean_and_sd
from course_utils.fine_tuning import (
    DISCRIMINATIVE,
    FEATURE_EXTRACTION,
    FROM_SCRATCH,
    FULL,
    LAST_BLOCK,
    PROGRESSIVE,
    Strategy,
)
from course_utils.pretrained_models import weights_entry
from course_utils.settings import DATASETS, Settings, check_dataset, load_settings
from course_utils.training import fit
from course_utils.transforms import eval_transform


@dataclass(frozen=True)
class Trial:
    """The result of one strategy with one seed.

    The validation accuracy, in [0, 1], is that of the best epoch, which was chosen by it. `test_right` of `test_total`
    test pictures were recognised by the weights of that epoch; None if test was not touched. `trainable` is the largest
    number of parameters that learned in any epoch.
    """

    strategy: str
    seed: int
    epochs: int
    val_accuracy: float
    test_right: int | None
    test_total: int | None
    seconds: float
    trainable: int

    @property
    def test_accuracy(self) -> float:
        """Share of the test pictures that were recognised, in [0, 1]."""
        if self.test_right is None:
            raise CourseError(
                "These runs were compared on validation only. Evaluate the strategy that you choose on the test split, "
                "once, or give compare_strategies a test set."
            )
        return self.test_right / self.test_total


@dataclass(frozen=True)
class Comparison:
    """The trials of several strategies over the same seeds; ``print`` shows one row per strategy.

    The trials are in the order in which they were measured; `runs` has the run of each (strategy, seed). Only the
    trained network of a strategy's first seed is in `models`: nine VGGs would fill a laptop's memory.
    """

    trials: tuple[Trial, ...]
    runs: dict[tuple[str, int], Run]
    models: dict[str, nn.Module]

    @property
    def strategies(self) -> list[str]:
        """Names of the strategies, in the order in which they were tried."""
        return list(dict.fromkeys(trial.strategy for trial in self.trials))

    def test_accuracies(self, strategy: str) -> list[float]:
        """Return the test accuracy of every seed, in [0, 1]."""
        return [trial.test_accuracy for trial in self.trials if trial.strategy == strategy]

    def val_accuracies(self, strategy: str) -> list[float]:
        """Return the validation accuracy of every seed's best epoch, in [0, 1]."""
        return [trial.val_accuracy for trial in self.trials if trial.strategy == strategy]

    @property
    def tested(self) -> bool:
        """True if the test set was looked at."""
        return all(trial.test_right is not None for trial in self.trials)

    def rows(self) -> list[list[object]]:
        """Return a row per strategy: name, trainable parameters, seconds per run, validation and test accuracy.

        The accuracies are text, mean ± sd in percent. The last one is left out if test was not touched.
        """
        table = []
        for name in self.strategies:
            mine = [trial for trial in self.trials if trial.strategy == name]
            seconds, _ = mean_and_sd([trial.seconds for trial in mine])
            row = [name, mine[0].trainable, f"{seconds:.1f}", spread_text(self.val_accuracies(name))]
            table.append([*row, spread_text(self.test_accuracies(name))] if self.tested else row)
        return table

    def __str__(self) -> str:
        return text_table(COLUMNS if self.tested else COLUMNS[:-1], self.rows())


COLUMNS = ["strategy", "trainable", "seconds", "validation % (mean ± sd)", "test % (mean ± sd)"]


def spread_text(shares: Sequence[float]) -> str:
    """Return mean ± standard deviation in percent, ``"83.4 ± 2.1"``; without a spread for a single value."""
    mean, sd = mean_and_sd([100 * share for share in shares])
    return f"{mean:.1f} ± {sd:.1f}" if len(shares) > 1 else f"{mean:.1f}"


def compare_strategies(
    model: str,
    train: Dataset,
    val: Dataset,
    test: Dataset | None,
    strategies: Sequence[Strategy],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 8,
    batch_size: int = 16,
    num_classes: int,
    device: str | None = None,
) -> Comparison:
    """Return the comparison of every strategy with every seed, trained on the same data with the same budget.

    Parameters
    ----------
    model
        Name for :func:`~course_utils.pretrained_models.load_pretrained`.
    train, val, test
        Transformed data sets. `val` chooses the epoch, `test` is looked at once per run and chooses nothing. With
        None it stays untouched until a strategy was chosen on `val`.
    strategies
        Strategies to compare. With the same seed all of them begin with the same head and see the same batches.
    seeds, epochs, batch_size, num_classes, device
        Same as in :func:`~course_utils.training.fit`.

    Raises
    ------
    KeyboardInterrupt
        After a Stop, at once. If runs were finished before it, its attribute ``comparison`` holds them.
    """
    trials, runs, models = [], {}, {}
    try:
        for strategy in strategies:
            for seed in seeds:
                network = strategy.starting_model(model, num_classes, seed=seed)
                # Without the cache: its runs take fewer seconds if earlier ones have left something on the disk.
                run = fit(
                    network, train, val, strategy, epochs=epochs, batch_size=batch_size, seed=seed, device=device,
                    log="light", cache="off",
                )  # fmt: skip
                right, total = (evaluate(network, test).right, len(test)) if test is not None else (None, None)
                most = max(run.plan.trainable_at(epoch) for epoch in range(epochs))
                trial = Trial(strategy.name, seed, epochs, run.best.val_accuracy, right, total, run.seconds, most)
                runs[strategy.name, seed] = run
                models.setdefault(strategy.name, network)
                trials.append(trial)
    except KeyboardInterrupt as stop:
        line = f"Stopped after {len(trials)} of {len(strategies) * len(seeds)} runs"
        if trials:
            stop.comparison = Comparison(tuple(trials), runs, models)
            names = ", ".join(f"{trial.strategy} (seed {trial.seed})" for trial in trials)
            line += f": {names}; the finished ones are in the error's .comparison (sys.last_value.comparison)"
        print(line, flush=True)
        raise
    return Comparison(tuple(trials), runs, models)


def compare_on(model: str, splits: Splits, strategies: Sequence[Strategy], **options: Any) -> Comparison:
    """Return :func:`compare_strategies` on splits without transforms, which get the one of the model's weights.

    `options` are keyword arguments of :func:`compare_strategies`, without ``num_classes``.
    """
    transform = eval_transform(weights_entry(model))
    parts = splits.with_transforms(transform, transform)
    datasets = [in_memory(part) for part in (parts.train, parts.val, parts.test)]
    return compare_strategies(model, *datasets, strategies, num_classes=len(splits.classes), **options)


# --- course compare ----------------------------------------------------------------------------------------------

ALL = (FROM_SCRATCH, FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, DISCRIMINATIVE, FULL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``course compare`` and return its exit code."""
    parser = OneLineParser(prog="course compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="*", default=["pets"], help="pets, hymenoptera, or folders of photos")
    parser.add_argument("--seeds", type=at_least_one, default=5, help="how many (default 5)")
    parser.add_argument("--epochs", type=at_least_one, default=6)
    parser.add_argument("--out", type=Path, help="write results to this .json, with a .md table and a .png beside it")
    parser.add_argument("--readme", type=Path, help="put the table into this README, between its markers")
    options = parser.parse_args(arguments)
    settings = load_settings()
    results = {}
    for name in options.data:
        splits = open_splits(name, settings)
        results[splits.name] = measure(splits, settings, options.seeds, options.epochs)
    record = as_record(results, settings, options)
    if options.out:
        write_results(options.out, record)
    if options.readme:
        update_readme(options.readme, record)
    return 0


def open_splits(data: str, settings: Settings) -> Splits:
    """Return the splits of a data set named on the command line."""
    return open_dataset(check_dataset(data), seed=settings.seed, cache=settings.cache, mirror=settings.mirror)


def measure(splits: Splits, settings: Settings, seeds: int, epochs: int) -> dict:
    """Run all strategies on one data set, print the table, and return everything as plain data."""
    comparison = compare_on(settings.model, splits, ALL, seeds=range(seeds), epochs=epochs, device=settings.device)
    facts = facts_of(splits)
    sizes = " / ".join(map(str, facts["pictures"].values()))
    print(f"{splits.name}: {sizes} pictures to train / choose / test")
    print(f"majority class: {facts['majority']}\n{comparison}\n", flush=True)
    return {
        "classes": list(splits.classes),
        **facts,
        "summary": {row[0]: {"test": row[4], "val": row[3], "trainable": row[1]} for row in comparison.rows()},
        "trials": [asdict(trial) for trial in comparison.trials],
    }


def facts_of(splits: Splits) -> dict:
    """Return the number of pictures of each split, and how many of test the majority class gets right."""
    right = majority_baseline(splits.train.labels, splits.test.labels)
    return {
        "pictures": {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        "majority_right": right,
        "majority": interval_text(right, len(splits.test)),
    }


def command_text(command: str, data: Sequence[str], options: argparse.Namespace) -> str:
    """Return a command as a reader repeats it: folders are named without their paths."""
    names = [name if name in DATASETS else Path(name).name for name in data]
    return f"course {command} {' '.join(names)} --seeds {options.seeds} --epochs {options.epochs}"


def as_record(results: dict, settings: Settings, options: argparse.Namespace) -> dict:
    """Return the results with everything that is needed to judge and repeat them."""
    weights = "" if settings.weights == "mini" else f"COURSE_WEIGHTS={settings.weights} "
    return {
        **circumstances(weights + command_text("compare", options.data, options), settings.device),
        "weights": settings.weights,
        "model": settings.model,
        "data": results,
    }


def write_results(path: Path, record: dict) -> None:
    """Write the JSON file, and beside it the same numbers as Markdown and as a picture."""
    write_record(path, record, as_markdown(record))
    with written_whole(path.with_suffix(".png")) as beside:
        beside.write_bytes(picture(record))


def as_markdown(record: dict) -> str:
    """Return the results as a Markdown page: how they were made, then a table for each data set."""
    lines = [f"# {record['model']}: six strategies at an equal budget", "", source_text(record), ""]
    headings = ["strategy", "trainable", "test % (mean ± sd over seeds)"]
    for name, data in record["data"].items():
        table = markdown_table(headings, [[s, row["trainable"], row["test"]] for s, row in data["summary"].items()])
        sizes = sizes_text(data["pictures"], data["trials"])
        lines += [f"## {name}", "", f"{sizes}. Majority class: {data['majority']}.", "", table, ""]
    return "\n".join(lines)


def source_text(record: dict) -> str:
    """Return a sentence on where and by which command a page was made."""
    return f"`{record['command']}` on {record['date']}, {record['hardware']}. This page is written by that command."


def sizes_text(pictures: dict[str, int], trials: Sequence[dict]) -> str:
    """Return the sizes of the splits and the number of seeds as the beginning of a sentence."""
    seeds = len({trial["seed"] for trial in trials})
    return (
        f"{pictures['train']} pictures to train, {pictures['val']} to choose the epoch, {pictures['test']} to test; "
        f"{seeds} seeds"
    )


def picture(record: dict) -> bytes:
    """Return the first data set's results as a PNG: a dot per run, a bar per mean, a line for the majority class."""
    data = next(iter(record["data"].values()))
    total = data["pictures"]["test"]
    groups: dict[str, list[float]] = {}
    for trial in data["trials"]:
        groups.setdefault(trial["strategy"], []).append(100 * trial["test_right"] / total)
    majority = {"majority class": 100 * data["majority_right"] / total}
    return plots.png_bytes(plots.dots_with_mean(groups, f"test accuracy (%), {total} pictures", majority))


START, END = "<!-- results: written by `course compare` -->", "<!-- end of results -->"


def readme_section(*records: dict) -> str:
    """Return the section of the README with the results: one table, a column for each data set of each record."""
    columns = [(record["model"], name, data) for record in records for name, data in record["data"].items()]
    rows = [["majority class", *(data["majority"] for _, _, data in columns)]]
    rows += [[s, *(data["summary"][s]["test"] for _, _, data in columns)] for s in columns[0][2]["summary"]]
    seeds = len({trial["seed"] for trial in columns[0][2]["trials"]})
    headings = [f"{name}, `{model}`, test % of {data['pictures']['test']}" for model, name, data in columns]
    table = markdown_table([f"mean ± sd over {seeds} seeds", *headings], rows)
    sources = "; ".join(f"`{record['command']}`, {record['date']}, {record['hardware']}" for record in records)
    return f"{START}\n\n{table}\n\n({sources})\n\n{END}"


def update_readme(readme: Path, record: dict) -> None:
    """Put the results between the two markers of a README, with those on real weights beside them, if there are any."""
    second = readme.parent / "results" / "day20_lite.json"
    more = [json.loads(second.read_text(encoding="utf-8"))] if second.exists() else []
    put_between(readme, START, END, readme_section(record, *more))
