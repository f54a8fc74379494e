"""The matrix of an AWQ layer, 4 bits, in the three layouts that files have.

    gemm       w = (code − zero) · scales      zeros packed integers, scales [groups, rows]
    gemv       w = (code − zero) · scales      zeros packed integers, scales [rows, padded groups]
    gemv_fast  w = code · scales + qzeros      both [padded groups, rows]: the zeros are continuous, −zero · scale

Source: AutoAWQ 0.2.9, awq/modules/linear/gemm.py, gemv.py, gemv_fast.py.
"""

from torch import Tensor

from zoquant.backends.awq.words import BITS, GEMM_ZEROS, FastWords, GEMMWords, gemv_zeros
from zoquant.native import AffineWeight, FieldSpec, PackedWords, Values
from zoquant.native.packed import Rows
from zoquant.native.values import GroupLookup, column_groups, row_groups


def gemm_weight(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> AffineWeight:
    """Return the matrix of a `gemm` layer, whose tensors it holds as they are."""
    return AffineWeight(
        f"awq gemm g{qweight.shape[0] // scales.shape[0]}",
        GEMMWords(qweight),
        Values(_spec("scales", scales), scales, column_groups),
        zero=Values(None, qzeros, GEMM_ZEROS),
    )


def gemv_weight(qweight: Tensor, qzeros: Tensor, scales: Tensor, *, groups: int) -> AffineWeight:
    """Return the matrix of a `gemv` layer, whose tensors it holds as they are."""
    codes = PackedWords(qweight, BITS, qweight.shape[1] * 8)
    return AffineWeight(
        f"awq gemv g{codes.columns // groups}",
        codes,
        Values(_spec("scales", scales), scales, _first(row_groups, groups)),
        zero=Values(None, qzeros, gemv_zeros(groups)),
    )


def fast_weight(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, *, groups: int, zeros_name: str = "qzeros"
) -> AffineWeight:
    """Return the matrix of a `gemv_fast` layer, whose tensors it holds as they are.

    Args:
        qweight: codes.
        qzeros: −zero · scale.
        scales: scales.
        groups: groups of a row that count; the tensors have more.
        zeros_name: what the file calls `qzeros`; llm-awq says `scaled_zeros`.
    """
    place = _first(column_groups, groups)
    return AffineWeight(
        f"awq gemv_fast g{qweight.shape[1] // groups}",
        FastWords(qweight),
        Values(_spec("scales", scales), scales, place),
        shift=Values(_spec(zeros_name, qzeros), qzeros, lambda data, rows: -place(data, rows)),
    )


def _spec(name: str, values: Tensor) -> FieldSpec:
    return FieldSpec(name, "scale", values.dtype)


def _first(place: GroupLookup, groups: int) -> GroupLookup:
    """Leave out the groups that fill a tensor up to what a kernel loads at a time."""

    def first(data: Tensor, rows: Rows) -> Tensor:
        return place(data, rows)[:, :groups]

    return first
