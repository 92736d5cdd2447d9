"""The four families are compared fairly, and the results file says what was measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from helpers import ColourPatches, mini
from torch import nn

from course_utils.common.files import write_record
from course_utils.engine.history import EpochRecord
from course_utils.experiments import compare, families
from course_utils.experiments.compare import compare_strategies
from course_utils.experiments.families import (
    FIVE,
    FamilyCard,
    as_markdown,
    as_record,
    card_table,
    family_card,
    strategy_table,
)
from course_utils.settings import load_settings

ROOT = Path(__file__).parents[2]


class Watched(ColourPatches):
    """Notes the order in which its pictures are asked for."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def fair():
    """A comparison of the five strategies, with what each of them was given."""
    given = {}

    def noting_fit(model, train, val, strategy, **options):
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train.asked, val.asked = [], []
        run = fit(model, train, val, strategy, **options)
        # Two looks at each of them come before the first epoch.
        given[strategy.name] = {
            "weights": start, "batches": train.asked[2:], "val": val.asked[2:], "options": options,
        }  # fmt: skip
        return run

    fit = compare.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "fit", noting_fit)
        comparison = compare_strategies(
            "resnet18_mini", Watched(12, seed=0), Watched(6, seed=1), Watched(9, seed=2), FIVE,
            seeds=(4,), epochs=2, batch_size=4, num_classes=3, device="cpu",
        )  # fmt: skip
    return comparison, given


def test_every_strategy_sees_the_same_pictures_in_the_same_order(fair):
    _, given = fair
    orders = [entry["batches"] for entry in given.values()]
    assert len(orders) == 5 and len(orders[0]) == 24
    assert all(order == orders[0] for order in orders)
    assert orders[0][:12] != orders[0][12:], "each epoch has an order of its own"


def test_every_strategy_has_the_same_budget_and_the_same_evaluation(fair):
    comparison, given = fair
    assert all(entry["options"] == given["from scratch"]["options"] for entry in given.values())
    assert all(entry["val"] == given["from scratch"]["val"] for entry in given.values())
    assert {len(run.history) for run in comparison.runs.values()} == {2}
    assert {(trial.test_total, trial.epochs) for trial in comparison.trials} == {(9, 2)}


def test_every_strategy_begins_with_the_same_weights(fair):
    """Of course, from scratch has another body; its head is the same."""
    _, given = fair
    scratch, first, *others = (given[strategy.name]["weights"] for strategy in FIVE)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    assert torch.equal(scratch["fc.weight"], first["fc.weight"])
    assert not torch.equal(scratch["conv1.weight"], first["conv1.weight"])


def test_a_comparison_without_a_test_set_does_not_have_test_results():
    comparison = compare_strategies(
        "resnet18_mini", ColourPatches(6), ColourPatches(6, seed=1), None, FIVE[:1],
        seeds=(0, 1), epochs=1, batch_size=3, num_classes=3, device="cpu",
    )  # fmt: skip
    assert not comparison.tested
    assert "test %" not in str(comparison) and "validation %" in str(comparison)
    assert comparison.val_accuracies("from scratch") == [t.val_accuracy for t in comparison.trials]
    with pytest.raises(ValueError, match="compared on validation only"):
        comparison.test_accuracies("from scratch")


def test_a_card_says_what_the_network_is():
    card, model = family_card("resnet", "resnet18_mini")
    assert isinstance(model, nn.Module) and not model.training
    assert card.parameters == 859_000 and card.size == 128
    assert (card.last_layer, card.features) == ("fc", 144)
    assert card.milliseconds > 0
    assert card.top1 == 51.5 or card.top1 == 51.4
    assert card.learned_from == "Tiny ImageNet"
    assert "859,000" in card_table([card]) and "| resnet18_mini |" in card_table([card], markdown=True)


def test_time_is_measured_in_eval_mode_without_moving_anything():
    model = mini().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert families.milliseconds_per_picture(model, 32, batch=2, repeats=1) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class FakeSplits:
    name = "photos"
    train, val, test = ColourPatches(6), ColourPatches(3, seed=1), ColourPatches(4, seed=2)
    classes = ColourPatches.classes

    def with_transforms(self, train, evaluate):
        return self


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "in_memory", lambda dataset: dataset)
        comparisons = families.compare_families(
            {"resnet": "resnet18_mini"}, FakeSplits(), seeds=(0, 1), epochs=1, batch_size=3, device="cpu"
        )
    card = FamilyCard("resnet", "resnet18_mini", 859_000, 100_000_000, 128, "fc", 144, 1.5, 51.4, "Tiny ImageNet")
    options = argparse.Namespace(data="/home/anna/photos", seeds=2, epochs=1)
    return as_record(options, load_settings({}), FakeSplits(), [card], comparisons)


@pytest.mark.parametrize(("network", "kept"), [(1, {"resnet18_mini": 5}), (2, {"resnet18_mini": 5, "vgg11_mini": 1})])
def test_a_stop_ends_all_networks_and_keeps_what_was_finished(monkeypatch, capsys, network, kept):
    fit, calls = compare.fit, []

    def stopping_fit(model, train, val, strategy, **options):
        calls.append(strategy.name)
        if len(calls) == 5 + network:
            raise KeyboardInterrupt
        return fit(model, train, val, strategy, **options)

    monkeypatch.setattr(compare, "in_memory", lambda dataset: dataset)
    monkeypatch.setattr(compare, "fit", stopping_fit)
    models = {"resnet": "resnet18_mini", "vgg": "vgg11_mini", "mobilenet": "mobilenet_v3_small_mini"}
    with pytest.raises(KeyboardInterrupt) as caught:
        families.compare_families(models, FakeSplits(), seeds=(0,), epochs=1, batch_size=3, device="cpu")
    assert {name: len(comparison.trials) for name, comparison in caught.value.comparisons.items()} == kept
    assert not any(comparison.models for comparison in caught.value.comparisons.values())
    assert len(calls) == 5 + network
    assert capsys.readouterr().out.endswith(
        f"Stopped at vgg11_mini; the finished runs of {', '.join(kept)} are in the error's .comparisons\n"
    )


def test_the_record_has_every_strategy_and_seed_and_no_private_path(record):
    entry = record["networks"]["resnet18_mini"]
    assert [(t["strategy"], t["seed"]) for t in entry["trials"]] == [(s.name, n) for s in FIVE for n in (0, 1)]
    assert list(entry["summary"]) == [strategy.name for strategy in FIVE]
    assert record["command"] == "course families photos --seeds 2 --epochs 1"
    assert "anna" not in json.dumps(record)


def test_the_page_has_the_numbers_of_the_record(record, tmp_path):
    write_record(tmp_path / "day21.json", record, as_markdown(record))
    assert json.loads((tmp_path / "day21.json").read_text(encoding="utf-8")) == record
    page = (tmp_path / "day21.md").read_text(encoding="utf-8")
    assert page == as_markdown(record)
    for summary in record["networks"]["resnet18_mini"]["summary"].values():
        assert f"| {summary['test']} |" in page
    assert "2 seeds" in page and "/" not in strategy_table(record)


def test_the_stored_results_cover_four_families_and_five_strategies():
    stored = json.loads((ROOT / "results" / "day21.json").read_text(encoding="utf-8"))
    assert stored["data"] == "hymenoptera" and stored["pictures"]["test"] == 153
    assert list(stored["networks"]) == list(load_settings({}).models.values())
    for entry in stored["networks"].values():
        assert {t["strategy"] for t in entry["trials"]} == {strategy.name for strategy in FIVE}
        assert len({t["seed"] for t in entry["trials"]}) >= 3
        assert len({t["epochs"] for t in entry["trials"]}) == 1
        for strategy, row in entry["summary"].items():
            rights = [t["test_right"] / 153 for t in entry["trials"] if t["strategy"] == strategy]
            assert row["test"] == compare.spread_text(rights)
    assert (ROOT / "results" / "day21.md").read_text(encoding="utf-8") == as_markdown(stored)


def test_a_record_of_an_epoch_is_what_a_comparison_keeps(fair):
    comparison, _ = fair
    assert all(isinstance(run.history[0], EpochRecord) for run in comparison.runs.values())
