"""benchmarks/: the scripts about the cache run, and what they write can be read."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import copy_of, moved_stages
from PIL import Image

from course_utils.datasets import PhotoDataset


@pytest.fixture
def scripts(monkeypatch):
    """The folder of scripts, from where they import each other."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def photos(tmp_path):
    """Six pictures of noise in two classes."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (140, 150, 3), dtype=np.uint8)).save(path)
    return PhotoDataset(paths, [0, 1] * 3, ["ant", "bee"])


def test_the_tutorial_beside_ours(scripts, photos, tmp_path, monkeypatch, capsys):
    import tutorial

    monkeypatch.setattr(tutorial, "pictures", lambda quick: (photos, photos.subset([0, 1])))
    out = tmp_path / "results" / "benchmarks.json"
    entry = tutorial.main(["--quick", "--out", str(out)])
    assert entry["numbers"]["accuracy"]["n"] == 2 and entry["numbers"]["baseline_epochs_measured"] == 2
    assert all(entry["numbers"][what] > 0 for what in ("baseline", "ours", "ours_again", "forward_alone", "bytes"))
    assert json.loads(out.read_text(encoding="utf-8"))["a"] == entry
    assert "times faster, filling the cache included (goal: 15)" in capsys.readouterr().out
    assert f"## a: {entry['title']}" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert "measured" in tutorial._derived({"baseline_epochs_measured": 3}, 25)


def test_the_tutorials_loop_trains_the_head_alone_but_lets_batch_norm_move(scripts, photos):
    import tutorial

    job = tutorial.Job("resnet18_mini", None, photos, photos, 1, 0)
    model = job.model()
    before = copy_of(model)
    assert len(tutorial.tutorial_epochs(model, *job.prepared("light"), 2, 0)) == 2
    assert "head" in moved_stages(model, before, copy_of(model))
    learned = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert learned == {"fc.weight", "fc.bias"} and not torch.equal(before["bn1.running_mean"], model.bn1.running_mean)


def test_the_last_block_with_and_without(scripts, photos, monkeypatch, capsys):
    import last_block

    monkeypatch.setattr(last_block, "pictures", lambda quick: (photos, photos.subset([0, 1])))
    entry = last_block.main(["--quick"])
    assert entry["numbers"]["resnet18_mini"]["apart"] < 1e-6 and len(entry["rows"]) == 3
    assert "Physical limit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        last_block.main(["--epochs", "1"])


def test_growth_from_few_to_many(scripts, monkeypatch, capsys):
    import growth

    entry = growth.main(["--quick"])
    assert [row["pictures"] for row in entry["numbers"]["rows"]] == [6, 12, 24]
    assert "Per 1,000 pictures" in capsys.readouterr().out
    rows = [{"pictures": n, "s": 2 + 3 * n} for n in (10, 100, 1000, 10_000)]
    per_1000, exponent = growth.slope(rows, "s")
    assert math.isclose(per_1000, 3000) and math.isclose(exponent, 1, abs_tol=1e-3)


def test_fit_beside_other_loops(scripts, monkeypatch, capsys):
    """The same is learned by all of them: that is why their seconds can be compared."""
    import fit_overhead

    monkeypatch.setattr(fit_overhead.importlib.util, "find_spec", lambda name: None)
    entry = fit_overhead.main(["--quick"])
    losses = entry["numbers"]["losses"]
    assert losses["ours"] == losses["recorded"] == pytest.approx(losses["bare"], abs=1e-6)
    assert all(len(seconds) == 2 for seconds in entry["numbers"]["seconds"].values())
    assert "fastai's Learner is not installed here" in capsys.readouterr().out
    seconds = {"ours": [2.2, 4.4, 3.3], "bare": [2.0, 4.0, 3.0], "lightning": [2.0, 4.0, 3.0]}
    job = SimpleNamespace(train=fit_overhead._pictures(4, 8, 0), epochs=1, rounds=3, loader=lambda: [1])
    seconds |= {"recorded": seconds["ours"], "limit": seconds["bare"]}
    told = fit_overhead.entry(job, seconds, dict.fromkeys(seconds, 0.5), [])["findings"]
    assert "not told apart" in fit_overhead.beside({"ours": [1.1, 1.0, 1.2], "bare": [1.0, 1.1, 1.1]}, "bare", 0.0)
    assert told == [
        "Time of fit: beside a bare loop +10.0% (+10.0% to +10.0%; goal: at most +3%, not met); beside Lightning's "
        "Trainer +10.0% (+10.0% to +10.0%; goal: at most +0%, not met)."
    ]


def test_without_a_gpu_its_benchmark_says_so(scripts, monkeypatch, capsys):
    import gpu_throughput

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_throughput.main([])
    assert "nothing was measured" in capsys.readouterr().out


def test_the_page_about_speed_shows_what_the_results_file_holds(scripts):
    import common

    stored = json.loads(common.RESULTS.read_text(encoding="utf-8"))
    assert set("abcdf") <= set(stored)
    assert common.benchmarks_section(stored) in common.SPEED_PAGE.read_text(encoding="utf-8")
    assert common.as_markdown(stored) == common.RESULTS.with_suffix(".md").read_text(encoding="utf-8")


def test_a_results_file_keeps_the_other_benchmarks(scripts, tmp_path, capsys):
    import common

    path = tmp_path / "benchmarks.json"
    for name, speed in (("b", 3), ("a", 15), ("b", 4)):
        entry = common.make_entry("x", columns=["n"], rows=[[speed]], findings=["f"], limit="l", device="cpu")
        common.report(name, entry, argparse.Namespace(quick=True, out=path))
    assert {name: entry["rows"] for name, entry in json.loads(path.read_text()).items()} == {"a": [[15]], "b": [[4]]}
    assert list(json.loads(path.read_text())) == ["a", "b"]
    words = ["/home/me/benchmarks/tutorial.py", "--out", "/home/me/x.json"]
    assert common.command_line(words) == "python benchmarks/tutorial.py --out x.json"
    assert capsys.readouterr().out.count("Physical limit: l") == 3
