"""How views lie in a flat buffer: slots, pieces, and chunks that fit the cache.

A slot is a stretch of delta that belongs to one view, or to coupled views that move together. Slots are cut into
pieces, and neighbouring pieces of the same kinds of views are gathered into chunks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoquant.kernels.noise.definition import BLOCK
from zoquant.protocol import PLAIN_ROLES, Role, ScaleView
from zoquant.views.tensor_views import clamp_to

Slot = tuple[ScaleView, ...]


@dataclass(frozen=True)
class Piece:
    """A stretch of slot number `slot`.

    Attributes:
        start: where the piece begins in the buffer, a multiple of `noise.BLOCK`.
        first: its first element, counted in the view.
        count: its elements.
    """

    slot: int
    start: int
    first: int
    count: int

    @property
    def stop(self) -> int:
        """Where the piece ends in the buffer, the gap behind it included."""
        return self.start + padded(self.count)


@dataclass(frozen=True)
class Plane:
    """One view of every slot of a chunk, all of one dtype.

    Attributes:
        base: the values at attach time, in the dtype that stores them, `[stop - start]`; gaps hold 0.
        plain: storages of views that are plain tensors, and where in the scratch memory their theta is.
        others: views that have to be written one by one, and where their theta is.
        keep_sign: whether the values stop at zero.
    """

    base: Tensor
    plain: tuple[list[Tensor], list[Tensor]]
    others: list[tuple[ScaleView, Tensor]]
    keep_sign: bool

    def store(self) -> None:
        """Write what stands in the scratch memory into the views."""
        if self.plain[0]:
            with torch.no_grad():
                torch._foreach_copy_(*self.plain)
        for view, value in self.others:
            view.write(value)


@dataclass(frozen=True)
class Chunk:
    """A stretch of the buffer: its pieces, and planes of the first view of every slot, the second, and so on."""

    pieces: tuple[Piece, ...]
    planes: tuple[Plane, ...]

    @property
    def start(self) -> int:
        """Where the chunk begins in the buffer."""
        return self.pieces[0].start

    @property
    def stop(self) -> int:
        """Where the chunk ends in the buffer."""
        return self.pieces[-1].stop


def write_view(view: ScaleView, value: Tensor) -> None:
    """Write a view as a buffer does: into its storage if it is a plain tensor, else through its `write`."""
    if _is_plain(view) and view.live is not None:
        with torch.no_grad():
            view.live.copy_(clamp_to(view.dtype, value).view(view.live.shape))
    else:
        view.write(value)


def slots_of(views: Sequence[ScaleView], *, coupled: bool) -> list[Slot]:
    """Return the views of each slot, in the order of their first views."""
    slots: dict[str, list[ScaleView]] = {}
    for view in views:
        slots.setdefault(coupled_key(view.name, view.role, view.shape) if coupled else view.name, []).append(view)
    return [tuple(slot) for slot in slots.values()]


def coupled_key(name: str, role: Role, shape: Sequence[int]) -> str:
    """Return what the views of one layer, role and shape have in common, such as `d` and `dmin` of a GGUF block.

    Plain parameters have nothing in common, such as the weight and the bias of a norm, and get their own name.
    """
    if role in PLAIN_ROLES:
        return name
    return f"{name.rpartition('.')[0]}.{role}{list(shape)}"


def pieces_of(slots: Sequence[Slot], limit: int) -> list[Piece]:
    """Cut slots into pieces of at most `limit` elements; slots that are not plain contiguous tensors stay whole."""
    pieces, start = [], 0
    for number, slot in enumerate(slots):
        count = view_count(slot[0])
        step = limit if all(_is_plain(view) for view in slot) else count
        for first in range(0, count, max(step, 1)):
            pieces.append(Piece(number, start, first, min(step, count - first)))
            start = pieces[-1].stop
    return pieces


def runs_of(slots: Sequence[Slot], pieces: Sequence[Piece], limit: int) -> Iterator[list[Piece]]:
    """Gather neighbouring pieces of the same kinds of views into runs of at most `limit` elements, or of one piece."""
    run: list[Piece] = []
    for piece in pieces:
        alike = not run or _kinds(slots[run[0].slot]) == _kinds(slots[piece.slot])
        if run and not (alike and piece.stop - run[0].start <= limit):
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def chunk_of(slots: Sequence[Slot], run: Sequence[Piece], theta: Tensor) -> Chunk:
    """Return the chunk of a run, with places in the scratch memory `theta`."""
    depth = len(slots[run[0].slot])
    return Chunk(tuple(run), tuple(_plane(slots, run, level, theta) for level in range(depth)))


def keeps_sign(role: Role) -> bool:
    """Whether values of a role never cross zero: a scale that does turns its weights upside down."""
    return role == "scale"


def view_count(view: ScaleView) -> int:
    """Return the number of elements of a view."""
    return int(torch.Size(view.shape).numel())


def padded(count: int) -> int:
    """Return `count`, rounded up to a multiple of `noise.BLOCK`."""
    return -(-count // BLOCK) * BLOCK


def _plane(slots: Sequence[Slot], run: Sequence[Piece], level: int, theta: Tensor) -> Plane:
    first, start = slots[run[0].slot][level], run[0].start
    base = torch.zeros(run[-1].stop - start, dtype=first.dtype, device=first.device)
    plain: tuple[list[Tensor], list[Tensor]] = ([], [])
    others: list[tuple[ScaleView, Tensor]] = []
    for piece in run:
        view, place = slots[piece.slot][level], slice(piece.start - start, piece.start - start + piece.count)
        values = _part(view, piece)
        base[place] = values.to(view.dtype)
        if _is_plain(view) and view.live is not None:
            plain[0].append(view.live.view(-1)[piece.first : piece.first + piece.count])
            plain[1].append(theta[place])
        else:
            others.append((view, theta[place].view(view.shape)))
    return Plane(base, plain, others, keeps_sign(first.role))


def _part(view: ScaleView, piece: Piece) -> Tensor:
    """Return the values of a piece; of a plain view without a float32 copy of all of it."""
    values = view.live if _is_plain(view) and view.live is not None else view.read()
    return values.view(-1)[piece.first : piece.first + piece.count]


def _is_plain(view: ScaleView) -> bool:
    """Whether the core may write the view's storage itself. Tensors of inference mode take no part in that."""
    return view.live is not None and view.live.is_contiguous() and not view.live.is_inference()


def _kinds(slot: Slot) -> list[tuple[torch.dtype, bool]]:
    return [(view.dtype, keeps_sign(view.role)) for view in slot]
