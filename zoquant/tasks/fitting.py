"""Measuring many examples where memory may run out: a group that does not fit goes through in halves.

What is measured belongs to single examples, so that it does not depend on the groups but for the last bits.
"""

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from zoquant.errors import DoesNotFitError, one_line
from zoquant.kernels.out_of_memory import is_out_of_memory, release_memory

T = TypeVar("T")
log = logging.getLogger("zoquant")


def in_groups(groups: Iterable[list[int]], measure: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Yield groups of examples with what was measured on each, in their order.

    Once one did not fit in memory, it and all later ones are cut to the half of it.

    Raises:
        DoesNotFitError: one example alone does not fit.
    """
    most = sys.maxsize
    for group in groups:
        waiting = deque([group])
        while waiting:
            some = waiting.popleft()
            if len(some) > most:
                middle = len(some) // 2
                waiting.extendleft([some[middle:], some[:middle]])
                continue
            try:
                found = measure(some)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                said = one_line(error, 200)
            else:
                yield some, found
                continue
            # Out here the error is gone, and with it the activations that its frames held.
            release_memory()
            most = _smaller(len(some), said)
            waiting.appendleft(some)


def _smaller(count: int, said: str) -> int:
    """Return how many examples to go on with after so many did not fit."""
    if count == 1:
        raise DoesNotFitError(
            f"evaluation: one example alone does not fit in memory: {said}. Shorten the examples, take a smaller "
            "compute_dtype, or more memory."
        )
    most = (count + 1) // 2
    log.warning("evaluation: out of memory (%s). From here on at most %d examples go through at a time.", said, most)
    return most
