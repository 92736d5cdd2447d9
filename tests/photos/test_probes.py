"""Nearest neighbours and probes, against scikit-learn and against a network's own answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import ColourPatches, generators_untouched, mini
from hypothesis import given, settings
from hypothesis import strategies as st

from course_tools.photos.probes import (
    NEIGHBOURS,
    PENALTIES,
    best_neighbours,
    best_penalty,
    nearest_neighbours,
    stratified_folds,
    with_probe_as_head,
)
from course_utils.common.errors import CourseError
from course_utils.evaluation import evaluate, linear_probe, probe
from course_utils.feature_extraction import extract_features
from course_utils.pretrained_models import last_layer


def blobs(n: int, classes: int, seed: int = 0, width: float = 1.0, size: int = 12):
    """Gaussian clouds around one centre per class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, size))
    return torch.tensor(centres[labels] + width * rng.normal(size=(n, size))).float(), torch.tensor(labels)


@settings(max_examples=12, deadline=None)
@given(n=st.integers(4, 40), k=st.integers(1, 4), classes=st.integers(2, 4), seed=st.integers(0, 1000))
def test_neighbours_are_those_of_scikit_learn(n, k, classes, seed):
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = blobs(n, classes, seed)
    queries, _ = blobs(9, classes, seed + 1)
    known = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(features, labels)
    ours = nearest_neighbours(features, labels, queries, k, classes)
    theirs = np.zeros((9, classes))
    theirs[:, known.classes_] = known.predict_proba(queries)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_left_out_is_the_same_as_not_being_there(monkeypatch):
    monkeypatch.setattr("course_tools.photos.probes.CHUNK", 4)  # several chunks: each has to leave out its own rows
    features, labels = blobs(11, 3)
    shares = nearest_neighbours(features, labels, features, 3, 3, leave_out=True)
    for i in range(11):
        others = [j for j in range(11) if j != i]
        alone = nearest_neighbours(features[others], labels[others], features[i : i + 1], 3, 3)
        torch.testing.assert_close(shares[i : i + 1], alone)


@pytest.mark.parametrize(("k", "leave_out"), [(0, False), (5, False), (4, True)])
def test_neighbours_that_are_not_there(k, leave_out):
    features, labels = blobs(4, 2)
    with pytest.raises(CourseError, match=f"k={k} neighbours were asked for; with 4 pictures it is from 1 to "):
        nearest_neighbours(features, labels, features, k, 2, leave_out)


def test_the_number_of_neighbours_is_chosen_without_the_queries():
    features, labels = blobs(60, 2, width=0.1)
    assert best_neighbours(features, labels, 2) == 1  # all are right, the smallest is taken
    flipped = labels.clone()
    flipped[::7] = 1 - flipped[::7]
    assert best_neighbours(features, flipped, 2) > 1  # one neighbour repeats what is wrong
    assert best_neighbours(features[:4], labels[:4], 2) in NEIGHBOURS[:2]


def test_a_strong_penalty_for_few_pictures_and_much_noise():
    features, labels = blobs(24, 2, width=6.0, size=200)
    assert best_penalty(features, labels) > min(PENALTIES)
    assert best_penalty(features[:3], torch.tensor([0, 0, 1])) == max(PENALTIES)
    with generators_untouched():
        assert best_penalty(features, labels) == best_penalty(features, labels)


def test_there_are_as_many_folds_as_the_rarest_class_allows():
    labels = np.array([0] * 9 + [2] * 3)  # class 1 does not occur
    split = stratified_folds(labels, folds=5)
    assert split.get_n_splits() == 3
    assert all(sorted(labels[held_out]) == [0, 0, 0, 2] for _, held_out in split.split(labels, labels))
    assert stratified_folds(np.array([0, 0, 1])) is None


@pytest.mark.parametrize("classes", [2, 3])
def test_a_network_with_a_probe_as_head_answers_as_the_probe(classes):
    data = ColourPatches(12)
    data.labels = tuple(label % classes for label in data.labels)
    data.classes = data.classes[:classes]
    model = mini()
    features, labels = extract_features(model, data)
    fitted = probe(1.0).fit(features.numpy(), labels.numpy())
    with generators_untouched():
        changed = with_probe_as_head(model, fitted, classes)
    report = evaluate(changed, data)
    np.testing.assert_allclose(report.probabilities, fitted.predict_proba(features.numpy()), atol=1e-5)
    assert (report.predictions == linear_probe(features, labels, features)).all()


@pytest.mark.parametrize(("present", "classes"), [((0, 2), 3), ((0, 1), 3), ((1, 2, 4), 5)])
def test_a_class_without_training_pictures_is_never_answered(present, classes):
    model = mini(num_classes=3)
    features, _ = extract_features(model, ColourPatches(12))
    labels = np.array(present)[np.arange(12) % len(present)]
    fitted = probe(1.0).fit(features.numpy(), labels)
    changed = with_probe_as_head(model, fitted, classes)
    with torch.no_grad():
        logits = last_layer(changed)(features)
    answers = logits.softmax(1).numpy()
    np.testing.assert_allclose(answers[:, list(present)], fitted.predict_proba(features.numpy()), atol=1e-5)
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-6)
    assert (np.delete(answers, list(present), axis=1) == 0).all()
    assert torch.nn.functional.cross_entropy(logits, torch.full((12,), classes - 2)).isfinite()
    with pytest.raises(CourseError, match=f"labels up to {max(present)}, more than {max(present)} classes have"):
        with_probe_as_head(model, fitted, max(present))


def test_a_single_picture_has_one_neighbour():
    features, labels = torch.ones(1, 4), torch.tensor([1])
    assert best_neighbours(features, labels, 2) == 1
    assert nearest_neighbours(features, labels, torch.ones(2, 4), 1, 2).tolist() == [[0, 1], [0, 1]]
