"""Splits are complete, stratified, seeded, and stable when a picture is added."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.data.splitting import SPLITS, shuffled, stratified_split

FRACTIONS = st.floats(0.01, 0.45)
CLASS_SIZES = st.lists(st.integers(5, 60), min_size=2, max_size=5)


def samples(sizes: list[int]) -> tuple[list[str], list[str]]:
    labels = [f"class{i}" for i, size in enumerate(sizes) for _ in range(size)]
    return labels, [f"key{i}" for i in range(len(labels))]


@settings(max_examples=50, deadline=None)
@given(CLASS_SIZES, FRACTIONS, FRACTIONS, st.integers(0, 99), st.randoms(use_true_random=False))
def test_split_is_complete_stratified_and_independent_of_order(sizes, val, test, seed, rng):
    labels, keys = samples(sizes)
    split = stratified_split(labels, keys, val_fraction=val, test_fraction=test, seed=seed)
    counts = Counter(zip(labels, split, strict=True))
    for i, size in enumerate(sizes):
        assert sum(counts[f"class{i}", s] for s in SPLITS) == size
        assert all(counts[f"class{i}", s] >= 1 for s in SPLITS)
        assert abs(counts[f"class{i}", "val"] - val * size) <= 1
        assert abs(counts[f"class{i}", "test"] - test * size) <= 1
    order = list(range(len(labels)))
    rng.shuffle(order)
    again = stratified_split(
        [labels[i] for i in order], [keys[i] for i in order], val_fraction=val, test_fraction=test, seed=seed
    )
    assert again == [split[i] for i in order]


@settings(max_examples=50, deadline=None)
@given(st.integers(5, 60), FRACTIONS, FRACTIONS, st.integers(0, 99))
def test_a_new_sample_moves_two_at_most_and_no_other_class(size, val, test, seed):
    labels, keys = samples([size, 9])
    before = stratified_split(labels, keys, val_fraction=val, test_fraction=test, seed=seed)
    after = stratified_split([*labels, "class0"], [*keys, "new"], val_fraction=val, test_fraction=test, seed=seed)[:-1]
    moved = [label for label, a, b in zip(labels, before, after, strict=True) if a != b]
    assert len(moved) <= 2
    assert "class1" not in moved


def test_another_seed_is_another_split_and_a_share_of_zero_is_none():
    labels, keys = samples([20, 20])
    splits = [stratified_split(labels, keys, val_fraction=0.3, test_fraction=0, seed=seed) for seed in range(3)]
    assert splits[0] != splits[1] != splits[2]
    assert all(set(split) == {"train", "val"} for split in splits)


def test_shuffled_is_the_same_everywhere():
    assert shuffled("edcba", 0) == shuffled("abcde", 0) == list("dacbe")
