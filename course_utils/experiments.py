"""Compare strategies fairly: same first weights, same pictures in the same order, same number of epochs.

``course compare pets hymenoptera --seeds 5`` runs what day 20 runs, over more seeds, and writes the results file
that the README reads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch.utils.data import Dataset

from course_utils.datasets import in_memory, open_dataset
from course_utils.evaluation import evaluate, interval_text, majority_baseline, mean_and_sd
from course_utils.feature_extraction import trainable_parameters
from course_utils.files import written_whole
from course_utils.fine_tuning import DISCRIMINATIVE, FEATURE_EXTRACTION, FROM_SCRATCH, FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.pretrained_models import weights_entry
from course_utils.settings import Settings, check_dataset, load_settings
from course_utils.tables import markdown_table, text_table
from course_utils.training import Run, fit
from course_utils.transforms import eval_transform


@dataclass(frozen=True)
class Trial:
    """One strategy with one seed.

    ``val_accuracy`` is that of the best epoch, which was chosen by it; ``test_right`` of ``test_total`` pictures were
    recognised by those weights, which the choice did not see.
    """

    strategy: str
    seed: int
    epochs: int
    val_accuracy: float
    test_right: int
    test_total: int
    seconds: float
    trainable: int

    @property
    def test_accuracy(self) -> float:
        """Share of the test pictures that were recognised."""
        return self.test_right / self.test_total


@dataclass(frozen=True)
class Comparison:
    """Trials of several strategies over the same seeds; ``print`` shows one row per strategy."""

    trials: tuple[Trial, ...]
    runs: dict[tuple[str, int], Run]

    @property
    def strategies(self) -> list[str]:
        """Names in the order in which they were tried."""
        return list(dict.fromkeys(trial.strategy for trial in self.trials))

    def test_accuracies(self, strategy: str) -> list[float]:
        """Test accuracy of every seed, in [0, 1]."""
        return [trial.test_accuracy for trial in self.trials if trial.strategy == strategy]

    def rows(self) -> list[list[object]]:
        """Strategy, trainable parameters, seconds per run, validation and test accuracy as mean ± sd in percent."""
        table = []
        for name in self.strategies:
            mine = [trial for trial in self.trials if trial.strategy == name]
            seconds, _ = mean_and_sd([trial.seconds for trial in mine])
            table.append(
                [
                    name,
                    mine[0].trainable,
                    f"{seconds:.1f}",
                    spread_text([trial.val_accuracy for trial in mine]),
                    spread_text([trial.test_accuracy for trial in mine]),
                ]
            )
        return table

    def __str__(self) -> str:
        return text_table(COLUMNS, self.rows())


COLUMNS = ["strategy", "trainable", "seconds", "validation % (mean ± sd)", "test % (mean ± sd)"]


def spread_text(shares: Sequence[float]) -> str:
    """Mean ± standard deviation in percent, ``"83.4 ± 2.1"``; without a spread for a single value."""
    mean, sd = mean_and_sd([100 * share for share in shares])
    return f"{mean:.1f} ± {sd:.1f}" if len(shares) > 1 else f"{mean:.1f}"


def compare_strategies(
    model: str,
    train: Dataset,
    val: Dataset,
    test: Dataset,
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
        Transformed data sets. `val` chooses the epoch, `test` is looked at once per run and chooses nothing.
    strategies
        What is compared. With the same seed all of them begin with the same head and see the same batches.
    seeds, epochs, batch_size, num_classes, device
        As for :func:`~course_utils.training.fit`.
    """
    trials, runs = [], {}
    for strategy in strategies:
        for seed in seeds:
            network = strategy.starting_model(model, num_classes, seed=seed)
            run = fit(network, train, val, strategy, epochs=epochs, batch_size=batch_size, seed=seed, device=device)
            report = evaluate(network, test)
            most = max(run.plan.trainable_at(epoch) for epoch in range(epochs))
            trials.append(
                Trial(strategy.name, seed, epochs, run.best.val_accuracy, report.right, len(test), run.seconds, most)
            )
            runs[strategy.name, seed] = run
    return Comparison(tuple(trials), runs)


# --- course compare ----------------------------------------------------------------------------------------------

ALL = (FROM_SCRATCH, FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, DISCRIMINATIVE, FULL)


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``course compare`` command; returns an exit code."""
    parser = argparse.ArgumentParser(prog="course compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="*", default=["pets"], help="pets, hymenoptera, or folders of photos")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write results to this .json, and a .md table beside it")
    options = parser.parse_args(arguments)
    settings = load_settings()
    results = {name: compare_on(name, settings, options.seeds, options.epochs) for name in options.data}
    if options.out:
        write_results(options.out, results, settings, options)
    return 0


def compare_on(dataset: str, settings: Settings, seeds: int, epochs: int) -> dict:
    """Run all strategies on one data set, print the table, and return everything as plain data."""
    splits = open_dataset(check_dataset(dataset), seed=settings.seed, cache=settings.cache, mirror=settings.mirror)
    transform = eval_transform(weights_entry(settings.model))
    parts = splits.with_transforms(transform, transform)
    comparison = compare_strategies(
        settings.model, in_memory(parts.train), in_memory(parts.val), in_memory(parts.test), ALL,
        seeds=range(seeds), epochs=epochs, num_classes=len(splits.classes), device=settings.device,
    )
    majority = majority_baseline(splits.train.labels, splits.test.labels)
    baseline = interval_text(majority, len(splits.test))
    print(f"{splits.name}: {len(splits.train)} / {len(splits.val)} / {len(splits.test)} pictures to train / choose / test")
    print(f"majority class: {baseline}\n{comparison}\n", flush=True)
    return {
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
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def write_results(path: Path, results: dict, settings: Settings, options: argparse.Namespace) -> None:
    """Write the JSON file, and beside it the same numbers as Markdown."""
    command = f"course compare {' '.join(options.data)} --seeds {options.seeds} --epochs {options.epochs}"
    record = {
        "command": f"{command} --out {path.as_posix()}" if not path.is_absolute() else command,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(settings.device),
        "python": platform.python_version(),
        "weights": settings.weights,
        "model": settings.model,
        "data": results,
    }
    with written_whole(path) as beside:
        beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with written_whole(path.with_suffix(".md")) as beside:
        beside.write_text(as_markdown(record), encoding="utf-8")


def as_markdown(record: dict) -> str:
    """The results as a Markdown page: how they were made, then a table for each data set."""
    lines = [
        f"# {record['model']}: six strategies at an equal budget", "",
        f"`{record['command']}` on {record['date']}, {record['hardware']}. This page is written by that command.", "",
    ]
    for name, data in record["data"].items():
        n, seeds = data["pictures"], len({trial["seed"] for trial in data["trials"]})
        lines += [
            f"## {name}", "",
            f"{n['train']} pictures to train, {n['val']} to choose the epoch, {n['test']} to test; {seeds} seeds. "
            f"Majority class: {data['majority']}.", "",
            markdown_table(
                ["strategy", "trainable", "test % (mean ± sd over seeds)"],
                [[s, row["trainable"], row["test"]] for s, row in data["summary"].items()],
            ), "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
