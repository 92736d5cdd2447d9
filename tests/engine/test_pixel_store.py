"""pixel_store.py and loading.py: reading from the store is reading the files, only faster."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import ColourPatches, copy_of, generators_untouched, moved
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights
from torchvision.transforms import v2

from course_tools.photos import cache_command
from course_utils.common.errors import CourseError
from course_utils.datasets import PhotoDataset, in_memory
from course_utils.engine import artifact_store, loading, pixel_store, setup
from course_utils.engine.artifact_store import DATA_FILE, MANIFEST_FILE, lock_of
from course_utils.engine.fingerprints import CannotFingerprint, key_of_data
from course_utils.engine.loading import choose_workers, workers_for
from course_utils.engine.pixel_store import StoreForecast, forecast_store, read_fast, store_pixels, training_pictures
from course_utils.engine.provenance import describe_data
from course_utils.engine.sampling import seeded_draws
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.pretrained_models import weights_entry
from course_utils.training import fit
from course_utils.transforms import eval_transform, train_transform

MINI = weights_entry("resnet18_mini")
SIZES = [(90, 60), (60, 100), (64, 64), (200, 151), (33, 77), (300, 80)]


@pytest.fixture
def photos(tmp_path):
    """Smooth pictures of many sizes, one of them with an EXIF turn."""
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate(SIZES):
        small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        paths.append(tmp_path / "photos" / f"{i}.{'jpg' if i % 2 else 'png'}")
        paths[-1].parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 3 else 1
        small.resize(size, Image.Resampling.BICUBIC).save(paths[-1], exif=exif)
    return PhotoDataset(paths, [i % 2 for i in range(len(paths))], ("cat", "dog"))


@pytest.fixture
def store(photos, tmp_path):
    return store_pixels(photos, MINI, folder=tmp_path / "pixels")


# --- the same pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [MINI, ResNet18_Weights.DEFAULT, EfficientNet_B0_Weights.DEFAULT], ids=str)
def test_reading_the_store_is_reading_the_files(photos, tmp_path, weights):
    """Small pictures are made larger, others smaller, with the interpolation that the weights ask for."""
    stored = store_pixels(photos, weights, folder=tmp_path / "pixels")
    files = photos.with_transform(eval_transform(weights))
    assert len(stored) == len(files) and stored.counts() == files.counts()
    for i in range(len(files)):
        image, label = stored[i]
        assert torch.equal(image, files[i][0]) and label == files[i][1]
        assert image.dtype == torch.float32


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_augmenting_tensors_is_augmenting_pictures(photos, tmp_path, augment):
    """The same draws give the same view of a stored picture, whether PIL or torch puts the pixels together."""
    stored = store_pixels(photos, MINI, augment, folder=tmp_path / "pixels")
    near, far = [], []
    for i in range(len(stored)):
        pixels = stored.pixels(i)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        torch.manual_seed(i)
        view, _ = stored[i]
        torch.manual_seed(i)
        same = stored.transform(picture)
        other = stored.transform(picture)
        near, far = [*near, (view - same).abs().mean()], [*far, (view - other).abs().mean()]
        assert view.shape == same.shape == (3, 128, 128) and view.dtype == same.dtype
    assert max(near) < 0.05 and sum(near) < sum(far) / 20


def test_what_is_kept_is_as_large_as_the_smallest_crop_needs(photos, tmp_path):
    sides = {}
    for augment in ("none", "light", "strong"):
        stored = store_pixels(photos, ResNet18_Weights.DEFAULT, augment, folder=tmp_path)
        assert all(min(stored.pixels(i).shape[1:]) == min(stored.pixels(0).shape[1:]) for i in range(len(stored)))
        sides[augment] = min(stored.pixels(0).shape[1:])
    assert sides == {"none": 256, "light": 268, "strong": 379}
    # ... and a crop of the smallest area, as a square, is no smaller than what the network sees
    assert 268 * 0.7**0.5 >= 224 and 379 * 0.35**0.5 >= 224


def test_it_is_used_like_a_photo_dataset(photos, store):
    files = photos.with_transform(eval_transform(MINI))
    part, same = store.subset([4, 1]), files.subset([4, 1])
    assert torch.equal(in_memory(part).images, in_memory(same).images)
    assert part.paths == same.paths and part.labels == same.labels and part.counts() == {"cat": 1, "dog": 1}
    assert describe_data(part) == describe_data(same)
    again = pickle.loads(pickle.dumps(store.subset([0])))  # as a worker of a loader gets it
    assert torch.equal(again[0][0], store[0][0])
    assert store.with_transform(None)[2][0].dtype == torch.uint8
    store.pixels(0).zero_()
    assert store.pixels(0).any()  # nobody writes into the file


# --- found again, or made anew -----------------------------------------------------------------------------------


def decoded(monkeypatch):
    """Names of the files that are decoded from now on."""
    names = []
    load = pixel_store.load_picture
    monkeypatch.setattr(pixel_store, "load_picture", lambda path: names.append(path.name) or load(path))
    return names


def test_it_is_made_once_and_anew_for_other_files(photos, store, tmp_path, monkeypatch):
    names, folder = decoded(monkeypatch), tmp_path / "pixels"
    assert torch.equal(store_pixels(photos, MINI, folder=folder)[0][0], store[0][0]) and not names
    store_pixels(photos, MINI, "strong", folder=folder)
    assert len(names) == len(photos)
    Image.new("RGB", (50, 50), "red").save(photos.paths[2])
    changed = store_pixels(photos, MINI, folder=folder)
    assert len(names) == 2 * len(photos) and not torch.equal(changed[2][0], store[2][0])
    store_pixels(photos.subset([1, 0]), MINI, folder=folder)
    assert len(names) == 2 * len(photos) + 2


def damage(kind, folder):
    pixels, manifest = next(folder.glob(f"*/{DATA_FILE}")), next(folder.glob(f"*/{MANIFEST_FILE}"))
    if kind == "truncated":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif kind == "a byte flipped":
        content = bytearray(pixels.read_bytes())
        content[100] ^= 1
        pixels.write_bytes(bytes(content))
    elif kind == "pixels gone":
        pixels.unlink()
    elif kind == "manifest cut":
        manifest.write_text(manifest.read_text()[:-20])
    elif kind == "of other sizes":
        changed = json.loads(manifest.read_text())
        changed["content"]["sizes"] = [[1, 1]]
        manifest.write_text(json.dumps(changed))


@pytest.mark.parametrize("kind", ["truncated", "a byte flipped", "pixels gone", "manifest cut", "of other sizes"])
def test_a_damaged_store_is_made_anew_and_that_is_said(photos, store, tmp_path, kind):
    before, said = store[3][0], []
    damage(kind, tmp_path / "pixels")
    mended = store_pixels(photos, MINI, folder=tmp_path / "pixels", notify=said.append)
    assert torch.equal(mended[3][0], before)
    assert len(said) == 1 and "damaged" in said[0] and "computed anew" in said[0]
    store_pixels(photos, MINI, folder=tmp_path / "pixels", notify=said.append)
    assert len(said) == 1


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(photos, tmp_path, monkeypatch):
    folder = tmp_path / "pixels"

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact_store, "open", lambda *args, **options: Full(open(*args, **options)), raising=False)  # noqa: SIM115
        with pytest.raises(CourseError, match=r"No space left on device.*Free some space"):
            store_pixels(photos, MINI, folder=folder)
        said = []
        patch.setattr(StoreForecast, "pays", lambda *_: True)
        files = read_fast(photos, MINI, epochs=3, folder=folder, notify=said.append)
        assert isinstance(files, PhotoDataset) and "after all" in said[1]
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == []
    assert len(store_pixels(photos, MINI, folder=folder)) == len(photos)


def test_what_a_killed_process_left_is_no_store(photos, tmp_path):
    folder = tmp_path / "pixels"
    whole = store_pixels(photos, MINI, folder=folder)[0][0]
    place = next(folder.glob("[0-9]*"))
    half = place.with_name(f".{place.name}.00aa.partial")
    place.rename(half)  # killed before it was renamed
    (half / DATA_FILE).write_bytes(b"half")
    other = half.with_name(".6x64-0123456789abcdef.00bb.partial")
    other.mkdir()  # ... and another one
    assert torch.equal(store_pixels(photos, MINI, folder=folder)[0][0], whole)
    assert not half.exists() and not other.exists()


def test_a_broken_photo_and_an_unwritable_folder_are_told(photos, tmp_path):
    with pytest.raises(CourseError, match="no pixels to store"):
        store_pixels(photos.subset([]), MINI, folder=tmp_path)
    with pytest.raises(CourseError, match="augment='much'"):
        store_pixels(photos, MINI, "much", folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="could not be written to"):
        store_pixels(photos, MINI, folder=tmp_path / "file")
    photos.paths[1].write_bytes(b"no picture")
    with pytest.raises(CourseError, match=r"1\.jpg cannot be read"):
        store_pixels(photos, MINI, folder=tmp_path / "pixels")
    assert not list((tmp_path / "pixels").glob("[0-9]*"))


# --- does it pay? ------------------------------------------------------------------------------------------------


def test_a_store_pays_after_enough_epochs_and_with_room():
    forecast = StoreForecast(size=1_000, free=10_000, build=10.0, from_files=5.0, from_store=2.0)
    assert [forecast.pays(epochs) for epochs in (1, 3, 4, 10)] == [False, False, True, True]
    assert forecast.gain(4) == 2.0
    assert not StoreForecast(6_000, 10_000, 10.0, 5.0, 2.0).pays(100)
    assert "of 0 MB free" in StoreForecast(6_000, 10_000, 10.0, 5.0, 2.0).reason(100)
    assert not StoreForecast(0, 10_000, 0.0, 2.0, 2.5).pays(100)  # where decoding is cheaper than reading


def test_the_forecast_counts_on_from_a_few_pictures(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_store, "thread_count", lambda: 2)
    monkeypatch.setattr(pixel_store, "TIMED_PICTURES", 3)
    ticks = iter(range(1000))
    with generators_untouched():
        forecast = forecast_store(photos, MINI, "light", folder=tmp_path / "pixels", clock=lambda: next(ticks))
    # Each of the four steps takes one tick; six pictures, of which three are looked at.
    assert (forecast.build, forecast.from_files, forecast.from_store) == (6.0, 12.0, 6.0)
    sizes = [store_pixels(photos, MINI, "light", folder=tmp_path / "pixels").pixels(i).nbytes for i in (0, 2, 5)]
    assert forecast.size == 2 * sum(sizes)
    there = forecast_store(photos, MINI, "light", folder=tmp_path / "pixels", clock=lambda: next(ticks))
    assert (there.size, there.build) == (0, 0.0)


@pytest.mark.parametrize("pays", [True, False])
def test_read_fast_says_what_it_does(photos, tmp_path, monkeypatch, pays):
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: pays)
    said = []
    dataset = read_fast(photos, MINI, "light", epochs=3, folder=tmp_path / "pixels", notify=said.append)
    assert isinstance(dataset, PhotoDataset) != pays and dataset[0][0].shape == (3, 128, 128)
    assert len(said) == 1 and ("decoded once" in said[0]) == pays


def test_what_was_decided_holds_from_then_on(photos, tmp_path, monkeypatch):
    """A slow moment must not change the pixels of a run that goes on, or those of one of several processes."""
    folder, answers = tmp_path / "pixels", iter([False, True])
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: next(answers))
    monkeypatch.setattr(StoreForecast, "reason", lambda _, epochs: f"for {epochs}")
    said = []
    options = {"folder": folder, "notify": said.append}
    kinds = [type(read_fast(photos, MINI, "light", epochs=epochs, **options)) for epochs in (3, 3, 9, 9, 3)]
    files, stored = PhotoDataset, pixel_store.PixelDataset
    assert kinds == [files, files, stored, stored, files] and said == ["for 3", "for 3", "for 9", "for 9", "for 3"]
    next(folder.glob(f"*-light-3-*/{MANIFEST_FILE}")).write_text("{")
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: True)
    assert type(read_fast(photos, MINI, "light", epochs=3, **options)) is stored


def test_several_processes_decide_alike(photos, tmp_path, monkeypatch):
    """Threads here: each of them asks for the lock anew, as processes do."""
    answers = iter([True])  # a second one who measures finds no answer
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: next(answers))
    monkeypatch.setattr(StoreForecast, "reason", lambda *_: "")
    with ThreadPoolExecutor(4) as pool:
        options = {"epochs": 3, "folder": tmp_path / "pixels", "notify": lambda _: None}
        found = list(pool.map(lambda _: read_fast(photos, MINI, "light", **options), range(4)))
    assert {type(dataset) for dataset in found} == {pixel_store.PixelDataset}


def test_course_cache_lists_and_clears_stores_too(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.delenv("COURSE_ACTIVATIONS", raising=False)
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: True)
    read_fast(photos, MINI, "light", epochs=3, notify=lambda _: None)
    store_pixels(photos.subset([0, 1]), MINI)
    two, six, decision = sorted((tmp_path / "pixels").glob("[0-9]*"))
    assert cache_command.main([]) == 0
    told = capsys.readouterr().out
    assert two.name in told and six.name in told and "3 caches" in told and str(tmp_path / "pixels") in told
    side = two.name.partition("-")[0].partition("x")[2]
    assert f"pixels, {side} the shorter side" in told and "uint8" in told and told.count("good") == 3
    assert decision.name in told and "decision to read a store" in told
    content = bytearray((two / DATA_FILE).read_bytes())
    content[5] ^= 1
    (two / DATA_FILE).write_bytes(content)
    assert cache_command.main(["--check"]) == 0
    assert "damaged: bytes in data.bin have changed" in capsys.readouterr().out
    with lock_of(two):
        assert cache_command.main(["--clear", two.name]) == 1 and two.exists()
    os.utime(two / MANIFEST_FILE, (0, 0))
    assert cache_command.main(["--clear", "--unused", "30"]) == 0
    assert {path.name for path in two.parent.iterdir() if path.suffix != ".lock"} == {six.name, decision.name}
    assert cache_command.main(["--clear", six.name]) == 0
    assert [path.name for path in two.parent.iterdir() if path.suffix != ".lock"] == []


def test_a_decision_without_a_store_is_cleared_too(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.delenv("COURSE_ACTIVATIONS", raising=False)
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: False)
    read_fast(photos, MINI, "light", epochs=3, notify=lambda _: None)
    assert cache_command.main([]) == 0 and "decision to read files" in capsys.readouterr().out
    assert cache_command.main(["--clear"]) == 0 and "1 of 1 cache removed" in capsys.readouterr().out
    assert not list((tmp_path / "pixels").glob("[0-9]*"))


def test_a_store_is_known_without_reading_it(photos, store, tmp_path):
    """So ``fit`` can cache what frozen stages make of its pictures."""
    key = key_of_data(store)
    assert key == key_of_data(store_pixels(photos, MINI, folder=tmp_path / "pixels"))
    others = [store.subset([1, 0, 2, 3, 4, 5]), store.with_transform(eval_transform(ResNet18_Weights.DEFAULT))]
    others += [store_pixels(photos.subset([0, 1, 2, 3, 5, 4]), MINI, folder=tmp_path / "pixels")]
    assert all(key_of_data(other) != key for other in others)

    class Other(pixel_store.PixelDataset):
        pass

    with pytest.raises(CannotFingerprint):
        key_of_data(Other(store.folder, store.sizes, store.photos))


def test_pictures_to_learn_from(photos, tmp_path, monkeypatch):
    """In memory where nothing is drawn and there is room; else a store where that pays."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(StoreForecast, "pays", lambda *_: True)
    options = {"epochs": 5, "share": 0.5, "notify": lambda _: None}
    kept = training_pictures(photos, MINI, "none", **options)
    assert torch.equal(kept.images, in_memory(photos.with_transform(eval_transform(MINI))).images)
    stored = training_pictures(photos, MINI, "light", **options)
    assert stored.transform is not None and repr(stored.transform) == repr(train_transform(MINI, "light"))
    monkeypatch.setattr("course_utils.datasets.MAX_MEMORY_BYTES", 1000)
    large = training_pictures(photos, MINI, "none", **options)
    assert type(stored) is type(large) is pixel_store.PixelDataset
    assert torch.equal(large[3][0], kept.images[3])


def test_a_store_that_is_read_counts_as_used(photos, store, tmp_path):
    manifest = next((tmp_path / "pixels").glob(f"*/{MANIFEST_FILE}"))
    os.utime(manifest, (0, 0))
    store_pixels(photos, MINI, folder=tmp_path / "pixels")
    assert manifest.stat().st_mtime > 0


@pytest.mark.skipif(sys.platform != "linux", reason="starts a worker by fork, which imports nothing anew")
def test_what_is_learned_does_not_depend_on_who_loads_it(photos, tmp_path, monkeypatch):
    results = []
    monkeypatch.setattr(setup, "workers_for", lambda _, epochs: (1, ""))
    stored = store_pixels(photos, MINI, "light", folder=tmp_path / "pixels")
    for num_workers in (0, "auto"):
        model = FEATURE_EXTRACTION.starting_model("resnet18_mini", 2)
        options = {"epochs": 2, "batch_size": 4, "device": "cpu", "log": "off", "num_workers": num_workers}
        val = stored.with_transform(eval_transform(MINI))  # what is drawn for it would depend on who loads it
        fit(model, stored, val, FEATURE_EXTRACTION, **options)
        results.append(copy_of(model))
    assert not moved(*results)


# --- workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "workers", "reason"),
    [
        ({}, 7, "7, and of 8 cores one is left"),
        ({"cores": 3}, 2, "2, and of 3 cores"),
        ({"cores": 2}, 0, "2 cores for 1 training process."),
        ({"cores": 64}, 8, "8, and of 64"),
        ({"cores": 1}, 0, "1 cores for"),
        ({"processes": 2}, 3, "of 4 cores"),
        ({"processes": 4}, 0, "8 cores for 4 training processes"),
        ({"processes": 9}, 0, "for 9"),
        ({"source": "memory"}, 0, "in memory"),
        ({"source": "store"}, 7, "7"),
        ({"pictures": 20}, 0, "in 1 epoch of 20 pictures they would save about 0.1 s, and take 0.1 s"),
        ({"pictures": 100, "source": "store"}, 0, "to start"),
        ({"not_importable": ["MyPhotos"]}, 7, "7"),
        ({"not_importable": ["MyPhotos"], "start_method": "spawn"}, 0, "cannot import MyPhotos"),
        ({"not_importable": ["A", "B"], "start_method": "forkserver"}, 0, "A, B"),
        ({"start_method": "spawn"}, 0, "take 4.5 s to start"),
        ({"start_method": "spawn", "pictures": 5000}, 7, "7"),
        ({"start_method": "spawn", "epochs": 10}, 7, "7"),  # they are started once
    ],
)
def test_the_rule_for_workers(facts, workers, reason):
    usual = {
        "source": "file",
        "pictures": 400,
        "epochs": 1,
        "not_importable": [],
        "start_method": "fork",
        "cores": 8,
        "processes": 1,
    }
    chosen, why = choose_workers(**(usual | facts))
    assert chosen == workers and reason in why


def test_the_start_method_of_the_program_stays_open():
    """Python fixes it when it is asked for, or when a process is started without a method of its own."""
    program = """
import multiprocessing, sys, torch
from torch.utils.data import TensorDataset
from course_utils.engine.loading import workers_for
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.training import fit
if __name__ == "__main__":
    data = TensorDataset(torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    workers_for(data)
    for number in ("auto", 1 if sys.platform == "linux" else 0):
        model = FEATURE_EXTRACTION.starting_model("resnet18_mini", 3)
        fit(model, data, data, FEATURE_EXTRACTION, epochs=1, device="cpu", log="off", num_workers=number)
    multiprocessing.set_start_method("spawn")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_workers_are_chosen_by_what_a_data_set_is(photos, store, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    monkeypatch.setattr(loading, "SECONDS_TO_START", {"fork": 0.0, "spawn": 0.0})  # six pictures are few
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    files = photos.with_transform(eval_transform(MINI))
    assert workers_for(files)[0] == 5 and workers_for(seeded_draws(files))[0] == 5
    assert workers_for(store)[0] == 5 and workers_for(seeded_draws(store))[0] == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_for(files)[0] == 2 and workers_for(files, processes=1)[0] == 5
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert workers_for(in_memory(files))[0] == workers_for(ColourPatches(3))[0] == 0
    monkeypatch.setattr(loading, "SECONDS_PER_PICTURE", {"file": 0.0, "store": 1.0})
    assert workers_for(files)[0] == 0 and workers_for(store)[0] == 5  # a store has paths too, and does not read them

    class Cell(v2.Transform):
        pass

    Cell.__qualname__ = "Cell"  # as if it stood in a cell, at the top
    Cell.__module__ = "__main__"
    cell, unnamed = v2.Compose([Cell(), v2.ToDtype(torch.float32)]), photos.with_transform(lambda picture: picture)
    facts = {"source": "file", "pictures": 6, "epochs": 1, "not_importable": ["Cell"], "start_method": "spawn"}
    assert workers_for(photos.with_transform(cell)) == (0, choose_workers(**facts, cores=6, processes=1)[1])
    assert workers_for(unnamed)[0] == 0 and "lambda" in workers_for(unnamed)[1]
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    monkeypatch.setattr(loading, "SECONDS_PER_PICTURE", {"file": 1.0})
    assert workers_for(photos.with_transform(cell))[0] == 5
