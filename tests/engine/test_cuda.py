"""What only a GPU can show: everything here is skipped without one, and takes some minutes with one.

``python -m pytest tests/engine/test_cuda.py tests/test_gradcam.py -k "cuda or gpu"``; with two GPUs, two processes too.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ColourPatches, StopAfter, mini

from course_tools.photos.probes import with_probe_as_head
from course_utils.common.errors import CourseError
from course_utils.common.state import gpu_states
from course_utils.engine.devices import precision_on
from course_utils.engine.provenance import weights_digest
from course_utils.engine.runs import load_run
from course_utils.evaluation import evaluate, probe
from course_utils.experiments.cam_checks import randomise_stage
from course_utils.feature_extraction import extract_features
from course_utils.fine_tuning import FULL, LAST_BLOCK, PROGRESSIVE, Strategy
from course_utils.training import fit, last_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
DEVICE = "cuda"
HEAD = Strategy("head", starts=(0, None), rates=(1e-2,))
TRAIN, VAL = ColourPatches(48, seed=1), ColourPatches(24, seed=2)


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def precision(request):
    """Each precision that this GPU computes in."""
    try:
        return precision_on(DEVICE, request.param)
    except CourseError as error:
        pytest.skip(str(error))


def quick(model, strategy=FULL, train=TRAIN, val=VAL, **options):
    settings = {"epochs": 3, "batch_size": 8, "log": "off", "cache": "off", "device": DEVICE}
    return fit(model, train, val, strategy, **settings | options)


def losses(run):
    return [record.val_loss for record in run.history]


def with_dropout():
    return FULL.starting_model("efficientnet_b0_mini", 3, seed=0)


class Generators:
    """A hook: where the GPU's generator was before the first epoch and after each."""

    def __init__(self):
        self.states = []

    def on_train_begin(self, _run, _model):
        self.on_epoch_end()

    def on_epoch_end(self, *_):
        self.states.append(gpu_states()[0].tolist())


# --- precision ---------------------------------------------------------------------------------------------------


def test_a_training_learns(precision):
    model, seen = mini(), set()

    def look(_module, inputs):
        dtype = torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else torch.float32
        seen.add((dtype, inputs[0].device.type, inputs[0].is_contiguous(memory_format=torch.channels_last)))

    hook = model.conv1.register_forward_pre_hook(look)
    run = quick(model, PROGRESSIVE, epochs=6, log="full", precision=precision)
    hook.remove()
    assert seen == {(getattr(torch, precision), DEVICE, True)}
    assert run.stopped == "finished" and run.history[-1].train_loss < run.history[0].train_loss
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, DEVICE)}
    facts = load_run(run.folder).facts
    assert facts["settings"]["precision"] == precision and facts["machine"]["device_name"]
    # Measured in float32, and by the copy that was stored.
    stored = load_run(run.folder).model().to(DEVICE)
    assert abs(evaluate(stored, VAL).accuracy - run.best.val_accuracy) <= 1 / len(VAL)


def test_float32_comes_to_what_the_cpu_comes_to():
    wanted = losses(quick(mini(), HEAD, device="cpu", precision="float32"))
    assert losses(quick(mini(), HEAD, precision="float32")) == pytest.approx(wanted, rel=2e-2)  # TF32 has ten bits


def test_cached_activations_are_those_of_the_whole_network(precision):
    runs = [quick(mini(), LAST_BLOCK, cache=cache, precision=precision) for cache in ("off", "on")]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=5e-2, abs=1e-2)


def test_a_broken_picture_is_divergence(precision):
    broken = ColourPatches(48, seed=1)
    broken.images[5] *= math.nan
    with pytest.raises(CourseError, match=r"The loss became nan in epoch 1"):
        quick(mini(), train=broken, precision=precision)


# --- random numbers, stop and resume -----------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["off", "on"])
def test_dropout_draws_by_the_seed(cache):
    torch.manual_seed(99)
    before, first = gpu_states(), {}
    for seed in (7, 7, 8):
        hook = Generators()
        run = quick(with_dropout(), LAST_BLOCK, seed=seed, cache=cache, hooks=[hook])
        first.setdefault(seed, []).append((hook.states, losses(run)))
    assert all(torch.equal(one, other) for one, other in zip(gpu_states(), before, strict=True))
    (states, one), (same, other) = first[7]
    assert states == same and one == pytest.approx(other, rel=1e-2)
    assert states[0] != states[-1] and first[8][0][0][0] != states[0]


def test_the_callers_generator_is_left_alone_by_what_draws_on_the_gpu():
    model = mini().to(DEVICE)
    features, labels = extract_features(model, VAL)
    fitted = probe(1.0).fit(features.numpy(), labels.numpy())
    before = gpu_states()
    with_probe_as_head(model, fitted, 3)
    randomise_stage(model, "head")
    assert all(torch.equal(one, other) for one, other in zip(gpu_states(), before, strict=True))


def test_a_stopped_run_goes_on_where_it_was(precision):
    seen = []
    for stop in ([], [StopAfter(2)], []):
        hook = Generators()
        with contextlib.suppress(KeyboardInterrupt):
            quick(with_dropout(), epochs=4, log="light", resume=True, precision=precision, hooks=[hook, *stop])
        seen.append((hook.states, losses(last_run())))
    (unbroken, wanted), _, (resumed, found) = seen
    assert last_run().resumed == 2 and resumed[1:] == unbroken[3:]
    assert found == pytest.approx(wanted, rel=5e-2, abs=1e-2)


# --- memory ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_of(size):
    """Let this process have so many bytes of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_is_too_big_is_computed_in_pieces():
    large = {"train": ColourPatches(64, seed=1, side=224), "val": ColourPatches(6, seed=2, side=224)}
    options = large | {"batch_size": 64, "epochs": 1, "precision": "float32"}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    quick(mini(), **options)
    with memory_of(0.6 * torch.cuda.max_memory_reserved()), pytest.warns(UserWarning, match="Not enough memory for 64"):
        run = quick(mini(), **options)
    assert run.stopped == "finished" and math.isfinite(run.history[0].train_loss)


def test_a_gpu_without_room_is_one_sentence():
    torch.cuda.empty_cache()
    with memory_of(torch.cuda.memory_reserved() + 1024), pytest.raises(CourseError, match="memory"):
        quick(FULL.starting_model("resnet18", 3, weights=None))


# --- several processes, and how fast -----------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU of its own for every process")
def test_two_gpus_train_as_one(tmp_path):
    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (Path(tmp_path, str(rank)).read_text(encoding="utf-8") for rank in (0, 1))
    assert one == other
    assert float(one.split()[1]) == pytest.approx(losses(_shared_training()[1])[-1], rel=2e-2)


def _shared_training():
    """Without stages that learn late, whose rounding grows; nine pictures leave a last batch of one."""
    model = mini()
    return model, quick(model, HEAD, train=ColourPatches(9, seed=1), epochs=2, precision="float32")


def test_the_benchmark_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_throughput

    gpu_throughput.main(["--quick"])
    assert "of the bare loop's images per second" in capsys.readouterr().out


if __name__ == "__main__":  # one of the two processes
    model, run = _shared_training()
    text = f"{weights_digest(model.state_dict())} {losses(run)[-1]}"
    Path(sys.argv[1], os.environ["RANK"]).write_text(text, encoding="utf-8")
