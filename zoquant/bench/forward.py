"""A forward over packed words against the same model with dense weights."""

from typing import Any

import torch
from torch import Tensor, nn

from zoquant.bench.sample import dense_copy, with_compute_dtype
from zoquant.bench.timing import in_turn, ratio, spread
from zoquant.scoring import hidden_states


def native_against_dense(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Return the times of both in float32 and bfloat16; the model multiplies in bfloat16 afterwards."""
    found: dict[str, Any] = {"batch": ids.shape[0], "length": ids.shape[1]}
    for dtype in (torch.float32, torch.bfloat16):
        native, dense = with_compute_dtype(model, dtype), dense_copy(model, dtype)
        with torch.no_grad():
            times = in_turn(
                {
                    "native": lambda native=native: hidden_states(native, ids),  # type: ignore[misc]
                    "dense": lambda dense=dense: hidden_states(dense, ids),  # type: ignore[misc]
                },
                rounds,
            )
        found[str(dtype).removeprefix("torch.")] = {
            "native_seconds": spread(times["native"]),
            "dense_seconds": spread(times["dense"]),
            "native_over_dense": ratio(times["native"], times["dense"]),
        }
    return found
