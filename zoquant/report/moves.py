"""How far training moved each part of a model: the size of the delta by layer and kind."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from zoquant.record.delta import read_delta

_NUMBER = re.compile(r"\.(\d+)\.")

Part = tuple[int | None, str]
"""A layer, None outside of the numbered ones, and a kind."""


@dataclass(frozen=True)
class Moves:
    """The root mean square of a delta by layer (None: outside of the numbered ones) and kind, and its space."""

    rms: Mapping[Part, float]
    space: str

    @classmethod
    def read(cls, path: Path) -> "Moves":
        """Return the sizes in a delta file.

        Raises:
            CheckpointError, ValueRangeError: the file is damaged.
        """
        delta = read_delta(path)
        sums: defaultdict[Part, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for key, value in delta.values.items():
            part = sums[layer_and_kind(key)]
            part[0] += float(value.to(torch.float64).square().sum())
            part[1] += value.numel()
        return cls({part: math.sqrt(total / max(count, 1)) for part, (total, count) in sums.items()}, delta.space)

    @property
    def layers(self) -> list[int | None]:
        """The layers, those without a number first."""
        return sorted({layer for layer, _ in self.rms}, key=lambda layer: -1 if layer is None else layer)

    @property
    def kinds(self) -> list[str]:
        """The kinds, in the order of the model."""
        return list(dict.fromkeys(kind for _, kind in self.rms))


def layer_and_kind(key: str) -> Part:
    """Return the number of a key's layer, and what it is in it: `layers.3.mlp.up_proj.d` is (3, "mlp.up_proj").

    Further numbers, those of experts, are one kind: `*`.
    """
    path = key.rpartition(".")[0] or key
    found = _NUMBER.search(f"{path}.")
    if found is None:
        return None, path
    rest = f".{path[found.end() :]}." if found.end() <= len(path) else ""
    while (other := _NUMBER.sub(".*.", rest)) != rest:
        rest = other
    return int(found.group(1)), rest.strip(".") or path[: found.start()]


def named(part: Part) -> str:
    """Return a part as people say it."""
    layer, kind = part
    return kind if layer is None else f"layer {layer}, {kind}"
