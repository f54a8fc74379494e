"""From a model to its views: find the layers, open them, and check that a write reaches the forward."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from operator import itemgetter
from typing import cast

import torch
from torch import nn

from zoquant import registry
from zoquant.errors import NoViewsError, UnsupportedLayoutError, ValueRangeError, ZoquantError
from zoquant.protocol import PLAIN_ROLES, ROLES, Backend, Role, ScaleView
from zoquant.views.checkpoint_names import kept_names
from zoquant.views.model_views import AttachedLayer, BoundView, Views, key_of
from zoquant.views.trial.verify import verify_layer

_CODES = (torch.uint8, torch.int8, torch.int16, torch.int32)
"""The dtypes of packed words; int64 is what models keep positions in."""

_WILDCARD = re.compile(r"[*?\[]")


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
        model: any model; the exact class of each layer, or of its weight, is looked up in `zoquant.list_backends()`.
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
    wanted, names = _filter(include, exclude), kept_names(model)
    found: list[BoundView] = []
    seen: dict[tuple[int, int] | None, AttachedLayer] = {}
    layers, left = 0, None
    for path, module, backend in claimed(model, plain="dense" in roles):
        layers += 1
        layer = AttachedLayer(names.get(path, path), module, backend)
        own = _open(layer)
        opened = own + _bias(layer, own) if "dense" in roles else own
        key = {view.name: _key(names, path, view.name) for view in opened}
        left = left or next((key[view.name] for view in opened if view.role in roles), None)
        taken = [view for view in opened if view.role in roles and wanted(key[view.name])]
        fresh = [view for view in taken if _storage(view) not in seen]
        for view in fresh:
            _check_values(key[view.name], view, backend)
        checked = [view for view in fresh if view.role not in PLAIN_ROLES]
        if verify and checked:
            with _named(layer):
                verify_layer(layer, own, checked)
        for place in filter(None, map(_storage, opened)):
            if seen.setdefault(place, layer) is not layer:
                seen[place].tied.append(layer)
        found.extend(BoundView(key[view.name], view, backend.name, layer) for view in fresh)
    _refuse_overlaps(found)
    if not found:
        raise NoViewsError(_nothing(model, layers, roles, include, exclude, left))
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


def _key(names: Mapping[str, str], path: str, name: str) -> str:
    """Return the key of a view by the names that the checkpoint has for the tensor or for its layer."""
    return names.get(key_of(path, name), key_of(names.get(path, path), name))


def _bias(layer: AttachedLayer, opened: Sequence[ScaleView]) -> list[ScaleView]:
    """Return the plain bias of a layer whose backend has no view of it."""
    taken = {view.name for view in opened}
    plain = _open(replace(layer, backend=registry.plain_backend()))
    return [view for view in plain if view.name == "bias" and view.name not in taken]


def _open(layer: AttachedLayer) -> list[ScaleView]:
    with _named(layer):
        opened = list(layer.backend.open(layer.module))
        names = [view.name for view in opened]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UnsupportedLayoutError(
                f"open() returned several views called {twice[0]!r}, expected different names: {', '.join(names)}. A "
                "delta knows a view by its name."
            )
        return opened


@contextmanager
def _named(layer: AttachedLayer) -> Iterator[None]:
    """Let what goes wrong with a layer within a `with` name the layer and its backend."""
    name, backend = layer.path or type(layer.module).__name__, layer.backend.name
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = str(error) if isinstance(error, ZoquantError) else f"raised {type(error).__name__}: {error}"
        if text.startswith((f"{name} (", f"{name}.", f"{name}: ")):
            raise
        raise UnsupportedLayoutError(f"{name} ({backend}): {text.removeprefix(f'{backend}: ')}") from error


def _storage(view: ScaleView) -> tuple[int, int] | None:
    """Tell views of the same memory apart from views of other memory: tied layers are one view. None: unknown."""
    live = view.live
    return None if live is None else (live.data_ptr(), live.numel())


def _refuse_overlaps(views: Sequence[BoundView]) -> None:
    """Refuse two values in one piece of memory, of which the one written last would decide both."""
    held = [(view, live) for view in views if (live := view.live) is not None and live.numel()]
    dense = [(live.data_ptr(), live.nbytes, view) for view, live in held if live.is_contiguous()]
    for (start, size, one), (following, _, other) in pairwise(sorted(dense, key=itemgetter(0))):
        if following < start + size:
            raise UnsupportedLayoutError(
                f"{one.name} ({one.backend}) and {other.name} ({other.backend}) lie in the same memory, so a write to "
                f"one changes the other. Leave one out, e.g. with exclude={other.name!r}."
            )


def _check_values(key: str, view: ScaleView, backend: Backend) -> None:
    """Refuse values that theta = base + delta in float32 cannot restore to the byte."""
    if not view.dtype.is_floating_point or view.dtype.itemsize > 4:
        raise UnsupportedLayoutError(
            f"{key} ({backend.name}): stored as {view.dtype}, expected floating point of at most 32 bits: base and "
            f"delta are float32. Load the model in float32 or below, or leave the view out with exclude={key!r}."
        )
    values = view.read()
    if tuple(values.shape) != tuple(view.shape):
        raise UnsupportedLayoutError(
            f"{key} ({backend.name}): read() returned {tuple(values.shape)}, and shape says {tuple(view.shape)}; "
            "expected the shape of the tensor on disk in both."
        )
    if not torch.isfinite(values).all():
        raise ValueRangeError(
            f"{key} ({backend.name}): holds NaN or infinity, expected finite numbers. Get an undamaged checkpoint, or "
            f"leave the view out with exclude={key!r}."
        )


def _filter(include: str | Sequence[str] | None, exclude: str | Sequence[str] | None) -> Callable[[str], bool]:
    """Return what tells whether a key is wanted."""
    taken = (lambda key: True) if include is None else _matcher(include)
    left = (lambda key: False) if exclude is None else _matcher(exclude)
    return lambda key: taken(key) and not left(key)


def _matcher(patterns: str | Sequence[str]) -> Callable[[str], bool]:
    """Return what tells whether a key matches one of some shell patterns; those without a wildcard are looked up."""
    each = [patterns] if isinstance(patterns, str) else patterns
    wild = [pattern for pattern in each if _WILDCARD.search(pattern)]
    plain = set(each).difference(wild)
    return lambda key: key in plain or any(fnmatchcase(key, pattern) for pattern in wild)


def _nothing(
    model: nn.Module, layers: int, roles: Sequence[Role], include: object, exclude: object, left: str | None
) -> str:
    if layers and left is not None:
        return (
            f"{layers} quantized layers were found, but include {_patterns(include)} and exclude {_patterns(exclude)} "
            f"leave nothing of them. Keys are such as {left}; `zoquant inspect --keys` lists all."
        )
    if layers:
        return (
            f"{layers} quantized layers were found, but no view has a role of {', '.join(roles)}. "
            "`zoquant inspect` lists the roles that there are."
        )
    classes = sorted({registry.class_name(type(m)) for m in model.modules() if not list(m.children())})
    return (
        f"no layer of {type(model).__name__} belongs to a known backend. Its layers are {', '.join(classes[:8])}; "
        f"known are {', '.join(sorted(registry.list_backends()))}. Is the model quantized, or did its library "
        "dequantize it? To train plain weights, ask for roles=('dense',)."
    )


def _patterns(given: object) -> str:
    """Return patterns as people write them."""
    if not given:
        return "(none)"
    return given if isinstance(given, str) else ", ".join(map(str, cast(Sequence[str], given)))
