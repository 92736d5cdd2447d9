"""run_log.py and runs.py: what a run leaves on disk, that it never disturbs the run, and what is read from it."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, fields, replace

import numpy as np
import psutil
import pytest
import torch
from helpers import REPORT, Act, ColourPatches, copy_of, generators_untouched, mini, moved, stopped_run
from helpers import fake_run as fake
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from course_tools import cli
from course_utils import plots
from course_utils.common.errors import CourseError
from course_utils.datasets import PhotoDataset, in_memory
from course_utils.engine import run_log, runs
from course_utils.engine.history import TrainingDiverged
from course_utils.engine.options import FitOptions
from course_utils.engine.run_log import LOCK_FILE, hold, let_go, read_history, runs_root, worth_writing_now
from course_utils.engine.runs import add_report, compare_runs, delete_run, list_runs, load_run, runs_table
from course_utils.evaluation import evaluate
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, PROGRESSIVE, Strategy
from course_utils.mini import networks
from course_utils.training import fit

TRAIN, VAL = ColourPatches(12, seed=1), ColourPatches(7, seed=2)
HEAD = Strategy("head", starts=(0, None), rates=(1e-2,))
FULL_LOG = {"run.json", "history.csv", "best.safetensors", "report.json", "report.md", "curves.png", "confusion.png"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of runs."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def quick(model=None, train=TRAIN, val=VAL, strategy=HEAD, **options):
    model = mini() if model is None else model
    return fit(model, train, val, strategy, **({"epochs": 2, "batch_size": 4, "device": "cpu"} | options))


def facts_of(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def files_in(folder):
    return {path.name for path in folder.iterdir()} - {LOCK_FILE}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run with everything: the folder of runs, the run, its model."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("whole")
        patch.setenv("COURSE_RUNS", str(root))
        model = mini()
        run = quick(model, strategy=PROGRESSIVE, epochs=3, seed=4, class_weights=np.array([1, 2, 1]), patience=3)
    return root, run, model


# --- what is written ---------------------------------------------------------------------------------------------


def test_a_run_has_a_folder_with_everything(whole):
    root, run, _ = whole
    assert run.folder.parent == root
    assert re.fullmatch(r"\d{8}-\d{6}-progressive-resnet-[0-9a-f]{4}", run.folder.name)
    assert files_in(run.folder) == FULL_LOG
    assert all((run.folder / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "confusion.png"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
def test_others_may_read_all_of_it_as_any_new_file(whole, tmp_path):
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in whole[1].folder.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_run_json_has_all_arguments_of_fit(whole):
    facts = facts_of(whole[1].folder)
    assert set(facts["settings"]) == {field.name for field in fields(FitOptions)}
    given = {"epochs": 3, "batch_size": 4, "seed": 4, "class_weights": [1.0, 2.0, 1.0], "patience": 3, "log": "full"}
    assert {name: facts["settings"][name] for name in given} == given
    assert facts["settings"]["oversample"] is False


def test_run_json_tells_what_was_done_and_where(whole):
    _, run, model = whole
    facts = facts_of(run.folder)
    assert facts["status"] == "finished" and facts["error"] is None and facts["epochs"] == 3
    assert facts["strategy"] == json.loads(json.dumps(asdict(PROGRESSIVE)))
    assert facts["plan"] == [asdict(row) for row in run.plan.rows]
    assert facts["model"]["name"] == "resnet18_mini" and facts["model"]["outputs"] == 3
    assert facts["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["data"]["train"]["classes"] == {"red": 4, "green": 4, "blue": 4}
    assert facts["data"]["val"]["pictures"] == 7
    assert facts["versions"]["torch"] == torch.__version__ and "python" in facts["versions"]
    assert facts["machine"]["device"] == "cpu"
    assert facts["git"] is None or len(facts["git"]["commit"]) == 40
    assert facts["seconds"] == run.seconds
    assert facts["best"]["epoch"] == run.best.epoch + 1 and facts["best"]["val_loss"] == run.best.val_loss


def test_history_as_csv_has_every_digit(whole):
    _, run, _ = whole
    assert read_history(run.folder / "history.csv") == tuple(run.history)
    with open(run.folder / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["learning"] for row in rows] == ["head", "layer4 head", "layer3 layer4 head"]
    assert [float(row["val_accuracy"]) for row in rows] == [record.val_accuracy for record in run.history]


def test_a_macro_f1_that_chose_the_epoch_is_kept_and_older_histories_are_read(root):
    run = quick(mini(), epochs=2, log="light", choose_by="macro_f1")
    path = run.folder / "history.csv"
    record = load_run(run.folder)
    assert record.history == tuple(run.history) and record.best == run.best and record.best.val_macro_f1 is not None
    assert record.facts["best"]["val_macro_f1"] == run.best.val_macro_f1 and "val macro F1" in str(record)
    older = [line.rpartition(",")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\n".join(older) + "\n", encoding="utf-8")
    assert [epoch.val_macro_f1 for epoch in read_history(path)] == [None, None]


def test_the_report_is_that_of_the_best_weights(whole):
    _, run, model = whole
    stored = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    expected = evaluate(model, VAL).to_dict()
    assert stored["accuracy"] == run.best.val_accuracy
    assert stored == {"split": "val", **json.loads(json.dumps(expected))}
    text = (run.folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Answers on the val split\n") and "| red |" in text


def test_the_report_and_the_weights_are_of_the_best_epoch_not_of_the_last(root):
    class Opposite(ColourPatches):
        """Whoever learns the training set gets worse here."""

        def __init__(self, size, seed):
            super().__init__(size, seed)
            self.labels = tuple((label + 1) % 3 for label in self.labels)

    model, val = mini(), Opposite(9, seed=2)
    run = quick(model, val=val, epochs=5)
    assert run.best.epoch < 4
    assert json.loads((run.folder / "report.json").read_text())["confusion"] == evaluate(model, val).confusion.tolist()
    assert not moved(copy_of(model), load_file(run.folder / "best.safetensors"))
    with safe_open(run.folder / "best.safetensors", "pt") as file:
        assert file.metadata() == {"epoch": str(run.best.epoch + 1)}


def test_weights_on_disk_are_those_of_the_model(whole):
    _, run, model = whole
    assert not moved(copy_of(model), load_file(run.folder / "best.safetensors"))


def test_classes_without_names_are_numbered(root):
    val = ColourPatches(7, seed=2)
    val.classes = None
    run = quick(mini(num_classes=4), val=val, epochs=1)
    assert json.loads((run.folder / "report.json").read_text())["classes"] == ["0", "1", "2", "3"]


def test_a_matrix_of_many_classes_is_no_picture(root):
    run = quick(mini(num_classes=run_log.MANY_CLASSES + 1), epochs=1)
    assert files_in(run.folder) == FULL_LOG - {"confusion.png"}


def test_less_and_nothing(root):
    light, off = quick(log="light", epochs=1), quick(log="off", epochs=1)
    assert files_in(light.folder) == {"run.json", "history.csv"}
    assert facts_of(light.folder)["status"] == "finished"
    assert off.folder is None and files_in(root) == {light.folder.name}


class Noisy(ColourPatches):
    """Augmentation that draws from all three generators."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image) + 0.1 * random.random() + 0.1 * np.random.rand(), label


def test_the_log_changes_no_bit_of_the_result(root, monkeypatch):
    monkeypatch.setattr(run_log, "SLOW_DISK", 1e12)  # weights are written after every new best
    results = []
    for log in ("off", "light", "full"):
        model = mini()
        with generators_untouched():
            run = quick(model, Noisy(9, seed=1), Noisy(7, seed=2), FULL, epochs=3, log=log)
        results.append((copy_of(model), [replace(record, seconds=0) for record in run.history]))
    for weights, history in results[1:]:
        assert not moved(results[0][0], weights) and history == results[0][1]


def test_names_are_safe_and_different(root):
    strategy = Strategy("../Größe: 3×3 / \n" + "x" * 300, starts=(0, None), rates=(1e-3,))
    folders = [quick(strategy=strategy, epochs=1, log="light").folder for _ in range(2)]
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.parent == root
        assert runs.FOLDER_NAME.fullmatch(folder.name) and len(folder.name) < 80
    assert {record.folder for record in list_runs()} == set(folders)


def test_where_runs_are_kept(tmp_path, monkeypatch):
    assert runs_root({"COURSE_RUNS": str(tmp_path / "a")}) == tmp_path / "a"
    assert runs_root({"COURSE_CACHE": str(tmp_path / "b")}) == tmp_path / "b" / "runs"
    assert runs_root({}).name == "runs"
    monkeypatch.chdir(tmp_path)
    assert runs_root({"COURSE_RUNS": "mine"}) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("size", "seconds", "now"),
    [
        (3_400_000, 0.7, True),  # an embedded network
        (3_400_000, 0.6, False),
        (540_000_000, 60, False),  # a VGG-16 on a GPU
        (540_000_000, 110, True),
        (1, 0, False),
    ],
)
def test_weights_are_written_in_the_middle_only_where_it_takes_little_time(size, seconds, now):
    assert worth_writing_now(size, seconds) is now


# --- runs that do not come to their end --------------------------------------------------------------------------


IN_EPOCH_3 = 1 + 2 * 12 + 5  # one look before the first epoch, then 12 pictures in each


def interrupt(_image):
    raise KeyboardInterrupt


@pytest.mark.parametrize("weights", [True, False])
def test_a_killed_run_keeps_what_it_had(root, monkeypatch, weights):
    monkeypatch.setattr(run_log, "worth_writing_now", lambda size, seconds: weights)
    seen = []

    def look(image):
        (record,) = list_runs()
        seen.append((record, files_in(record.folder), record.status))
        return image

    run = quick(train=Act(ColourPatches(12, 1), IN_EPOCH_3, look), epochs=3)
    ((record, files, status),) = seen
    assert files == {"run.json", "history.csv"} | ({"best.safetensors"} if weights else set())
    assert status == "running" and record.history == tuple(run.history[:2])
    assert record.best is not None and f"{record.best.val_accuracy:.1%}" in runs_table([record])
    if weights:
        assert record.model() is not None


def test_how_a_run_ended(root):
    early = quick(epochs=9, patience=1, strategy=Strategy("tiny", starts=(0, None), rates=(1e-12,)))
    assert early.stopped == "early"
    interrupted = stopped_run(quick, train=Act(ColourPatches(12, 1), IN_EPOCH_3, interrupt), epochs=5)
    with pytest.raises(TrainingDiverged) as diverged:
        quick(train=Act(ColourPatches(12, 1), IN_EPOCH_3, lambda image: image * torch.nan), epochs=5)
    with pytest.raises(ZeroDivisionError):
        quick(train=Act(ColourPatches(12, 1), IN_EPOCH_3, lambda image: image / (1 // 0)), epochs=5)
    records = list_runs()
    assert [record.status for record in records] == ["failed", "diverged", "interrupted", "early"]
    failed = records[0]
    assert records[1].folder == diverged.value.run.folder and records[2].folder == interrupted.folder
    assert [record.facts["error"] for record in records[2:]] == [None, None]
    assert records[1].facts["error"] == str(diverged.value)
    assert failed.facts["error"] == "ZeroDivisionError: integer division or modulo by zero"
    for record in records:  # the two epochs that went well are worth having
        assert files_in(record.folder) == FULL_LOG
        assert len(record.history) == 2 or record.status == "early"


def test_a_run_without_an_epoch(root):
    run = stopped_run(quick, train=Act(ColourPatches(12, 1), 5, interrupt))
    assert files_in(run.folder) == {"run.json"}
    record = load_run(run.folder)
    assert record.status == "interrupted" and record.best is None and record.seconds == 0
    assert run.folder.name in str(record) and record.id in runs_table([record])
    with pytest.raises(CourseError, match="has no weights: it is interrupted and finished no epoch"):
        record.model()


def test_what_cannot_work_leaves_no_folder(root):
    with pytest.raises(CourseError):
        quick(epochs=0)
    assert list_runs() == []


# --- disks that cannot be written to -----------------------------------------------------------------------------


def one_warning(caught):
    texts = [str(item.message) for item in caught]
    assert len(texts) == 1, texts
    return texts[0]


def test_a_folder_that_cannot_be_made_is_one_warning_and_no_log(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "file" / "runs"))
    logged, plain = mini(), mini()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = quick(logged)
    text = one_warning(caught)
    assert text.startswith(f"The log of this run in {tmp_path / 'file' / 'runs'}")
    assert "could not be written: Not a directory. Training goes on without it." in text
    assert "COURSE_RUNS" in text and "log='off'" in text and "space" not in text
    assert caught[0].filename == __file__  # it points at the call of fit
    assert run.folder is None and run.stopped == "finished" and len(run.history) == 2
    quick(plain, log="off")
    assert not moved(copy_of(logged), copy_of(plain))


def disk_full_from(monkeypatch, write):
    """The disk is full from the n-th file on."""
    writes, real = [], os.fsync

    def fsync(descriptor):
        writes.append(descriptor)
        if len(writes) >= write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return writes


@pytest.mark.parametrize("write", [1, 2, 4, 6])
def test_a_disk_that_fills_up_is_one_warning(root, monkeypatch, write):
    writes = disk_full_from(monkeypatch, write)
    model = mini()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = quick(model)
    assert "No space left on device" in one_warning(caught)
    assert len(writes) == write  # nothing is tried again
    assert run.stopped == "finished" and len(run.history) == 2 and not model.training
    if write == 1:
        assert run.folder is None and not any(root.iterdir())
    else:
        assert list_runs()[0].folder == run.folder
        assert not [path for path in run.folder.iterdir() if path.name.endswith(".partial")]


def test_settings_that_cannot_be_read_do_not_stop_training(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_RUNS")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setenv("COURSE_WEIGHTS", "huge")
    with pytest.warns(UserWarning, match=r"The log of this run could not be written: COURSE_WEIGHTS='huge' is unknown"):
        assert quick(epochs=1).folder is None


def test_a_figure_that_cannot_be_drawn_costs_only_itself(root, monkeypatch):
    def fail(_runs):
        raise RuntimeError("no such glyph")

    monkeypatch.setattr(plots, "learning_curves", fail)
    with pytest.warns(UserWarning, match="RuntimeError: no such glyph"):
        run = quick()
    assert facts_of(run.folder)["status"] == "finished"
    assert files_in(run.folder) == FULL_LOG - {"curves.png"}
    assert load_run(run.folder).status == "finished"


# --- TensorBoard -------------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_numbers_of_each_epoch(root, monkeypatch):
    pytest.importorskip("tensorboard", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("COURSE_TENSORBOARD", "1")
    run = quick(log="light")
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for tag, name in (("loss/val", "val_loss"), ("accuracy/train", "train_accuracy"), ("seconds", "seconds")):
        scalars = events.Scalars(tag)
        assert [event.step for event in scalars] == [1, 2]
        assert [event.value for event in scalars] == pytest.approx([getattr(r, name) for r in run.history])
    assert delete_run(load_run(run.folder)) == [] and not run.folder.exists()


def test_without_tensorboard_a_warning_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setenv("COURSE_TENSORBOARD", "1")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = quick(log="light", epochs=1)
    assert "TensorBoard is not installed" in one_warning(caught) and "pip install tensorboard" in one_warning(caught)
    assert files_in(run.folder) == {"run.json", "history.csv"}


def test_no_event_files_unless_asked_for(whole):
    assert not [name for name in files_in(whole[1].folder) if "tfevents" in name]


# --- reading -----------------------------------------------------------------------------------------------------


def test_the_newest_run_comes_first(root):
    names = [f"2026010{day}-030405-head-resnet-{end}" for day, end in ((1, "ffff"), (3, "0000"), (2, "8888"))]
    folders = {name: fake(root, name) for name in names}
    assert [record.name for record in list_runs()] == sorted(names, reverse=True)
    (folders[names[1]] / "run.json").unlink()  # a damaged one keeps its place
    assert [record.name for record in list_runs()] == sorted(names, reverse=True)
    assert list_runs()[0].status == "damaged"


def test_runs_of_one_second_are_sorted_by_the_clock(root):
    fake(root, "20260102-030405-head-resnet-aaaa", started="2026-01-02T03:04:05.900+00:00")
    fake(root, "20260102-030405-head-resnet-bbbb", started="2026-01-02T03:04:05.100+00:00")
    assert [record.id for record in list_runs()] == ["aaaa", "bbbb"]


def test_only_runs_are_listed(root):
    assert list_runs() == []
    fake(root)
    fake(root, "my favourite", started="2026-01-02T03:04:06.000+00:00")  # renamed, but a run
    (root / "notes").mkdir()
    (root / ".DS_Store").write_text("")
    (root / "20260102-030405-head-resnet-cccc").write_text("a file")
    assert [record.name for record in list_runs()] == ["my favourite", "20260102-030405-head-resnet-0a0a"]


def places(content, path=()):
    """Every place in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def test_whatever_is_wrong_with_run_json_it_is_listed(root):
    """Every value of it in turn is missing or of another type."""
    folder = fake(root)
    healthy = facts_of(folder)
    gone = object()
    damaged = 0
    for place in list(places(healthy)):
        for value in (gone, None, "x", -3.5, [], {}, True):
            facts = json.loads(json.dumps(healthy))
            inner = facts
            for key in place[:-1]:
                inner = inner[key]
            if value is gone:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
            (record,) = list_runs()
            assert record.id in runs_table([record]) and record.name in str(record)
            assert bool(record.problem) == (record.status == "damaged")
            damaged += record.status == "damaged"
            if not record.problem:
                compare_runs([record, replace(record, folder=root / "other-1111")])
    assert damaged > 50


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("run.json", None, "run.json is missing"),
        ("run.json", b'{"status": "fin', "its files do not hold what they should (Unterminated string"),
        ("run.json", b"[1, 2]", "run.json holds a list"),
        ("run.json", b"\xff\xfe\x00", "its files do not hold what they should ('utf-8' codec"),
        ("run.json", b"{}", "(started is missing)"),
        ("history.csv", b"epoch,learning\n1,head\n", "(train_loss is missing)"),
        ("history.csv", b"no table at all\n1\n", "(epoch is missing)"),
        ("report.json", b"{}", "(split is missing)"),
        ("report-test.json", b'{"split": "test"}', "(accuracy is missing)"),
    ],
)
def test_a_damaged_run_says_what_is_wrong_and_the_others_are_there(root, file, content, problem, capsys):
    folder = fake(root)
    fake(root, "20260103-030405-head-resnet-1b1b")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    good, bad = list_runs()
    assert (good.status, bad.status) == ("finished", "damaged") and problem in bad.problem
    assert cli.main(["runs"]) == 0
    out = capsys.readouterr().out
    assert f"{bad.name} is damaged: " in out and problem in out
    with pytest.raises(CourseError, match=f"The run {bad.name} is damaged: "):
        load_run("0a0a")
    with pytest.raises(CourseError, match="is damaged and cannot be compared"):
        compare_runs([good, bad])


def test_a_run_whose_process_is_gone_was_killed(root):
    here = run_log.this_process()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    cases = {
        "running": here,
        "killed": here | {"pid": dead.pid},
        "killed too": here | {"born": here["born"] - 100},  # its number was given to this process since
        "running elsewhere": here | {"host": "another machine", "pid": dead.pid},
    }
    found = {}
    for i, (case, process) in enumerate(cases.items()):
        found[case] = load_run(fake(root, f"20260102-030405-head-resnet-000{i}", status="running", process=process))
    assert {case: record.status for case, record in found.items()} == {case: case.split()[0] for case in cases}
    assert psutil.pid_exists(os.getpid())


def test_a_lock_says_whether_a_run_goes_on_wherever_it_began(root):
    """A container has another host name every time, and a process number that may be another program's here."""
    elsewhere = run_log.this_process() | {"host": "another machine"}
    folder = fake(root, status="running", process=elsewhere)
    assert hold(folder) and load_run(folder).status == "running" and not hold(folder)
    with pytest.raises(CourseError, match="still going on"):
        delete_run(load_run(folder))
    let_go(folder)
    assert load_run(folder).status == "killed" and hold(folder)
    let_go(folder)
    assert delete_run(load_run(folder)) == [] and not folder.exists()


def test_without_locks_the_process_decides(root, monkeypatch):
    here = run_log.this_process()
    folders = {
        "killed": fake(root, "20260102-030405-head-resnet-0001", status="running", process=here | {"born": 1.0}),
        "running": fake(root, "20260102-030405-head-resnet-0002", status="running", process=here | {"host": "another"}),
    }

    def no_locks(*_arguments, **_options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_log.FileLock, "acquire", no_locks)
    for status, folder in folders.items():
        (folder / LOCK_FILE).touch()
        assert load_run(folder).status == status and hold(folder)


OWN = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def picture_folder(root, classes=("ant", "bee")):
    """Pictures of one colour per class, as torchvision's ImageFolder reads them."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (48, 40), (200 - 90 * k, 90 * k, 10 * i)).save(root / name / f"{i}.png")
    return root


def test_a_run_prepares_pictures_as_it_was_trained(root, tmp_path):
    folder = picture_folder(tmp_path / "photos")
    photos = ImageFolder(folder, OWN)
    paths, labels = zip(*photos.samples, strict=True)
    of_the_course = PhotoDataset(paths, labels, photos.classes, OWN)
    picture = Image.open(paths[0])
    for val in (
        photos,
        Subset(photos, [5, 0]),
        of_the_course,
        in_memory(of_the_course),
        in_memory(of_the_course).subset([1]),
    ):
        record = load_run(quick(mini(num_classes=2), photos, val, epochs=1, log="light").folder)
        assert torch.equal(record.transform()(picture), OWN(picture))
        assert list(record.facts["data"]["val"]["classes"]) == ["ant", "bee"]
        assert list(record.facts["data"]["train"]["classes"].items()) == [("ant", 3), ("bee", 3)]


@pytest.mark.parametrize("transform", [v2.Compose([OWN, v2.Lambda(lambda image: image / 2)]), None])
def test_what_cannot_be_prepared_again_is_refused_when_it_is_used(root, tmp_path, transform):
    photos = ImageFolder(picture_folder(tmp_path / "photos"), transform or OWN)
    if transform is None:
        images, labels = zip(*photos, strict=True)
        photos = TensorDataset(torch.stack(images), torch.tensor(labels))
    record = load_run(quick(mini(num_classes=2), photos, photos, epochs=1).folder)
    assert record.model()
    with pytest.raises(
        CourseError, match=r"cannot be shown new pictures by itself: .*prepare the pictures with your own"
    ):
        record.transform()


def test_class_names_are_recorded_where_labels_are_not_known(root):
    class Unlabelled(torch.utils.data.Dataset):
        classes = ("ant", "bee", "cat")

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.full((3, 32, 32), index / 6), index % 3

    data = Unlabelled()
    record = load_run(quick(mini(), data, data, epochs=1, log="light").folder)
    assert record.facts["data"]["val"]["classes"] == {"ant": None, "bee": None, "cat": None}
    assert record.data == "6 + 6: ant, bee, cat" and "ant" in str(record)


def test_a_run_is_found_by_name_end_part_or_path(whole):
    root, run, _ = whole
    for name in (run.folder.name, run.folder.name[-4:], "progressive", run.folder, str(run.folder)):
        assert load_run(name, root).folder == run.folder


def test_a_run_that_is_not_there(root):
    with pytest.raises(CourseError, match=re.escape(f"There is no run 'abcd': {root} holds none yet.")):
        load_run("abcd")
    fake(root)
    fake(root, "20260103-030405-head-resnet-1b1b")
    with pytest.raises(CourseError, match=r"There is no run '0a0b' in .* Did you mean 0a0a\? `course runs` lists all"):
        load_run("0a0b")
    with pytest.raises(CourseError, match=r"'resnet' stands in the names of 2 runs: 20260103.*, 20260102.*more"):
        load_run("resnet")
    with pytest.raises(CourseError, match=r"The newest is 20260103-030405-head-resnet-1b1b\."):
        load_run("")
    with pytest.raises(CourseError, match=r"is no folder of a run: it has no run\.json"):
        load_run(root)


@pytest.mark.parametrize("name", networks.BUILDERS)
def test_every_family_comes_back_with_the_same_answers(root, name):
    torch.manual_seed(0)
    model = networks.BUILDERS[name](num_classes=3)
    train = ColourPatches(8, seed=1, side=64)
    run = quick(model, train, train, FEATURE_EXTRACTION, epochs=1)
    with generators_untouched():
        again = load_run(run.folder).model()
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert not moved(copy_of(model), copy_of(again))
    with torch.no_grad():
        images = train.images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(model(images), again.to(memory_format=torch.channels_last)(images))


def test_a_head_with_dropout_of_ones_own_comes_back(root):
    model = FEATURE_EXTRACTION.starting_model("resnet18_mini", 3)
    model.fc = nn.Sequential(nn.Dropout(0.3), model.fc)
    record = load_run(quick(model, strategy=FEATURE_EXTRACTION, epochs=2, cache="on").folder)
    with generators_untouched():
        again = record.model()
    assert record.model_text == "resnet18_mini" and again.fc[0].p == 0.3 and not again.training
    assert not moved(copy_of(model), copy_of(again))


def test_a_network_of_ones_own_is_recorded_and_not_guessed(root):
    model = networks.NarrowResNet((16, 16, 16, 16), num_classes=3)
    record = load_run(quick(model, epochs=1).folder)
    assert record.model_text == "a NarrowResNet" and "a NarrowResNet" in runs_table([record])
    with pytest.raises(CourseError, match=r"a NarrowResNet, is none that load_pretrained builds.*best\.safetensors"):
        record.model()
    model.load_state_dict(load_file(record.folder / "best.safetensors"))


def test_why_there_are_no_weights(root):
    light = fake(root, settings={"epochs": 5, "seed": 0, "log": "light"})
    with pytest.raises(CourseError, match=r"logged with log='light'\. Train it again with log='full'"):
        load_run(light).model()
    with pytest.raises(CourseError, match="still running, and weights are written when that takes little time"):
        load_run(fake(root, "20260102-030405-head-resnet-2c2c", status="running")).model()
    with pytest.raises(CourseError, match=r"it is finished, and best\.safetensors was not written or was deleted"):
        load_run(fake(root, "20260102-030405-head-resnet-3d3d")).model()


def test_curves_of_stored_runs_can_be_drawn(whole):
    _, run, _ = whole
    figure = plots.learning_curves({"stored": load_run(run.folder)})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [record.val_loss for record in run.history]


# --- test reports ------------------------------------------------------------------------------------------------


def test_a_test_report_is_kept_with_the_run(root):
    folder = fake(root)
    assert load_run(folder).test_accuracy is None
    add_report(folder, REPORT)
    record = load_run(folder)
    assert record.test_accuracy == 0.75 and record.reports["test"]["confusion"] == [[2, 0], [1, 1]]
    assert files_in(folder) == {"run.json", "history.csv", "report-test.json", "report-test.md", "confusion-test.png"}
    assert (folder / "report-test.md").read_text(encoding="utf-8").startswith("# Answers on the test split\n")
    assert "75.0%" in runs_table([record]) and "75.0 % (30.1 to 95.4, n = 4)" in str(record)
    add_report(folder, REPORT, split="test-night")
    assert set(load_run(folder).reports) == {"test", "test-night"}


def test_reports_that_cannot_be_stored(root, monkeypatch):
    add_report(None, REPORT)  # the run has no log, and has said so
    with pytest.raises(CourseError, match=r"is no folder of a run: it has no run\.json\. Give the folder of a Run\."):
        add_report(root, REPORT)
    folder = fake(root)
    with pytest.raises(CourseError, match=re.escape("split='../test': give a short name of a-z, 0-9, - and _")):
        add_report(folder, REPORT, split="../test")
    disk_full_from(monkeypatch, 1)
    with pytest.warns(UserWarning, match="The report was not stored: .*No space left on device"):
        add_report(folder, REPORT)


# --- deleting ----------------------------------------------------------------------------------------------------


def test_a_whole_run_can_be_deleted(whole, tmp_path):
    copy = tmp_path / whole[1].folder.name
    shutil.copytree(whole[1].folder, copy)
    (copy / ".run.json.0123.partial").write_text("left by a killed process")
    add_report(copy, REPORT)
    assert delete_run(load_run(copy)) == [] and not copy.exists()


def test_what_others_put_into_a_run_stays(root):
    folder = fake(root)
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir()
    assert delete_run(load_run(folder)) == ["figures", "notes.txt"]
    assert files_in(folder) == {"figures", "notes.txt"}


def test_what_is_not_deleted(root, tmp_path):
    running = fake(root, status="running")
    with pytest.raises(CourseError, match="is still going on: stop it first"):
        delete_run(load_run(running))
    foreign = tmp_path / "another program"
    foreign.mkdir()
    (foreign / "run.json").write_text("{}")
    (record,) = list_runs(tmp_path / "nothing") or [runs.find_run(foreign)]
    with pytest.raises(CourseError, match="does not look like a run of the course: nothing was deleted"):
        delete_run(record)
    assert files_in(running) and files_in(foreign) == {"run.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_of_a_linked_run_only_the_link_goes(root, tmp_path):
    real = fake(tmp_path / "elsewhere")
    root.mkdir()
    (root / real.name).symlink_to(real, target_is_directory=True)
    (record,) = list_runs()
    delete_run(record)
    assert list_runs() == [] and files_in(real) == {"run.json", "history.csv"}


# --- comparing ---------------------------------------------------------------------------------------------------


def test_runs_that_chose_by_other_pictures_are_not_comparable(root):
    first, second = load_run(fake(root)), load_run(fake(root, "20260103-030405-head-resnet-1b1b"))
    assert "All settings are the same." in compare_runs([first, second])
    second.facts["data"]["val"]["fingerprint"] = "0" * 16
    second.facts["data"]["train"]["transform"] = "Compose(" + "RandomHorizontalFlip(p=0.5) " * 5 + ")"
    text = compare_runs([first, second])
    assert "They did not choose by the same validation pictures: their accuracies cannot be compared." in text
    assert max(map(len, text.splitlines())) < 120
    with pytest.raises(CourseError, match="two or more different runs"):
        compare_runs([first, first])
