"""families.py: the rows of the table, one for each class of networks, a reader's own rows, and classes without one."""

from __future__ import annotations

import doctest
import re
import warnings

import numpy as np
import pytest
import torch
from helpers import (
    ColourPatches,
    cheap_model,
    copy_of,
    generators_untouched,
    mini,
    moved,
    no_hooks,
    on_meta,
    small_pictures,
)
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock

from course_utils import families as course_families
from course_utils.common.errors import CourseError
from course_utils.common.state import evaluating
from course_utils.engine.activation_cache import cut
from course_utils.engine.fingerprints import CannotFingerprint, key_of_front
from course_utils.engine.provenance import describe_model, model_name
from course_utils.engine.runs import load_run
from course_utils.experiments.feature_views import top_activations
from course_utils.families import FAMILIES, family_of, register_family
from course_utils.feature_extraction import (
    extract_features,
    first_filters,
    freeze,
    frozen_proof,
    learning_stages,
    train_mode,
)
from course_utils.fine_tuning import DISCRIMINATIVE, FEATURE_EXTRACTION, FULL, parameter_groups
from course_utils.gradcam import explain
from course_utils.pretrained_models import (
    available_models,
    cam_layer,
    cam_map,
    feature_dim,
    last_layer,
    last_layer_name,
    load_pretrained,
    map_stages,
    replace_head,
    stage_costs,
    stage_of_parameters,
    stages,
    summary,
    without_memory,
)
from course_utils.training import fit

TIMM = (
    "timm/efficientnet_b0",
    "timm/tf_efficientnet_lite0",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_patch16_224",
    "timm/vit_small_patch14_reg4_dinov2",
    "timm/convnext_atto",
)
# A small one of each family, and what is built in another way.
MEMBERS = (
    *("alexnet", "vgg11_mini", "googlenet", "resnet18_mini", "inception_v3", "squeezenet1_1", "densenet121"),
    *("mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small_mini", "efficientnet_b0_mini"),
    *("regnet_y_400mf", "vit_b_32", "swin_t", "swin_v2_t", "convnext_tiny", "maxvit_t", "efficientnet_lite0"),
    *TIMM[2:],
)
LARGE = ("convnext_large", "regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32")  # 200 million parameters and more
# The grad-cam package hands tensors to NumPy functions, which NumPy 2 finds old-fashioned.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture
def families():
    """The table, put back after the test."""
    before = dict(FAMILIES)
    yield FAMILIES
    FAMILIES.clear()
    FAMILIES.update(before)


def noise(side, n=2, seed=1):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small(name, num_classes=5, **options):
    """A small model, and two pictures for it."""
    side, smaller = small_pictures(name)
    return cheap_model(name, num_classes, **smaller, **options), noise(side)


# --- every network -----------------------------------------------------------------------------------------------


def assert_each_tensor_in_one_stage(model):
    for kind in ("parameters", "buffers"):
        in_stages = [id(t) for stage in stages(model).values() for t in getattr(stage, kind)()]
        assert len(in_stages) == len(set(in_stages))
        assert set(in_stages) == {id(t) for t in getattr(model, kind)()}
    assert {stage_of_parameters(model)[f"{last_layer_name(model)}.weight"]} == {"head"}


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in (*available_models(), *TIMM) if name not in LARGE])
def test_stages_are_the_model(name):
    model, x = small(name, 1000)
    logits = model(x)
    assert logits.isfinite().all() and logits.std() > 1e-3, "values that would hide a difference"
    outputs = {}
    for stage_name, stage in stages(model).items():
        assert not stage.training
        x = outputs[stage_name] = stage(x)
    assert torch.equal(x, logits)
    maps = [cam_map(model)(outputs[stage]) for stage in map_stages(model)]
    assert all(m.ndim == 4 and m.shape[2] == m.shape[3] for m in maps)
    assert_each_tensor_in_one_stage(model)


def calls_of(model, run, x):
    """The model's own layers in the order in which they are run, and the shapes that they give."""
    found, names = [], {module: name for name, module in model.named_modules()}
    handles = [
        module.register_forward_hook(lambda m, _inputs, output: found.append((names[m], output.shape)))
        for module in model.modules()
        if not list(module.children()) and not isinstance(module, nn.Identity)
    ]
    run(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", LARGE)
def test_stages_run_the_same_layers_as_the_model(name):
    side, smaller = small_pictures(name)
    model, x = on_meta(name, **smaller).eval(), torch.zeros(1, 3, side, side, device="meta")
    assert calls_of(model, nn.Sequential(*stages(model).values()), x) == calls_of(model, model, x)
    assert_each_tensor_in_one_stage(model)


def test_every_family_has_a_member_here():
    assert {family_of(on_meta(name)).name for name in MEMBERS} == set(FAMILIES)
    for name in MEMBERS:
        if not name.startswith("timm/"):
            assert name.startswith(family_of(on_meta(name)).prefixes)


# --- one of each family ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMBERS)
def test_a_new_head_alone_learns(name):
    model, x = small(name)
    replace_head(model, 3)
    freeze(model)
    assert learning_stages(model) == ["head"] and last_layer(model).out_features == 3
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with frozen_proof(model):
        F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
        optimizer.step()
    assert stages(model).keys() == stages(small(name)[0]).keys()


@pytest.mark.parametrize("name", MEMBERS)
def test_a_plan_has_all_stages_and_its_groups_all_parameters_once(name):
    model = on_meta(name, 3)
    plan = DISCRIMINATIVE.plan(model)
    assert [row.stage for row in plan.rows] == list(stages(model))
    groups = parameter_groups(model, plan)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in model.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    matrices = nn.Conv2d | nn.Linear | nn.MultiheadAttention
    wanted = {
        f"{path}.{key}"
        for path, m in model.named_modules()
        if isinstance(m, matrices)
        for key, _ in m.named_parameters(recurse=False)
    }
    assert decayed == {key for key in wanted if key.endswith("weight")}
    assert not any(re.search(r"norm|token|pos_embed|bias|gamma|layer_scale|ls\d|logit_scale", key) for key in decayed)


@torch.inference_mode()
@pytest.mark.parametrize("name", MEMBERS)
def test_in_front_of_a_border_and_behind_it_is_the_model(name):
    model, x = small(name)
    logits, names = replace_head(model, 3)(x), list(stages(model))
    for border in (names[-3], names[-1]):
        front, tail = cut(model, border)
        crossing = front(x)
        assert torch.equal(tail(crossing.clone()), logits)
        assert key_of_front(model, front, tail).keys() == {"layers", "weights"}  # so it can be cached
    assert crossing.shape == (2, feature_dim(model)), "all that learns nothing lies in front"


@pytest.mark.parametrize("name", MEMBERS)
def test_a_heat_map_is_made_and_leaves_no_trace(name):
    model, x = small(name)
    if name == "maxvit_t":
        x = x[:1]
    freeze(model)
    before, modes = copy_of(model), [module.training for module in model.modules()]
    learning = [p.requires_grad for p in model.parameters()]
    sizes = map_sizes(model, x)
    stage, size = next(item for item in reversed(sizes.items()) if item[1] > 1)  # a single place points nowhere
    with generators_untouched():
        signed = explain(model, x, [0, 1][: len(x)], stage=stage).signed
    assert signed.shape == (len(x), size, size)
    assert np.isfinite(signed).all() and np.abs(signed).max() > 0
    assert not moved(before, copy_of(model)) and no_hooks(model)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == learning
    assert all(p.grad is None for p in model.parameters())


def map_sizes(model, x):
    """Stage → height of the map that Grad-CAM looks at."""
    sizes = {}
    for stage in map_stages(model):
        handle = cam_layer(model, stage).register_forward_hook(
            lambda _m, _i, output, stage=stage: sizes.update({stage: cam_map(model)(output).shape[2]})
        )
        with evaluating(model):
            model(x)
        handle.remove()
    return sizes


@pytest.mark.parametrize("name", MEMBERS)
def test_the_name_is_found_again_behind_a_new_head(name):
    assert model_name(replace_head(without_memory(name), 3)) == name


# --- what is peculiar to some ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stage", "side"), [("googlenet", "inception4", 64), ("inception_v3", "mixed6", 128)])
def test_auxiliary_heads_belong_to_a_stage_and_have_no_part_in_the_answer(name, stage, side):
    model, x = cheap_model(name, 3, aux_logits=True), noise(side)
    auxiliary = {key for key in model.state_dict() if key.startswith(("aux", "Aux"))}
    assert auxiliary and {stage_of_parameters(model)[key] for key in auxiliary} == {stage}
    with torch.inference_mode():
        assert torch.equal(nn.Sequential(*stages(model).values())(x), model(x))
    freeze(model, "head")
    assert not any(p.requires_grad for name, p in model.named_parameters() if name in auxiliary)


def test_a_network_with_auxiliary_heads_is_trained_by_its_main_head():
    model = cheap_model("googlenet", 3, aux_logits=True)
    freeze(model)
    with frozen_proof(model):
        options = {"epochs": 1, "batch_size": 4, "device": "cpu", "log": "off"}
        run = fit(model, ColourPatches(6, side=64), ColourPatches(3, side=64), FEATURE_EXTRACTION, **options)
    assert run.history[0].train_loss > 0
    assert not isinstance(train_mode(freeze(model, "stem"))(noise(64)), torch.Tensor), "several answers in training"


def test_the_head_of_a_squeezenet_is_a_convolution_and_a_new_one_is_not():
    model, x = small("squeezenet1_1")
    data = ColourPatches(3, side=64)
    assert isinstance(last_layer(model), nn.Conv2d) and feature_dim(model) == 512
    assert extract_features(model, data)[0].shape == (3, 512)
    replace_head(model, 3)
    assert isinstance(last_layer(model), nn.Linear) and feature_dim(model) == 512 and model(x).shape == (2, 3)
    features, _ = extract_features(model, data)
    with torch.inference_mode():
        torch.testing.assert_close(last_layer(model)(features), model(data.images))
    assert last_layer(replace_head(model, 7)).out_features == 7 and model_name(model) == "squeezenet1_1"


@pytest.mark.parametrize("classes", [1000, 7, "new head"])
def test_a_checkpoint_of_a_squeezenet_has_either_head(classes, tmp_path):
    model = cheap_model("squeezenet1_1", 7 if classes == "new head" else classes)
    if classes == "new head":
        replace_head(model, 7)
    torch.save({"state_dict": {f"model.{key}": t for key, t in model.state_dict().items()}}, tmp_path / "own.pt")
    again = load_pretrained("squeezenet1_1", checkpoint=tmp_path / "own.pt").eval()
    assert not moved(copy_of(model), copy_of(again)) and torch.equal(again(noise(64)), model(noise(64)))


@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_b_32", "swin_t", "timm/vit_tiny_patch16_224"])
def test_views_of_features_work_for_transformers_and_squeezenet(name):
    side, smaller = small_pictures(name)
    model, data = cheap_model(name, 3, **smaller), ColourPatches(4, side=side)
    assert first_filters(model).shape[1] == 3
    costs = stage_costs(model, side)
    assert [cost.stage for cost in costs] == list(stages(model)) and all(cost.multiply_adds >= 0 for cost in costs)
    assert summary(model, (3, side, side)).splitlines()[-1].split()[1] == f"{sum(c.parameters for c in costs):,}"
    features, labels = extract_features(model, data)
    assert features.shape == (4, feature_dim(model)) and labels.tolist() == list(data.labels)
    found = top_activations(model, data, [0, 1], stage=map_stages(model)[-2], count=2, side=16)
    assert found.crops.shape == (2, 2, 3, 16, 16)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "squeezenet1_1", "maxvit_t", "timm/vit_tiny_patch16_224"])
def test_a_run_gives_its_network_back(name, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    side = 224 if name in ("maxvit_t", "timm/vit_tiny_patch16_224") else 64
    model = replace_head(cheap_model(name), 3)
    options = {"epochs": 1, "batch_size": 2, "device": "cpu"}
    run = fit(model, ColourPatches(2, side=side), ColourPatches(2, side=side), FEATURE_EXTRACTION, **options)
    again = load_run(run.folder).model()
    assert type(again) is type(model) and not moved(copy_of(model), copy_of(again))
    with torch.inference_mode():
        model.eval().to(memory_format=torch.contiguous_format)  # fit changes the layout, and so the rounding
        torch.testing.assert_close(again(noise(side)), model(noise(side)), rtol=1e-4, atol=1e-4)


# --- a reader's own family ---------------------------------------------------------------------------------------


class TwoBlocks(nn.Module):
    """A network of a reader's own, with a forward that uses functions."""

    def __init__(self, num_classes=5):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 2)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3)))


def two_stages(m):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), m.fc]
    return {"one": [m.one, m.norm, nn.ReLU()], "two": [m.two, nn.ReLU()], "head": head}


OWN = ("two-blocks", TwoBlocks, (), two_stages, "fc", "two", None, None)


@pytest.fixture
def own(families):
    register_family(*OWN)
    torch.manual_seed(0)
    return TwoBlocks().eval()


def test_the_example_of_register_family_runs(families):
    example = doctest.DocTestFinder(recurse=False).find(register_family, globs=vars(course_families) | {})[0]
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=3)
    assert "two-blocks" in families


def test_everything_works_with_a_registered_family(own):
    x = noise(32)
    assert list(stages(own)) == ["one", "two", "head"] and feature_dim(own) == 16
    with torch.inference_mode():
        torch.testing.assert_close(nn.Sequential(*stages(own).values())(x), own(x))
    assert stage_of_parameters(own).keys() == own.state_dict().keys()
    assert summary(own, (3, 32, 32)).splitlines()[-1].split()[1] == f"{sum(p.numel() for p in own.parameters()):,}"
    assert replace_head(own, 3) is own and last_layer(own).out_features == 3
    assert learning_stages(freeze(own, before="two")) == ["two", "head"] and not own.norm.training
    assert [row.stage for row in DISCRIMINATIVE.plan(own).rows] == list(stages(own))
    assert map_stages(own) == ["one", "two"] and cam_layer(own) is own.two
    assert explain(own, x).signed.shape == (2, 7, 7) and no_hooks(own)
    front, tail = cut(own, "head")
    assert front(x).shape == (2, 16) and tail(front(x)).shape == (2, 3)
    facts = describe_model(own)
    assert (facts["name"], facts["family"], facts["outputs"]) == (None, "two-blocks", 3)


# --- a class without a row ---------------------------------------------------------------------------------------


class Unknown(nn.Module):
    """A network of a class without a row: with a token, a buffer, and dropout as a function."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.token = nn.Parameter(torch.zeros(1, 8))
        self.register_buffer("shift", torch.zeros(8))
        self.heads = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, x):
        x = F.dropout(self.net(x).mean((2, 3)) + self.token + self.shift, 0.5, self.training)
        return self.heads(x)


class Wrong(Unknown):
    """Its last linear layer is not its output."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(8, 3)

    def forward(self, x):
        return super().forward(x) + self.unused(torch.zeros(1, 8))


def unknown(seed=0):
    torch.manual_seed(seed)
    return Unknown()


ignore_body = pytest.mark.filterwarnings("ignore:.*belongs to no known family")


def test_a_class_without_a_row_is_told_once(monkeypatch):
    monkeypatch.setattr(course_families, "_told", set())
    with pytest.warns(UserWarning, match=r"Unknown belongs to no known family.*layer, heads\.2, and the body") as told:
        stages(unknown())
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings(action="error"):
        freeze(unknown())


@ignore_body
def test_body_and_head_are_the_model():
    model, x = unknown().eval(), noise(32)
    assert list(stages(model)) == ["body", "head"] and last_layer_name(model) == "heads.2"
    with torch.inference_mode():
        front, tail = cut(model, "head")
        assert torch.equal(nn.Sequential(*stages(model).values())(x), model(x))
        assert torch.equal(tail(front(x)), model(x)) and front(x).shape == (2, 8)
    assert stage_of_parameters(model).keys() == model.state_dict().keys() and no_hooks(model)
    assert describe_model(model)["family"] == "Unknown" and describe_model(model)["name"] is None
    assert map_stages(model) == [] and summary(model, (3, 32, 32)).splitlines()[-1].split()[0] == "total"
    with pytest.raises(CourseError, match="gives the last map is not known"):
        explain(model, x)


@ignore_body
def test_a_frozen_body_does_not_move_and_draws_nothing():
    model, x = freeze(replace_head(unknown(), 4)), noise(32)
    assert learning_stages(model) == ["head"] and model.heads[2].training
    assert not any(m.training for m in model.modules() if m is not model.heads[2])
    optimizer = torch.optim.AdamW(parameter_groups(model, FEATURE_EXTRACTION.plan(model)))
    with frozen_proof(model):
        assert torch.equal(model(x), model(x)), "dropout in the model's own forward is off"
        F.cross_entropy(model(x), torch.tensor([0, 3])).backward()
        optimizer.step()
    freeze(model, "body")
    assert model.training and model.net.training and not torch.equal(model(x), model(x))
    with evaluating(stages(model)["body"]):
        assert not model.training
    assert model.training, "the mode is put back"


@ignore_body
def test_a_cache_of_a_body_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ACTIVATIONS", str(tmp_path))
    states = {}
    for cache in ("on", "off"):
        model = unknown()
        run = fit(
            *(model, ColourPatches(9), ColourPatches(5, 1), FEATURE_EXTRACTION),
            **{"epochs": 3, "batch_size": 4, "device": "cpu", "cache": cache, "log": "off"},
        )
        assert len(run.history) == 3
        states[cache] = copy_of(model)
    for name, tensor in states["on"].items():
        torch.testing.assert_close(tensor, states["off"][name], msg=name)
    assert any(tmp_path.iterdir())


@ignore_body
def test_another_forward_or_state_of_a_body_is_another_key():
    def key(model):
        return key_of_front(model, *cut(model, "head"))

    class Changed(Unknown):
        def forward(self, x):
            return self.heads(self.net(x).amax((2, 3)))

    plain, changed, shifted = unknown(), Changed(), unknown()
    changed.load_state_dict(plain.state_dict())
    shifted.shift += 1
    assert key(plain) == key(unknown()) and len({str(key(m)) for m in (plain, changed, shifted)}) == 3
    plain.forward = changed.forward
    with pytest.raises(CannotFingerprint, match="forward of its own"):
        key(plain)


@ignore_body
def test_a_last_layer_that_does_not_give_the_answers_is_refused():
    x = noise(32)
    with pytest.raises(CourseError, match="last linear layer of this Wrong does not give its answers"):
        stages(Wrong())["body"](x)
    for cache in ("on", "off"):
        with pytest.raises(CourseError, match="does not give its answers"):
            fit(Wrong(), ColourPatches(6), ColourPatches(3), FULL, epochs=1, device="cpu", cache=cache, log="off")


def test_wrappers_and_models_without_a_linear_layer_are_refused():
    for model in (nn.DataParallel(mini()), torch.compile(mini()), nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Linear(2, 2)):
        with pytest.raises(CourseError, match=r"belongs to no known family \(alexnet.*bare model"):
            stages(model)


# --- changed networks --------------------------------------------------------------------------------------------


class Attentive(models.ResNet):
    """A ResNet that a reader has changed: every channel of the last map is weighed."""

    def __init__(self):
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=3)
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(512, 512, 1), nn.Sigmoid())
        self.register_buffer("calls", torch.zeros(()), persistent=False)


def attentive_stages(m):
    row = FAMILIES["resnet"].split(m)
    return row | {"layer4": [*row["layer4"], m.attention]}


def test_a_block_that_no_stage_owns_is_named():
    with pytest.raises(CourseError) as caught:
        stages(Attentive())
    assert str(caught.value) == (
        "The stages of family 'resnet' do not fit this Attentive: in no stage: attention.1.weight, attention.1.bias, "
        "calls. Every parameter and buffer has to be in one stage, or it would be neither trained nor frozen. Give "
        "this class a row of its own: course_utils.families.register_family."
    )
    for use in (freeze, FULL.plan, stage_of_parameters, summary):
        with pytest.raises(CourseError, match=r"attention\.1\.weight"):
            use(Attentive())


def test_a_row_for_a_subclass_goes_before_that_of_its_parent_and_a_new_run_of_the_cell_replaces_it(families):
    model, plain = Attentive(), on_meta("resnet18")
    del model.calls
    register_family("attentive", Attentive, (), attentive_stages, "fc", "layer4")
    assert stage_of_parameters(model)["attention.1.weight"] == "layer4"
    assert "attention.1.weight" in {name for name, p in freeze(model, "layer4").named_parameters() if p.requires_grad}
    assert describe_model(model)["family"] == "attentive" and describe_model(model)["name"] is None
    assert family_of(plain).name == "resnet" and list(stages(plain))[-1] == "head"
    rows = len(families)
    register_family("attentive", Attentive, (), lambda m: attentive_stages(m) | {}, lambda m: "fc", "layer3")
    assert len(families) == rows and map_stages(model)[-1] == "layer3"
    register_family("newer", Attentive, (), attentive_stages, "fc", "layer2")
    assert family_of(model).name == "newer"
    register_family(OWN[0], models.ResNet, (), FAMILIES["resnet"].split, "fc", "layer1")
    assert family_of(plain).name == "two-blocks" and family_of(model).name == "newer"


@pytest.mark.parametrize(
    ("place", "given", "allowed"),
    [
        (0, "my net/2", "letters, digits, '_' and '-', but not one of alexnet, convnext, densenet, efficientnet"),
        (0, "resnet", "but not one of alexnet"),
        (0, None, "letters"),
        (1, "DenseNet", r"a subclass of nn\.Module"),
        (1, nn.Linear(2, 2), r"a subclass of nn\.Module"),
        (2, "densenet", r"a tuple of beginnings of names in torchvision\.models\.list_models\(\), or \(\)"),
        (2, ("densnet",), "beginnings of names"),
        (2, ("",), "beginnings of names"),
        (3, ["stem"], r"a function from a model to \{name of the stage: \[modules\]\}"),
        (4, 7, "a path such as 'fc', or a function"),
        (5, None, "the name of a stage"),
        (6, "tokens", "a function from a stage's output to a map, or None"),
        (7, "norm1", "a function from a module to one in it, or None"),
    ],
)
def test_arguments_that_register_nothing(families, place, given, allowed):
    arguments = list(OWN)
    arguments[place] = given
    argument = ("name", "model_class", "prefixes", "split", "last_layer", "cam_stage", "to_map", "cam_module")[place]
    with pytest.raises(CourseError, match=rf"cannot use {argument}=(?s:.)*Give .*{allowed}") as caught:
        register_family(*arguments)
    assert repr(given) in str(caught.value)
    assert "two-blocks" not in families


def other_row(**parts):
    """The row of a ResNet with some parts put otherwise."""
    return lambda m: FAMILIES["resnet"].split(m) | {name: make(m) for name, make in parts.items()}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ((other_row(layer1=lambda m: m.layer1[0:1]), "fc", "layer4"), r"split gave .* instead of"),
        ((other_row(layer1=lambda m: [m.layer1[0]]), "fc", "layer4"), r"in no stage: layer1\.1\.conv1.* and 4 more\."),
        ((other_row(layer4=lambda m: [nn.ReLU()]), "fc", "layer4"), "the stage 'layer4' has no parameters"),
        ((other_row(layer2=lambda m: [m.layer1, m.layer2]), "fc", "layer4"), r"in two stages: layer1\.0\.conv1"),
        (
            (other_row(layer1=lambda m: [m.layer1, nn.Linear(2, 2)]), "fc", "layer4"),
            r"not the model's own: layer1\.1\.weight, layer1\.1\.bias\.",
        ),
        ((other_row(layer1=lambda m: m.layer1), "fc", "layer4"), r"split gave .* instead of \{name: \[modules\]\}"),
        ((other_row(layer1=lambda m: ["layer1"]), "fc", "layer4"), r"split gave .* instead of"),
        ((lambda m: list(m.children()), "fc", "layer4"), r"split gave .* instead of"),
        ((lambda m: {}, "fc", "layer4"), "the cam_stage 'layer4' is none of"),
        ((other_row(), "fc", "layer9"), "the cam_stage 'layer9' is none of stem, layer1, layer2, layer3, layer4, head"),
        ((other_row(extra=lambda m: [nn.Identity()]), "fc", "layer4"), "layer 'fc' is not in the last stage 'extra'"),
        ((other_row(), "classifier", "layer4"), "has to be an nn.Linear at 'classifier', there is a NoneType"),
        ((other_row(), lambda m: "avgpool", "layer4"), "at 'avgpool', there is a AdaptiveAvgPool2d"),
    ],
)
def test_a_row_that_does_not_fit(families, row, told):
    register_family("changed", models.ResNet, (), *row)
    with pytest.raises(CourseError, match=told):
        stages(mini())


def test_tied_tensors_belong_to_one_stage():
    model = mini()
    model.layer3[1].conv2.weight = model.layer3[1].conv1.weight
    assert stage_of_parameters(model)["layer3.1.conv1.weight"] == "layer3"
    model.layer4[1].bn2.weight = model.layer4[1].bn1.bias
    stages(model)
    model.layer4[1].bn2.bias = model.layer3[1].bn1.bias = nn.Parameter(torch.zeros(36))
    with pytest.raises(CourseError, match=r"in two stages: layer3\.1\.bn1\.bias\."):
        stages(model)
