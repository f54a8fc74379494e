"""Folders of transformers' Metal quantization, MLX's affine layout under names of its own.

    W = code * scales + qbiases, codes of 2, 4 or 8 bits in uint32 words along the columns, the lowest bits first

Source: transformers 5.23.0, integrations/metal_quantization.py (`_affine_dequantize_tensor`).
"""

from collections.abc import Mapping

import torch

from zoquant.checkpoint.folder import AffineLayout, Folder, FolderFormat, StoredCodes, StoredMatrix, StoredNumbers

_BITS = (2, 4, 8)


class MetalFormat(FolderFormat):
    """Groups of columns with a scale and an offset, both in floating point."""

    name = "metal"
    methods = frozenset({"metal"})
    reason = "transformers computes it on Apple's hardware alone; elsewhere it dequantizes the model"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        bits, size = (_number(folder, name, default) for name, default in (("bits", 4), ("group_size", 64)))
        if bits not in _BITS:
            raise folder.error("bits", "2, 4 or 8", repr(bits))
        layout = AffineLayout(
            type=f"{bits}-bit g{size}",
            codes=StoredCodes("weight", (torch.uint32, torch.int32), bits),
            scale=StoredNumbers("scales", (1, size)),
            offset=StoredNumbers("qbiases", (1, size)),
        )
        return layout.matrices(folder, "qbiases")


def _number(folder: Folder, name: str, default: int) -> int:
    number = folder.quantization.get(name, default)
    if type(number) is not int or number < 1:
        raise folder.error(name, "a positive integer", repr(number)[:80])
    return number
