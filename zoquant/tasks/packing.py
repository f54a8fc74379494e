"""Short sequences share a row, each seeing itself alone, so that a batch computes tokens and hardly any padding."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from zoquant.kernels.out_of_memory import is_out_of_memory
from zoquant.optim.probes.probed_layers import sharing_rows
from zoquant.tasks.encoding import text_config
from zoquant.views.dry_run import ordinary_ids, trial

_SAME = 0.1
"""Relative distance of states that count as the same: bfloat16 throughout gives 0.02 with SmolLM2-135M."""

_UNMOVED = {torch.float32: 1e-4}
_UNMOVED_ELSE = 0.01
"""Relative distance by which states may differ when a neighbour does: experts may round what they compute together."""

_CARRYING = ("linear", "conv", "mamba", "recurrent")
"""Parts of the names that configs give to layers which carry a state from token to token."""

_WINDOWS = ("sliding_window", "attention_chunk_size")
"""What configs call the tokens that a layer sees at most: a mask of our own knows of no such end."""

_WORTH = 0.9

log = logging.getLogger("zoquant")
_packable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Packing:
    """Which sequence lies where.

    Attributes:
        source: int64 `[rows, length]`: index of each token in the padded batch, flattened; -1 where there is none.
        positions: int64 `[rows, length]`: place of each token in its own sequence, from 0.
        sequences: int64 `[rows, length]`: number of the sequence a token belongs to, -1 where there is none.
        count: number of sequences.
        width: length of a row of the padded batch.
    """

    source: Tensor
    positions: Tensor
    sequences: Tensor
    count: int
    width: int

    def to(self, device: torch.device) -> "Packing":
        """Return the same on a device."""
        source, positions, sequences = (each.to(device) for each in (self.source, self.positions, self.sequences))
        return Packing(source, positions, sequences, self.count, self.width)

    def repeat(self, times: int) -> "Packing":
        """Return the packing of the batch so many times one below the other: each repetition has rows of its own."""
        if times == 1:
            return self
        source, positions, sequences = (each.repeat(times, 1) for each in (self.source, self.positions, self.sequences))
        before = self.count * torch.arange(times).repeat_interleave(len(self.source))[:, None] * (source >= 0)
        return Packing(source + self.width * before, positions, sequences + before, times * self.count, self.width)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what to add to the scores of the attention, `[rows, 1, length, length]`: 0 or the least number.

        A token sees itself and those before it of its own sequence. Unused places see each other, so that no row of the
        softmax is empty.
        """
        same = self.sequences[:, :, None] == self.sequences[:, None, :]
        length = self.sequences.shape[1]
        seen = same & torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def pack(lengths: Sequence[int], width: int, room_of_row: int | None = None) -> Packing:
    """Put sequences into as few rows as first-fit-decreasing finds.

    Args:
        lengths: tokens of each sequence, at least 1.
        width: length of a row of the padded batch.
        room_of_row: length of a packed row; None for the longest sequence.
    """
    longest = room_of_row or max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((row for row, free in enumerate(room) if free >= lengths[number]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(longest)
        rows[place].append(number)
        room[place] -= lengths[number]
    source, positions, sequences = (torch.full((len(rows), longest), fill) for fill in (-1, 0, -1))
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            here = slice(start, start := start + lengths[number])
            steps = torch.arange(lengths[number])
            source[row, here], positions[row, here], sequences[row, here] = number * width + steps, steps, number
    return Packing(source, positions, sequences, len(lengths), width)


def packed_states(body: Any, ids: Tensor, packing: Packing) -> Tensor:
    """Return the last hidden states of ids, int64 `[batch, length]`: `[batch, length, width]`, zero at padding."""
    packing = packing.to(ids.device)
    used = packing.source >= 0
    tokens = ids.reshape(-1)[packing.source.clamp(min=0)]
    dtype = body.get_input_embeddings()(tokens[:, :1]).dtype
    with sharing_rows(packing):
        states: Tensor = body(
            input_ids=tokens, attention_mask=packing.mask(dtype), position_ids=packing.positions, use_cache=False
        ).last_hidden_state
    out: Tensor = states.new_zeros(ids.numel(), states.shape[-1])
    out[packing.source[used]] = states[used]
    return out.view(*ids.shape, -1)


def worth_packing(lengths: Sequence[int], width: int) -> bool:
    """Whether more than a tenth of a padded batch is padding."""
    return sum(lengths) < _WORTH * len(lengths) * width


def packable(model: nn.Module, length: int) -> bool:
    """Whether packed sequences have the states that they have alone: tried once on two of them, whatever the model is.

    A model that carries a state from token to token, or takes no mask of its own, does not pack; nor does one whose
    attention ends within a row.
    """
    if model not in _packable:
        with trial():
            _packable[model] = _tried(model)
        if not _packable[model]:
            log.info("%s: sequences cannot share a row; short ones are padded instead", type(model).__name__)
    windows = (getattr(text_config(model), name, None) for name in _WINDOWS)
    return _packable[model] and all(not window or length <= window for window in windows)


def _tried(model: nn.Module) -> bool:
    """Whether a sequence has the states that it has alone, and the very same ones whoever is before it in its row."""
    body: Any = getattr(model, "base_model", None)
    names = inspect.signature(body.forward).parameters if body is not None else {}
    if not {"input_ids", "attention_mask", "position_ids"} <= set(names) or _carries(model):
        return False
    first, other, ids = ordinary_ids(model, 30).view(3, 10)
    alone = body(input_ids=ids[None], use_cache=False).last_hidden_state[0, :6]
    try:
        beside = [_second(body, torch.stack([neighbour, ids])) for neighbour in (first, other)]
    except Exception as error:  # whatever a model says that takes no mask of this form
        if is_out_of_memory(error):
            raise
        return False
    return _distance(alone, beside[0]) < _SAME and _distance(*beside) < _UNMOVED.get(alone.dtype, _UNMOVED_ELSE)


def _second(body: Any, ids: Tensor) -> Tensor:
    """Return the states of six tokens of the second sequence, which shares a row with ten of the first."""
    return packed_states(body, ids, pack([10, 6], 10, 16))[1, :6]


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).float().norm() / one.float().norm())


def _carries(model: nn.Module) -> bool:
    """Whether the config says that some layers carry a state from token to token."""
    kinds = getattr(text_config(model), "layer_types", None) or ()
    return any(part in str(kind) for kind in kinds for part in _CARRYING)
