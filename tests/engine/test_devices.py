"""devices.py: which precision a device gets, and what float16's scaling does to a training."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import Act, ColourPatches, StopAfter, copy_of, mini, moved

from course_utils.common.errors import CourseError
from course_utils.engine import devices, setup
from course_utils.engine.history import TrainingDiverged
from course_utils.engine.runs import load_run
from course_utils.fine_tuning import FEATURE_EXTRACTION, FULL, PROGRESSIVE
from course_utils.pretrained_models import last_layer
from course_utils.training import fit, last_run

TRAIN, VAL = ColourPatches(12, seed=1), ColourPatches(6, seed=2)
CPU = {"epochs": 3, "batch_size": 4, "device": "cpu", "log": "off", "cache": "off"}
RESUMED = {"log": "light", "resume": True}


# --- the precision -----------------------------------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A CUDA GPU of a compute capability; the precision that accelerate is asked for is kept."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _device: True)  # as on every GPU
    accelerator = SimpleNamespace(num_processes=1, gradient_accumulation_steps=1)
    monkeypatch.setattr(devices, "Accelerator", lambda **told: asked.append(told["mixed_precision"]) or accelerator)
    monkeypatch.setattr(devices, "forget_other_device", lambda *_: None)

    def of(major):
        properties = SimpleNamespace(major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
        return asked

    yield of
    AcceleratorState._reset_state(reset_partial_state=True)  # it believes in the GPU


@pytest.mark.parametrize(("major", "best"), [(6, "fp16"), (7, "fp16"), (8, "bf16"), (9, "bf16")])
def test_a_gpu_computes_in_what_it_has_circuits_for(pretended_gpu, major, best):
    """P100, V100 and T4 only emulate bfloat16, more slowly than they compute in float32."""
    asked = pretended_gpu(major)
    for precision in ("auto", "float16", "float32"):
        devices.make_accelerator("cuda", precision)
    assert asked == [best, "fp16", "no"]


def test_what_a_gpu_only_emulates_is_refused(pretended_gpu):
    pretended_gpu(7)
    with pytest.raises(
        CourseError, match=r"'bfloat16' is not possible on cuda: give 'auto' or one of float16, float32"
    ):
        devices.make_accelerator(None, "bfloat16")


def test_other_devices_compute_in_float32_unless_told(monkeypatch):
    assert [devices.precision_on(device) for device in ("cpu", "mps")] == ["float32", "float32"]
    assert devices.precision_on("cpu", "bfloat16") == "bfloat16"
    for device, precision in (("cpu", "float16"), ("mps", "float16"), ("mps", "bfloat16")):
        with pytest.raises(CourseError, match=f"'{precision}' is not possible on {device}"):
            devices.precision_on(device, precision)


def test_processes_on_unlike_gpus_are_told_to_agree(monkeypatch):
    monkeypatch.setattr(devices, "gather_object", lambda here: [*here, "bfloat16"])
    with pytest.raises(CourseError, match="different GPUs and would compute in bfloat16 and float32"):
        devices.make_accelerator("cpu")


def test_a_run_tells_the_precision_it_was_computed_in():
    for precision, used in (("auto", "float32"), ("bfloat16", "bfloat16")):
        run = fit(mini(), TRAIN, VAL, FULL, **CPU | {"epochs": 1, "log": "light", "precision": precision})
        assert load_run(run.folder).facts["settings"]["precision"] == used


def test_every_epoch_and_every_fit_computes_in_the_precision():
    """Other stages learn from an epoch on, and the model is not a new one for the second fit."""
    model, seen = mini(), []
    last_layer(model).register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for strategy, precision in ((PROGRESSIVE, "bfloat16"), (FULL, "float32"), (FULL, "bfloat16")):
        seen.clear()
        fit(model, TRAIN, VAL, strategy, **CPU, precision=precision)
        look, *computed = seen  # one picture, before it is settled how the run computes
        assert not look and computed == [precision == "bfloat16"] * (3 * (3 + 2))


def test_another_precision_is_another_run():
    resumed = []
    for precision in ("float32", "bfloat16", "auto"):  # the last one is the first
        hooks = [] if precision == "auto" else [StopAfter(2)]
        with contextlib.suppress(KeyboardInterrupt):
            fit(mini(), TRAIN, VAL, FULL, **CPU | RESUMED, precision=precision, hooks=hooks)
        resumed.append(last_run().resumed)
    assert resumed == [0, 0, 2]


# --- float16 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def float16(monkeypatch):
    """What fit does in float16 on a GPU, on the CPU, beginning with a scale of the loss that is given here."""

    def scaled(scale):
        devices.forget_other_device("cpu", "fp16")
        accelerator = Accelerator(cpu=True, mixed_precision="fp16")
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
        monkeypatch.setattr(setup, "make_accelerator", lambda *_: accelerator)
        return accelerator

    return scaled


def test_a_step_that_the_scaling_leaves_out_is_no_divergence(float16, recwarn):
    """The loss is finite, and only the scaled gradients are not: the scale is halved until they are."""
    accelerator, model = float16(2.0**24), mini()
    before, learned = copy_of(model), []

    class Look:
        def on_epoch_end(self, _run, model):
            learned.append(moved(before, copy_of(model)))

    run = fit(model, TRAIN, VAL, FEATURE_EXTRACTION, **CPU | {"epochs": 12}, hooks=[Look()])
    assert accelerator.scaler.get_scale() < 2.0**24  # steps were left out
    assert run.stopped == "finished" and (learned[0], learned[-1]) == (set(), {"fc.weight", "fc.bias"})
    assert all(math.isfinite(record.train_loss) for record in run.history)
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_the_schedule_counts_batches_also_those_without_a_step(float16):
    """Or a training with ten steps left out would end at the rate of ten steps before the end."""
    rates = {}
    for scale in (1.0, 2.0**24):
        accelerator = float16(scale)
        prepared, usual = [], accelerator.prepare
        accelerator.prepare = lambda optimizer, usual=usual, kept=prepared: kept.append(optimizer) or usual(optimizer)
        fit(mini(), TRAIN, VAL, FULL, **CPU)
        rates[scale] = [group["lr"] for group in prepared[0].param_groups]
    assert accelerator.scaler.get_scale() < scale and rates[1.0] == rates[scale]


def test_gradients_that_stay_no_numbers_are_divergence(float16):
    """Each step would be left out, the loss would stay as it is, and nobody would be told."""
    float16(1.0)
    model = mini()
    model.fc.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingDiverged, match=r"The gradients became .* in epoch 5: training has diverged"):
        fit(model, TRAIN, VAL, FEATURE_EXTRACTION, **CPU | {"epochs": 6})


def test_a_loss_that_is_no_number_is_divergence_in_float16_too(float16):
    float16(1.0)
    broken = Act(TRAIN, 6, lambda image: image * math.nan)
    with pytest.raises(TrainingDiverged, match=r"The loss became nan.*precision='float32'"):
        fit(mini(), broken, VAL, FULL, **CPU)


def test_float16_goes_on_where_its_scaling_was(float16):
    outcomes = []
    for hooks in ([], [StopAfter(2)], []):
        accelerator, model = float16(2.0**16), mini()
        accelerator.scaler.set_growth_interval(2)
        with contextlib.suppress(KeyboardInterrupt):
            fit(model, TRAIN, VAL, FULL, **CPU | RESUMED, hooks=hooks)
        outcomes.append((copy_of(model), accelerator.scaler.state_dict()))
    (unbroken, scaling), _, (resumed, same) = outcomes
    assert last_run().resumed == 2 and not moved(unbroken, resumed) and scaling == same
