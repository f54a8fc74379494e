"""Plain weights as their own base: theta lies in one scratch buffer while the forward is in the layer that reads it.

A flat buffer keeps a copy of the base, which of the weights themselves would be a second model. Here the storage of the
parameter is the base and is never written. A hook before a module composes theta, or a probe of it, into scratch memory
and points the parameter there; a hook behind it, which runs when the forward raises, too, points it back. Values and
noise are those of a flat buffer, to the bit. A native matrix is called for each tile that is read: of the rows of the
tile alone theta is composed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels.noise.definition import Kind, Noise
from zoquant.native import DenseWeight
from zoquant.protocol import ScaleView
from zoquant.views.flat_buffer import FlatBuffer
from zoquant.views.layout import Chunk, Piece, Plane, keeps_sign

ALIGNMENT = 64
"""Bytes: where a parameter starts in the scratch buffer."""

StreamedTensor = tuple[int, Tensor, Tensor]
"""A tensor of a module that a view is streamed into: number of the view, the tensor, and its base."""


class StreamedBuffer(FlatBuffer):
    """Delta of the plain weights of one device; their base is the model's own storage.

    Memory: 4 bytes a value for delta, and a scratch buffer as large as the largest module's own parameters, with those
    of the modules around it. Threads in a forward take turns, a module at a time.

    Args:
        views: views over parameters or buffers of `model`, each contiguous, with their keys as names.
        device: their device.
        model: the model whose modules get the hooks.

    Raises:
        UnsupportedLayoutError: a view is no tensor of a module, its module is read without being called, or other views
            stream it already.
    """

    def __init__(self, views: Sequence[ScaleView], device: torch.device, *, model: nn.Module) -> None:
        streamed = _streamed(model, views)
        super().__init__(views, device)
        self._pending: tuple[int | None, float, Kind | Noise] | None = None
        self._closed = False
        with torch.inference_mode(False):
            self._scratch = torch.empty(_deepest(model, streamed), dtype=torch.uint8, device=device)
        self._inside: list[tuple[nn.Module, list[StreamedTensor], int]] = []
        self._turn = RLock()
        self._hooks = [
            hook
            for module, own in streamed.items()
            for hook in (
                module.register_forward_pre_hook(_Hook(self, own)),
                module.register_forward_hook(lambda module, args, output: self._leave(module), always_call=True),
            )
        ]

    def write(self, *, seed: int | None = None, eps: float = 0.0, noise: Kind | Noise = "rademacher") -> None:
        """Say what the next forwards shall see: theta, or a probe of it. Writes no weight."""
        if self._closed:
            raise UnsupportedLayoutError("streamed weights: their views were closed. Attach the model again.")
        self._leave_all()
        moves = seed is not None or bool(self.delta.any())
        self._pending = (seed, eps, noise) if moves else None

    def close(self) -> None:
        """Take the hooks away: the forwards see the weights as they are stored, and nothing is written any more."""
        self._leave_all()
        while self._hooks:
            self._hooks.pop().remove()
        self._pending, self._closed = None, True

    def _runs(self, pieces: Sequence[Piece], limit: int) -> list[list[Piece]]:
        return [[piece] for piece in pieces]

    def _chunk(self, run: Sequence[Piece]) -> Chunk:
        """Return a chunk whose base is a part of the parameter itself."""
        (piece,) = run
        (view,) = self.slots[piece.slot]
        base = _live(view).view(-1)[piece.first : piece.first + piece.count]
        return Chunk((piece,), (Plane(base, ([], []), [], keeps_sign(view.role)),))

    def _enter(self, module: nn.Module, own: list[StreamedTensor], rows: slice | Tensor | None) -> None:
        """Point the parameters of a module to theta, of which no more is there than the rows that will be read."""
        if self._pending is None:
            return
        self._turn.acquire()
        start = self._inside[-1][2] if self._inside else 0
        self._inside.append((module, own, start + sum(_size(base) for _, _, base in own)))
        for index, tensor, base in own:
            place = self._scratch[start : start + base.nbytes].view(base.dtype).view(base.shape)
            self._theta_into(index, place, rows)
            tensor.data = place
            start += _size(base)

    def _leave(self, module: nn.Module) -> None:
        """Point the parameters of a module back to their base."""
        if self._inside and self._inside[-1][0] is module:
            self._leave_last()
            self._turn.release()

    def _leave_last(self) -> None:
        for _, tensor, base in self._inside.pop()[1]:
            tensor.data = base

    def _leave_all(self) -> None:
        """Leave what was left behind by what is no Exception, such as KeyboardInterrupt."""
        while self._inside:
            self._leave_last()
        self._turn = RLock()

    def _theta_into(self, index: int, out: Tensor, rows: slice | Tensor | None = None) -> None:
        """Compose a view, or the chunks of it that some of its rows lie in."""
        seed, eps, noise = self._pending or (None, 0.0, "rademacher")
        flat, chunks = out.view(-1), [chunk for chunk, _ in self._parts[index]]
        for chunk in chunks if rows is None else _holding(chunks, rows, *out.shape):
            piece, plane = chunk.pieces[0], chunk.planes[0]
            theta = self._compose(plane, self._probe(chunk, seed, eps, noise))
            flat[piece.first : piece.first + piece.count].copy_(theta[: piece.count])


class _Hook:
    """Enters a module that is called."""

    def __init__(self, buffer: StreamedBuffer, own: list[StreamedTensor]) -> None:
        self.buffer, self.own = buffer, own

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.buffer._enter(module, self.own, args[0] if isinstance(module, DenseWeight) else None)

    def leave(self, module: nn.Module) -> None:
        self.buffer._leave(module)


@contextmanager
def as_called(module: nn.Module) -> Iterator[None]:
    """Let who reads the parameters of a module without a call see within a `with` what its own forward would see."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _Hook)]
    try:
        for hook in hooks:
            hook(module, ())
        yield
    finally:
        for hook in hooks:
            hook.leave(module)


def _holding(chunks: Sequence[Chunk], rows: slice | Tensor, height: int, width: int) -> Iterator[Chunk]:
    """Yield the chunks of a matrix that some of its rows lie in."""
    wanted = torch.zeros(height, dtype=torch.bool)
    wanted[rows.cpu() if isinstance(rows, Tensor) else rows] = True
    for chunk in chunks:
        piece = chunk.pieces[0]
        if bool(wanted[piece.first // width : (piece.first + piece.count - 1) // width + 1].any()):
            yield chunk


def _streamed(model: nn.Module, views: Sequence[ScaleView]) -> dict[nn.Module, list[StreamedTensor]]:
    """Return for every module the views that lie in it; tied weights are in several."""
    numbers = {(_live(view).data_ptr(), view.shape): index for index, view in enumerate(views) if _live(view).numel()}
    found: dict[nn.Module, list[StreamedTensor]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            index = None if tensor is None else numbers.get((tensor.data_ptr(), tuple(tensor.shape)))
            if tensor is not None and index is not None:
                found.setdefault(module, []).append((index, tensor, tensor.data))
    held = {index for own in found.values() for index, _, _ in own}
    attentions = (module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    hidden = {id(part) for attention in attentions for part in attention.children()}
    for index, view in enumerate(views):
        if index not in held and _live(view).numel():
            raise _error(view, "is no parameter and no buffer of a module")
    for module, own in found.items():
        if id(module) in hidden:
            raise _error(views[own[0][0]], "is read by torch.nn.MultiheadAttention without a call of its own module")
        if any(isinstance(hook, _Hook) for hook in module._forward_pre_hooks.values()):
            raise _error(views[own[0][0]], "is streamed by other views, which have to be closed first")
    return found


def _deepest(model: nn.Module, streamed: dict[nn.Module, list[StreamedTensor]]) -> int:
    """Return the most bytes of theta that are in use at once: a module's, and those of the modules around it."""
    own = sum(_size(base) for _, _, base in streamed.get(model, []))
    return own + max((_deepest(child, streamed) for child in model.children()), default=0)


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
