"""What Quark's config says of the weight of a layer.

Source: amd-quark 0.13, torch/export/main_export/quant_config_parser.py (`get_layer_quant_config`),
torch/quantization/config/config.py (`QConfig.from_dict`, `QTensorConfig.from_dict`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from zoquant.checkpoint.folder import Folder
from zoquant.errors import UnsupportedLayoutError

INTEGERS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
FLOATS = ("fp8_e4m3", "fp4", "fp6_e2m3", "fp6_e3m2")
_SCHEMES = ("per_tensor", "per_channel", "per_group", "per_block")


@dataclass(frozen=True)
class WeightSpec:
    """How the weight of a layer is stored.

    Attributes:
        dtype: what a code is, one of `INTEGERS` or `FLOATS`.
        scheme: `per_tensor`, `per_channel`, `per_group` or `per_block`.
        group: columns of a group; -1 for all.
        block: rows and columns of a block.
        symmetric: whether zeros are all zero.
        nested: whether the scales are float8 with one scale more for the whole matrix.
    """

    dtype: str
    scheme: str
    group: int
    block: tuple[int, int]
    symmetric: bool
    nested: bool


def order_of(folder: Folder) -> str:
    """Return `pack_method`, the order of codes in a word.

    Raises:
        CheckpointError: it is neither `order` nor `reorder`.
        UnsupportedLayoutError: weights are in floating point and quantized in every forward.
    """
    export = folder.quantization.get("export") or {}
    if not isinstance(export, Mapping):
        raise folder.error("export", "an object in quantization_config", repr(export)[:80])
    if export.get("weight_format", "real_quantized") != "real_quantized":
        raise refusal(folder, "weights are stored in floating point and quantized in every forward")
    order = export.get("pack_method", "reorder")
    if order not in ("order", "reorder"):
        raise folder.error("pack_method", "'order' or 'reorder'", repr(order)[:80])
    return str(order)


def weight_spec(folder: Folder, path: str) -> WeightSpec:
    """Return how the weight of a layer is stored.

    Raises:
        CheckpointError: the config does not say, or says nothing that makes sense.
        UnsupportedLayoutError: a dtype or a scheme that native layers do not compute.
    """
    said = _layer(folder, path)
    weight = said.get("weight") if isinstance(said, Mapping) else None
    given = weight if isinstance(weight, list) else [weight]
    specs = [spec for spec in given if isinstance(spec, Mapping)]
    if not specs or len(specs) < len(given):
        raise folder.error(f"{path}: 'weight'", "a spec in quantization_config, as there are scales", repr(weight)[:80])
    first, *more = specs
    if more and (len(more) > 1 or first.get("dtype") != "fp4" or more[0].get("dtype") != "fp8_e4m3"):
        raise refusal(folder, f"{path} has scales of scales other than float8 for fp4")
    dtype, scheme = first.get("dtype"), first.get("qscheme")
    if not isinstance(dtype, str) or (dtype not in INTEGERS and dtype not in FLOATS):
        raise refusal(folder, f"{path} has codes of {dtype!r:.40}")
    if scheme not in _SCHEMES:
        raise folder.error(f"{path}: 'qscheme'", f"one of {', '.join(_SCHEMES)}", repr(scheme)[:80])
    if first.get("zero_point_type") not in (None, "int32"):
        raise refusal(folder, f"{path} has zeros in floating point")
    _check_axis(folder, path, scheme, first.get("ch_axis", first.get("axis")))
    return WeightSpec(
        dtype, scheme, _group(folder, path, first) if scheme == "per_group" else -1,
        _block(folder, path, first) if scheme == "per_block" else (1, 1), bool(first.get("symmetric")), bool(more),
    )  # fmt: skip


def _layer(folder: Folder, path: str) -> Any:
    said = folder.quantization
    for pattern, config in _mapping(folder, "layer_quant_config").items():
        if fnmatch(path, pattern):
            return config
    return _mapping(folder, "layer_type_quant_config").get("Linear", said.get("global_quant_config"))


def _mapping(folder: Folder, name: str) -> Mapping[str, Any]:
    found = folder.quantization.get(name) or {}
    if not isinstance(found, Mapping):
        raise folder.error(name, "an object in quantization_config", repr(found)[:80])
    return found


def _check_axis(folder: Folder, path: str, scheme: str, axis: Any) -> None:
    allowed = {"per_channel": (0, -2), "per_group": (1, -1)}.get(scheme)
    if allowed is not None and axis not in allowed:
        raise refusal(folder, f"{path} is quantized {scheme} along axis {axis!r:.20}")


def _group(folder: Folder, path: str, spec: Mapping[str, Any]) -> int:
    size = spec.get("group_size")
    if type(size) is not int or (size < 1 and size != -1):
        raise folder.error(f"{path}: 'group_size'", "a positive integer or -1", repr(size)[:80])
    return size


def _block(folder: Folder, path: str, spec: Mapping[str, Any]) -> tuple[int, int]:
    size = spec.get("block_size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise folder.error(f"{path}: 'block_size'", "two positive integers", repr(size)[:80])
    return size[0], size[1]


def refusal(folder: Folder, why: str) -> UnsupportedLayoutError:
    """Return the error for what a checkpoint of Quark may hold and native layers do not compute."""
    return UnsupportedLayoutError(
        f"{folder.path}: {why}, which native layers do not compute. Use a checkpoint whose weights alone are int4, "
        "int8, fp8_e4m3, fp6 or fp4."
    )
