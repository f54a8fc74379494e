"""Theta from base and delta into every plain view at once, with no scratch memory between.

On a GPU the launches are one for each dtype and kind of sign, whatever the number of views and layers; on a CPU there
is one walk. Views that are no plain tensors, and values in other dtypes, stay with the torch code of
`zoquant.views.flat_buffer`, which is the definition.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoquant.kernels.choice import WriteKernels, write_kernels
from zoquant.kernels.noise.definition import BLOCK
from zoquant.kernels.noise.source import NoiseSource
from zoquant.kernels.write.stretch import Stretch
from zoquant.views.layout import Chunk, Plane, padded


class FusedWriter:
    """The views of the chunks of a buffer that compiled code writes by itself."""

    def __init__(self, chunks: Sequence[Chunk], kernels: WriteKernels[Any], device: torch.device) -> None:
        self._kernels = kernels
        groups: dict[tuple[torch.dtype, bool], list[Stretch]] = {}
        for chunk in chunks:
            for plane in filter(self.holds, chunk.planes):
                groups.setdefault((plane.base.dtype, plane.keep_sign), []).extend(self._stretches(chunk, plane))
        with torch.inference_mode(False):
            self._tables = kernels.tables_of(groups, device)

    def holds(self, plane: Plane) -> bool:
        """Whether a plane is written here as a whole."""
        return not plane.others and plane.base.dtype in self._kernels.DTYPES

    def write(self, delta: Tensor, source: NoiseSource | None, *, relative: bool, seed: int, eps: float) -> None:
        """Write theta, or with a source a probe of it, into every view that is held: see `FlatBuffer.write`."""
        noise = None if source is None else source.definition
        for table in self._tables:
            self._kernels.write(table, delta, relative=relative, noise=noise, seed=seed, eps=eps)

    def _stretches(self, chunk: Chunk, plane: Plane) -> Iterable[Stretch]:
        for target, theta in zip(*plane.plain, strict=True):
            start = theta.storage_offset()
            base = plane.base[start : start + padded(target.numel())]
            yield Stretch(base, target, (chunk.start + start) // BLOCK)


def fused_writer(chunks: Sequence[Chunk], device: torch.device) -> FusedWriter | None:
    """Return what writes the views of a buffer at once; None where the torch code does."""
    kernels = write_kernels(device)
    return None if kernels is None else FusedWriter(chunks, kernels, device)
