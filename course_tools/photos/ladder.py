"""The ladder: six ways to use a pre-trained network, from nearest neighbours to training everything.

=================  =============================================================  ==========================
rung               what it does                                                   what it is for
=================  =============================================================  ==========================
kNN                asks the most similar training pictures                        the yardstick: no training
linear probe       fits a new head to features, once                              scenario A of the brief
last block         trains the head and the last block of convolutions             scenario B
progressive        unfreezes one stage more in every epoch                        scenario B
full fine-tuning   trains everything                                              scenario C
from scratch       trains everything from random weights                          what pre-training is worth
=================  =============================================================  ==========================

The *validation* pictures choose the best epoch of each rung, and the rung to use. Whether a rung is better than those
below it is a paired test on the same pictures, of the networks as their last epoch left them, which nothing has chosen.
The test pictures are asked once, by the chosen network. A finished rung is kept in a folder whose name depends on the
pictures and the settings, so a ladder that was stopped goes on behind its last finished rung and epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_tools.photos import data_audit
from course_tools.photos.ladder_results import COLUMNS, FORMAT, ResultStore, RungResult, choose, report_on, slug
from course_tools.photos.looks import count_look
from course_tools.photos.probes import best_neighbours, best_penalty, nearest_neighbours, with_probe_as_head
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of
from course_utils.common.measuring import Measured
from course_utils.common.progress import progress
from course_utils.common.state import evaluating
from course_utils.common.tables import text_table
from course_utils.datasets import SPLITS, Splits, in_memory_if_it_fits
from course_utils.engine.activation_cache import cache_activations
from course_utils.engine.history import EpochRecord, Run, TrainingDiverged
from course_utils.engine.pixel_store import training_pictures
from course_utils.engine.provenance import weights_digest
from course_utils.engine.run_log import RunLog
from course_utils.engine.runs import add_report, load_run
from course_utils.evaluation import Report, evaluate, probe
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import FEATURE_EXTRACTION, FROM_SCRATCH, FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.pretrained_models import feature_dim, last_layer, load_pretrained, weights_entry
from course_utils.training import fit
from course_utils.transforms import eval_transform

MEMORY_SHARE = 1 / len(SPLITS)  # train, val and test are in memory together


@dataclass(frozen=True)
class Rung:
    """One way to use a pre-trained network: its name, and its strategy, which is None where no network comes out."""

    name: str
    strategy: Strategy | None


KNN = Rung("kNN", None)
PROBE = Rung("linear probe", dataclasses.replace(FEATURE_EXTRACTION, name="linear probe"))
TRAINED = tuple(Rung(strategy.name, strategy) for strategy in (LAST_BLOCK, PROGRESSIVE, FULL, FROM_SCRATCH))
RUNGS = (KNN, PROBE, *TRAINED)


@dataclass(frozen=True)
class Budget:
    """The settings that all rungs of a ladder share: options of :func:`~course_utils.training.fit`, and `augment`.

    `augment` is that of :func:`~course_utils.transforms.train_transform`. Only rungs that train see changed pictures.
    """

    epochs: int = 6
    batch_size: int = 16
    seed: int = 0
    augment: str = "none"
    device: str = "cpu"


@dataclass(frozen=True)
class Audit:
    """Findings about the pictures: identical files, other duplicates, and suspicious labels.

    Their indices count through train, val and test, as in :func:`all_pictures`.
    """

    copies: tuple[data_audit.Pair, ...]
    duplicates: data_audit.Duplicates
    suspects: tuple[data_audit.Suspect, ...]


@dataclass(frozen=True)
class Ladder:
    """The finished ladder, with everything that its report tells.

    Parameters
    ----------
    results, failures
        One result per network and rung, from the lowest up; network and rung → why it gave none.
    chosen, test
        The network with the highest validation accuracy, of equals the first; its answers to the test pictures.
    looks
        Number of networks that have been asked about these test pictures (:mod:`course_tools.photos.looks`).
    """

    splits: Splits
    budget: Budget
    results: tuple[RungResult, ...]
    failures: dict[str, str]
    chosen: RungResult
    test: Report
    looks: int
    audit: Audit
    folder: Path

    def __str__(self) -> str:
        return text_table(COLUMNS, [result.row() for result in self.results])


def all_pictures(splits: Splits) -> list[tuple[str, Path]]:
    """Return the split and the file of each picture, first those of train, then of val and test."""
    return [(split, path) for split in SPLITS for path in getattr(splits, split).paths]


def file_digests(splits: Splits) -> list[str]:
    """Return the SHA-256 of each file, in the order of :func:`all_pictures`."""
    paths = [path for _, path in all_pictures(splits)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(progress(pool.map(sha256_of, paths), "reading the files", total=len(paths)))


def ladder_folder(root: Path, splits: Splits, digests: Sequence[str], budget: Budget) -> Path:
    """Return the folder in `root` for the rungs of these pictures (:func:`file_digests`) with these settings.

    The device does not count: on another one the numbers are the same up to rounding.
    """
    settings = {key: value for key, value in asdict(budget).items() if key != "device"}
    labels = [[split, *getattr(splits, split).labels] for split in SPLITS]
    text = json.dumps([FORMAT, settings, splits.classes, labels, list(digests)])
    return root / f"{slug(splits.name)[:40] or 'photos'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class Features(NamedTuple):
    """Inputs ``(N, D)`` of a network's last layer for every split, and what they cost in seconds and bytes."""

    train: Tensor
    val: Tensor
    test: Tensor
    seconds: float
    memory: int


class LastEpoch:
    """Hook that keeps the answers to `val` after the last of so many epochs, before the best weights are put back."""

    probabilities: np.ndarray

    def __init__(self, val: Dataset, epochs: int) -> None:
        self.val, self.epochs = val, epochs

    def on_epoch_end(self, run: Run, model: nn.Module) -> None:
        """Ask the network if this was the last epoch."""
        if len(run.history) == self.epochs:
            self.probabilities = evaluate(model, self.val).probabilities

    on_train_begin = on_epoch_end  # a run that was killed behind its last epoch goes on there


class LadderRunner:
    """One network on one data set (without transforms): it runs rungs and keeps their results in a store.

    It makes what several rungs share once, when it is first needed.
    """

    def __init__(self, name: str, splits: Splits, budget: Budget, store: ResultStore) -> None:
        self.name, self.splits, self.budget, self.store = name, splits, budget, store
        self.entry = weights_entry(name)
        self.prepare = eval_transform(self.entry)
        self.prepared = splits.with_transforms(self.prepare, self.prepare)
        self.classes = len(splits.classes)

    @functools.cached_property
    def network(self) -> nn.Module:
        """The network as it was pre-trained, on its device, in eval mode."""
        return load_pretrained(self.name).to(self.budget.device).eval()

    @functools.cached_property
    def weights(self) -> str:
        """Fingerprint of the pre-trained weights."""
        return weights_digest(self.network.state_dict())

    def origin(self, rung: Rung) -> str:
        """Return a fingerprint of what a rung comes from beside the pictures: the weights, and the plan of training."""
        if rung.strategy is None:
            return self.weights
        plan = json.dumps(asdict(rung.strategy.plan(self.network)))
        return hashlib.sha256(f"{self.weights} {plan}".encode()).hexdigest()

    @functools.cached_property
    def train(self) -> Dataset:
        """Pictures that the rungs that train learn from."""
        epochs = self.budget.epochs * len(TRAINED)
        return training_pictures(self.splits.train, self.entry, self.budget.augment, epochs=epochs, share=MEMORY_SHARE)

    @functools.cached_property
    def val(self) -> Dataset:
        """Validation pictures as the network sees them, in memory if they fit."""
        return in_memory_if_it_fits(self.prepared.val, MEMORY_SHARE)

    @functools.cached_property
    def features(self) -> Features:
        """Features of every picture."""
        with Measured(self.budget.device) as cost:
            caches = {
                split: cache_activations(self.network, getattr(self.prepared, split), "head")
                for split in progress(SPLITS, f"{self.name} features")
            }
        tensors = {split: cache.activations() for split, cache in caches.items()}
        # The seconds that the caches took when they were made, so that a ladder that finds them shows the same cost.
        return Features(**tensors, seconds=sum(c.content["seconds"] for c in caches.values()), memory=cost.memory)

    def embed(self, pictures: list[Image.Image]) -> Tensor:
        """Return the features ``(N, D)`` of some pictures."""
        return extract_features(self.network, [(self.prepare(picture), 0) for picture in pictures])[0]

    def labels(self, split: str) -> Tensor:
        """Return the labels ``(N,)`` of a split."""
        return torch.tensor(getattr(self.splits, split).labels)

    def result(self, rung: Rung) -> tuple[RungResult, bool]:
        """Return the result of a rung, and True if it was kept from before; otherwise run the rung and keep it."""
        kept = self.store.load(self.name, rung.name, self.origin(rung))
        if kept is not None:
            return kept, True
        own = {KNN.name: self._neighbours, PROBE.name: self._probe}
        result = own[rung.name]() if rung.name in own else self._train(rung)
        self.store.save(result, self.origin(rung))
        return result, False

    def _neighbours(self) -> RungResult:
        features, labels = self.features, self.labels("train")
        with Measured(self.budget.device) as cost:
            k = best_neighbours(features.train, labels, self.classes)
            shares = nearest_neighbours(features.train, labels, features.val, k, self.classes)
        report = report_on(self.splits, "val", shares.numpy())
        seconds, memory = features.seconds + cost.seconds, max(features.memory, cost.memory)
        return RungResult(self.name, KNN.name, report, seconds, memory, trainable=0, detail=f"k = {k}")

    def _probe(self) -> RungResult:
        features, labels = self.features, self.labels("train")
        with Measured(self.budget.device) as cost:
            penalty = best_penalty(features.train, labels, seed=self.budget.seed)
            fitted = probe(penalty).fit(features.train.numpy(), labels.numpy())
        network = with_probe_as_head(load_pretrained(self.name), fitted, self.classes).eval()
        with evaluating(network):
            logits = {split: last_layer(network)(getattr(features, split)).clone() for split in ("train", "val")}
        seconds, memory = features.seconds + cost.seconds, max(features.memory, cost.memory)
        run = self._log_probe(network, logits, seconds, penalty)
        report = report_on(self.splits, "val", logits["val"].softmax(1).numpy())
        trainable = self.classes * (feature_dim(network) + 1)
        return RungResult(self.name, PROBE.name, report, seconds, memory, trainable, run, f"penalty {penalty:g}")

    def _log_probe(self, network: nn.Module, logits: dict[str, Tensor], seconds: float, penalty: float) -> str:
        """Write a run like those of ``fit``, so that what takes a run takes a probe too; return the run's name."""
        scores = []
        for split in ("train", "val"):
            answers, labels = logits[split], self.labels(split)
            right = (answers.argmax(1) == labels).float().mean().item()
            scores += [nn.functional.cross_entropy(answers, labels).item(), right]
        plan, seed, device = PROBE.strategy.plan(network), self.budget.seed, torch.device(self.budget.device)
        run = Run(PROBE.strategy, plan, seed, [EpochRecord(0, ("head",), *scores, seconds)])
        settings = {"epochs": 1, "seed": seed, "penalty": penalty, "log": "full"}
        log = RunLog("full", settings, plan, network, self.prepared.train, self.prepared.val, device)
        log.epoch(run, network.state_dict())
        log.end(run, network.state_dict(), (logits["val"].softmax(1), self.labels("val")))
        return _name_of(log.folder)

    def _train(self, rung: Rung) -> RungResult:
        train, val, budget = self.train, self.val, self.budget
        options = {key: value for key, value in asdict(budget).items() if key != "augment"}
        network = rung.strategy.starting_model(self.name, self.classes, seed=budget.seed)
        last = LastEpoch(val, budget.epochs)
        with Measured(budget.device) as cost:
            run = fit(network, train, val, rung.strategy, hooks=[last], num_workers="auto", resume=True, **options)
        seconds = cost.seconds + sum(record.seconds for record in run.history[: run.resumed])
        report = report_on(self.splits, "val", evaluate(network, val).probabilities)
        trainable = max(run.plan.trainable_at(epoch) for epoch in range(budget.epochs))
        detail = f"epoch {run.best.epoch + 1} of {budget.epochs}"
        if run.cached is not None:
            detail += f", activations cached in front of {run.cached}"
        name, last_report = _name_of(run.folder), report_on(self.splits, "val", last.probabilities)
        return RungResult(self.name, rung.name, report, seconds, cost.memory, trainable, name, detail, last_report)

    def test_once(self, chosen: RungResult, rung: Rung) -> Report:
        """Return the answers of the chosen network to the test pictures; they are kept, and asked for only once."""
        kept = self.store.load(chosen.model, chosen.rung, self.origin(rung), "test")
        if kept is not None and kept.run == chosen.run:
            return kept.report
        record = load_run(chosen.run)
        answers = evaluate(record.model().to(self.budget.device), self.prepared.test)
        report = report_on(self.splits, "test", answers.probabilities)
        self.store.save(dataclasses.replace(chosen, report=report, last=None), self.origin(rung), "test")
        add_report(record.folder, answers)
        return report

    def audit(self, digests: Sequence[str]) -> Audit:
        """Return the pictures in two splits and the suspicious labels, found with the features of this network.

        Labels of all splits are looked at, those of test too: nothing is chosen by it. `digests` are those of
        :func:`file_digests`.
        """
        features = torch.cat([getattr(self.features, split) for split in SPLITS])
        labels = torch.cat([self.labels(split) for split in SPLITS])
        names, paths = zip(*all_pictures(self.splits), strict=True)
        duplicates = data_audit.near_duplicates(features, names, paths, self.embed, self.budget.seed)
        copies = data_audit.exact_copies(digests, names)
        others = tuple(pair for pair in duplicates.pairs if digests[pair.first] != digests[pair.second])
        suspects = data_audit.suspected_labels(data_audit.out_of_fold(features, labels, seed=self.budget.seed), labels)
        return Audit(tuple(copies), dataclasses.replace(duplicates, pairs=others), tuple(suspects))


def _name_of(folder: Path | None) -> str:
    if folder is None:
        raise CourseError(
            "The network could not be written to the folder of runs, and a ladder needs it there. The warning above "
            "has the reason; COURSE_RUNS names another folder."
        )
    return folder.name


def measure(
    splits: Splits,
    models: Sequence[str],
    budget: Budget,
    root: Path,
    notify: Callable[[str], None] = print,
    rungs: Sequence[Rung] = RUNGS,
) -> Ladder:
    """Return the ladder: every rung is run with every network, one is chosen and tested once, the data are checked.

    Parameters
    ----------
    splits, models, budget
        The data, from :func:`~course_utils.datasets.open_dataset`, the names of networks, and the settings.
    root
        Folder in which the folders of ladders are.
    notify
        Function that is given a line about each rung, and one about a Stop.
    rungs
        Rungs from the lowest up; at least one of them has to leave a network.

    Raises
    ------
    CourseError
        If no rung left a network, or something cannot be written.
    KeyboardInterrupt
        If somebody stops it. Called again with the same arguments it goes on behind the last finished rung.
    """
    results: list[RungResult] = []
    try:
        digests = file_digests(splits)
        store = ResultStore(ladder_folder(root, splits, digests, budget), splits)
        runners = {name: LadderRunner(name, splits, budget, store) for name in models}
        failures = _run_all([(runner, rung) for runner in runners.values() for rung in rungs], results, notify)
        chosen = choose(results)
        looks = count_look(root, splits.test.paths, chosen.run)
        rung = next(rung for rung in rungs if rung.name == chosen.rung)
        test = runners[chosen.model].test_once(chosen, rung)
        audit = runners[_best_features(results)].audit(digests)
    except KeyboardInterrupt:
        finished = f"{len(results)} of {len(models) * len(rungs)} rungs"
        names = f" ({'; '.join(result.name for result in results)})" if results else ""
        notify(f"Stopped. Finished and kept: {finished}{names}. The same command goes on from there.")
        raise
    return Ladder(splits, budget, tuple(results), failures, chosen, test, looks, audit, store.folder)


def _run_all(
    todo: Sequence[tuple[LadderRunner, Rung]], results: list[RungResult], notify: Callable[[str], None]
) -> dict[str, str]:
    """Run rungs and append to `results`, so that those are there after a Stop; return the failures."""
    failures = {}
    for runner, rung in progress(todo, "the ladder"):
        try:
            result, kept = runner.result(rung)
        except TrainingDiverged as error:
            failures[f"{runner.name}, {rung.name}"] = str(error)
            notify(f"{runner.name}, {rung.name}: no result. {error}")
            continue
        results.append(result)
        notify(f"{result.name}: {result.accuracy}, {'kept from before' if kept else f'{result.seconds:.1f} s'}")
    return failures


def _best_features(results: Sequence[RungResult]) -> str:
    """Return the network whose features serve a probe best on validation; without a probe the first one."""
    probes = [result for result in results if result.rung == PROBE.name]
    return max(probes or results[:1], key=lambda result: result.report.right).model
