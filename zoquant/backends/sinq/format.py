"""Folders of SINQ: tensors in safetensors files, and what is no tensor in a JSON file beside their index.

Source: sinq 0.2.0, patch_model.py (`save_weights_safetensors`), sinqlinear_hf.py (`SINQLinear.state_dict`).
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.backends.hqq.weights import PlaneCodes
from zoquant.backends.sinq.weights import PACKINGS, GroupNumbers, SINQWeight
from zoquant.checkpoint.folder import DENSE, Folder, FolderFormat, MadeMatrix, StoredMatrix
from zoquant.checkpoint.folder.reading import read_json
from zoquant.errors import UnsupportedLayoutError
from zoquant.protocol import Role

SIDECAR = "model.safetensors.index.json.meta.json"
_AUX = ("x", "s", "m")


class SINQFormat(FolderFormat):
    """SINQ and A-SINQ of every bit width, in one dimension and in tiles, with plain and with 8-bit scales."""

    name = "sinq"
    methods = frozenset({"sinq"})
    library = "sinq"

    def claims(self, quantization: Mapping[str, Any]) -> bool:
        """Tell whether the config was written by sinq, through transformers or without."""
        said = (quantization.get("quantization_method"), quantization.get("backend"))
        return super().claims(quantization) or "sinq" in said

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        said = read_json(folder.path / SIDECAR)
        return {path: _layer(folder, path, _meta(folder, path, said)) for path in folder.paths("W_q")}

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Refuse: sinq loads its folders by a patch of transformers' `from_pretrained` that it makes on import."""
        raise UnsupportedLayoutError(
            f"{path}: sinq loads its folders by replacing from_pretrained of every model of transformers, which "
            "zoquant does not start. Use runtime='native', or load the model with sinq and attach to it."
        )

    def runtimes(self) -> dict[str, str]:
        """Return that zoquant's layers compute the forward, and how sinq's own are had."""
        return {
            "native": "yes: runs on the file's own words",
            "vendor": "no: load the model with sinq itself, and attach to it",
        }


def _meta(folder: Folder, path: str, said: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = said.get(path)
    meta = entry.get("meta") if isinstance(entry, Mapping) else None
    if not isinstance(meta, Mapping):
        raise folder.error(f"{SIDECAR}: {path}", "an object 'meta'", repr(entry)[:80])
    return meta


def _layer(folder: Folder, path: str, meta: Mapping[str, Any]) -> StoredMatrix:
    rows, columns = _shape(folder, path, meta)
    packing = meta.get("packing")
    _check_method(folder, path, meta)
    if not isinstance(packing, str) or packing not in PACKINGS:
        raise folder.error(f"{SIDECAR}: {path}: 'packing'", f"one of {', '.join(PACKINGS)}", repr(packing)[:80])
    kind = PACKINGS[packing]
    words = folder.tensor(f"{path}.W_q")
    size = words.shape[-1] if words.shape else 0
    fits = size and columns % size == 0 and words.shape == (-(-rows * columns // size // kind.count), size)
    if not fits or words.dtype != kind.dtype:
        raise folder.error(
            words.name, f"words for {kind.count} of the groups of {[rows, columns]} each, {kind.dtype}",
            f"{list(words.shape)} of {words.dtype}",
        )  # fmt: skip
    tiles = _check_columns_scale(folder, path, rows, columns, size)
    parts: dict[Role, Mapping[str, str]] = {
        role: _parts(folder, f"{path}.meta.{role}", rows * columns // size) for role in ("scale", "zero")
    }
    fields: dict[str, tuple[Role, str]] = {
        name.removeprefix(f"{path}."): (role, name)
        for role, names in parts.items()
        for part, name in names.items()
        if part != "x"
    }
    top = f"{path}.meta.scale2"
    label = f"{kind.bits}-bit {f'{size}x{size}' if tiles else f'g{size}'}{_aux(parts)}"
    tensors = (words.name, top, *(name for names in parts.values() for name in names.values()))

    def make(held: Mapping[str, Tensor]) -> SINQWeight:
        codes = PlaneCodes(held["W_q"], kind, rows, columns)
        scale, zero = (
            GroupNumbers(role, {part: held[name.removeprefix(f"{path}.")] for part, name in names.items()})
            for role, names in parts.items()
        )
        return SINQWeight(label, codes, size, scale, zero, held["meta.scale2"])

    return MadeMatrix(path, rows, columns, label, tensors, {**fields, "meta.scale2": ("scale", top)}, make=make)


def _aux(parts: Mapping[Role, Mapping[str, str]]) -> str:
    return " 8-bit scales" if "x" in parts["scale"] else ""


def _shape(folder: Folder, path: str, meta: Mapping[str, Any]) -> tuple[int, int]:
    said = meta.get("shape")
    if not isinstance(said, list) or len(said) != 2 or not all(type(n) is int and n > 0 for n in said):
        raise folder.error(f"{SIDECAR}: {path}: 'shape'", "two positive integers", repr(said)[:80])
    return said[0], said[1]


def _check_method(folder: Folder, path: str, meta: Mapping[str, Any]) -> None:
    method = str(meta.get("method", "")).lower()
    if "nf4" in method or "nf3" in method or "noz" in method or meta.get("view_as_float"):
        raise UnsupportedLayoutError(
            f"{folder.path}: {path}: method {method!r:.40} with view_as_float={bool(meta.get('view_as_float'))} is not "
            "a uniform grid with a zero point for each group in plain words. Quantize it with method='sinq'."
        )


def _check_columns_scale(folder: Folder, path: str, rows: int, columns: int, size: int) -> bool:
    """Check `meta.scale2` and tell whether the matrix is quantized in tiles."""
    tensor = folder.tensor(f"{path}.meta.scale2")
    tiles = len(tensor.shape) == 3 and rows % size == 0
    shape = (rows // size * (columns // size), 1, size) if tiles else (1, columns)
    folder.expect(tensor.name, shape, DENSE)
    return tiles


def _parts(folder: Folder, name: str, groups: int) -> Mapping[str, str]:
    """Return the tensors of one number a group, checked."""
    if f"{name}.x" not in folder.tensors:
        tensor = folder.tensor(name)
        if prod(tensor.shape) != groups or tensor.dtype not in DENSE:
            raise folder.error(name, f"{groups} numbers, one for each group", f"{list(tensor.shape)} {tensor.dtype}")
        return {"": name}
    tensors = {part: folder.tensor(f"{name}.{part}") for part in _AUX}
    count = prod(tensors["s"].shape)
    sizes = [prod(tensor.shape) for tensor in tensors.values()]
    kinds = [tensor.dtype for tensor in tensors.values()]
    if not count or sizes != [groups, count, count] or groups % count or kinds[0] != torch.uint8:
        raise folder.error(
            f"{name}.x, .s, .m", f"{groups} uint8 and two numbers for each run of them", f"{sizes} of {kinds}"
        )
    if kinds[1] not in DENSE or kinds[2] not in DENSE:
        raise folder.error(f"{name}.s", "floating point", f"{kinds[1:]}")
    return {part: tensor.name for part, tensor in tensors.items()}
