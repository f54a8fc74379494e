"""All views of one device as one flat buffer: base, delta, and the writing of theta = base + delta.

Theta is always computed from base and delta in float32, never by adding to what is stored, so nothing drifts. Base is
kept in the dtype that stores it, which loses nothing. The buffer is walked in chunks: noise, perturbation and cast
happen while a chunk lies in the cache, and one multi-tensor copy writes its views that are plain tensors.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from zoquant.kernels.noise.definition import Kind, Noise, as_noise
from zoquant.kernels.noise.source import NoiseSource
from zoquant.protocol import ScaleView
from zoquant.views.fused_write import fused_writer
from zoquant.views.layout import Chunk, Piece, Plane, chunk_of, coupled_key, pieces_of, runs_of, slots_of, view_count

Space = Literal["relative", "absolute"]
SPACES: tuple[Space, ...] = ("relative", "absolute")

_CHUNK = {"cpu": 1 << 17}
_CHUNK_ELSEWHERE = 1 << 22


class FlatBuffer:
    """Base and delta of the views of one device.

    Args:
        views: the views, all on `device`, with their keys as names.
        device: the device.
        coupled: let the views of one layer, role and shape share their delta, and so their noise.

    Attributes:
        delta: float32 `[n]`, what training added, in units of `space`; slots start at multiples of `noise.BLOCK`.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
    """

    def __init__(self, views: Sequence[ScaleView], device: torch.device, *, coupled: bool = False) -> None:
        self.views = tuple(views)
        self.device = device
        self.coupled = coupled
        self.space: Space = "relative"
        self.slots = slots_of(views, coupled=coupled)
        self._home = {view.name: (n, level) for n, slot in enumerate(self.slots) for level, view in enumerate(slot)}
        limit = _CHUNK.get(device.type, _CHUNK_ELSEWHERE)
        pieces = pieces_of(self.slots, limit)
        runs = self._runs(pieces, limit)
        longest = max((run[-1].stop - run[0].start for run in runs), default=0)
        with torch.inference_mode(False):  # a buffer made under inference mode could not be written outside of it
            self.delta = torch.zeros(pieces[-1].stop if pieces else 0, dtype=torch.float32, device=device)
            self._probed = torch.empty(longest, dtype=torch.float32, device=device)
            self._theta = torch.empty_like(self._probed)
            self._base = torch.empty_like(self._probed)
            self._chunks = [self._chunk(run) for run in runs]
        self._parts: dict[int, list[tuple[Chunk, Piece]]] = {number: [] for number in range(len(self.slots))}
        for chunk in self._chunks:
            for piece in chunk.pieces:
                self._parts[piece.slot].append((chunk, piece))
        self._fused = fused_writer(self._chunks, device)
        self._starts = {piece.slot: piece.start for piece in reversed(pieces)}  # an empty view has no piece
        self._source: NoiseSource | None = None

    def _runs(self, pieces: Sequence[Piece], limit: int) -> list[list[Piece]]:
        return list(runs_of(self.slots, pieces, limit))

    def _chunk(self, run: Sequence[Piece]) -> Chunk:
        """Return the chunk of a run, with the base of its values."""
        return chunk_of(self.slots, run, self._theta)

    def slice_of(self, index: int) -> slice:
        """Return where the delta of view number `index` lies in the buffer."""
        view = self.views[index]
        start = self._starts.get(self._home[view.name][0], 0)
        return slice(start, start + view_count(view))

    def write(self, *, seed: int | None = None, eps: float = 0.0, noise: Kind | Noise = "rademacher") -> None:
        """Write theta, or a probe of it of signed length `eps` in units of `space`, into every view."""
        source = None if seed is None else self.source_of(noise)
        fused = None if source is not None and source.kernels is None else self._fused
        if fused is not None:
            fused.write(self.delta, source, relative=self.space == "relative", seed=seed or 0, eps=eps)
        for chunk in self._chunks:
            planes = [plane for plane in chunk.planes if fused is None or not fused.holds(plane)]
            if not planes:
                continue
            probed = self._probe(chunk, seed, eps, noise)
            for plane in planes:
                self._compose(plane, probed)
                plane.store()

    def add(self, seed: int, amount: float, noise: Kind | Noise) -> None:
        """Move delta by `amount` times the direction of `seed`. Writes no view."""
        source = self.source_of(noise)
        source.prepare([seed])
        for place in self.tiles():
            source.accumulate(self.delta[place], place.start, [seed], [amount])

    def tiles(self) -> list[slice]:
        """Return the stretches that the buffer is walked in: each fits the cache."""
        return [slice(chunk.start, chunk.stop) for chunk in self._chunks]

    def count_moved(self, seed: int, eps: float, noise: Kind | Noise) -> int:
        """Return how many stored values differ between theta and a probe of it."""
        moved = 0
        for chunk in self._chunks:
            held = torch.zeros(chunk.stop - chunk.start, dtype=torch.bool, device=self.device)
            for piece in chunk.pieces:
                held[piece.start - chunk.start :][: piece.count] = True
            for plane in chunk.planes:
                center = self._compose(plane, self._probe(chunk, None, 0.0, noise)).to(plane.base.dtype, copy=True)
                probe = self._compose(plane, self._probe(chunk, seed, eps, noise)).to(plane.base.dtype)
                moved += int((probe.float() != center.float()).logical_and_(held).sum())
        return moved

    def base(self, index: int) -> Tensor:
        """Return the values that view number `index` had at attach time, float32, in its shape. A copy."""
        return self._gather(self.views[index], lambda chunk, plane: plane.base).float()

    def theta(self, index: int) -> Tensor:
        """Return theta of view number `index`, float32, in the shape of the view, before the cast to its dtype."""
        return self._gather(
            self.views[index], lambda chunk, plane: self._compose(plane, self.delta[chunk.start : chunk.stop])
        )

    def _probe(self, chunk: Chunk, seed: int | None, eps: float, noise: Kind | Noise) -> Tensor:
        """Return delta + eps · z of a chunk in scratch memory."""
        delta, probed = self.delta[chunk.start : chunk.stop], self._probed[: chunk.stop - chunk.start]
        if seed is None:
            return probed.copy_(delta)
        return self.source_of(noise).probe(seed, chunk.start, delta, eps, probed)

    def _compose(self, plane: Plane, probed: Tensor) -> Tensor:
        """Return theta of a plane in scratch memory."""
        base = self._base[: probed.numel()]
        base[: plane.base.numel()].copy_(plane.base)
        theta = self._theta[: probed.numel()]
        return compose(probed, base, theta, space=self.space, keep_sign=plane.keep_sign, dtype=plane.base.dtype)

    def _gather(self, view: ScaleView, values: Callable[[Chunk, Plane], Tensor]) -> Tensor:
        """Return the values of one view from all chunks that hold a piece of it."""
        slot, level = self._home[view.name]
        found = [torch.empty(0, dtype=torch.float32, device=self.device)]
        for chunk, piece in self._parts[slot]:
            start = piece.start - chunk.start
            found.append(values(chunk, chunk.planes[level])[start : start + piece.count].clone())
        return torch.cat(found).view(view.shape)

    def source_of(self, noise: Kind | Noise) -> NoiseSource:
        """Return the source that draws a noise for this layout; the last one is kept."""
        chosen = as_noise(noise)
        if self._source is None or self._source.noise != chosen:
            first = [slot[0] for slot in self.slots]
            keys = [coupled_key(v.name, v.role, v.shape) if self.coupled else v.name for v in first]
            counts = [view_count(slot[0]) for slot in self.slots]
            with torch.inference_mode(False):
                self._source = NoiseSource(keys, counts, chosen, self.device)
        return self._source


def compose(delta: Tensor, base: Tensor, out: Tensor, *, space: Space, keep_sign: bool, dtype: torch.dtype) -> Tensor:
    """Compute theta: the one place where base and delta meet, for training and for export.

    Args:
        delta: float32.
        base: float32, of the same shape.
        out: float32, of the same shape, overwritten with theta and returned; may be `delta`.
        space: `"relative"`: base + base · delta; `"absolute"`: base + delta.
        keep_sign: stop at zero instead of crossing it.
        dtype: the dtype that will store theta; its finite range is kept.
    """
    if space == "relative":
        kept = torch.clamp(delta, min=-1.0, out=out) if keep_sign else delta
        torch.mul(kept, base, out=out).add_(base)  # two roundings on every machine: a fused multiply-add has one
    else:
        torch.neg(delta, out=out).sub_(base).neg_()  # base + delta, but -0 + 0 stays -0: zero delta moves no byte
        if keep_sign:
            out.mul_(base.sign()).clamp_(min=0.0).copysign_(base)
    limit = torch.finfo(dtype).max
    return out.clamp_(-limit, limit)
