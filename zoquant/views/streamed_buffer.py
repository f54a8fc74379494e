"""Plain weights as their own base: theta lies in one scratch buffer while the forward is in the layer that reads it.

A flat buffer keeps a copy of the base beside the storage that the forward reads. For scales that is little; for the
weights themselves it is a second model. Here the storage of the parameter is the base and is never written. A hook
before a module composes theta, or a probe of it, into scratch memory and points the parameter there; a hook behind it,
which runs when the forward raises, too, points it back. Values and noise are those of a flat buffer, to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.noise.definition import Kind, Noise
from zoquant.protocol import ScaleView
from zoquant.views.flat_buffer import FlatBuffer
from zoquant.views.layout import Chunk, Piece, Plane, keeps_sign

ALIGNMENT = 64
"""Bytes: where a parameter starts in the scratch buffer."""

Place = tuple[int, Tensor, Tensor]
"""A tensor of a module that a view is streamed into: number of the view, the tensor, and its base."""


class StreamedBuffer(FlatBuffer):
    """Delta of the plain weights of one device; their base is the model's own storage.

    Memory: 4 bytes a value for delta, and a scratch buffer as large as the largest module's own parameters, with those
    of the modules around it.

    Args:
        views: views over parameters or buffers of `model`, each contiguous, with their keys as names.
        device: their device.
        model: the model whose modules get the hooks.

    Raises:
        UnsupportedLayoutError: a view is no tensor of a module, or its module is read without being called.
    """

    def __init__(self, views: Sequence[ScaleView], device: torch.device, *, model: nn.Module) -> None:
        places = _places(model, views)
        super().__init__(views, device)
        self._pending: tuple[int | None, float, Kind | Noise] | None = None
        self._chunks_of: dict[int, list[Chunk]] = {}
        for chunk in self._chunks:
            self._chunks_of.setdefault(chunk.pieces[0].slot, []).append(chunk)
        with torch.inference_mode(False):
            self._scratch = torch.empty(_deepest(model, places), dtype=torch.uint8, device=device)
        self._inside: list[tuple[nn.Module, list[Place], int]] = []
        self._hooks = [
            hook
            for module, own in places.items()
            for hook in (
                module.register_forward_pre_hook(lambda module, args, own=own: self._enter(module, own)),
                module.register_forward_hook(lambda module, args, output: self._leave(module), always_call=True),
            )
        ]

    def write(self, *, seed: int | None = None, eps: float = 0.0, noise: Kind | Noise = "rademacher") -> None:
        """Say what the next forwards shall see: theta, or a probe of it. Writes no weight."""
        while self._inside:  # left behind by what is no Exception, such as KeyboardInterrupt
            self._leave(self._inside[-1][0])
        moves = seed is not None or bool(self.delta.any())
        self._pending = (seed, eps, noise) if moves else None

    def fold(self) -> None:
        """Write theta into the weights themselves and take the hooks away. The base is gone: load it to train again."""
        self.write()
        for hook in self._hooks:
            hook.remove()
        for index, view in enumerate(self.views):
            self._theta_into(index, _live(view))
        self.delta.zero_()
        self._pending = None

    def _runs(self, pieces: Sequence[Piece], limit: int) -> list[list[Piece]]:
        return [[piece] for piece in pieces]

    def _chunk(self, run: Sequence[Piece]) -> Chunk:
        """Return a chunk whose base is a part of the parameter itself."""
        (piece,) = run
        (view,) = self.slots[piece.slot]
        base = _live(view).view(-1)[piece.first : piece.first + piece.count]
        return Chunk((piece,), (Plane(base, ([], []), [], keeps_sign(view.role)),))

    def _enter(self, module: nn.Module, own: list[Place]) -> None:
        """Point the parameters of a module to theta."""
        if self._pending is None:
            return
        start = self._inside[-1][2] if self._inside else 0
        self._inside.append((module, own, start + sum(_size(base) for _, _, base in own)))
        for index, tensor, base in own:
            place = self._scratch[start : start + base.nbytes].view(base.dtype).view(base.shape)
            self._theta_into(index, place)
            tensor.data = place
            start += _size(base)

    def _leave(self, module: nn.Module) -> None:
        """Point the parameters of a module back to their base."""
        if self._inside and self._inside[-1][0] is module:
            for _, tensor, base in self._inside.pop()[1]:
                tensor.data = base

    def _theta_into(self, index: int, out: Tensor) -> None:
        seed, eps, noise = self._pending or (None, 0.0, "rademacher")
        flat = out.view(-1)
        for chunk in self._chunks_of.get(index, []):
            piece, plane = chunk.pieces[0], chunk.planes[0]
            theta = self._compose(plane, self._probe(chunk, seed, eps, noise))
            flat[piece.first : piece.first + piece.count].copy_(theta[: piece.count])


def _places(model: nn.Module, views: Sequence[ScaleView]) -> dict[nn.Module, list[Place]]:
    """Return for every module the views that lie in it; tied weights are in several.

    Raises:
        UnsupportedLayoutError: see `StreamedBuffer`.
    """
    numbers = {(_live(view).data_ptr(), view.shape): index for index, view in enumerate(views) if _live(view).numel()}
    places: dict[nn.Module, list[Place]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            index = None if tensor is None else numbers.get((tensor.data_ptr(), tuple(tensor.shape)))
            if tensor is not None and index is not None:
                places.setdefault(module, []).append((index, tensor, tensor.data))
    held = {index for own in places.values() for index, _, _ in own}
    hidden = {
        id(part)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for part in module.children()
    }
    for index, view in enumerate(views):
        if index not in held and _live(view).numel():
            raise _error(view, "is no parameter and no buffer of a module")
    for module, own in places.items():
        if id(module) in hidden:
            raise _error(views[own[0][0]], "is read by torch.nn.MultiheadAttention without a call of its own module")
    return places


def _deepest(model: nn.Module, places: dict[nn.Module, list[Place]]) -> int:
    """Return the most bytes of theta that are in use at once: a module's, and those of the modules around it."""
    own = sum(_size(base) for _, _, base in places.get(model, []))
    return own + max((_deepest(child, places) for child in model.children()), default=0)


def _size(base: Tensor) -> int:
    return -(-base.nbytes // ALIGNMENT) * ALIGNMENT


def _live(view: Any) -> Tensor:
    live: Tensor | None = view.live
    if live is None or not live.is_contiguous() or live.is_inference():
        raise _error(view, "is no plain contiguous tensor")
    return live


def _error(view: ScaleView, what: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"{view.name}: {what}, so it cannot be streamed. Attach with streamed=False, or leave it out with "
        f"exclude={view.name!r}."
    )
