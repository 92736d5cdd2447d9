"""The average of a network's weights over its last steps, which is often better than the weights themselves.

Polyak, B. & Juditsky, A. (1992). Acceleration of Stochastic Approximation by Averaging.
https://doi.org/10.1137/0330046
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of all weights and buffers of a model; it changes nothing while `decay` is None.

    After step t the average keeps the share min(`decay`, t / (t + 9)) of itself, so that a short run is not ruled by
    the weights that it began with (as in TensorFlow's ``ExponentialMovingAverage``).

    The attribute ``tensors`` holds the average; inside of :meth:`in_place`, the weights that it changed places with.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay, self.steps, self.swapped = decay, 0, False
        self.tensors: dict[str, Tensor] = {}
        if decay is not None:
            self.tensors = {name: tensor.detach().clone() for name, tensor in _own(model).items()}

    def update(self, model: nn.Module) -> None:
        """Take the weights after a step into the average."""
        if self.decay is None:
            return
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + 9))
        with torch.no_grad():
            for name, tensor in _own(model).items():
                self.tensors[name].lerp_(tensor, 1 - keep)

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Give the model the average while the block runs, and its own weights afterwards.

        After a Stop in the block it keeps the average: that is what was validated.
        """
        self._swap(model)
        yield
        self._swap(model)

    def _swap(self, model: nn.Module) -> None:
        if self.decay is None:
            return
        with torch.no_grad():
            for name, tensor in _own(model).items():
                other = tensor.clone()
                tensor.copy_(self.tensors[name])
                self.tensors[name] = other
        self.swapped = not self.swapped

    def learning_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the state of the model with the weights that the optimizer works on."""
        return model.state_dict() | (self.tensors if self.swapped else {})

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Return the average and its number of steps, for a checkpoint; empty without one."""
        return (
            {}
            if self.decay is None
            else {"steps": self.steps, "tensors": _own(model) if self.swapped else self.tensors}
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.steps = state.get("steps", 0)
        for name, tensor in state.get("tensors", {}).items():
            self.tensors[name].copy_(tensor)


def _own(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of numbers that can be averaged: not BatchNorm's count of batches."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
