"""Who serves what: backends claim classes, formats claim files, and each is imported when it is first used.

zoquant's own are in the table of `zoquant.backends.plugins`, which `zoquant/__init__.py` hands over with `declare`.
Another package registers with two lines in its own metadata:

    [project.entry-points."zoquant.backends"]
    "their.module.TheirLinear" = "their_plugin:TheirBackend"

    [project.entry-points."zoquant.formats"]
    their-format = "their_plugin:TheirFormat"
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from zoquant.errors import CheckpointError, RegistryError, UnsupportedLayoutError
from zoquant.protocol import Backend, Explains, Format

if TYPE_CHECKING:
    from torch import nn

BACKENDS = "zoquant.backends"
FORMATS = "zoquant.formats"
ANY_MODULE = "torch.nn.Module"
_PACKAGE = "zoquant"
_RUN = "settings.json"
"""What the folder of a run holds, and that of a checkpoint does not."""


Plugin = TypeVar("Plugin", bound=Backend | Format)


@dataclass(frozen=True)
class Claim(Generic[Plugin]):
    """One registered plugin, known by name; `load` imports it.

    Attributes:
        name: for a backend the dotted class that it claims, for a format its name.
        target: `module:attribute` of the plugin, or the type of one registered at run time.
        package: who registered it, with its version.
    """

    name: str
    target: str
    package: str
    _plugin: Plugin | None = field(default=None, repr=False, compare=False)

    @property
    def installed(self) -> bool:
        """Whether the library of the claimed class can be imported here; always True for a format."""
        top = self.name.partition(".")[0]
        return "." not in self.name or top in sys.modules or find_spec(top) is not None

    def load(self) -> Plugin:
        """Return the backend or format, importing its module the first time; the same object every time.

        Raises:
            RegistryError: the plugin cannot be imported.
        """
        return cast(Plugin, _imported(self) if self._plugin is None else self._plugin)


_own: dict[str, dict[str, Claim[Any]]] = {BACKENDS: {}, FORMATS: {}}
_registered: dict[str, dict[str, Claim[Any]]] = {BACKENDS: {}, FORMATS: {}}


def declare(package: str, *, backends: Mapping[str, str], formats: Mapping[str, str]) -> None:
    """Take zoquant's own table; every other package uses entry points.

    Args:
        package: what claims say of who registered them: `zoquant` and its version.
        backends: `module:attribute` of the plugin of each claimed class.
        formats: `module:attribute` of the plugin of each format.
    """
    for group, targets in ((BACKENDS, backends), (FORMATS, formats)):
        _own[group] = {name: Claim(name, target, package) for name, target in targets.items()}


def own_package() -> str:
    """Return `zoquant` and its version, as `declare` was told."""
    return next(iter(_own[FORMATS].values())).package


def register(*, backend: Backend | None = None, claims: str | type | None = None, format: Format | None = None) -> None:
    """Register a plugin for this process, as an entry point does for every process.

    Args:
        backend: a backend; needs `claims`.
        claims: the class of the modules that the backend serves, or of their weight, or its dotted name. Matched
            exactly, never by inheritance.
        format: a format, known by its own name.

    Raises:
        RegistryError: nothing was passed, a backend came without a class, or the name is taken.
    """
    if (backend is None) == (format is None) or (backend is None) != (claims is None):
        raise RegistryError("register() takes either backend= with claims=, or format=. Pass one of the two.")
    if format is not None:
        _add(FORMATS, format.name, format)
    else:
        _add(BACKENDS, claims if isinstance(claims, str) else class_name(cast(type, claims)), backend)


def unregister(name: str) -> None:
    """Take back what `register` added under `name`; entry points stay.

    Raises:
        RegistryError: nothing was registered under this name in this process.
    """
    found = [table.pop(name, None) for table in _registered.values()]
    if not any(found):
        raise RegistryError(f"{name!r} was not registered in this process, so it cannot be taken back.")


def class_name(cls: type) -> str:
    """Return the dotted name by which a class is claimed."""
    return f"{cls.__module__}.{cls.__qualname__}"


def list_backends() -> Mapping[str, Claim[Backend]]:
    """Return all backends by the class that they claim. Imports none of them; `load()` of a claim does."""
    return _claims(BACKENDS)


def list_formats() -> Mapping[str, Claim[Format]]:
    """Return all formats by name. Imports none of them; `load()` of a claim does."""
    return _claims(FORMATS)


def backend_for(cls: type) -> Backend | None:
    """Return the backend that claims exactly this class, importing it if need be, or None."""
    claim = list_backends().get(class_name(cls))
    return None if claim is None else claim.load()


def plain_backend() -> Backend:
    """Return the backend of the plain parameters of any module: the one that claims `torch.nn.Module`.

    That is no module's exact class, so that `backend_of` never returns it.
    """
    return list_backends()[ANY_MODULE].load()


def backend_of(module: nn.Module) -> Backend | None:
    """Return the backend of a module: the one that claims the class of its `weight`, else the class of the module.

    Some libraries quantize a plain `torch.nn.Linear` by putting a tensor of a class of their own in the place of its
    weight: what can be claimed is that class.
    """
    weight = module._parameters.get("weight")
    claimed = backend_for(type(weight)) if weight is not None else None
    return claimed or backend_for(type(module))


def format_named(name: str) -> Format:
    """Return a format by name.

    Raises:
        RegistryError: no format has this name; the message lists those that exist.
    """
    claims = list_formats()
    if name not in claims:
        raise RegistryError(f"unknown format {name!r}, expected one of {', '.join(sorted(claims))}.")
    return claims[name].load()


def format_of(path: Path) -> Format:
    """Return the format whose `sniff` knows the checkpoint at `path`.

    Raises:
        CheckpointError: nothing lies there, or no format knows it.
        UnsupportedLayoutError: no format reads it, and one says why nobody can.
        RegistryError: two formats claim it.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder. Pass the path of a quantized checkpoint.")
    found = [candidate for candidate in all_formats() if candidate.sniff(path)]
    if len(found) > 1:
        names = " and ".join(sorted(candidate.name for candidate in found))
        raise RegistryError(f"{path}: claimed by the formats {names}. Uninstall one of the packages.")
    if not found and (path / _RUN).is_file():
        raise CheckpointError(
            f"{path}: is the folder of a run, and no checkpoint. Name the checkpoint that it was trained on, which "
            f"{path / _RUN} says, and this folder as its delta."
        )
    if not found:
        reasons = [why for each in all_formats() if isinstance(each, Explains) and (why := each.explain(path))]
        if reasons:
            raise UnsupportedLayoutError(f"{path}: {reasons[0]}")
        raise CheckpointError(
            f"{path}: not a checkpoint that zoquant knows, expected one of {', '.join(sorted(list_formats()))}. "
            "Is the file whole? `zoquant backends` lists what can be read."
        )
    return found[0]


def all_formats() -> Iterator[Format]:
    """Yield every format, importing it."""
    for name in sorted(list_formats()):
        yield format_named(name)


def _add(group: str, name: str, plugin: Any) -> None:
    known = _claims(group)
    if name in known:
        raise RegistryError(f"{name!r} is already claimed by {known[name].package} ({known[name].target}).")
    target = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
    _registered[group][name] = Claim(name, target, "this process", plugin)


def _claims(group: str) -> dict[str, Claim[Any]]:
    return _lasting(group) | _registered[group]


@cache
def _lasting(group: str) -> dict[str, Claim[Any]]:
    """Return what zoquant's own table and the entry points of all other packages claim."""
    claims = dict(_own[group])
    for point in metadata.entry_points(group=group):
        if point.dist and point.dist.name == _PACKAGE:  # metadata older than the sources beside it; the table counts
            continue
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
        claim: Claim[Any] = Claim(point.name, point.value, package)
        other = claims.setdefault(claim.name, claim)
        if other != claim:
            raise RegistryError(
                f"{claim.name!r} is claimed twice: by {other.package} ({other.target}) and by {claim.package} "
                f"({claim.target}). Uninstall one of them."
            )
    return claims


@cache
def _imported(claim: Claim[Any]) -> Any:
    try:
        plugin = metadata.EntryPoint(claim.name, claim.target, "").load()
    except (ImportError, AttributeError) as error:
        raise RegistryError(
            f"{claim.name!r}: the plugin {claim.target} of {claim.package} cannot be imported: {error}. "
            "Reinstall that package."
        ) from error
    return plugin()
