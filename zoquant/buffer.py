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
    """Neighbouring views of one dtype.

    Attributes:
        start: where the chunk begins in the buffer.
        stop: where it ends.
        theta: the chunk's scratch memory, shared by all chunks.
        plain: storages of views that are plain tensors, and their places in `theta`.
        others: views that have to be written one by one, and their places in `theta`.
        dtype: dtype that stores the values.
        keep_sign: whether the values stop at zero.
    """

    start: int
    stop: int
    theta: Tensor
    plain: tuple[list[Tensor], list[Tensor]]
    others: list[tuple[ScaleView, Tensor]]
    dtype: torch.dtype
    keep_sign: bool


class FlatBuffer:
    """Base and delta of the views of one device.

    Args:
        views: the views, all on `device`, with their keys as names.
        device: the device.

    Attributes:
        base: float32 `[n]`, the values at attach time; a view starts at a multiple of `noise.BLOCK`, the gaps hold 0.
        delta: float32 `[n]`, what training added, in units of `space`.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
        coupled: whether the views of one layer and shape share their noise.
    """

    def __init__(self, views: Sequence[ScaleView], device: torch.device) -> None:
        self.views = tuple(views)
        self.device = device
        self.space: Space = "relative"
        self.coupled = False
        self.counts = [view_count(view) for view in views]
        self.offsets: list[int] = []
        size = 0
        for count in self.counts:
            self.offsets.append(size)
            size += -(-count // BLOCK) * BLOCK
        runs = list(self._cut())
        longest = max((self._end(run) - self.offsets[run[0]] for run in runs), default=0)
        with torch.inference_mode(False):  # a buffer made under inference mode could not be written outside of it
            self.base = torch.zeros(size, dtype=torch.float32, device=device)
            self.delta = torch.zeros_like(self.base)
            self._theta = torch.empty(longest, dtype=torch.float32, device=device)
            self._noise = torch.empty_like(self._theta)
            self._chunks = [self._chunk(run) for run in runs]
        for view, offset, count in zip(self.views, self.offsets, self.counts, strict=True):
            self.base[offset : offset + count] = view.read().view(-1)
        self._source: NoiseSource | None = None
        self._drawn: tuple[Kind, bool] | None = None

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
            self._probe(chunk, seed, eps, noise)
            self._store(chunk)

    def add(self, seed: int, amount: float, noise: Kind) -> None:
        """Move delta by `amount` times the direction of `seed`. Writes no view."""
        source = self._source_of(noise)
        for chunk in self._chunks:
            z = source.draw(seed, chunk.start, self._noise[: chunk.stop - chunk.start])
            self.delta[chunk.start : chunk.stop].add_(z.mul_(amount))  # not alpha=, which is fused where it can be

    def count_moved(self, seed: int, eps: float, noise: Kind) -> int:
        """Return how many stored values differ between theta and a probe of it."""
        moved = 0
        for chunk in self._chunks:
            center = self._probe(chunk, None, 0.0, noise).to(chunk.dtype, copy=True)
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
        if seed is None:
            chunk.theta.copy_(delta)
        else:
            z = self._source_of(noise).draw(seed, chunk.start, self._noise[: chunk.stop - chunk.start])
            torch.add(delta, z, alpha=eps, out=chunk.theta)
        return compose(chunk.theta, base, space=self.space, keep_sign=chunk.keep_sign, dtype=chunk.dtype)

    def _store(self, chunk: _Chunk) -> None:
        """Write what stands in the scratch memory of a chunk into its views."""
        with torch.no_grad():
            if chunk.plain[0]:
                torch._foreach_copy_(*chunk.plain)
        for view, value in chunk.others:
            view.write(value)

    def _source_of(self, noise: Kind) -> NoiseSource:
        wanted = (noise, self.coupled)
        if self._source is None or self._drawn != wanted:
            keys = [coupled_key(view) if self.coupled else view.name for view in self.views]
            with torch.inference_mode(False):
                self._source = NoiseSource(keys, self.counts, noise, self.device)
            self._drawn = wanted
        return self._source

    def _cut(self) -> Iterator[list[int]]:
        """Cut the buffer into runs of views of one dtype, each of a size that suits the device, or of one view."""
        limit = _CHUNK.get(self.device.type, _CHUNK_ELSEWHERE)
        run: list[int] = []
        for index in range(len(self.views)):
            if run and not self._fits(run[0], index, limit):
                yield run
                run = []
            run.append(index)
        if run:
            yield run

    def _fits(self, first: int, index: int, limit: int) -> bool:
        one, other = self.views[first], self.views[index]
        same = one.dtype == other.dtype and keeps_sign(one.role) == keeps_sign(other.role)
        return same and self._end([index]) - self.offsets[first] <= limit

    def _end(self, run: list[int]) -> int:
        return self.offsets[run[-1]] + -(-self.counts[run[-1]] // BLOCK) * BLOCK

    def _chunk(self, run: list[int]) -> _Chunk:
        start, stop = self.offsets[run[0]], self._end(run)
        plain: tuple[list[Tensor], list[Tensor]] = ([], [])
        others: list[tuple[ScaleView, Tensor]] = []
        for index in run:
            view = self.views[index]
            place = self._theta[self.offsets[index] - start :][: self.counts[index]].view(view.shape)
            if view.live is None or view.live.is_inference():
                others.append((view, place))
            else:
                plain[0].append(view.live)
                plain[1].append(place)
        first = self.views[run[0]]
        theta = self._theta[: stop - start]
        return _Chunk(start, stop, theta, plain, others, first.dtype, keeps_sign(first.role))


def compose(delta: Tensor, base: Tensor, *, space: Space, keep_sign: bool, dtype: torch.dtype) -> Tensor:
    """Turn `delta` into theta in place: the one place where base and delta meet, for training and for export.

    Args:
        delta: float32, overwritten with theta.
        base: float32, of the same shape.
        space: `"relative"`: base + base · delta; `"absolute"`: base + delta.
        keep_sign: stop at zero instead of crossing it.
        dtype: the dtype that will store theta; its finite range is kept.

    Returns:
        `delta`, now theta.
    """
    if space == "relative":
        if keep_sign:
            delta.clamp_(min=-1.0)
        delta.mul_(base).add_(base)  # two roundings on every machine: a fused multiply-add has one
    else:
        delta.neg_().sub_(base).neg_()  # base + delta, but -0 + 0 stays -0: a delta of zero moves no byte
        if keep_sign:
            sign = base.sign()
            delta.mul_(sign).clamp_(min=0.0).copysign_(base)
    limit = torch.finfo(dtype).max
    return delta.clamp_(-limit, limit)


def coupled_key(view: ScaleView) -> str:
    """Return the key of the noise that the views of one layer and shape share, such as `d` and `m` of a GGUF block."""
    return f"{view.name.rpartition('.')[0]}{list(view.shape)}"


def keeps_sign(role: Role) -> bool:
    """Whether values of a role never cross zero: a scale that does turns its weights upside down."""
    return role == "scale"


def view_count(view: ScaleView) -> int:
    """Return the number of elements of a view."""
    return int(torch.Size(view.shape).numel())
