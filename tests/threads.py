"""A number of threads for a while, and forwards in several of them at once."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch
from torch import Tensor

TIMES = 40


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, and what zoquant compiles, use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_once(forwards: Sequence[Callable[[], Tensor]]) -> None:
    """Compare what every forward gives beside the others, each in its thread, many times, with what it gave alone."""
    alone, start, interval = [forward() for forward in forwards], Barrier(len(forwards)), sys.getswitchinterval()

    def work(number: int) -> int:
        start.wait()
        return sum(not torch.equal(forwards[number](), alone[number]) for _ in range(TIMES))

    sys.setswitchinterval(1e-6)  # threads take turns as often as Python lets them
    try:
        with threads(1), ThreadPoolExecutor(len(forwards)) as pool:
            wrong = list(pool.map(work, range(len(forwards))))
    finally:
        sys.setswitchinterval(interval)
    assert wrong == [0] * len(forwards), f"of {TIMES} forwards in each thread so many differ"
