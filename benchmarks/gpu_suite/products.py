"""One product alone: packed words against decoded and dense matrices.

Several matrices take turns, more than fit a GPU's cache, and on a GPU all of them are one graph: launching from Python
takes longer than the products of a few tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite.graphs import Graphed
from benchmarks.gpu_suite.weights import PACKED
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.kernels.gpu import matmul_kernels
from zoquant.native import PackedWeight
from zoquant.native.packed import product

SHAPES = {"GPTQ 4-bit g128": (11008, 4096), "AQLM 2-bit 1x16": (13824, 5120), "NF4 b64": (9728, 2432)}
"""Rows and columns of the widest matrix of Llama-2-7B, Llama-2-13B and SD3.5-Large."""

TOKENS = (16, 64, 1024)
"""Tokens of one probe. Up to 64 a product is bound by memory."""

_TILE = "tile "
_CACHE = 1 << 28
_MOST = 16
_DTYPE = torch.bfloat16


def products(device: torch.device, *, tiny: bool, rounds: int) -> dict[str, Any]:
    """Return for each format and number of tokens the seconds of each way, and what is compared with what."""
    found = {}
    for name, (rows, columns) in SHAPES.items():
        matrices = _matrices(name, *((256, 256) if tiny else (rows, columns)), device)
        for tokens in TOKENS[:2] if tiny else TOKENS:
            found[f"{name}, {tokens} tokens"] = _compared(matrices, tokens, device, rounds)
    return found


def _matrices(name: str, rows: int, columns: int, device: torch.device) -> list[PackedWeight]:
    """Return as many matrices as no cache holds."""
    first = PACKED[name](rows, columns, device)
    count = min(_MOST, max(1, _CACHE // _bytes(first))) if device.type == "cuda" else 1
    return [first, *(PACKED[name](rows, columns, device) for _ in range(count - 1))]


def _bytes(packed: PackedWeight) -> int:
    return sum(buffer.nbytes for buffer in packed.buffers())


def _compared(matrices: list[PackedWeight], tokens: int, device: torch.device, rounds: int) -> dict[str, Any]:
    x = torch.randn(tokens, matrices[0].columns, device=device, dtype=_DTYPE)
    dense = [each.dequantize().to(_DTYPE) for each in matrices]
    ways: dict[str, Callable[[Tensor], list[Tensor]]] = {
        "packed": lambda x: [each.product(x, _DTYPE) for each in matrices],
        "decoded": lambda x: [_decoded(each, x) for each in matrices],
        "dense": lambda x: [x @ each.t() for each in dense],
        **_tiles(matrices, tokens, device),
    }
    calls = {name: _called(way, x, device) for name, way in ways.items()}
    calls = {name: call for name, call in calls.items() if not name.startswith(_TILE) or _runs(call)}
    times = in_turn(calls, rounds)
    single = [seconds / len(matrices) for seconds in times["packed"]]
    return {
        "matrices": len(matrices), "bytes": _bytes(matrices[0]), "product_seconds": spread(single),
        "gb_a_second": _bytes(matrices[0]) / spread(single)["median"] / 1e9,
        "packed_over_decoded": ratio(times["packed"], times["decoded"]),
        "packed_over_dense": ratio(times["packed"], times["dense"]),
        "tiles": {name: ratio(times[name], times["packed"]) for name in times if name.startswith(_TILE)},
    }  # fmt: skip


def _decoded(packed: PackedWeight, x: Tensor) -> Tensor:
    """Return the product of a matrix that is decoded first, a tile at a time."""
    return torch.cat([product(x, tile) for _, tile in packed.tiles(_DTYPE)], -1)


def _tiles(
    matrices: list[PackedWeight], tokens: int, device: torch.device
) -> dict[str, Callable[[Tensor], list[Tensor]]]:
    """Return the product with other tiles of the kernel, for whoever tunes `triton_matmul.tile_of`."""
    kernels = matmul_kernels(device)
    if kernels is None or tokens >= kernels.MANY or any(each.operands() is None for each in matrices):
        return {}
    width = kernels.tile_of(tokens, 0, _DTYPE).tokens
    others = [(32, 64, 4, 3), (32, 128, 4, 3), (64, 64, 4, 3), (64, 128, 4, 2), (64, 64, 8, 3), (128, 64, 8, 2)]
    return {
        f"{_TILE}{rows} x {columns}, {warps} warps, {stages} stages": _with_tile(
            matrices, kernels, kernels.Tile(width, rows, columns, warps, stages)
        )
        for rows, columns, warps, stages in others
    }


def _with_tile(matrices: list[PackedWeight], kernels: Any, tile: Any) -> Callable[[Tensor], list[Tensor]]:
    operands = [each.operands() for each in matrices]
    return lambda x: [kernels.multiply(x, each, _DTYPE, tile=tile) for each in operands]


def _runs(call: Callable[[], Tensor]) -> bool:
    """Whether a tile fits this GPU: it may want more shared memory or registers than there are."""
    try:
        call()
    except Exception:  # whatever Triton and the driver raise, wrapped by nobody
        return False
    return True


def _called(way: Callable[[Tensor], list[Tensor]], x: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """Return a call of all products, on a GPU from a graph. They all stay in memory until the last one is there."""
    if device.type != "cuda":
        return lambda: way(x)[-1]
    graphed = Graphed(lambda given: way(given)[-1])
    return lambda: graphed(x)
