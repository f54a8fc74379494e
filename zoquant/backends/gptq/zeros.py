"""What the zeros of a GPTQ file must agree with: the flag `sym`, and, where a zero of 0 was stored less one, the codes.

A zero of 0 less one is 15 in four bits. GPTQModel takes the ones off whole words, so that this field borrows from the
next; others take them off each field. The words alone do not tell which, and the two readings differ by one in every
field above a 15. The codes tell: the zero of a group is where its weights change their sign, near their mean.

Source: GPTQModel 7.7.0, utils/model.py (`convert_gptq_v1_to_v2_format_module`); AutoGPTQ 0.7.1, qlinear_cuda.py.
"""

import logging

import torch
from torch import Tensor

from zoquant.backends.gptq.layout import Wrap, packed_zeros
from zoquant.checkpoint.folder import Folder
from zoquant.native import AffineWeight
from zoquant.native.packed_rows import fields

_WRAPS: tuple[Wrap, ...] = ("words", "fields")
_SURE = 20
"""Nats by which one reading has to be the likelier: a few groups of a matrix give that."""

log = logging.getLogger("zoquant")


def check_symmetric(folder: Folder, name: str, words: Tensor, *, bits: int, rows: int, minus_one: bool) -> None:
    """Refuse zeros that are not all in the middle of the codes, where the config says that they are.

    Kernels that take `sym` at its word do not read the zeros, others do: the file would be two models.
    """
    centre = 1 << (bits - 1)
    stored, meant, other = _fields(words, bits, rows), centre - minus_one, centre - (not minus_one)
    if bool((stored == meant).all()):
        return
    got = sorted(set(stored.flatten().tolist()))
    wrong = f"{got[0]} to {got[-1]}" if len(got) > 1 else f"{got[0]}"
    if got == [other]:
        kind = "as it is, as gptq_v2 does" if minus_one else "less one, as gptq does"
        wrong += f": stored {kind}, so that 'checkpoint_format' has to say so"
    raise folder.error(name, f"zeros stored as {meant}, as 'sym' and 'checkpoint_format' say", wrong)


def wrap_alone(path: str, weight: AffineWeight, words: Tensor, *, bits: int) -> bool:
    """Tell whether zeros that are stored less one had it taken off field by field, rather than off whole words."""
    rows = slice(0, weight.rows)
    whole, alone = (packed_zeros(bits, minus_one=True, wrap=each)(words, rows) for each in _WRAPS)
    unlike = whole != alone
    if not unlike.any():
        return False
    evidence = _evidence(weight, whole, alone, unlike, bits)
    if evidence.abs() < _SURE:
        log.warning(
            "%s: zeros of 0 can be read in two ways, and its codes do not tell which: taken as GPTQModel writes them.",
            path,
        )
        return False
    return bool(evidence > 0)


def _evidence(weight: AffineWeight, whole: Tensor, alone: Tensor, unlike: Tensor, bits: int) -> Tensor:
    """Return by how many nats the codes make the zeros `alone` likelier than `whole`, where the two are unlike."""
    codes, group_of = weight.codes.read(slice(0, weight.rows)).float(), weight.scale.group_of
    if group_of is None:
        group_of = torch.arange(weight.columns, device=codes.device) // (weight.columns // whole.shape[1])
    away, inside = codes - whole[:, group_of], (codes > 0) & (codes < (1 << bits) - 1)
    known = inside & ~unlike[:, group_of]
    spread = away[known if known.any() else inside].square().mean().sqrt().nan_to_num().clamp_min(0.5)
    found = torch.zeros((), device=codes.device)
    for group in unlike.any(0).nonzero().flatten().tolist():
        some = unlike[:, group]
        part = codes[some][:, group_of == group]
        found += _surprise(part, whole[some, group], spread, bits) - _surprise(part, alone[some, group], spread, bits)
    return found


def _surprise(codes: Tensor, zeros: Tensor, spread: Tensor, bits: int) -> Tensor:
    """Return minus the log of the chance of codes, if weights are normal around the zero of their row, and clipped."""
    low, high = ((codes - zeros[:, None] + edge) / spread for edge in (-0.5, 0.5))
    low = low.masked_fill(codes == 0, -torch.inf)
    high = high.masked_fill(codes == (1 << bits) - 1, torch.inf)
    chance = torch.special.ndtr(high) - torch.special.ndtr(low)
    nats: Tensor = -chance.clamp_min(1e-6).log().sum()
    return nats


def _fields(words: Tensor, bits: int, rows: int) -> Tensor:
    return fields(words, bits, torch.arange(rows, device=words.device))
