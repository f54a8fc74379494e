"""The plugin: zoquant reads folders of nib3, and trains its layers."""

import nib3
import torch

import zoquant
from zoquant.checkpoint.folder import AffineLayout, FolderFormat, StoredCodes, StoredNumbers, build_tokenizer

LAYOUT = AffineLayout(
    type="3-bit g30",
    codes=StoredCodes("words", (torch.int32,), bits=3, per_word=10, offset=4),
    scale=StoredNumbers("scale", block=(1, 30), transposed=True),
    offset=StoredNumbers("offset", block=(1, 30), transposed=True),
)


class Nib3Folder(FolderFormat):
    """A folder of nib3."""

    name = "nib3"
    methods = frozenset({"nib3"})
    library = "nib3"

    def layers(self, folder):
        return LAYOUT.matrices(folder)

    def open_vendor(self, path, *, compute_dtype, device):
        return nib3.load(path).to(device), build_tokenizer(path)


class Nib3Backend(zoquant.PackedBackend):
    """A layer of nib3."""

    name = "nib3"

    def packed(self, module):
        return LAYOUT.weight(dict(module.named_buffers()))

    def refresh(self, module):
        module.dequantize()
