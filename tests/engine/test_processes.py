"""processes.py: however many processes train, they train as one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import torch
from helpers import CACHED_RUNS, LOGGED_RUNS, SHARED_RUNS, SINGLE_RUNS, copy_of, moved, moved_stages, no_hooks
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import BatchSampler
from torchvision.ops import StochasticDepth

from course_utils.common.errors import CourseError
from course_utils.engine import devices, processes
from course_utils.engine.processes import (
    Shard,
    ShardedBatchSampler,
    SyncedBatchNorm,
    all_reduce_sum,
    gather_rows,
    layers_synchronised,
    loss_of_shard,
    shard_of,
)
from course_utils.engine.runs import list_runs
from course_utils.engine.sampling import SeededOrder
from course_utils.evaluation import evaluate
from course_utils.fine_tuning import STRATEGIES

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="accelerate's debug_launcher forks")


# --- shards ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_are_even_contiguous_and_complete(whole, size):
    shards = [shard_of(whole, rank, size) for rank in range(size)]
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(whole))
    assert max(shard.size for shard in shards) - min(shard.size for shard in shards) <= 1


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_the_shares_of_all_processes_are_the_batches_of_one(size, batch_size, world, epoch, training):
    orders = [SeededOrder(size, 7) for _ in range(world + 1)]
    for order in orders:
        order.epoch = epoch
    shares = [ShardedBatchSampler(order, batch_size, rank, world, training) for rank, order in enumerate(orders[1:])]
    wanted = list(BatchSampler(orders[0], batch_size, drop_last=False))
    if training and len(wanted) > 1 and batch_size > 1 and len(wanted[-1]) == 1:
        left_over = wanted.pop()
        wanted[-1] += left_over
    assert [len(share) for share in shares] == [len(wanted)] * world
    dealt = [[batch[: part.size] for part, batch in zip(share.shards(), share, strict=True)] for share in shares]
    assert [[i for share in step for i in share] for step in zip(*dealt, strict=True)] == wanted
    assert all(len(batch) for share in shares for batch in share)  # a loader can make a batch of each


# --- layers, without starting a process --------------------------------------------------------------------------


class Threads:
    """`size` threads that talk as processes would; stands in for ``torch.distributed``."""

    def __init__(self, size):
        self.size, self.barrier, self.said = size, threading.Barrier(size, timeout=20), [None] * size
        self.local = threading.local()

    def get_world_size(self):
        return self.size

    def _exchange(self, value):
        self.said[self.local.rank] = value.clone()
        self.barrier.wait()
        heard = [value.clone() for value in self.said]
        self.barrier.wait()
        return heard

    def all_reduce(self, value):
        value.copy_(torch.stack(self._exchange(value)).sum(0))

    def all_gather(self, places, value):
        for place, heard in zip(places, self._exchange(value), strict=True):
            place.copy_(heard)

    def run(self, work):
        """``work(group)`` in every thread; the results by rank."""

        def on(rank):
            self.local.rank = rank
            group = SimpleNamespace(world_size=self.size, rank=rank, device=torch.device("cpu"), shard=None)
            try:
                return work(group)
            except BaseException:
                self.barrier.abort()
                raise

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(self.size) as pool:
            patch.setattr(processes, "dist", self)
            futures = [pool.submit(on, rank) for rank in range(self.size)]
        errors = [error for future in futures if (error := future.exception())]
        errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))  # of those who had to wait
        if errors:
            raise errors[0]
        return [future.result() for future in futures]


def of_whole_batch(layers, images, labels, loss):
    layers = layers()
    images = images.clone().requires_grad_(True)
    loss(layers(images), labels).backward()
    gradients = {name: p.grad for name, p in layers.named_parameters()}
    return {"input": images.grad, **gradients, **dict(layers.named_buffers())}


def of_shares(layers, images, labels, loss, size):
    models = [layers() for _ in range(size)]  # here, because threads share a generator

    def work(group):
        model, kinds = models[group.rank], [type(module) for module in models[group.rank].modules()]
        group.shard = shard = shard_of(len(images), group.rank, size)
        own = images[shard.start : shard.stop].clone().requires_grad_(True)
        with layers_synchronised(model, group):
            loss_of_shard(loss, model(own), labels[shard.start : shard.stop], group).backward()
        assert [type(module) for module in model.modules()] == kinds
        # DDP averages gradients of parameters; that of the input is a row's own.
        gradients = {name: all_reduce_sum(p.grad, group) / size for name, p in model.named_parameters()}
        places = range(shard.start, shard.stop)
        rows = gather_rows(own.grad, places, len(images), group) / size
        return {"input": rows, **gradients, **dict(model.named_buffers())}

    return Threads(size).run(work)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(2, 4), st.integers(0, 3), st.integers(0, 10_000), st.booleans())
def test_batch_norm_over_shares_is_batch_norm_over_the_batch(n, size, dimensions, seed, odd):
    """More processes than pictures too: then somebody has an empty share."""
    kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
    options = {"momentum": None, "affine": False} if odd else {}

    def layers():
        torch.manual_seed(seed)
        shape = [nn.Flatten(), nn.Linear(3 * 2**dimensions, 3)]
        return nn.Sequential(kind(3, eps=1e-3, **options), *shape).double()

    rng = np.random.default_rng(seed)
    images = torch.tensor(50 + rng.normal(size=(n, 3, *[2] * dimensions)))  # far from zero: sums of squares would lose
    labels = torch.tensor(rng.integers(3, size=n))
    labels[n // 2 : n - 1] = -100  # some without a label: a shard may have none
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]).double(), label_smoothing=0.1)
    whole = of_whole_batch(layers, images, labels, loss)
    for one in of_shares(layers, images, labels, loss, size):
        assert one.keys() == whole.keys()
        for name, wanted in whole.items():
            torch.testing.assert_close(one[name], wanted, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name} {m}")


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_without_any_label_has_no_loss_and_no_gradient(size):
    def work(group):
        logits = torch.randn(3, 4, requires_grad=True)
        loss = loss_of_shard(nn.CrossEntropyLoss(torch.ones(4)), logits, torch.full((3,), -100), group)
        loss.backward()
        return loss.item(), logits.grad.abs().sum().item()

    assert Threads(size).run(work) == [(0, 0)] * size


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.4), nn.Dropout(0.4, inplace=True), StochasticDepth(0.5, "row"), StochasticDepth(0.5, "batch")],
)
def test_what_is_left_out_is_drawn_for_the_whole_batch(layer):
    images = torch.randn(7, 6, 2, 2)
    torch.manual_seed(5)
    whole, after = layer(images.clone()), torch.get_rng_state()
    assert not torch.equal(whole, images)
    for shard in (Shard(0, 3, 7), Shard(3, 7, 7), Shard(7, 7, 7)):
        group = SimpleNamespace(world_size=2, device=torch.device("cpu"), shard=shard)
        with layers_synchronised(layer, group):
            torch.manual_seed(5)
            assert torch.equal(layer(images[shard.start : shard.stop].clone()), whole[shard.start : shard.stop])
            assert torch.equal(torch.get_rng_state(), after)  # or the next layer would draw other numbers
            assert torch.equal(layer.eval()(images), images)
        layer.train()


def test_frozen_layers_and_a_single_process_are_left_as_they_are():
    norm, alone = nn.BatchNorm2d(3).double(), SimpleNamespace(world_size=1)
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    with layers_synchronised(norm, alone):
        assert type(norm) is nn.BatchNorm2d
    norm.eval()
    before = copy_of(norm)
    with layers_synchronised(norm, SimpleNamespace(world_size=2, rank=0, device=torch.device("cpu"), shard=None)):
        frozen = norm(images)  # asks nobody: there is nobody to ask
    assert torch.equal(frozen, norm(images)) and not moved(before, copy_of(norm))


def test_on_every_device_it_is_the_same_layer():
    for device in ("cpu", "cuda"):
        norm = nn.BatchNorm2d(3)
        with layers_synchronised(norm, SimpleNamespace(world_size=2, device=torch.device(device))):
            assert isinstance(norm, SyncedBatchNorm) and norm.group.device.type == device
        assert type(norm) is nn.BatchNorm2d and "group" not in vars(norm)


def in_low_precision(norm, images, grad):
    """What BatchNorm gives and learns under autocast, for images and a gradient ``(n, 3, 4, 4)``."""
    x = images.clone().requires_grad_(True)
    with torch.autocast(images.device.type, images.dtype):
        y = norm(x)
    y.backward(grad)
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def same_numbers(found, wanted):
    for here, there in zip(found, wanted, strict=True):
        assert here.dtype == there.dtype
        torch.testing.assert_close(here, there, rtol=0.01, atol=0.02)


def test_in_bfloat16_it_is_batch_norm():
    images, grad = 5 + torch.randn(6, 3, 4, 4).bfloat16(), torch.randn(6, 3, 4, 4).bfloat16()

    def work(group):
        norm, own = nn.BatchNorm2d(3), slice(0, 6 if group.rank == 0 else 0)
        with layers_synchronised(norm, group):
            return in_low_precision(norm, images[own], grad[own])

    same_numbers(Threads(2).run(work)[0], in_low_precision(nn.BatchNorm2d(3), images, grad))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_by_way_of_nccl_it_is_batch_norm(dtype, tmp_path):
    images, grad = (torch.randn(6, 3, 4, 4, device="cuda").to(dtype) for _ in range(2))
    norm, group = nn.BatchNorm2d(3).cuda(), SimpleNamespace(world_size=2, device=torch.device("cuda"))
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with layers_synchronised(norm, group):
            found = in_low_precision(norm, images, grad)
    finally:
        torch.distributed.destroy_process_group()
    same_numbers(found, in_low_precision(nn.BatchNorm2d(3).cuda(), images, grad))


def test_one_value_per_channel_is_refused_as_in_one_process():
    def work(group):
        norm = nn.BatchNorm1d(3)
        with layers_synchronised(norm, group):
            norm(torch.zeros(1 if group.rank else 0, 3))

    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Threads(2).run(work)


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_process_is_explained_and_another_error_is_not(lost):
    group = SimpleNamespace(world_size=2, rank=0, device=torch.device("cpu"))
    norm = nn.BatchNorm2d(3)
    error = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1" if lost else "shapes differ")
    told = "Process 0 of 2 lost another one" if lost else "^shapes differ"
    with pytest.raises(CourseError if lost else RuntimeError, match=told), layers_synchronised(norm, group):
        raise error
    assert type(norm) is nn.BatchNorm2d


@pytest.mark.parametrize("steps", [None, "1", "8"])
def test_accelerates_accumulation_of_gradients_does_not_divide_the_loss(monkeypatch, steps):
    """``accelerate launch --gradient_accumulation_steps 8`` puts it into the environment."""
    if steps:
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator = devices.make_accelerator("cpu")
    value = torch.tensor(3.0, requires_grad=True)
    accelerator.backward(2 * value)
    assert value.grad == 2
    told = ["accumulate gradients over 8 batches. fit takes no notice"] if steps == "8" else []
    assert len(caught) == len(told) and all(part in str(one.message) for part, one in zip(told, caught, strict=True))


@pytest.mark.parametrize(("device", "company"), [(None, True), ("cpu", True), (None, False)])
def test_processes_without_a_gpu_meet_on_the_cpu(monkeypatch, device, company):
    """Without being told, accelerate gives each process a training of its own."""
    made = []

    def accelerator(**options):
        made.append(options)
        return SimpleNamespace(num_processes=2 if company else 1, gradient_accumulation_steps=1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "Accelerator", accelerator)
    monkeypatch.setenv("WORLD_SIZE", "2")
    if company:
        assert devices.make_accelerator(device).num_processes == 2
    else:
        with pytest.raises(
            CourseError, match="2 processes were started, and this one would train a network of its own"
        ):
            devices.make_accelerator(device)
    assert [options["cpu"] for options in made] == [True]


# --- two processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What ``helpers.fit_in_two_processes`` wrote. A fresh interpreter forks them: one with threads must not."""
    folder = tmp_path_factory.mktemp("two")
    root = Path(processes.__file__).parents[2]
    paths = [str(Path(helpers.__file__).parent), str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "COURSE_RUNS": str(folder / "runs"), "COURSE_ACTIVATIONS": str(folder / "activations"),
    }  # fmt: skip
    code = "import sys, helpers; helpers.fit_in_two_processes(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def outcome(folder, name):
    """Weights and story of a run; both processes have to tell the same."""
    states = [load_file(folder / f"{name}{rank}.safetensors") for rank in (0, 1)]
    stories = [json.loads((folder / f"{name}{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert not moved(*states) and stories[0] == stories[1]
    return states[0], stories[0]


def same_losses(run, story):
    """Whether a run had, to 1e-5, the losses of the story that two processes tell."""
    alone = [(record.train_loss, record.val_loss) for record in run.history]
    together = [(record["train_loss"], record["val_loss"]) for record in story["history"]]
    return np.allclose(alone, together, rtol=0, atol=1e-5)


def test_every_strategy_is_among_the_runs():
    assert {job.strategy for job in SHARED_RUNS} == set(STRATEGIES)


@LINUX
@pytest.mark.parametrize("job", SHARED_RUNS, ids=lambda job: job.name)
def test_two_processes_are_one(two_processes, job):
    state, story = outcome(two_processes, job.name)
    model, run = job.fit()
    assert len(run.history) == job.epochs and no_hooks(model)
    for alone, together in zip(run.history, story["history"], strict=True):
        assert list(alone.learning) == together["learning"]
        assert (alone.train_accuracy, alone.val_accuracy) == (together["train_accuracy"], together["val_accuracy"])
        for name in ("train_loss", "val_loss"):  # all_reduce_sum in float32, whatever the model computes in
            assert getattr(alone, name) == pytest.approx(together[name], rel=1e-6)
    assert run.best.epoch == story["best"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-7, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    assert story["classes"] == sorted({type(module).__name__ for module in model.modules()})


@LINUX
@pytest.mark.parametrize("job", SINGLE_RUNS, ids=lambda job: job.name)
def test_in_single_precision_two_processes_have_the_losses_of_one(two_processes, job):
    _, story = outcome(two_processes, job.name)
    _, run = job.fit()
    assert same_losses(run, story)


@LINUX
@pytest.mark.parametrize("job", CACHED_RUNS, ids=lambda job: job.name)
def test_two_processes_share_a_cache(two_processes, job):
    """One of them computed it and the other waited; here it is computed anew, and trained on alone."""
    state, story = outcome(two_processes, job.name)
    model, run = job.fit()
    assert run.cached and len(list((two_processes / "activations").glob(f"[!.]*-{run.cached}-*"))) == 2  # train and val
    assert same_losses(run, story)
    assert [r.val_accuracy for r in run.history] == [r["val_accuracy"] for r in story["history"]]
    start = copy_of(job.strategy.starting_model(job.model, 3))
    assert moved_stages(model, start, state) == set(run.plan.learning_at(0))


@LINUX
def test_two_processes_take_up_what_they_were_stopped_in(two_processes):
    """On machines that share no disk, each with its own place in the random numbers."""
    ends = []
    for rank in (0, 1):
        told = json.loads((two_processes / f"resumed{rank}.json").read_text(encoding="utf-8"))
        assert (told["stopped"], told["resumed"], told["moved"]) == ("interrupted", 2, [])
        unbroken, resumed = told["histories"]
        assert unbroken == resumed and len(resumed) == 3
        assert told["random"][0] == told["random"][2]
        ends.append(told["random"][0])
    assert ends[0] != ends[1]


@LINUX
@pytest.mark.parametrize("job", LOGGED_RUNS, ids=lambda job: job.name)
def test_each_sample_is_counted_once_and_frozen_stages_stay(two_processes, job):
    state, story = outcome(two_processes, job.name)
    history, val = story["history"], helpers.ColourPatches(job.val, seed=2)
    model = job.strategy.starting_model(job.model, 3)
    start = copy_of(model)
    model.load_state_dict(state)
    best, report = history[story["best"]], evaluate(model, val)
    assert best["val_accuracy"] == report.accuracy
    loss = nn.functional.cross_entropy(torch.tensor(report.probabilities).log(), torch.tensor(report.labels)).item()
    assert best["val_loss"] == pytest.approx(loss, rel=1e-4)
    for record in history:
        right = record["train_accuracy"] * job.size
        assert right == pytest.approx(round(right), abs=1e-9)
    assert moved_stages(model, start, state) == set(best["learning"])
    if job.name == "frozen":  # in float32 too, where nothing magnifies the rounding
        alone, run = job.fit()
        torch.testing.assert_close(alone.fc.weight.detach(), state["fc.weight"], rtol=1e-5, atol=1e-6)
        assert [r.train_loss for r in run.history] == pytest.approx([r["train_loss"] for r in history], abs=1e-5)


@LINUX
def test_of_two_processes_one_writes_the_log(two_processes):
    records = list_runs(two_processes / "runs")
    assert [record.facts["strategy"]["name"] for record in records] == [job.strategy.name for job in LOGGED_RUNS[::-1]]
    for record, job in zip(records, LOGGED_RUNS[::-1], strict=True):
        assert record.status == "finished" and len(record.history) == job.epochs
        assert not moved(load_file(two_processes / f"{job.name}0.safetensors"), copy_of(record.model()))
        assert record.reports["val"]["n"] == job.val
        assert record.reports["val"]["accuracy"] == record.best.val_accuracy


@LINUX
def test_what_one_process_sees_stops_all(two_processes):
    told = [json.loads((two_processes / f"spoiled{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert told[0] == told[1] and told[0]["kind"] == "TrainingDiverged" and told[0]["moved"] == []


@LINUX
def test_a_dead_process_is_an_error_for_the_other(two_processes):
    assert not (two_processes / "dead1.json").exists()
    told = json.loads((two_processes / "dead0.json").read_text(encoding="utf-8"))
    assert told["kind"] == "CourseError" and "start all of them again" in told["error"] and told["moved"] == []


@LINUX
def test_the_appendix_trains_with_two_processes(two_processes):
    told = [(two_processes / f"appendix{rank}.txt").read_text() for rank in (0, 1)]
    assert re.fullmatch(r"epoch 1: \d of 9 validation pictures right, 2 processes\n", told[0]) and told[1] == ""
