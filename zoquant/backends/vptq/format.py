"""Checkpoints that VPTQ quantized, as its `pack_model` and transformers save them.

    <path>.indices                   int32 [groups, ceil(rows / length), words]: fields of index and residual index
    <path>.centroids.weight          float [groups, centroids * length]
    <path>.res_centroids.weight      float [groups, residual centroids * length], where there are any
    <path>.outlier_indices           int16 [1, ceil(rows / outlier length), outlier columns], uint16 in truth; likewise
    <path>.outlier_centroids.weight  float [1, outlier centroids * outlier length]
    <path>.perm                      int16 [columns], uint16 in truth, with enable_perm
    <path>.weight_scale, .weight_bias    float [columns], with enable_norm

The settings of a layer stand in `config_for_layers` under its path, or in `shared_layer_config` under its last name.

Source: VPTQ 0.0.5, vptq/layers/vqlinear.py, vptq/layers/model_base.py, vptq/utils/pack.py; transformers 5.23,
`VptqConfig`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zoquant.backends.vptq.settings import parts_of
from zoquant.backends.vptq.weights import ROLES, Part, VPTQWeight
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import CheckpointError
from zoquant.native import PackedWeight


class VPTQFormat(FolderFormat):
    """VPTQ with packed indices: any vector length, with or without residuals, outliers, permutation and norm."""

    name = "vptq"
    methods = frozenset({"vptq"})
    library = "vptq"
    reason = "transformers loads it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix with indices and centroids.

        Raises:
            CheckpointError: a tensor or setting is missing, or a tensor of another shape or dtype than they say.
        """
        paths = [
            name.removesuffix(".centroids.weight") for name in folder.tensors if name.endswith(".centroids.weight")
        ]
        if not paths:
            raise folder.error("centroids.weight", "at least one matrix with centroids", "none")
        return {path: _layer(folder, path) for path in paths}


@dataclass(frozen=True, kw_only=True)
class VPTQLayer(StoredMatrix):
    """One matrix of VPTQ."""

    parts: tuple[Part, ...]

    def packed(self, folder: Folder) -> PackedWeight:
        """Read all tensors of the layer."""
        tensors = {name.removeprefix(f"{self.path}."): folder.read(name) for name in self.tensors}
        return VPTQWeight(self.rows, self.columns, self.parts, tensors)


def _layer(folder: Folder, path: str) -> StoredMatrix:
    settings = _settings(folder, path)

    def fail(name: str, expected: str, got: str) -> CheckpointError:
        return folder.error(f"quantization_config, {path}: {name}", expected, got)

    parts = parts_of(settings, fail)
    columns = sum(part.groups * part.size for part in parts)
    shape = folder.tensor(f"{path}.indices").shape
    length = parts[-1].length
    rows = settings.get("out_features", -1)
    rows = shape[1] * length if rows == -1 and len(shape) == 3 else rows
    if type(rows) is not int or not 0 < rows < 1 << 31:
        raise fail("out_features", "a number of rows", repr(rows)[:80])
    if settings.get("in_features", -1) not in (-1, columns):
        raise fail("in_features", f"{columns}, the columns of all groups", repr(settings["in_features"])[:80])
    names = [name for part in parts for name in _check_part(folder, path, part, rows)]
    names += _check_rest(folder, path, settings, columns)
    return VPTQLayer(
        path=path,
        rows=rows,
        columns=columns,
        type=f"v{length} " + "+".join(str(book.entries) for book in parts[-1].books),
        tensors=tuple(f"{path}.{name}" for name in names),
        fields={name: (ROLES[name], f"{path}.{name}") for name in names if name in ROLES},
        parts=parts,
    )


def _settings(folder: Folder, path: str) -> Mapping[str, Any]:
    for table, name in (("config_for_layers", path), ("shared_layer_config", path.rpartition(".")[2])):
        entries = folder.quantization.get(table)
        if isinstance(entries, dict) and isinstance(entries.get(name), dict):
            found: Mapping[str, Any] = entries[name]
            return found
    raise folder.error("quantization_config", f"the settings of {path} in config_for_layers", "none")


def _check_part(folder: Folder, path: str, part: Part, rows: int) -> Iterator[str]:
    """Yield the tensors of a part, each checked."""
    dtype, width = (torch.int16, 16) if part.codes == "outlier_indices" else (torch.int32, 32)
    shape = (part.groups, -(-rows // part.length), -(-part.size * part.bits // width))
    folder.expect(f"{path}.{part.codes}", shape, [dtype])
    yield part.codes
    for book in part.books:
        folder.expect(f"{path}.{book.name}", (part.groups, book.entries * part.length), DENSE)
        yield book.name


def _check_rest(folder: Folder, path: str, settings: Mapping[str, Any], columns: int) -> Iterator[str]:
    """Yield the tensors of the permutation and the norm, each checked."""
    if settings.get("enable_perm"):
        folder.expect(f"{path}.perm", (columns,), [torch.int16])
        yield "perm"
    if settings.get("enable_norm"):
        for name in ("weight_scale", "weight_bias"):
            folder.expect(f"{path}.{name}", (columns,), DENSE)
            yield name
