"""fingerprints.py: a network is what it computes, and whatever cannot be read off is not cached."""

from __future__ import annotations

import copy
import functools
import types
from dataclasses import dataclass

import pytest
import torch
from helpers import ColourPatches, mini
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from course_utils.common.errors import CourseError
from course_utils.datasets import MemoryDataset
from course_utils.engine import fingerprints
from course_utils.engine.activation_cache import cache_activations, cut
from course_utils.engine.fingerprints import CannotFingerprint, describe_modules, is_random, key_of_front
from course_utils.engine.provenance import describe_layers
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.pretrained_models import stages
from course_utils.training import fit

STRENGTH = 1.0


def stronger(x):
    return x * STRENGTH


@dataclass
class Taste:
    salt: float = 1.0


class Gate(nn.Module):
    """A layer of the reader's own, which prints the same whatever it does."""

    power = 1

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.parts, self.settings, self.taste = scale, [nn.PReLU(init=0.1)], {"shift": 0}, Taste()
        self.register_buffer("centre", torch.zeros(()), persistent=False)

    def forward(self, x):
        return (
            stronger(self.parts[0](x - self.centre) * self.scale + self.settings["shift"]) ** self.power
            * self.taste.salt
        )

    def __repr__(self):
        return "Gate()"


def network():
    model = mini()
    model.relu = Gate()
    return model


def patches(size, seed):
    made = ColourPatches(size, seed)
    return MemoryDataset(made.images, made.labels, made.classes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def losses(model, cache):
    options = {"epochs": 2, "batch_size": 4, "device": "cpu", "log": "off"}
    run = fit(model, patches(4, 1), PICTURES, FEATURE_EXTRACTION, cache=cache, **options)
    return [(record.train_loss, record.val_loss) for record in run.history], run.cached


PICTURES = patches(6, 2)


# --- what changes a network --------------------------------------------------------------------------------------


def _halved(self, x):
    return torch.tanh(x) / 2


class Doubled(Gate):
    def forward(self, x):
        return 2 * super().forward(x)


def _set(name, value):
    return lambda model, patch: setattr(model.relu, name, value)


def _weaker(forward):
    return lambda self, x: forward(self, x) * 0.5


def _forward_with_a_cell(factor):
    return lambda x: x * factor


IN_THE_FRONT = {
    "another forward": lambda model, patch: patch.setattr(Gate, "forward", _halved),
    "another function that it calls": lambda model, patch: patch.setitem(globals(), "stronger", torch.tanh),
    "a global number": lambda model, patch: patch.setitem(globals(), "STRENGTH", 0.5),
    "an attribute of the class": lambda model, patch: patch.setattr(Gate, "power", 2),
    "an attribute": _set("scale", 0.5),
    "an attribute inside of an attribute": lambda model, patch: model.relu.settings.update(shift=1),
    "a field of a dataclass": _set("taste", Taste(salt=0.5)),
    "a buffer that is not saved": lambda model, patch: model.relu.centre.fill_(0.5),
    "a layer in a list": lambda model, patch: nn.init.constant_(model.relu.parts[0].weight, 0.9),
    "a subclass": lambda model, patch: setattr(model.relu, "__class__", Doubled),
    "a forward in the object": _set("forward", F.relu6),
    "a closure": _set("forward", _forward_with_a_cell(0.5)),
    "a partial function": _set("forward", functools.partial(F.leaky_relu, negative_slope=0.5)),
    "torchvision's own forward": lambda model, patch: patch.setattr(BasicBlock, "forward", _weaker(BasicBlock.forward)),
    "a hook": lambda model, patch: model.layer1.register_forward_hook(lambda layer, given, out: out * 2),
    "a hook in front": lambda model, patch: model.layer1.register_forward_pre_hook(lambda layer, given: (-given[0],)),
    "an attribute that says nothing": _set("strategy", object()),
}  # fmt: skip


UNREADABLE = {"torchvision's own forward", "a hook", "a hook in front", "an attribute that says nothing"}


@pytest.mark.parametrize("what", IN_THE_FRONT)
def test_the_activations_of_another_network_are_never_used(what, folder, monkeypatch):
    before = cache_activations(network(), PICTURES, "head")
    changed = network()
    IN_THE_FRONT[what](changed, monkeypatch)
    if what in UNREADABLE:
        with pytest.raises(CourseError, match=r"hook|read off|holds other activations"):
            cache_activations(changed, PICTURES, "head")
        return
    found = cache_activations(changed, PICTURES, "head").activations()
    with torch.no_grad():
        truth = cut(changed.eval(), "head")[0](PICTURES.images)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, before.activations(), rtol=1e-3)


def _own_forward(model, patch):
    class Darker(type(model)):
        def forward(self, x):
            return super().forward(x * 0.2 - 1)

    model.__class__ = Darker


def _inner_forward(model, patch):
    class Darker(type(model)):
        def _forward_impl(self, x):
            return super()._forward_impl(x * 0.2 - 1)

    model.__class__ = Darker


def _in_the_object(model, patch):
    usual = model.forward
    model.forward = lambda x: usual(x * 0.2 - 1)


AROUND = {
    "a hook in front": lambda model, patch: model.register_forward_pre_hook(lambda model, x: (x[0] * 0.2 - 1,)),
    "a hook behind": lambda model, patch: model.register_forward_hook(lambda model, x, out: out * 2),
    "a subclass": _own_forward,
    "a method that forward calls": _inner_forward,
    "a forward in the object": _in_the_object,
}  # fmt: skip


@pytest.mark.parametrize("what", AROUND)
@pytest.mark.filterwarnings("ignore:Training goes on without cached activations")
def test_a_model_that_is_more_than_its_stages_has_no_cache(what, folder, monkeypatch):
    models = [mini(), mini()]
    for model in models:
        AROUND[what](model, monkeypatch)
    truth, _ = losses(models[0], "off")
    assert losses(models[1], "auto") == (truth, None)
    with pytest.raises(CourseError, match=r"forward of its own|has a hook|other logits than its stages"):
        losses(models[1], "on")


def test_a_front_that_draws_in_eval_mode_has_no_cache(folder):
    model = mini()
    model.layer1[0].forward = lambda x: F.dropout(x, training=True)
    with pytest.raises(CourseError, match="draws random numbers in eval mode"):
        cache_activations(model, PICTURES, "head")


def test_a_cache_is_compared_with_what_the_network_gives_now(folder, monkeypatch):
    """The key is the same for another network here: then the pictures tell."""
    monkeypatch.setattr(fingerprints, "describe_modules", lambda network, strict: {})
    first = cache_activations(network(), PICTURES, "head")
    changed = network()
    changed.relu.scale = 0.9
    with pytest.raises(CourseError, match=f"{first.name} holds other activations than the network gives now"):
        cache_activations(changed, PICTURES, "head")
    with pytest.warns(UserWarning, match="goes on without cached activations"):
        losses(network(), "auto")
        assert losses(changed, "auto")[1] is None
    assert cache_activations(network(), PICTURES, "head").reused


@pytest.mark.parametrize("what", ["version", "decoder"])
def test_another_course_or_decoder_makes_another_cache(what, folder, monkeypatch, tmp_path):
    place = {"version": (fingerprints.course_utils, "__version__"), "decoder": (fingerprints, "DECODER")}[what]
    before = fingerprints.versions(), fingerprints._key_of_files(types.SimpleNamespace(paths=[tmp_path]))
    monkeypatch.setattr(*place, "99")
    after = fingerprints.versions(), fingerprints._key_of_files(types.SimpleNamespace(paths=[tmp_path]))
    assert [one != other for one, other in zip(before, after, strict=True)] == [what == "version", what == "decoder"]


# --- descriptions ------------------------------------------------------------------------------------------------


def front_key(model, border="head"):
    return key_of_front(model, *cut(model, border))


def test_descriptions_are_equal_where_networks_are_equal(monkeypatch):
    first = network()
    assert front_key(network()) == front_key(first) == front_key(copy.deepcopy(first))
    first.train()
    first.forward = first.forward  # as accelerate leaves it behind mixed precision
    monkeypatch.setattr(Gate, "__init__", lambda self: None)  # what it made is there already
    assert front_key(first) == front_key(copy.deepcopy(first))


def test_a_resumed_run_goes_on_with_another_version_and_other_weights(monkeypatch):
    described, layers = describe_modules(network()), describe_layers(network())
    monkeypatch.setattr(torch, "__version__", "9.9")
    other = network()
    nn.init.ones_(other.conv1.weight)
    other.layer1[0].conv1._only_in_torch_9 = True
    assert describe_modules(other) == described and describe_layers(other) == layers
    assert describe_modules(other, strict=True) != describe_modules(network(), strict=True)


@pytest.mark.parametrize("change", ["another forward", "an attribute", "a subclass", "a hook", "a global number"])
def test_a_resumed_run_belongs_to_what_its_network_computes(change, monkeypatch):
    layers, changed = describe_layers(network()), network()
    IN_THE_FRONT[change](changed, monkeypatch)
    assert describe_layers(changed) != layers


def test_what_cannot_be_read_off_is_no_key_but_no_obstacle_to_a_run():
    model = network()
    model.relu.strategy = object()
    with pytest.raises(CannotFingerprint, match="object"):
        front_key(model)
    assert describe_modules(model)["relu"]["strategy"] == "builtins.object"


def test_every_stage_of_a_border_counts_and_none_behind_it():
    model = mini()
    keys = {border: front_key(model, border) for border in list(stages(model))[1:]}
    assert len({key["weights"] for key in keys.values()}) == len(keys)
    model.layer4[1].downsample = nn.Identity()
    model.fc.note = "the head"
    assert front_key(model, "layer4") == keys["layer4"] and front_key(model) != keys["head"]


# --- data that draws ---------------------------------------------------------------------------------------------


class SeldomNoisy(ColourPatches):
    """Augments one picture of thirty, which a look at a few does not meet."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image + torch.rand(()) if index == 16 else image), label


def test_a_picture_that_is_seldom_augmented_is_never_frozen(folder):
    data = SeldomNoisy(30)
    assert not is_random(data)
    with pytest.raises(CourseError, match="draws random numbers"):
        cache_activations(mini(), data, "head")
    assert cache_activations(mini(), data, "head", views=2).views == 2


def test_a_picture_with_a_nan_is_not_taken_for_a_random_one():
    data = ColourPatches(6)
    data.images[0, 0, 0, 0] = torch.nan
    assert not is_random(data)


# --- types of number ---------------------------------------------------------------------------------------------


def test_activations_have_the_type_in_which_they_crossed_the_border(folder):
    data = PICTURES
    doubled = MemoryDataset(data.images.double(), data.labels, data.classes)
    kept = cache_activations(mini().double(), doubled, "layer4")
    model = mini().double().eval()
    with torch.no_grad():
        wanted = cut(model, "layer4")[0](doubled.images)
    assert kept[0][0].dtype == torch.float64 and kept.size > 6 * 8 * kept[0][0].numel()
    torch.testing.assert_close(kept.activations(), wanted, rtol=1e-12, atol=1e-12)
    mixed = cache_activations(mini(), data, "layer4", precision="bf16")
    assert mixed[0][0].dtype == torch.bfloat16 and mixed.name != cache_activations(mini(), data, "layer4").name
    with pytest.raises(CourseError, match="precision='int8' is unknown: give one of no, bf16, fp16"):
        cache_activations(mini(), data, "layer4", precision="int8")


def test_an_infinite_picture_does_not_hide_that_half_precision_is_too_small(folder):
    model, data = mini(), patches(6, 2)
    nn.init.constant_(model.layer4[-1].bn2.weight, 3e6)
    data.images[3] = torch.inf
    with pytest.raises(CourseError, match="beyond float16"):
        cache_activations(model, data, "head", dtype="float16")
    nn.init.ones_(model.layer4[-1].bn2.weight)
    kept = cache_activations(model, data, "head", dtype="float16")
    assert kept.activations().isfinite().all(dim=1).tolist() == [True] * 3 + [False] + [True] * 2
