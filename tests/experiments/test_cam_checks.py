"""cam_checks.py: scores and sanity checks give the values that are known, and tell a good map from a bad one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import cheap_model, copy_of, generators_untouched, mini, moved, no_hooks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn

from course_utils.common.errors import CourseError
from course_utils.data import artist
from course_utils.datasets import PhotoDataset
from course_utils.experiments import cam_checks
from course_utils.fine_tuning import FULL
from course_utils.gradcam import explain
from course_utils.mini.networks import BUILDERS, ResNet18_Mini_Weights
from course_utils.pretrained_models import stages
from course_utils.transforms import eval_transform

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET
# The grad-cam package hands tensors to NumPy functions, which NumPy 2 finds old-fashioned.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture(scope="module")
def images():
    """Three pictures of noise with a bright corner each."""
    pictures = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for i, picture in enumerate(pictures):
        picture[i, 8 * i : 8 * i + 24, 30:60] += 2
    return pictures


# --- scores ------------------------------------------------------------------------------------------------------


def two_sided(width, height):
    """White left of the middle, black right of it."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2] = 255
    return Image.fromarray(pixels)


def test_masks_are_cropped_as_pictures_are(tmp_path):
    for name, size in (("a", (160, 200)), ("b", (64, 64)), ("c", (301, 128))):
        two_sided(*size).save(tmp_path / f"{name}.png")
    paths = sorted(tmp_path.glob("*.png"))
    dataset = PhotoDataset(paths, [0, 0, 0], ["x"], eval_transform(WEIGHTS), masks=paths)
    masks = cam_checks.masks_of(dataset, WEIGHTS)
    assert masks.shape == (3, 128, 128) and masks.dtype == bool
    for mask, (image, _) in zip(masks, dataset, strict=False):
        bright = image[0].numpy() > image[0].numpy().mean()
        assert (mask != bright).mean() < 0.01


def test_photographs_have_no_masks(tmp_path):
    two_sided(8, 8).save(tmp_path / "a.png")
    with pytest.raises(CourseError, match=r"1 of 1 pictures have no mask, .*road\(\)"):
        cam_checks.masks_of(PhotoDataset([tmp_path / "a.png"], [0], ["x"]), WEIGHTS)


def test_scores_of_maps_that_are_known():
    masks = np.zeros((5, 4, 4), bool)
    masks[:4, :2] = True  # the upper half; the last picture has no object
    maps = np.zeros((5, 4, 4))
    maps[0, 0, 0] = 3  # all of it inside
    maps[1, 3, 3] = 1  # all of it outside
    maps[2, 0, 0], maps[2, 3, 3] = 1, 3  # a quarter inside, the highest place outside; the fourth map is empty
    np.testing.assert_allclose(cam_checks.energy_inside(maps, masks), [1, 0, 0.25, 0.5, np.nan])
    np.testing.assert_allclose(cam_checks.pointing_game(maps, masks), [1, 0, 0, 0.5, np.nan])
    np.testing.assert_allclose(cam_checks.pointing_game(maps, masks, tolerance=2), [1, 1, 1, 1, np.nan])
    np.testing.assert_allclose(cam_checks.pointing_game(maps, masks, tolerance=1.5), [1, 0, 0, 0.75, np.nan])
    np.testing.assert_allclose(cam_checks.energy_inside(maps[:3], masks[0]), [1, 0, 0.25])


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float32, (2, 5, 6), elements=st.floats(0, 1, width=32)),
    arrays.arrays(bool, (2, 5, 6)),
    st.floats(0.01, 100),
)
def test_laws_of_the_scores(maps, masks, factor):
    inside, outside = cam_checks.energy_inside(maps, masks), cam_checks.energy_inside(maps, ~masks)
    known = ~np.isnan(inside) & ~np.isnan(outside)
    np.testing.assert_allclose((inside + outside)[known], 1, atol=1e-6)
    assert (np.isnan(inside) == ~masks.any((1, 2))).all()
    np.testing.assert_allclose(cam_checks.energy_inside(maps * factor, masks), inside, atol=1e-5)
    hits = cam_checks.pointing_game(maps, masks)
    assert (np.isnan(hits) | ((hits >= 0) & (hits <= 1))).all()
    assert (np.isnan(hits) | (cam_checks.pointing_game(maps, masks, 2) >= hits)).all()
    uniform = np.ones_like(maps)
    np.testing.assert_allclose(cam_checks.pointing_game(uniform, masks), cam_checks.energy_inside(uniform, masks))


def test_scores_refuse_what_is_no_map_or_mask():
    maps, masks = np.ones((2, 4, 4)), np.ones((2, 4, 4), bool)
    for score in (cam_checks.energy_inside, cam_checks.pointing_game):
        with pytest.raises(CourseError, match="Masks hold uint8; they have to be bool"):
            score(maps, masks.astype(np.uint8))
        with pytest.raises(CourseError, match=r"Maps of \(2, 4, 4\) and masks of \(2, 4, 5\) do not fit"):
            score(maps, np.ones((2, 4, 5), bool))
        with pytest.raises(CourseError, match="below 0 or NaN"):
            score(-maps, masks)
        with pytest.raises(CourseError, match="below 0 or NaN"):
            score(maps * np.nan, masks)
    with pytest.raises(CourseError, match="tolerance=-1"):
        cam_checks.pointing_game(maps, masks, tolerance=-1)


def test_the_blob_is_round_and_in_the_middle():
    blob = cam_checks.centred_blob((3, 9, 9), spread=0.2)
    assert blob.shape == (3, 9, 9) and blob.dtype == np.float32
    assert blob[0, 4, 4] == blob.max() == 1
    assert (blob[0] == blob[0].T).all() and (blob[0] == blob[2, ::-1, ::-1]).all()
    assert blob[0, 4, 4 + 2] == pytest.approx(np.exp(-0.5 * (2 / 1.8) ** 2))
    inner = np.zeros((9, 9), bool)
    inner[3:6, 3:6] = True
    narrow, wide = (cam_checks.energy_inside(cam_checks.centred_blob((1, 9, 9), s), inner) for s in (0.1, 0.5))
    assert narrow > wide > inner.mean()
    with pytest.raises(CourseError, match=r"spread=0: .*above 0"):
        cam_checks.centred_blob((1, 9, 9), 0)


def test_a_mean_with_its_interval():
    values = np.random.default_rng(1).normal(0.5, 0.2, 200)
    with generators_untouched():
        found = cam_checks.mean_with_interval(np.append(values, np.nan))
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.mean == pytest.approx(values.mean()) and found.n == 200
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert found == cam_checks.mean_with_interval(values) != cam_checks.mean_with_interval(values, seed=1)
    assert str(cam_checks.Mean(0.615, 0.5, 0.731, 12)) == "0.61 (0.50 to 0.73, n = 12)"


def test_one_value_has_no_interval_and_proves_nothing():
    one = cam_checks.mean_with_interval(np.array([0.5, np.nan, np.nan]))
    assert one == (0.5, -np.inf, np.inf, 1) and str(one) == "0.50 (one value, so no interval)"
    none = cam_checks.mean_with_interval(np.array([np.nan]))
    assert np.isnan(none.mean) and not none.low > 0 and none.n == 0 and str(none) == "no value"


@pytest.fixture(scope="module")
def sees_brightness():
    """Class 0 is the mean of the red channel, far enough from chance that a change of it shows."""
    model = mini(num_classes=2).eval()
    model.fc = nn.Linear(144, 2)
    with torch.no_grad():
        model.fc.weight.copy_(torch.stack([torch.full((144,), 1.0), torch.zeros(144)]))
        model.fc.bias.zero_()
        blank, lit = (model(picture)[0, 0] for picture in (torch.zeros(1, 3, 32, 32), lit_picture()))
        model.fc.weight.mul_(4 / (lit - blank))
        model.fc.bias[0] = -2
    return model


def lit_picture(side=32):
    """Dark, with a bright pattern in the upper left."""
    picture = torch.zeros(1, 3, side, side)
    picture[..., 4:14, 4:14] = 3 * torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(1))
    return picture


def test_road_prefers_the_map_that_marks_what_counts(sees_brightness):
    picture = lit_picture()
    right = np.zeros((1, 32, 32), np.float32)
    right[0, 4:14, 4:14] = 1
    pictures, maps = picture.repeat(3, 1, 1, 1), np.concatenate([right, 1 - right, np.zeros_like(right)])
    with generators_untouched():
        scores = cam_checks.road(sees_brightness, pictures, maps, 0, percentiles=(50, 85), batch_size=2)
    assert scores.shape == (3,) and np.isfinite(scores).all()
    assert scores[0] > 0.15 and scores[1] < -0.15 and abs(scores[2]) < 0.15
    again = cam_checks.road(sees_brightness, pictures, maps, [0, 0, 0], percentiles=(50, 85), batch_size=2)
    np.testing.assert_array_equal(scores, again)
    assert no_hooks(sees_brightness) and not sees_brightness.training


def test_ranks_are_a_permutation_that_keeps_the_order():
    maps = np.array([[[0.5, 0, 0], [0, 0.9, 0]]])
    ranks = cam_checks._ranks(maps, seed=0)
    np.testing.assert_allclose(np.sort(ranks.ravel()), [0, 0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    assert (ranks[0, 1, 1], ranks[0, 0, 0]) == pytest.approx((1, 0.8))
    assert (cam_checks._ranks(np.zeros((1, 2, 3)), 0) != cam_checks._ranks(np.zeros((1, 2, 3)), 1)).any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"maps": np.zeros((1, 8, 8))}, r"Maps of \(1, 8, 8\) do not fit pictures of \(1, 3, 32, 32\)"),
        ({"percentiles": ()}, r"percentiles=\(\)"),
        ({"percentiles": (0, 50)}, r"percentiles=\(0, 50\)"),
        ({"target": 2}, r"target=2 is out of range"),
    ],
)
def test_road_refuses(sees_brightness, change, told):
    arguments = {"maps": np.zeros((1, 32, 32)), "target": 0} | change
    with pytest.raises(CourseError, match=told):
        cam_checks.road(sees_brightness, lit_picture(), **arguments)


# --- sanity checks -----------------------------------------------------------------------------------------------


def test_similarity_of_maps_that_are_known():
    ramp = np.linspace(0, 1, 144).reshape(1, 12, 12)
    for measure in cam_checks.MEASURES:
        assert cam_checks.similarity(ramp, ramp, measure) == pytest.approx(1)
    assert cam_checks.similarity(ramp, ramp**3) == pytest.approx(1)
    assert cam_checks.similarity(ramp, 1 - ramp) == pytest.approx(-1)
    assert cam_checks.similarity(ramp, np.zeros_like(ramp)) == 0
    dark, light = np.full((1, 12, 12), 0.2), np.full((1, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    assert cam_checks.similarity(dark, light, "ssim") == pytest.approx(expected)
    assert cam_checks.similarity(ramp, 1 - ramp, "ssim") < 0.2


def test_rank_correlation_is_that_of_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    first, second = rng.random((4, 6, 7)), np.maximum(rng.random((4, 6, 7)) - 0.5, 0)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(cam_checks.similarity(first, second), expected)


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.float64, (2, 1, 9, 9), elements=st.floats(0, 1)), st.sampled_from(cam_checks.MEASURES))
def test_similarity_is_symmetric_and_bounded(pair, measure):
    value = cam_checks.similarity(pair[0], pair[1], measure)
    np.testing.assert_allclose(value, cam_checks.similarity(pair[1], pair[0], measure), atol=1e-9)
    assert -1 - 1e-6 <= value.item() <= 1 + 1e-6


def test_similarity_refuses():
    with pytest.raises(CourseError, match=r"measure='hog' is unknown: choose one of rank, ssim"):
        cam_checks.similarity(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), "hog")
    with pytest.raises(CourseError, match=r"cannot be compared"):
        cam_checks.similarity(np.zeros((1, 4, 4)), np.zeros((2, 4, 4)))


def test_the_randomisation_check_goes_from_the_head_to_the_pixels(images):
    model = mini(num_classes=4).train()
    before = copy_of(model)
    with generators_untouched():
        steps = cam_checks.randomisation_check(model, images, seed=1)
    assert [step.stage for step in steps] == [None, "head", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert steps[0].similarity.tolist() == [1, 1, 1]
    trained = explain(model, images)
    np.testing.assert_array_equal(steps[0].heat, trained.heat)
    for step in steps[1:]:
        np.testing.assert_allclose(step.similarity, cam_checks.similarity(trained.heat, step.heat))
    assert np.mean([step.similarity.mean() for step in steps[2:]]) < 0.7
    assert not moved(before, copy_of(model)) and model.training

    by_hand = copy.deepcopy(model)
    for stage in ("head", "layer4"):
        cam_checks.randomise_stage(by_hand, stage, seed=1)
    np.testing.assert_allclose(steps[2].heat, explain(by_hand, images, trained.targets).heat, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_randomising_a_stage_changes_all_of_it_and_nothing_else(name):
    model = cheap_model(name, num_classes=3)
    for stage in stages(model):
        before = copy_of(model)
        with generators_untouched():
            cam_checks.randomise_stage(model, stage)
        owner = {id(t): key for key, t in model.state_dict(keep_vars=True).items()}
        row = [*stages(model)[stage].parameters(), *stages(model)[stage].buffers()]
        expected = {owner[id(t)] for t in row if t.is_floating_point()}
        assert moved(before, copy_of(model)) == expected
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))).all()
    with pytest.raises(CourseError, match="There is no stage 'layer9'"):
        cam_checks.randomise_stage(model, "layer9")


def test_randomising_does_not_bring_back_the_head_of_the_first_epoch():
    model = FULL.starting_model("resnet18_mini", 3, seed=0)
    start = model.fc.weight.detach().clone()
    cam_checks.randomise_stage(model, "head", seed=0)
    assert abs(np.corrcoef(start.ravel(), model.fc.weight.detach().ravel())[0, 1]) < 0.2


def test_a_map_follows_a_patch(images):
    model = mini(seed=2, num_classes=2)
    nn.init.ones_(model.fc.weight)  # every channel speaks for both classes, so the map is where something is seen
    patch = 2 * torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(5))
    places = [(0, 0), (0, 72), (72, 0), (72, 72), (36, 36)]
    found = cam_checks.patch_check(model, torch.zeros(3, 96, 96), patch, places, target=1)
    assert found.images.shape == (5, 3, 96, 96) and found.energy.shape == (5, 5)
    assert torch.equal(found.images[1, :, :24, 72:], patch) and found.images[1].count_nonzero() == patch.count_nonzero()
    assert found.masks.sum((1, 2)).tolist() == [24 * 24] * 5 and found.masks[3, 72:, 72:].all()
    for i, j in ((0, 0), (1, 3), (4, 2)):
        assert found.energy[i, j] == pytest.approx(cam_checks.energy_inside(found.heat[i : i + 1], found.masks[j])[0])
    assert found.followed == 1
    assert np.diag(found.energy).mean() > 3 * found.masks[0].mean()


def test_a_map_that_stays_does_not_follow(monkeypatch):
    stuck = cam_checks.centred_blob((2, 32, 32))
    monkeypatch.setattr(cam_checks, "explain", lambda *_: type("Stuck", (), {"heat": stuck}))
    found = cam_checks.patch_check(mini(), torch.zeros(3, 32, 32), torch.ones(3, 8, 8), [(0, 0), (24, 24)], 0)
    assert found.followed == 0


def test_patches_that_do_not_fit():
    picture, patch = torch.zeros(3, 32, 32), torch.ones(3, 8, 8)
    with pytest.raises(CourseError, match=r"1 place was given: .*two places or more"):
        cam_checks.patch_check(mini(), picture, patch, [(0, 0)], 0)
    with pytest.raises(CourseError, match=r"8 × 8 pixels at \(25, 0\) reaches over the edge of a picture of 32 × 32"):
        cam_checks.patch_check(mini(), picture, patch, [(0, 0), (25, 0)], 0)


def test_the_drawn_pets_can_be_scored(tmp_path):
    drawing = artist.draw("Tigger", seed=4)
    drawing.image.save(tmp_path / "a.png")
    drawing.mask.save(tmp_path / "mask.png")
    photos = PhotoDataset([tmp_path / "a.png"], [0], ["Tigger"], eval_transform(WEIGHTS), [tmp_path / "mask.png"])
    masks = cam_checks.masks_of(photos, WEIGHTS)
    assert (masks[0] == (np.asarray(drawing.mask) > 127)).all()
    blob = cam_checks.centred_blob(masks.shape)
    assert cam_checks.energy_inside(blob, masks) > masks.mean(), "whoever draws a pet puts it near the middle"
