"""Leave things as they were found: random generators, and the modes of a network's modules."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def generator_states() -> dict[str, Any]:
    """Return where the global generators of Python, NumPy, torch and CUDA are.

    The dict has tensors and plain values only, so that ``torch.load(weights_only=True)`` reads it back.
    """
    numpy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "rest": (numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generator_states(saved: Mapping[str, Any]) -> None:
    """Put the global generators where :func:`generator_states` found them."""
    random.setstate(saved["python"])
    np.random.set_state(("MT19937", saved["numpy"]["key"].numpy().astype(np.uint32), *saved["numpy"]["rest"]))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])


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
    gpus = torch.cuda.get_rng_state_all() if seed is not None and torch.cuda.is_available() else None
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
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


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
