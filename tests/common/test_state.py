"""state.py: whoever draws random numbers for a purpose of its own leaves those of the caller alone, a GPU's too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import ColourPatches, Noisy, generators_untouched, mini
from torch import nn
from torchvision.models import ResNet18_Weights

from course_tools.photos.probes import with_probe_as_head
from course_utils import exercises
from course_utils.common.state import generator_states, generators_put_back, set_generator_states
from course_utils.engine.activation_cache import cache_activations
from course_utils.engine.fingerprints import is_random
from course_utils.evaluation import evaluate, probe
from course_utils.experiments.cam_checks import randomise_stage, road
from course_utils.experiments.transform_checks import check_transform
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import FEATURE_EXTRACTION, FROM_SCRATCH, FULL
from course_utils.gradcam import explain
from course_utils.training import fit, simple_fit
from course_utils.transforms import eval_transform, train_transform

TRAIN, VAL = Noisy(12, seed=1), ColourPatches(6, seed=2)
R18 = ResNet18_Weights.DEFAULT


def of_seed(seed):
    return torch.Generator().manual_seed(seed).get_state()


@pytest.fixture(params=["cuda", "mps"])
def gpus(request, monkeypatch):
    """Generators of two pretended CUDA devices, or of a pretended Apple GPU, on which every new layer is drawn."""
    generators = [torch.Generator().manual_seed(99) for _ in range(2 if request.param == "cuda" else 1)]

    def seed_all(seed):
        for generator in generators:
            generator.manual_seed(seed)

    def set_all(states):
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    if request.param == "cuda":
        pretended = {
            "current_device": lambda: 0, "manual_seed_all": seed_all, "set_rng_state_all": set_all,
            "get_rng_state_all": lambda: [generator.get_state() for generator in generators],
        }  # fmt: skip
    else:
        pretended = {
            "manual_seed": seed_all, "get_rng_state": generators[0].get_state,
            "set_rng_state": generators[0].set_state,
        }  # fmt: skip
    for name, function in pretended.items():
        monkeypatch.setattr(getattr(torch, request.param), name, function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: request.param == "mps")
    # An optimizer asks the driver, and there is none.
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _self: None)
    usual = nn.Linear.reset_parameters

    def on_the_gpu(layer):
        usual(layer)
        torch.rand(3, generator=generators[0])

    monkeypatch.setattr(nn.Linear, "reset_parameters", on_the_gpu)
    return generators


def seeded(seed=5):
    with generators_put_back(seed):
        torch.rand(3)


def new_head():
    features, labels = extract_features(model := mini(), VAL)
    with_probe_as_head(model, probe(1.0).fit(features.numpy(), labels.numpy()), 3)


def maps():
    images = torch.stack([VAL[i][0] for i in range(2)])
    road(mini(), images, explain(mini(), images).heat, 0, percentiles=(50,))


def trained(loop, **options):
    loop(mini(), TRAIN, VAL, FULL, epochs=1, batch_size=4, **options)


FIT = {"device": "cpu", "log": "off"}
PROMISES = {
    "generators_put_back": seeded,
    "fit": lambda: trained(fit, **FIT),
    "simple_fit": lambda: trained(simple_fit),
    "starting_model": lambda: [s.starting_model("resnet18_mini", 3, seed=5) for s in (FULL, FROM_SCRATCH)],
    "is_random": lambda: is_random(TRAIN),
    "cache_activations": lambda: cache_activations(mini(), TRAIN, "head", views=2),
    "road": maps,
    "randomise_stage": lambda: randomise_stage(mini(), "head"),
    "with_probe_as_head": new_head,
    "check_transform": lambda: [check_transform(t, R18) for t in (eval_transform(R18), train_transform(R18, "light"))],
    "evaluate": lambda: evaluate(mini(), VAL),
    "exercises": lambda: exercises.check_residual(lambda x, transform, shortcut: transform(x)),
}


@pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES.keys())
def test_the_callers_generators_are_left_alone(gpus, promise):
    with generators_untouched():
        promise()
    assert all(torch.equal(gpu.get_state(), of_seed(99)) for gpu in gpus)


@pytest.mark.parametrize("cache", ["off", "on"])
def test_dropout_on_a_gpu_draws_by_the_seed_of_fit(gpus, cache):
    """Whatever was seeded on the way there: by looks at the data, by the cache."""
    begun = []

    class Begin:
        def on_train_begin(self, _run, _model):
            begun.extend(gpu.get_state() for gpu in gpus)

    for seed in (7, 8):
        fit(mini(), VAL, VAL, FEATURE_EXTRACTION, epochs=1, seed=seed, cache=cache, hooks=[Begin()], **FIT)
    wanted = [of_seed(seed) for seed in (7, 8) for _ in gpus]
    assert all(torch.equal(one, other) for one, other in zip(begun, wanted, strict=True))


def test_a_process_saves_the_generator_of_its_own_gpu(gpus, monkeypatch):
    """Processes draw alike, each on a GPU of its own, and the first one saves for all of them."""
    gpus[-1].manual_seed(3)  # where this process trains; it has never drawn on another one
    monkeypatch.setattr(torch.cuda, "current_device", lambda: len(gpus) - 1)
    saved = generator_states()
    for gpu in gpus:
        gpu.manual_seed(4)
    set_generator_states(saved)
    assert all(torch.equal(gpu.get_state(), of_seed(3)) for gpu in gpus)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_another_number_of_gpus_may_be_visible_later(gpus, monkeypatch, number):
    saved = generator_states()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    later = [torch.Generator().manual_seed(1) for _ in range(number)]
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [gpu.get_state() for gpu in later])
    restore = lambda states: [gpu.set_state(state) for gpu, state in zip(later, states, strict=True)]  # noqa: E731
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restore)
    np.random.rand()
    set_generator_states(saved)
    assert all(torch.equal(gpu.get_state(), of_seed(99)) for gpu in later)
