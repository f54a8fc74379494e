"""Checkpoints that AQLM quantized, as transformers saves them.

    <path>.codes      int8, int16 or int32 [rows / height, columns / width, codebooks], above half of the range negative
    <path>.codebooks  float [codebooks, 2^nbits, height, width]
    <path>.scales     float [rows / height, 1, 1, 1]

Source: aqlm 1.1.7, aqlm/inference.py, aqlm/utils.py; transformers 5.23, `AqlmConfig`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.aqlm.live import PARTS, AQLMBackend, aqlm_weight
from zoquant.checkpoint.folder import DENSE, Folder, FolderFormat, MadeMatrix, StoredMatrix, open_folder
from zoquant.protocol import Role

_SETTINGS = {"num_codebooks": 64, "nbits_per_codebook": 24, "out_group_size": 4096, "in_group_size": 4096}
"""The settings of a checkpoint, in the order of the codebooks' shape, and the most that is believed of each."""


class AQLMFormat(FolderFormat):
    """AQLM of any number of codebooks, bits and group sizes: 1x16, 2x8, 1x12, 8x8 and others."""

    name = "aqlm"
    methods = frozenset({"aqlm"})
    library = "aqlm"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        settings = [_setting(folder, name, most) for name, most in _SETTINGS.items()]
        found = {path: _matrix(folder, path, *settings) for path in folder.paths("codes")}
        if not found:
            raise folder.error("codes", "at least one matrix with codes", "none")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on aqlm's own layers, on a CPU with its plain torch product, and its tokenizer.

        aqlm computes in the dtype of the codebooks, so the model is loaded in the dtype of the file's. Its kernel for
        CPUs is left out: see `AQLMBackend`.
        """
        folder = open_folder(path)
        first = next(iter(self.layers(folder)))
        dtype = folder.tensor(f"{first}.codebooks").dtype
        model, tokenizer = super().open_vendor(path, compute_dtype=dtype, device=device)
        for module in model.modules():
            if type(module).__name__ == "QuantizedLinear":
                AQLMBackend().open(module)
        return model, tokenizer


def _setting(folder: Folder, name: str, most: int) -> int:
    value = folder.quantization.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise folder.error(f"quantization_config.{name}", f"a number from 1 to {most}", repr(value)[:80])
    return value


def _matrix(folder: Folder, path: str, books: int, nbits: int, height: int, width: int) -> StoredMatrix:
    codes, codebooks, scales = names = tuple(f"{path}.{part}" for part in PARTS)
    shape = folder.tensor(codes).shape
    if len(shape) != 3 or 0 in shape:
        raise folder.error(codes, f"[rows / {height}, columns / {width}, {books}]", f"{list(shape)}")
    folder.expect(codes, (*shape[:2], books), [_code_dtype(nbits)])
    folder.expect(codebooks, (books, 1 << nbits, height, width), DENSE)
    folder.expect(scales, (shape[0], 1, 1, 1), DENSE)
    kind = f"{books}x{nbits} g{width}" if height == 1 else f"{books}x{nbits} g{height}x{width}"
    fields: Mapping[str, tuple[Role, str]] = {"scales": ("scale", scales), "codebooks": ("codebook", codebooks)}
    return MadeMatrix(path, shape[0] * height, shape[1] * width, kind, names, fields, make=aqlm_weight)


def _code_dtype(nbits: int) -> torch.dtype:
    return torch.int8 if nbits <= 8 else torch.int16 if nbits <= 16 else torch.int32
