"""evaluation.py: numbers that scikit-learn agrees with, and intervals that are known."""

from __future__ import annotations

import json
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

from course_utils import evaluation
from course_utils.common.errors import CourseError
from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.evaluation import (
    PairedComparison,
    Report,
    color_histograms,
    compare_models,
    evaluate,
    interval_text,
    linear_probe,
    majority_baseline,
    mean_and_sd,
    plot_confusion,
    plot_mistakes,
    wilson_interval,
)
from course_utils.feature_extraction import freeze
from course_utils.pretrained_models import weights_entry
from course_utils.transforms import eval_transform

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
    wide_low, wide_high = wilson_interval(right, total, level=0.99)
    assert wide_high - wide_low > high - low


def test_wilson_holds_its_share_whatever_the_counts():
    """To the last bit, in percent too: a plot refuses an interval beside its value."""
    counted = [(right, total) for total in (*range(1, 31), 97, 200) for right in range(total + 1)]
    ends = [(right, n) for n in range(31, 1001, 2) for right in (0, n)]
    for right, total in counted + ends:
        low, high = wilson_interval(right, total)
        assert 0 <= low <= right / total <= high <= 1
        assert 100 * low <= 100 * (right / total) <= 100 * high
        assert (low == 0) == (right == 0) and (high == 1) == (right == total)


def test_wilson_is_exact_at_the_ends_where_scipy_rounds(monkeypatch):
    class Rounded:
        def __init__(self, right, total):
            self.ends = 1e-17 if right == 0 else 0.4, 1 - 2e-16 if right == total else 0.6

        def proportion_ci(self, *_, **__):
            return self.ends

    monkeypatch.setattr(evaluation, "binomtest", Rounded)
    assert wilson_interval(9, 9) == (0.4, 1.0) and wilson_interval(0, 9) == (0.0, 0.6)


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


@hypothesis_settings(fast, max_examples=40)  # scikit-learn takes its time
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
    known = {"labels": range(classes), "average": None, "zero_division": 0}
    np.testing.assert_allclose(report.precisions, metrics.precision_score(labels, predicted, **known))
    np.testing.assert_allclose(report.f1, metrics.f1_score(labels, predicted, **known))
    occurring = np.unique(labels)
    expected = metrics.f1_score(labels, predicted, labels=occurring, average="macro", zero_division=0)
    assert report.macro_f1 == pytest.approx(expected, abs=1e-12)
    if set(predicted) <= set(occurring):  # then scikit-learn's own choice of classes is the same
        assert report.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro"), abs=1e-12)
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
    assert lines[2].split()[:4] == ["cat", "2", "100.0", "%"] and "50.0 % (" in lines[2]
    assert lines[3].split() == ["dog", "0", "0.0", "%", "no", "samples", "-"]
    assert lines[4].startswith("all: accuracy 50.0 % (") and "n = 2" in lines[4]
    assert report.f1.tolist() == [pytest.approx(2 / 3), 0] and report.macro_f1 == pytest.approx(2 / 3)
    assert np.isnan(report.recall_intervals[1]).all()
    assert report.recall_intervals[0].tolist() == list(wilson_interval(1, 2))


def test_a_class_that_is_never_predicted():
    report = report_of([0, 1], [[0.9, 0.1], [0.9, 0.1]], names=("cat", "dog"))
    assert report.precisions.tolist() == [0.5, 0] and report.f1.tolist() == [pytest.approx(2 / 3), 0]
    assert report.macro_f1 == pytest.approx(1 / 3)
    assert str(report).splitlines()[3].split()[:4] == ["dog", "1", "-", "0.0"]


SCORES = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]]


def small_report():
    return Report(("ant", "bee|wasp", "fly"), np.array([0, 0, 1, 2, 2, 1]), np.array(SCORES))


def test_the_printed_report():
    assert str(small_report()) == (
        "class     n  precision   recall (95 % interval)      F1\n"
        "--------  -  ---------  -----------------------  ------\n"
        "ant       2    100.0 %     50.0 % (9.5 to 90.5)  66.7 %\n"
        "bee|wasp  2     50.0 %     50.0 % (9.5 to 90.5)  50.0 %\n"
        "fly       2     66.7 %  100.0 % (34.2 to 100.0)  80.0 %\n"
        "all: accuracy 66.7 % (30.0 to 90.3, n = 6), macro F1 65.6 % ({:.1f} to {:.1f})"
    ).format(*(100 * end for end in small_report().macro_f1_interval()))


def test_a_report_as_markdown():
    lines = small_report().to_markdown().splitlines()
    assert lines[0] == str(small_report()).splitlines()[-1]
    assert lines[2] == "| class | n | precision | recall (95 % interval) | F1 |"
    assert lines[5] == "| bee\\|wasp | 2 | 50.0 % | 50.0 % (9.5 to 90.5) | 50.0 % |"
    assert lines[-3:] == ["| **ant** | 1 | 1 | 0 |", "| **bee\\|wasp** | 0 | 1 | 1 |", "| **fly** | 0 | 0 | 2 |"]


def test_a_report_as_a_dict_survives_json():
    report = report_of([0, 0, 1, 1], [[9, 1, 1], [1, 9, 1], [1, 9, 1], [1, 1, 9]], names=("cat", "dog", "owl"))
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored == report.to_dict()
    assert (stored["n"], stored["right"], stored["accuracy"]) == (4, 2, 0.5)
    assert stored["accuracy_interval"] == list(report.interval)
    assert stored["macro_f1"] == report.macro_f1 and stored["macro_f1_interval"] == list(report.macro_f1_interval())
    assert stored["classes"] == ["cat", "dog", "owl"] and stored["confusion"] == report.confusion.tolist()
    dog, owl = stored["per_class"][1:]
    assert dog == {
        "class": "dog", "n": 2, "predicted": 2, "precision": 0.5, "recall": 0.5,
        "recall_interval": list(wilson_interval(1, 2)), "f1": 0.5,
    }  # fmt: skip
    assert owl["n"] == 0 and owl["predicted"] == 1
    assert owl["recall"] is None and owl["recall_interval"] is None and owl["f1"] == 0


def test_samples_are_listed_one_by_one():
    report = Report(("ant", "bee"), np.array([0, 1]), np.array([[0.75, 0.25], [0.5, 0.5]]), ("a.png", "b.png"))
    first, second = report.samples()
    assert first == {
        "index": 0, "name": "a.png", "true": "ant", "predicted": "ant", "probability": 0.75, "right": True,
    }  # fmt: skip
    assert (second["true"], second["predicted"], second["right"]) == ("bee", "ant", False)
    assert small_report().samples()[3]["name"] is None
    json.dumps(small_report().samples())


@pytest.mark.parametrize(
    ("labels", "shape", "names", "message"),
    [
        ([], (0, 2), (), "0 labels, probabilities of shape (0, 2), 2 classes and 0 names make no report"),
        ([0, 1], (3, 2), (), "2 labels, probabilities of shape (3, 2)"),
        ([0, 1], (2, 3), (), "2 labels, probabilities of shape (2, 3), 2 classes"),
        ([0, 1], (2, 2), ("a.png",), "2 classes and 1 names make no report"),
        ([0, 2], (2, 2), (), "The labels run from 0 to 2; with 2 classes they must be from 0 to 1."),
        ([-1, 0], (2, 2), (), "The labels run from -1 to 0"),
    ],
)
def test_what_makes_no_report(labels, shape, names, message):
    with pytest.raises(CourseError) as caught:
        Report(("cat", "dog"), np.array(labels, dtype=int), np.full(shape, 0.5), names)
    assert message in str(caught.value)


# --- the bootstrap -----------------------------------------------------------------------------------------------


def random_report(samples, skill=1.0, seed=0, classes=3):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, samples)
    scores = generator.random((samples, classes)) + skill * np.eye(classes)[labels] * generator.random((samples, 1))
    return report_of(labels, scores)


def test_the_bootstrap_scores_reports_drawn_from_this_one():
    report = random_report(60)
    draws = np.random.default_rng(1).integers(0, 60, (400, 60))
    scores = [Report(report.classes, report.labels[d], report.probabilities[d]).macro_f1 for d in draws]
    low, high = report.macro_f1_interval()
    assert (low, high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.03)
    assert low < report.macro_f1 < high


def test_the_bootstrap_depends_on_its_seed_alone():
    report = random_report(60)
    with generators_untouched():
        first = report.macro_f1_interval(resamples=200, seed=1)
    np.random.default_rng(5).random()
    assert report.macro_f1_interval(resamples=200, seed=1) == first
    assert report.macro_f1_interval(resamples=200, seed=2) != first


def test_the_bootstrap_is_computed_once_for_all_that_is_printed_and_stored(monkeypatch):
    computed = []
    whole = evaluation._bootstrap_of_macro_f1
    monkeypatch.setattr(evaluation, "_bootstrap_of_macro_f1", lambda *of: computed.append(of[1:]) or whole(*of))
    report = random_report(30)
    assert str(report) and report.to_markdown() and report.to_dict()["macro_f1_interval"]
    report.macro_f1_interval(seed=1)
    assert computed == [(2000, 0), (2000, 1)]
    assert random_report(30).macro_f1_interval() == report.macro_f1_interval() and len(computed) == 3


def test_a_test_set_of_one_class_has_a_whole_report():
    scores = np.array([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]])
    report = Report(("cat", "dog", "owl"), np.zeros(4, int), scores)
    # F1 of the only class that occurs: precision 1, recall 3/4.
    assert report.macro_f1 == pytest.approx(6 / 7) and report.accuracy == 0.75
    low, high = report.macro_f1_interval()
    assert low < 6 / 7 < high == 1
    assert "no samples" in str(report) and "no samples" in report.to_markdown()
    assert [row["recall"] for row in report.to_dict()["per_class"]] == [0.75, None, None]
    low, high = compare_models(report, report).interval
    assert -1 < low < 0 < high < 1


def test_more_samples_make_the_bootstrap_interval_narrower():
    few, many = (random_report(n).macro_f1_interval() for n in (40, 1000))
    assert many[1] - many[0] < 0.4 * (few[1] - few[0])


def test_the_bootstrap_of_a_perfect_report_has_no_width():
    assert report_of([0, 1, 2], np.eye(3)).macro_f1_interval() == (1.0, 1.0)


def test_a_bootstrap_needs_repetitions():
    with pytest.raises(CourseError, match=r"resamples=20 was given: .* takes at least 100, and 2000 are usual"):
        random_report(10).macro_f1_interval(resamples=20)


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


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/data/pets/test/cat/1.png", "/data/pets/test/dog/2.png"], ("cat/1.png", "dog/2.png")),
        (["/data/cat/1.png", "/data/cat/2.png"], ("1.png", "2.png")),
        (["1.png", "cat/2.png"], ("1.png", "cat/2.png")),
        (["/data/1.png", "cat/1.png"], ("/data/1.png", "cat/1.png")),
        (["/data/1.png"], ()),  # one path for two samples: something else is meant
        ([1, 2], ()),
        (None, ()),
    ],
)
def test_samples_are_called_by_their_files_below_the_shared_folder(paths, names):
    dataset = ColourPatches(2)
    dataset.paths = paths
    assert evaluate(mini(), dataset).names == names


def test_a_model_that_answers_nan_is_an_error():
    dataset = ColourPatches(5)
    dataset.images[3] = math.nan
    with pytest.raises(CourseError, match=r"For 1 of 5 samples the model's answer is not a number \(NaN\)"):
        evaluate(mini(), dataset)


def test_what_cannot_be_evaluated():
    with pytest.raises(CourseError, match="empty"):
        evaluate(mini(), ColourPatches(0))
    with pytest.raises(CourseError, match=r"5 outputs.*3 classes \(red, green, blue\)"):
        evaluate(mini(num_classes=5), ColourPatches(3))


# --- two models --------------------------------------------------------------------------------------------------

# From the paired tables of Fagerland, Lydersen & Laake (2017), Statistical Analysis of Contingency Tables, ch. 8, and
# of Newcombe (1998), where the four counts stand in this order.
CAVO, BENTUR = PairedComparison(59, 6, 16, 80), PairedComparison(1, 1, 7, 12)


def test_mcnemar_against_known_values():
    assert CAVO.p_value == pytest.approx(0.052479, abs=5e-7)
    assert BENTUR.p_value == 2 * (1 + 8) / 2**8


@fast
@given(*[st.integers(0, 60)] * 4)
def test_mcnemar_is_a_fair_coin_and_the_interval_mirrors(a, b, c, d):
    pair = PairedComparison(a, b, c, d + 1)
    tails = 2 * sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert pair.p_value == pytest.approx(min(1.0, tails))
    low, high = pair.interval
    assert low <= pair.difference <= high
    assert -1 - 1e-12 <= low < high <= 1 + 1e-12
    swapped = PairedComparison(a, c, b, d + 1)
    assert swapped.interval == pytest.approx((-high, -low), abs=1e-12)
    assert (swapped.p_value, swapped.difference) == (pytest.approx(pair.p_value), -pair.difference)


@pytest.mark.parametrize(
    ("pair", "low", "high"),
    [
        (CAVO, -0.1186, -0.0046),
        (BENTUR, -0.5069, -0.0256),
        (PairedComparison(36, 12, 2, 0), 0.0569, 0.3404),
        (PairedComparison(36, 14, 0, 0), 0.1528, 0.4167),
    ],
)
def test_the_paired_interval_against_known_values(pair, low, high):
    assert pair.interval == pytest.approx((low, high), abs=6e-5)


def test_the_interval_is_narrower_when_two_models_fail_on_the_same_samples():
    def width(pair):
        return pair.interval[1] - pair.interval[0]

    assert width(PairedComparison(70, 10, 5, 15)) < 0.8 * width(PairedComparison(55, 25, 20, 0))


def test_two_models_are_compared_sample_by_sample():
    labels = [0, 0, 1, 1, 1]
    first = report_of(labels, np.eye(2)[[0, 0, 1, 0, 0]])
    second = report_of(labels, np.eye(2)[[0, 1, 1, 1, 0]])
    pair = compare_models(first, second)
    assert (pair.both_right, pair.only_first, pair.only_second, pair.both_wrong) == (2, 1, 1, 1)
    assert pair.n == 5 and pair.difference == 0 and pair.accuracies == (first.accuracy, second.accuracy)
    assert pair.p_value == 1 and not pair.distinguishable
    assert pair == compare_models(first, second)


@pytest.mark.parametrize(
    ("pair", "verdict"),
    [
        (
            PairedComparison(118, 11, 8, 16, ("frozen", "tuned")),
            "not distinguishable with n = 153: only one of them is right on 19 samples, and chance would share these "
            "out 11 to 8 or more unevenly with p = 0.65 (exact McNemar test)",
        ),
        (
            PairedComparison(100, 2, 15, 36, ("frozen", "tuned")),
            "tuned is better with n = 153: only one of them is right on 17 samples, and chance would share these out "
            "2 to 15 or more unevenly with p = 0.0023 (exact McNemar test)",
        ),
        (
            PairedComparison(100, 40, 2, 11, ("frozen", "tuned")),
            "frozen is better with n = 153: only one of them is right on 42 samples, and chance would share these out "
            "40 to 2 or more unevenly with p < 0.001 (exact McNemar test)",
        ),
        (
            PairedComparison(100, 0, 0, 53),
            "not distinguishable with n = 153: they are right and wrong on the very same samples",
        ),
        (
            BENTUR,
            "not distinguishable with n = 21: only one of them is right on 8 samples, and chance would share these out "
            "1 to 7 or more unevenly with p = 0.07 (exact McNemar test); the interval, an approximation, says "
            "otherwise: a border case",
        ),
    ],
)
def test_a_comparison_ends_in_plain_words(pair, verdict):
    assert str(pair).splitlines()[-1] == verdict


def test_a_comparison_names_both_accuracies_and_the_four_counts():
    first, second, _ = str(PairedComparison(36, 12, 2, 0, ("frozen", "tuned"))).splitlines()
    assert first == (
        "frozen 96.0 %, tuned 76.0 % of the same 50 samples: difference +20.0 points (95 % interval +5.7 to +34.0)"
    )
    assert second == "right: both 36, only frozen 12, only tuned 2, neither 0"


def named(labels, names, classes=("ant", "bee")):
    return Report(classes, np.array(labels), np.full((len(labels), 2), 0.5), tuple(names))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (named([0, 1], ["a", "b"], ("ant", "fly")), r"has the classes ant, bee, the second ant, fly\. Evaluate both"),
        (named([0, 1, 1], ["a", "b", "c"]), r"is about 2 samples, the second about 3\. Evaluate both models on one"),
        (named([0, 1], ["a", "x"]), r"different samples: number 1 is b in the first and x in the second\."),
        (named([0, 0], ["a", "b"]), r"different samples: 1 of 2 labels differ\."),
        (named([1, 0], []), r"different samples: 2 of 2 labels differ\."),
    ],
)
def test_different_samples_cannot_be_compared(second, message):
    with pytest.raises(CourseError, match=message):
        compare_models(named([0, 1], ["a", "b"]), second)


def test_names_that_only_one_report_has_are_no_difference():
    assert compare_models(named([0, 1], ["a", "b"]), named([0, 1], [])).n == 2


# --- figures -----------------------------------------------------------------------------------------------------


def cell_texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_confusion_matrix_in_counts_and_in_shares():
    report = report_of([0, 0, 0, 1], np.eye(3)[[0, 0, 1, 1]], names=("ant", "bee", "fly"))
    assert cell_texts(plot_confusion(report)) == ["2", "1", "0", "0", "1", "0", "0", "0", "0"]
    assert cell_texts(plot_confusion(report, normalise=True)) == [
        "67 %", "33 %", "0 %", "0 %", "100 %", "0 %", "–", "–", "–",
    ]  # fmt: skip


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def a_report_with_mistakes():
    scores = [[0.9, 0.1], [0.07, 0.93], [0.6, 0.4], [0.2, 0.8]]
    return Report(("ant", "bee"), np.array([0, 0, 1, 0]), np.array(scores))


class Pictures(torch.utils.data.Dataset):
    """Flat pictures: the brightness tells which sample it is."""

    labels = (0, 0, 1, 0)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8), (10 * index,) * 3), self.labels[index]


def test_the_most_confident_mistakes_come_first():
    figure = plot_mistakes(a_report_with_mistakes(), Pictures())
    assert titles(figure) == ["ant → bee, 93\xa0%", "ant → bee, 80\xa0%", "bee → ant, 60\xa0%"]
    assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes] == [10, 30, 20]
    assert titles(plot_mistakes(a_report_with_mistakes(), Pictures(), n=1)) == ["ant → bee, 93\xa0%"]
    two_rows = plot_mistakes(a_report_with_mistakes(), Pictures(), columns=2)
    assert len(two_rows.axes) == 4 and titles(two_rows)[3] == ""


def test_long_names_are_broken_so_that_titles_do_not_meet():
    report = Report(("great golden wasp", "yellow-banded bee"), np.array([0]), np.array([[0.3, 0.7]]))
    (title,) = titles(plot_mistakes(report, [(Image.new("RGB", (8, 8)), 0)]))
    assert "\n" in title and max(map(len, title.split("\n"))) <= 20
    assert title.replace("\n", " ") == "great golden wasp → yellow-banded bee, 70\xa0%"


def test_no_mistakes_are_good_news_and_no_error():
    report = report_of([0, 1], np.eye(2))
    figure = plot_mistakes(report, [(None, 0), (None, 1)])
    assert cell_texts(figure) == ["No mistakes: all 2 samples were answered right."]


def test_photographs_are_shown_without_the_transform(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(path)

    def transform(picture):
        raise AssertionError("the network's view is not for the eye")

    figure = plot_mistakes(a_report_with_mistakes(), PhotoDataset(paths, Pictures.labels, ("ant", "bee"), transform))
    assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes] == [10, 30, 20]


def test_tensors_are_shown_as_they_are_or_with_the_normalisation_undone():
    entry = weights_entry("resnet18_mini")
    normalised = torch.stack([eval_transform(entry)(picture) for picture, _ in (Pictures()[i] for i in range(4))])
    dataset = MemoryDataset(normalised, Pictures.labels, ("ant", "bee"))
    with pytest.raises(
        CourseError, match=r"Sample 1 is a tensor with values from -\d.*plot_mistakes\(..., weights=ent"
    ):
        plot_mistakes(a_report_with_mistakes(), dataset)
    shown = [
        axis.images[0].get_array() for axis in plot_mistakes(a_report_with_mistakes(), dataset, weights=entry).axes
    ]
    assert [round(255 * float(image[0, 0, 0])) for image in shown] == [10, 30, 20]
    colours = MemoryDataset(torch.full((4, 3, 8, 8), 0.5), Pictures.labels, ("ant", "bee"))
    assert plot_mistakes(a_report_with_mistakes(), colours).axes[0].images[0].get_array()[0, 0, 0] == 0.5


def test_mistakes_need_the_data_set_of_the_report():
    report = a_report_with_mistakes()
    with pytest.raises(CourseError, match="is about 4 samples, the data set has 2"):
        plot_mistakes(report, ColourPatches(2))
    other = [(Image.new("RGB", (8, 8)), 1)] * 4
    with pytest.raises(CourseError, match="Sample 1 has the label 1 in the data set and 0 in the report"):
        plot_mistakes(report, other)
    with pytest.raises(CourseError, match="n=0 pictures in 6 columns"):
        plot_mistakes(report, Pictures(), n=0)


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


def test_mirror_images_are_averaged_in():
    model, data = mini().eval(), ColourPatches(6, seed=4)
    images = torch.stack([data[i][0] for i in range(len(data))])
    images[:, :, :, :16] += 1.0  # not symmetric
    samples = [(image, data[i][1]) for i, image in enumerate(images)]
    plain, both = evaluate(model, samples), evaluate(model, samples, mirrored=True)
    with torch.inference_mode():
        wanted = (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2
    assert np.allclose(both.probabilities, wanted, atol=1e-6) and not np.allclose(
        both.probabilities, plain.probabilities
    )
    assert np.allclose(
        evaluate(model, [(x.flip(2), y) for x, y in samples], mirrored=True).probabilities, wanted, atol=1e-6
    )
