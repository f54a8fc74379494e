"""Random words and scales of each format: they cost what real ones cost."""

from collections.abc import Callable

import torch
from torch import Tensor

from zoquant.backends.gptq.layout import gptq_layout
from zoquant.native import FieldSpec, PackedWeight, PackedWords, TableWeight, Values, VectorWeight
from zoquant.native.values import flat_groups, per_row


def gptq(rows: int, columns: int, device: torch.device) -> PackedWeight:
    """Return random words of GPTQ, 4 bits, groups of 128."""
    groups = -(-columns // 128)
    tensors = {
        "qweight": _words((columns // 8, rows), device),
        "qzeros": _words((groups, rows // 8), device),
        "scales": _scales((groups, rows), device),
    }
    return gptq_layout(4, 128, minus_one=True).weight(tensors, (rows, columns))


def aqlm(rows: int, columns: int, device: torch.device) -> PackedWeight:
    """Return random codes of AQLM, one codebook of 2^16 vectors of eight."""
    books = torch.randn(1, 1 << 16, 1, 8, device=device, dtype=torch.float16)
    codes = torch.randint(-(1 << 15), 1 << 15, (rows, columns // 8, 1), device=device, dtype=torch.int16)
    scales = Values(FieldSpec("scales", "scale", torch.float16), _scales((rows, 1, 1, 1), device), per_row)
    return VectorWeight("AQLM 1x16g8", codes, (FieldSpec("codebooks", "codebook", torch.float16), books), scales)


def nf4(rows: int, columns: int, device: torch.device) -> PackedWeight:
    """Return random words of NF4, blocks of 64."""
    table = torch.linspace(-1, 1, 16, device=device)
    words = torch.randint(0, 256, (rows, columns // 2), device=device, dtype=torch.uint8)
    absmax = _scales((rows * columns // 64,), device).float()
    values = Values(FieldSpec("absmax", "scale", torch.float32), absmax, flat_groups(columns, 64))
    return TableWeight("nf4 b64", PackedWords(words, 4, columns, high_first=True), table, values)


def _words(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(-(1 << 31), 1 << 31, shape, device=device, dtype=torch.int32)


def _scales(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return (torch.rand(shape, device=device, dtype=torch.float32) * 0.005 + 0.0025).half()


PACKED: dict[str, Callable[[int, int, torch.device], PackedWeight]] = {
    "GPTQ 4-bit g128": gptq, "AQLM 2-bit 1x16": aqlm, "NF4 b64": nf4,
}  # fmt: skip
