"""Folders of compressed-tensors: the tensors say which module is quantized, the config how, and both have to agree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zoquant.backends.compressed_tensors.layout import layout_of
from zoquant.backends.compressed_tensors.scheme import Scheme, activations, read_schemes
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, open_folder, with_attention
from zoquant.errors import CheckpointError
from zoquant.protocol import Summary

_MARKS = ("weight_packed", "weight_scale")
_CACHE = ("q_scale", "k_scale", "v_scale", "q_zero_point", "k_zero_point", "v_zero_point")
"""Tensors of the cache of an attention, beside its projections."""


class CompressedTensorsFormat(FolderFormat):
    """pack-quantized, int-quantized, float-quantized, naive-quantized, nvfp4 and the MX formats.

    A module is read by the first scheme of the config that its tensors agree with. The config's `targets` and `ignore`
    are not consulted: its tensors say that a module is quantized, and no pattern of a stranger's is ever run. Early
    checkpoints call it `compression_config`.
    """

    name = "compressed-tensors"
    methods = frozenset({"compressed-tensors", "compressed_tensors", "sparseml"})
    reason = "compressed-tensors turns its layers into plain matrices at the first forward; their scales are dead then"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        schemes = read_schemes(folder)
        paths = (path for mark in _MARKS for path in folder.paths(mark))
        return {path: _first(folder, path, schemes) for path in dict.fromkeys(paths)}

    def summarize(self, path: Path) -> Summary:
        summary = super().summarize(path)
        return replace(summary, notes=[*summary.notes, *activations(open_folder(path))])


def _first(folder: Folder, path: str, schemes: Sequence[Scheme]) -> StoredMatrix:
    """Return the layer by the first scheme that it agrees with, of those first that have zero points if it has any."""
    zeros = bool(folder.held(path, ["weight_zero_point"]))
    wrong = folder.error(path, "no quantized weights, as the config has no group of them", "tensors of some")
    for scheme in sorted(schemes, key=lambda scheme: scheme.symmetric == zeros):
        try:
            return with_attention(folder, layout_of(folder, path, scheme).matrix(folder, path), _CACHE)
        except CheckpointError as error:
            wrong = error
    raise wrong
