"""pretraining.py: the recipe, the views, and a run that goes on where it was interrupted."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from helpers import generators_untouched, mini, moved
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from course_tools.authoring import pretraining
from course_tools.authoring.pretraining import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Pictures,
    Recipe,
    batches,
    check_tiny_imagenet,
    count_correct,
    digest,
    export,
    find_tiny_imagenet,
    learning_rate,
    normalise,
    parameter_groups,
    pretrain,
    random_views,
    read_categories,
    read_training,
    read_validation,
)
from course_utils.common.errors import CourseError
from course_utils.common.files import sha256_of
from course_utils.mini import networks

WNIDS = ("n03", "n01", "n02")  # not sorted on purpose
SMALL = Recipe(phases=((1, 16), (2, 24)), batch_size=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A Tiny ImageNet of 3 classes with 4 training pictures and 1 validation picture each; one is grey."""
    folder = tmp_path_factory.mktemp("tiny-imagenet-200")
    generator = np.random.default_rng(0)

    def save(path, channel, grey=False):
        pixels = generator.integers(0, 100, (64, 64, 3), dtype=np.uint8)
        pixels[..., channel] += 150
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("L" if grey else "RGB").save(path, "JPEG")

    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n", encoding="utf-8")
    words = "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\ttabby, tabby cat\nn03\tbee\nno tab here\n"
    (folder / "words.txt").write_text(words, encoding="utf-8")
    rows = []
    for channel, wnid in enumerate(WNIDS):
        for number in range(4):
            save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", channel, grey=number == 3)
        save(folder / "val" / "images" / f"val_{channel}.JPEG", channel)
        rows.append(f"val_{channel}.JPEG\t{wnid}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


# --- reading -----------------------------------------------------------------------------------------------------


def test_categories_are_sorted_ids_with_their_first_name(tiny):
    assert read_categories(tiny) == (["n01", "n02", "n03"], ["goldfish", "tabby", "bee"])


def test_training_pictures_are_the_first_of_each_class(tiny):
    pictures = read_training(tiny, per_class=2)
    assert pictures.images.shape == (6, 3, 64, 64) and pictures.images.dtype == torch.uint8
    assert pictures.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert pictures.names == [f"{wnid}_{i}.JPEG" for wnid in sorted(WNIDS) for i in range(2)]
    assert len(read_training(tiny, per_class=500)) == 12  # what is there


def test_a_grey_picture_has_three_channels(tiny):
    pictures = read_training(tiny, per_class=4)
    grey = pictures.images[pictures.names.index("n01_3.JPEG")]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


def test_validation_labels_follow_the_annotations(tiny):
    pictures = read_validation(tiny)
    assert pictures.labels.tolist() == [2, 0, 1]  # positions of n03, n01, n02 among the sorted ids
    # channel 0 is strongest in the first picture, 1 in the second, 2 in the third
    assert pictures.images.float().mean((2, 3)).argmax(1).tolist() == [0, 1, 2]


def test_normalise_is_imagenets():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    np.testing.assert_allclose(normalise(images).numpy(), (images.numpy() / 255 - mean) / std, rtol=1e-4, atol=1e-5)


# --- the recipe --------------------------------------------------------------------------------------------------


def test_sizes_by_epoch():
    recipe = Recipe(phases=((2, 48), (1, 64), (1, 96)))
    assert [recipe.size_at(epoch) for epoch in range(recipe.epochs)] == [48, 48, 64, 96]
    with pytest.raises(ValueError, match="4 epochs, there is no epoch 4"):
        recipe.size_at(4)


@hypothesis_settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 2000), st.floats(0, 0.9))
def test_the_learning_rate_climbs_and_falls(steps, warmup):
    recipe = Recipe(warmup=warmup)
    rates = [learning_rate(step, steps, recipe) for step in range(steps)]
    assert all(0 <= rate <= recipe.peak_lr * (1 + 1e-12) for rate in rates)
    peak = min(max(1, round(warmup * steps)), steps) - 1
    assert rates[peak] == pytest.approx(recipe.peak_lr) == max(rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak + 1 :] == sorted(rates[peak + 1 :], reverse=True)
    falling = steps - peak - 1
    if falling:
        assert rates[-1] == pytest.approx(recipe.peak_lr * math.sin(math.pi / (2 * falling)) ** 2)


def test_a_second_cycle_begins_where_the_first_ended_and_climbs_half_as_high():
    once = Recipe(phases=((14, 64),))
    twice = Recipe(phases=((14, 64), (6, 96)), cycles=(14, 6))
    rates = [learning_rate(step, 2000, twice) for step in range(2000)]
    assert rates[:1400] == [learning_rate(step, 1400, once) for step in range(1400)]
    assert max(rates[1400:]) == once.peak_lr / 2
    assert rates[1400] < 0.01 and rates[-1] < 1e-4


def test_the_recipe_of_every_mini_model_is_stated_in_full():
    assert pretraining.RECIPES.keys() == networks.BUILDERS.keys()
    for recipe in pretraining.RECIPES.values():
        assert not recipe.cycles or sum(recipe.cycles) == recipe.epochs


def test_groups_decay_matrices_only():
    model = mini()
    decayed, plain = parameter_groups(model, 5e-4)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (5e-4, 0.0)
    expected = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {id(p) for p in decayed["params"]} == expected
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


# --- views -------------------------------------------------------------------------------------------------------


def coordinates(n):
    """Pictures whose first channel is x and second y, from -1 to 1: a view tells where it was cut out."""
    line = (torch.arange(64) + 0.5) / 32 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).expand(n, 3, 64, 64).contiguous()


def windows(views):
    """Signed half width, half height and centre of each window, read off the middle of its view."""
    size = views.shape[-1]
    middle = slice(size // 4, size - size // 4)
    span = (size - 2 * (size // 4) - 1) * 2 / size
    x, y = views[:, 0, size // 2, middle], views[:, 1, middle, size // 2]
    half_w, half_h = (x[:, -1] - x[:, 0]) / span, (y[:, -1] - y[:, 0]) / span
    return half_w, half_h, x.mean(1), y.mean(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_views_are_a_function_of_the_generators_state():
    images = torch.rand(8, 3, 64, 64, generator=generator())
    with generators_untouched():
        first, again, other = (random_views(images, 32, 0.35, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (8, 3, 32, 32)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("smallest", [0.2, 0.35, 1.0])
def test_windows_lie_in_the_picture_and_keep_enough_of_it(smallest):
    half_w, half_h, centre_x, centre_y = windows(random_views(coordinates(400), 64, smallest, generator()))
    area = (half_w * half_h).abs()
    # Where a side would be longer than the picture it is cut, by at most exp(0.1) for ratios of exp(±0.2).
    assert area.min() > smallest * math.exp(-0.2) - 0.01 and area.max() < 1.01
    assert (centre_x.abs() + half_w.abs()).max() < 1.02 and (centre_y.abs() + half_h).max() < 1.02
    assert (half_h > 0).all()
    assert 0.4 < (half_w < 0).float().mean() < 0.6  # mirrored
    if smallest < 1:
        assert area.min() < smallest + 0.05 and area.max() > 0.9
        shape = half_w.abs() / half_h  # width to height, exp(±0.2) unless a side is cut
        assert 0.8 < shape.min() < 0.85 and 1.18 < shape.max() < 1.23


def test_a_view_of_everything_is_the_picture_resized():
    picture = torch.rand(1, 3, 4, 4, generator=generator())
    smooth = nn.functional.interpolate(picture, size=64, mode="bicubic").expand(50, 3, 64, 64)
    half_w, half_h, *_ = windows(random_views(coordinates(50), 64, 1.0, generator()))
    views = random_views(smooth, 32, 1.0, generator())  # the same state: the same windows
    whole = (half_w.abs() > 0.97) & (half_h > 0.97)
    plain, mirrored = views[whole & (half_w > 0)], views[whole & (half_w < 0)]
    assert len(plain) and len(mirrored)
    resized = nn.functional.interpolate(smooth[:1], size=32, mode="bilinear")
    assert (plain - resized).abs().mean() < 0.02
    assert (mirrored.flip(3) - resized).abs().mean() < 0.02
    assert (mirrored - resized).abs().mean() > 0.05


def test_batches_are_a_function_of_seed_and_epoch(tiny):
    pictures = read_training(tiny, 4)

    def epoch(number, seed=0):
        return list(batches(pictures, replace(SMALL, seed=seed), number, CPU))

    first = epoch(0)
    assert [tuple(images.shape) for images, _ in first] == [(4, 3, 16, 16)] * 3
    assert [tuple(images.shape) for images, _ in epoch(1)] == [(4, 3, 24, 24)] * 3
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == sorted(pictures.labels.tolist())
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, epoch(0), strict=True))
    assert not torch.equal(first[0][0], epoch(0, seed=1)[0][0])
    assert [labels.tolist() for _, labels in epoch(1)] != [labels.tolist() for _, labels in epoch(2)]


def test_correct_answers_are_counted(tiny):
    class Strongest(nn.Module):
        """Answers with the channel that is strongest, then the next."""

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            assert not self.training and x.shape[2:] == (128, 128)
            return x.mean((2, 3))

    val = read_validation(tiny)
    right = Pictures(val.images, torch.tensor([0, 1, 2]), val.names)
    wrong = Pictures(val.images, torch.tensor([0, 2, 0]), val.names)
    preprocess = networks.preprocessing("resnet18_mini")
    assert count_correct(Strongest(), right, preprocess) == 3
    assert count_correct(Strongest(), wrong, preprocess) == 1
    assert count_correct(Strongest(), wrong, preprocess, k=3) == 3


# --- the run -----------------------------------------------------------------------------------------------------


class Unplugged(Exception):
    pass


def run(tiny, work, recipe=SMALL, stop_after=None, per_class=4):
    lines = []

    def notify(line):
        lines.append(line)
        if len(lines) == stop_after:
            raise Unplugged

    return pretrain("resnet18_mini", tiny, work, recipe, per_class=per_class, notify=notify), lines


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_an_interrupted_run_ends_as_an_unbroken_one(tiny, tmp_path, on_cpu):
    whole, lines = run(tiny, tmp_path / "whole")
    assert len(lines) == 3 and "epoch 3/3 at 24 px" in lines[-1]
    for stop_after in (1, 2):
        work = tmp_path / f"broken{stop_after}"
        with pytest.raises(Unplugged):
            run(tiny, work, stop_after=stop_after)
        torch.manual_seed(99)
        resumed, lines = run(tiny, work)
        assert len(lines) == 3 - stop_after
        assert not moved(whole.model.state_dict(), resumed.model.state_dict())
        assert resumed.history == whole.history
        assert [path.name for path in work.iterdir()] == ["resnet18_mini.pt"]
    assert whole.training_pictures == 12 and whole.recipe == SMALL and whole.per_class == 4
    assert [(row["epoch"], row["size"]) for row in whole.history] == [(1, 16), (2, 24), (3, 24)]

    # A finished run has nothing left to do; another recipe, seed or amount of data is another run.
    again, lines = run(tiny, tmp_path / "whole")
    assert lines == [] and not moved(whole.model.state_dict(), again.model.state_dict())
    for other in ({"recipe": replace(SMALL, peak_lr=0.1)}, {"recipe": replace(SMALL, seed=1)}, {"per_class": 3}):
        with pytest.raises(ValueError, match="belongs to another recipe"):
            run(tiny, tmp_path / "whole", **other)


def test_another_seed_makes_other_weights(tiny, tmp_path, on_cpu):
    short = replace(SMALL, phases=((1, 16),))
    one, _ = run(tiny, tmp_path / "one", short)
    two, _ = run(tiny, tmp_path / "two", replace(short, seed=1))
    assert "conv1.weight" in moved(one.model.state_dict(), two.model.state_dict())


def test_the_loss_falls(tiny, tmp_path, on_cpu):
    result, _ = run(tiny, tmp_path, Recipe(phases=((6, 16),), batch_size=4, peak_lr=0.05, smallest_crop=0.8))
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.7 * losses[0]


def test_the_checkpoint_is_read_without_unpickling(tiny, tmp_path, on_cpu, monkeypatch):
    run(tiny, tmp_path, replace(SMALL, phases=((1, 16),)))
    calls = []
    load = torch.load
    monkeypatch.setattr(pretraining.torch, "load", lambda *args, **kw: calls.append(kw) or load(*args, **kw))
    run(tiny, tmp_path, replace(SMALL, phases=((1, 16),)))
    assert calls == [{"weights_only": True}]


# --- the finished file -------------------------------------------------------------------------------------------


def test_the_card_states_what_the_stored_file_can_do(tiny, tmp_path, on_cpu):
    result, _ = run(tiny, tmp_path / "work", replace(SMALL, phases=((1, 16),)))
    out = tmp_path / "out"
    card = export("resnet18_mini", result, tiny, "course pretrain resnet18_mini", out)
    assert json.loads((out / "resnet18_mini.json").read_text(encoding="utf-8")) == json.loads(json.dumps(card))
    assert sorted(path.name for path in out.iterdir()) == ["resnet18_mini.json", "resnet18_mini.safetensors"]
    assert card["sha256"] == sha256_of(out / "resnet18_mini.safetensors")
    assert (out / "resnet18_mini.safetensors").stat().st_size < 3_000_000
    assert card["categories"] == ["goldfish", "tabby", "bee"] and card["validation_pictures"] == 3

    stored = load_file(out / "resnet18_mini.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    model = mini(num_classes=200)
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in stored.items()})
    for key, tensor in result.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)
    for k, name in ((1, "top1"), (5, "top5")):
        right = count_correct(model, read_validation(tiny), networks.preprocessing("resnet18_mini"), k)
        assert card[name] == round(100 * right / 3, 2)


# --- finding the data --------------------------------------------------------------------------------------------


@pytest.fixture
def accepted(tiny, monkeypatch):
    """The small set counts as the right one."""
    monkeypatch.setattr(pretraining, "DIGEST_PER_CLASS", 4)
    for files, name in ((pretraining.validation_files, "VALIDATION"), (pretraining.training_files, "TRAINING")):
        monkeypatch.setattr(pretraining, f"{name}_DIGEST", digest(files(tiny), tiny))
    return tiny


def test_every_file_that_counts_is_compared(accepted, tmp_path):
    check_tiny_imagenet(accepted)
    for name in ("wnids.txt", "val/val_annotations.txt", "val/images/val_1.JPEG", "train/n02/images/n02_3.JPEG"):
        copy = tmp_path / "copy"
        shutil.copytree(accepted, copy)
        with open(copy / name, "ab") as file:
            file.write(b"x")
        with pytest.raises(CourseError, match="Unpack"):
            check_tiny_imagenet(copy)
        (copy / name).unlink()
        with pytest.raises(CourseError, match="Unpack"):
            check_tiny_imagenet(copy)
        shutil.rmtree(copy)


def test_the_digest_depends_on_names_contents_and_order(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1"), b.write_bytes(b"2")
    values = [digest([a, b], tmp_path), digest([b, a], tmp_path), digest([a], tmp_path)]
    b.write_bytes(b"3")
    values.append(digest([a, b], tmp_path))
    b.rename(tmp_path / "c")
    values.append(digest([a, tmp_path / "c"], tmp_path))
    assert len(set(values)) == 5


def test_a_folder_is_taken_as_it_is_or_from_above(accepted, tmp_path):
    assert find_tiny_imagenet(accepted, tmp_path, None) == accepted
    shutil.copytree(accepted, tmp_path / "above" / pretraining.FOLDER)
    assert find_tiny_imagenet(tmp_path / "above", tmp_path, None) == tmp_path / "above" / pretraining.FOLDER


@pytest.mark.parametrize("kind", ["zip", "xztar", "gztar"])
def test_an_archive_is_unpacked_into_the_cache(accepted, tmp_path, kind):
    shutil.copytree(accepted, tmp_path / "pack" / pretraining.FOLDER)
    (tmp_path / "mirror").mkdir()
    archive = shutil.make_archive(tmp_path / "mirror" / pretraining.FOLDER, kind, tmp_path / "pack")
    cache = tmp_path / "cache"
    assert find_tiny_imagenet(None, cache, tmp_path / "mirror") == cache / pretraining.FOLDER
    assert [path.name for path in cache.iterdir()] == [pretraining.FOLDER]
    Path(archive).unlink()
    assert find_tiny_imagenet(None, cache, None) == cache / pretraining.FOLDER  # once is enough


def test_no_network_says_what_to_do(accepted, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(CourseError, match=r"could not be downloaded.*no network in this test.*--data"):
        find_tiny_imagenet(None, tmp_path, None)


def test_what_is_no_archive_of_it(accepted, tmp_path):
    with pytest.raises(CourseError, match="no such folder or archive"):
        find_tiny_imagenet(tmp_path / "missing.zip", tmp_path / "cache", None)
    (tmp_path / "pack" / "cats").mkdir(parents=True)
    archive = shutil.make_archive(tmp_path / "cats", "gztar", tmp_path / "pack")
    with pytest.raises(CourseError, match="has no folder tiny-imagenet-200"):
        find_tiny_imagenet(Path(archive), tmp_path / "cache", None)
    assert not (tmp_path / "cache" / pretraining.FOLDER).exists()
