"""All views of one device as one flat float32 buffer: base, delta, and the writing of theta = base + delta.

Theta is always computed from base and delta, never by adding to what is stored, so nothing drifts. The buffer is
walked in chunks of whole views: noise, perturbation and cast happen while a chunk lies in the cache, and one
multi-tensor copy writes the views of a chunk that are plain tensors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoquant.noise import BLOCK, Kind, NoiseSource
from zoquant.protocol import Role, ScaleView

Space = Literal["relative", "absolute"]
SPACES: tuple[Space, ...] = ("relative", "absolute")

_CHUNK = {"cpu": 1 << 18}
_CHUNK_ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class _Chunk:
    """Neighbouring views of one dtype, and where they lie in the buffer."""

    start: int
    stop: int
    views: tuple[ScaleView, ...]
    offsets: tuple[int, ...]
    dtype: torch.dtype
    signed: bool


class FlatBuffer:
    """Base and delta of the views of one device.

    Args:
        views: the views, all on `device`, with their keys as names.
        device: the device.

    Attributes:
        base: float32 `[n]`, the values at attach time; a view starts at a multiple of `noise.BLOCK`, the gaps hold 0.
        delta: float32 `[n]`, what training added, in units of `space`.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
    """

    def __init__(self, views: Sequence[ScaleView], device: torch.device) -> None:
        self.views = tuple(views)
        self.device = device
        self.space: Space = "relative"
        self.counts = [view_count(view) for view in views]
        self.offsets: list[int] = []
        size = 0
        for count in self.counts:
            self.offsets.append(size)
            size += -(-count // BLOCK) * BLOCK
        self._chunks = list(self._cut())
        longest = max((chunk.stop - chunk.start for chunk in self._chunks), default=0)
        with torch.inference_mode(False):
            self.base = torch.zeros(size, dtype=torch.float32, device=device)
            self.delta = torch.zeros_like(self.base)
            self._theta = torch.empty(longest, dtype=torch.float32, device=device)
            self._noise = torch.empty_like(self._theta)
        for view, offset, count in zip(self.views, self.offsets, self.counts, strict=True):
            self.base[offset : offset + count] = view.read().view(-1)
        self._source: NoiseSource | None = None

    def slice_of(self, index: int) -> slice:
        """Return where view number `index` lies in the buffer."""
        return slice(self.offsets[index], self.offsets[index] + self.counts[index])

    def write(self, *, seed: int | None = None, eps: float = 0.0, noise: Kind = "rademacher") -> None:
        """Write theta, or a probe of it, into every view.

        Args:
            seed: seed of the direction; None for theta itself.
            eps: signed length of the probe, in units of `space`.
            noise: distribution of the direction.
        """
        for chunk in self._chunks:
            self._store(chunk, self._probe(chunk, seed, eps, noise))

    def add(self, seed: int, amount: float, noise: Kind) -> None:
        """Move delta by `amount` times the direction of `seed`. Writes no view."""
        source = self._source_of(noise)
        for chunk in self._chunks:
            z = source.draw(seed, chunk.start, self._noise[: chunk.stop - chunk.start])
            self.delta[chunk.start : chunk.stop].add_(z, alpha=amount)

    def count_moved(self, seed: int, eps: float, noise: Kind) -> int:
        """Return how many stored values differ between theta and a probe of it."""
        moved = 0
        for chunk in self._chunks:
            center = self._probe(chunk, None, 0.0, noise).to(chunk.dtype)
            probe = self._probe(chunk, seed, eps, noise).to(chunk.dtype)
            moved += int((probe.float() != center.float()).sum())
        return moved

    def theta(self, index: int) -> Tensor:
        """Return theta of view number `index`, float32, in the shape of the view, before the cast to its dtype."""
        offset, view = self.offsets[index], self.views[index]
        (chunk,) = (c for c in self._chunks if c.start <= offset < c.stop)
        theta = self._probe(chunk, None, 0.0, "rademacher")
        start = offset - chunk.start
        return theta[start : start + self.counts[index]].view(view.shape).clone()

    def _probe(self, chunk: _Chunk, seed: int | None, eps: float, noise: Kind) -> Tensor:
        """Return theta + eps · z of a chunk in the scratch buffer, sign and range kept."""
        base, delta = self.base[chunk.start : chunk.stop], self.delta[chunk.start : chunk.stop]
        theta = self._theta[: chunk.stop - chunk.start]
        if seed is None:
            theta.copy_(delta)
        else:
            z = self._source_of(noise).draw(seed, chunk.start, self._noise[: chunk.stop - chunk.start])
            torch.add(delta, z, alpha=eps, out=theta)
        return compose(theta, base, space=self.space, keep_sign=chunk.signed, dtype=chunk.dtype)

    def _store(self, chunk: _Chunk, theta: Tensor) -> None:
        targets: list[Tensor] = []
        values: list[Tensor] = []
        for view, offset in zip(chunk.views, chunk.offsets, strict=True):
            start = offset - chunk.start
            value = theta[start : start + view_count(view)].view(view.shape)
            live = view.live
            if live is None or live.is_inference():
                view.write(value)
            else:
                targets.append(live)
                values.append(value)
        if targets:
            with torch.no_grad():
                torch._foreach_copy_(targets, values)

    def _source_of(self, noise: Kind) -> NoiseSource:
        if self._source is None or self._source.kind != noise:
            with torch.inference_mode(False):
                self._source = NoiseSource([view.name for view in self.views], self.counts, noise, self.device)
        return self._source

    def _cut(self) -> Iterator[_Chunk]:
        """Cut the buffer into runs of views of one dtype, each of a size that suits the device, or of one view."""
        limit = _CHUNK.get(self.device.type, _CHUNK_ELSEWHERE)
        run: list[int] = []
        for index in range(len(self.views) + 1):
            if run and (index == len(self.views) or not self._fits(run, index, limit)):
                yield self._chunk(run)
                run = []
            run.append(index)

    def _fits(self, run: list[int], index: int, limit: int) -> bool:
        first, view = self.views[run[0]], self.views[index]
        same = first.dtype == view.dtype and keeps_sign(first.role) == keeps_sign(view.role)
        return same and self.offsets[index] + self.counts[index] - self.offsets[run[0]] <= limit

    def _chunk(self, run: list[int]) -> _Chunk:
        last = self.offsets[run[-1]] + -(-self.counts[run[-1]] // BLOCK) * BLOCK
        views = tuple(self.views[index] for index in run)
        offsets = tuple(self.offsets[index] for index in run)
        return _Chunk(offsets[0], last, views, offsets, views[0].dtype, keeps_sign(views[0].role))


def compose(delta: Tensor, base: Tensor, *, space: Space, keep_sign: bool, dtype: torch.dtype) -> Tensor:
    """Turn `delta` into theta in place: the one place where base and delta meet, for training and for export.

    Args:
        delta: float32, overwritten with theta.
        base: float32, of the same shape.
        space: `"relative"`: base · (1 + delta); `"absolute"`: base + delta.
        keep_sign: stop at zero instead of crossing it.
        dtype: the dtype that will store theta; its finite range is kept.

    Returns:
        `delta`, now theta.
    """
    if space == "relative":
        delta.add_(1.0)
        if keep_sign:
            delta.clamp_(min=0.0)
        delta.mul_(base)
    else:
        delta.neg_().sub_(base).neg_()  # base + delta, but -0 + 0 stays -0: a delta of zero moves no byte
        if keep_sign:
            sign = base.sign()
            delta.mul_(sign).clamp_(min=0.0).copysign_(base)
    limit = torch.finfo(dtype).max
    return delta.clamp_(-limit, limit)


def keeps_sign(role: Role) -> bool:
    """Whether values of a role never cross zero: a scale that does turns its weights upside down."""
    return role == "scale"


def view_count(view: ScaleView) -> int:
    """Return the number of elements of a view."""
    return int(torch.Size(view.shape).numel())
