"""Device, precision and processes of a training, by accelerate (https://huggingface.co/docs/accelerate)."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, is_initialized

from course_utils.common.errors import CourseError, warn
from course_utils.settings import best_device


def make_accelerator(device: str | None) -> Accelerator:
    """Return accelerate's object for ``"cuda"`` (mixed precision), ``"mps"`` or ``"cpu"``; None takes the best device.

    Raises
    ------
    CourseError
        If there is no such device, or if several processes were started that cannot meet on it.
    """
    if device not in (None, "cpu", "cuda", "mps"):
        raise CourseError(f"device={device!r} is unknown: give 'cuda', 'mps' or 'cpu', or None for the best there is.")
    cuda = device in (None, "cuda") and torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise CourseError(
            "device='cuda' was asked for and torch sees no GPU; `course doctor` says more. Use device=None."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise CourseError("device='mps' was asked for and this is not a Mac whose GPU torch can use. Use device=None.")
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > 1 and not cuda and device is None:
        device = "cpu"  # accelerate looks for other processes on CUDA, or on the CPU when that is asked for
    precision = "no"
    if cuda:
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    forget_other_device(device, precision)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    if accelerator.gradient_accumulation_steps != 1:  # from the environment; accelerate would divide every loss by it
        warn(
            f"accelerate was told to accumulate gradients over {accelerator.gradient_accumulation_steps} batches. fit "
            "takes no notice: every batch is a step of its own. Give a larger batch_size instead; where the memory is "
            "too small for it, fit computes a batch in pieces."
        )
        accelerator.gradient_accumulation_steps = 1
    if started > 1 and accelerator.num_processes == 1:
        raise CourseError(
            f"{started} processes were started, and this one would train a network of its own. Several processes meet "
            "on CUDA or on the CPU: use device=None or 'cpu'. The first call of fit in a process decides."
        )
    return accelerator


def forget_other_device(device: str | None, precision: str) -> None:
    """Reset accelerate where an earlier call chose another device or precision; it would refuse otherwise."""
    if not is_initialized() or PartialState().num_processes > 1:
        return
    other_device = PartialState().device.type != (device or best_device())
    if other_device or AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate has no public way to do this
