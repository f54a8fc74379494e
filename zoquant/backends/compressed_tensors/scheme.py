"""What a config of compressed-tensors says of its weights: bits, type, and which weights share a scale.

Source: compressed-tensors 0.20.0, quantization/quant_args.py (`QuantizationArgs`), quantization/quant_config.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoquant.checkpoint.folder import MATRIX, ROW, Folder
from zoquant.errors import UnsupportedLayoutError

_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_DENSE = (None, "", "dense")
_GONE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
_POSITIVE = re.compile("[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Scheme:
    """How one group of the config quantizes its weights.

    Attributes:
        kind: `"int"` or `"float"`.
        bits: bits of a code.
        strategy: which weights share a scale.
        symmetric: whether there is no zero point.
        group: columns that share a scale, for the strategies `group` and `tensor_group`, else 0.
        block: rows and columns of a block, for the strategy `block`, else zeros.
    """

    kind: str
    bits: int
    strategy: str
    symmetric: bool
    group: int
    block: tuple[int, int]

    def label(self, *, zeros: bool) -> str:
        """Return what `zoquant inspect` calls a matrix with or without zero points, such as `int4 g128 sym`."""
        where = {"group": f"g{self.group}", "tensor_group": f"g{self.group}"}.get(self.strategy, self.strategy)
        where = "x".join(map(str, self.block)) if self.strategy == "block" else where
        return f"{self.kind}{self.bits} {where}{'' if self.kind == 'float' else ' asym' if zeros else ' sym'}"

    @property
    def share(self) -> tuple[int, int]:
        """The rows and columns of the weights that share a scale, 0 for all of them."""
        return {"tensor": MATRIX, "channel": ROW, "block": self.block}.get(self.strategy, (1, self.group))


def read_schemes(folder: Folder) -> list[Scheme]:
    """Return the schemes of all groups that quantize weights, each once.

    Raises:
        CheckpointError: the config is not what compressed-tensors writes.
        UnsupportedLayoutError: sparse weights, transforms, or a layout that compressed-tensors has given up.
    """
    _refuse(folder)
    groups = folder.quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise folder.error("config_groups", "an object of objects", repr(groups)[:80])
    weights = {name: group["weights"] for name, group in groups.items() if group.get("weights") is not None}
    return list(dict.fromkeys(_scheme(folder, name, args) for name, args in weights.items()))


def activations(folder: Folder) -> list[str]:
    """Return what the config says of activations, as notes for `zoquant inspect`."""
    args = [group.get("input_activations") for group in _groups(folder)]
    kinds = sorted(
        {f"{each.get('type', 'int')}{each.get('num_bits', 8)}" for each in args if isinstance(each, Mapping)}
    )
    notes = [
        f"activations: {kind} at run time in transformers and vLLM, left in floating point by native layers"
        for kind in kinds
    ]
    if folder.quantization.get("kv_cache_scheme") is not None:
        notes.append("key-value cache: its quantization is left to the server, native layers keep it as it is")
    return notes


def _groups(folder: Folder) -> list[Mapping[str, Any]]:
    groups = folder.quantization.get("config_groups")
    return [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []


def _refuse(folder: Folder) -> None:
    said = folder.quantization
    sparsity = said.get("sparsity_config")
    sparse = sparsity.get("format") if isinstance(sparsity, Mapping) else None
    formats = [said.get("format"), *(group.get("format") for group in _groups(folder))]
    gone = [repr(each) for each in formats if each in _GONE] + ([repr(sparse)[:80]] if sparse not in _DENSE else [])
    if gone:
        raise UnsupportedLayoutError(
            f"{folder.path}: weights stored as {gone[0]}, which compressed-tensors itself no longer reads. "
            "Quantize the model again without sparsity."
        )
    transforms = said.get("transform_config")
    if isinstance(transforms, Mapping) and transforms.get("config_groups"):
        raise UnsupportedLayoutError(
            f"{folder.path}: 'transform_config' rotates activations at run time, which native layers do not compute. "
            "Quantize the model again without transforms."
        )


def _scheme(folder: Folder, name: str, args: Any) -> Scheme:
    where = f"config_groups.{name}.weights"
    if not isinstance(args, Mapping):
        raise folder.error(where, "an object", repr(args)[:80])
    kind, bits = str(args.get("type", "int")).lower(), args.get("num_bits", 8)
    allowed = range(1, 9) if kind == "int" else (4, 6, 8)
    if kind not in ("int", "float") or type(bits) is not int or bits not in allowed:
        raise folder.error(where, "int of 1 to 8 bits or float of 4, 6 or 8", f"{kind} of {bits!r}"[:80])
    group, strategy = args.get("group_size"), args.get("strategy")
    if group is not None and type(group) is not int:
        raise folder.error(f"{where}.group_size", "an integer", repr(group)[:80])
    group = group or 0
    strategy = str(strategy or ("group" if group > 0 else "channel" if group < 0 else "tensor")).lower()
    if strategy not in _STRATEGIES or (strategy in ("group", "tensor_group")) != (group > 0):
        raise folder.error(
            where,
            f"a strategy of {', '.join(_STRATEGIES)}, with a group_size for groups alone",
            f"{strategy!r:.40} and {group}",
        )
    block = _block(folder, f"{where}.block_structure", args.get("block_structure")) if strategy == "block" else (0, 0)
    return Scheme(kind, bits, strategy, args.get("symmetric") is not False, group, block)


def _block(folder: Folder, where: str, said: Any) -> tuple[int, int]:
    parts = said.split("x") if isinstance(said, str) else said
    if not isinstance(parts, list) or len(parts) != 2 or not all(_POSITIVE.fullmatch(str(part)) for part in parts):
        raise folder.error(where, "two positive integers", repr(said)[:80])
    return int(parts[0]), int(parts[1])
