"""benchmarks/: the scripts about a real network run, and what they write can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import red_and_blue

from course_utils.datasets import open_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("COURSE_ACTIVATIONS", str(tmp_path / "activations"))


@pytest.fixture
def colours(tmp_path):
    """Two classes of eight pictures: reddish and bluish noise."""
    return red_and_blue(tmp_path / "photos", 8)


def test_alternatives_are_asked_about_the_same_test_pictures(colours, monkeypatch, capsys):
    import alternatives

    splits = open_dataset(str(colours), seed=0)
    monkeypatch.setattr(alternatives, "open_dataset", lambda *_args, **_options: splits)
    monkeypatch.setattr(alternatives.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(alternatives, "few_per_class", lambda part, _count: part)
    entry = alternatives.main(["--quick"])
    found = entry["numbers"]
    assert len(found) == 6 and {way["n"] for way in found.values()} == {len(splits.test)}
    easy = [name for name in found if name.startswith(("ours: feature", "scikit-learn"))]
    assert [found[name]["right"] for name in easy] == [len(splits.test)] * 2, "red and blue are easy"
    assert "times as fast" in capsys.readouterr().out


def test_filling_the_cache_beside_a_bare_forward_pass(capsys):
    import fill_cache

    entry = fill_cache.main(["--quick"])
    assert len(entry["numbers"]) == len(entry["rows"]) == 2
    for found in entry["numbers"].values():
        (turn,) = found["seconds"]
        assert all(seconds > 0 for seconds in turn.values())
        assert found["ratios"]["filling"] == pytest.approx(turn["filling"] / (turn["decoding"] + turn["forward"]))
    assert "goal: at most 1.25" in capsys.readouterr().out


def test_the_page_of_remedies_shows_what_the_results_file_holds():
    import remedies

    done = json.loads((ROOT / "results" / "remedies.json").read_text(encoding="utf-8"))
    page = (ROOT / "results" / "remedies.md").read_text(encoding="utf-8")
    assert remedies.page(done).rsplit("\n\n", 1)[0] == page.rsplit("\n\n", 1)[0], "all but the line on the machine"
    for name in remedies.REMEDIES:
        assert len(done[f"hymenoptera: {name}"]) >= 3, "three seeds at least"
    assert set(remedies.READY) <= {key.removeprefix("breeds: ") for key in done}


def test_the_page_of_remedies_by_hand():
    import remedies

    frozen = {"0": {"val": 0.9, "test": 0.8, "n": 100}, "1": {"val": 0.9, "test": 0.9, "n": 100}}
    tuned = {seed: {"val": 0.5, "test": t, "test_mirrored": 0.7} for seed, t in (("0", 0.7), ("1", 0.9))}
    page = remedies.page({f"photos: {remedies.FROZEN}": frozen, "photos: tuned": tuned})
    assert "| tuned | 2 | 50.0 ± 0.0 | 80.0 ± 14.1 | 70.0 ± 0.0 | -5.0 ± 7.1 |" in page
    assert "test, n = 100" in page
