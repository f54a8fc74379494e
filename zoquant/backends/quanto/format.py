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

from zoquant.backends.quanto.layout import PACKED, SHIFT, eight_bit, few_bit
from zoquant.checkpoint.folder import AffineLayout, Folder, FolderFormat, StoredMatrix, refuse_leftovers
from zoquant.checkpoint.folder.libraries import refusing
from zoquant.checkpoint.folder.model import empty_model
from zoquant.checkpoint.folder.reading import read_json
from zoquant.checkpoint.folder.tokenizer import build_tokenizer
from zoquant.errors import UnsupportedLayoutError

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
        """Return every matrix that the map names. The shapes of 4- and 2-bit matrices stand in config.json alone."""
        kinds = dict(_read_map(folder))
        model = empty_model(folder) if set(kinds.values()) & set(_FEW_BIT) else None
        found = {path: _layer(folder, path, kind, model) for path, kind in kinds.items()}
        if not found:
            raise folder.error(QMAP, "at least one layer with quantized weights", "none")
        refuse_leftovers(folder, found, ".weight._", f"its layer in {QMAP}")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model as quanto loads it, and its tokenizer. It computes in the dtype of the file."""
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


def _layer(folder: Folder, path: str, kind: str, model: nn.Module | None) -> StoredMatrix:
    beside = folder.held(path, ("input_scale", "output_scale"))
    if kind in _EIGHT_BIT:
        return eight_bit(_EIGHT_BIT[kind], type=f"{kind} rows", beside=beside).matrix(folder, path)
    shape = _shape(folder, path, model)
    size = folder.expect_matrix(f"{path}.{PACKED}", (torch.uint8,)).shape[1]
    layout = few_bit(
        _FEW_BIT[kind], size, folder.tensor(f"{path}.{SHIFT}").dtype, type=f"{kind} g{size}", beside=beside
    )
    return ShapedLayout(**vars(layout), shape=shape).matrix(folder, path)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapedLayout(AffineLayout):
    """A layout of a matrix whose rows and columns only the model says."""

    shape: tuple[int, int]

    def size(self, folder: Folder, path: str) -> tuple[int, int]:
        return self.shape


def _shape(folder: Folder, path: str, model: nn.Module | None) -> tuple[int, int]:
    """Return the shape that the model of config.json gives a layer: the file keeps its groups alone."""
    try:
        module = nn.Module() if model is None else model.get_submodule(path)  # layers() builds it for these types
    except AttributeError as error:
        raise folder.error(f"{QMAP}: {path}", "a layer of the model", "none") from error
    if not isinstance(module, nn.Linear):
        raise folder.error(f"{QMAP}: {path}", "a Linear", type(module).__name__)
    return module.out_features, module.in_features
