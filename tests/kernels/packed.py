"""Random matrices of every layout that the Triton kernels read, of sizes that fill no tile."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.backends.gguf.files import random_blocks
from zoquant.backends.awq.layout import GEMV, awq_layout
from zoquant.backends.bitsandbytes.quant_state import QuantState
from zoquant.backends.bitsandbytes.weights import EIGHT_BIT, four_bit
from zoquant.backends.gguf.blocks import CODECS
from zoquant.backends.gptq.layout import gptq_layout
from zoquant.native import AffineWeight, FieldSpec, PackedWeight, PackedWords, QuantWeight, Values, VectorWeight
from zoquant.native.values import per_row, row_groups

ROWS, COLUMNS = 48, 192
"""Rows are a multiple of 16, as GPTQ packs zeros; neither fills a tile."""


def _words(*shape: int) -> Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape).to(torch.int32)


def _scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(shape) * 0.02 - 0.005).to(dtype)


def gptq(*, bits: int = 4, group: int = 64, order: Tensor | None = None, minus_one: bool = True) -> PackedWeight:
    groups = COLUMNS // group
    words, zeros = _words(COLUMNS * bits // 32, ROWS), _words(groups, ROWS * bits // 32)
    tensors = {"qweight": words, "qzeros": zeros, "scales": _scales(groups, ROWS)}
    more = {} if order is None else {"g_idx": order}
    layout = gptq_layout(bits, group, minus_one=minus_one, g_idx=order is not None)
    return layout.weight(tensors | more, (ROWS, COLUMNS))


def ggml(name: str, *, order: bool = False) -> PackedWeight:
    codec = CODECS[name]
    codes, values = codec.split(torch.from_numpy(random_blocks(codec, ROWS, COLUMNS // 32)))
    return QuantWeight(codec, codes, values, torch.randperm(ROWS) if order else None)


def nf4(*, blocksize: int = 64, nested: bool = False) -> PackedWeight:
    state = QuantState("nf4", blocksize, ROWS, COLUMNS, 256 if nested else 0, 0.1)
    blocks = ROWS * COLUMNS // blocksize
    tensors = {"weight.absmax": _scales(blocks, dtype=torch.float32)}
    if nested:
        tensors = {"weight.absmax": torch.randint(0, 256, (blocks,), dtype=torch.uint8)}
        tensors["weight.nested_quant_map"] = torch.rand(256)
        tensors["weight.nested_absmax"] = torch.rand(-(-blocks // 256))
    return four_bit(tensors | {"weight": torch.randint(0, 256, (ROWS * COLUMNS // 2,), dtype=torch.uint8)}, state)


def aqlm(books: int, bits: int, *, height: int = 1, dtype: torch.dtype = torch.float16) -> PackedWeight:
    kind = torch.int8 if bits <= 8 else torch.int16
    half = 1 << bits - 1
    codes = torch.randint(-half, half, (ROWS // height, COLUMNS // 8, books)).to(kind)
    vectors = torch.randn(books, 1 << bits, height, 8).to(dtype)
    scales = Values(FieldSpec("scales", "scale", dtype), _scales(ROWS // height, 1, 1, 1, dtype=dtype), per_row)
    return VectorWeight("aqlm", codes, (FieldSpec("codebooks", "codebook", dtype), vectors), scales)


def hqq(dtype: torch.dtype) -> PackedWeight:
    words = torch.randint(0, 256, (ROWS, COLUMNS // 2), dtype=torch.uint8)
    scale, zero, shift = (
        Values(FieldSpec(name, "scale", dtype), _scales(ROWS, COLUMNS // size, dtype=dtype), row_groups)
        for name, size in (("scale", 32), ("zero", 16), ("shift", 64))
    )
    return AffineWeight("zeros", PackedWords(words, 4, COLUMNS), scale, zero=zero, shift=shift)


def offsets(bits: int) -> PackedWeight:
    """Codes less an offset, and an offset of the weights."""
    words = torch.randint(0, 256, (ROWS, COLUMNS * bits // 8), dtype=torch.uint8)
    scale, offset = (
        Values(FieldSpec(name, "scale", torch.float16), _scales(ROWS, COLUMNS // 32), row_groups)
        for name in ("scale", "offset")
    )
    return AffineWeight("offsets", PackedWords(words, bits, COLUMNS, offset=1 << bits - 1), scale, offset=offset)


def awq() -> PackedWeight:
    words, zeros = _words(ROWS, COLUMNS // 8), _words(ROWS, 1)
    return awq_layout(GEMV, COLUMNS // 3).weight({"qweight": words, "qzeros": zeros, "scales": _scales(ROWS, 8)})


MATRICES: dict[str, Callable[[], PackedWeight]] = {
    "gptq g64": gptq,
    "gptq g16, 2 bits": lambda: gptq(bits=2, group=16),
    "gptq g96, 8 bits": lambda: gptq(bits=8, group=96),
    "gptq v2": lambda: gptq(minus_one=False),
    "gptq desc_act": lambda: gptq(order=torch.arange(COLUMNS).flip(0) // 64),
    "Q4_0": lambda: ggml("Q4_0"),
    "Q4_1": lambda: ggml("Q4_1"),
    "Q4_1, rows in another order": lambda: ggml("Q4_1", order=True),
    "Q8_0": lambda: ggml("Q8_0"),
    "zeros and shifts that are continuous": lambda: hqq(torch.bfloat16),
    "offsets, 4 bits": lambda: offsets(4),
    "offsets, 8 bits": lambda: offsets(8),
    "float32 scales": lambda: hqq(torch.float32),
    "awq gemv, zeros that torch unpacks": awq,
    "LLM.int8()": lambda: EIGHT_BIT.weight(
        {"weight": torch.randint(-128, 128, (ROWS, COLUMNS), dtype=torch.int8), "SCB": torch.rand(ROWS)}
    ),
    "nf4": nf4,
    "nf4 of longer blocks than rows divide": lambda: nf4(blocksize=128),
    "nf4, nested": lambda: nf4(nested=True),
    "aqlm 1x16": lambda: aqlm(1, 16),
    "aqlm 2x8": lambda: aqlm(2, 8, dtype=torch.bfloat16),
    "aqlm 4x4, vectors of two rows": lambda: aqlm(4, 4, height=2, dtype=torch.float32),
}
