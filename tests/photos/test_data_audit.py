"""Duplicates between splits and wrong labels: found where they were planted, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import generators_untouched
from PIL import Image
from test_probes import blobs

from course_tools.photos import data_audit
from course_tools.photos.data_audit import (
    agreement,
    altered,
    exact_copies,
    near_duplicates,
    out_of_fold,
    similar_pictures,
    suspected_labels,
    thumbnails,
)
from course_utils.common.errors import CourseError
from course_utils.data import artist
from course_utils.data.pictures import load_picture
from course_utils.feature_extraction import extract_features
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.pretrained_models import load_pretrained
from course_utils.transforms import eval_transform


def test_exact_copies_only_between_splits():
    digests = ["a", "b", "a", "c", "b", "a"]
    splits = ["train", "train", "train", "val", "test", "test"]
    pairs = exact_copies(digests, splits)
    assert {(pair.first, pair.second) for pair in pairs} == {(0, 5), (2, 5), (1, 4)}


def test_among_many_copies_each_is_named_though_not_every_pair():
    splits = ["train"] * 300 + ["test"] * 300
    pairs = exact_copies(["a"] * 600, splits)
    assert {pair.first for pair in pairs} | {pair.second for pair in pairs} == set(range(600))
    assert len(pairs) <= 600 * data_audit.PARTNERS and len(set(pairs)) == len(pairs)
    assert all(splits[pair.first] != splits[pair.second] and pair.first < pair.second for pair in pairs)


def test_similar_pictures_are_those_of_a_double_loop(monkeypatch):
    monkeypatch.setattr(data_audit, "CHUNK", 5 * 13)
    unit = torch.nn.functional.normalize(torch.randn(13, 3, generator=torch.Generator().manual_seed(0)))
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 4
    found = {i: (others.tolist(), cosines.tolist()) for i, others, cosines in similar_pictures(unit, splits, 0.5)}
    for i in range(13):
        wanted = [j for j in range(13) if splits[i] != splits[j] and float(unit[i] @ unit[j]) >= 0.5]
        assert sorted(found[i][0]) == wanted and found[i][1] == sorted(found[i][1], reverse=True)
    assert list(found) == list(range(13))


def same_pixels(first, second):
    return agreement(thumbnails(first), thumbnails(second))


def test_pixels_of_altered_pictures_agree_and_of_others_do_not():
    first, other = (artist.draw("Misty", seed=seed, size=64).image for seed in (1, 2))
    assert all(same_pixels(first, copy) >= data_audit.SAME_PIXELS for copy in altered(first))
    assert same_pixels(first, other) < 0.9
    grey = Image.new("RGB", (30, 30), "grey")
    assert same_pixels(grey, grey) < data_audit.SAME_PIXELS  # two empty pictures are no evidence
    assert all(copy.width >= 1 for copy in altered(Image.new("RGB", (1, 1))))


@pytest.fixture(scope="module")
def embed():
    model, prepare = load_pretrained("resnet18_mini").eval(), eval_transform(ResNet18_Mini_Weights.TINY_IMAGENET)
    return lambda pictures: extract_features(model, [(prepare(picture), 0) for picture in pictures])[0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Sixteen drawings: eight to train, eight to test."""
    folder, paths = tmp_path_factory.mktemp("drawn"), []
    for i in range(16):
        paths.append(folder / f"{i:02}.png")
        artist.draw(artist.CLASSES[i % 3], seed=i, size=96).image.save(paths[-1])
    return paths


def test_planted_duplicates_are_found_and_nothing_else(drawn, embed, tmp_path, monkeypatch):
    monkeypatch.setattr(data_audit, "SAMPLED", 6)
    splits = ["train"] * 8 + ["test"] * 8
    features = embed([load_picture(path) for path in drawn])
    with generators_untouched():
        clean = near_duplicates(features, splits, drawn, embed)
    assert clean.pairs == () and clean.altered == 24 and clean.found >= 20

    planted, paths = altered(load_picture(drawn[3]))[:3], list(drawn)
    for i, copy in enumerate(planted, 10):
        paths[i] = tmp_path / f"copy{i}.png"
        copy.save(paths[i])
    features[10:13] = embed(planted)
    found = near_duplicates(features, splits, paths, embed)
    assert {(pair.first, pair.second) for pair in found.pairs} == {(3, 10), (3, 11), (3, 12)}
    inside_one_split = near_duplicates(features, ["train"] * 13 + ["test"] * 3, paths, embed)
    assert inside_one_split.pairs == ()


def test_a_copy_is_found_behind_any_number_of_pictures_that_are_as_similar(monkeypatch):
    """A network that sees little: to it, 200 bright pictures are one scene, and 200 dark ones another."""
    monkeypatch.setattr(data_audit, "load_picture", lambda picture, **_: picture)  # the pictures are their own files
    monkeypatch.setattr(data_audit, "CHUNK", 1000)  # a few rows at a time
    generator = np.random.default_rng(0)

    def spots(brightness):
        values = np.clip(generator.normal(brightness, 25, (6, 6)), 0, 255).astype(np.uint8)
        return Image.fromarray(values).resize((48, 48), Image.Resampling.BICUBIC).convert("RGB")

    def embed(some):
        grey = torch.tensor(np.stack([np.asarray(one.resize((48, 48)).convert("L"), np.float32) for one in some]))
        top, bottom = grey[:, :24].mean((1, 2)), grey[:, 24:].mean((1, 2))
        return torch.stack([top + bottom, top - bottom], 1)

    pictures = [spots(brightness) for brightness in [60, 180] * 200]
    splits = ["train"] * 200 + ["test"] * 200
    for i in range(1, 200, 20):
        pictures[200 + i] = altered(pictures[i])[1]
    found = near_duplicates(embed(pictures), splits, pictures, embed)
    assert {(pair.first, pair.second) for pair in found.pairs} == {(i, 200 + i) for i in range(1, 200, 20)}
    assert 0 < len(found.alike) <= 400 * data_audit.PARTNERS
    assert all(splits[pair.first] != splits[pair.second] for pair in found.alike)
    ranks = [pair.similarity for pair in found.alike]
    assert ranks == sorted(ranks, reverse=True)


def test_lengths_have_to_agree(drawn, embed):
    with pytest.raises(CourseError, match="3 features, 2 splits and 16 paths"):
        near_duplicates(torch.zeros(3, 2), ["train", "val"], drawn, embed)


def test_planted_label_errors_are_found_far_above_chance():
    features, labels = blobs(200, 3, width=0.8)
    given = labels.clone()
    wrong = np.random.default_rng(1).choice(200, 16, replace=False)
    given[wrong] = (given[wrong] + 1) % 3
    suspects = suspected_labels(out_of_fold(features, given), given)
    first = {suspect.index for suspect in suspects[:16]}
    assert len(first & set(wrong.tolist())) >= 12  # by chance it would be 16 · 16 / 200, one
    right = [suspect.likely == int(labels[suspect.index]) for suspect in suspects if suspect.index in wrong]
    assert np.mean(right) > 0.9
    margins = [suspect.margin for suspect in suspects]
    assert margins == sorted(margins, reverse=True) and all(s.label != s.likely for s in suspects)


def test_clean_labels_of_separate_classes_are_not_suspected():
    features, labels = blobs(60, 3, width=0.1)
    assert suspected_labels(out_of_fold(features, labels, 1.0), labels) == []


def test_no_probe_has_seen_the_picture_that_it_answers():
    features, labels = blobs(30, 2, width=0.05)
    given = labels.clone()
    given[4] = 1 - given[4]  # a probe that had seen it might have learned it by heart
    probabilities = out_of_fold(features, given, 1e-6)
    assert probabilities[4].argmax() == int(labels[4])
    with pytest.raises(CourseError, match="fewer than two pictures"):
        out_of_fold(features[:3], torch.tensor([0, 0, 1]), 1.0)


def test_a_class_that_is_generally_unsure_needs_less_to_be_suspected():
    """The second row is not the most probable class's mark but reaches that of class 1."""
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.58, 0.42], [0.6, 0.4], [0.6, 0.4]])
    labels = [0, 0, 0, 1, 1]  # marks: 0.81 for class 0, 0.4 for class 1
    assert [(s.index, s.likely) for s in suspected_labels(probabilities, labels)] == [(2, 1)]
