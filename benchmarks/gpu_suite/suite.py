"""All parts, one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu_suite.bandwidth import noise_bandwidth
from benchmarks.gpu_suite.cases import measured
from benchmarks.gpu_suite.checks import check_kernels, multipliers
from benchmarks.gpu_suite.products import products
from benchmarks.gpu_suite.shapes import CASES
from zoquant.cli.bench.machine import machine

PARTS = ("checks", "noise", "products", "cases")

Done = Callable[[dict[str, Any]], None]
"""Is told what there is so far, after every part and every case: a run that is cut off leaves its figures."""


def suite(
    device: torch.device, *, tiny: bool, rounds: int, only: str = "", parts: Sequence[str] = PARTS, done: Done
) -> dict[str, Any]:
    """Return what was measured.

    Args:
        device: the device.
        tiny: small shapes: whether it runs, not what it costs.
        rounds: repetitions.
        only: part of a model's name: other cases are left out.
        parts: some of `PARTS`.
        done: is told what there is so far.
    """
    torch.manual_seed(0)
    found: dict[str, Any] = {"kind": "gpu-suite", "tiny": tiny, "machine": machine(device)}
    if "checks" in parts:
        found |= {"checks": check_kernels(device), "multipliers": multipliers(device)}
        done(found)
    if "noise" in parts:
        found["noise"] = noise_bandwidth(1 << (14 if tiny else 26), device, rounds)
        done(found)
    if "products" in parts:
        found["products"] = products(device, tiny=tiny, rounds=rounds)
        done(found)
    for case in CASES if "cases" in parts else ():
        if only in case.model:
            name = f"{case.model}, {case.format}"
            found.setdefault("cases", {})[name] = measured(case, device, tiny=tiny, rounds=rounds)
            done(found)
    return found
