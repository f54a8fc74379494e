"""What noise, perturbation and cast move a second, over a plain copy."""

from collections.abc import Callable
from typing import Any

import torch

import zoquant
from benchmarks.gpu_suite.weights import gptq
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.native import QuantLinear


def noise_bandwidth(values: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the share of the copy's bandwidth that a probe of about so many values reaches, for each noise."""
    packed = gptq(max(1, values // 4096) * 128, 4096, device)
    views = zoquant.attach(QuantLinear(packed, compute_dtype=torch.bfloat16))
    buffer = views.buffers[0]
    moved = 2 * views.trainable * 2 + 4 * views.trainable
    room = torch.empty(2, moved // 2, dtype=torch.uint8, device=device)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: room[0].copy_(room[1])}
    for kind in ("rademacher", "gaussian"):
        calls[kind] = lambda kind=kind: buffer.write(seed=7, eps=0.0, noise=kind)  # type: ignore[misc]
    times = in_turn(calls, rounds)
    shares = {kind: ratio(times["copy"], times[kind]) for kind in ("rademacher", "gaussian")}
    return {"values": views.trainable, "copy_gb_a_second": moved / spread(times["copy"])["median"] / 1e9, **shares}
