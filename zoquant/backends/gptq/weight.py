"""The matrix of a GPTQ layer: `w[o, i] = (code[i, o] − zero[g[i], o]) · scales[g[i], o]`.

    qweight  int32 [columns * bits / 32, rows]   codes, packed along the columns
    qzeros   int32 [groups, rows * bits / 32]    integer zeros, packed along the rows
    scales   [groups, rows]
    g_idx    int32 [columns]                     the group of each column; a permutation with desc_act

Source: AutoGPTQ 0.7.1 and GPTQModel 7.7.0, nn_modules/qlinear.
"""

import torch
from torch import Tensor

from zoquant.backends.gptq.words import ThreeBitWords, Wrap, packed_zeros
from zoquant.native import AffineWeight, Codes, FieldSpec, PackedWords, Values
from zoquant.native.values import column_groups


def gptq_weight(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None,
    *,
    bits: int,
    group_size: int,
    columns: int,
    minus_one: bool,
    wrap: Wrap = "words",
) -> AffineWeight:
    """Return the matrix of a layer, whose tensors it holds as they are.

    Args:
        qweight: codes.
        qzeros: zeros.
        scales: scales, of a floating dtype.
        g_idx: the group of each column; None for runs of `group_size`.
        bits: bits of a code: 2, 3, 4 or 8.
        group_size: columns of a group.
        columns: columns of the matrix.
        minus_one: whether `qzeros` holds zero − 1.
        wrap: how those ones come back, see `packed_zeros`.
    """
    groups = _group_of(g_idx, columns, group_size, scales.device)
    codes: Codes = (
        ThreeBitWords(qweight, columns) if bits == 3 else PackedWords(qweight, bits, columns, transposed=True)
    )
    return AffineWeight(
        f"gptq {bits}-bit g{group_size}",
        codes,
        Values(FieldSpec("scales", "scale", scales.dtype), scales, column_groups, group_of=groups),
        zero=Values(None, qzeros, packed_zeros(bits, minus_one=minus_one, wrap=wrap), group_of=groups),
    )


def _group_of(g_idx: Tensor | None, columns: int, group_size: int, device: torch.device) -> Tensor | None:
    """Return the group of each column, int64 `[columns]`, or None where groups are equal runs of columns."""
    runs = torch.arange(columns, device=device) // group_size
    if g_idx is None or torch.equal(g_idx.long(), runs):
        return None if columns % group_size == 0 else runs
    return g_idx.long()
