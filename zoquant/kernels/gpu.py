"""Triton kernels for tensors of a GPU: optional, tried once, equal to the torch code bit for bit."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from zoquant.errors import one_line
from zoquant.kernels.build import SWITCH
from zoquant.kernels.noise.definition import BLOCK, KINDS, gaussian_table, key_hash, reference
from zoquant.kernels.noise.tables import NoiseTables
from zoquant.kernels.products.operands import Numbers, Operands, Words

_KERNELS = {"noise": "zoquant.kernels.noise.triton", "matmul": "zoquant.kernels.products.triton_matmul"}

_TRIED = ("rademacher", "gaussian")

_BOUND = 1e-5
"""Relative distance of a product from that of the rounded factors: sums are float32 in each dtype."""


class _NotUsableError(Exception):
    """Why torch computes."""


def noise_kernels(device: torch.device) -> ModuleType | None:
    """Return `zoquant.kernels.noise.triton` where it computes on a device; None where torch does."""
    return _found("noise", device)[0]


def matmul_kernels(device: torch.device) -> ModuleType | None:
    """Return `zoquant.kernels.products.triton_matmul` where it computes on a device; None where torch does."""
    return _found("matmul", device)[0]


def write_kernels(device: torch.device) -> ModuleType | None:
    """Return `zoquant.kernels.write.triton` where it computes on a device; None where torch does."""
    return None if noise_kernels(device) is None else import_module("zoquant.kernels.write.triton")


def status(device: torch.device) -> str:
    """Return who computes on a device: `"triton <version>"`, or `"torch: <reason>"`; where they differ, of either."""
    noise, products = (_found(part, device)[1] for part in _TRIALS)
    return noise if noise == products else f"noise: {noise}, products: {products}"


@cache
def _found(part: str, device: torch.device) -> tuple[ModuleType | None, str]:
    try:
        kernels = _kernels(part, device)
        _TRIALS[part](kernels, device)
    except _NotUsableError as reason:
        return None, f"torch: {reason}"
    except Exception as error:  # whatever a compiler, a driver or a cache folder may raise
        return None, f"torch: the Triton kernels failed: {one_line(error)}"
    return kernels, f"triton {import_module('triton').__version__}"


def _kernels(part: str, device: torch.device) -> ModuleType:
    if device.type != "cuda":
        raise _NotUsableError(f"no Triton kernels for {device.type}")
    if os.environ.get(SWITCH) == "0":
        raise _NotUsableError(f"switched off by {SWITCH}=0")
    try:
        return import_module(_KERNELS[part])
    except ImportError as error:
        raise _NotUsableError(f"triton cannot be imported: {error}") from error


def _try_noise(kernels: ModuleType, device: torch.device) -> None:
    """Compare one block with the definition."""
    seed, key = 2**63 + 1, "a.d"
    low, high = key_hash(key) & 0xFFFFFFFF, key_hash(key) >> 32
    counters = torch.tensor([[0], [low], [high]], device=device)
    table = torch.from_numpy(gaussian_table()).to(device)
    for kind in _TRIED:
        tables = NoiseTables(KINDS.index(kind), table, counters)
        found = kernels.draw(tables, seed, 0, torch.empty(BLOCK, device=device))
        if not torch.equal(found.cpu(), torch.from_numpy(reference(seed, key, BLOCK, kind))):  # type: ignore[arg-type]
            raise _NotUsableError(f"the Triton kernels draw other {kind} noise than the definition")


def _try_matmul(kernels: ModuleType, device: torch.device) -> None:
    """Compare a small product with its definition, in each dtype."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(1 << 31), 1 << 31, (32, 16), generator=generator).to(torch.int32)
    scale, x = (torch.rand(32, 4, generator=generator) - 0.5).half(), torch.randn(3, 128, generator=generator)
    codes = (words[:, :, None] >> torch.arange(0, 32, 4) & 15).flatten(1).float()
    weight = codes * scale.float().repeat_interleave(32, 1)
    numbers = Numbers(scale.to(device), 4, 1, 32, 4)
    operands = Operands("affine", 32, 128, Words(words.to(device), 16, 1, 4), (numbers, None, None, None))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = kernels.multiply(x.to(device), operands, dtype).cpu()
        exact = x.to(dtype).double() @ weight.to(dtype).double().t()
        if not (found.double() - exact).norm() <= _BOUND * exact.norm():
            raise _NotUsableError(f"the Triton kernels give other products in {dtype} than the definition")


_TRIALS: dict[str, Callable[[ModuleType, torch.device], None]] = {"noise": _try_noise, "matmul": _try_matmul}
