"""One model: peak memory, step over two forwards, and a forward from a graph."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import zoquant
from benchmarks.gpu_suite.graphs import Graphed
from benchmarks.gpu_suite.losses import Loss, row_losses
from benchmarks.gpu_suite.models import adamw_bytes, build, weights_of
from benchmarks.gpu_suite.shapes import Case
from zoquant.cli.bench.timing import in_turn, ratio, seconds, spread
from zoquant.errors import UnsupportedLayoutError

LENGTH = 64

FAILED = "FAILED:"
"""How the reason begins of a case that broke."""


def measured(case: Case, device: torch.device, *, tiny: bool, rounds: int) -> dict[str, Any]:
    """Return the figures of one case, or why there are none."""
    try:
        return _measure(case, device, tiny=tiny, rounds=rounds)
    except torch.cuda.OutOfMemoryError as error:
        return {"skipped": " ".join(str(error).split())[:200]}
    except Exception as error:  # the other cases are still worth the time of a lent GPU; the run ends with status 1
        return {"skipped": f"{FAILED} {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    finally:
        reset_peak(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(case: Case, device: torch.device, *, tiny: bool, rounds: int) -> dict[str, Any]:
    model = build(case, device, tiny=tiny)
    parameters = weights_of(model)
    loss = mean(row_losses(model, 1, LENGTH, device))
    loss()
    reset_peak(device)
    loss()
    inference = peak_gb(device)
    optimizer = zoquant.ZOSGD(zoquant.attach(model), lr=0.0)
    reset_peak(device)
    first = seconds(lambda: optimizer.step(loss))
    found: dict[str, Any] = {
        "weights": parameters, "values": optimizer.views.trainable, "first_step_seconds": first,
        "inference_peak_gb": inference, "train_peak_gb": peak_gb(device), "limit_gb": case.limit,
        "adamw_bf16_gb": adamw_bytes(parameters) / 1e9, "compared_with_adamw": case.timed,
    }  # fmt: skip
    if found["train_peak_gb"]:
        found["adamw_over_zoquant"] = found["adamw_bf16_gb"] / found["train_peak_gb"]
    for batch in (1, 16) if case.timed else (1,):
        count = rounds if case.timed else min(rounds, 3)
        found[f"batch {batch}"] = _steps(model, optimizer, batch, device, rounds=count, beside=case.timed)
    return found


def _steps(
    model: nn.Module, optimizer: zoquant.ZOSGD, batch: int, device: torch.device, *, rounds: int, beside: bool
) -> dict[str, Any]:
    losses = row_losses(model, batch, LENGTH, device)
    loss = mean(losses)
    calls: dict[str, Callable[[], Any]] = {
        "forwards": lambda: (loss(), loss()), "step": lambda: optimizer.step(loss),
    }  # fmt: skip
    recorded = mean((Graphed(losses[0]), losses[1]))
    refused = _why_not(recorded) if beside and device.type == "cuda" else "no GPU, or not timed"
    if refused is None:
        calls |= {
            "recorded forwards": lambda: (recorded(), recorded()), "recorded step": lambda: optimizer.step(recorded),
        }  # fmt: skip
    times = in_turn(calls, rounds)
    found: dict[str, Any] = {"step_seconds": spread(times["step"]), "overhead": ratio(times["step"], times["forwards"])}
    if refused is not None:
        found["not_recorded"] = refused
    else:
        found["recorded_overhead"] = ratio(times["recorded step"], times["recorded forwards"])
        found["recorded_over_step"] = ratio(times["recorded step"], times["step"])
    return found


def _why_not(recorded: Callable[[], float]) -> str | None:
    """Return why a forward cannot be recorded; None if it can."""
    try:
        recorded()
    except UnsupportedLayoutError as error:
        return str(error)
    return None


def mean(losses: Loss) -> Callable[[], float]:
    """Return a call of the mean loss, without gradients."""
    function, inputs = losses

    @torch.no_grad()
    def loss() -> float:
        return float(function(*inputs).mean())

    return loss


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Return the peak of allocated memory in GB; None on a CPU, where nobody counts it here."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
