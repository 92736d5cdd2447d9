"""Leave things as they were found: random generators, and the modes of a network's modules."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def generator_states() -> dict[str, Any]:
    """Return where the global generators of Python, NumPy, torch and of this process's GPU are.

    The dict has tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it back. Without a GPU,
    ``"gpu"`` is None.
    """
    # Not those of all GPUs: a process uses one, sees the others where they never were, and may see fewer the next time.
    gpus, own = gpu_states(), torch.cuda.current_device() if torch.cuda.is_available() else 0
    numpy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "rest": (numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "gpu": gpus[own] if gpus else None,
    }


def set_generator_states(saved: Mapping[str, Any]) -> None:
    """Put the global generators where :func:`generator_states` found them, that of every GPU to the same place."""
    random.setstate(saved["python"])
    np.random.set_state(("MT19937", saved["numpy"]["key"].numpy().astype(np.uint32), *saved["numpy"]["rest"]))
    torch.set_rng_state(saved["torch"])
    if saved["gpu"] is not None:
        set_gpu_states([saved["gpu"]] * len(gpu_states()))


def gpu_states() -> list[Tensor]:
    """Return where the generators of all GPUs are, CUDA's or Apple's (MPS); an empty list without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_rng_state_all()
    return [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []


def set_gpu_states(states: Sequence[Tensor]) -> None:
    """Put the generators of all GPUs where :func:`gpu_states` found them."""
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states)
    elif states:
        torch.mps.set_rng_state(states[0])


def generator_marks() -> tuple[Any, ...]:
    """Return a value that stays equal while nothing draws from the global generators of Python, NumPy and torch."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


@contextlib.contextmanager
def generators_put_back(seed: int | None = None) -> Iterator[None]:
    """Put the generators of Python, NumPy and torch back after the block; seed them for the block if asked.

    The seed is at least 0 and that of the GPUs too; with None the generators stay where they are when the block begins.
    """
    # By hand, because generator_states copies the 624 numbers of NumPy's generator: this runs for every picture.
    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.default_generator.get_state()
    gpus = [] if seed is None else gpu_states()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(cpu)
        if gpus:
            set_gpu_states(gpus)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Give the model in eval mode and without gradients; put every module back into its mode after the block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
