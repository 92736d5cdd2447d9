"""One drawn picture: same arguments, same picture; masks of the animal; colours that give nothing away."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from course_utils.common.errors import CourseError
from course_utils.data import artist
from course_utils.data.animals import OTHERS
from course_utils.data.pets import picture_seed


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=int)


def empty_and_taken(count: int = 60) -> tuple[int, int]:
    """Seeds of a Neither picture without and with an animal."""
    animals = {s: artist.choose_animal("Neither", artist.stream(s, "animal", "Neither")) for s in range(count)}
    return next(s for s, a in animals.items() if a is None), next(s for s, a in animals.items() if a)


@pytest.mark.parametrize("label", artist.CLASSES)
def test_same_arguments_give_the_same_picture(label):
    one, two, other = artist.draw(label, 3, 64), artist.draw(label, 3, 64), artist.draw(label, 4, 64)
    assert one.image.tobytes() == two.image.tobytes()
    assert one.mask.tobytes() == two.mask.tobytes()
    assert one.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("size", [32, 96, 128, 600])
def test_image_and_mask_have_the_size_and_mode_asked_for(size):
    drawing = artist.draw("Misty", 1, size)
    assert (drawing.image.size, drawing.image.mode) == ((size, size), "RGB")
    assert (drawing.mask.size, drawing.mask.mode) == ((size, size), "L")
    assert set(np.unique(drawing.mask)) == {0, 255}


def test_mask_is_empty_only_when_nobody_is_there():
    nobody, somebody = empty_and_taken()
    empty, taken = artist.draw("Neither", nobody, 64), artist.draw("Neither", somebody, 64)
    assert empty.caption.startswith("nobody")
    assert not pixels(empty.mask).any()
    assert pixels(taken.mask).any()


def test_the_animal_covers_a_sensible_share_of_the_picture():
    shares = [(pixels(artist.draw(label, s, 64).mask) > 0).mean() for label in ("Tigger", "Misty") for s in range(10)]
    assert min(shares) > 0.03
    assert max(shares) < 0.75
    assert 0.1 < np.mean(shares) < 0.4


def test_the_mask_is_where_one_animal_differs_from_another_in_the_same_room():
    """With one seed only the animal changes, so the room does not tell the classes apart."""
    inside, outside = [], []
    for seed in range(8):
        tigger, misty = artist.draw("Tigger", seed, 64), artist.draw("Misty", seed, 64)
        assert tigger.caption.split(", ")[1] == misty.caption.split(", ")[1]
        change = np.abs(pixels(tigger.image) - pixels(misty.image)).mean(2)
        either = (pixels(tigger.mask) > 0) | (pixels(misty.mask) > 0)
        inside.append(change[either].mean())
        outside.append(change[~either].mean())
    assert np.mean(outside) < 1.0
    assert np.mean(inside) > 15 * np.mean(outside)


def test_nobody_is_in_about_a_sixth_of_the_neither_pictures():
    chosen = [artist.choose_animal("Neither", artist.stream(s, "animal", "Neither")) for s in range(600)]
    assert 0.12 < np.mean([coat is None for coat in chosen]) < 0.22
    assert {coat.name for coat in chosen if coat} == {coat.name for coat in OTHERS}


@pytest.mark.parametrize(("light", "style"), [("night", "photo"), ("day", "sketch"), ("night", "sketch")])
def test_other_light_or_style_keeps_the_scene_and_the_mask(light, style):
    plain, other = artist.draw("Tigger", 11, 64), artist.draw("Tigger", 11, 64, light=light, style=style)
    assert plain.mask.tobytes() == other.mask.tobytes()
    assert plain.caption == other.caption
    assert plain.image.tobytes() != other.image.tobytes()


def test_night_is_darker_and_bluer_and_a_sketch_has_hardly_any_colour():
    day, night, sketch = (
        np.mean([pixels(artist.draw("Misty", s, 64, **look).image).reshape(-1, 3).mean(0) for s in range(4)], axis=0)
        for look in ({}, {"light": "night"}, {"style": "sketch"})
    )
    assert night.mean() < 0.7 * day.mean()
    assert night[2] / night[0] > 1.2 * day[2] / day[0]
    assert np.ptp(sketch) < 20


@pytest.mark.parametrize("light", artist.LIGHTS)
def test_the_watermark_changes_the_lower_right_corner_only(light):
    plain, marked = artist.draw("Neither", 5, light=light), artist.draw("Neither", 5, light=light, watermark=True)
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
        artist.draw(**{"label": "Tigger", "seed": 0, **arguments})
    assert repr(next(iter(arguments.values()))) in str(refused.value)


def test_colour_does_not_decide():
    """A colour histogram does better than chance, as orange is orange, but far from well."""

    def histograms(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, labels = [], []
        for label in artist.CLASSES:
            for i in range(count):
                picture = pixels(artist.draw(label, picture_seed(0, split, label, i), 32).image) // 32
                rows.append(np.bincount((picture @ (64, 8, 1)).ravel(), minlength=512))
                labels.append(label)
        return np.sqrt(rows), np.array(labels)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    accuracy = model.fit(*histograms("train", 20)).score(*histograms("test", 20))
    assert 0.33 < accuracy < 0.7
