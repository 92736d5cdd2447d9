"""Small networks, small data sets, and comparisons to the last bit, shared by several test files."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import Dataset
from torchvision import models

from course_utils.engine import run_log
from course_utils.engine.history import EpochRecord
from course_utils.evaluation import Report
from course_utils.fine_tuning import (
    DISCRIMINATIVE,
    FEATURE_EXTRACTION,
    FROM_SCRATCH,
    FULL,
    LAST_BLOCK,
    PROGRESSIVE,
    STRATEGIES,
    Strategy,
)
from course_utils.mini import networks  # noqa: F401 - registers resnet18_mini
from course_utils.pretrained_models import stage_of_parameters

if TYPE_CHECKING:
    from course_utils.engine.history import Run

INITIALISERS = ("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_")
INITIALISERS += ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")


class ColourPatches(Dataset):
    """Noise with one strong colour channel, which is the label: separable, and cheap to learn."""

    classes = ("red", "green", "blue")

    def __init__(self, size: int = 12, seed: int = 0, side: int = 32, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.labels = tuple(i % 3 for i in range(size))
        self.images = 0.3 * torch.randn(size, 3, side, side, generator=generator)
        for image, label in zip(self.images, self.labels, strict=True):
            image[label] += 1.5
        self.images = self.images.to(dtype)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


class Noisy(ColourPatches):
    """Augmentation that draws from all three generators."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image) + 0.1 * random.random() + 0.1 * np.random.rand(), label


class Act(Dataset):
    """The samples of a data set; the image at the given number of accesses is what `act` makes of it."""

    def __init__(self, data: ColourPatches, access: int, act: Callable[[Tensor], Tensor]) -> None:
        self.data, self.access, self.act, self.accesses = data, access, act, 0
        self.labels, self.classes = data.labels, data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.accesses += 1
        image, label = self.data[index]
        return (self.act(image) if self.accesses == self.access else image), label


def stopped_run(fit: Callable[..., Run], *args: Any, **options: Any) -> Run:
    """The run that a Stop ended."""
    from course_utils.engine.history import TrainingStopped

    with pytest.raises(TrainingStopped) as caught:
        fit(*args, **options)
    assert isinstance(caught.value, KeyboardInterrupt) and caught.value.run.stopped == "interrupted"
    return caught.value.run


def stop_before_epoch(patch: pytest.MonkeyPatch, epoch: int) -> list[int]:
    """Let a Stop come the first time that an epoch begins, counted from 0; the epochs that began are in the list."""
    from course_utils.engine.processes import Batches

    usual, begun = Batches.of_epoch, []

    def watched(batches: Batches, number: int) -> Any:
        if hasattr(batches.order, "epoch"):  # validation has none
            begun.append(number)
            if number == epoch and begun.count(epoch) == 1:
                raise KeyboardInterrupt
        return usual(batches, number)

    patch.setattr(Batches, "of_epoch", watched)
    return begun


class StopAfter:
    """A hook: a Stop comes when so many epochs are finished."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, run: Run, _model: nn.Module) -> None:
        if len(run.history) == self.epochs:
            raise KeyboardInterrupt


def mini(seed: int = 0, num_classes: int = 3) -> nn.Module:
    """resnet18_mini with random weights, the same for the same seed."""
    return FROM_SCRATCH.starting_model("resnet18_mini", num_classes, seed=seed)


def on_meta(name: str, num_classes: int = 1000, **options: Any) -> nn.Module:
    """A model without memory: names, shapes and modules, but no values."""
    if name.startswith("regnet"):  # it computes its widths with tensors; memory that nobody writes to costs nothing
        return _built(name, num_classes, **options).to("meta")
    with torch.device("meta"):
        return _built(name, num_classes, **options)


def cheap_model(name: str, num_classes: int = 1000, **options: Any) -> nn.Module:
    """A model in eval mode with sane random values, many times faster than its own initialisation."""
    model = _built(name, num_classes, **options)
    with torch.no_grad():
        for i, (tensor_name, tensor) in enumerate((*model.named_parameters(), *model.named_buffers())):
            if tensor_name.endswith("num_batches_tracked"):
                tensor.zero_()
            elif not tensor.is_floating_point() or tensor_name.endswith("relative_coords_table"):  # a Swin's places
                continue
            elif tensor.ndim > 1 and tensor[0].numel() > 1:
                _fill(tensor, -math.sqrt(6 / tensor[0].numel()), math.sqrt(6 / tensor[0].numel()), i)
            elif tensor_name.endswith(("running_mean", "bias")):
                _fill(tensor, -0.1, 0.1, i)
            else:  # scales and variances of norms
                _fill(tensor, 0.8, 1.2, i)
    return model.eval()


def _built(name: str, num_classes: int, **options: Any) -> nn.Module:
    with _no_initialisation():
        if name.startswith("timm/"):
            import timm  # it takes a second, and most tests do not need it

            return timm.create_model(name.removeprefix("timm/"), num_classes=num_classes, **options)
        if name.startswith(("googlenet", "inception")):  # as the course builds them
            options = {"aux_logits": False, "transform_input": True, "init_weights": False} | options
        return models.get_model(name, weights=None, num_classes=num_classes, **options)


def small_pictures(name: str) -> tuple[int, dict[str, int]]:
    """Side of small pictures that a network takes, and the options to build it for them: 2 × 2 patches for a ViT."""
    patch = re.search(r"vit_[a-z]+_(\d+)|patch(\d+)_", name)
    if patch:
        side = 2 * int(patch[1] or patch[2])
        return side, {"img_size" if name.startswith("timm/") else "image_size": side}
    return {"maxvit_t": 224, "inception_v3": 128}.get(name, 64), {}


@contextlib.contextmanager
def _no_initialisation() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for initialiser in INITIALISERS:
            patch.setattr(nn.init, initialiser, lambda tensor, *_args, **_kwargs: tensor)
        yield


def _fill(tensor: Tensor, low: float, high: float, start: int) -> None:
    # Copying from a pool is several times faster than drawing VGG's 138 million numbers.
    pool = _pool()[1 + start % 999 :]
    for piece in tensor.view(-1).split(len(pool)):
        torch.mul(pool[: len(piece)], (high - low) / 2, out=piece).add_((high + low) / 2)


@functools.cache
def _pool() -> Tensor:
    return torch.empty(1_000_003).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer as it is now."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same to the last bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(_bits(before[name]), _bits(after[name]))}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def moved_stages(model: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Stages in which a tensor moved."""
    owner = stage_of_parameters(model)
    return {owner[name] for name in moved(before, after)}


@contextlib.contextmanager
def generators_untouched() -> Iterator[None]:
    """Fail when the block moves a random generator of Python, NumPy or torch."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    assert random.getstate() == before[0]
    assert np.random.get_state()[2] == before[1][2] and (np.random.get_state()[1] == before[1][1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def no_hooks(model: nn.Module) -> bool:
    """Whether no module of a model has a hook."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(module, kind) for module in model.modules() for kind in kinds)


@dataclass(frozen=True)
class SharedRun:
    """A training that several processes do together; ``tests/test_processes.py`` does it alone and compares."""

    name: str
    strategy: Strategy
    model: str = "resnet18_mini"
    size: int = 9  # with a batch size of 4 the last batch has five pictures, which two processes share unevenly
    val: int = 5
    epochs: int = 2
    dtype: torch.dtype = torch.float64  # so that rounding, which training magnifies, does not hide a wrong sum
    pictures: type[ColourPatches] = ColourPatches
    options: dict[str, Any] = field(default_factory=lambda: {"log": "off"})

    def fit(self) -> tuple[nn.Module, Run]:
        """Train, alone or as one of several."""
        from course_utils.training import fit

        model = self.strategy.starting_model(self.model, 3).to(self.dtype)
        train, val = self.pictures(self.size, 1, dtype=self.dtype), ColourPatches(self.val, 2, dtype=self.dtype)
        options = {"epochs": self.epochs, "batch_size": 4, "seed": 3, "device": "cpu"} | self.options
        return model, fit(model, train, val, self.strategy, **options)


UNBALANCED = {"label_smoothing": 0.1, "oversample": True, "patience": 5, "log": "off", "choose_by": "macro_f1"}
SHARED_RUNS = (
    *(SharedRun(s.name, s, epochs=3 if s is PROGRESSIVE else 2) for s in STRATEGIES),
    SharedRun("unbalanced", FULL, epochs=1, options=UNBALANCED),
    SharedRun("dropout and augmentation", FULL, "vgg11_mini", size=5, epochs=1, pictures=Noisy),
    SharedRun("stochastic depth", FULL, "efficientnet_b0_mini", size=5, epochs=1),
)
# In float32 rounding makes of progressive and from-scratch training something else: one process whose batches are
# turned round has other losses by 1e-4 and 2e-3 there, in these others by less than 2e-6.
SINGLE_RUNS = tuple(
    SharedRun(f"float32, {s.name}", s, dtype=torch.float32)
    for s in (FEATURE_EXTRACTION, LAST_BLOCK, DISCRIMINATIVE, FULL)
)
CACHED_RUNS = tuple(  # in float32, because activations are
    SharedRun(f"cached, {s.name}", s, dtype=torch.float32, options={"log": "off", "cache": "on"})
    for s in (FEATURE_EXTRACTION, LAST_BLOCK)
)
LOGGED_RUNS = (
    SharedRun("frozen", FEATURE_EXTRACTION, size=8, dtype=torch.float32, options={}),
    SharedRun("unfreezing", PROGRESSIVE, epochs=3, dtype=torch.float32, options={"class_weights": [1, 2, 3]}),
)


def fit_in_two_processes(folder: str) -> None:
    """Train with two CPU processes; each writes what came of it. For a fresh interpreter: it forks."""
    from accelerate import debug_launcher

    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    with contextlib.suppress(ProcessExitedException):  # at the end, one of the two is killed
        debug_launcher(_fit_on_this_rank, (Path(folder),), num_processes=2)


def _fit_on_this_rank(folder: Path) -> None:
    from accelerate import PartialState
    from safetensors.torch import save_file

    _run_the_appendix(folder)
    for job in (*SHARED_RUNS, *SINGLE_RUNS, *CACHED_RUNS, *LOGGED_RUNS):
        model, run = job.fit()
        state = PartialState()
        assert state.num_processes == 2
        stem = folder / f"{job.name}{state.process_index}"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, f"{stem}.safetensors")
        told = {"history": [asdict(record) | {"seconds": 0} for record in run.history], "best": run.best.epoch}
        told["classes"] = sorted({type(module).__name__ for module in model.modules()})
        Path(f"{stem}.json").write_text(json.dumps(told), encoding="utf-8")
    _stop_and_go_on(folder, state.process_index)
    _meet_accidents(folder, state.process_index)


class DrawsByRank:
    """A hook: before a forward pass a process draws as many numbers as its rank; ``states`` are those at the end."""

    def __init__(self, rank: int) -> None:
        self.rank, self.states = rank, []

    def on_train_begin(self, _run: Run, model: nn.Module) -> None:
        def draw(*_inputs: Any) -> None:
            torch.rand(self.rank)

        model.register_forward_pre_hook(draw)

    def on_train_end(self, _run: Run, _model: nn.Module) -> None:
        self.states.append(torch.get_rng_state().tolist())


def _stop_and_go_on(folder: Path, rank: int) -> None:
    """A run that is stopped before its last epoch and taken up again, beside one that is not.

    The second process is as if on another machine: it has other runs, and cannot read what the first one wrote.
    """
    from course_utils.engine import checkpoints
    from course_utils.training import last_run

    job = SharedRun("resumed", PROGRESSIVE, epochs=3, dtype=torch.float32, options={"log": "light", "resume": True})
    draws, no_disk = DrawsByRank(rank), mock.Mock(side_effect=FileNotFoundError("it lies on another machine"))
    whole, unbroken = replace(job, options={"log": "off", "hooks": [draws]}).fit()
    with (
        mock.patch.dict(os.environ, {"COURSE_RUNS": str(folder / f"resumed on {rank}")}),
        mock.patch.object(checkpoints, "read_checkpoint", checkpoints.read_checkpoint if rank == 0 else no_disk),
    ):
        # A Ctrl-C in the terminal reaches all of them.
        with contextlib.suppress(KeyboardInterrupt):
            replace(job, options=job.options | {"hooks": [StopAfter(2), draws]}).fit()
        stopped = last_run()
        model, run = replace(job, options=job.options | {"hooks": [draws]}).fit()
    told = {"stopped": stopped.stopped, "resumed": run.resumed, "moved": sorted(moved(copy_of(whole), copy_of(model)))}
    told["random"] = draws.states
    told["histories"] = [[asdict(r) | {"seconds": 0} for r in one.history] for one in (unbroken, run)]
    (folder / f"resumed{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def _run_the_appendix(folder: Path) -> None:
    """``appendix/bare_ddp.py`` on few pictures; the launcher has brought the processes together already."""
    from course_utils.datasets import open_dataset

    os.environ["EPOCHS"] = "1"
    script = Path(__file__).parents[1] / "appendix" / "bare_ddp.py"
    spec = importlib.util.spec_from_file_location("bare_ddp", script)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    counts = {"train": 4, "val": 3, "test": 1}  # of each of the three classes
    module.open_dataset = lambda name: open_dataset(name, cache=folder / "cache", counts=counts)
    with (
        mock.patch.object(module.dist, "init_process_group"),
        mock.patch.object(module.dist, "destroy_process_group"),
        open(folder / f"appendix{module.dist.get_rank()}.txt", "w") as told,
        contextlib.redirect_stdout(told),
    ):
        module.main()


def _meet_accidents(folder: Path, rank: int) -> None:
    """A picture that is no number, then a death, each in the second process alone; both tell what they saw."""
    from course_utils.common.errors import CourseError
    from course_utils.training import fit

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends the first process when the second is dead
    for name, act in (("spoiled", lambda image: image * math.nan), ("dead", lambda image: os._exit(9))):
        model = mini()
        start = copy_of(model)
        try:
            train = Act(ColourPatches(12, seed=1), 6, act if rank == 1 else lambda image: image)
            fit(model, train, ColourPatches(7, seed=2), FULL, batch_size=4, device="cpu", log="off")
        except CourseError as error:
            told = {"error": str(error), "kind": type(error).__name__, "moved": sorted(moved(start, copy_of(model)))}
            (folder / f"{name}{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def fake_run(root: Path, name: str = "20260102-030405-head-resnet-0a0a", epochs: int = 2, **changes: Any) -> Path:
    """Write the folder of a run that never ran; `changes` replace values of its ``run.json``."""
    folder = root / name
    folder.mkdir(parents=True)
    data = {"pictures": 12, "classes": {"cat": 6, "dog": 6}, "transform": None, "fingerprint": "f" * 16}
    facts = {
        "format": 1, "status": "finished", "error": None, "seconds": 3.0, "epochs": epochs, "best": None,
        "started": f"{name[:4]}-{name[4:6]}-{name[6:8]}T{name[9:11]}:{name[11:13]}:{name[13:15]}.000+00:00",
        "settings": {"epochs": 5, "seed": 0, "batch_size": 16, "log": "full"},
        "strategy": {"name": "head", "rates": [0.01]}, "plan": [],
        "model": {"name": "resnet18_mini", "class": "NarrowResNet", "family": "resnet", "parameters": 9, "outputs": 2},
        "data": {"train": data, "val": dict(data)}, "versions": {"torch": "2.15.0"},
        "machine": {"device": "cpu"}, "git": None, "process": run_log.this_process(),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts | changes), encoding="utf-8")
    history = [EpochRecord(i, ("head",), 1.0, 0.5, 1.0 / (i + 1), 0.5 + 0.1 * i, 1.5) for i in range(epochs)]
    run_log.write_history(folder / "history.csv", history)
    return folder


REPORT = Report(("cat", "dog"), np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]))


def red_and_blue(folder: Path, count: int) -> Path:
    """Write two classes of `count` pictures, noise around red and noise around blue, and return the folder."""
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder
