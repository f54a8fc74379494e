"""From a model to its views: find the layers, open them, and check that a write reaches the forward."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import overload

import torch
from torch import Tensor, nn

from zoquant import registry
from zoquant.buffer import FlatBuffer, Space
from zoquant.errors import NoViewsError, UnsupportedLayoutError, ValueRangeError
from zoquant.fingerprint import fingerprint
from zoquant.layout import view_count
from zoquant.noise import Kind, Noise
from zoquant.protocol import PLAIN_ROLES, ROLES, Backend, Grid, Gridded, Role, ScaleView
from zoquant.streamed import StreamedBuffer
from zoquant.verify import verify_layer
from zoquant.views import check_value

_CODES = (torch.uint8, torch.int8, torch.int16, torch.int32)
"""The dtypes of packed words; int64 is what models keep positions in."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a model that has views.

    Attributes:
        path: its path in the model.
        module: the layer itself.
        backend: the backend that claims it.
        tied: paths of other layers that read the same values; their views are those of this one.
    """

    path: str
    module: nn.Module
    backend: Backend
    tied: list[str] = field(default_factory=list)

    def grids(self) -> Mapping[str, Grid]:
        """Return, by key, the grids of the views that together scale the weights; see `zoquant.protocol.Gridded`."""
        if not isinstance(self.backend, Gridded):
            return {}
        return {_key(self.path, name): grid for name, grid in self.backend.grids(self.module).items()}


class BoundView:
    """A backend's view under its key. Everything else is the backend's.

    Attributes:
        name: the key.
        backend: name of the backend.
        layer: the layer that the view belongs to; None for a view without a model.
    """

    def __init__(self, key: str, view: ScaleView, backend: str, layer: Layer | None = None) -> None:
        self.name = key
        self.backend = backend
        self.layer = layer
        self._view = view

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

    def __repr__(self) -> str:
        return f"<{self.name} {self.role} {list(self.shape)} {str(self.dtype).removeprefix('torch.')} {self.backend}>"


class Views(Sequence[BoundView]):
    """The views of a model, in module order, and the flat buffers behind them.

    `coupled` says whether views of one layer, role and shape share their delta. Views of role `dense` are streamed
    through the forward of the model `streamed`, if there is one.

    Writing through a single view changes the model behind the buffers' back: use it to look, and an optimizer,
    `load_delta` or `replay` to change values.
    """

    def __init__(self, views: Sequence[BoundView], *, coupled: bool, streamed: nn.Module | None = None) -> None:
        self._views = tuple(views)
        groups: dict[tuple[torch.device, bool], list[BoundView]] = {}
        for view in self._views:
            groups.setdefault((view.device, streamed is not None and view.role == "dense"), []).append(view)
        self.coupled = coupled
        self.buffers = [
            StreamedBuffer(group, device, model=streamed)
            if streamed is not None and dense
            else FlatBuffer(group, device, coupled=coupled)
            for (device, dense), group in groups.items()
        ]
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
        """What delta means: `"relative"` or `"absolute"`."""
        return self.buffers[0].space

    @space.setter
    def space(self, space: Space) -> None:
        for buffer in self.buffers:
            buffer.space = space

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
        """Write theta, or a probe of it, into the model. See `FlatBuffer.write`."""
        for buffer in self.buffers:
            buffer.write(seed=seed, eps=eps, noise=noise)

    def add(self, seed: int, amount: float, noise: Kind | Noise) -> None:
        """Move all deltas along one direction without writing the model. See `FlatBuffer.add`."""
        for buffer in self.buffers:
            buffer.add(seed, amount, noise)

    def reset(self) -> None:
        """Set every delta to zero and write the base values back."""
        for buffer in self.buffers:
            buffer.delta.zero_()
        self.write()

    def share_moved(self, seed: int, eps: float, noise: Kind | Noise) -> float:
        """Return the share of values that a probe really changes once it is cast to the dtype that stores it."""
        return sum(buffer.count_moved(seed, eps, noise) for buffer in self.buffers) / self.trainable

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


def attach(
    model: nn.Module,
    *,
    roles: Sequence[Role] = ("scale",),
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    coupled: bool = True,
    streamed: bool = False,
    verify: bool = True,
) -> Views:
    """Return the views of all quantized layers of a model.

    Args:
        model: any model; the exact class of each layer, or of its weight, is looked up in `zoquant.backends()`.
        roles: which kinds of values to expose; `"dense"` takes the plain parameters of all other modules, and the
            biases of the quantized layers.
        include: shell patterns on keys, e.g. `"*.mlp.*"`; None takes all.
        exclude: shell patterns on keys to leave out.
        coupled: let the views of one layer, role and shape share their delta. The weights are linear in all scales of a
            layer together, as in `d` and `m` of a GGUF block: in relative space the block is then rescaled as a whole.
        streamed: let plain weights of role `dense` stay where they are as their own base, and put theta into a scratch
            buffer while the forward is in their layer: no second copy of the weights, only their delta.
        verify: run every vendor's layer once and check that its output moves as `dequantize` predicts when its values
            do. The model must be in the mode that training will use. Native layers and plain parameters have no cache
            to be checked for.

    Raises:
        NoViewsError: no layer is claimed, or nothing is left after the filters.
        UnsupportedLayoutError: a layer ignores what is written to it, or stores values wider than float32.
        ValueRangeError: a layer holds NaN or infinity.
        ValueError: a role does not exist.
    """
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}, expected some of {', '.join(ROLES)}.")
    found: list[BoundView] = []
    seen: dict[tuple[int, int] | None, Layer] = {}
    layers = 0
    for path, module, backend in claimed(model, plain="dense" in roles):
        layers += 1
        layer = Layer(path, module, backend)
        opened = _open(path, module, backend)
        if "dense" in roles:
            opened += _bias(path, module, opened)
        taken = [view for view in opened if view.role in roles and _wanted(_key(path, view.name), include, exclude)]
        fresh = [view for view in taken if _storage(view) not in seen]
        for view in fresh:
            _check_values(_key(path, view.name), view, backend)
        checked = [view for view in fresh if view.role not in PLAIN_ROLES]
        if verify and checked:
            verify_layer(path, module, backend, checked)
        for place in filter(None, map(_storage, opened)):
            if seen.setdefault(place, layer) is not layer:
                seen[place].tied.append(path)
        found.extend(BoundView(_key(path, view.name), view, backend.name, layer) for view in fresh)
    if not found:
        raise NoViewsError(_nothing(model, layers, roles, include, exclude))
    _warn_of_unclaimed(model)
    return Views(found, coupled=coupled, streamed=model if streamed else None)


def _warn_of_unclaimed(model: nn.Module) -> None:
    """Name the layers that hold codes and belong to no backend: they stay as they are."""
    inside = {path for path, _, _ in claimed(model)}
    unclaimed = [
        f"{path} ({registry.class_name(type(module))})"
        for path, module in model.named_modules()
        if not inside & {path, *_ancestors(path)} and _holds_codes(module)
    ]
    if unclaimed:
        more = f" and {len(unclaimed) - 3} more" if len(unclaimed) > 3 else ""
        warnings.warn(
            f"no backend claims {', '.join(unclaimed[:3])}{more}, which hold integer codes: these layers stay as they "
            "are. `zoquant backends` lists what is claimed.",
            stacklevel=3,
        )


def _holds_codes(module: nn.Module) -> bool:
    held = [*module._parameters.values(), *module._buffers.values()]
    return any(tensor is not None and tensor.dim() >= 2 and tensor.dtype in _CODES for tensor in held)


def claimed(model: nn.Module, *, plain: bool = False) -> Iterator[tuple[str, nn.Module, Backend]]:
    """Yield every layer that a backend claims: its path, itself, the backend.

    Args:
        model: any model.
        plain: yield modules with plain parameters, too; what lies within a claimed layer belongs to its backend.
    """
    layers: set[str] = set()
    for path, module in model.named_modules():
        backend = registry.backend_of(module)
        if backend is not None:
            layers.add(path)
            yield path, module, backend
        elif plain and not layers & _ancestors(path):
            yield path, module, registry.plain_backend()


def _ancestors(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:count]) for count in range(len(parts))}


def _bias(path: str, module: nn.Module, opened: Sequence[ScaleView]) -> list[ScaleView]:
    """Return the plain bias of a layer whose backend has no view of it."""
    taken = {view.name for view in opened}
    plain = _open(path, module, registry.plain_backend())
    return [view for view in plain if view.name == "bias" and view.name not in taken]


def _open(path: str, module: nn.Module, backend: Backend) -> list[ScaleView]:
    try:
        return list(backend.open(module))
    except UnsupportedLayoutError as error:
        raise UnsupportedLayoutError(f"{path or type(module).__name__}: {error}") from error


def _key(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _storage(view: ScaleView) -> tuple[int, int] | None:
    """Tell views of the same memory apart from views of other memory: tied layers are one view. None: unknown."""
    live = view.live
    return None if live is None else (live.data_ptr(), live.numel())


def _check_values(key: str, view: ScaleView, backend: Backend) -> None:
    """Refuse values that theta = base + delta in float32 cannot restore to the byte."""
    if not view.dtype.is_floating_point or view.dtype.itemsize > 4:
        raise UnsupportedLayoutError(
            f"{key} ({backend.name}): stored as {view.dtype}, expected floating point of at most 32 bits: base and "
            f"delta are float32. Load the model in float32 or below, or leave the view out with exclude={key!r}."
        )
    if not torch.isfinite(view.read()).all():
        raise ValueRangeError(
            f"{key} ({backend.name}): holds NaN or infinity, expected finite numbers. Get an undamaged checkpoint, or "
            f"leave the view out with exclude={key!r}."
        )


def _wanted(key: str, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None) -> bool:
    return (include is None or _matches(key, include)) and not (exclude is not None and _matches(key, exclude))


def _matches(key: str, patterns: str | Sequence[str]) -> bool:
    return any(fnmatchcase(key, p) for p in ([patterns] if isinstance(patterns, str) else patterns))


def _nothing(model: nn.Module, layers: int, roles: Sequence[Role], include: object, exclude: object) -> str:
    if layers:
        return (
            f"{layers} quantized layers were found, but no view has a role in {tuple(roles)} with include={include!r} "
            f"and exclude={exclude!r}. Widen the filters; `zoquant inspect` lists roles and keys."
        )
    classes = sorted({registry.class_name(type(m)) for m in model.modules() if not list(m.children())})
    return (
        f"no layer of {type(model).__name__} belongs to a known backend. Its layers are {', '.join(classes[:8])}; "
        f"known are {', '.join(sorted(registry.backends()))}. Is the model quantized, or did its library dequantize it?"
        " To train plain weights, ask for roles=('dense',)."
    )
