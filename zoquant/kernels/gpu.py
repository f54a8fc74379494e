"""Triton kernels for tensors of a GPU: optional, tried once, equal to the torch code bit for bit."""

import os
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from zoquant.kernels.build import SWITCH
from zoquant.noise import BLOCK, KINDS, gaussian_table, key_hash, reference

_TRIED = ("rademacher", "gaussian")


class _NotUsableError(Exception):
    """Why torch computes."""


def noise_kernels(device: torch.device) -> ModuleType | None:
    """Return `zoquant.kernels.triton_noise` where it computes on a device; None where torch does."""
    return _found(device)[0]


def write_kernels(device: torch.device) -> ModuleType | None:
    """Return `zoquant.kernels.triton_write` where it computes on a device; None where torch does."""
    return None if noise_kernels(device) is None else import_module("zoquant.kernels.triton_write")


def status(device: torch.device) -> str:
    """Return who computes on a device: `"triton <version>"`, or `"torch: <reason>"`."""
    return _found(device)[1]


@cache
def _found(device: torch.device) -> tuple[ModuleType | None, str]:
    try:
        kernels = _kernels(device)
        _try(kernels, device)
    except _NotUsableError as reason:
        return None, f"torch: {reason}"
    except Exception as error:  # whatever a compiler, a driver or a cache folder may raise
        return None, f"torch: the Triton kernels failed: {' '.join(str(error).split())[:300]}"
    return kernels, f"triton {import_module('triton').__version__}"


def _kernels(device: torch.device) -> ModuleType:
    if device.type != "cuda":
        raise _NotUsableError(f"no Triton kernels for {device.type}")
    if os.environ.get(SWITCH) == "0":
        raise _NotUsableError(f"switched off by {SWITCH}=0")
    try:
        return import_module("zoquant.kernels.triton_noise")
    except ImportError as error:
        raise _NotUsableError(f"triton cannot be imported: {error}") from error


def _try(kernels: ModuleType, device: torch.device) -> None:
    """Compare one block with the definition."""
    seed, key = 2**63 + 1, "a.d"
    low, high = key_hash(key) & 0xFFFFFFFF, key_hash(key) >> 32
    counters = torch.tensor([[0], [low], [high]], device=device)
    table = torch.from_numpy(gaussian_table()).to(device)
    for kind in _TRIED:
        found = kernels.draw(KINDS.index(kind), table, counters, seed, 0, torch.empty(BLOCK, device=device))
        if not torch.equal(found.cpu(), torch.from_numpy(reference(seed, key, BLOCK, kind))):  # type: ignore[arg-type]
            raise _NotUsableError(f"the Triton kernels draw other {kind} noise than the definition")
