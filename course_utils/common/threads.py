"""Work in threads, with the results in order; and how Python starts processes here."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """Return the number of threads that decode pictures: one per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def start_method() -> str:
    """Return the start method of ``multiprocessing`` in this program, and leave an open choice open.

    The first of ``get_all_start_methods`` is Python's default; asked for the method itself, Python would fix it.
    """
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, and compute the next ones meanwhile in several threads.

    Threads are enough for decoding pictures: Pillow releases Python's lock while it does that. `items` are read one by
    one, `ahead` of the results: so many (at least 0) may wait in memory.
    """
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(max_workers=thread_count())
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, or a Stop, nobody waits for the rest
