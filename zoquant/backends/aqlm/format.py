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

from zoquant.backends.aqlm.live import AQLMBackend
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, open_folder
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.native import FieldSpec, PackedWeight, Values, VectorWeight
from zoquant.native.values import per_row

_SETTINGS = {"num_codebooks": 64, "nbits_per_codebook": 24, "out_group_size": 4096, "in_group_size": 4096}
"""The settings of a checkpoint, in the order of the codebooks' shape, and the most that is believed of each."""


class AQLMFormat(FolderFormat):
    """AQLM of any number of codebooks, bits and group sizes: 1x16, 2x8, 1x12, 8x8 and others."""

    name = "aqlm"
    methods = frozenset({"aqlm"})
    library = "aqlm"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix with codes.

        Raises:
            CheckpointError: a tensor is missing, or of another shape or dtype than the config says.
        """
        settings = [_setting(folder, name, most) for name, most in _SETTINGS.items()]
        paths = [name.removesuffix(".codes") for name in folder.tensors if name.endswith(".codes")]
        if not paths:
            raise folder.error("codes", "at least one matrix with codes", "none")
        return {path: _layer(folder, path, *settings) for path in paths}

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on aqlm's own layers, on a CPU with its plain torch product, and its tokenizer.

        aqlm computes in the dtype of the codebooks, so the model is loaded in the dtype of the file's. Its kernel for
        CPUs is left out: see `AQLMBackend`.

        Raises:
            UnsupportedLayoutError: aqlm is not installed.
            CheckpointError: the checkpoint is damaged, or transformers refuses it.
        """
        folder = open_folder(path)
        first = next(iter(self.layers(folder)))
        dtype = folder.tensor(f"{first}.codebooks").dtype
        model, tokenizer = super().open_vendor(path, compute_dtype=dtype, device=device)
        for module in model.modules():
            if type(module).__name__ == "QuantizedLinear":
                AQLMBackend().open(module)
        return model, tokenizer


class AQLMLayer(StoredMatrix):
    """One matrix of AQLM."""

    def packed(self, folder: Folder) -> PackedWeight:
        """Read codes, codebooks and scales."""
        codebooks, scales = folder.read(f"{self.path}.codebooks"), folder.read(f"{self.path}.scales")
        return VectorWeight(
            f"AQLM {self.type}",
            folder.read(f"{self.path}.codes"),
            (FieldSpec("codebooks", "codebook", codebooks.dtype), codebooks),
            Values(FieldSpec("scales", "scale", scales.dtype), scales, per_row),
        )


def _setting(folder: Folder, name: str, most: int) -> int:
    value = folder.quantization.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise folder.error(f"quantization_config.{name}", f"a number from 1 to {most}", repr(value)[:80])
    return value


def _layer(folder: Folder, path: str, books: int, nbits: int, height: int, width: int) -> StoredMatrix:
    names = tuple(f"{path}.{part}" for part in ("codes", "codebooks", "scales"))
    shape = folder.tensor(names[0]).shape
    if len(shape) != 3 or 0 in shape:
        raise folder.error(names[0], f"[rows / {height}, columns / {width}, {books}]", f"{list(shape)}")
    folder.expect(names[0], (*shape[:2], books), [_code_dtype(nbits)])
    folder.expect(names[1], (books, 1 << nbits, height, width), DENSE)
    folder.expect(names[2], (shape[0], 1, 1, 1), DENSE)
    kind = f"{books}x{nbits} g{width}" if height == 1 else f"{books}x{nbits} g{height}x{width}"
    return AQLMLayer(
        path=path,
        rows=shape[0] * height,
        columns=shape[1] * width,
        type=kind,
        tensors=names,
        fields={"scales": ("scale", names[2]), "codebooks": ("codebook", names[1])},
    )


def _code_dtype(nbits: int) -> torch.dtype:
    return torch.int8 if nbits <= 8 else torch.int16 if nbits <= 16 else torch.int32
