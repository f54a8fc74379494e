"""Checkpoint folders that are not quantized: MeZO's own case, with the weights themselves as views of role `dense`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoquant.backends.refused import explain
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix, open_folder
from zoquant.checkpoint.folder.reading import CONFIG, HQQ_ARCHIVE
from zoquant.errors import CheckpointError

_PACKED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)
"""The dtypes of packed words: hqq and quanto save them with a config that says nothing of quantization."""


class DenseFormat(FolderFormat):
    """A folder with config.json and plain numbers in float32, float16 or bfloat16."""

    name = "dense"
    methods = frozenset()
    library = "transformers"

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a folder of a model whose config says nothing of quantization, nor its tensors."""
        if not (path / CONFIG).is_file() or not super().sniff(path) or (path / HQQ_ARCHIVE).exists():
            return False
        try:
            return not any(tensor.dtype in _PACKED for tensor in open_folder(path).tensors.values())
        except CheckpointError:
            return True

    def claims(self, quantization: Mapping[str, Any]) -> bool:
        """Tell whether nothing is said of quantization."""
        return not quantization

    def explain(self, path: Path) -> str:
        """Return why a quantized folder that no format claims is not read."""
        return explain(path)

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return nothing: no matrix is quantized."""
        return {}
