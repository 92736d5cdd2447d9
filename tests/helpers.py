"""Small networks, small data sets, and comparisons to the last bit, shared by several test files."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import models

from course_utils import mini_models  # noqa: F401 - registers resnet18_mini
from course_utils.fine_tuning import FEATURE_EXTRACTION, FROM_SCRATCH, PROGRESSIVE
from course_utils.pretrained_models import stage_of_parameters

INITIALISERS = ("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_")
INITIALISERS += ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")


class ColourPatches(Dataset):
    """Noise with one strong colour channel, which is the label: separable, and cheap to learn."""

    classes = ("red", "green", "blue")

    def __init__(self, size: int = 12, seed: int = 0, side: int = 32):
        generator = torch.Generator().manual_seed(seed)
        self.labels = tuple(i % 3 for i in range(size))
        self.images = 0.3 * torch.randn(size, 3, side, side, generator=generator)
        for image, label in zip(self.images, self.labels, strict=True):
            image[label] += 1.5

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


def mini(seed: int = 0, num_classes: int = 3) -> nn.Module:
    """resnet18_mini with random weights, the same for the same seed."""
    return FROM_SCRATCH.starting_model("resnet18_mini", num_classes, seed=seed)


def on_meta(name: str, num_classes: int = 1000) -> nn.Module:
    """A model without memory: names, shapes and modules, but no values."""
    with torch.device("meta"), _no_initialisation():
        return models.get_model(name, weights=None, num_classes=num_classes)


def cheap_model(name: str, num_classes: int = 1000) -> nn.Module:
    """A model in eval mode with sane random values, many times faster than its own initialisation."""
    with _no_initialisation():
        model = models.get_model(name, weights=None, num_classes=num_classes)
    with torch.no_grad():
        for i, (tensor_name, tensor) in enumerate((*model.named_parameters(), *model.named_buffers())):
            if tensor.ndim > 1:
                _fill(tensor, -math.sqrt(6 / tensor[0].numel()), math.sqrt(6 / tensor[0].numel()), i)
            elif tensor_name.endswith("num_batches_tracked"):
                tensor.zero_()
            elif tensor_name.endswith(("running_mean", "bias")):
                _fill(tensor, -0.1, 0.1, i)
            else:  # scales and variances of norms
                _fill(tensor, 0.8, 1.2, i)
    return model.eval()


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


TWO_PROCESS_RUNS = (("frozen", FEATURE_EXTRACTION, 12, 2), ("progressive", PROGRESSIVE, 13, 3))
TWO_PROCESS_VAL = 9  # odd: with a batch size of 4 the last batch has one picture for two processes


def fit_in_two_processes(folder: str) -> None:
    """Fit with two CPU processes; each writes its weights and its history. For a fresh interpreter: it forks."""
    from accelerate import debug_launcher

    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    debug_launcher(_fit_on_this_rank, (Path(folder),), num_processes=2)


def _fit_on_this_rank(folder: Path) -> None:
    from dataclasses import asdict

    from accelerate import PartialState
    from safetensors.torch import save_file

    from course_utils.training import fit

    for name, strategy, size, epochs in TWO_PROCESS_RUNS:
        model = mini()
        run = fit(
            model, ColourPatches(size, seed=1), ColourPatches(TWO_PROCESS_VAL, seed=2), strategy,
            epochs=epochs, batch_size=4, seed=3, device="cpu",
        )  # fmt: skip
        state = PartialState()
        assert state.num_processes == 2
        stem = folder / f"{name}{state.process_index}"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, f"{stem}.safetensors")
        history = [asdict(record) | {"seconds": 0} for record in run.history]
        Path(f"{stem}.json").write_text(json.dumps({"history": history, "best": run.best.epoch}), encoding="utf-8")
