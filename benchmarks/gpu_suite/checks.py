"""What the kernels of a GPU give, against the torch code on the CPU."""

import copy
from typing import Any

import torch

import zoquant
from benchmarks.gpu_suite.weights import PACKED
from zoquant.kernels.noise.source import NoiseSource
from zoquant.native import FieldSpec, QuantLinear, Values, VectorWeight
from zoquant.native.compiled import multiplied
from zoquant.native.values import row_groups

CPU = torch.device("cpu")
BOUND = 5e-3
"""Relative distance of a product in bfloat16 from float64: torch rounds the sum to bfloat16, Triton does not."""


def check_kernels(device: torch.device) -> dict[str, Any]:
    """Return for each kernel whether it agrees: products within `BOUND`, everything else bit for bit."""
    return {**_noise(device), "writes": _same_writes(device), **_products(device)}


def multipliers(device: torch.device) -> dict[str, str]:
    """Return who multiplies with the matrices of each format: `"triton"` or `"torch"`."""
    found = {}
    for name, made in PACKED.items():
        packed, x = made(64, 256, device), torch.randn(4, 256, device=device)
        found[name] = "torch" if multiplied(x, packed, torch.float32) is None else "triton"
    return found


def _noise(device: torch.device) -> dict[str, bool]:
    counts = [100_000, 7, 4096]
    keys = [f"layers.{number}.d" for number in range(len(counts))]
    size = sum(-(-count // 128) * 128 for count in counts)
    found = {}
    for kind in ("rademacher", "gaussian"):
        here, there = (NoiseSource(keys, counts, kind, place) for place in (device, CPU))
        there.kernels = None
        drawn = here.draw(2**63 + 9, 0, torch.empty(size, device=device)).cpu()
        sums = [torch.zeros(size, device=place) for place in (device, CPU)]
        for source, total in zip((here, there), sums, strict=True):
            source.accumulate(total, 0, [3], [0.1])
            source.accumulate(total, 0, [5, 2**64 - 1], [0.2, -0.3])
        found[f"{kind} noise"] = torch.equal(drawn, there.draw(2**63 + 9, 0, torch.empty(size)))
        found[f"{kind} sums"] = torch.equal(sums[0].cpu(), sums[1])
    return found


def _same_writes(device: torch.device) -> bool:
    """Whether a probe writes the same bytes on the device as on the CPU."""
    stored = []
    for place in (device, CPU):
        generator = torch.Generator().manual_seed(0)
        scales = (torch.rand(64, 38, generator=generator) * 0.01).half().to(place)
        packed = VectorWeight(
            "check", torch.zeros(64, 38, 1, dtype=torch.int16, device=place),
            (FieldSpec("codebooks", "codebook", torch.float16), torch.zeros(1, 2, 1, 8, device=place).half()),
            Values(FieldSpec("scales", "scale", torch.float16), scales, row_groups),
        )  # fmt: skip
        views = zoquant.attach(QuantLinear(packed, compute_dtype=torch.float32))
        views.buffers[0].delta.copy_(torch.randn(views.buffers[0].delta.numel(), generator=generator) * 0.1)
        views.write(seed=11, eps=0.03, noise="gaussian")
        stored.append(scales.cpu())
    return torch.equal(*stored)


def _products(device: torch.device) -> dict[str, bool]:
    found = {}
    for name, made in PACKED.items():
        packed = made(96, 384, CPU)
        there, x = copy.deepcopy(packed).to(device), torch.randn(5, 384)
        found[f"{name} decoding"] = torch.equal(there.dequantize().cpu(), packed.dequantize())
        product = there.product(x.to(device), torch.bfloat16).cpu().double()
        exact = x.bfloat16().double() @ packed.dequantize().bfloat16().double().t()
        found[f"{name} products"] = bool((product - exact).norm() <= BOUND * exact.norm())
    return found
