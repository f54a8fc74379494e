"""Folders that optimum-quanto saves: quanto_qmap.json says which layers are quantized, and how.

    8 bits:        <path>.weight._data int8 or float8 [rows, columns], <path>.weight._scale [rows, 1]
    4 and 2 bits:  <path>.weight._data._data uint8 [ceil(groups * bits / 8), size], ._scale and ._shift [groups, 1]

Source: optimum-quanto 0.2.7, models/transformers_models.py, nn/qmodule.py, tensor/weights/.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.quanto.weights import SCALE, SHIFT, StackedBits, eight_bit, few_bit
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.libraries import refusing
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.checkpoint.folder.model import empty_model
from zoquant.checkpoint.folder.reading import read_json
from zoquant.checkpoint.folder.tokenizer import build_tokenizer
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.protocol import Role

QMAP = "quanto_qmap.json"
_EIGHT_BIT = {
    "qint8": torch.int8,
    "qfloat8": torch.float8_e4m3fn,
    "qfloat8_e4m3fn": torch.float8_e4m3fn,
    "qfloat8_e5m2": torch.float8_e5m2,
}
_FEW_BIT = {"qint4": 4, "qint2": 2}


class QuantoFormat(FolderFormat):
    """Weights of qint8, qfloat8, qint4 and qint2 on a model of transformers."""

    name = "quanto"
    methods = frozenset()
    library = "optimum.quanto"

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a folder with a map of quanto."""
        return path.is_dir() and (path / QMAP).is_file()

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix that the map names. The shapes of 4- and 2-bit matrices stand in config.json alone.

        Raises:
            CheckpointError: a tensor is missing, left over, or of another shape or dtype than the map says.
        """
        kinds = dict(_read_map(folder))
        model = empty_model(folder) if set(kinds.values()) & set(_FEW_BIT) else None
        found = {path: _layer(folder, path, kind, model) for path, kind in kinds.items()}
        if not found:
            raise folder.error(QMAP, "at least one layer with quantized weights", "none")
        taken = {name for layer in found.values() for name in layer.tensors}
        for name, tensor in folder.tensors.items():
            if name not in taken and (tensor.dtype not in DENSE or ".weight._" in name):
                raise folder.error(name, f"its layer in {QMAP}", "none")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model as quanto loads it, and its tokenizer. It computes in the dtype of the file.

        Raises:
            UnsupportedLayoutError: quanto is not installed.
            CheckpointError: quanto refuses the checkpoint.
        """
        del compute_dtype
        try:
            from optimum.quanto import QuantizedModelForCausalLM
        except ImportError as error:
            raise UnsupportedLayoutError(
                f"{path}: the format quanto has no vendor runtime here: optimum-quanto is not installed. Use "
                "runtime='native'."
            ) from error
        with refusing(path, "quanto cannot load it", "Use runtime='native'."):
            model: nn.Module = QuantizedModelForCausalLM.from_pretrained(path)._wrapped
        return model.to(device).eval().requires_grad_(False), build_tokenizer(path)


@dataclass(frozen=True, kw_only=True)
class QuantoLayer(StoredMatrix):
    """A matrix of 8, 4 or 2 bits."""

    bits: int

    def packed(self, folder: Folder) -> PackedWeight:
        """Read codes, scales and shifts."""
        at = f"{self.path}.weight."
        if self.bits == 8:
            return eight_bit(folder.read(f"{at}_data"), folder.read(f"{at}_scale"))
        codes = StackedBits(folder.read(f"{at}_data._data"), self.bits, self.rows, self.columns)
        return few_bit(codes, folder.read(f"{at}_scale"), folder.read(f"{at}_shift"))


def _read_map(folder: Folder) -> list[tuple[str, str]]:
    """Return path and type of every layer with quantized weights."""
    found = []
    for path, entry in read_json(folder.path / QMAP).items():
        if not isinstance(entry, dict):
            raise folder.error(f"{QMAP}: {path}", "types of weights and activations", repr(entry)[:80])
        weights, activations = entry.get("weights"), entry.get("activations")
        if weights == "none":
            continue
        known = (*_EIGHT_BIT, *_FEW_BIT)
        if weights not in known:
            raise folder.error(f"{QMAP}: {path}: weights", f"one of {', '.join(known)}", repr(weights)[:80])
        if activations != "none":
            raise folder.error(
                f"{QMAP}: {path}: activations", "'none': zoquant does not follow others", repr(activations)[:80]
            )
        found.append((path, weights))
    return found


def _layer(folder: Folder, path: str, kind: str, model: nn.Module | None) -> QuantoLayer:
    extras = tuple(f"{path}.{name}" for name in ("input_scale", "output_scale") if f"{path}.{name}" in folder.tensors)
    if kind in _EIGHT_BIT:
        name = f"{path}.weight._data"
        rows, columns = _matrix(folder, name)
        folder.expect(name, (rows, columns), [_EIGHT_BIT[kind]])
        folder.expect(f"{path}.{SCALE}", (rows, 1), DENSE)
        names = (name, f"{path}.{SCALE}", *extras)
        return QuantoLayer(path, rows, columns, f"{kind} rows", names, _fields(path, SCALE), bits=8)
    bits, name = _FEW_BIT[kind], f"{path}.weight._data._data"
    rows, columns = _shape(folder, path, model)
    height, size = _matrix(folder, name)
    groups = rows * columns // size
    if columns % size or height != -(-groups * bits // 8):
        raise folder.error(name, f"codes of {bits} bits in groups of {[rows, columns]}", f"{[height, size]}")
    folder.expect(name, (height, size), [torch.uint8])
    folder.expect(f"{path}.{SCALE}", (groups, 1), DENSE)
    shift = folder.expect(f"{path}.{SHIFT}", (groups, 1), (*DENSE, torch.int8, torch.uint8))
    fields = _fields(path, SCALE, *([SHIFT] if shift.dtype.is_floating_point else []))
    tensors = (name, f"{path}.{SCALE}", f"{path}.{SHIFT}", *extras)
    return QuantoLayer(path, rows, columns, f"{kind} g{size}", tensors, fields, bits=bits)


def _fields(path: str, *names: str) -> dict[str, tuple[Role, str]]:
    return {name: ("scale", f"{path}.{name}") for name in names}


def _matrix(folder: Folder, name: str) -> tuple[int, int]:
    shape = folder.tensor(name).shape
    if len(shape) != 2 or 0 in shape:
        raise folder.error(name, "a matrix", f"shape {list(shape)}")
    return shape[0], shape[1]


def _shape(folder: Folder, path: str, model: nn.Module | None) -> tuple[int, int]:
    """Return the shape that the model of config.json gives a layer: the file keeps its groups alone."""
    try:
        module = nn.Module() if model is None else model.get_submodule(path)  # layers() builds it for these types
    except AttributeError as error:
        raise folder.error(f"{QMAP}: {path}", "a layer of the model", "none") from error
    if not isinstance(module, nn.Linear):
        raise folder.error(f"{QMAP}: {path}", "a Linear", type(module).__name__)
    return module.out_features, module.in_features
