"""mixing.py, and fit with mix: mixed pictures with mixed labels."""

from __future__ import annotations

import pytest
import torch
from helpers import ColourPatches, copy_of, mini, moved
from torch import nn
from torch.nn import functional as F

from course_utils.common.errors import CourseError
from course_utils.engine.devices import make_accelerator
from course_utils.engine.mixing import mixing
from course_utils.engine.processes import ProcessGroup, label_weights, loss_of_shard
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL
from course_utils.training import fit

TRAIN, VAL = ColourPatches(12, seed=1), ColourPatches(7, seed=2)
LABELS = torch.tensor([0, 1, 2, 1])
# A picture of class c has the value c + 1 everywhere, so that the share of each class can be read from the pixels.
IMAGES = (LABELS + 1.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pixels_are(name):
    for seed in range(20):
        torch.manual_seed(seed)
        images, shares = mixing(name, 3)(IMAGES, LABELS)
        assert torch.allclose(shares.sum(1), torch.ones(4))
        assert torch.allclose(images.mean((1, 2, 3)), shares @ torch.tensor([1.0, 2.0, 3.0]), atol=1e-5)
        assert torch.equal(IMAGES[:, 0, 0, 0], LABELS + 1.0), "the batch itself is left alone"


def test_a_picture_without_a_label_has_no_share():
    torch.manual_seed(0)
    _, shares = mixing("mixup", 3)(IMAGES, torch.tensor([-100, -100, -100, -100]))
    assert shares.shape == (4, 3) and not shares.any()


def test_without_a_name_the_batch_stays_and_an_empty_shard_too():
    assert mixing(None, 3)(IMAGES, LABELS) == (IMAGES, LABELS)
    assert len(mixing("mixup", 3)(IMAGES[:0], LABELS[:0])[0]) == 0


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 5.0])])
def test_whole_labels_as_shares_give_the_loss_of_labels(weight):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    loss, group = nn.CrossEntropyLoss(weight=weight), ProcessGroup(make_accelerator("cpu", "float32"))
    shares = F.one_hot(LABELS, 3).float()
    assert torch.allclose(label_weights(loss, shares), label_weights(loss, LABELS).float())
    assert loss_of_shard(loss, logits, shares, group).item() == pytest.approx(
        loss_of_shard(loss, logits, LABELS, group).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_fit_learns_from_mixed_pictures_reproducibly_and_caches_nothing(name):
    options = {"epochs": 2, "batch_size": 4, "device": "cpu", "log": "off", "seed": 1}
    first, second, plain = mini(), mini(), mini()
    run = fit(first, TRAIN, VAL, FEATURE_EXTRACTION, mix=name, **options)
    fit(second, TRAIN, VAL, FEATURE_EXTRACTION, mix=name, **options)
    fit(plain, TRAIN, VAL, FEATURE_EXTRACTION, cache="off", **options)
    assert run.cached is None
    assert not moved(copy_of(first), copy_of(second)) and moved(copy_of(first), copy_of(plain))


def test_what_cannot_be_mixed():
    with pytest.raises(CourseError, match="mix='blend' is unknown: give one of mixup, cutmix"):
        fit(mini(), TRAIN, VAL, FULL, mix="blend", log="off")
    with pytest.raises(CourseError, match="cache='on' cannot be with mix"):
        fit(mini(), TRAIN, VAL, FULL, mix="mixup", cache="on", log="off")
