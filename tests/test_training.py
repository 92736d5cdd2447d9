"""training.py: one fit for every strategy, to the last bit reproducible, and honest about what it counted."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from helpers import (
    ColourPatches,
    Noisy,
    cheap_model,
    copy_of,
    generators_untouched,
    mini,
    moved,
    moved_stages,
    no_hooks,
    stopped_run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from course_utils import fine_tuning
from course_utils.common.errors import CourseError
from course_utils.engine import hooks, setup
from course_utils.engine.devices import make_accelerator
from course_utils.engine.history import EpochRecord, Run, TrainingDiverged, TrainingStopped
from course_utils.engine.metrics import EpochMetrics
from course_utils.engine.options import FitOptions
from course_utils.engine.processes import ProcessGroup, shard_of
from course_utils.engine.sampling import BalancedOrder, SeededOrder
from course_utils.evaluation import evaluate
from course_utils.fine_tuning import (
    DISCRIMINATIVE,
    FEATURE_EXTRACTION,
    FULL,
    LAST_BLOCK,
    PROGRESSIVE,
    STRATEGIES,
    Strategy,
    rate_factor,
)
from course_utils.pretrained_models import last_layer, stages
from course_utils.training import fit, last_run, simple_fit

# The ready strategies' rates may be tuned; what depends on a rate uses this one.
HEAD = Strategy("head", starts=(0, None), rates=(1e-2,))
TRAIN, VAL = ColourPatches(12, seed=1), ColourPatches(7, seed=2)
LOOKS = 2  # before it begins, fit looks at the first and the last picture


def quick(model, train=TRAIN, val=VAL, strategy=FULL, **options):
    # What the log does is the matter of test_runs.py; without it these tests take half the time.
    return fit(model, train, val, strategy, **({"epochs": 2, "batch_size": 4, "device": "cpu", "log": "off"} | options))


def numbers(run):
    return [(r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy) for r in run.history]


class Counted(ColourPatches):
    """Calls `act` with the number of accesses so far."""

    def __init__(self, size, seed, act):
        super().__init__(size, seed)
        self.accesses, self.act = 0, act

    def __getitem__(self, index):
        self.accesses += 1
        return self.act(self.accesses, super().__getitem__(index))


class Watcher(ColourPatches):
    """Keeps a copy of the model whenever picture 0 is read: as validation data, once before and after each epoch."""

    def __init__(self, model, size=7):
        super().__init__(size, seed=2)
        self.model, self.copies = model, []

    def __getitem__(self, index):
        if index == 0:
            self.copies.append(copy_of(self.model))
        return super().__getitem__(index)


# --- reproducible ------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_and_another_seed_others():
    results = []
    for seed, disturbance in ((5, 0), (5, 1), (6, 0)):
        random.seed(disturbance), np.random.seed(disturbance), torch.manual_seed(disturbance)
        model = mini()
        run = quick(model, Noisy(10, seed=1), Noisy(7, seed=2), seed=seed)
        results.append((copy_of(model), numbers(run)))
    assert not moved(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert "conv1.weight" in moved(results[0][0], results[2][0]) and results[0][1] != results[2][1]


def test_the_callers_generators_stay_where_they_were():
    model = mini()
    with generators_untouched():
        quick(model, Noisy(10, seed=1), Noisy(7, seed=2), epochs=1)
    with generators_untouched(), pytest.raises(CourseError):
        quick(model, Noisy(10, seed=1), Noisy(0), epochs=1)


def test_dropout_is_seeded_too():
    weights = []
    for disturbance in (0, 1):
        torch.manual_seed(disturbance)
        model = cheap_model("mobilenet_v2", num_classes=3)  # dropout in front of the last layer
        quick(model, strategy=FEATURE_EXTRACTION, epochs=1, seed=4)
        weights.append(copy_of(model))
    assert not moved(*weights)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, size=50):
        return list(SeededOrder(size, seed, epoch))

    assert len(SeededOrder(50, 0)) == 50
    seen = set()
    for seed in range(4):
        for epoch in range(4):
            torch.manual_seed(epoch), np.random.seed(epoch)
            assert sorted(order(seed, epoch)) == list(range(50))
            assert order(seed, epoch) == order(seed, epoch)
            seen.add(tuple(order(seed, epoch)))
    assert len(seen) == 16
    assert order(0, 0, size=0) == []


def test_each_epoch_shows_every_picture_once_in_its_own_order():
    seen = []

    class Recorded(ColourPatches):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    quick(mini(), Recorded(10, seed=1), strategy=FEATURE_EXTRACTION, epochs=3, seed=8)
    seen = seen[LOOKS:]
    for epoch in range(3):
        assert seen[10 * epoch : 10 * epoch + 10] == list(SeededOrder(10, 8, epoch))
    assert len(seen) == 30


# --- every class equally often -----------------------------------------------------------------------------------


def balanced(labels, seed=0, epoch=0):
    sampler = BalancedOrder(labels, seed, epoch)
    assert len(sampler) == len(labels)
    return list(sampler)


def test_a_balanced_order_draws_every_class_equally_often():
    labels = np.repeat([0, 2, 5], [5000, 900, 100])  # 1, 3 and 4 have no pictures
    drawn = balanced(labels)
    counts = np.bincount(labels[drawn])
    assert len(drawn) == 6000 and counts.sum() == 6000
    # binomial with n = 6000 and p = 1/3 has a standard deviation of 36.5
    assert np.abs(counts[[0, 2, 5]] - 2000).max() < 5 * 36.5 and counts[[1, 3, 4]].sum() == 0


def test_a_balanced_order_draws_every_picture_of_a_class_equally_often():
    labels = np.array([0] * 4 + [1] * 12)
    seen = np.bincount(np.concatenate([balanced(labels, epoch=epoch) for epoch in range(500)]), minlength=16)
    assert np.abs(seen[:4] - 1000).max() < 5 * 31 and np.abs(seen[4:] - 333).max() < 5 * 18


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 1000), st.integers(0, 20))
def test_a_balanced_order_is_a_function_of_seed_and_epoch(labels, seed, epoch):
    with generators_untouched():
        first = balanced(labels, seed, epoch)
    torch.manual_seed(1), np.random.seed(1)
    assert balanced(labels, seed, epoch) == first
    assert all(isinstance(index, int) and 0 <= index < len(labels) for index in first)


def test_another_seed_or_epoch_draws_others():
    orders = {tuple(balanced([0, 1] * 20, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_fit_oversamples_when_asked_to():
    class Recorded(ColourPatches):
        def __init__(self, *args):
            super().__init__(*args)
            self.seen = []

        def __getitem__(self, index):
            self.seen.append(index)
            return super().__getitem__(index)

    train = Recorded(10, 1)
    quick(mini(), train, strategy=FEATURE_EXTRACTION, epochs=3, seed=8, oversample=True)
    for epoch in range(3):
        assert train.seen[LOOKS + 10 * epoch :][:10] == balanced(train.labels, 8, epoch)
    assert len(train.seen) == LOOKS + 30


def test_oversampling_helps_a_rare_class():
    """11 red, 11 green and 2 blue pictures: a few steps teach blue only to whom it is shown often."""
    train = ColourPatches(33, seed=1)
    kept = [i for i, label in enumerate(train.labels) if label < 2 or i < 6]
    train.images, train.labels = train.images[kept], tuple(train.labels[i] for i in kept)
    assert train.labels.count(2) == 2
    blue = []
    for oversample in (False, True):
        model = mini()
        quick(model, train, TRAIN, HEAD, epochs=3, oversample=oversample)
        blue.append(evaluate(model, VAL).probabilities[:, 2].mean())
    assert blue[1] > 1.3 * blue[0]


def test_oversampling_needs_the_label_of_every_picture():
    bare = [(image, 0) for image in torch.zeros(4, 3, 32, 32)]
    with pytest.raises(CourseError, match=r"train\.labels, or train\.targets\. This list has none, or not 4 of them"):
        quick(mini(), bare, oversample=True)
    with pytest.raises(CourseError, match="no class can be drawn"):
        BalancedOrder([-100], 0)


class Targets(Dataset):
    """The samples of TRAIN, with their labels under the name that torchvision uses."""

    targets = TRAIN.labels

    def __len__(self):
        return len(TRAIN)

    def __getitem__(self, index):
        return TRAIN[index]


@pytest.mark.parametrize(
    "train", [Targets(), TensorDataset(TRAIN.images, torch.tensor(TRAIN.labels))], ids=["targets", "tensors"]
)
def test_labels_under_another_name_are_oversampled_too(train):
    named, plain = mini(), mini()
    quick(named, train, epochs=1, oversample=True)
    quick(plain, epochs=1, oversample=True)
    assert not moved(copy_of(named), copy_of(plain))


# --- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_every_strategy_learns(strategy):
    model = strategy.starting_model("resnet18_mini", 3)
    run = quick(model, ColourPatches(18, seed=1), ColourPatches(9, seed=2), strategy, epochs=4, batch_size=6)
    assert run.history[-1].train_loss < 0.7 * run.history[0].train_loss
    assert run.history[-1].train_accuracy > 0.6
    assert run.stopped == "finished" and [r.epoch for r in run.history] == [0, 1, 2, 3]
    assert run.strategy is strategy and run.seconds == sum(r.seconds for r in run.history) > 0


def test_statistics_of_batchnorm_stay_where_a_strategy_keeps_them_and_all_else_learns():
    before, statistics = copy_of(mini()), {name for name, _ in mini().named_buffers()}
    for keeps, stays in ((False, set()), (True, statistics)):
        model = mini()
        quick(model, strategy=dataclasses.replace(FULL, update_statistics=not keeps), epochs=1)
        assert set(moved(before, copy_of(model))) == before.keys() - stays


@pytest.mark.parametrize(
    "strategy", [FEATURE_EXTRACTION, LAST_BLOCK, PROGRESSIVE, DISCRIMINATIVE], ids=lambda s: s.name
)
def test_only_learning_stages_move_and_only_from_their_epoch_on(strategy):
    model = mini()
    watcher = Watcher(model)
    run = quick(model, val=watcher, strategy=strategy, epochs=4)
    assert len(watcher.copies) == 5
    for record, before, after in zip(run.history, watcher.copies, watcher.copies[1:], strict=False):
        assert list(record.learning) == run.plan.learning_at(record.epoch)
        assert moved_stages(model, before, after) == set(record.learning)
    # ... and nothing that never learned has moved at the end
    frozen = set(stages(model)) - set(run.history[-1].learning)
    assert not moved_stages(model, watcher.copies[0], copy_of(model)) & frozen


def test_a_stage_that_wakes_up_later_follows_its_schedule(monkeypatch):
    seen = []
    monkeypatch.setattr(fine_tuning, "rate_factor", lambda *args: seen.append(args) or rate_factor(*args))
    strategy = Strategy("late", starts=(0, 1, None), rates=(1e-2,), warmup=0.25)
    quick(mini(), strategy=strategy, epochs=4)
    steps_per_epoch = 3
    assert {args[1:] for args in seen} == {(0, 12, 3), (steps_per_epoch, 12, 2)}  # a quarter of 12 and of 9 steps
    assert {args[0] for args in seen} == set(range(13))


def test_fit_warns_of_stages_that_never_learn():
    with pytest.warns(UserWarning, match="never lets stem, layer1, layer2, layer3, layer4 learn") as caught:
        quick(mini(), strategy=PROGRESSIVE, epochs=1)
    assert [w.filename for w in caught] == [__file__]


# --- pictures without a label ------------------------------------------------------------------------------------


def partly_labelled(size, seed, without):
    """Colour patches of which some have torch's mark for "no label", and those that have one alone."""
    patches = ColourPatches(size, seed)
    images, labels = patches.images, torch.tensor(patches.labels)
    labels[without] = -100
    return TensorDataset(images, labels), TensorDataset(images[labels >= 0], labels[labels >= 0])


@pytest.mark.parametrize("options", [{}, {"class_weights": [1, 2, 5], "label_smoothing": 0.1}], ids=["", "weighed"])
def test_pictures_without_a_label_teach_nothing_and_count_nowhere(options):
    """In a frozen network without dropout they do not matter at all: the run is that of the others alone."""
    train, val = partly_labelled(16, 1, [2, 3, 8, 15]), partly_labelled(9, 2, [1, 2, 8])
    models, histories = [mini(), mini()], []
    for model, *data in zip(models, train, val, strict=True):
        run = quick(model, *data, HEAD, epochs=1, batch_size=16, **options)
        histories.append(np.array(numbers(run)))
    torch.testing.assert_close(models[0].fc.weight, models[1].fc.weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*histories, rtol=1e-5)


def test_the_report_of_a_run_is_about_labelled_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    run = quick(mini(), TRAIN, partly_labelled(9, 2, [3, 4])[0], HEAD, epochs=1, log="full")
    report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    assert report["n"] == 7 and report["accuracy"] == run.best.val_accuracy


def test_without_any_label_there_is_nothing_to_count():
    group = ProcessGroup(make_accelerator("cpu"))
    group.shard, metrics = shard_of(2, 0, 1), EpochMetrics(group)
    metrics.add(torch.zeros(2, 3), torch.tensor([-100, -100]))
    with pytest.raises(CourseError, match="None of 2 samples has a label, all have -100"):
        metrics.means()


def test_oversampling_draws_labelled_pictures_only():
    labels = [0, -100, 1, 1, -100]
    assert {labels[i] for epoch in range(20) for i in BalancedOrder(labels, 0, epoch)} == {0, 1}


def test_head_only_training_is_plain_adamw():
    """The loop against a loop of five lines: same order, same schedule, same bits of arithmetic."""
    model, other = mini(), mini()
    strategy = Strategy("head", starts=(0, None), rates=(1e-2,), weight_decay=0.0)
    quick(model, val=TRAIN, strategy=strategy, epochs=1, seed=3)
    other.eval().requires_grad_(False)
    head = last_layer(other).requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.0)
    for step, batch in enumerate(torch.tensor(list(SeededOrder(12, 3))).split(4)):
        optimizer.param_groups[0]["lr"] = 1e-2 * rate_factor(step, 0, 3, 0)
        loss = F.cross_entropy(other(TRAIN.images[batch]), torch.tensor(TRAIN.labels)[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(last_layer(model).weight, head.weight, rtol=1e-4, atol=1e-6)


# --- counting, choosing, stopping --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 5, 7])
def test_accuracy_and_loss_are_counted_over_samples(size):
    val = ColourPatches(size, seed=2)
    model = mini()
    run = quick(model, ColourPatches(9, seed=1), val, epochs=1)  # 9 and 5 and 7 end with a short batch of 4
    report = evaluate(model, val)
    assert run.history[0].val_accuracy == report.right / size
    loss = F.cross_entropy(torch.tensor(report.probabilities).log(), torch.tensor(report.labels)).item()
    assert run.history[0].val_loss == pytest.approx(loss, rel=1e-4)
    assert run.history[0].train_accuracy * 9 == pytest.approx(round(run.history[0].train_accuracy * 9), abs=1e-9)


class RightOnce(Watcher):
    """Gives the right labels in one epoch only: whatever has learned is best there."""

    def __init__(self, model, epoch):
        super().__init__(model)
        self.right = ColourPatches(7, seed=2)
        self.epoch = epoch

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        this_epoch = len(self.copies) - 2  # one copy before the first epoch
        return image, label if this_epoch == self.epoch else (label + 1) % 3


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_best_weights_come_back(best):
    model = FULL.starting_model("resnet18_mini", 3)
    watcher = RightOnce(model, best)
    run = quick(model, ColourPatches(24, seed=1), watcher, epochs=3)
    assert run.best is run.history[best]
    assert run.best.val_accuracy == max(r.val_accuracy for r in run.history)
    assert not moved(watcher.copies[best + 1], copy_of(model))
    assert (len(moved(watcher.copies[-1], copy_of(model))) > 0) == (best < 2)
    report = evaluate(model, watcher.right)
    assert report.accuracy == run.best.val_accuracy
    loss = F.cross_entropy(torch.tensor(report.probabilities).log(), torch.tensor(report.labels)).item()
    assert run.best.val_loss == pytest.approx(loss, rel=1e-4)
    assert not model.training


def test_equal_accuracy_is_decided_by_loss_and_equal_loss_by_time():
    plan = FULL.plan(mini())
    numbers = [(0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.7, 0.8), (0.6, 0.1)]
    history = [EpochRecord(i, ("head",), 1.0, 0.5, loss, right, 1.0) for i, (right, loss) in enumerate(numbers)]
    assert Run(FULL, plan, 0, history).best is history[2]


def test_macro_f1_chooses_the_epoch_where_it_is_asked_to(monkeypatch):
    """The weights that come back, the early stop and the printed history go by it."""
    scores = iter([0.3, 0.8, 0.5, 0.4, 0.9])
    monkeypatch.setattr("course_utils.training.macro_f1", lambda *_: next(scores))
    model, kept = mini(), []

    class Keep:
        def on_epoch_end(self, run, model):
            kept.append(copy_of(model))

    run = quick(model, epochs=8, patience=2, choose_by="macro_f1", hooks=[Keep()])
    assert run.best is run.history[1] and run.stopped == "early" and len(run.history) == 4
    assert not moved(kept[1], copy_of(model)) and moved(kept[3], copy_of(model))
    assert [record.val_macro_f1 for record in run.history] == [0.3, 0.8, 0.5, 0.4]
    columns, _, *rows = str(run).splitlines()
    assert "val macro F1" in columns and [row.rstrip().endswith("best") for row in rows] == [False, True, False, False]
    assert "0.800" in rows[1]


def test_the_macro_f1_that_chooses_is_that_of_a_report():
    val = ColourPatches(9, seed=2)
    val.labels = (0, 0, 0, 0, 0, 0, 1, 1, 2)
    model = mini()
    run = quick(model, val=val, epochs=3, choose_by="macro_f1", class_weights=[1, 2, 3])
    assert run.best.val_macro_f1 == pytest.approx(evaluate(model, val).macro_f1)
    assert run.best.val_macro_f1 == max(record.val_macro_f1 for record in run.history)
    plain = quick(mini(), val=val, epochs=3, class_weights=[1, 2, 3])
    assert [r.val_accuracy for r in plain.history] == [r.val_accuracy for r in run.history]  # it changes no training
    assert plain.history[0].val_macro_f1 is None and "macro" not in str(plain)


class Opposite(ColourPatches):
    """The right picture with the wrong label: whoever learns the training set gets worse here."""

    def __init__(self, size, seed):
        super().__init__(size, seed)
        self.labels = tuple((label + 1) % 3 for label in self.labels)


def test_early_stopping():
    val = Opposite(9, seed=2)
    run = quick(mini(), val=val, strategy=HEAD, epochs=30, patience=2)
    assert run.stopped == "early"
    assert len(run.history) - 1 - run.best.epoch == 2 and len(run.history) < 30
    assert len(quick(mini(), val=val, strategy=HEAD, epochs=8).history) == 8


def test_label_smoothing_makes_a_model_less_sure():
    sure, smooth = mini(), mini()
    quick(sure, val=TRAIN, strategy=HEAD, epochs=8)
    quick(smooth, val=TRAIN, strategy=HEAD, epochs=8, label_smoothing=0.5)
    assert (
        evaluate(smooth, TRAIN).probabilities.max(1).mean() < evaluate(sure, TRAIN).probabilities.max(1).mean() - 0.02
    )


def test_the_recorded_loss_is_comparable_whatever_the_training_loss_was():
    """One step, so the training loss is that of the weights before it: the same for both."""
    plain = quick(mini(), epochs=1, batch_size=12)
    other = quick(mini(), epochs=1, batch_size=12, label_smoothing=0.5, class_weights=[5, 1, 1])
    assert plain.history[0].train_loss == other.history[0].train_loss
    assert plain.history[0].val_loss != other.history[0].val_loss


def test_class_weights_pull_towards_their_class():
    shares = []
    for weights in ([20, 1, 1], [1, 1, 20]):
        model = mini()
        quick(model, val=TRAIN, strategy=HEAD, class_weights=weights)
        shares.append(evaluate(model, VAL).probabilities.mean(0))
    assert shares[0][0] > shares[1][0] + 0.05 and shares[1][2] > shares[0][2] + 0.05


# --- interruptions and accidents ---------------------------------------------------------------------------------


def interrupt_at(n):
    def act(accesses, sample):
        if accesses == n:
            raise KeyboardInterrupt
        return sample

    return act


def stopped(*args, **options):
    """The run that a Stop ended."""
    run = stopped_run(quick, *args, **options)
    assert last_run() is run
    return run


def test_a_stop_leaves_the_run_so_far_and_the_best_weights():
    model = mini()
    watcher = Watcher(model)
    train = Counted(12, 1, interrupt_at(LOOKS + 2 * 12 + 9))  # two epochs, and into the third
    run = stopped(model, train, watcher, epochs=5)
    assert run.stopped == "interrupted" and len(run.history) == 2
    assert not moved(watcher.copies[run.best.epoch + 1], copy_of(model))
    assert evaluate(model, ColourPatches(7, seed=2)).accuracy == run.best.val_accuracy
    # Unbroken, the first two epochs are the same, and the next fit works.
    assert numbers(quick(mini(), ColourPatches(12, 1), epochs=5))[:2] == numbers(run)


def test_stop_in_the_first_epoch_leaves_the_model_as_it_came():
    model = mini()
    before = copy_of(model)
    run = stopped(model, Counted(12, 1, interrupt_at(10)))
    assert run.stopped == "interrupted" and run.history == [] and run.best is None and run.seconds == 0
    assert not moved(before, copy_of(model)) and not model.training
    assert str(run).splitlines()[0].startswith("epoch")


def test_stop_while_validating():
    run = stopped(mini(), val=Counted(7, 2, interrupt_at(LOOKS + 7 + 3)), epochs=5)
    assert run.stopped == "interrupted" and len(run.history) == 1


def spoil_at(n):
    def act(accesses, sample):
        image, label = sample
        return (torch.full_like(image, math.nan) if accesses == n else image), label

    return act


@pytest.mark.parametrize("strategy", [FULL, FEATURE_EXTRACTION], ids=lambda s: s.name)
@pytest.mark.parametrize(("n", "finished"), [(5, 0), (13, 0), (LOOKS + 12 + 6, 1)])
def test_a_picture_that_is_not_a_number_stops_with_advice(strategy, n, finished):
    model = mini()
    before = copy_of(model)
    with pytest.raises(TrainingDiverged) as caught:
        quick(model, Counted(12, 1, spoil_at(n)), strategy=strategy, epochs=3)
    for part in (f"nan in epoch {finished + 1}", f"rate: {max(strategy.rates):g}.", "tenth", "finite"):
        assert part in str(caught.value)
    assert isinstance(caught.value, CourseError)
    assert len(caught.value.run.history) == finished and caught.value.run.stopped == "diverged"
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    if not finished:
        assert not moved(before, copy_of(model))
    quick(model, epochs=1)  # what is left can be trained


def test_a_validation_picture_that_is_not_a_number():
    model = mini()
    with pytest.raises(TrainingDiverged, match="nan in epoch 2") as caught:
        quick(model, val=Counted(7, 2, spoil_at(LOOKS + 7 + 3)), epochs=3)
    assert len(caught.value.run.history) == 1


def test_a_rate_far_too_high():
    model = mini()
    with pytest.raises(TrainingDiverged, match=r"1e\+30"):
        # One step per epoch: the training loss is still fine when the weights are ruined.
        quick(model, strategy=Strategy("boom", starts=(0,), rates=(1e30,), warmup=0), batch_size=12, epochs=3)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# --- a Stop ends everything, and says how to go on ---------------------------------------------------------------


def test_a_stop_is_one_sentence_that_says_how_to_go_on():
    with pytest.raises(TrainingStopped) as caught:
        quick(mini(), Counted(12, 1, interrupt_at(LOOKS + 12 + 6)), epochs=3)
    (line,) = caught.value._render_traceback_()  # what IPython shows instead of a traceback
    assert line == str(caught.value)
    assert line.startswith("Stopped in epoch 2 of 3: the model has the weights of epoch 1, the best so far; ")
    assert line.endswith("the same call begins anew (fit(..., resume=True) would go on), last_run() has the history.")


def test_a_stop_before_the_first_epoch_is_over_says_that_nothing_was_learned():
    with pytest.raises(TrainingStopped, match=r"Stopped in epoch 1 of 2: the model is as it came; the same call"):
        quick(mini(), Counted(12, 1, interrupt_at(6)))


def test_a_loop_over_runs_ends_with_the_run_that_was_stopped():
    """Swallowed, a Stop would let every later run go on to its end."""
    train, begun = Counted(12, 1, interrupt_at(LOOKS + 24 + LOOKS + 6)), []  # in the second run
    with pytest.raises(KeyboardInterrupt):
        for seed in range(3):
            begun.append(seed)
            quick(mini(), train, seed=seed)
    assert begun == [0, 1] and last_run().seed == 1 and last_run().stopped == "interrupted"


def test_a_stopped_error_keeps_no_other_error():
    with pytest.raises(TrainingStopped) as caught:
        quick(mini(), Counted(12, 1, interrupt_at(9)))
    assert caught.value.__context__ is None and caught.value.__cause__ is None


# --- hooks -------------------------------------------------------------------------------------------------------


class Seen:
    """Writes down what it is called with."""

    def __init__(self):
        self.calls, self.states = [], []

    def on_train_begin(self, run, model):
        self.calls.append(("begin", len(run.history), run.stopped))
        self.states.append(copy_of(model))

    def on_epoch_end(self, run, model):
        self.calls.append(("epoch", len(run.history), run.stopped))
        self.states.append(copy_of(model))

    def on_stop(self, run, model):
        self.calls.append(("stop", len(run.history), run.stopped))

    def on_train_end(self, run, model):
        self.calls.append(("end", len(run.history), run.stopped))
        self.states.append(copy_of(model))


def test_a_hook_sees_every_epoch_and_the_weights_of_each():
    model, seen = FULL.starting_model("resnet18_mini", 3), Seen()
    start = copy_of(model)
    run = quick(model, epochs=3, hooks=[seen])
    assert seen.calls == [
        ("begin", 0, "running"),
        *(("epoch", n, "running") for n in (1, 2, 3)),
        ("end", 3, "finished"),
    ]
    assert not moved(start, seen.states[0]) and all(
        moved(*pair) for pair in zip(seen.states, seen.states[1:-1], strict=False)
    )
    assert not moved(seen.states[-1], copy_of(model)) and not moved(seen.states[-1], seen.states[1 + run.best.epoch])


def test_hooks_change_nothing_that_is_learned():
    models = [mini(), mini()]
    quick(models[0], Noisy(12, 1))
    quick(models[1], Noisy(12, 1), hooks=[Seen()])
    assert not moved(*map(copy_of, models))


def test_a_hook_is_told_of_a_stop_before_the_best_weights_come_back():
    seen = Seen()
    stopped(mini(), Counted(12, 1, interrupt_at(LOOKS + 12 + 6)), hooks=[seen])
    assert seen.calls[-2:] == [("stop", 1, "interrupted"), ("end", 1, "interrupted")]


def test_a_stop_before_anything_was_copied_leaves_the_model_as_it_is(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hooks.BestWeights, "on_train_begin", stop)
    model = mini()
    before = copy_of(model)
    assert stopped(model).history == [] and not moved(before, copy_of(model))


def test_a_hook_may_end_the_training():
    class Enough:
        def on_epoch_end(self, run, model):
            run.stopped = "early"

    run = quick(mini(), epochs=5, hooks=[Enough()])
    assert run.stopped == "early" and len(run.history) == 1


@pytest.mark.parametrize("hook", [object(), Seen, lambda run, model: None], ids=["object", "class", "function"])
def test_what_is_no_hook_is_refused(hook):
    with pytest.raises(CourseError, match=r"hooks has .* give objects with one of the methods on_train_begin"):
        quick(mini(), hooks=[hook])


def test_gradients_that_were_there_before_do_not_count():
    models = [FULL.starting_model("resnet18_mini", 3) for _ in range(2)]
    F.cross_entropy(models[1].eval()(TRAIN.images), torch.tensor(TRAIN.labels)).backward()
    for model in models:
        quick(model, strategy=FEATURE_EXTRACTION, epochs=1)
    assert not moved(*map(copy_of, models))


# --- options -----------------------------------------------------------------------------------------------------


def test_options_and_keywords_are_the_same():
    models, runs = [mini(), mini(), mini()], []
    options = FitOptions(epochs=2, batch_size=4, seed=5, device="cpu", log="off")
    runs.append(fit(models[0], TRAIN, VAL, FULL, options))
    runs.append(fit(models[1], TRAIN, VAL, FULL, epochs=2, batch_size=4, seed=5, device="cpu", log="off"))
    runs.append(
        fit(models[2], TRAIN, VAL, FULL, FitOptions(epochs=9, device="cpu", log="off"), epochs=2, batch_size=4, seed=5)
    )
    assert numbers(runs[0]) == numbers(runs[1]) == numbers(runs[2])
    assert not moved(copy_of(models[0]), copy_of(models[1])) and not moved(copy_of(models[0]), copy_of(models[2]))


def test_numbers_of_numpy_are_numbers():
    options = FitOptions(
        epochs=np.int64(2), batch_size=np.int32(4), seed=np.uint8(5), label_smoothing=np.float32(0.5), patience=None
    )
    assert options == FitOptions(epochs=2, batch_size=4, seed=5, label_smoothing=0.5)
    assert json.dumps(options.as_settings()) == json.dumps(FitOptions(2, 4, 5, label_smoothing=0.5).as_settings())


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match=r"fit\(\) has no option 'epoch'; it has epochs, batch_size, seed"):
        quick(mini(), epoch=3)


# --- the plain loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["resnet18_mini", "vgg11_mini", "efficientnet_b0_mini", "mobilenet_v3_small_mini"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_the_plain_loop_comes_to_the_weights_of_fit(strategy, network):
    """Bit by bit: order, rates, freezing, dropout, counting and the choice of the best epoch are the same."""
    fitted, plain = (strategy.starting_model(network, 3) for _ in range(2))
    train, val = ColourPatches(10, seed=1), ColourPatches(6, seed=2)
    run = quick(fitted, train, val, strategy, epochs=3, seed=7)
    with generators_untouched():
        history = simple_fit(plain, train, val, strategy, epochs=3, batch_size=4, seed=7)
    assert not moved(copy_of(fitted), copy_of(plain))
    assert history == [(record.val_accuracy, record.val_loss) for record in run.history]


@pytest.mark.parametrize("size", [5, 9])  # with 4 in a batch, one picture is left over
def test_a_picture_that_is_left_over_joins_the_last_batch(size):
    """On maps of 1 × 1 a batch of one picture is refused by BatchNorm, on larger ones its statistics are useless."""
    fitted, plain = mini(), mini()
    train, val = ColourPatches(size, seed=1, side=16), ColourPatches(5, seed=2, side=16)
    sizes = []
    hook = fitted.register_forward_pre_hook(lambda model, inputs: sizes.append((model.training, len(inputs[0]))))
    run = quick(fitted, train, val, epochs=2)
    hook.remove()
    assert [n for training, n in sizes if training] == [4, 4, 5][-(size // 4) :] * 2 and (False, 1) in sizes
    history = simple_fit(plain, train, val, FULL, epochs=2, batch_size=4)
    assert not moved(copy_of(fitted), copy_of(plain))
    assert history == [(record.val_accuracy, record.val_loss) for record in run.history]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"train": ColourPatches(1, side=16)}], ids=["batch", "data"])
def test_batch_norm_is_not_asked_to_learn_from_one_value(options):
    with pytest.raises(CourseError, match=r"one picture where its map is 1 × 1.*batch_size of 2 or more") as caught:
        quick(mini(), **({"train": ColourPatches(6, side=16)} | options))
    assert caught.value.__context__ is None and last_run().stopped == "failed"
    quick(mini(), strategy=FEATURE_EXTRACTION, **({"train": ColourPatches(6, side=16)} | options))  # it is frozen there


# --- what cannot work --------------------------------------------------------------------------------------------


class Pictures(ColourPatches):
    def __getitem__(self, index):
        return Image.new("RGB", (32, 32)), self.labels[index]


def labelled(*labels):
    dataset = ColourPatches(len(labels))
    dataset.labels = labels
    return dataset


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"patience": 0}, "patience=0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"label_smoothing": "0.1"}, "it is a share"),
        ({"epochs": 2.0}, "epochs=2.0: give a whole number, at least 1."),
        ({"epochs": True}, "epochs=True"),
        ({"batch_size": 4.5}, "batch_size=4.5"),
        ({"batch_size": None}, "batch_size=None"),
        ({"patience": math.nan}, "patience=nan"),
        ({"seed": -1}, "seed=-1: give a whole number, at least 0."),
        ({"seed": "0"}, "seed='0'"),
        ({"class_weights": [0, 1, 1]}, "class_weights=[0, 1, 1]: give a list with a number above 0 for every class"),
        ({"class_weights": [1, -1, 1]}, "above 0"),
        ({"class_weights": [1, math.nan, 1]}, "above 0"),
        ({"class_weights": np.array([1, np.inf, 1])}, "above 0"),
        ({"class_weights": {"cat": 1}}, "above 0"),
        ({"class_weights": 3}, "class_weights=3"),
        ({"class_weights": [1, 2]}, "class_weights has 2 entries, the head has 3"),
        ({"train": ColourPatches(0)}, "train split is empty"),
        ({"val": ColourPatches(0)}, "val split is empty"),
        ({"train": labelled(0, 1, 3)}, "train split has labels up to 3"),
        ({"val": labelled(0, 7)}, "num_classes=8"),
        ({"train": labelled(0, -1)}, "label -1"),
        ({"train": TensorDataset(torch.zeros(2, 3, 32, 32), torch.tensor([5, 5]))}, "labels up to 5"),
        ({"train": Pictures(3)}, "train split gives a Image instead of a tensor"),
        ({"val": Pictures(3)}, "with_transform"),
        ({"choose_by": "f1"}, "choose_by='f1' is unknown: give one of accuracy, macro_f1."),
        ({"log": "yes"}, "log='yes' is unknown: give one of full, light, off."),
        ({"num_workers": -1}, "num_workers=-1: give a whole number, at least 0, or 'auto'"),
        ({"num_workers": "many"}, "or 'auto'"),
        ({"device": "tpu"}, "'tpu'"),
        ({"precision": "half"}, "precision='half' is unknown: give 'auto' or one of float32, bfloat16, float16."),
        ({"precision": "float16"}, "not possible on cpu: give 'auto' or one of float32, bfloat16."),
        ({"device": "mps"}, "'mps'"),
        ({"device": "cuda"}, "no GPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_work_is_said_before_anything_is_spent(options, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    model = mini()
    before = copy_of(model)
    with pytest.raises(CourseError) as caught:
        quick(model, **options)
    assert told in str(caught.value)
    assert not moved(before, copy_of(model))


def test_a_gpu_without_room_for_the_network_is_one_sentence(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(setup, "inputs_for", full)
    with pytest.raises(CourseError, match=r"memory of the GPU is too small.*device='cpu'"):
        quick(mini())
    assert last_run().stopped == "failed"


def test_a_head_and_data_of_another_size_name_both():
    with pytest.raises(CourseError, match=r"labels up to 2, the model's head has 2 outputs.*num_classes=3"):
        quick(mini(num_classes=2))


# --- what is left behind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", [FEATURE_EXTRACTION, PROGRESSIVE], ids=lambda s: s.name)
def test_nothing_is_left_on_the_model(precision, strategy):
    model = mini()
    attributes = vars(model).keys()
    quick(model, strategy=strategy, epochs=3, precision=precision)
    assert vars(model).keys() == attributes and no_hooks(model)
    twin = mini()
    twin.load_state_dict(copy_of(model))
    twin.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = model(VAL.images)
        assert logits.dtype == torch.float32 and torch.equal(logits, twin(VAL.images))


def test_a_run_prints_its_epochs_and_marks_the_best():
    run = quick(mini(), epochs=3)
    lines = str(run).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert [line.endswith("best") for line in lines] == [record is run.best for record in run.history]
    assert Run(FULL, run.plan, 0).best is None
