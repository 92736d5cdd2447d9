"""``course ladder``: every rung once, nothing twice, and a report that says what was found."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import shutil

import numpy as np
import pytest
from helpers import stop_before_epoch
from PIL import Image
from test_explain_command import Page

from course_tools.photos import data_audit, ladder, ladder_command, ladder_report, ladder_results
from course_tools.photos.ladder import KNN, PROBE, Budget, LadderRunner, Rung, measure
from course_tools.photos.ladder_command import networks
from course_tools.photos.ladder_results import ResultStore, RungResult, choose, fewest_to_tell, holm, steps
from course_tools.photos.train_command import make_parser as make_train_parser
from course_tools.photos.train_command import strategy_named
from course_utils import evaluation
from course_utils.common.command_line import exit_code
from course_utils.common.errors import CourseError
from course_utils.data import pets
from course_utils.datasets import open_dataset
from course_utils.engine.history import TrainingDiverged, TrainingStopped
from course_utils.engine.runs import load_run
from course_utils.evaluation import Report, evaluate
from course_utils.fine_tuning import FEATURE_EXTRACTION, LAST_BLOCK
from course_utils.pretrained_models import weights_entry
from course_utils.training import fit
from course_utils.transforms import eval_transform

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
NAME = "resnet18_mini"
SHORT = (KNN, PROBE, Rung("last block", LAST_BLOCK))


@pytest.fixture(scope="module", autouse=True)
def _cheap():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COURSE_WEIGHTS", "COURSE_DATASET", "COURSE_SEED"):
            patch.delenv(name, raising=False)
        patch.setattr("course_utils.settings.best_device", lambda: "cpu")
        patch.setattr(data_audit, "SAMPLED", 2)
        patch.setattr("course_tools.photos.probes.PENALTIES", (100.0,))
        patch.setattr(
            "course_utils.engine.run_log._write_figure", lambda *_: None
        )  # takes longer than the training here
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Drawings in class folders, one of them twice, one in two splits though cropped, and five broken files."""
    folder = tmp_path_factory.mktemp("data") / "my <photos>"
    pets.write_pets(folder, {"train": 5, "val": 3, "test": 3}, size=48)
    shutil.rmtree(folder / "masks")
    whole = Image.open(folder / "train" / "Tigger" / "000.png")
    whole.crop((2, 2, 46, 46)).save(folder / "test" / "Tigger" / "again.png")
    broken = folder / "train" / "Misty"
    (broken / "empty.jpg").write_bytes(b"")
    (broken / "notes.jpg").write_text("not a picture")
    (broken / "half.png").write_bytes((folder / "train" / "Misty" / "000.png").read_bytes()[:900])
    shutil.copy(folder / "train" / "Neither" / "001.png", folder / "train" / "Neither" / "twice.png")
    return folder


@pytest.fixture(scope="module")
def splits(photos):
    return open_dataset(photos)


@pytest.fixture(scope="module")
def measured(splits, tmp_path_factory):
    """A short ladder, with what it said."""
    said = []
    root = tmp_path_factory.mktemp("ladders")
    return measure(splits, [NAME], Budget(epochs=1), root, said.append, SHORT), said, root


def numbers(found):
    """What has to be the same in two runs of one ladder: all but time, memory and names of runs."""
    rows = [(r.model, r.rung, r.trainable, r.detail, r.report.probabilities.tobytes()) for r in found.results]
    return rows, found.chosen.name, found.test.probabilities.tobytes()


def test_the_whole_command(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert ladder_command.main([str(photos), "--epochs", "1", "--out", "out/report.html"]) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)  # fails on a picture without alt text
    for rung in ("kNN", "linear probe", "last block", "progressive", "full fine-tuning", "from scratch"):
        assert f"\n{NAME}, {rung}: " in printed and f"<td>{rung}</td>" in text
    for name in ("empty.jpg", "notes.jpg", "half.png", "twice.png"):
        assert name in printed and name in page.text.split("Files that were left out")[1]
    assert all(page.alts) and all(source.startswith("data:image/") for source in page.sources)
    assert "http" not in text and str(tmp_path) not in text and str(photos.parent) not in text
    assert "my &lt;photos&gt;" in text and "<photos>" not in text
    again = page.text.split("The same picture in two splits")[1]
    assert "train: Tigger/000.png" in again and "test: Tigger/again.png" in again
    assert any("Grad" in part or "brighter" in part for part in page.text.split("Mistakes")[1:])

    assert ladder_command.main([str(photos), "--epochs", "1", "--out", "again.html"]) == 0
    second = capsys.readouterr().out
    assert second.count("kept from before") == 6
    assert (
        second[second.index("network  ") :].replace("again.html", "out/report.html")
        == (printed[printed.index("network  ") :])
    )
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_each_rung_has_its_numbers(measured, splits):
    found, said, _ = measured
    assert [result.rung for result in found.results] == ["kNN", "linear probe", "last block"]
    assert [result.trainable for result in found.results] == [0, 435, 653_472 + 435]
    assert all(result.seconds > 0 and result.memory > 5e7 for result in found.results)
    assert found.results[0].run is None and found.chosen.run is not None
    assert len(said) == 3 and str(found).count("\n") == 4
    assert len(found.test.labels) == len(splits.test) and found.looks == 1


def test_the_runs_answer_as_the_ladder_says(measured, splits):
    """A probe's run too, though no training left it."""
    found, _, _ = measured
    for result in found.results[1:]:
        record = load_run(result.run)
        model = record.model()
        prepare = eval_transform(weights_entry(NAME))
        answers = evaluate(model, splits.val.with_transform(prepare)).probabilities
        np.testing.assert_allclose(answers, result.report.probabilities, atol=1e-5)
        assert record.best.val_accuracy == pytest.approx(result.report.accuracy)
        assert record.reports["val"]["right"] == result.report.right
    assert load_run(found.chosen.run).test_accuracy == pytest.approx(found.test.accuracy)


def test_stopped_in_the_middle_it_goes_on_to_the_same_table(measured, splits, tmp_path, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            measure(splits, [NAME], Budget(epochs=1), tmp_path, said.append, SHORT)
    assert len(said) == 3  # kNN, the probe, and the Stop
    assert said.pop() == (
        f"Stopped. Finished and kept: 2 of 3 rungs ({NAME}, kNN; {NAME}, linear probe). "
        "The same command goes on from there."
    )
    resumed = measure(splits, [NAME], Budget(epochs=1), tmp_path, said.append, SHORT)
    assert [line.endswith("kept from before") for line in said[2:]] == [True, True, False]
    assert numbers(resumed) == numbers(measured[0])


def test_a_rung_stopped_between_two_epochs_goes_on_there(splits, tmp_path, monkeypatch):
    rungs, budget = SHORT[2:], Budget(epochs=2)
    epochs = stop_before_epoch(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        measure(splits, [NAME], budget, tmp_path, lambda _: None, rungs)
    (resumed,) = measure(splits, [NAME], budget, tmp_path, lambda _: None, rungs).results
    assert epochs == [0, 1, 1]
    whole = LAST_BLOCK.starting_model(NAME, 3)
    prepare = eval_transform(weights_entry(NAME))
    val = splits.val.with_transform(prepare)
    run = fit(whole, splits.train.with_transform(prepare), val, LAST_BLOCK, epochs=2, batch_size=16)
    np.testing.assert_allclose(resumed.last.probabilities, run.answers[0], atol=1e-5)
    np.testing.assert_allclose(resumed.report.probabilities, evaluate(whole, val).probabilities, atol=1e-5)
    assert resumed.seconds > load_run(resumed.run).history[0].seconds and run.resumed == 0


def test_a_run_that_was_killed_behind_its_last_epoch_has_its_answers(splits):
    class Kill:
        def on_epoch_end(self, run, model):
            if len(run.history) == 2:
                raise KeyboardInterrupt

    prepare = eval_transform(weights_entry(NAME))
    train, val = (part.with_transform(prepare) for part in (splits.train, splits.val))
    first, again = ladder.LastEpoch(val, 2), ladder.LastEpoch(val, 2)
    for hooks in ([first, Kill()], [again]):
        try:
            network = LAST_BLOCK.starting_model(NAME, 3)
            run = fit(network, train, val, LAST_BLOCK, epochs=2, log="light", resume=True, hooks=hooks)
        except TrainingStopped as stop:
            assert len(stop.run.history) == 2
    assert run.resumed == 2
    np.testing.assert_allclose(again.probabilities, first.probabilities, atol=1e-6)


def test_a_stop_is_told_with_what_to_do(photos, tmp_path, monkeypatch, capsys):
    """Also before the first rung; the exit code is that of Ctrl-C."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(ladder, "file_digests", stop)
    assert exit_code(lambda: ladder_command.main([str(photos)])) == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Stopped. Finished and kept: 0 of 6 rungs. The same command goes on from there."


@pytest.mark.parametrize("damage", ["truncated", "no header", "other numbers", "other weights", "no run"])
def test_what_is_damaged_or_gone_is_run_again(measured, splits, tmp_path, damage, monkeypatch):
    found, _, _ = measured
    store = ResultStore(tmp_path / found.folder.name, splits)
    shutil.copytree(found.folder, store.folder)
    weights = LadderRunner(NAME, splits, found.budget, store).origin(PROBE)
    assert store.load(NAME, PROBE.name, weights) is not None
    path = store.folder / "val-resnet18_mini-linear-probe.safetensors"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-3])
    elif damage == "no header":
        path.write_bytes(b"{" + content[1:])
    elif damage == "other numbers":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no run":
        monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "other runs"))
    else:
        weights = "0" * 64
    assert store.load(NAME, PROBE.name, weights) is None


def test_a_strategy_that_was_changed_is_run_again(measured, splits):
    found, _, _ = measured
    store = ResultStore(found.folder, splits)
    runner = LadderRunner(NAME, splits, found.budget, store)
    (rung,) = (rung for rung in ladder.RUNGS if rung.name == "last block")
    other = dataclasses.replace(rung, strategy=dataclasses.replace(rung.strategy, rates=(1e-2, 5e-4)))
    assert store.load(NAME, rung.name, runner.origin(rung)) is not None
    assert store.load(NAME, rung.name, runner.origin(other)) is None


def test_rungs_that_augment_read_stored_pixels(splits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr("course_utils.engine.pixel_store.StoreForecast.pays", lambda *_: True)
    budgets = {augment: Budget(epochs=1, augment=augment) for augment in ("none", "light")}
    kinds = {}
    for augment, budget in budgets.items():
        runner = LadderRunner(NAME, splits, budget, ResultStore(tmp_path, splits))
        kinds[augment] = type(runner.train).__name__
        assert runner.train is runner.train
    assert kinds == {"none": "MemoryDataset", "light": "PixelDataset"}
    assert "decoded once" in capsys.readouterr().err


def test_other_pictures_and_other_settings_have_a_folder_of_their_own(splits, tmp_path):
    digests = [str(i) for i in range(len(ladder.all_pictures(splits)))]
    folders = {
        ladder.ladder_folder(tmp_path, data, marks, budget)
        for data, marks, budget in [
            (splits, digests, Budget()),
            (splits, digests, Budget(epochs=7)),
            (splits, digests, Budget(seed=1)),
            (splits, digests, Budget(augment="light")),
            (splits, [*digests[:-1], "x"], Budget()),
            (dataclasses.replace(splits, classes=("a", "b", "c")), digests, Budget()),
        ]
    }
    assert len(folders) == 6
    assert ladder.ladder_folder(tmp_path, splits, digests, Budget(device="cuda")) in folders


def test_a_rung_that_diverges_is_told_and_the_others_go_on(splits, tmp_path, monkeypatch, measured):
    def diverge(*_, **__):
        raise TrainingDiverged("The loss became nan in epoch 1.", None)

    shutil.copytree(measured[0].folder, tmp_path / measured[0].folder.name)
    (tmp_path / measured[0].folder.name / "val-resnet18_mini-last-block.safetensors").unlink()
    monkeypatch.setattr(ladder, "fit", diverge)
    found = measure(splits, [NAME], Budget(epochs=1), tmp_path, lambda _: None, SHORT)
    assert found.failures == {"resnet18_mini, last block": "The loss became nan in epoch 1."}
    assert "last block: no result. The loss became nan in epoch 1." in Page(ladder_report.report_page(found)).text


def answers(right, of=40, run="r"):
    labels = np.zeros(of, int)
    sure = np.where(np.arange(of) < right, 0.9, 0.1)
    report = Report(("a", "b"), labels, np.stack([sure, 1 - sure], 1))
    return RungResult("net", f"{right} right", report, 1.0, 1, 1, run)


def test_a_step_is_worth_it_when_chance_does_not_explain_it():
    found = steps([answers(10), answers(15), answers(30), answers(22), answers(2)])
    assert [(step.below.rung, step.verdict) for step in found] == [
        ("10 right", "not shown to be worth it"),
        ("15 right", "worth it"),
        ("30 right", "not worth it"),
        ("30 right", "not worth it"),
    ]
    assert [step.verdict for step in steps([answers(10), answers(8)])] == ["not worth it"]
    few = fewest_to_tell()
    assert steps([answers(10), answers(10 + few)])[0].worth and not steps([answers(10), answers(9 + few)])[0].worth


def test_the_more_steps_the_more_it_takes():
    few = fewest_to_tell(4)
    assert few > fewest_to_tell(1)
    same = [answers(10)] * 3  # three steps that show nothing, and a fourth
    assert steps([answers(10), *same, answers(10 + few)])[-1].worth
    assert not steps([answers(10), *same, answers(9 + few)])[-1].worth
    assert steps([answers(10), answers(9 + few)])[-1].worth
    assert f"{steps([answers(10), *same, answers(10 + few)])[-1].p:.3f}" == f"{4 * 2 / 2**few:.3f}"


def test_holm_against_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")
    assert holm([0.4, 0.4, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_a_rung_is_compared_as_its_last_epoch_left_it():
    """Its best epoch was chosen by the pictures that it is compared on."""
    lucky = dataclasses.replace(answers(30), last=answers(11).report)
    (step,) = steps([answers(10), lucky])
    assert step.comparison.difference == 1 / 40 and step.verdict == "not shown to be worth it"
    _, above = steps([answers(10), lucky, answers(25)])
    assert above.below is lucky and above.verdict == "worth it"


def equal_rungs(rng, families=4, epochs=10, n=180):
    """A ladder whose rungs are all equally good: networks share what is difficult, epochs of a rung share still more.

    The answers are right where a normal variable lies below a limit. kNN and the probe have one answer, the four rungs
    that train have one for each epoch, and bring back the best.
    """
    results = []
    for family in range(families):
        shared, own, fresh = (rng.standard_normal(size) for size in (n, (6, 1, n), (6, epochs, n)))
        right = np.sqrt(0.5) * shared + np.sqrt(0.3) * own + np.sqrt(0.2) * fresh < 0.85
        for i, rung in enumerate(right):
            epochs_seen = (rung[rung.sum(1).argmax()], rung[-1]) if i >= 2 else (rung[-1],)
            reports = [Report(("a", "b"), np.zeros(n, int), np.stack([one, ~one], 1)) for one in epochs_seen]
            results.append(RungResult(str(family), str(i), reports[0], 1.0, 1, 1, last=reports[-1]))
    return results


def test_of_equal_rungs_one_in_twenty_ladders_at_most_says_worth_it(monkeypatch):
    monkeypatch.setattr(evaluation, "binomtest", functools.cache(evaluation.binomtest))  # the same counts come again
    rng = np.random.default_rng(0)
    ladders = [equal_rungs(rng) for _ in range(300)]
    wrong = np.mean([any(step.worth for step in steps(results)) for results in ladders])
    assert wrong <= 0.05
    # The simulation can tell: by best epochs, and each step for itself, it is far more.
    best = [[dataclasses.replace(result, last=None) for result in results] for results in ladders]
    monkeypatch.setattr(ladder_results, "holm", list)
    assert np.mean([any(step.worth for step in steps(results)) for results in best]) > 0.1


def test_networks_are_compared_with_their_own_rungs_only():
    other = dataclasses.replace(answers(30), model="other")
    assert [step.result.model for step in steps([answers(10), other, answers(11)])] == ["net"]


def test_the_pictures_are_looked_at_through_the_best_features():
    first, second = (dataclasses.replace(answers(n), model=str(n), rung="linear probe") for n in (10, 20))
    assert ladder._best_features([first, answers(30), second]) == "20"
    assert ladder._best_features([answers(3), dataclasses.replace(answers(9), model="other")]) == "net"


def test_the_choice_is_the_best_network_and_of_equals_the_first():
    yardstick, first, second = answers(39, run=None), answers(30), dataclasses.replace(answers(30), model="other")
    assert choose([yardstick, answers(20), first, second]) is first
    with pytest.raises(CourseError, match="No rung of this ladder left a network"):
        choose([yardstick])


def test_the_command_to_train_such_a_network_is_one(measured, tmp_path):
    """It is read by the parser of `course train`, for every rung that leaves a network."""
    found, _, _ = measured
    strategies = {}
    for rung in ladder.RUNGS[1:]:
        chosen = dataclasses.replace(found.chosen, rung=rung.name)
        ended = dataclasses.replace(found, chosen=chosen, budget=Budget(epochs=4, augment="light"))
        words = shlex.split(ladder_command.train_command(ended, "my photos/cats"))
        assert words[:3] == ["course", "train", "my photos/cats"]
        options = make_train_parser().parse_args(words[2:])
        assert (options.model, options.epochs, options.augment) == (NAME, 8, "light")
        strategies[rung.name] = strategy_named(options.strategy)
    assert strategies["linear probe"] is FEATURE_EXTRACTION and strategies["last block"] is LAST_BLOCK
    assert len(set(strategies.values())) == 5
    assert ladder_command.train_command(found, "pets") in ladder_command.closing_lines(found, "pets")


def test_a_second_choice_on_the_same_test_pictures_is_counted(measured, splits, tmp_path):
    found, _, root = measured
    store = ResultStore(tmp_path, splits)
    runner = LadderRunner(NAME, splits, found.budget, store)
    first = runner.test_once(found.results[1], PROBE)
    assert runner.test_once(found.results[1], PROBE).probabilities.tobytes() == first.probabilities.tobytes()
    shutil.copytree(root, tmp_path / "ladders")
    other = Budget(epochs=1, seed=1)
    looks = [measure(splits, [NAME], other, tmp_path / "ladders", lambda _: None, (PROBE,)).looks for _ in range(2)]
    assert looks == [2, 2]  # another ladder, and the same once more
    page = Page(ladder_report.report_page(dataclasses.replace(found, looks=2)))
    assert "asked for 2 networks by now; the more often, the less the number means" in page.text
    assert "asked for 2 networks by now" in ladder_command.closing_lines(dataclasses.replace(found, looks=2), "pets")
    assert "by now" not in Page(ladder_report.report_page(found)).text


def test_a_report_without_maps_mistakes_or_many_classes(measured, monkeypatch):
    found, _, _ = measured

    def fail(*_):
        raise CourseError("no map here")

    with monkeypatch.context() as patch:
        patch.setattr(ladder_report, "explain_files", fail)
        page = Page(ladder_report.report_page(found))
    shown = [alt for alt in page.alts if " taken for " in alt]
    assert len(shown) == min(12, len(found.test.mistakes())) > 0
    assert "Maps could not be drawn: no map here" in page.text
    perfect = dataclasses.replace(found.test, probabilities=np.eye(3)[found.test.labels])
    nothing = dataclasses.replace(found.audit, suspects=())
    flawless = ladder_report.report_page(dataclasses.replace(found, test=perfect, audit=nothing))
    assert "None: every test picture was recognised." in flawless
    assert "No label stands out." in flawless
    monkeypatch.setattr(ladder_report, "MANY_CLASSES", 2)
    page = Page(ladder_report.report_page(found))
    assert "The most frequent mix-ups" in page.text and not [alt for alt in page.alts if "Confusion" in alt]


def test_names_are_shown_as_they_are_written(measured):
    """Names of classes with signs of HTML in them become text, never a part of the page."""
    found, _, _ = measured
    classes = ("<i>cat</i>", 'a & b "c"', "d's")
    splits = dataclasses.replace(found.splits, classes=classes, name="<i>mine</i>")
    page = ladder_report.report_page(
        dataclasses.replace(
            found,
            splits=splits,
            test=dataclasses.replace(found.test, classes=classes),
            failures={"net, <i>rung</i>": "because a < b & c"},
        )
    )
    assert "<i>" not in page and "&lt;i&gt;cat&lt;/i&gt;" in page
    shown = Page(page)
    assert all(shown.text.count(name) >= 1 for name in (*classes, "The ladder on <i>mine</i>"))
    assert "net, <i>rung</i>: no result. because a < b & c" in shown.text
    (confusion,) = [alt for alt in shown.alts if alt.startswith("Confusion matrix")]
    assert "<i>cat</i>" in confusion and 'a & b "c"' in confusion


def test_networks_by_family_and_by_name():
    families = {"vgg": "vgg16", "resnet": "resnet50"}
    assert networks(["resnet", "vgg11", "resnet50"], families) == ["resnet50", "vgg11"]
    assert networks(["all"], families) == ["vgg16", "resnet50"]
    with pytest.raises(CourseError, match=r"There is no family or network 'resnt'\. The families are vgg, resnet"):
        networks(["resnt"], families)
    with pytest.raises(CourseError, match="No family was named"):
        networks([], families)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "'nowhere' does not exist. Give one of pets, hymenoptera, a folder"),
        (["pets", "--families", "x"], "There is no family or network 'x'."),
        (["pets", "--augment", "big"], "augment='big' is unknown"),
    ],
)
def test_wrong_arguments_are_course_errors(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with pytest.raises(CourseError) as caught:
        ladder_command.main(arguments)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("arguments", [["pets", "--epochs", "0"], ["pets", "--seed", "x"], [], ["pets", "--fast"]])
def test_wrong_usage_is_one_line_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        ladder_command.main(arguments)
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and told.startswith("course ladder: ")


def test_memory_and_seconds_of_a_block(monkeypatch):
    """The peak within the block counts, though it is over when the block ends."""
    import threading
    from types import SimpleNamespace

    from course_utils.common import measuring
    from course_utils.common.measuring import Measured

    class Process:
        rss, seen = 100, threading.Event()

        def memory_info(self):
            if self.rss > 100:
                Process.seen.set()
            return SimpleNamespace(rss=self.rss)

    monkeypatch.setattr(measuring.psutil, "Process", Process)
    with Measured() as idle:
        pass
    with Measured() as busy:
        Process.rss = 500
        assert Process.seen.wait(30), "nobody looked while the block ran"
        Process.rss = 200
    assert (idle.memory, busy.memory) == (100, 500) and busy.seconds > 0
    with pytest.raises(ValueError, match="through"), Measured() as failed:
        raise ValueError("through")
    assert failed.seconds > 0
