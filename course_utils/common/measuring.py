"""How long something takes, and how much memory."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil

LOOK_EVERY = 0.02  # seconds between two looks at the process


class Measured:
    """A block whose seconds and peak of memory are known afterwards.

    On a GPU the peak is torch's own count of what was allocated there. Elsewhere it is the resident memory of the
    whole process, looked at fifty times a second: Python, torch and the pictures are in it, so it says what a machine
    needs to have, and what earlier work left behind is in it too.

    Parameters
    ----------
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``.

    Attributes
    ----------
    seconds
        Of the block.
    memory
        Peak in bytes.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.on_gpu = device == "cuda"
        self.seconds, self.memory = 0.0, 0

    def __enter__(self) -> Measured:
        self._start = time.perf_counter()
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._look()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_gpu:
            import torch

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
