"""evaluation.py: numbers that scikit-learn agrees with, and intervals that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import ColourPatches, copy_of, generators_untouched, mini, moved, no_hooks
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics

from course_utils.errors import CourseError
from course_utils.evaluation import (
    Report,
    color_histograms,
    evaluate,
    interval_text,
    linear_probe,
    majority_baseline,
    mean_and_sd,
    wilson_interval,
)
from course_utils.feature_extraction import freeze

fast = hypothesis_settings(deadline=None, max_examples=100, derandomize=True)
counts = st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


# --- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # R: prop.test(x, n, correct = FALSE)$conf.int
        (81, 263, 0.255274, 0.366197),  # Newcombe 1998, table I: 0.2553 to 0.3662
        (15, 148, 0.062386, 0.160535),  # 0.0624 to 0.1605
        (0, 20, 0.0, 0.161125),  # 0 to 0.1611
        (1, 29, 0.006113, 0.171755),  # 0.0061 to 0.1718
    ],
)
def test_wilson_against_known_values(right, total, low, high):
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)


@fast
@given(counts)
def test_wilson_surrounds_the_share_and_mirrors(pair):
    right, total = pair
    low, high = wilson_interval(right, total)
    assert 0 <= low <= right / total + 1e-12 and right / total - 1e-12 <= high <= 1
    assert high - low > 0
    assert wilson_interval(total - right, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    more_low, more_high = wilson_interval(10 * right, 10 * total)
    assert more_high - more_low < high - low
    wide_low, wide_high = wilson_interval(right, total, z=2.576)
    assert wide_high - wide_low > high - low


@pytest.mark.parametrize(("right", "total"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(right, total):
    with pytest.raises(CourseError, match=f"{right} right of {total}"):
        wilson_interval(right, total)


def test_interval_text():
    assert interval_text(100, 120) == "83.3 % (75.7 to 88.9, n = 120)"
    assert interval_text(5, 5).startswith("100.0 % (56.6 to 100.0")


# --- reports -----------------------------------------------------------------------------------------------------


def report_of(labels, scores, names=None):
    scores = np.asarray(scores, dtype=float)
    names = names or tuple(f"c{i}" for i in range(scores.shape[1]))
    return Report(tuple(names), np.asarray(labels), scores / scores.sum(1, keepdims=True))


@fast
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 10_000))
def test_a_report_agrees_with_scikit_learn(samples, classes, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, samples)
    report = report_of(labels, generator.random((samples, classes)) + 1e-3)
    predicted = report.predictions
    assert report.accuracy == metrics.accuracy_score(labels, predicted)
    assert report.right == metrics.accuracy_score(labels, predicted, normalize=False)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(classes))
    assert (report.confusion == expected).all()
    recalls = metrics.recall_score(labels, predicted, labels=range(classes), average=None, zero_division=np.nan)
    np.testing.assert_allclose(report.recalls, recalls)
    assert report.interval == wilson_interval(report.right, samples)
    mistakes = report.mistakes()
    assert set(mistakes) == {i for i in range(samples) if labels[i] != predicted[i]}
    confidences = [report.probabilities[i].max() for i in mistakes]
    assert confidences == sorted(confidences, reverse=True)


def test_rows_are_true_classes_and_columns_predicted_ones():
    report = report_of([0, 0, 1], [[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert report.confusion.tolist() == [[1, 1], [0, 1]]
    assert report.mistakes() == [0]


def test_a_class_without_samples():
    report = report_of([0, 0], [[0.9, 0.1], [0.1, 0.9]], names=("cat", "dog"))
    assert report.recalls[0] == 0.5 and math.isnan(report.recalls[1])
    lines = str(report).splitlines()
    assert lines[2].startswith("cat") and "50.0 % (" in lines[2]
    assert lines[3].split() == ["dog", "no", "samples"]
    assert lines[4].startswith("all") and "n = 2" in lines[4]


# --- evaluating --------------------------------------------------------------------------------------------------


def test_evaluate_leaves_the_model_and_the_generators_as_found():
    model = freeze(mini(), before="layer3")
    modes, before = [m.training for m in model.modules()], copy_of(model)
    with generators_untouched():
        report = evaluate(model, ColourPatches(7), batch_size=3)
    assert [m.training for m in model.modules()] == modes
    assert not moved(before, copy_of(model)) and no_hooks(model)
    assert all(p.grad is None for p in model.parameters())
    assert report.classes == ("red", "green", "blue")
    assert report.labels.tolist() == list(ColourPatches(7).labels)
    np.testing.assert_allclose(report.probabilities.sum(1), 1, rtol=1e-5)


@torch.no_grad()
def test_evaluate_asks_in_eval_mode_whatever_the_batches():
    model = mini().train()
    dataset = ColourPatches(7)
    reports = [evaluate(model, dataset, batch_size=size) for size in (1, 3, 64)]
    expected = model.eval()(dataset.images).softmax(1).numpy()
    for report in reports:
        np.testing.assert_allclose(report.probabilities, expected, rtol=1e-4, atol=1e-6)


def test_a_data_set_without_names_gets_numbers():
    dataset = torch.utils.data.TensorDataset(torch.zeros(2, 3, 32, 32), torch.tensor([0, 2]))
    assert evaluate(mini(), dataset).classes == ("0", "1", "2")


def test_what_cannot_be_evaluated():
    with pytest.raises(CourseError, match="empty"):
        evaluate(mini(), ColourPatches(0))
    with pytest.raises(CourseError, match=r"5 outputs.*3 classes \(red, green, blue\)"):
        evaluate(mini(num_classes=5), ColourPatches(3))


# --- baselines ---------------------------------------------------------------------------------------------------


def test_the_majority_answers_with_the_most_frequent_training_class():
    assert majority_baseline([2, 2, 1, 0], [2, 0, 1, 2, 2]) == 3
    assert majority_baseline([1, 1, 1], [0, 0, 2]) == 0
    assert majority_baseline([0, 1, 1, 0], [1, 0, 0]) == 2  # a tie goes to the lower label
    assert majority_baseline(torch.tensor([1, 1, 0]), np.array([1, 0])) == 1
    with pytest.raises(CourseError, match="no training labels"):
        majority_baseline([], [0])


def test_a_linear_probe_finds_what_is_separable():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = 4 * torch.randn(3, 8, generator=generator)
    features = centres[labels] + 0.1 * torch.randn(60, 8, generator=generator)
    # Features on very different scales: standardised they are all seen.
    features = features * torch.logspace(-3, 3, 8)
    answers = linear_probe(features[:30], labels[:30], features[30:])
    assert answers.tolist() == labels[30:].tolist()
    strict = linear_probe(features[:30], labels[:30], features[30:], penalty=1e6)
    assert isinstance(strict, np.ndarray) and strict.shape == (30,)


class Plain(torch.utils.data.Dataset):
    def __init__(self, *pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index], 0


def test_colour_histograms_see_colour_and_nothing_else():
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    shuffled = noise.reshape(-1, 3)[np.random.default_rng(1).permutation(600)].reshape(30, 20, 3)
    red, grey = Image.new("RGB", (5, 5), (255, 0, 0)), Image.new("L", (5, 5), 255)
    rows = color_histograms(Plain(Image.fromarray(noise), Image.fromarray(shuffled), red, grey), bins=6)
    assert rows.shape == (4, 216) and rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(1), torch.ones(4))
    assert torch.equal(rows[0], rows[1])
    assert rows[2].argmax() == 5 * 36 and rows[2].max() == 1
    assert rows[3].argmax() == 215
    expected = np.histogramdd(noise.reshape(-1, 3), bins=[np.linspace(0, 256, 7)] * 3)[0].reshape(-1) / 600
    np.testing.assert_allclose(rows[0].numpy(), expected, rtol=1e-6)


def test_mean_and_sd():
    mean, sd = mean_and_sd([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and sd == pytest.approx(np.std([1, 2, 4], ddof=1))
    mean, sd = mean_and_sd([5.0])
    assert mean == 5 and math.isnan(sd)
