"""A forward over packed words against the same model with dense weights, as transformers has it."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench.dense import make_dense, native_copy, shared_copy, why_not_dense
from zoquant.checkpoint.loading import default_compute_dtype
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.tasks.scoring import hidden_states

_BYTES_A_WEIGHT = 4 + 2  # a dense copy in float32 and one in bfloat16 take turns


def native_against_dense(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Return the times of forwards up to the last hidden state, and the ratios of native ones to dense ones.

    Args:
        model: a model on native layers; it is left as it was.
        ids: the batch, int64 `[batch, length]`.
        rounds: repetitions.

    Returns:
        Seconds of `native`, whose products are in the dtype that `load` takes here, of `native_activations`, whose
        activations are in bfloat16 too, of `native_float32`, `dense_float32` and `dense_bfloat16`, and the ratios; or
        `skipped` with the reason.
    """
    found: dict[str, Any] = {"batch": ids.shape[0], "length": ids.shape[1]}
    if (reason := why_not_dense(model, _BYTES_A_WEIGHT)) is not None:
        return {**found, "skipped": reason}
    dtype = default_compute_dtype(ids.device)
    models = {
        "native": native_copy(model, dtype),
        "native_activations": native_copy(model, dtype, activations=torch.bfloat16),
        "native_float32": native_copy(model, torch.float32),
        "dense_float32": make_dense(shared_copy(model), torch.float32),
        "dense_bfloat16": make_dense(shared_copy(model), torch.bfloat16),
    }
    with torch.no_grad():
        calls = {name: lambda each=each: hidden_states(each, ids) for name, each in models.items()}
        times = in_turn(calls, rounds)
    return {
        **found,
        **{f"{name}_seconds": spread(seconds) for name, seconds in times.items()},
        "native_over_dense_float32": ratio(times["native"], times["dense_float32"]),
        "native_over_dense_bfloat16": ratio(times["native"], times["dense_bfloat16"]),
        "native_activations_over_dense_bfloat16": ratio(times["native_activations"], times["dense_bfloat16"]),
        "native_float32_over_dense_float32": ratio(times["native_float32"], times["dense_float32"]),
    }
