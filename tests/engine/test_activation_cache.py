"""activation_cache.py, inputs.py: the same numbers in less time, and never those of something else."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import Act, ColourPatches, copy_of, generators_untouched, mini, moved, moved_stages
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from course_tools.photos import cache_command
from course_utils.common.errors import CourseError
from course_utils.datasets import MemoryDataset, PhotoDataset
from course_utils.engine import activation_cache, artifact_store, fingerprints, inputs, setup
from course_utils.engine.activation_cache import CachedActivations, cache_activations, cut
from course_utils.engine.artifact_store import DATA_FILE, MANIFEST_FILE, ArtifactStore, lock_of
from course_utils.engine.fingerprints import CannotFingerprint, describe
from course_utils.engine.history import TrainingStopped
from course_utils.engine.inputs import CacheOptions
from course_utils.engine.runs import load_run
from course_utils.engine.sampling import SampleIndex
from course_utils.evaluation import evaluate
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.pretrained_models import family_of, feature_dim, stages
from course_utils.settings import MODELS
from course_utils.training import fit

HEAD = Strategy("head", starts=(0, None), rates=(1e-2,))
MINIS = tuple(MODELS["mini"].values())
AS_TENSOR = v2.Compose([v2.Resize(32), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
AUGMENTED = v2.Compose([v2.RandomResizedCrop(32, scale=(0.3, 1)), v2.RandomHorizontalFlip(), *AS_TENSOR.transforms[1:]])
LARGER = v2.Compose([v2.Resize(36), *AS_TENSOR.transforms[1:]])
THICKNESS = 1.0


def patches(size, seed):
    made = ColourPatches(size, seed)
    return MemoryDataset(made.images, made.labels, made.classes)


def outcome(run):
    return np.array([(r.train_loss, r.val_loss, r.train_accuracy, r.val_accuracy) for r in run.history])


def quick(model, train, val, strategy, **options):
    given = {"epochs": 2, "batch_size": 4, "device": "cpu", "log": "off"} | options
    return fit(model, train, val, strategy, **given)


TRAIN, VAL = patches(10, seed=1), patches(6, seed=2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of caches, which is the default one too."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_ACTIVATIONS", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture
def photos(tmp_path):
    """Eight pictures of noise with a transform that is not random."""
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    return PhotoDataset(paths, [i % 2 for i in range(8)], ["ant", "bee"], AS_TENSOR)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


# --- the cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MINIS)
def test_front_and_tail_together_are_the_network(name):
    model = FULL.starting_model(name, 3).eval()
    x = TRAIN.images[:2]
    with torch.no_grad():
        whole = model(x)
        for border in list(stages(model))[1:]:
            front, tail = cut(model, border)
            assert torch.equal(tail(front(x)), whole)
            row = list(stages(model))
            behind = [stage for name, stage in stages(model).items() if row.index(name) >= row.index(border)]
            assert {id(p) for p in tail.parameters()} == {id(p) for stage in behind for p in stage.parameters()}


def test_behind_the_pooling_there_is_one_number_per_channel(folder):
    model = mini()
    assert cache_activations(model, VAL, "head").shape == (feature_dim(model),)


@pytest.mark.parametrize("border", ["stem", "laeyr4", ""])
def test_a_border_that_cannot_be(border):
    with pytest.raises(CourseError, match="layer1, layer2, layer3, layer4, head"):
        cut(mini(), border)


# --- the law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [FEATURE_EXTRACTION, LAST_BLOCK], ids=["head", "last block"])
@pytest.mark.parametrize("name", MINIS)
def test_training_from_the_cache_is_training_through_the_network(name, strategy, folder):
    """Two families have dropout in what learns: the same numbers are drawn there as well."""
    runs, models = [], []
    for cache in ("off", "auto"):
        models.append(strategy.starting_model(name, 3, seed=1))
        before = copy_of(models[-1])
        runs.append(quick(models[-1], TRAIN, VAL, strategy, cache=cache, seed=5))
        changed = moved_stages(models[-1], before, copy_of(models[-1]))
        assert changed == set(runs[-1].history[-1].learning)
    plain, cached = runs
    assert plain.cached is None and cached.cached == plain.history[0].learning[0]
    np.testing.assert_allclose(outcome(cached), outcome(plain), rtol=0, atol=1e-6)
    assert cached.best.epoch == plain.best.epoch and cached.history[0].learning == plain.history[0].learning
    answers = [evaluate(model, VAL).probabilities for model in models]
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=1e-5)
    assert (answers[0].argmax(1) == answers[1].argmax(1)).all()
    assert all(module.training is False for module in models[1].modules())
    assert [p.requires_grad for p in models[0].parameters()] == [p.requires_grad for p in models[1].parameters()]


def test_the_law_holds_with_photos_oversampling_and_early_stopping(folder, photos):
    options = {"oversample": True, "patience": 1, "epochs": 3, "label_smoothing": 0.1, "class_weights": [1, 2]}
    runs = [quick(mini(num_classes=2), photos, photos, LAST_BLOCK, cache=c, **options) for c in ("off", "auto")]
    assert runs[1].cached == "layer4" and runs[0].stopped == runs[1].stopped
    np.testing.assert_allclose(outcome(runs[1]), outcome(runs[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", [FEATURE_EXTRACTION, LAST_BLOCK], ids=["head", "last block"])
@pytest.mark.parametrize("name", ["resnet18_mini", "efficientnet_b0_mini"])
def test_the_law_holds_in_mixed_precision(name, strategy, folder, monkeypatch):
    """The frozen stages run under the run's autocast, as on a GPU: in float32 losses differ by 1.5e-3 to 2e-2."""

    def in_bfloat16(_device, _precision):
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision="bf16")

    monkeypatch.setattr(setup, "make_accelerator", in_bfloat16)
    models = [strategy.starting_model(name, 3, seed=1) for _ in range(2)]
    plain, cached = (quick(m, TRAIN, VAL, strategy, cache=c) for m, c in zip(models, ("off", "on"), strict=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (plain.cached, cached.cached) == (None, plain.history[0].learning[0])
    np.testing.assert_allclose(outcome(cached), outcome(plain), rtol=0, atol=1e-3)


def test_the_law_holds_for_a_float64_network(folder):
    train, val = (MemoryDataset(data.images.double(), data.labels, data.classes) for data in (TRAIN, VAL))
    plain, cached = (quick(mini().double(), train, val, LAST_BLOCK, cache=cache) for cache in ("off", "auto"))
    assert cached.cached == "layer4"
    np.testing.assert_allclose(outcome(cached), outcome(plain), rtol=0, atol=1e-12)


def test_same_seed_same_bits_whether_the_cache_was_there_or_not(folder):
    models = [mini(), mini()]
    for model in models:
        torch.manual_seed(len(models))
        quick(model, TRAIN, VAL, HEAD, cache="auto", seed=3)
    assert not moved(copy_of(models[0]), copy_of(models[1]))
    assert len(names(folder)) == 2


def test_the_log_says_that_a_cache_was_used(folder):
    model = mini()
    run = quick(model, TRAIN, VAL, HEAD, log="full")
    record = load_run(run.folder)
    told = record.facts["settings"]["cache"]
    assert told["used"] and told["border"] == "head" and {told["train"], told["val"]} == set(names(folder))
    again = load_run(quick(mini(), TRAIN, VAL, HEAD, log="light").folder).facts["settings"]["cache"]
    assert (told["reused"], again["reused"]) == (False, True) and told | {"reused": True} == again
    assert record.facts["data"]["train"]["pictures"] == 10 and "cache.border" in str(record)
    assert not moved(copy_of(record.model()), copy_of(model))
    np.testing.assert_allclose(record.reports["val"]["right"], evaluate(model, VAL).right)
    plain = load_run(quick(mini(), TRAIN, VAL, FULL, log="light").folder).facts["settings"]["cache"]
    assert plain == {"asked": "auto", "used": False, "reason": plain["reason"]} and "nothing" in plain["reason"]


# --- when fit uses one -------------------------------------------------------------------------------------------


def test_no_cache_where_the_first_stage_learns(folder):
    for strategy, epochs in ((FULL, 2), (PROGRESSIVE, 6)):
        assert quick(mini(), TRAIN, VAL, strategy, cache="auto", epochs=epochs).cached is None
        assert not folder.exists()
        with pytest.raises(CourseError, match=r"cache='on' cannot be: .*the first stage learns"):
            quick(mini(), TRAIN, VAL, strategy, cache="on", epochs=epochs)


@pytest.mark.parametrize("epochs", [2, 3])
def test_stages_that_wake_later_are_behind_the_border(folder, epochs):
    """In front of it is what never learns in this run; what learns later is run frozen until then."""
    kept, plain = mini(), mini()
    run = quick(kept, TRAIN, VAL, PROGRESSIVE, epochs=epochs, cache="auto")
    other = quick(plain, TRAIN, VAL, PROGRESSIVE, epochs=epochs, cache="off")
    assert run.cached == {2: "layer4", 3: "layer3"}[epochs] and other.cached is None
    np.testing.assert_allclose(outcome(run), outcome(other), rtol=0, atol=1e-5)
    assert moved_stages(kept, copy_of(mini()), copy_of(kept)) == set(run.plan.learning_at(epochs - 1))


def test_augmentation_is_never_frozen_silently(folder, photos):
    augmented = photos.with_transform(AUGMENTED)
    for train, val in ((augmented, photos), (photos, augmented)):
        run = quick(mini(num_classes=2), train, val, HEAD)
        assert run.cached is None and not folder.exists()
        with pytest.raises(CourseError, match="augmented at random"):
            quick(mini(num_classes=2), train, val, HEAD, cache="on")
    with pytest.raises(CourseError, match="Give views=4"):
        cache_activations(mini(), augmented, "head")


def test_a_data_set_of_ones_own_is_left_alone_unless_asked_for(folder):
    train, val = ColourPatches(10, seed=1), ColourPatches(6, seed=2)
    plain = quick(mini(), train, val, HEAD)
    assert plain.cached is None and not folder.exists()
    asked = quick(mini(), train, val, HEAD, cache="on")
    assert asked.cached == "head" and len(names(folder)) == 2
    np.testing.assert_allclose(outcome(asked), outcome(plain), rtol=0, atol=1e-6)


def test_one_epoch_gains_nothing(folder):
    assert quick(mini(), TRAIN, VAL, HEAD, epochs=1).cached is None
    assert quick(mini(), TRAIN, VAL, HEAD, epochs=1, cache="on").cached == "head"
    assert quick(mini(), TRAIN, VAL, HEAD, epochs=1, cache=None).cached is None


def test_unknown_words_are_refused():
    with pytest.raises(CourseError, match="cache='yes' is unknown: give one of auto, on, off"):
        quick(mini(), TRAIN, VAL, HEAD, cache="yes")
    for options in ({"dtype": "int8"}, {"views": 0}, {"seed": -1}, {"batch_size": 0}, {"views": 2}):
        with pytest.raises(CourseError, match=next(iter(options))):
            cache_activations(mini(), TRAIN, "head", **options)
    with pytest.raises(CourseError, match="empty"):
        cache_activations(mini(), patches(0, 1), "head")


def test_caches_can_be_given_themselves(folder):
    model = mini()
    kept = [cache_activations(model, data, "head") for data in (TRAIN, VAL)]
    run, plain = quick(model, *kept, HEAD), quick(mini(), TRAIN, VAL, HEAD, cache="off")
    np.testing.assert_allclose(outcome(run), outcome(plain), rtol=0, atol=1e-6)
    with pytest.raises(CourseError, match="cache both splits"):
        quick(mini(), kept[0], VAL, HEAD)
    with pytest.raises(CourseError, match="learns from layer4 on"):
        quick(mini(), *kept, LAST_BLOCK)
    with pytest.raises(CourseError, match="of other frozen weights"):
        quick(mini(seed=9), *kept, HEAD)
    with pytest.raises(CourseError, match=r"do not fit this strategy: .*the first stage learns"):
        quick(mini(), *kept, PROGRESSIVE, epochs=6)


# --- what a cache holds ------------------------------------------------------------------------------------------


def test_a_cache_holds_what_crosses_the_border(folder, photos):
    model = mini(num_classes=2)
    kept = cache_activations(model, photos, "layer4", batch_size=3)
    images = torch.stack([image for image, _ in photos])
    with torch.no_grad():
        wanted = cut(model.eval(), "layer4")[0](images)
    torch.testing.assert_close(kept.activations(), wanted, rtol=1e-5, atol=1e-6)
    assert kept.labels == photos.labels and kept.classes == photos.classes and len(kept) == 8
    for i in (0, 5, -1):
        activation, label = kept[i]
        assert torch.equal(activation, kept.activations()[i]) and label == photos.labels[i]
        activation.zero_()  # what a caller does with it does not reach the disk
    assert kept[0][0].abs().sum() > 0 and cache_activations(model, photos, "layer4").reused
    assert np.load(kept.folder / DATA_FILE).shape == (1, 8, *kept.shape)
    assert "8 pictures, in front of layer4" in repr(kept)


def test_half_precision_takes_half_the_room(folder):
    whole, half = (cache_activations(mini(), TRAIN, "layer4", dtype=dtype) for dtype in ("float32", "float16"))
    assert half.size - 128 == (whole.size - 128) / 2 and half[0][0].dtype == torch.float32
    torch.testing.assert_close(half.activations(), whole.activations(), rtol=1e-3, atol=1e-4)
    assert quick(mini(), TRAIN, VAL, HEAD, cache=CacheOptions("on", dtype="float16")).cached == "head"
    assert len(names(folder)) == 4  # those of two borders


def test_numbers_beyond_half_precision_are_no_silent_infinity(folder):
    bright = MemoryDataset(TRAIN.images * 1e8, TRAIN.labels, TRAIN.classes)
    with pytest.raises(CourseError, match=r"beyond float16.*float32"):
        cache_activations(mini(), bright, "layer1", dtype="float16")
    assert not names(folder) and not hidden(folder)


def test_views_are_augmentations_of_their_own_and_can_be_drawn_again(folder, photos):
    augmented, model = photos.with_transform(AUGMENTED), mini(num_classes=2)
    first = cache_activations(model, augmented, "head", views=3, seed=7)
    views = [first.activations(view) for view in range(3)]
    assert all(not torch.equal(views[a], views[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    for epoch in range(5):
        activation, label = first[SampleIndex(2, epoch)]
        assert torch.equal(activation, views[epoch % 3][2]) and label == photos.labels[2]
    assert torch.equal(first[2][0], views[0][2])
    torch.manual_seed(99)
    again = cache_activations(model, augmented, "head", views=3, seed=7, folder=folder / "other", batch_size=5)
    torch.testing.assert_close(again.activations(), views[0])
    other = cache_activations(model, augmented, "head", views=3, seed=8)
    assert not torch.equal(other.activations(), views[0])


def test_every_epoch_learns_from_its_own_view(folder, photos):
    seen = []

    class Watched(CachedActivations):
        def __getitem__(self, index):
            seen.append(getattr(index, "epoch", 0) % self.views)
            return super().__getitem__(index)

    augmented, model = photos.with_transform(AUGMENTED), mini(num_classes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation_cache, "CachedActivations", Watched)
        run = quick(model, augmented, photos, HEAD, epochs=3, cache=CacheOptions("on", views=2))
    assert run.cached == "head"
    train_and_val = [0] * 8 + [0] * 8 + [1] * 8 + [0] * 8 + [0] * 8 + [0] * 8
    assert seen == train_and_val


def test_a_cache_travels_to_the_processes_of_a_loader(folder):
    kept = cache_activations(mini(), TRAIN, "layer4")
    kept[0]
    sent = pickle.dumps(kept)
    assert len(sent) < kept.size / 4
    assert torch.equal(pickle.loads(sent)[3][0], kept[3][0])
    batch, labels = next(iter(DataLoader(kept, batch_size=10)))
    assert torch.equal(batch, kept.activations()) and tuple(labels.tolist()) == kept.labels


def test_nothing_of_the_caller_is_touched(folder, photos):
    model = mini(num_classes=2)
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    learns = [p.requires_grad for p in model.parameters()]
    before = copy_of(model)
    with generators_untouched():
        cache_activations(model, photos, "layer4")
        cache_activations(model, photos.with_transform(AUGMENTED), "layer4", views=2)
        cache_activations(model, ColourPatches(4), "layer4")
    assert modes == [module.training for module in model.modules()]
    assert learns == [p.requires_grad for p in model.parameters()] and not moved(before, copy_of(model))


# --- never a stale one -------------------------------------------------------------------------------------------


def _one_bit(tensor):
    with torch.no_grad():
        tensor.view(torch.int32).view(-1)[0] ^= 1


CHANGES = {
    "weight": lambda model, data, options: _one_bit(model.layer1[0].conv1.weight),
    "statistics": lambda model, data, options: _one_bit(model.layer3[0].bn1.running_var),
    "layers": lambda model, data, options: setattr(model.bn1, "eps", 1e-3),
    "border": lambda model, data, options: options.update(border="layer3"),
    "dtype": lambda model, data, options: options.update(dtype="float16"),
    "transform": lambda model, data, options: data.with_transform(LARGER),
    "normalising": lambda model, data, options: data.with_transform(
        v2.Compose([*AS_TENSOR.transforms, v2.Normalize([0.5] * 3, [0.25] * 3)])
    ),
    "a file": lambda model, data, options: Image.new("RGB", (40, 40), "red").save(data.paths[3]),
    "a copied time": lambda model, data, options: _swap_content(*data.paths[:2]),
    "order": lambda model, data, options: data.subset([1, 0, *range(2, 8)]),
    "a picture less": lambda model, data, options: data.subset(range(7)),
    "labels": lambda model, data, options: PhotoDataset(data.paths, [1] * 8, data.classes, data.transform),
    "classes": lambda model, data, options: PhotoDataset(data.paths, data.labels, ["x", "y"], data.transform),
}  # fmt: skip


def _swap_content(one, two):
    """Other bytes with the size and the time of last change of before."""
    facts = one.stat()
    content = bytearray(one.read_bytes())
    image = Image.open(io.BytesIO(content)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(one, compress_level=6)
    padded = one.read_bytes().ljust(facts.st_size, b"\0")[: facts.st_size]
    one.write_bytes(padded)
    os.utime(one, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_another_cache_is_made(what, folder, photos):
    model, options = mini(num_classes=2), {"border": "layer4"}
    first = cache_activations(model, photos, **options)
    changed = CHANGES[what](model, photos, options) or photos
    second = cache_activations(model, changed, **options)
    assert not second.reused and second.name != first.name and len(names(folder)) == 2
    assert cache_activations(model, changed, **options).reused


@pytest.mark.parametrize(("what", "value"), [("FORMAT", 99), ("torch", "9.9")])
def test_another_version_makes_another_cache(what, value, folder, monkeypatch):
    first = cache_activations(mini(), VAL, "head")
    if what == "FORMAT":
        monkeypatch.setattr(activation_cache, "FORMAT", value)
    else:
        monkeypatch.setattr(torch, "__version__", value)
    assert cache_activations(mini(), VAL, "head").name != first.name


def test_what_lies_behind_the_border_does_not_matter(folder):
    first = cache_activations(mini(), VAL, "layer4")
    model = mini(num_classes=7)
    nn.init.ones_(model.layer4[0].conv1.weight)
    model.train()
    model.requires_grad_(False)
    assert cache_activations(model, VAL, "layer4").name == first.name


@pytest.mark.parametrize("change", ["images", "labels"])
def test_tensors_in_memory_are_known_by_their_bytes(change, folder):
    first = cache_activations(mini(), VAL, "head")
    images, labels = VAL.images.clone(), list(VAL.labels)
    if change == "images":
        _one_bit(images)
    else:
        labels[0] = 2
    assert cache_activations(mini(), MemoryDataset(images, labels, VAL.classes), "head").name != first.name
    assert cache_activations(mini(), MemoryDataset(VAL.images.clone(), VAL.labels, VAL.classes), "head").reused


def test_pictures_are_hashed_once(folder, monkeypatch):
    hashed, usual = [], fingerprints._bytes_of
    monkeypatch.setattr(fingerprints, "_bytes_of", lambda tensor: hashed.append(tensor) or usual(tensor))
    quick(mini(), TRAIN, VAL, HEAD)
    quick(mini(), TRAIN, VAL, HEAD)
    assert [sum(tensor is data.images for tensor in hashed) for data in (TRAIN, VAL)] == [2, 2]


def test_a_function_is_known_by_what_it_gives(folder, photos, monkeypatch):
    def thick(picture):
        return AS_TENSOR(picture) * THICKNESS

    data, model = photos.with_transform(thick), mini(num_classes=2)
    assert quick(model, data, data, HEAD).cached is None and not folder.exists()
    first = cache_activations(model, data, "head")
    assert cache_activations(model, data, "head").reused
    monkeypatch.setattr(sys.modules[__name__], "THICKNESS", 2.0)  # the function itself is the same
    assert not cache_activations(model, data, "head").reused and len(names(folder)) == 2
    assert first.content["key"]["data"]["kind"] == "samples"


def test_a_hook_in_the_frozen_part_is_seen(folder):
    model = mini()
    handle = model.layer1.register_forward_hook(lambda module, given, out: out * 2)
    assert quick(model, TRAIN, VAL, HEAD).cached is None
    with pytest.raises(CourseError, match="hook"):
        quick(model, TRAIN, VAL, HEAD, cache="on")
    handle.remove()
    assert quick(model, TRAIN, VAL, HEAD).cached == "head"


class OwnGenerator(ColourPatches):
    """Augmentation that no seed of ours reaches, from the second pass over the data on."""

    def __init__(self, size):
        super().__init__(size)
        self.rng, self.reads = np.random.default_rng(), 0

    def __getitem__(self, index):
        self.reads += 1
        image, label = super().__getitem__(index)
        return image + (self.rng.random() if self.reads > 12 + len(self) else 0), label


def test_a_data_set_with_a_generator_of_its_own_is_found_out(folder):
    with pytest.raises(CourseError, match="draws from a generator of its own"):
        cache_activations(mini(), OwnGenerator(8), "head")
    assert not names(folder) and not hidden(folder)


TRANSFORMS = st.lists(
    st.one_of(
        st.integers(1, 99).map(v2.Resize),
        st.integers(1, 99).map(v2.CenterCrop),
        st.floats(0, 1).map(v2.RandomHorizontalFlip),
        st.floats(0.1, 9).map(lambda sd: v2.Normalize([0.5], [sd])),
        st.sampled_from([v2.InterpolationMode.BICUBIC, v2.InterpolationMode.NEAREST]).map(
            lambda mode: v2.Resize(8, interpolation=mode)
        ),
    ),
    min_size=1,
    max_size=3,
).map(v2.Compose)


@settings(max_examples=40, deadline=None)
@given(TRANSFORMS, TRANSFORMS)
def test_transforms_are_described_alike_when_they_are_alike(one, other):
    assert describe(one) == describe(pickle.loads(pickle.dumps(one)))
    assert (describe(one) == describe(other)) == (repr(one) == repr(other))
    json.dumps(describe(one))


@pytest.mark.parametrize("thing", [lambda x: x, v2.Lambda(len), [v2.Resize(3), print], object()])
def test_what_could_do_anything_is_not_described(thing):
    with pytest.raises(CannotFingerprint, match="cannot be read off"):
        describe(thing)


# --- damage and disks --------------------------------------------------------------------------------------------


def _edited(path, old, new):
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda f: os.truncate(f / DATA_FILE, (f / DATA_FILE).stat().st_size - 4),
    "a bit": lambda f: _flip(f / DATA_FILE),
    "no array": lambda f: (f / DATA_FILE).unlink(),
    "no manifest": lambda f: (f / MANIFEST_FILE).unlink(),
    "half a manifest": lambda f: os.truncate(f / MANIFEST_FILE, 100),
    "another label": lambda f: _edited(f / MANIFEST_FILE, '"head"', '"tail"'),
    "no JSON": lambda f: (f / MANIFEST_FILE).write_bytes(b"\xff\x00"),
    "a list": lambda f: (f / MANIFEST_FILE).write_text("[]"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_cache_is_found_and_made_again(what, folder):
    said = []
    first = cache_activations(mini(), VAL, "head")
    wanted = first.activations()
    DAMAGE[what](first.folder)
    listed = ArtifactStore(folder).artifacts(thorough=True)
    assert len(listed) == 1 and listed[0].problem
    again = cache_activations(mini(), VAL, "head", notify=said.append)
    assert len(said) == 1 and "damaged" in said[0] and "computed anew" in said[0]
    assert not again.reused and torch.equal(again.activations(), wanted) and again.labels == VAL.labels
    assert cache_activations(mini(), VAL, "head", notify=said.append).reused and len(said) == 1


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_an_error_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(artifact_store.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(CourseError, match=r"would take .* MB, and 0.0 MB are free.*course cache.*COURSE_ACTIVATIONS"):
        cache_activations(mini(), VAL, "head")
    assert not names(folder) and not hidden(folder)


@pytest.fixture
def filling_up(monkeypatch):
    """Let the disk be full after so many writes."""

    def after(writes):
        written = []

        class Full(artifact_store.DataWriter):
            def write(self, data):
                written.append(data)
                if len(written) > writes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                super().write(data)

        monkeypatch.setattr(artifact_store, "DataWriter", Full)

    return after


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_a_disk_that_fills_up_leaves_nothing(writes, folder, filling_up):
    filling_up(writes)
    with pytest.raises(CourseError, match=r"No space left on device.*Nothing half-done"):
        cache_activations(mini(), VAL, "head", batch_size=2)
    assert not names(folder) and not hidden(folder)


def test_training_goes_on_when_the_disk_fills_up(folder, filling_up):
    plain = quick(mini(), TRAIN, VAL, HEAD, cache="off")
    filling_up(1)
    with pytest.warns(UserWarning, match=r"goes on without cached activations.*No space left"):
        run = quick(mini(), TRAIN, VAL, HEAD)
    assert run.cached is None and (outcome(run) == outcome(plain)).all()
    with pytest.raises(CourseError, match="No space left"):
        quick(mini(), TRAIN, VAL, HEAD, cache="on")


def test_a_folder_that_cannot_be_written_to(tmp_path, folder):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CourseError, match=r"could not be written to .*file"):
        cache_activations(mini(), VAL, "head", folder=tmp_path / "file")
    with pytest.warns(UserWarning, match="could not be written"):
        run = quick(mini(), TRAIN, VAL, HEAD, cache=CacheOptions(folder=tmp_path / "file"))
    assert run.cached is None


def test_what_is_there_serves_where_nothing_can_be_written(folder, monkeypatch):
    cache_activations(mini(), VAL, "head")

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "read-only")

    for name in ("mkdir", "open"):
        monkeypatch.setattr(artifact_store.os, name, refuse)
    monkeypatch.setattr(artifact_store.os, "utime", refuse)
    monkeypatch.setattr(artifact_store, "lock_of", refuse)
    assert cache_activations(mini(), VAL, "head").reused


def test_a_cache_too_large_to_be_made_unasked(folder, monkeypatch):
    monkeypatch.setattr(inputs, "LARGEST_AUTO", 1000)
    with pytest.warns(UserWarning, match="would take"):
        assert quick(mini(), TRAIN, VAL, HEAD).cached is None
    assert quick(mini(), TRAIN, VAL, HEAD, cache="on").cached == "head"


def test_a_long_or_large_job_is_announced(folder, monkeypatch):
    said = []
    monkeypatch.setattr(activation_cache, "LARGE_BYTES", 1000)
    cache_activations(mini(), VAL, "layer4", notify=said.append)
    assert len(said) == 1 and "6 pictures in front of layer4" in said[0]
    assert re.search(r" \d+\.\d MB, about \d+ s\.$", said[0])


# --- killed, and two at a time -----------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from helpers import ColourPatches, mini
from course_utils.engine.activation_cache import cache_activations

class Interrupted(ColourPatches):
    reads, act = 0, None
    def __getitem__(self, index):
        self.reads += 1
        if self.reads == 12 + 8 + 6 + 5:  # two looks at six samples, all for the fingerprint, six that go through the
            # network, then in the middle of writing
            self.act()
        return super().__getitem__(index)

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def waits():
    print("writing", flush=True)
    sys.stdin.readline()

data = Interrupted(8)
pid = os.fork()  # before torch has computed anything, so that no threads are lost
data.act = waits if pid else killed
if pid:
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    sys.stdin.readline()
print(cache_activations(mini(), data, "layer4", batch_size=2).reused, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_leaves_no_cache_and_a_second_process_waits(folder):
    environ = os.environ | {"COURSE_ACTIVATIONS": str(folder), "OMP_NUM_THREADS": "1"}
    environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[1])]
    said = []
    with subprocess.Popen(command, env=environ, stdin=-1, stdout=-1, text=True, bufsize=1) as child:
        try:
            assert int(child.stdout.readline()) == -signal.SIGKILL
            assert names(folder) == [] and len(hidden(folder)) == 1  # a draft, under a name that no reader looks for
            assert ArtifactStore(folder).artifacts() == []
            child.stdin.write("on\n")
            assert child.stdout.readline() == "writing\n"
            assert len(hidden(folder)) == 1  # the one of the killed writer is gone, this one is being written

            def release(line):
                said.append(line)
                child.stdin.write("on\n")

            kept = cache_activations(mini(), ColourPatches(8), "layer4", notify=release)
            assert child.stdout.readline() == "False\n"
        finally:
            child.kill()
    assert kept.reused and len(said) == 1 and "Another process is computing" in said[0]
    assert names(folder) == [kept.name] and not hidden(folder)
    alone = cache_activations(mini(), ColourPatches(8), "layer4", folder=folder / "alone")
    torch.testing.assert_close(kept.activations(), alone.activations())


def test_a_stop_while_the_cache_is_filled_ends_the_run(folder):
    """The notebook has its prompt back, the model is as it came, and the same call begins there again."""

    def stop(_image):
        raise KeyboardInterrupt

    model = mini()
    before = copy_of(model)
    train = Act(TRAIN, None, stop)
    quick(mini(), train, VAL, HEAD, cache=CacheOptions("on", folder=folder / "elsewhere"), epochs=1)
    read = train.accesses  # by fit, by the fingerprint, by the cache; every epoch reads the cache alone
    with pytest.raises(TrainingStopped, match="before the first epoch; the same call begins anew") as caught:
        quick(model, Act(TRAIN, read - 3, stop), VAL, HEAD, cache="on")
    interrupted = caught.value.run
    assert (interrupted.stopped, interrupted.history, interrupted.folder) == ("interrupted", [], None)
    assert not moved(before, copy_of(model)) and not model.training
    assert names(folder) == ["elsewhere"] and hidden(folder) == []
    assert quick(model, TRAIN, VAL, HEAD, cache="on").cached == "head"


# --- course cache ------------------------------------------------------------------------------------------------


def test_course_cache_lists_and_clears(folder, capsys):
    assert cache_command.main([]) == 0 and "No caches" in capsys.readouterr().out
    kept = [cache_activations(mini(), data, border) for data in (TRAIN, VAL) for border in ("head", "layer4")]
    (folder / "holiday").mkdir()
    (folder / "holiday" / "beach.txt").write_text("not ours")
    draft = folder / ".resnet-head-1x1-00.12345678.partial"
    draft.mkdir()
    _flip(kept[0].folder / DATA_FILE)
    assert cache_command.main([]) == 0
    text = capsys.readouterr().out
    assert all(cache.name in text for cache in kept) and "4 caches" in text and "holiday" not in text
    assert "damaged" not in text and cache_command.main(["--check"]) == 0
    assert "damaged: bytes in data.bin have changed" in capsys.readouterr().out
    assert cache_command.main(["--clear", "--unused", "1"]) == 0 and len(names(folder)) == 5
    assert cache_command.main(["--clear", kept[1].name]) == 0 and not kept[1].folder.exists()
    assert not draft.exists() and "1 half-done" in capsys.readouterr().out
    with pytest.raises(CourseError, match=f"Did you mean {kept[3].name}"):
        cache_command.main([kept[3].name[:-1] + "?"])
    os.utime(kept[2].folder / MANIFEST_FILE, (0, 0))
    assert cache_command.main(["--unused", "30"]) == 0 and "1 cache," in capsys.readouterr().out
    assert cache_command.main(["--clear"]) == 0 and names(folder) == ["holiday"]
    assert "3 of 3 caches removed" in capsys.readouterr().out


def test_a_cache_that_is_being_made_is_not_cleared(folder, capsys):
    kept = cache_activations(mini(), VAL, "head")
    with lock_of(kept.folder):
        assert cache_command.main(["--clear"]) == 1
        assert f"{kept.name} is in use or protected, and stays" in capsys.readouterr().out
    assert cache_command.main(["--clear"]) == 0


def test_a_family_stands_in_the_name(folder):
    model = mini()
    assert cache_activations(model, VAL, "head").name.startswith(f"{family_of(model).name}-head-6x1-")
