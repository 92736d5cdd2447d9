"""``course explain``: any picture becomes an overlay and a page, from a pre-trained network or one's own run."""

from __future__ import annotations

import html.parser
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ColourPatches, mini
from PIL import Image

from course_tools.photos import explain_command
from course_tools.photos.explain_command import class_number, main
from course_tools.photos.html_page import render_page
from course_tools.photos.pictures import open_network
from course_utils.common.errors import CourseError
from course_utils.data import artist
from course_utils.engine.runs import load_run
from course_utils.fine_tuning import FEATURE_EXTRACTION
from course_utils.gradcam import as_seen, explain
from course_utils.mini.networks import ResNet18_Mini_Weights
from course_utils.training import fit
from course_utils.transforms import eval_transform

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
WEIGHTS = ResNet18_Mini_Weights.TINY_IMAGENET


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    for name in ("COURSE_DATASET",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COURSE_PROGRESS", "0")
    monkeypatch.setattr("course_utils.settings.best_device", lambda: "cpu")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path):
    """A picture of Tigger, one that is wide, one without form, and what lies about in folders of photos."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    artist.draw("Tigger", seed=2).image.save(folder / "a & b.png")
    artist.draw("Misty", seed=5, size=64).image.resize((200, 90)).save(folder / "wide.jpg")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


class Page(html.parser.HTMLParser):
    """What a page shows: alternative texts, sources, and plain text."""

    def __init__(self, text):
        super().__init__()
        self.alts, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.alts.append(dict(attributes)["alt"])
            self.sources.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.text += data


def test_pictures_become_overlays_and_a_page(photos, tmp_path, capsys):
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert main([str(photos), "--out", "out"]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a & b.png", "index.html", "wide.png"]
    shown = Image.open(tmp_path / "out" / "wide.png")
    assert shown.size == (explain_command.SHOWN_SIDE,) * 2 and shown.mode == "RGB"

    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    found = Page(text)
    assert "a &amp; b.png" in text and "a & b" not in text and len(found.alts) == 4
    assert found.alts[0] == "a & b.png, as the network saw it"
    assert found.alts[1].startswith("a & b.png: the map is for ")
    assert all(source.startswith("data:image/jpeg;base64,") for source in found.sources)
    assert "http" not in text and "resnet18_mini, gradcam, last stage with a map" in found.text

    image = eval_transform(WEIGHTS)(Image.open(photos / "wide.jpg").convert("RGB"))
    answer = open_network().model.eval()(image[None]).softmax(1)[0].detach()
    name = WEIGHTS.meta["categories"][int(answer.argmax())]
    assert f"wide.jpg: {name} {100 * float(answer.max()):.0f} %" in found.text
    printed = capsys.readouterr().out
    assert f"{name}, {100 * float(answer.max()):.0f} %" in printed and str(tmp_path.name) not in printed


def test_the_overlay_is_the_map_on_the_picture(photos, tmp_path):
    assert main([str(photos / "wide.jpg"), "--class", "5", "--method", "hirescam", "--stage", "layer3"]) == 0
    network = open_network()
    picture = Image.open(photos / "wide.jpg").convert("RGB")
    heat = explain(network.model, eval_transform(WEIGHTS)(picture)[None], 5, "hirescam", "layer3").heat[0]
    changed = np.asarray(Image.open(tmp_path / "explained" / "wide.png"), float)
    seen = np.asarray(as_seen(picture, WEIGHTS, 384), float)
    paler = 0.4 * seen + 0.6 * (seen @ [0.299, 0.587, 0.114])[..., None]
    difference = np.abs(changed - paler).sum(2)
    cells = difference.reshape(128, 3, 128, 3).mean((1, 3))
    assert cells[heat < 0.01].mean() < 3 < 20 < cells[heat > 0.8].mean()


@pytest.fixture
def run():
    data = ColourPatches(9)
    data.transform = eval_transform(WEIGHTS)  # which these tensors could be made with
    return fit(mini(), data, data, FEATURE_EXTRACTION, epochs=1, batch_size=9, device="cpu")


def test_a_run_of_ones_own(run, photos, tmp_path, capsys):
    name = load_run(run.folder).name
    assert main([str(photos / "wide.jpg"), "--run", name, "--class", "Green"]) == 0
    found = Page((tmp_path / "explained" / "index.html").read_text(encoding="utf-8"))
    assert f"resnet18_mini of the run {name}, gradcam" in found.text
    assert found.alts[1] in ("wide.jpg: the map is for green", "wide.jpg: nothing speaks for green: the map is empty")
    network = open_network(run=name)
    assert network.classes == ("red", "green", "blue")
    weights = {key: value.clone() for key, value in network.model.state_dict().items()}
    best = load_run(name).model().state_dict()
    assert all(torch.equal(weights[key], best[key]) for key in best)


def test_a_run_that_is_not_there(photos):
    with pytest.raises(CourseError, match="There is no run 'abcd'"):
        main([str(photos), "--run", "abcd"])


def test_a_run_and_a_model_exclude_each_other(photos, capsys):
    with pytest.raises(SystemExit):
        main([str(photos), "--run", "a", "--model", "resnet18_mini"])
    assert "not allowed with" in capsys.readouterr().err


def test_a_broken_picture_is_told_and_the_others_are_explained(photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (photos / "empty.png").write_bytes(b"")
    assert main([str(photos)]) == 3
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"{photos / 'broken.jpg'} was left out: ")
    assert errors[1] == f"{photos / 'empty.png'} was left out: empty file (0 bytes)."
    text = (tmp_path / "explained" / "index.html").read_text(encoding="utf-8")
    assert text.count("<figure>") == 2 and text.count('<p class="failed">') == 2


def test_no_picture_at_all(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    with pytest.raises(
        CourseError, match=r"None of the 1 pictures could be read\. .*notes\.jpg was left out: not a picture"
    ):
        main(["notes.jpg"])
    assert not (tmp_path / "explained").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "lime"], "There is no method 'lime'; choose one of gradcam, "),
        (["--model", "resnet81"], "There is no model 'resnet81'."),
        (["--stage", "layer9"], "There is no stage 'layer9' in this model."),
        (["--class", "200"], "--class '200' is none of the network's 200 classes."),
    ],
)
def test_wrong_arguments(photos, arguments, told):
    with pytest.raises(CourseError) as caught:
        main([str(photos), *arguments])
    assert str(caught.value).startswith(told)


def test_a_class_by_name_part_or_number():
    classes = ["tabby, tabby cat", "Egyptian cat", "7", "mail, post", "chain mail, mail"]
    for wanted, number in [("Tabby Cat", 0), ("tabby", 0), (" egyptian cat", 1), ("7", 2), ("post", 3), ("4", 4)]:
        assert class_number(wanted, classes) == number
    with pytest.raises(CourseError) as caught:
        class_number("mail", classes)
    assert str(caught.value) == (
        "--class 'mail' fits several classes: mail, post (3); chain mail, mail (4). Give the number of one."
    )
    with pytest.raises(CourseError) as caught:
        class_number("egyptain cat", classes)
    assert str(caught.value) == (
        "--class 'egyptain cat' is none of the network's 5 classes. Perhaps: Egyptian cat; tabby, tabby cat. "
        "A number from 0 to 4 does too."
    )


def test_pictures_of_one_name_get_overlays_of_different_names(photos, tmp_path, capsys):
    (photos / "more").mkdir()
    for name in ("more/wide.jpg", "WIDE.gif"):
        Image.new("RGB", (9, 9)).save(photos / name)
    assert main([str(photos)]) == 0
    written = sorted(path.relative_to("explained").as_posix() for path in Path("explained").rglob("*.*"))
    assert written == ["WIDE.png", "a & b.png", "index.html", "more/wide.png", "wide-2.png"]
    assert [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()[2:6]] == [
        *("WIDE.gif", "a & b.png", "more/wide.jpg", "wide.jpg")
    ]


def test_overlays_are_not_explained_themselves(photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    for _ in range(2):
        assert main(["."]) == 0
        assert capsys.readouterr().out.count(".png") == 1


def test_an_empty_map_is_said():
    grey = Image.new("RGB", (8, 8))
    item = "x.png", explain_command.Explained(grey, grey, (("cat", 0.9), ("dog", 0.1)), "dog", empty=True)
    found = Page(render_page("explain.html", shown=[item], left_out=[], how="net"))
    assert found.alts[1] == "x.png: nothing speaks for dog: the map is empty"
    assert "x.png: cat 90 %, dog 10 %; nothing speaks for dog: the map is empty." in found.text
    assert explain_command._table([item]).endswith("dog: empty map")


def test_names_are_shown_as_they_are_written():
    """No name can become a part of the page."""
    grey = Image.new("RGB", (8, 8))
    name = "<i title=\"x\"> & 'y'"
    item = f"{name}.png", explain_command.Explained(grey, grey, ((name, 1.0),), name, empty=False)
    text = render_page("explain.html", shown=[item], left_out=[f"{name} was left out"], how=name)
    found = Page(text)
    assert "<i" not in text.replace("<img", "")
    assert found.text.count(name) == 6 and found.alts == [
        f"{name}.png, as the network saw it",
        f"{name}.png: the map is for {name}",
    ]
