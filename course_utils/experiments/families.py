"""One network of each family side by side: what it costs, and what each strategy makes of it.

``course families hymenoptera --seeds 3`` trains four families by five strategies at an equal budget and writes the
results file that day 21 reads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from course_utils.common.command_line import OneLineParser, at_least_one
from course_utils.common.files import write_record
from course_utils.common.measuring import circumstances
from course_utils.common.tables import markdown_table, text_table
from course_utils.datasets import Splits
from course_utils.experiments.compare import (
    Comparison,
    command_text,
    compare_on,
    facts_of,
    open_splits,
    sizes_text,
    source_text,
)
from course_utils.fine_tuning import DISCRIMINATIVE, FEATURE_EXTRACTION, FROM_SCRATCH, LAST_BLOCK, PROGRESSIVE
from course_utils.pretrained_models import feature_dim, last_layer_name, load_pretrained, multiply_adds, weights_entry
from course_utils.settings import Settings, load_settings
from course_utils.transforms import image_size

# The brief's three options, the gradual one between them, and what they are compared with.
FIVE = (FROM_SCRATCH, FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, DISCRIMINATIVE)


@dataclass(frozen=True)
class FamilyCard:
    """The facts about a pre-trained network before it meets new data.

    Numbers are those of the network as it was pre-trained: multiply-adds for one picture of `size` × `size` pixels,
    `features` that go into its last layer, and `milliseconds` for one picture in a batch of 16 on this machine, forward
    only, the median of three. Its weights entry states the accuracy `top1` in percent on the data set `learned_from`.
    """

    family: str
    model: str
    parameters: int
    multiply_adds: int
    size: int
    last_layer: str
    features: int
    milliseconds: float
    top1: float
    learned_from: str


def family_card(family: str, name: str, device: str = "cpu") -> tuple[FamilyCard, nn.Module]:
    """Return what a network costs, and the network itself, pre-trained and in eval mode."""
    entry = weights_entry(name)
    model, size = load_pretrained(name).to(device).eval(), image_size(entry)
    learned_from, metrics = next(iter(entry.meta["_metrics"].items()))
    card = FamilyCard(
        family,
        name,
        sum(p.numel() for p in model.parameters()),
        multiply_adds(model, size),
        size,
        last_layer_name(model),
        feature_dim(model),
        milliseconds_per_picture(model, size),
        round(metrics["acc@1"], 1),
        learned_from,
    )
    return card, model


@torch.inference_mode()
def milliseconds_per_picture(model: nn.Module, size: int, batch: int = 16, repeats: int = 3) -> float:
    """Return the time of a forward pass for one picture of a batch: the median, after a pass that does not count."""
    images = torch.zeros(batch, 3, size, size, device=next(model.parameters()).device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model(images).sum().item()  # asking for a number waits until a GPU is done
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:]) / batch


def card_table(cards: Sequence[FamilyCard], markdown: bool = False) -> str:
    """Return the cards as a table, one row for each network."""
    headings = ["network", "parameters", "multiply-adds", "ms/picture", "last layer", "features", "pre-training top-1"]
    rows = [
        [
            card.model,
            card.parameters,
            f"{card.multiply_adds / 1e6:,.0f} M at {card.size} px",
            f"{card.milliseconds:.1f}",
            card.last_layer,
            card.features,
            f"{card.top1} %",
        ]
        for card in cards
    ]
    return (markdown_table if markdown else text_table)(headings, rows)


def compare_families(
    models: Mapping[str, str],
    splits: Splits,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 6,
    batch_size: int = 16,
    device: str | None = None,
) -> dict[str, Comparison]:
    """Return the comparison of ``FIVE`` strategies for every family.

    Parameters
    ----------
    models, splits
        Family → name of a network, as ``settings.models``, and photos without transforms: each network gets the one of
        its own weights.
    seeds, epochs, batch_size, device
        Same as in :func:`~course_utils.experiments.compare.compare_strategies`.

    Returns
    -------
    dict
        Name of the network → its comparison, without the trained models. After a Stop, the attribute ``comparisons`` of
        the KeyboardInterrupt holds what was finished, if there is any.
    """
    comparisons = {}
    options = {"seeds": seeds, "epochs": epochs, "batch_size": batch_size, "device": device}
    try:
        for name in models.values():
            comparison = compare_on(name, splits, FIVE, **options)
            print(f"{name}\n{comparison}\n", flush=True)
            comparisons[name] = replace(comparison, models={})
    except KeyboardInterrupt as stop:
        if hasattr(stop, "comparison"):
            comparisons[name] = replace(stop.comparison, models={})
        if comparisons:
            stop.comparisons = comparisons
            print(f"Stopped at {name}; the finished runs of {', '.join(comparisons)} are in the error's .comparisons")
        raise
    return comparisons


# --- course families ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``course families`` and return its exit code."""
    parser = OneLineParser(prog="course families", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="?", default="hymenoptera", help="pets, hymenoptera, or a folder of photos")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="how many (default 3)")
    parser.add_argument("--epochs", type=at_least_one, default=6)
    parser.add_argument("--out", type=Path, help="write results to this .json, with a .md page beside it")
    options = parser.parse_args(arguments)
    settings = load_settings()
    splits = open_splits(options.data, settings)
    cards = [family_card(family, name, settings.device)[0] for family, name in settings.models.items()]
    print(f"{card_table(cards)}\n", flush=True)
    comparisons = compare_families(
        settings.models, splits, seeds=range(options.seeds), epochs=options.epochs, device=settings.device
    )
    if options.out:
        record = as_record(options, settings, splits, cards, comparisons)
        write_record(options.out, record, as_markdown(record))
    return 0


def as_record(
    options: argparse.Namespace,
    settings: Settings,
    splits: Splits,
    cards: Sequence[FamilyCard],
    comparisons: Mapping[str, Comparison],
) -> dict:
    """Return the results with everything that is needed to judge and repeat them."""
    return {
        **circumstances(command_text("families", [options.data], options), settings.device),
        "data": splits.name,
        **facts_of(splits),
        "networks": {
            card.model: {
                "card": asdict(card),
                "trials": [asdict(trial) for trial in comparisons[card.model].trials],
                "summary": {
                    strategy: {"trainable": trainable, "seconds": float(seconds), "val": val, "test": test}
                    for strategy, trainable, seconds, val, test in comparisons[card.model].rows()
                },
            }
            for card in cards
        },
    }


def strategy_table(record: dict, value: str = "test", markdown: bool = False) -> str:
    """Return a table of :func:`as_record`'s results with strategies in rows and networks in columns.

    `value` is ``"test"``, ``"val"``, ``"seconds"`` or ``"trainable"``.
    """
    networks = record["networks"]
    strategies = list(next(iter(networks.values()))["summary"])
    rows = [[strategy, *(entry["summary"][strategy][value] for entry in networks.values())] for strategy in strategies]
    return (markdown_table if markdown else text_table)(["strategy", *networks], rows)


def as_markdown(record: dict) -> str:
    """Return the results as a page: how they were made, what each strategy reached, what each network costs."""
    trials = next(iter(record["networks"].values()))["trials"]
    cards = [FamilyCard(**entry["card"]) for entry in record["networks"].values()]
    parts = [
        f"# Four families, five strategies: {record['data']}",
        source_text(record),
        f"{sizes_text(record['pictures'], trials)}, {trials[0]['epochs']} epochs each. With the same seed all "
        "strategies of a network begin with the same head and see the same batches. "
        f"Majority class: {record['majority']}.",
        "## Test accuracy in percent, mean ± sd over seeds",
        strategy_table(record, "test", markdown=True),
        "## Parameters that learn",
        strategy_table(record, "trainable", markdown=True),
        "## Seconds for a run",
        strategy_table(record, "seconds", markdown=True),
        "## The networks",
        card_table(cards, markdown=True),
    ]
    return "\n\n".join(parts) + "\n"
