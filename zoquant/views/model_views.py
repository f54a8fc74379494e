"""The views of a model by key, and what is done with all of them at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import overload

import torch
from torch import Tensor, nn

from zoquant.errors import NoViewsError
from zoquant.kernels.noise.definition import Kind, Noise
from zoquant.native import QuantLinear
from zoquant.protocol import Backend, Grid, Gridded, Refreshed, Role, ScaleView
from zoquant.views.fingerprint import fingerprint
from zoquant.views.flat_buffer import SPACES, FlatBuffer, Space
from zoquant.views.layout import view_count
from zoquant.views.stored_form import FormView
from zoquant.views.streamed_buffer import StreamedBuffer
from zoquant.views.tensor_views import check_value


@dataclass(frozen=True, eq=False)
class AttachedLayer:
    """A layer of a model that has views.

    Attributes:
        path: its path in the checkpoint, see `zoquant.views.checkpoint_names`.
        module: the layer itself.
        backend: the backend that claims it.
        tied: other layers that read the same values; their views are those of this one.
    """

    path: str
    module: nn.Module
    backend: Backend
    tied: list["AttachedLayer"] = field(default_factory=list)

    def grids(self) -> Mapping[str, Grid]:
        """Return, by key, the grids of the views that together scale the weights; see `zoquant.protocol.Gridded`."""
        if not isinstance(self.backend, Gridded):
            return {}
        return {key_of(self.path, name): grid for name, grid in self.backend.grids(self.module).items()}

    def refresh(self) -> None:
        """Let the layer compute anew what it keeps of its values; see `zoquant.protocol.Refreshed`."""
        if isinstance(self.backend, Refreshed):
            with torch.inference_mode(False), torch.no_grad():
                self.backend.refresh(self.module)


class BoundView:
    """A backend's view under its key. Everything else is the backend's.

    Attributes:
        name: the key.
        backend: name of the backend.
        layer: the layer that the view belongs to; None for a view without a model.
    """

    def __init__(self, key: str, view: ScaleView, backend: str, layer: AttachedLayer | None = None) -> None:
        self.name = key
        self.backend = backend
        self.layer = layer
        self._view = view

    @property
    def local(self) -> str:
        """The name that the backend has for the view, within its layer."""
        return self._view.name

    @property
    def role(self) -> Role:
        return self._view.role

    @property
    def shape(self) -> tuple[int, ...]:
        return self._view.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._view.dtype

    @property
    def device(self) -> torch.device:
        return self._view.device

    @property
    def live(self) -> Tensor | None:
        return self._view.live

    def read(self) -> Tensor:
        """Return the values as a detached float32 copy."""
        return self._view.read()

    def write(self, value: Tensor) -> None:
        """Store `value`, cast to `dtype`.

        Raises:
            ShapeError, ValueRangeError: see `check_value`. Nothing was written.
        """
        check_value(f"{self.name} ({self.backend})", self.shape, value)
        self._view.write(value)
        for layer in _layers([self]):
            layer.refresh()

    def gradient(self, held: Tensor) -> Tensor:
        """Return a gradient by the tensor that the model holds as one by the values, in their order."""
        return self._view.gradient(held) if isinstance(self._view, FormView) else held

    def __repr__(self) -> str:
        return f"<{self.name} {self.role} {list(self.shape)} {str(self.dtype).removeprefix('torch.')} {self.backend}>"


class Views(Sequence[BoundView]):
    """The views of a model, in module order, and the flat buffers behind them.

    `coupled` says whether views of one layer, role and shape share their delta. Views of role `dense` are streamed
    through the forward of the model `streamed`, if there is one, all but the biases of native layers, which are few and
    read with some of the outputs alone, too.

    Writing through a single view changes the model behind the buffers' back: use it to look, and an optimizer,
    `load_delta` or `replay` to change values.
    """

    def __init__(self, views: Sequence[BoundView], *, coupled: bool, streamed: nn.Module | None = None) -> None:
        self._views = tuple(views)
        self._refreshed = [layer for layer in _layers(self._views) if isinstance(layer.backend, Refreshed)]
        groups: dict[tuple[torch.device, bool], list[BoundView]] = {}
        for view in self._views:
            groups.setdefault((view.device, streamed is not None and _streams(view)), []).append(view)
        self.coupled = coupled
        self.buffers: list[FlatBuffer] = []
        try:
            for (device, dense), group in groups.items():
                hooked = StreamedBuffer(group, device, model=streamed) if streamed is not None and dense else None
                self.buffers.append(hooked or FlatBuffer(group, device, coupled=coupled))
        except BaseException:
            self.close()
            raise
        self._place = {view.name: (buffer, index) for buffer in self.buffers for index, view in enumerate(buffer.views)}

    @overload
    def __getitem__(self, index: int) -> BoundView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BoundView]: ...
    def __getitem__(self, index: int | slice) -> BoundView | Sequence[BoundView]:
        return self._views[index]

    def __len__(self) -> int:
        return len(self._views)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all views, in module order."""
        return tuple(view.name for view in self._views)

    @property
    def trainable(self) -> int:
        """The number of values that the views expose."""
        return sum(view_count(view) for view in self._views)

    @property
    def space(self) -> Space:
        """What delta means: `"relative"` or `"absolute"`; it changes only while every delta is zero."""
        return self.buffers[0].space

    @space.setter
    def space(self, space: Space) -> None:
        self.check_space(space)
        if space != self.space and any(bool(buffer.delta.any()) for buffer in self.buffers):
            raise ValueError(
                f"space is {space!r}, but the views hold a delta of {self.space} space, which means something else "
                "there. Call views.reset() first."
            )
        for buffer in self.buffers:
            buffer.space = space

    def check_space(self, space: Space) -> None:
        """Refuse with a ValueError a space that does not exist, or in which shared deltas have no meaning."""
        if space not in SPACES:
            raise ValueError(f"space is {space!r}, expected one of {', '.join(SPACES)}.")
        if space == "absolute" and (shared := self.coupled_keys()):
            raise ValueError(
                f"space is 'absolute', but {' and '.join(shared[0])} share their delta, which is only right in "
                "relative space. Attach with coupled=False."
            )

    def base(self, key: str) -> Tensor:
        """Return the float32 values that a view had at attach time, in its shape. A copy."""
        buffer, index = self._find(key)
        return buffer.base(index)

    def delta(self, key: str) -> Tensor:
        """Return what training added to a view, float32, in its shape and in units of `space`. A copy."""
        buffer, index = self._find(key)
        return buffer.delta[buffer.slice_of(index)].view(buffer.views[index].shape).clone()

    def theta(self, key: str) -> Tensor:
        """Return base and delta of a view together, float32, before the cast to its dtype. A copy."""
        buffer, index = self._find(key)
        return buffer.theta(index)

    def set_delta(self, deltas: Mapping[str, Tensor]) -> None:
        """Replace the delta of some views and write every view. The caller has checked keys and shapes."""
        for key, value in deltas.items():
            buffer, index = self._place[key]
            buffer.delta[buffer.slice_of(index)] = value.to(buffer.device, torch.float32).reshape(-1)
        self.write()

    def write(self, *, seed: int | None = None, eps: float = 0.0, noise: Kind | Noise = "rademacher") -> None:
        """Write theta, or a probe of it, into the model, and refresh its layers. See `FlatBuffer.write`."""
        for buffer in self.buffers:
            buffer.write(seed=seed, eps=eps, noise=noise)
        for layer in self._refreshed:
            layer.refresh()

    def add(self, seed: int, amount: float, noise: Kind | Noise) -> None:
        """Move all deltas along one direction without writing the model. See `FlatBuffer.add`."""
        for buffer in self.buffers:
            buffer.add(seed, amount, noise)

    def close(self) -> None:
        """Take the hooks of streamed weights out of the model, whose forwards then see the base; others have none."""
        for buffer in self.buffers:
            if isinstance(buffer, StreamedBuffer):
                buffer.close()

    def reset(self) -> None:
        """Set every delta to zero and write the base values back."""
        for buffer in self.buffers:
            buffer.delta.zero_()
        self.write()

    def share_moved(self, seed: int, eps: float, noise: Kind | Noise) -> float:
        """Return the share of values that a probe really changes once it is cast to the dtype that stores it."""
        return sum(buffer.count_moved(seed, eps, noise) for buffer in self.buffers) / max(self.trainable, 1)

    def share_changed(self) -> float:
        """Return the share of the values that differ from their base in the dtype that stores them."""
        changed = sum(
            int((self.theta(view.name).to(view.dtype).float() != self.base(view.name)).sum()) for view in self._views
        )
        return changed / max(self.trainable, 1)

    def coupled_keys(self) -> list[tuple[str, ...]]:
        """Return the keys of the views that share their delta, a tuple for each such delta."""
        slots = (slot for buffer in self.buffers for slot in buffer.slots)
        return [tuple(view.name for view in slot) for slot in slots if len(slot) > 1]

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of every view's base, by key."""
        return {key: fingerprint(self.base(key)) for key in self.keys}

    def _find(self, key: str) -> tuple[FlatBuffer, int]:
        if key not in self._place:
            near = get_close_matches(key, self._place, n=3, cutoff=0.0)
            raise NoViewsError(f"no view is called {key!r}; the nearest are {', '.join(near)}. `views.keys` has all.")
        return self._place[key]


def _layers(views: Sequence[BoundView]) -> list[AttachedLayer]:
    """Return the layers that read some views, each once."""
    own = [view.layer for view in views if view.layer is not None]
    return list(dict.fromkeys(each for layer in own for each in (layer, *layer.tied)))


def _streams(view: BoundView) -> bool:
    """Whether a view can be streamed: a plain weight, but no bias of a native layer, and none that is refreshed."""
    native = view.layer is not None and isinstance(view.layer.module, QuantLinear)
    kept = (native and view.name.endswith(".bias")) or (view.layer and isinstance(view.layer.backend, Refreshed))
    return view.role == "dense" and not kept


def key_of(path: str, name: str) -> str:
    """Return the key of a view: the path of its layer, and its name in it."""
    return f"{path}.{name}" if path else name
