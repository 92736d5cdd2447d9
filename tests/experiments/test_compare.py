"""The comparison is fair, its numbers are those of the runs, and README and results file say the same."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ColourPatches, StopAfter

from course_utils.common.errors import CourseError
from course_utils.engine.history import TrainingStopped
from course_utils.evaluation import evaluate
from course_utils.experiments import compare, families
from course_utils.experiments.domain_shift import night_photo, shifted, sketch_photo
from course_utils.fine_tuning import FEATURE_EXTRACTION, FROM_SCRATCH, FULL
from course_utils.settings import load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def comparison():
    train, val, test = ColourPatches(12, seed=0), ColourPatches(6, seed=1), ColourPatches(9, seed=2)
    return compare.compare_strategies(
        "resnet18_mini",
        train,
        val,
        test,
        (FROM_SCRATCH, FEATURE_EXTRACTION),
        seeds=(0, 1),
        epochs=2,
        batch_size=4,
        num_classes=3,
        device="cpu",
    )


def test_every_strategy_meets_every_seed(comparison):
    assert [(t.strategy, t.seed) for t in comparison.trials] == [
        (FROM_SCRATCH.name, 0),
        (FROM_SCRATCH.name, 1),
        (FEATURE_EXTRACTION.name, 0),
        (FEATURE_EXTRACTION.name, 1),
    ]
    assert {t.epochs for t in comparison.trials} == {2}
    assert [len(run.history) for run in comparison.runs.values()] == [2, 2, 2, 2]


def test_a_trial_counts_what_its_model_answers(comparison):
    model = comparison.models[FEATURE_EXTRACTION.name]
    again = evaluate(model, ColourPatches(9, seed=2))
    first = next(t for t in comparison.trials if t.strategy == FEATURE_EXTRACTION.name)
    assert (first.test_right, first.test_total) == (again.right, 9)
    assert first.val_accuracy == evaluate(model, ColourPatches(6, seed=1)).accuracy


def test_the_table_has_trainable_parameters_and_a_spread(comparison):
    rows = {row[0]: row for row in comparison.rows()}
    assert rows[FEATURE_EXTRACTION.name][1] == 435
    assert rows[FROM_SCRATCH.name][1] == 830_435
    assert all("±" in row[4] for row in rows.values())


def stop_in_run(number, monkeypatch):
    """Let the training of this number, counted from 1, be stopped."""
    fit, calls = compare.fit, []

    def stopping_fit(*arguments, **options):
        calls.append(options)
        return fit(*arguments, **options, hooks=[StopAfter(1)] if len(calls) == number else [])

    monkeypatch.setattr(compare, "fit", stopping_fit)
    return calls


def small_comparison():
    return compare.compare_strategies(
        "resnet18_mini", ColourPatches(6), ColourPatches(3, seed=1), ColourPatches(4, seed=2),
        (FEATURE_EXTRACTION, FULL), seeds=(3, 4), epochs=1, batch_size=3, num_classes=3, device="cpu",
    )  # fmt: skip


def test_a_stop_ends_the_comparison_and_keeps_what_was_finished(monkeypatch, capsys):
    whole = small_comparison()
    calls = stop_in_run(4, monkeypatch)
    with pytest.raises(TrainingStopped) as caught:
        small_comparison()
    kept = caught.value.comparison
    assert [(t.strategy, t.seed, t.test_right) for t in kept.trials] == [
        (t.strategy, t.seed, t.test_right) for t in whole.trials[:3]
    ]
    assert list(kept.runs) == list(whole.runs)[:3] and list(kept.models) == list(whole.models)
    assert capsys.readouterr().out == (
        "Stopped after 3 of 4 runs: feature extraction (seed 3), feature extraction (seed 4), full fine-tuning "
        "(seed 3); the finished ones are in the error's .comparison (sys.last_value.comparison)\n"
    )
    assert len(calls) == 4


def test_no_run_follows_a_stop_and_nothing_finished_is_nothing_kept(monkeypatch, capsys):
    calls = stop_in_run(1, monkeypatch)
    with pytest.raises(TrainingStopped) as caught:
        small_comparison()
    assert len(calls) == 1 and not hasattr(caught.value, "comparison")
    assert capsys.readouterr().out == "Stopped after 0 of 4 runs\n"


def test_all_pretrained_strategies_begin_with_the_same_weights():
    one, other = (s.starting_model("resnet18_mini", 3, seed=7).state_dict() for s in (FEATURE_EXTRACTION, FULL))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_spread_of_one_value_is_not_invented():
    assert compare.spread_text([0.5]) == "50.0"
    assert compare.spread_text([0.5, 0.7]) == "60.0 ± 14.1"


@pytest.fixture
def record():
    trials = [{"strategy": "full", "seed": seed, "test_right": right} for seed, right in enumerate((6, 8))]
    data = {
        "pictures": {"train": 4, "val": 4, "test": 10},
        "majority_right": 5,
        "majority": "50.0 % (…)",
        "summary": {"full": {"test": "70.0 ± 14.1", "val": "1", "trainable": 3}},
        "trials": trials,
    }
    return {
        "command": "course compare pets",
        "date": "2026-01-01",
        "hardware": "abacus",
        "model": "m",
        "data": {"pets": data},
    }


def test_results_are_written_as_json_markdown_and_picture(tmp_path, record):
    compare.write_results(tmp_path / "day.json", record)
    assert json.loads((tmp_path / "day.json").read_text(encoding="utf-8")) == record
    page = (tmp_path / "day.md").read_text(encoding="utf-8")
    assert "course compare pets" in page
    assert "70.0 ± 14.1" in page
    assert (tmp_path / "day.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [compare, families])
@pytest.mark.parametrize("option", ["--seeds=0", "--epochs=few"])
def test_wrong_numbers_are_one_line(command, option, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["pets", option])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and len(lines) == 1
    assert option.split("=")[1] in lines[0] and "is not a whole number from 1 upwards" in lines[0]


def test_only_what_is_between_the_markers_of_a_readme_changes(tmp_path, record):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{compare.START}\nold\n{compare.END}\nafter\n", encoding="utf-8")
    compare.update_readme(readme, record)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "70.0 ± 14.1" in text


def test_a_readme_without_a_place_for_results_is_an_error_and_stays_as_it_is(tmp_path, record):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here", encoding="utf-8")
    with pytest.raises(CourseError, match="no place"):
        compare.update_readme(readme, record)
    assert readme.read_text(encoding="utf-8") == "nothing here"


def test_the_readme_says_what_the_results_file_says():
    stored = json.loads((ROOT / "results" / "day20.json").read_text(encoding="utf-8"))
    second = json.loads((ROOT / "results" / "day20_lite.json").read_text(encoding="utf-8"))
    assert compare.readme_section(stored, second) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_cover_both_data_sets_with_three_seeds_or_more():
    stored = json.loads((ROOT / "results" / "day20.json").read_text(encoding="utf-8"))
    for name in ("pets", "hymenoptera"):
        trials = stored["data"][name]["trials"]
        for strategy in (FROM_SCRATCH, FEATURE_EXTRACTION, FULL):
            assert len({t["seed"] for t in trials if t["strategy"] == strategy.name}) >= 3
    assert all(stored[key] for key in ("command", "hardware", "date", "model"))


def test_a_folder_is_named_in_the_record_without_its_path(monkeypatch, tmp_path):
    options = argparse.Namespace(data=[str(tmp_path / "mine")], seeds=1, epochs=1)
    record = compare.as_record({}, load_settings({}), options)
    assert str(tmp_path) not in json.dumps(record)


def test_shifts_keep_size_and_change_the_picture():
    from PIL import Image

    picture = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB")
    for change in (night_photo, sketch_photo):
        changed = change(picture)
        assert changed.size == picture.size
        assert changed.mode == "RGB"
        assert changed.tobytes() != picture.tobytes()
    dark, light = (int(np.asarray(p.convert("L"), dtype=np.int64).sum()) for p in (night_photo(picture), picture))
    assert dark < light


def test_an_unknown_shift_names_the_known_ones():
    with pytest.raises(CourseError, match="night, sketch"):
        shifted(load_settings({}), None, "fog")


def test_the_readme_shows_what_the_stored_notebooks_report():
    from course_tools.authoring.notebooks import find_notebooks, read_notebook, result_of

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in find_notebooks(ROOT):
        lines = result_of(read_notebook(path)).splitlines()
        assert lines
        assert all(line in readme for line in lines), path.stem
