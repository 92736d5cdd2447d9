"""Seconds and memory of a block, and the circumstances of a measurement."""

from __future__ import annotations

import platform
import threading
import time
from datetime import UTC, datetime

import psutil
import torch

LOOK_EVERY = 0.02  # seconds between two looks at the process


class Measured:
    """A block whose seconds and peak of memory are known afterwards.

    On a GPU the peak is torch's own count of what was allocated there. Elsewhere it is the resident memory of the
    whole process, read fifty times a second. Python, torch, the pictures and remains of earlier work are part of it:
    it is the memory that a machine needs.

    The device is ``"cuda"``, ``"mps"`` or ``"cpu"``; `memory` is the peak in bytes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.on_gpu = device == "cuda"
        self.seconds, self.memory = 0.0, 0

    def __enter__(self) -> Measured:
        self._start = time.perf_counter()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._look()
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            self.memory = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._watcher.join()
            self._look()
        self.seconds = time.perf_counter() - self._start

    def _watch(self) -> None:
        while not self._done.wait(LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        self.memory = max(self.memory, self._process.memory_info().rss)


def hardware(device: str) -> str:
    """Return one line about the machine that numbers were measured on; `device` as in :class:`Measured`."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def circumstances(command: str, device: str) -> dict[str, str]:
    """Return the beginning of a results file: command, date, hardware and Python version.

    The command repeats the measurement, without private paths; `device` as in :class:`Measured`.
    """
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(device),
        "python": platform.python_version(),
    }
