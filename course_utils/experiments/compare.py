"""Compare strategies fairly: same first weights, same pictures in the same order, same number of epochs.

``course compare pets hymenoptera --seeds 5`` runs what day 20 runs, over more seeds, and writes the results file
that the README reads.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset

from course_utils.common.errors import CourseError
from course_utils.common.files import put_between, write_record, written_whole
from course_utils.common.tables import markdown_table, text_table
from course_utils.datasets import in_memory, open_dataset
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
    """One strategy with one seed.

    ``val_accuracy`` is that of the best epoch, which was chosen by it; ``test_right`` of ``test_total`` pictures were
    recognised by those weights, which the choice did not see. Both are None where test was not to be touched.
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
        """Share of the test pictures that were recognised."""
        if self.test_right is None:
            raise CourseError(
                "These runs were compared on validation only. Evaluate the strategy that you choose on the test split, "
                "once, or give compare_strategies a test set."
            )
        return self.test_right / self.test_total


@dataclass(frozen=True)
class Comparison:
    """Trials of several strategies over the same seeds; ``print`` shows one row per strategy.

    ``runs`` has the story of each trial by (strategy, seed), ``models`` each strategy's trained network of the first
    seed (of the first only: nine VGGs would fill a laptop's memory).
    """

    trials: tuple[Trial, ...]
    runs: dict[tuple[str, int], Run]
    models: dict[str, nn.Module]

    @property
    def strategies(self) -> list[str]:
        """Names in the order in which they were tried."""
        return list(dict.fromkeys(trial.strategy for trial in self.trials))

    def test_accuracies(self, strategy: str) -> list[float]:
        """Test accuracy of every seed, in [0, 1]."""
        return [trial.test_accuracy for trial in self.trials if trial.strategy == strategy]

    def val_accuracies(self, strategy: str) -> list[float]:
        """Validation accuracy of every seed's best epoch, in [0, 1]."""
        return [trial.val_accuracy for trial in self.trials if trial.strategy == strategy]

    @property
    def tested(self) -> bool:
        """Whether the test set was looked at."""
        return all(trial.test_right is not None for trial in self.trials)

    def rows(self) -> list[list[object]]:
        """Strategy, trainable parameters, seconds per run, validation and test accuracy as mean ± sd in percent.

        Without the last column where test was not touched.
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
    """Mean ± standard deviation in percent, ``"83.4 ± 2.1"``; without a spread for a single value."""
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
    """Train every strategy with every seed on the same data and budget.

    Parameters
    ----------
    model
        Name for :func:`~course_utils.pretrained_models.load_pretrained`.
    train, val, test
        Transformed data sets. `val` chooses the epoch, `test` is looked at once per run and chooses nothing. With
        None it stays untouched until a strategy was chosen on `val`.
    strategies
        What is compared. With the same seed all of them begin with the same head and see the same batches.
    seeds, epochs, batch_size, num_classes, device
        As for :func:`~course_utils.training.fit`.
    """
    trials, runs, models = [], {}, {}
    for strategy in strategies:
        for seed in seeds:
            network = strategy.starting_model(model, num_classes, seed=seed)
            options = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "device": device}
            # Seconds are compared too, and those of a cached run depend on what lies on the disk already.
            run = fit(network, train, val, strategy, log="light", cache="off", **options)
            right, total = (evaluate(network, test).right, len(test)) if test is not None else (None, None)
            most = max(run.plan.trainable_at(epoch) for epoch in range(epochs))
            trials.append(Trial(strategy.name, seed, epochs, run.best.val_accuracy, right, total, run.seconds, most))
            runs[strategy.name, seed] = run
            models.setdefault(strategy.name, network)
    return Comparison(tuple(trials), runs, models)


# --- course compare ----------------------------------------------------------------------------------------------

ALL = (FROM_SCRATCH, FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, DISCRIMINATIVE, FULL)


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``course compare`` command; returns an exit code."""
    parser = argparse.ArgumentParser(prog="course compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="*", default=["pets"], help="pets, hymenoptera, or folders of photos")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write results to this .json, with a .md table and a .png beside it")
    parser.add_argument("--readme", type=Path, help="put the table into this README, between its markers")
    options = parser.parse_args(arguments)
    settings = load_settings()
    results = {}
    for name in options.data:
        entry = compare_on(name, settings, options.seeds, options.epochs)
        results[entry.pop("name")] = entry
    record = as_record(results, settings, options)
    if options.out:
        write_results(options.out, record)
    if options.readme:
        update_readme(options.readme, record)
    return 0


def compare_on(dataset: str, settings: Settings, seeds: int, epochs: int) -> dict:
    """Run all strategies on one data set, print the table, and return everything as plain data."""
    splits = open_dataset(check_dataset(dataset), seed=settings.seed, cache=settings.cache, mirror=settings.mirror)
    transform = eval_transform(weights_entry(settings.model))
    parts = splits.with_transforms(transform, transform)
    comparison = compare_strategies(
        settings.model,
        in_memory(parts.train),
        in_memory(parts.val),
        in_memory(parts.test),
        ALL,
        seeds=range(seeds),
        epochs=epochs,
        num_classes=len(splits.classes),
        device=settings.device,
    )
    majority = majority_baseline(splits.train.labels, splits.test.labels)
    baseline = interval_text(majority, len(splits.test))
    print(
        f"{splits.name}: {len(splits.train)} / {len(splits.val)} / {len(splits.test)} pictures to train / choose / test"
    )
    print(f"majority class: {baseline}\n{comparison}\n", flush=True)
    return {
        "name": splits.name,
        "classes": list(splits.classes),
        "pictures": {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        "majority_right": majority,
        "majority": baseline,
        "summary": {row[0]: {"test": row[4], "val": row[3], "trainable": row[1]} for row in comparison.rows()},
        "trials": [asdict(trial) for trial in comparison.trials],
    }


def hardware(device: str) -> str:
    """One line about the machine that numbers were measured on."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def as_record(results: dict, settings: Settings, options: argparse.Namespace) -> dict:
    """Results with everything that a reader needs to judge and repeat them."""
    names = [name if name in DATASETS else Path(name).name for name in options.data]
    return {
        "command": f"course compare {' '.join(names)} --seeds {options.seeds} --epochs {options.epochs}",
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(settings.device),
        "python": platform.python_version(),
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
    """The results as a Markdown page: how they were made, then a table for each data set."""
    lines = [
        f"# {record['model']}: six strategies at an equal budget",
        "",
        f"`{record['command']}` on {record['date']}, {record['hardware']}. This page is written by that command.",
        "",
    ]
    for name, data in record["data"].items():
        n, seeds = data["pictures"], len({trial["seed"] for trial in data["trials"]})
        lines += [
            f"## {name}",
            "",
            f"{n['train']} pictures to train, {n['val']} to choose the epoch, {n['test']} to test; {seeds} seeds. "
            f"Majority class: {data['majority']}.",
            "",
            markdown_table(
                ["strategy", "trainable", "test % (mean ± sd over seeds)"],
                [[s, row["trainable"], row["test"]] for s, row in data["summary"].items()],
            ),
            "",
        ]
    return "\n".join(lines)


def picture(record: dict) -> bytes:
    """The first data set's results as a PNG: a dot per run, a bar per mean, a line for the majority class."""
    from course_utils import plots

    data = next(iter(record["data"].values()))
    total = data["pictures"]["test"]
    groups: dict[str, list[float]] = {}
    for trial in data["trials"]:
        groups.setdefault(trial["strategy"], []).append(100 * trial["test_right"] / total)
    majority = {"majority class": 100 * data["majority_right"] / total}
    return plots.png_bytes(plots.dots_with_mean(groups, f"test accuracy (%), {total} pictures", majority))


START, END = "<!-- results: written by `course compare` -->", "<!-- end of results -->"


def readme_section(record: dict) -> str:
    """What the README says about the results: one table, one column per data set."""
    names = list(record["data"])
    strategies = list(next(iter(record["data"].values()))["summary"])
    rows = [["majority class", *(record["data"][name]["majority"] for name in names)]]
    rows += [[s, *(record["data"][name]["summary"][s]["test"] for name in names)] for s in strategies]
    seeds = len({trial["seed"] for trial in record["data"][names[0]]["trials"]})
    headings = [f"{name}, test % of {record['data'][name]['pictures']['test']}" for name in names]
    return "\n".join(
        [
            START,
            "",
            markdown_table([f"`{record['model']}`, mean ± sd over {seeds} seeds", *headings], rows),
            "",
            f"(`{record['command']}`, {record['date']}, {record['hardware']})",
            "",
            END,
        ]
    )


def update_readme(readme: Path, record: dict) -> None:
    """Put the results between the two markers of a README."""
    put_between(readme, START, END, readme_section(record))
