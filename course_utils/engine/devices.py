"""Device, precision and processes of a training, by accelerate (https://huggingface.co/docs/accelerate)."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import gather_object

from course_utils.common.errors import CourseError, warn
from course_utils.settings import best_device

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # our names, and those of accelerate


def make_accelerator(device: str | None, precision: str = "auto") -> Accelerator:
    """Return accelerate's object for ``"cuda"``, ``"mps"`` or ``"cpu"`` (None: the best there is) and a precision.

    Raises
    ------
    CourseError
        If there is no such device, if it cannot compute in that precision, or if several processes were started that
        cannot meet on it.
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
    precision = precision_on("cuda" if cuda else device or best_device(), precision)
    forget_other_device(device, PRECISIONS[precision])
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=PRECISIONS[precision])
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
    everywhere = gather_object([precision])
    if len(set(everywhere)) > 1:  # one would scale its gradients and the other would not
        raise CourseError(
            f"The processes have different GPUs and would compute in {' and '.join(sorted(set(everywhere)))}. Give "
            "precision='float16' or 'float32'."
        )
    return accelerator


def precision_on(device: str, asked: str = "auto") -> str:
    """Return the precision that `asked` means on a device, ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    ``"auto"`` is float32, on CUDA the fastest: bfloat16 where the GPU computes in it (compute capability 8.0, from 2020
    on), else float16. torch emulates bfloat16 on older ones, at less than the speed of float32.

    Raises
    ------
    CourseError
        If the device cannot compute in the precision.
    """
    can = {"cpu": ("float32", "bfloat16"), "mps": ("float32",), "cuda": ("float16", "float32")}[device]
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        can = ("bfloat16", *can)
    if asked == "auto":
        return can[0]
    if asked not in can:
        raise CourseError(f"precision={asked!r} is not possible on {device}: give 'auto' or one of {', '.join(can)}.")
    return asked


def precision_of(accelerator: Accelerator) -> str:
    """Return the precision that an accelerator computes in, by our name."""
    return next(name for name, theirs in PRECISIONS.items() if theirs == accelerator.mixed_precision)


def forget_other_device(device: str | None, precision: str) -> None:
    """Reset accelerate where an earlier call chose another device or precision; it would refuse otherwise."""
    if not is_initialized() or PartialState().num_processes > 1:
        return
    other_device = PartialState().device.type != (device or best_device())
    if other_device or AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate has no public way to do this
