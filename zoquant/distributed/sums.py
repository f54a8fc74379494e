"""Sums over all ranks: the gradient of a step whose micro-batches they share."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from zoquant.distributed.exchange import gathered
from zoquant.errors import RankError


def add_up(tensors: Sequence[Tensor], failure: Exception | None) -> None:
    """Add up tensors over all ranks, in place; all of them get the same bytes.

    Args:
        tensors: of the same shapes and dtypes on every rank.
        failure: what kept this rank from computing its part; None if nothing did.

    Raises:
        Exception: the failure of this rank.
        RankError: another rank failed; its number is named. Nothing was added.
    """
    failed = [rank for rank, (bad,) in enumerate(gathered([int(failure is not None)])) if bad]
    if failure is not None:
        raise failure
    if failed:
        raise RankError(f"rank {failed[0]} could not compute its part of the step; its own error says why.")
    for tensor in tensors:
        dist.all_reduce(tensor)
