"""Folders of GPT-OSS: the matrices of all experts of a layer lie in one tensor of FP4 blocks.

    W = table[code] * 2 ** (scale - 127), one scale for 32 columns

Source: transformers 5.23.0, integrations/mxfp4.py (`convert_moe_packed_tensors`); OCP Microscaling Formats v1.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.layouts.microfloat import E2M1
from zoquant.backends.layouts.scale_grid import ScaleGrid, power_of_two
from zoquant.backends.layouts.scaled import POWER_NOTE, described
from zoquant.backends.mxfp4.experts import PARTS, open_experts
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, StoredTensor, open_folder
from zoquant.native import PackedWeight, PackedWords, TableWeight

_RUN = 32
_BYTES = _RUN // 2


class MXFP4Format(FolderFormat):
    """GPT-OSS as OpenAI published it. Its scales are powers of two: only what is not quantized can be trained."""

    name = "mxfp4"
    methods = frozenset({"mxfp4"})
    reason = "transformers computes it with triton kernels from the Hub; without them it dequantizes the model"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return the matrices of every expert, by `<experts>.<part>.<number>`.

        Raises:
            CheckpointError: scales are missing, or do not fit their blocks.
        """
        ends = tuple(f".{part}_blocks" for part in PARTS)
        names = [name.removesuffix("_blocks") for name in folder.tensors if name.endswith(ends)]
        return {layer.path: layer for name in names for layer in _experts(folder, name)}

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model with a native layer for each matrix of each expert, and its tokenizer or None.

        Raises:
            CheckpointError: a file is damaged, or zoquant cannot build the model.
        """
        from zoquant.checkpoint.folder.model import build_model
        from zoquant.checkpoint.folder.tokenizer import build_tokenizer

        folder = open_folder(path)
        layers = self.layers(folder)
        model = build_model(folder, layers, compute_dtype=compute_dtype, device=device, prepare=open_experts)
        return model, build_tokenizer(path)


@dataclass(frozen=True, kw_only=True)
class ExpertLayer(StoredMatrix):
    """One matrix of one expert.

    Attributes:
        expert: its number in the tensors.
    """

    expert: int

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        blocks, scales = (_part(folder.tensor(name), self.expert).read() for name in self.tensors)
        values = ScaleGrid(self.rows, self.columns, 1, _RUN).values(None, scales, power_of_two)
        return TableWeight(self.type, PackedWords(blocks.view(self.rows, -1), 4, self.columns), E2M1, values)


def _experts(folder: Folder, name: str) -> list[ExpertLayer]:
    blocks = folder.tensor(f"{name}_blocks")
    shape = blocks.shape
    if len(shape) != 4 or 0 in shape or shape[3] != _BYTES or blocks.dtype != torch.uint8:
        raise folder.error(blocks.name, f"[experts, rows, runs, {_BYTES}] of uint8", described(blocks))
    folder.expect(f"{name}_scales", shape[:3], (torch.uint8,))
    tensors = (blocks.name, f"{name}_scales")
    return [
        ExpertLayer(
            f"{name}.{expert}", shape[1], shape[2] * _RUN, "float4 g32 E8M0", tensors, {}, POWER_NOTE, expert=expert
        )
        for expert in range(shape[0])
    ]


def _part(tensor: StoredTensor, index: int) -> StoredTensor:
    """Return the place of one entry of a tensor's first dimension."""
    nbytes = tensor.nbytes // tensor.shape[0]
    return replace(tensor, offset=tensor.offset + index * nbytes, nbytes=nbytes, shape=tensor.shape[1:])
