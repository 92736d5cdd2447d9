"""gradcam.py: maps that equal their definition and leave no trace."""

from __future__ import annotations

import copy
import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import cheap_model, copy_of, generators_untouched, mini, moved, no_hooks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn
from torch.nn import functional as F

from course_utils import gradcam
from course_utils.common.errors import CourseError
from course_utils.feature_extraction import freeze
from course_utils.gradcam import METHODS, explain
from course_utils.mini.networks import BUILDERS, ResNet18_Mini_Weights
from course_utils.pretrained_models import cam_layer, map_stages, stages

WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET
FAST = ("gradcam", "gradcam++", "hirescam", "eigencam")
SIDE = 64
# The grad-cam package hands tensors to NumPy functions, which NumPy 2 finds old-fashioned.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture(scope="module")
def images():
    """Three pictures of noise with a bright corner each."""
    pictures = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    for i, picture in enumerate(pictures):
        picture[i, 8 * i : 8 * i + 24, 30:60] += 2
    return pictures


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def any_model(request):
    return cheap_model(request.param, num_classes=5)


@pytest.fixture(scope="module")
def shared_model():
    return mini(num_classes=4).eval()


# The cell of day 22, as it stands there.
def grad_cam(model, images, classes):
    caught = []
    handle = cam_layer(model).register_forward_hook(lambda module, inputs, output: caught.append(output))
    logits = model.eval()(images.clone().requires_grad_(True))
    handle.remove()

    (maps,) = caught
    scores = logits[range(len(images)), classes].sum()
    (slopes,) = torch.autograd.grad(scores, maps)
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps).sum(dim=1, keepdim=True).relu()

    heat = F.interpolate(heat, images.shape[2:], mode="bilinear")
    heat = heat - heat.amin(dim=(2, 3), keepdim=True)
    return (heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12))[:, 0].detach()


# --- the maps ----------------------------------------------------------------------------------------------------


def test_fifteen_lines_and_the_library_agree_on_every_family(any_model, images):
    # With random weights everything may speak against a class; maps of zeros would agree without saying anything.
    classes = np.argmax([explain(any_model, images, c).signed.max((1, 2)) for c in range(5)], axis=0).tolist()
    found = explain(any_model, images, classes)
    assert found.heat.max((1, 2)) == pytest.approx(1, abs=1e-5)
    assert found.heat.dtype == np.float32 and found.heat.shape == (3, SIDE, SIDE)
    np.testing.assert_allclose(found.heat, grad_cam(any_model, images, classes), atol=1e-5)


def test_maps_of_a_network_that_averages_add_up_to_the_logit(images):
    model = mini(num_classes=4).eval()
    with torch.no_grad():
        expected = (model(images) - model.fc.bias)[:, 2].numpy()
    for method in ("gradcam", "hirescam"):
        signed = explain(model, images, 2, method).signed
        assert signed.shape == (3, 4, 4)
        np.testing.assert_allclose(signed.sum((1, 2)), expected, rtol=1e-3, atol=1e-5)


def vit_rows(tokens, side=4):
    """As the package's tutorial on vision transformers: the class token is dropped, the others go into their rows."""
    result = tokens[:, 1:, :].reshape(len(tokens), side, side, tokens.shape[2])
    return result.transpose(2, 3).transpose(1, 2)


TRANSFORMERS = {
    "vit_b_32": ({"image_size": 128}, lambda m: m.encoder.layers[-1].ln_1, vit_rows),
    "timm/vit_tiny_patch16_224": ({"img_size": 64}, lambda m: m.blocks[-1].norm1, vit_rows),
    "swin_t": ({}, lambda m: m.features[-1][-1], lambda x: x.transpose(2, 3).transpose(1, 2)),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_maps_of_transformers_are_those_of_the_library_by_hand(name):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    options, layer, reshape = TRANSFORMERS[name]
    model = cheap_model(name, 5, **options)
    x = torch.randn(2, 3, 64 if "tiny" in name else 128, 64 if "tiny" in name else 128, generator=generator(4))
    for method in ("gradcam", "eigencam") if name != "vit_b_32" else ("gradcam",):
        with getattr(pytorch_grad_cam, METHODS[method][0])(model, [layer(model)], reshape_transform=reshape) as theirs:
            wanted = theirs(input_tensor=x.clone().requires_grad_(True), targets=[ClassifierOutputTarget(1)] * 2)
        found = explain(model, x, 1, method)
        assert found.signed.shape == (2, 4, 4) and found.heat.max() > 0.9
        if method == "eigencam":  # its sign is arbitrary there
            continue
        np.testing.assert_allclose(found.heat, wanted, atol=1e-5)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_warning_says_where_a_map_of_a_transformer_means_little():
    model = cheap_model("timm/vit_tiny_patch16_224", 5, img_size=64)
    x = torch.randn(1, 3, 64, 64, generator=generator(1))
    with warnings.catch_warnings(action="error"):
        for method in ("gradcam", "hirescam", "eigencam"):
            explain(model, x, 1, method)
            explain(model, x, 1, method, stage="blocks1")
    with pytest.warns(UserWarning, match="'stem' of this VisionTransformer .* in front of all") as caught:
        explain(model, x, 1, stage="stem")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"'gradcam\+\+' at the stage 'blocks4' .* means little"):
        explain(model, x, 1, "gradcam++")


@pytest.mark.parametrize(("name", "stage"), [("swin_t", "stage4"), ("timm/convnext_atto", "stage2")])
def test_where_a_layer_norm_follows_hirescam_is_a_rounding_error(name, stage):
    model, x = cheap_model(name, 5), torch.randn(1, 3, 128, 128, generator=generator(1))
    with pytest.warns(UserWarning, match="LayerNorm follows.*Take 'gradcam' or 'eigencam'"):
        found = explain(model, x, 1, "hirescam", stage)
    usual = explain(model, x, 1, "gradcam", stage)
    assert np.abs(found.signed).max() < 1e-3 * np.abs(usual.signed).max()


@pytest.mark.parametrize("method", FAST)
def test_no_warning_for_the_maps_of_a_cnn(any_model, images, method):
    with warnings.catch_warnings(action="error"):
        explain(any_model, images, 1, method)


@pytest.mark.parametrize("method", METHODS)
def test_heat_is_the_raw_map_stretched_and_raw_is_the_signed_map_cut_off_and_enlarged(shared_model, images, method):
    found = explain(shared_model, images, 1, method, stage="layer3")
    assert found.signed.shape == (3, 8, 8) and found.raw.shape == (3, SIDE, SIDE)
    assert (found.method, found.stage) == (method, "layer3")
    assert found.raw.min() >= 0 and found.heat.min() >= 0 and found.heat.max() <= 1
    low, high = found.raw.min((1, 2), keepdims=True), found.raw.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found.heat, (found.raw - low) / (high - low), atol=1e-3)
    assert found.raw.max() <= found.signed.max() + 1e-6


def test_the_library_gives_the_same_maps_with_its_own_classes(shared_model, images):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    for method in ("gradcam", "gradcam++", "hirescam", "scorecam"):
        copied = copy.deepcopy(shared_model)
        theirs = getattr(pytorch_grad_cam, METHODS[method][0])(copied, [copied.layer2])
        wanted = theirs(input_tensor=images.clone().requires_grad_(True), targets=[ClassifierOutputTarget(3)] * 3)
        np.testing.assert_allclose(explain(shared_model, images, 3, method, "layer2").heat, wanted, atol=1e-5)


def test_eigencam_is_the_first_principal_component_with_the_strong_places_on_top(shared_model, images):
    from sklearn.decomposition import PCA

    with torch.no_grad():
        maps = nn.Sequential(*list(stages(shared_model).values())[:4])(images)
    for signed, activations in zip(explain(shared_model, images, 0, "eigencam", "layer3").signed, maps, strict=True):
        positions = activations.flatten(1).T.numpy()
        component = PCA(1).fit_transform(positions).ravel()
        assert abs(np.corrcoef(component, signed.ravel())[0, 1]) == pytest.approx(1, abs=1e-4)
        assert np.corrcoef(np.abs(positions).sum(1), signed.ravel())[0, 1] > 0


def test_every_stage_with_a_map_can_be_explained(any_model, images):
    sizes = []
    for stage in map_stages(any_model):
        found = explain(any_model, images[:1], 0, stage=stage)
        sizes.append(found.signed.shape[1])
        assert found.stage == stage and found.heat.shape == (1, SIDE, SIDE)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 4
    np.testing.assert_array_equal(found.heat, explain(any_model, images[:1], 0).heat)


@pytest.mark.parametrize("method", FAST)
def test_batches_give_what_single_pictures_give(shared_model, images, method):
    together = explain(shared_model, images, [0, 1, 2], method)
    for batch_size in (1, 2):
        parts = explain(shared_model, images, [0, 1, 2], method, batch_size=batch_size)
        np.testing.assert_allclose(parts.heat, together.heat, atol=1e-4)
        assert parts.targets.tolist() == [0, 1, 2]
        np.testing.assert_allclose(parts.probabilities, together.probabilities, atol=1e-5)


def test_a_batch_is_one_pass(shared_model, images):
    calls = []
    handle = shared_model.register_forward_hook(lambda *_: calls.append(1))
    explain(shared_model, images)
    assert len(calls) == 1
    explain(shared_model, images, batch_size=2)
    handle.remove()
    assert len(calls) == 3


def test_without_a_target_the_most_probable_class_is_explained(shared_model, images):
    with torch.no_grad():
        probabilities = shared_model(images).softmax(1)
    found = explain(shared_model, images)
    assert found.targets.tolist() == probabilities.argmax(1).tolist()
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-6)
    np.testing.assert_array_equal(found.heat, explain(shared_model, images, probabilities.argmax(1)).heat)
    for kind in (np.int64(2), torch.tensor(2), [2, 2, 2], torch.tensor([2, 2, 2])):
        assert explain(shared_model, images, kind).targets.tolist() == [2, 2, 2]


def test_a_class_against_which_everything_speaks_has_a_map_of_zeros(images):
    model = mini()
    nn.init.constant_(model.fc.weight, -1.0)
    found = explain(model, images, 0)
    assert found.signed.max() < 0 and found.heat.max() == 0 and found.raw.max() == 0
    assert gradcam.common_scale(found)[0].max() == 0


def test_one_scale_for_several_explanations(shared_model, images):
    first, second = explain(shared_model, images, 0), explain(shared_model, images, 1)
    scaled = gradcam.common_scale(first, second)
    largest = max(first.raw.max(), second.raw.max())
    assert max(maps.max() for maps in scaled) == 1
    for maps, found in zip(scaled, (first, second), strict=True):
        np.testing.assert_allclose(maps * largest, found.raw, rtol=1e-5)
    with pytest.raises(CourseError, match="maps of eigencam, gradcam: their values have different units"):
        gradcam.common_scale(first, explain(shared_model, images, 0, "eigencam"))


# --- no trace ----------------------------------------------------------------------------------------------------


def half_frozen():
    """A model in the middle of training: partly frozen, with gradients that somebody is accumulating."""
    model = freeze(mini(), before="layer4")
    model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sum().backward()
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "make", [half_frozen, lambda: freeze(mini(), None), lambda: mini().train()], ids=["half", "all", "not"]
)
def test_a_call_leaves_everything_as_it_was(make, method, images, capfd):
    model = make()
    before, modes = copy_of(model), [module.training for module in model.modules()]
    learning = [p.requires_grad for p in model.parameters()]
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    given_images = images.clone()
    with generators_untouched():
        found = explain(model, given_images, 1, method, stage="layer1")
    assert found.heat.max() > 0
    assert not moved(before, copy_of(model)) and no_hooks(model)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    for parameter, (gradient, values) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, values)
    assert torch.equal(given_images, images) and not given_images.requires_grad and given_images.grad is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("habit", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_habits_of_the_caller_change_nothing(shared_model, images, habit):
    expected = explain(shared_model, images, 1).heat
    with habit():
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        pictures = images * 1.0  # an inference tensor, in the second case
        np.testing.assert_array_equal(explain(shared_model, pictures, 1).heat, expected)
        assert inside == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))


def test_an_error_in_the_middle_leaves_no_trace_either(images):
    class Breaks(nn.Module):
        def forward(self, x):
            raise IndexError("inside the model")

    model = half_frozen()
    learning, gradients = [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()]
    model.avgpool = Breaks()
    modes = [module.training for module in model.modules()]
    with pytest.raises(IndexError, match="inside the model"):  # the package's own context would have swallowed it
        explain(model, images)
    assert no_hooks(model) and [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_a_graph_that_the_caller_has_begun_still_works(images):
    model, twin = mini().eval(), mini().eval()
    loss, same = (m(images).square().sum() for m in (model, twin))
    explain(model, images, 0)
    loss.backward()
    same.backward()
    assert torch.equal(model.conv1.weight.grad, twin.conv1.weight.grad)


def test_double_precision_is_kept(images):
    found = explain(mini().double(), images, 0)
    np.testing.assert_allclose(found.heat, explain(mini(), images, 0).heat, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_same_maps(images, method):
    expected = explain(mini(), images, 1, method).heat
    np.testing.assert_allclose(explain(mini().cuda(), images, 1, method).heat, expected, atol=1e-2)


# --- what cannot be explained ------------------------------------------------------------------------------------

FOUR = "numbered from 0 to 3"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"target": 4}, f"target=4 is out of range: the model has 4 classes, {FOUR}."),
        ({"target": -1}, f"target=-1 is out of range: the model has 4 classes, {FOUR}."),
        ({"target": [0, 9, 1]}, f"target=9 is out of range: the model has 4 classes, {FOUR}."),
        ({"target": [0, 1]}, "2 targets were given for 3 pictures: one for each, or one for all."),
        ({"target": 1.5}, "target=1.5: give a class as a whole number from 0 to 3, or one for each."),
        ({"target": "cat"}, "target='cat': give a class as a whole number from 0 to 3, or one for each."),
        ({"target": True}, "target=True: give a class as a whole number from 0 to 3, or one for each."),
        (
            {"method": "grad-cam"},
            "There is no method 'grad-cam'; choose one of gradcam, gradcam++, hirescam, eigencam, scorecam. "
            "Did you mean 'gradcam'?",
        ),
        (
            {"stage": "head"},
            "The stage 'head' gives no map (it lies behind the pooling). Stages with a map, from fine to coarse: "
            "stem, layer1, layer2, layer3, layer4.",
        ),
        ({"batch_size": 0}, "batch_size=0: at least one picture has to go through at a time."),
    ],
)
def test_wrong_arguments(shared_model, images, arguments, told):
    with pytest.raises(CourseError) as caught:
        explain(shared_model, images, **arguments)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        (torch.zeros(0, 3, 8, 8), "The batch is empty: there is no picture to explain."),
        (
            torch.zeros(3, 8, 8),
            "Pictures have to be a tensor (N, 3, H, W), this is a tensor of (3, 8, 8). For a single picture write "
            "image[None].",
        ),
        (torch.zeros(1, 1, 8, 8), "Pictures have to be a tensor (N, 3, H, W), this is a tensor of (1, 1, 8, 8)."),
        (Image.new("RGB", (8, 8)), "Pictures have to be a tensor (N, 3, H, W), this is Image."),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            "The pictures hold whole numbers (torch.uint8); the network wants them prepared by "
            "course_utils.transforms.eval_transform(weights).",
        ),
    ],
)
def test_no_pictures(shared_model, pictures, told):
    with pytest.raises(CourseError) as caught:
        explain(shared_model, pictures)
    assert str(caught.value) == told


def test_a_map_of_one_position_points_nowhere(shared_model):
    with pytest.raises(CourseError, match=r"'layer4' sees these pictures of 16 × 16 pixels as a map of one position"):
        explain(shared_model, torch.zeros(1, 3, 16, 16))
    assert explain(shared_model, torch.zeros(1, 3, 16, 16), stage="layer2").signed.shape == (1, 4, 4)


def test_models_without_stages_are_refused(images):
    with pytest.raises(CourseError, match="Linear belongs to no known family"):
        explain(nn.Linear(2, 2), images)
    with pytest.raises(CourseError, match="bare model"):
        explain(nn.DataParallel(mini()), images)


def test_answers_that_are_not_numbers(images):
    model = mini()
    nn.init.constant_(model.fc.weight, float("nan"))
    with pytest.raises(CourseError, match=r"not a finite number, so nothing can be explained"):
        explain(model, images)
    assert no_hooks(model)


def test_a_model_made_in_inference_mode(images):
    with torch.inference_mode():
        model = copy.deepcopy(mini())
        with pytest.raises(CourseError, match=r"made inside torch\.inference_mode\(\)"):
            explain(model, images)


# --- looking at them ---------------------------------------------------------------------------------------------


def test_an_overlay_pales_cold_places_and_colours_hot_ones():
    pictures = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    plain = np.uint8((255 * pictures.permute(0, 2, 3, 1).numpy()).round())
    maps = np.zeros((2, 6, 8), np.float32)
    maps[1, 2, 3] = 1
    shown = gradcam.overlay(pictures, maps, opacity=1)
    assert shown.shape == (2, 6, 8, 3) and shown.dtype == np.uint8
    coloured = np.ptp(shown, axis=3) > 0
    assert coloured.sum() == 1 and coloured[1, 2, 3]
    assert shown[1, 2, 3].tolist() == [252, 255, 164]  # the light end of inferno
    grey = np.asarray([Image.fromarray(picture).convert("L") for picture in plain])
    assert np.abs(shown[0].astype(int) - grey[0][..., None]).max() <= 1
    assert (gradcam.overlay(pictures, np.ones((2, 6, 8)), opacity=0) == plain).all()


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.float32, (1, 4, 5), elements=st.floats(0, 1, width=32)), st.floats(0, 1))
def test_on_grey_an_overlay_lies_between_the_picture_and_the_colour(maps, opacity):
    pictures = torch.full((1, 3, 4, 5), 0.5)
    shown = gradcam.overlay(pictures, maps, opacity)[0].astype(float)
    colour = 255 * mpl.colormaps["inferno"](maps[0])[..., :3]
    expected = 127.5 + opacity * maps[0, ..., None] * (colour - 127.5)
    assert np.abs(shown - expected).max() <= 0.51


def test_overlays_that_do_not_fit():
    pictures = torch.zeros(1, 3, 4, 4)
    with pytest.raises(CourseError, match=r"opacity=1\.5"):
        gradcam.overlay(pictures, np.zeros((1, 4, 4)), 1.5)
    with pytest.raises(CourseError, match=r"Pictures of \(1, 3, 4, 4\) and maps of \(1, 5, 4\) do not fit"):
        gradcam.overlay(pictures, np.zeros((1, 5, 4)))
    with pytest.raises(CourseError, match=r"The pictures run from -2 to -2; .*denormalise"):
        gradcam.overlay(pictures - 2, np.zeros((1, 4, 4)))
    with pytest.raises(CourseError, match=r"The maps run from 3 to 3"):
        gradcam.overlay(pictures, np.full((1, 4, 4), 3.0))


def test_a_crop_in_more_detail_shows_the_same_part():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)).resize((280, 180))
    small, large = gradcam.as_seen(picture, WEIGHTS), gradcam.as_seen(picture, WEIGHTS, side=384)
    assert (small.size, large.size) == ((128, 128), (384, 384))
    reduced = np.asarray(large.resize((128, 128), Image.Resampling.BILINEAR), float)
    difference = np.abs(np.asarray(small, float) - reduced).mean()
    assert 4 * difference < np.abs(np.asarray(small, float) - np.roll(reduced, 6, axis=1)).mean()
