"""One product alone: a pair of probes against two products, packed words against decoded and dense matrices.

Several matrices take turns, more than fit a GPU's cache, and on a GPU all of them are one graph: launching from Python
takes longer than the products of a few tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite.weights import PACKED
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.kernels.gpu import matmul_kernels
from zoquant.kernels.graphs import Graphed
from zoquant.native import PackedWeight
from zoquant.native.packed import product
from zoquant.native.pair import pair_product, twin_of

SHAPES = {"GPTQ 4-bit g128": (11008, 4096), "AQLM 2-bit 1x16": (13824, 5120), "NF4 b64": (9728, 2432)}
"""Rows and columns of the widest matrix of Llama-2-7B, Llama-2-13B and SD3.5-Large."""

TOKENS = (16, 64, 1024)
"""Tokens of one probe. Up to 64 a product is bound by memory."""

_TILE = "pair, "
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


def _matrices(name: str, rows: int, columns: int, device: torch.device) -> list[tuple[PackedWeight, PackedWeight]]:
    """Return matrices and their twins."""
    first = PACKED[name](rows, columns, device)
    count = min(_MOST, max(1, _CACHE // _bytes(first))) if device.type == "cuda" else 1
    made = [first, *(PACKED[name](rows, columns, device) for _ in range(count - 1))]
    return [(each, twin_of(each)) for each in made]


def _bytes(packed: PackedWeight) -> int:
    return sum(buffer.nbytes for buffer in packed.buffers())


def _compared(
    matrices: list[tuple[PackedWeight, PackedWeight]], tokens: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    x = torch.randn(2 * tokens, matrices[0][0].columns, device=device, dtype=_DTYPE)
    dense = [each.dequantize().to(_DTYPE) for each, _ in matrices]
    ways: dict[str, Callable[[Tensor], list[Tensor]]] = {
        "pair": lambda x: [pair_product(x, *both, _DTYPE) for both in matrices],
        "two": lambda x: [each.product(x[:tokens], _DTYPE) for both in matrices for each in both],
        "decoded": lambda x: [_decoded(each, x[:tokens]) for both in matrices for each in both],
        "dense": lambda x: [x[:tokens] @ each.t() for each in dense for _ in range(2)],
        **_tiles(matrices, tokens, device),
    }
    calls = {name: _called(way, x, device) for name, way in ways.items()}
    calls = {name: call for name, call in calls.items() if not name.startswith(_TILE) or _runs(call)}
    times = in_turn(calls, rounds)
    single = [seconds / 2 / len(matrices) for seconds in times["two"]]
    return {
        "matrices": len(matrices), "bytes": _bytes(matrices[0][0]), "product_seconds": spread(single),
        "gb_a_second": _bytes(matrices[0][0]) / spread(single)["median"] / 1e9,
        "pair_over_two": ratio(times["pair"], times["two"]),
        "two_over_decoded": ratio(times["two"], times["decoded"]),
        "two_over_dense": ratio(times["two"], times["dense"]),
        "tiles_over_pair": {name: ratio(times[name], times["pair"]) for name in times if name.startswith(_TILE)},
    }  # fmt: skip


def _decoded(packed: PackedWeight, x: Tensor) -> Tensor:
    """Return the product of a matrix that is decoded first, a tile at a time."""
    return torch.cat([product(x, tile) for _, tile in packed.tiles(_DTYPE)], -1)


def _tiles(
    matrices: list[tuple[PackedWeight, PackedWeight]], tokens: int, device: torch.device
) -> dict[str, Callable[[Tensor], list[Tensor]]]:
    """Return the pair with other tiles of the kernel, for whoever tunes `triton_matmul.tile_of`."""
    kernels = matmul_kernels(device)
    unread = any(each.operands() is None for both in matrices for each in both)
    if kernels is None or tokens >= kernels.MANY // 2 or unread:
        return {}
    width = kernels.tile_of(tokens, 0, _DTYPE, pair=True).tokens
    others = [(32, 64, 4, 3), (32, 128, 4, 3), (64, 64, 4, 3), (64, 128, 4, 2), (64, 64, 8, 3), (128, 64, 8, 2)]
    return {
        f"{_TILE}{rows} x {columns}, {warps} warps, {stages} stages": _with_tile(
            matrices, kernels, kernels.Tile(width, rows, columns, warps, stages)
        )
        for rows, columns, warps, stages in others
    }


def _with_tile(
    matrices: list[tuple[PackedWeight, PackedWeight]], kernels: Any, tile: Any
) -> Callable[[Tensor], list[Tensor]]:
    pairs = [(first.operands(), second.operands()) for first, second in matrices]
    return lambda x: [kernels.multiply(x, first, _DTYPE, other=second, tile=tile) for first, second in pairs]


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
