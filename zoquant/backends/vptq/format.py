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

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from zoquant.backends.vptq.settings import parts_of
from zoquant.backends.vptq.weights import ROLES, Part, VPTQWeight
from zoquant.checkpoint.folder import DENSE, Folder, FolderFormat, MadeMatrix, StoredMatrix
from zoquant.errors import CheckpointError


class VPTQFormat(FolderFormat):
    """VPTQ with packed indices: any vector length, with or without residuals, outliers, permutation and norm."""

    name = "vptq"
    methods = frozenset({"vptq"})
    library = "vptq"
    reason = "transformers loads it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        found = {path: _matrix(folder, path) for path in folder.paths("centroids.weight")}
        if not found:
            raise folder.error("centroids.weight", "at least one matrix with centroids", "none")
        return found


def _matrix(folder: Folder, path: str) -> StoredMatrix:
    settings = _settings(folder, path)

    def fail(name: str, expected: str, got: str) -> CheckpointError:
        return folder.error(f"quantization_config, {path}: {name}", expected, got)

    parts = parts_of(settings, fail)
    columns, length = sum(part.groups * part.size for part in parts), parts[-1].length
    shape, rows = folder.tensor(f"{path}.indices").shape, settings.get("out_features", -1)
    rows = shape[1] * length if rows == -1 and len(shape) == 3 else rows
    if type(rows) is not int or not 0 < rows < 1 << 31:
        raise fail("out_features", "a number of rows", repr(rows)[:80])
    if settings.get("in_features", -1) not in (-1, columns):
        raise fail("in_features", f"{columns}, the columns of all groups", repr(settings["in_features"])[:80])
    names = [*_checked(folder, path, parts, rows), *_checked_rest(folder, path, settings, columns)]
    fields = {name: (ROLES[name], f"{path}.{name}") for name in names if name in ROLES}
    kind = f"v{length} " + "+".join(str(book.entries) for book in parts[-1].books)
    tensors = tuple(f"{path}.{name}" for name in names)
    return MadeMatrix(path, rows, columns, kind, tensors, fields, make=partial(VPTQWeight, rows, columns, parts))


def _settings(folder: Folder, path: str) -> Mapping[str, Any]:
    for table, name in (("config_for_layers", path), ("shared_layer_config", path.rpartition(".")[2])):
        entries = folder.quantization.get(table)
        if isinstance(entries, dict) and isinstance(entries.get(name), dict):
            found: Mapping[str, Any] = entries[name]
            return found
    raise folder.error("quantization_config", f"the settings of {path} in config_for_layers", "none")


def _checked(folder: Folder, path: str, parts: Sequence[Part], rows: int) -> Iterator[str]:
    """Yield the tensors of indices and centroids, each checked."""
    for part in parts:
        dtype, width = (torch.int16, 16) if part.codes == "outlier_indices" else (torch.int32, 32)
        shape = (part.groups, -(-rows // part.length), -(-part.size * part.bits // width))
        folder.expect(f"{path}.{part.codes}", shape, [dtype])
        yield part.codes
        for book in part.books:
            folder.expect(f"{path}.{book.name}", (part.groups, book.entries * part.length), DENSE)
            yield book.name


def _checked_rest(folder: Folder, path: str, settings: Mapping[str, Any], columns: int) -> Iterator[str]:
    """Yield the tensors of the permutation and the norm, each checked."""
    perm = ["perm"] if settings.get("enable_perm") else []
    for name in (*perm, *(["weight_scale", "weight_bias"] if settings.get("enable_norm") else [])):
        folder.expect(f"{path}.{name}", (columns,), [torch.int16] if name == "perm" else DENSE)
        yield name
