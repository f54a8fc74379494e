"""What of zoquant works here: which libraries are found, which runtimes will run, what to install.

Versions come from the metadata of installed packages; no quantization library is imported for it.
"""

import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any

import torch

from zoquant import kernels
from zoquant.checkpoint.loading import default_compute_dtype, default_device
from zoquant.protocol import Format, Runtimes, Vendor
from zoquant.registry import all_formats, list_backends, list_formats

_PACKAGE = "zoquant"
_REQUIREMENT = re.compile(r"""^\s*([\w.-]+).*;.*extra\s*==\s*["']([\w.-]+)["']""")


@dataclass(frozen=True)
class Library:
    """A library that computes a forward.

    Attributes:
        name: import name, perhaps dotted.
        distribution: name of the package that brings it, as pip knows it; empty if unknown.
        version: version found here; None where it is not installed.
        install: what to do to get it; empty where it is installed.
    """

    name: str
    distribution: str
    version: str | None
    install: str


def doctor() -> dict[str, Any]:
    """Return what was found here, as plain data: the machine, every format, every library that serves one.

    Raises:
        RegistryError: a registered plugin cannot be imported.
    """
    device = default_device()
    opened = list(all_formats())
    return {
        "versions": {name: _version(name) for name in (_PACKAGE, "torch", "transformers", "safetensors")},
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "device": device.type if device.type == "cpu" else f"{device.type}: {torch.cuda.get_device_name(device)}",
        "bfloat16_is_fast": default_compute_dtype(device) == torch.bfloat16,
        "cpu_kernels": kernels.status(),
        "formats": [{"format": found.name, **_runtimes(found)} for found in opened],
        "libraries": _libraries(opened),
    }


def library(name: str) -> Library:
    """Return what is known here of a library, by its import name or the dotted name of a class in it."""
    parts = name.split(".")
    starts = [parts[:n] for n in range(len(parts), 0, -1)]
    known = next((start for start in starts if _normal("-".join(start)) in extras()), parts[:1])
    brought = _normal("-".join(known))
    if brought not in extras():
        brought = next(iter(_distributions().get(known[0], ())), "")
    version = _version(brought) if brought else None
    return Library(".".join(known), brought, version, "" if version else _install(".".join(known), brought))


@cache
def extras() -> Mapping[str, str]:
    """Return for every package that an extra of zoquant brings the smallest such extra, by the names that pip uses."""
    brought: defaultdict[str, set[str]] = defaultdict(set)
    for line in _requirements():
        found = _REQUIREMENT.match(line)
        if found and found[1] != _PACKAGE:
            brought[found[2]].add(_normal(found[1]))
    sizes = sorted((len(packages), extra) for extra, packages in brought.items())
    return {package: extra for _, extra in reversed(sizes) for package in brought[extra]}


def _requirements() -> Iterable[str]:
    try:
        return metadata.requires(_PACKAGE) or ()
    except metadata.PackageNotFoundError:  # a checkout that is on the path, not installed
        return ()


def _runtimes(found: Format) -> dict[str, str]:
    """Return who can compute the forward here, with a word of why."""
    if isinstance(found, Runtimes):
        return dict(found.runtimes())
    name = getattr(found, "library", "")
    if not isinstance(found, Vendor):
        vendor = "no: no library computes it here"
    elif name and library(name).version is None:
        vendor = f"no: {name} is not installed"
    else:
        vendor = f"yes: {name or list_formats()[found.name].package} is installed"
    return {"native": "yes: runs on the file's own words", "vendor": vendor}


def _libraries(opened: Iterable[Format]) -> list[dict[str, Any]]:
    """Return every library that a format names or that brings a claimed class, with what it serves."""
    serves: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: {"formats": [], "classes": []})
    for found in opened:
        if getattr(found, "library", ""):
            serves[library(getattr(found, "library", "")).name]["formats"].append(found.name)
    for claimed in sorted(list_backends()):
        if not claimed.startswith(f"{_PACKAGE}."):
            serves[library(claimed).name]["classes"].append(claimed)
    return [{**asdict(library(name)), **serves[name]} for name in sorted(serves)]


def _install(name: str, distribution: str) -> str:
    extra = extras().get(distribution)
    if extra:
        return f"pip install '{_PACKAGE}[{extra}]'"
    return f"a package with {name}; no extra has one"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
