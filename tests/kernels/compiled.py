"""Compiles the product of some layouts for a GPU that is not here, and prints shared memory and fused instructions.

Run by test_triton_matmul.py in a process without Triton's interpreter.
"""

import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.packed import MATRICES
from zoquant.kernels.products import triton_matmul as matmul
from zoquant.kernels.products.triton_decode import DTYPES, pointers, settings

TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int16: "*i16",
    torch.int8: "*i8", torch.int64: "*i64",
}  # fmt: skip


def type_of(value: object) -> object:
    """Return a value's type as Triton writes it."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    if isinstance(value, tuple):
        return tuple(map(type_of, value))
    return "constexpr" if value is None else "i32"


def compiled(name: str, capability: int) -> str:
    """Return shared memory and the number of fused multiply-adds of a product in bfloat16."""
    operands, kernel = MATRICES[name]().operands(), matmul._multiply
    assert operands is not None
    tile = matmul.tile_of(64, 1 << 15, torch.bfloat16)
    fixed = {**settings(operands, tile.columns), "DTYPE": DTYPES[torch.bfloat16]}
    fixed |= {"BLOCK_M": tile.tokens, "BLOCK_N": tile.rows, "BLOCK_K": tile.columns}
    options = {"enable_fp_fusion": fixed.pop("enable_fp_fusion"), "num_warps": tile.warps, "num_stages": tile.stages}
    x, (codes, numbers, table) = torch.empty(0), pointers(operands)
    given = [x, x, codes, numbers, table, operands.row_order, 1, 1, 1, 1]
    types = dict(zip(kernel.arg_names, map(type_of, given), strict=False)) | dict.fromkeys(fixed, "constexpr")
    absent = {argument: None for argument, kind in types.items() if kind == "constexpr" and argument not in fixed}
    source = ASTSource(fn=kernel, signature=types, constexprs={**fixed, **absent})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    fused = re.findall(r"\bfma\.", made.asm["ptx"])
    return f"{made.metadata.shared} {len(fused)}"


for name in sys.argv[1:]:
    print(compiled(name, 86))
