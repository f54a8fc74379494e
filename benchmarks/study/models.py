"""The models of the study; one is held at a time."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoquant
from benchmarks.quantize.source import load_dense
from benchmarks.study.record import SkippedError
from benchmarks.study.rows import Row
from zoquant.checkpoint.loading import default_compute_dtype


class Models:
    """Loads what a row trains.

    Args:
        checkpoint: the GGUF file; its dense copy is read from it, too.
        aqlm: folder of the AQLM-shaped model, or None.
        compute_dtype: dtype of the matrix products of quantized layers; None for the default of `zoquant.load`.
    """

    def __init__(self, checkpoint: Path, aqlm: Path | None, compute_dtype: torch.dtype | None = None) -> None:
        self.paths: dict[str, Path | None] = {"checkpoint": checkpoint, "dense": checkpoint, "aqlm": aqlm}
        self.compute_dtype = compute_dtype
        self._held: tuple[tuple[str, torch.dtype], tuple[nn.Module, Any]] | None = None

    def open(self, row: Row) -> tuple[nn.Module, Any]:
        """Return model and tokenizer at their base values.

        Raises:
            SkippedError: no path was given for this model.
        """
        path, dtype = self.paths[row.model], self.dtype(row)
        if path is None:
            raise SkippedError(f"no --{row.model} was given")
        if self._held is None or self._held[0] != (row.model, dtype):
            self._held = None
            opened = load_dense(path) if row.model == "dense" else zoquant.load(path, compute_dtype=dtype, device="cpu")
            self._held = ((row.model, dtype), opened)
        return self._held[1]

    def dtype(self, row: Row) -> torch.dtype:
        """Return the dtype of a row's matrix products: float32 for dense weights and for autograd."""
        if row.method == "first-order" or row.model == "dense":
            return torch.float32
        return self.compute_dtype or default_compute_dtype(torch.device("cpu"))

    def drop(self) -> None:
        """Let go of the model, which the next `open` loads anew."""
        self._held = None
