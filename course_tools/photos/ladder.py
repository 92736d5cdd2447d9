"""The ladder, and how far up it is worth climbing: from nearest neighbours to training everything.

=================  =============================================================  ==========================
rung               what it does                                                   what it is for
=================  =============================================================  ==========================
kNN                asks the most similar training pictures                        the yardstick: no training
linear probe       fits a new head to features, once                              scenario A of the brief
last block         trains the head and the stage in front of it                   scenario B
progressive        wakes one stage more in every epoch                            scenario B
full fine-tuning   trains everything                                              scenario C
from scratch       trains everything from random weights                          what pre-training is worth
=================  =============================================================  ==========================

Rungs are compared by a paired test on the *validation* pictures, and the one to use is chosen by them. The test
pictures are asked once, by the chosen network. A finished rung is kept in a folder whose name depends on the pictures
and the settings, so that a ladder that was stopped goes on where it was; a rung that was in the middle of training
goes on behind its last finished epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from course_tools.photos.data_audit import (
    Duplicates,
    Pair,
    Suspect,
    exact_copies,
    near_duplicates,
    out_of_fold,
    suspected_labels,
)
from course_tools.photos.probes import best_neighbours, best_penalty, nearest_neighbours, with_probe_as_head
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of, written_whole
from course_utils.common.measuring import Measured
from course_utils.common.progress import progress
from course_utils.common.state import evaluating
from course_utils.common.tables import text_table
from course_utils.datasets import SPLITS, MemoryDataset, Splits, in_memory_if_it_fits
from course_utils.engine.activation_cache import cache_activations
from course_utils.engine.pixel_store import read_fast
from course_utils.engine.provenance import weights_digest
from course_utils.engine.run_log import EpochRecord, RunLog
from course_utils.engine.runs import RunRecord, add_report, load_run
from course_utils.evaluation import PairedComparison, Report, compare_models, evaluate, interval_text, probe
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import FEATURE_EXTRACTION, FROM_SCRATCH, FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.pretrained_models import feature_dim, last_layer, load_pretrained, weights_entry
from course_utils.training import Run, TrainingDiverged, fit
from course_utils.transforms import eval_transform

FORMAT = 1


@dataclass(frozen=True)
class Rung:
    """One way to make something of a pre-trained network.

    Parameters
    ----------
    name
        For tables.
    strategy
        What learns; None where no network comes out.
    """

    name: str
    strategy: Strategy | None


KNN = Rung("kNN", None)
PROBE = Rung("linear probe", dataclasses.replace(FEATURE_EXTRACTION, name="linear probe"))
TRAINED = tuple(Rung(strategy.name, strategy) for strategy in (LAST_BLOCK, PROGRESSIVE, FULL, FROM_SCRATCH))
RUNGS = (KNN, PROBE, *TRAINED)


@dataclass(frozen=True)
class Budget:
    """What all rungs of a ladder have in common.

    Parameters
    ----------
    epochs, batch_size, seed
        As for :func:`~course_utils.training.fit`.
    augment
        As for :func:`~course_utils.transforms.train_transform`; only the rungs that train see changed pictures.
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``.
    """

    epochs: int = 6
    batch_size: int = 16
    seed: int = 0
    augment: str = "none"
    device: str = "cpu"


@dataclass(frozen=True)
class Result:
    """What one rung with one network gave.

    Parameters
    ----------
    model, rung
        Names.
    report
        Answers to the validation pictures.
    seconds, memory
        Time, and peak of memory in bytes (:class:`~course_utils.common.measuring.Measured`). For kNN and the probe the
        time that it took to read the pictures and cache their features is in it; a rung that trains finds them decoded.
    trainable
        How many parameters learn when most do.
    run
        Name of the run whose folder has the network; None for kNN.
    detail
        What was chosen on the way, such as ``"k = 5"``.
    """

    model: str
    rung: str
    report: Report
    seconds: float
    memory: int
    trainable: int
    run: str | None = None
    detail: str = ""

    @property
    def name(self) -> str:
        """Network and rung."""
        return f"{self.model}, {self.rung}"


@dataclass(frozen=True)
class Step:
    """A rung beside the best of those below it, on the same validation pictures.

    Parameters
    ----------
    result, below
        The rung, and the best one under it of the same network.
    comparison
        Paired, the rung first.
    """

    result: Result
    below: Result
    comparison: PairedComparison

    @property
    def worth(self) -> bool:
        """Whether it is better by more than chance explains."""
        return self.comparison.distinguishable and self.comparison.difference > 0

    @property
    def verdict(self) -> str:
        """``"worth it"``, or in which way not."""
        if self.worth:
            return "worth it"
        if self.comparison.distinguishable:
            return "not worth it, it is worse"
        return "not shown to be worth it" if self.comparison.difference > 0 else "not worth it"

    def row(self) -> list[str]:
        """The step as it stands under ``STEP_COLUMNS``."""
        low, high = self.comparison.interval
        p = self.comparison.p_value
        return [
            self.result.model,
            self.result.rung,
            self.below.rung,
            f"{100 * self.comparison.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            f"{p:.2f}" if p >= 0.01 else f"{p:.3f}" if p >= 0.001 else "< 0.001",
            f"× {self.result.seconds / max(self.below.seconds, 1e-3):.1f}",
            self.verdict,
        ]


STEP_COLUMNS = ("network", "rung", "against", "points (95 % interval)", "p", "seconds", "verdict")


def fewest_to_tell() -> int:
    """On how many pictures a rung has to be right alone, against none for the other, before the paired test tells."""
    return next(k for k in itertools.count(1) if PairedComparison(0, k, 0, 0).distinguishable)


@dataclass(frozen=True)
class Audit:
    """What was found out about the pictures themselves; numbers count through train, val and test.

    Parameters
    ----------
    copies
        The same file in two splits.
    duplicates
        The same picture in two splits, and how that was looked for.
    suspects
        Labels that a probe disagrees with, the most suspicious first.
    """

    copies: tuple[Pair, ...]
    duplicates: Duplicates
    suspects: tuple[Suspect, ...]


@dataclass(frozen=True)
class Ladder:
    """Everything that a report tells.

    Parameters
    ----------
    splits
        The data.
    budget
        The settings.
    results
        One per network and rung, from the lowest up.
    failures
        Network and rung → why it gave no result.
    chosen
        The network with the highest validation accuracy; of equals the first.
    test
        What it answered to the test pictures.
    looks
        How many networks have been asked about these test pictures in this folder, the chosen one included.
    audit
        What was found out about the pictures.
    folder
        Where results are kept.
    """

    splits: Splits
    budget: Budget
    results: tuple[Result, ...]
    failures: dict[str, str]
    chosen: Result
    test: Report
    looks: int
    audit: Audit
    folder: Path

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every rung beside the best one below it."""
        return tuple(steps(self.results))

    def __str__(self) -> str:
        return results_table(self.results)


COLUMNS = ("network", "rung", "validation accuracy (95 % interval)", "seconds", "memory MB", "trainable", "run")


def results_table(results: Sequence[Result]) -> str:
    """One line per rung."""
    return text_table(COLUMNS, [result_row(result) for result in results])


def result_row(result: Result) -> list[object]:
    """A result as it stands under ``COLUMNS``."""
    accuracy = interval_text(result.report.right, len(result.report.labels))
    run = None if result.run is None else result.run.rpartition("-")[2]
    memory = round(result.memory / 1e6)
    return [result.model, result.rung, accuracy, f"{result.seconds:.1f}", memory, result.trainable, run]


def steps_table(steps: Sequence[Step]) -> str:
    """One line per step."""
    return text_table(STEP_COLUMNS, [step.row() for step in steps])


def steps(results: Sequence[Result]) -> list[Step]:
    """Compare every rung with the best of those below it, network by network."""
    found, best = [], {}
    for result in results:
        below = best.get(result.model)
        if below is not None:
            pair = compare_models(result.report, below.report, (result.rung, below.rung))
            found.append(Step(result, below, pair))
        if below is None or result.report.right > below.report.right:
            best[result.model] = result
    return found


def choose(results: Sequence[Result]) -> Result:
    """The result with the highest validation accuracy among those that left a network; of equals the first.

    Raises
    ------
    CourseError
        If there is none.
    """
    networks = [result for result in results if result.run is not None]
    if not networks:
        raise CourseError("No rung of this ladder left a network, so there is none to choose; see what failed above.")
    return max(networks, key=lambda result: result.report.right)


# --- what is kept ------------------------------------------------------------------------------------------------


class Store:
    """The folder in which finished rungs are kept.

    Each is a ``.safetensors`` file with its answers and a ``.json`` file, written last, with everything else and the
    hash of the first. What does not fit together is not there.

    Parameters
    ----------
    folder
        Made when something is written.
    splits
        Whose validation and test pictures the answers are about.
    """

    def __init__(self, folder: Path, splits: Splits) -> None:
        self.folder, self.splits = folder, splits

    def save(self, name: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write facts and tensors under a name."""
        from safetensors.torch import save

        content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
        with written_whole(self._path(name, "safetensors")) as beside:
            beside.write_bytes(content)
        record = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest(), **facts}
        with written_whole(self._path(name, "json")) as beside:
            beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was written under a name; None if nothing was, or it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            facts = json.loads(self._path(name, "json").read_text(encoding="utf-8"))
            content = self._path(name, "safetensors").read_bytes()
            if facts["format"] != FORMAT or facts["sha256"] != hashlib.sha256(content).hexdigest():
                return None
            return facts, load(content)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def save_result(self, result: Result, weights: str) -> None:
        """Keep a rung; `weights` is the fingerprint of what it began with."""
        facts = {key: value for key, value in _shallow(result).items() if key != "report"} | {"weights": weights}
        self.save(_slug(result.name), facts, {"probabilities": torch.from_numpy(result.report.probabilities)})

    def load_result(self, model: str, rung: Rung, weights: str) -> Result | None:
        """A rung that was finished before, with its network still there; None if it has to be climbed."""
        found = self.load(_slug(f"{model}, {rung.name}"))
        if found is None or found[0].get("weights") != weights:
            return None
        facts, tensors = found
        try:
            report = self.report("val", tensors["probabilities"])
            names = [f.name for f in dataclasses.fields(Result) if f.name != "report"]
            result = Result(report=report, **{name: facts[name] for name in names})
        except (CourseError, KeyError):
            return None
        return result if result.run is None or network_of(result) is not None else None

    def report(self, split: str, probabilities: Tensor) -> Report:
        """Answers to a split as a report."""
        labels = np.asarray(getattr(self.splits, split).labels)
        return Report(self.splits.classes, labels, probabilities.numpy())

    def tested(self) -> list[str]:
        """Names under which answers to the test pictures are kept."""
        return sorted(path.stem for path in self.folder.glob("test-*.json"))

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}.{ending}"


def _shallow(item: Any) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")


def network_of(result: Result) -> RunRecord | None:
    """The run that has the network of a result; None if it is gone."""
    try:
        record = load_run(result.run)
        return record if (record.folder / "best.safetensors").is_file() else None
    except CourseError:
        return None


def ladder_folder(root: Path, splits: Splits, digests: Sequence[str], budget: Budget) -> Path:
    """Where the rungs of these pictures with these settings are kept.

    Parameters
    ----------
    root
        Folder of all ladders.
    splits
        The data.
    digests
        SHA-256 of each file of train, val and test, in this order.
    budget
        The settings. On another device the numbers are the same up to rounding, so it does not count.
    """
    settings = {key: value for key, value in asdict(budget).items() if key != "device"}
    labels = [[split, *getattr(splits, split).labels] for split in SPLITS]
    text = json.dumps([FORMAT, settings, splits.classes, labels, list(digests)])
    return root / f"{_slug(splits.name)[:40] or 'photos'}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def file_digests(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, in order."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(progress(pool.map(sha256_of, paths), "reading the files", total=len(paths)))


def all_paths(splits: Splits) -> list[Path]:
    """The files of train, val and test."""
    return [path for split in SPLITS for path in getattr(splits, split).paths]


def split_names(splits: Splits) -> list[str]:
    """For each of :func:`all_paths` the split that it is in."""
    return [split for split in SPLITS for _ in getattr(splits, split).paths]


# --- climbing ----------------------------------------------------------------------------------------------------


@dataclass
class _Features:
    """Features ``(N, D)`` of every split, and what they cost."""

    train: Tensor
    val: Tensor
    test: Tensor
    seconds: float
    memory: int


class Climber:
    """One network on one data set: everything that several rungs share, made when it is first needed.

    Parameters
    ----------
    name
        Of the network, as :func:`~course_utils.pretrained_models.load_pretrained` takes it.
    splits
        The data, without transforms.
    budget
        The settings.
    store
        Where finished rungs are kept.
    """

    def __init__(self, name: str, splits: Splits, budget: Budget, store: Store) -> None:
        self.name, self.splits, self.budget, self.store = name, splits, budget, store
        self.entry = weights_entry(name)
        self.classes = len(splits.classes)

    @functools.cached_property
    def network(self) -> nn.Module:
        """As it was pre-trained, on its device, in eval mode."""
        return load_pretrained(self.name).to(self.budget.device).eval()

    @functools.cached_property
    def weights(self) -> str:
        """Fingerprint of the pre-trained weights."""
        return weights_digest(self.network.state_dict())

    @functools.cached_property
    def parts(self) -> dict[str, Dataset]:
        """The splits as the network sees them, in memory where they fit."""
        prepare = eval_transform(self.entry)
        share = 1 / len(SPLITS)
        return {s: in_memory_if_it_fits(getattr(self.splits, s).with_transform(prepare), share) for s in SPLITS}

    @functools.cached_property
    def train(self) -> Dataset:
        """What the rungs that train learn from."""
        if isinstance(self.parts["train"], MemoryDataset) and self.budget.augment == "none":
            return self.parts["train"]
        return read_fast(self.splits.train, self.entry, self.budget.augment, epochs=self.budget.epochs * len(TRAINED))

    @functools.cached_property
    def features(self) -> _Features:
        """What the last layer sees of every picture."""
        prepare = eval_transform(self.entry)
        with Measured(self.budget.device) as cost:
            caches = {
                split: cache_activations(self.network, getattr(self.splits, split).with_transform(prepare), "head")
                for split in progress(SPLITS, f"{self.name} features")
            }
        tensors = {split: cache.activations() for split, cache in caches.items()}
        # What the caches took when they were made, so that a ladder shows the same cost when it finds them there.
        return _Features(**tensors, seconds=sum(c.content["seconds"] for c in caches.values()), memory=cost.memory)

    def embed(self, pictures: list[Image.Image]) -> Tensor:
        """Features ``(N, D)`` of some pictures."""
        prepare = eval_transform(self.entry)
        samples = [(prepare(picture), 0) for picture in pictures]
        return extract_features(self.network, samples)[0]

    def labels(self, split: str) -> Tensor:
        """Labels ``(N,)`` of a split."""
        return torch.tensor(getattr(self.splits, split).labels)

    def climb(self, rung: Rung) -> Result:
        """Do what a rung does.

        Raises
        ------
        KeyboardInterrupt
            If it was stopped; what is kept of it then is the checkpoint of its last finished epoch.
        CourseError
            If it gave no result, for instance because training diverged.
        """
        if rung is KNN:
            return self._neighbours()
        return self._probe() if rung is PROBE else self._train(rung)

    def _neighbours(self) -> Result:
        features, labels = self.features, self.labels("train")
        with Measured(self.budget.device) as cost:
            k = best_neighbours(features.train, labels, self.classes)
            shares = nearest_neighbours(features.train, labels, features.val, k, self.classes)
        report = self.store.report("val", shares)
        seconds, memory = features.seconds + cost.seconds, max(features.memory, cost.memory)
        return Result(self.name, KNN.name, report, seconds, memory, 0, detail=f"k = {k}")

    @functools.cached_property
    def penalty(self) -> float:
        """Of the probe, chosen by cross-validation on the training pictures."""
        return best_penalty(self.features.train, self.labels("train"), seed=self.budget.seed)

    def _probe(self) -> Result:
        features, labels = self.features, self.labels("train")
        with Measured(self.budget.device) as cost:
            fitted = probe(self.penalty).fit(features.train.numpy(), labels.numpy())
        network = with_probe_as_head(load_pretrained(self.name), fitted, self.classes).eval()
        logits = {s: self._head_logits(network, getattr(features, s)) for s in ("train", "val")}
        seconds, memory = features.seconds + cost.seconds, max(features.memory, cost.memory)
        run = self._log_probe(network, logits, seconds)
        report = self.store.report("val", logits["val"].softmax(1))
        trainable = self.classes * (feature_dim(network) + 1)
        detail = f"penalty {self.penalty:g}"
        return Result(self.name, PROBE.name, report, seconds, memory, trainable, run, detail)

    def _head_logits(self, network: nn.Module, features: Tensor) -> Tensor:
        with evaluating(network):
            return last_layer(network)(features).clone()

    def _log_probe(self, network: nn.Module, logits: dict[str, Tensor], seconds: float) -> str:
        """Leave a run like those of ``fit``, so that everything that takes a run takes a probe too."""
        scores = {}
        for split, answers in logits.items():
            labels = self.labels(split)
            right = (answers.argmax(1) == labels).float().mean().item()
            scores[split] = (nn.functional.cross_entropy(answers, labels).item(), right)
        record = EpochRecord(0, ("head",), *scores["train"], *scores["val"], seconds)
        plan = PROBE.strategy.plan(network)
        run = Run(PROBE.strategy, plan, self.budget.seed, [record])
        settings = {"epochs": 1, "seed": self.budget.seed, "penalty": self.penalty, "log": "full"}
        device = torch.device(self.budget.device)
        log = RunLog("full", settings, plan, network, self.parts["train"], self.parts["val"], device)
        log.epoch(run, network.state_dict())
        log.end(run, network.state_dict(), (logits["val"].softmax(1), self.labels("val")))
        return _kept(log.folder)

    def _train(self, rung: Rung) -> Result:
        train, val, budget = self.train, self.parts["val"], self.budget
        network = rung.strategy.starting_model(self.name, self.classes, seed=budget.seed)
        with Measured(budget.device) as cost:
            run = fit(
                network,
                train,
                val,
                rung.strategy,
                epochs=budget.epochs,
                batch_size=budget.batch_size,
                seed=budget.seed,
                device=budget.device,
                num_workers="auto",
                resume=True,
            )
        if run.stopped == "interrupted":
            raise KeyboardInterrupt
        seconds = cost.seconds + sum(record.seconds for record in run.history[: run.resumed])
        probabilities = torch.from_numpy(evaluate(network, val).probabilities)
        trainable = max(run.plan.trainable_at(epoch) for epoch in range(budget.epochs))
        report = self.store.report("val", probabilities)
        detail = f"epoch {run.best.epoch + 1} of {budget.epochs}"
        if run.cached is not None:
            detail += f", activations cached in front of {run.cached}"
        return Result(self.name, rung.name, report, seconds, cost.memory, trainable, _kept(run.folder), detail)


def _kept(folder: Path | None) -> str:
    if folder is None:
        raise CourseError(
            "The network could not be written to the folder of runs, and a ladder needs it there. Free some space, or "
            "set COURSE_RUNS to a folder that you may write to."
        )
    return folder.name


Say = Callable[[str], None]


@dataclass
class Climbed:
    """What :func:`climb` brings back.

    Parameters
    ----------
    results
        One per network and rung that gave one.
    failures
        Network and rung → why it gave none.
    climbers
        The networks, by name.
    """

    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    climbers: dict[str, Climber] = field(default_factory=dict)


def climb(
    splits: Splits, models: Sequence[str], budget: Budget, store: Store, rungs: Sequence[Rung] = RUNGS, say: Say = print
) -> Climbed:
    """Climb every rung with every network; what was finished before is not done again.

    Parameters
    ----------
    splits
        The data, without transforms.
    models
        Names of networks.
    budget
        The settings.
    store
        Where finished rungs are kept.
    rungs
        From the lowest up.
    say
        Is given a line about each rung.

    Raises
    ------
    KeyboardInterrupt
        If somebody stops it; finished rungs are kept.
    """
    climbed = Climbed(climbers={name: Climber(name, splits, budget, store) for name in models})
    for climber, rung in progress([(c, r) for c in climbed.climbers.values() for r in rungs], "the ladder"):
        result = store.load_result(climber.name, rung, climber.weights)
        kept = result is not None
        try:
            if not kept:
                result = climber.climb(rung)
                store.save_result(result, climber.weights)
        except TrainingDiverged as error:
            climbed.failures[f"{climber.name}, {rung.name}"] = str(error)
            say(f"{climber.name}, {rung.name}: no result. {error}")
            continue
        climbed.results.append(result)
        say(_line(result, kept))
    return climbed


def _line(result: Result, kept: bool) -> str:
    accuracy = interval_text(result.report.right, len(result.report.labels))
    how = "kept from before" if kept else f"{result.seconds:.1f} s"
    return f"{result.name}: {accuracy}, {how}"


def test_once(chosen: Result, climber: Climber, store: Store) -> Report:
    """Ask the chosen network about the test pictures, unless its answers are kept.

    Parameters
    ----------
    chosen
        From :func:`choose`.
    climber
        Of its network.
    store
        Keeps the answers, so that running again does not look again.
    """
    name = _slug(f"test-{chosen.name}")
    found = store.load(name)
    if found is not None and found[0].get("run") == chosen.run:
        return store.report("test", found[1]["probabilities"])
    record = load_run(chosen.run)
    report = evaluate(record.model().to(climber.budget.device), climber.parts["test"])
    store.save(name, {"run": chosen.run}, {"probabilities": torch.from_numpy(report.probabilities)})
    add_report(record.folder, report)
    return store.report("test", torch.from_numpy(report.probabilities))


def audit(climber: Climber, digests: Sequence[str]) -> Audit:
    """Look for pictures in two splits and for wrong labels, with the features of one network.

    Labels of all splits are looked at, those of test too: nothing is chosen by it.

    Parameters
    ----------
    climber
        Whose features are used.
    digests
        SHA-256 of all files of train, val and test.
    """
    splits, found = climber.splits, climber.features
    features = torch.cat([found.train, found.val, found.test])
    labels = torch.cat([climber.labels(split) for split in SPLITS])
    names = split_names(splits)
    duplicates = near_duplicates(features, names, all_paths(splits), climber.embed, climber.budget.seed)
    probabilities = out_of_fold(features, labels, seed=climber.budget.seed)
    copies = exact_copies(digests, names)
    same_file = {(pair.first, pair.second) for pair in copies}
    others = tuple(pair for pair in duplicates.pairs if (pair.first, pair.second) not in same_file)
    return Audit(
        tuple(copies), dataclasses.replace(duplicates, pairs=others), tuple(suspected_labels(probabilities, labels))
    )


def measure(
    splits: Splits, models: Sequence[str], budget: Budget, root: Path, say: Say = print, rungs: Sequence[Rung] = RUNGS
) -> Ladder:
    """Climb the ladder, choose, test once, and look at the data.

    Parameters
    ----------
    splits
        From :func:`~course_utils.datasets.open_dataset`.
    models
        Names of networks.
    budget
        The settings.
    root
        Folder in which the folders of ladders are.
    say
        Is given a line about each rung.
    rungs
        From the lowest up; at least one of them has to leave a network.

    Raises
    ------
    CourseError
        If no rung left a network, or something cannot be written.
    KeyboardInterrupt
        If somebody stops it. Called again with the same arguments it goes on behind the last finished rung.
    """
    digests = file_digests(all_paths(splits))
    store = Store(ladder_folder(root, splits, digests, budget), splits)
    climbed = climb(splits, models, budget, store, rungs, say)
    chosen = choose(climbed.results)
    test = test_once(chosen, climbed.climbers[chosen.model], store)
    return Ladder(
        splits,
        budget,
        tuple(climbed.results),
        climbed.failures,
        chosen,
        test,
        len(store.tested()),
        audit(climbed.climbers[_best_features(climbed.results)], digests),
        store.folder,
    )


def _best_features(results: Sequence[Result]) -> str:
    """The network whose features serve a probe best on validation; without a probe the first one."""
    probes = [result for result in results if result.rung == PROBE.name]
    return max(probes or results[:1], key=lambda result: result.report.right).model


def networks(words: Sequence[str], families: Mapping[str, str]) -> list[str]:
    """Names of networks from what somebody asked for: families, names of networks, or ``"all"``.

    Parameters
    ----------
    words
        What was given.
    families
        Family → network, as ``settings.models``.

    Raises
    ------
    CourseError
        For a word that is neither.

    Examples
    --------
    >>> networks(["vgg", "resnet50"], {"vgg": "vgg16"})
    ['vgg16', 'resnet50']
    """
    from course_utils.pretrained_models import available_models

    known, found = set(available_models()), []
    for word in words:
        if word != "all" and word not in families and word not in known:
            raise CourseError(
                f"There is no family or network {word!r}. The families are {', '.join(families)} (or all of them: "
                "all); a network such as resnet50 does too."
            )
        found += families.values() if word == "all" else [families.get(word, word)]
    if not found:
        raise CourseError(f"No family was named. Choose from {', '.join(families)}, or all.")
    return list(dict.fromkeys(found))
