"""Folders of GPT-OSS: the matrices of all experts of a layer lie in one tensor of FP4 blocks.

    W = table[code] * 2 ** (scale - 127), one scale for 32 columns

Source: transformers 5.23.0, integrations/mxfp4.py (`convert_moe_packed_tensors`); OCP Microscaling Formats v1.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from zoquant.backends.float_table import E2M1
from zoquant.backends.mxfp4.experts import PARTS, open_experts
from zoquant.checkpoint.folder import (
    POWER_NOTE,
    POWERS,
    Folder,
    FolderFormat,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    StoredTensor,
    TableLayout,
)
from zoquant.native import PackedWeight

_RUN = 32
_BYTES = _RUN // 2
_EXPERT = TableLayout(
    type="float4 g32 E8M0",
    codes=StoredCodes("blocks", (torch.uint8,), bits=4),
    table=E2M1,
    scales=(StoredNumbers("scales", (1, _RUN), POWERS),),
)
"""One expert's part of both tensors."""


class MXFP4Format(FolderFormat):
    """GPT-OSS as OpenAI published it. Its scales are powers of two: only what is not quantized can be trained."""

    name = "mxfp4"
    methods = frozenset({"mxfp4"})
    reason = "transformers computes it with triton kernels from the Hub; without them it dequantizes the model"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return the matrices of every expert, by `<experts>.<part>.<number>`."""
        names = [f"{path}.{part}" for part in PARTS for path in folder.paths(f"{part}_blocks")]
        return {layer.path: layer for name in names for layer in _experts(folder, name)}

    def prepare(self, model: nn.Module) -> None:
        open_experts(model)


@dataclass(frozen=True, kw_only=True)
class ExpertLayer(StoredMatrix):
    """One matrix of one expert.

    Attributes:
        expert: its number in the tensors.
    """

    expert: int

    def packed(self, folder: Folder) -> PackedWeight:
        blocks, scales = (_part(folder.tensor(name), self.expert).read() for name in self.tensors)
        return _EXPERT.weight({"blocks": blocks.view(self.rows, -1), "scales": scales})


def _experts(folder: Folder, name: str) -> list[ExpertLayer]:
    blocks = folder.tensor(f"{name}_blocks")
    shape = blocks.shape
    if len(shape) != 4 or 0 in shape or shape[3] != _BYTES or blocks.dtype != torch.uint8:
        raise folder.error(blocks.name, f"[experts, rows, runs, {_BYTES}] of uint8", blocks.described)
    folder.expect(f"{name}_scales", shape[:3], (torch.uint8,))
    tensors = (blocks.name, f"{name}_scales")
    size = (shape[1], shape[2] * _RUN)
    return [
        ExpertLayer(f"{name}.{expert}", *size, _EXPERT.type, tensors, {}, POWER_NOTE, expert=expert)
        for expert in range(shape[0])
    ]


def _part(tensor: StoredTensor, index: int) -> StoredTensor:
    """Return the place of one entry of a tensor's first dimension."""
    nbytes = tensor.nbytes // tensor.shape[0]
    return replace(tensor, offset=tensor.offset + index * nbytes, nbytes=nbytes, shape=tensor.shape[1:])
