"""The drawn pets: same arguments, same picture; honest masks; colours that give nothing away; a safe cache."""

from __future__ import annotations

import hashlib
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from course_utils.common.errors import CourseError
from course_utils.data import pets

FEW = {"train": 2, "val": 1, "test": 1}


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=int)


def empty_and_taken(count: int = 60) -> tuple[int, int]:
    """Seeds of a Neither picture without and with an animal."""
    animals = {s: pets.choose_animal("Neither", pets.stream(s, "animal", "Neither")) for s in range(count)}
    return next(s for s, a in animals.items() if a is None), next(s for s, a in animals.items() if a)


@pytest.mark.parametrize("label", pets.CLASSES)
def test_same_arguments_give_the_same_picture(label):
    one, two, other = pets.draw(label, 3, 64), pets.draw(label, 3, 64), pets.draw(label, 4, 64)
    assert one.image.tobytes() == two.image.tobytes()
    assert one.mask.tobytes() == two.mask.tobytes()
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("size", [32, 96, 128])
def test_image_and_mask_have_the_size_and_mode_asked_for(size):
    drawing = pets.draw("Misty", 1, size)
    assert (drawing.image.size, drawing.image.mode) == ((size, size), "RGB")
    assert (drawing.mask.size, drawing.mask.mode) == ((size, size), "L")
    assert set(np.unique(drawing.mask)) == {0, 255}


def test_mask_is_empty_only_when_nobody_is_there():
    nobody, somebody = empty_and_taken()
    empty, taken = pets.draw("Neither", nobody, 64), pets.draw("Neither", somebody, 64)
    assert empty.caption.startswith("nobody")
    assert not pixels(empty.mask).any()
    assert pixels(taken.mask).any()


def test_the_animal_covers_a_sensible_share_of_the_picture():
    shares = [(pixels(pets.draw(label, s, 64).mask) > 0).mean() for label in ("Tigger", "Misty") for s in range(10)]
    assert min(shares) > 0.03
    assert max(shares) < 0.75
    assert 0.1 < np.mean(shares) < 0.4


def test_the_mask_is_where_one_animal_differs_from_another_in_the_same_room():
    """With one seed only the animal changes, so the room does not tell the classes apart."""
    inside, outside = [], []
    for seed in range(8):
        tigger, misty = pets.draw("Tigger", seed, 64), pets.draw("Misty", seed, 64)
        assert tigger.caption.split(", ")[1] == misty.caption.split(", ")[1]
        change = np.abs(pixels(tigger.image) - pixels(misty.image)).mean(2)
        either = (pixels(tigger.mask) > 0) | (pixels(misty.mask) > 0)
        inside.append(change[either].mean())
        outside.append(change[~either].mean())
    assert np.mean(outside) < 1.0
    assert np.mean(inside) > 15 * np.mean(outside)


def test_nobody_is_in_about_a_sixth_of_the_neither_pictures():
    chosen = [pets.choose_animal("Neither", pets.stream(s, "animal", "Neither")) for s in range(600)]
    assert 0.12 < np.mean([coat is None for coat in chosen]) < 0.22
    assert {coat.name for coat in chosen if coat} == {coat.name for coat in pets.OTHERS}


@pytest.mark.parametrize(("light", "style"), [("night", "photo"), ("day", "sketch"), ("night", "sketch")])
def test_other_light_or_style_keeps_the_scene_and_the_mask(light, style):
    plain, other = pets.draw("Tigger", 11, 64), pets.draw("Tigger", 11, 64, light=light, style=style)
    assert plain.mask.tobytes() == other.mask.tobytes()
    assert plain.caption == other.caption
    assert plain.image.tobytes() != other.image.tobytes()


def test_night_is_darker_and_bluer_and_a_sketch_has_hardly_any_colour():
    day, night, sketch = (
        np.mean([pixels(pets.draw("Misty", s, 64, **look).image).reshape(-1, 3).mean(0) for s in range(4)], axis=0)
        for look in ({}, {"light": "night"}, {"style": "sketch"})
    )
    assert night.mean() < 0.7 * day.mean()
    assert night[2] / night[0] > 1.2 * day[2] / day[0]
    assert np.ptp(sketch) < 20


@pytest.mark.parametrize("light", pets.LIGHTS)
def test_the_watermark_changes_the_lower_right_corner_only(light):
    plain, marked = pets.draw("Neither", 5, light=light), pets.draw("Neither", 5, light=light, watermark=True)
    change = np.abs(pixels(plain.image) - pixels(marked.image)).max(2)
    assert plain.mask.tobytes() == marked.mask.tobytes()
    assert not change[:100].any()
    assert not change[:, :100].any()
    assert (change[100:, 100:] > 30).mean() > 0.2


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"label": "Garfield"}, "Tigger, Misty, Neither"),
        ({"light": "dusk"}, "day, night"),
        ({"style": "oil"}, "photo, sketch"),
        ({"size": 7}, "32 to 1024"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(arguments, allowed):
    with pytest.raises(CourseError, match=allowed) as refused:
        pets.draw(**{"label": "Tigger", "seed": 0, **arguments})
    assert repr(next(iter(arguments.values()))) in str(refused.value)


def test_no_two_pictures_of_the_data_set_share_a_seed():
    seeds = [
        pets.picture_seed(seed, split, label, i)
        for seed in (0, 1)
        for split, count in pets.DEFAULT_COUNTS.items()
        for label in pets.CLASSES
        for i in range(count)
    ]
    assert len(set(seeds)) == len(seeds) == 2 * 360


def test_colour_does_not_decide():
    """A colour histogram does better than chance, as orange is orange, but far from well."""

    def histograms(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, labels = [], []
        for label in pets.CLASSES:
            for i in range(count):
                picture = pixels(pets.draw(label, pets.picture_seed(0, split, label, i), 32).image) // 32
                rows.append(np.bincount((picture @ (64, 8, 1)).ravel(), minlength=512))
                labels.append(label)
        return np.sqrt(rows), np.array(labels)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    accuracy = model.fit(*histograms("train", 20)).score(*histograms("test", 20))
    assert 0.33 < accuracy < 0.7


# --- the data set on disk --------------------------------------------------------------------------------------------
@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """Every call of ``draw`` from here on; a cheap picture is enough to test the folder."""
    calls: list[tuple] = []

    def quick(label, seed, size=128, **look):
        calls.append((label, seed))
        level = int(hashlib.sha256(f"{label}{seed}".encode()).hexdigest()[:6], 16)
        image = Image.new("RGB", (size, size), (level >> 16, level >> 8 & 255, level & 255))
        return pets.Drawing(image, Image.new("L", (size, size)), label)

    monkeypatch.setattr(pets, "draw", quick)
    return calls


def test_the_folder_has_a_picture_and_a_mask_for_each_count(tmp_path):
    folder = pets.write_pets(tmp_path / "pets", FEW, size=32)
    pictures = sorted(p.relative_to(folder).as_posix() for s in FEW for p in (folder / s).rglob("*.png"))
    masks = sorted(p.relative_to(folder / "masks").as_posix() for p in (folder / "masks").rglob("*.png"))
    assert (
        pictures
        == masks
        == sorted(f"{s}/{c}/{i:03d}.png" for s, n in FEW.items() for c in pets.CLASSES for i in range(n))
    )
    expected = pets.draw("Misty", pets.picture_seed(0, "train", "Misty", 1), 32)
    assert np.array_equal(Image.open(folder / "train/Misty/001.png"), expected.image)
    assert np.array_equal(Image.open(folder / "masks/train/Misty/001.png"), expected.mask)
    contents = [np.asarray(Image.open(folder / name)).tobytes() for name in pictures]
    assert len(set(contents)) == len(contents)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["pets"]


def test_a_complete_folder_is_used_again(tmp_path, drawn):
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    assert len(drawn) == 12
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    assert len(drawn) == 12


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"size": 48}, {"light": "night"}, {"style": "sketch"}, {"counts": {"train": 3}}]
)
def test_other_arguments_draw_the_folder_anew(tmp_path, drawn, other):
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    pets.write_pets(tmp_path / "pets", **{"counts": FEW, "size": 32, **other})
    assert len(drawn) > 12
    assert (tmp_path / "pets/test").exists() == ("counts" not in other)


def lose_a_picture(folder):
    (folder / "test/Tigger/000.png").unlink()


def cut_a_picture(folder):
    os.truncate(folder / "train/Misty/001.png", 20)


def lose_a_mask(folder):
    (folder / "masks/val/Neither/000.png").unlink()


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


def spoil_the_manifest(folder):
    (folder / "manifest.json").write_text("{")


def come_from_older_code(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arguments"]["code"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [lose_a_picture, cut_a_picture, lose_a_mask, lose_the_manifest, spoil_the_manifest, come_from_older_code],
)
def test_a_damaged_or_outdated_folder_is_drawn_anew(tmp_path, drawn, damage):
    folder = pets.write_pets(tmp_path / "pets", FEW, size=32)
    damage(folder)
    pets.write_pets(folder, FEW, size=32)
    assert len(drawn) == 24
    assert len(list(folder.rglob("*.png"))) == 24
    pets.write_pets(folder, FEW, size=32)
    assert len(drawn) == 24


def test_what_a_killed_run_left_behind_goes(tmp_path, drawn):
    left_over = tmp_path / ".pets-killed"
    (left_over / "train").mkdir(parents=True)
    pets.write_pets(tmp_path / "pets", FEW, size=32)
    assert not left_over.exists()


def test_a_failure_in_mid_drawing_leaves_the_old_folder_alone(tmp_path, drawn, monkeypatch):
    folder = pets.write_pets(tmp_path / "pets", FEW, size=32)
    before = (folder / "manifest.json").read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pets, "draw", full_disk)
    with pytest.raises(CourseError, match=r"pets.*No space left on device.*Free some disk space"):
        pets.write_pets(folder, FEW, seed=9, size=32)
    assert (folder / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["pets"]


def test_files_of_somebody_else_are_never_touched(tmp_path, drawn):
    (tmp_path / "mine/train/Tigger").mkdir(parents=True)
    photo = tmp_path / "mine/train/Tigger/IMG_1.jpg"
    photo.write_bytes(b"my only photo")
    with pytest.raises(CourseError, match=r"IMG_1\.jpg.*new folder"):
        pets.write_pets(tmp_path / "mine", FEW)
    with pytest.raises(CourseError, match="it is a file"):
        pets.write_pets(photo, FEW)
    assert photo.read_bytes() == b"my only photo"
    assert not drawn


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match=r"file.pets.*choose a folder you may write to"):
        pets.write_pets(tmp_path / "file" / "pets", FEW)


@pytest.mark.parametrize("counts", [{}, {"train": 3, "dev": 1}, {"train": -1}])
def test_counts_that_make_no_sense_are_refused(tmp_path, counts):
    with pytest.raises(CourseError, match="train, val and test"):
        pets.write_pets(tmp_path / "pets", counts)


def test_two_at_once_draw_one_complete_folder(tmp_path, drawn):
    start, problems = threading.Barrier(4), []

    def write():
        start.wait()
        try:
            pets.write_pets(tmp_path / "pets", FEW, size=32)
        except CourseError as problem:
            problems.append(problem)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not problems
    assert len(drawn) == 12
    assert len(list((tmp_path / "pets").rglob("*.png"))) == 24
