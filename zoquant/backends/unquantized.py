"""Checkpoint folders that are not quantized: MeZO's own case, with the weights themselves as views of role `dense`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoquant.folder import Folder, FolderFormat, Layer
from zoquant.folder.checkpoint import CONFIG


class UnquantizedFormat(FolderFormat):
    """A folder with config.json and plain numbers in float32, float16 or bfloat16."""

    name = "dense"
    methods = frozenset()
    library = "transformers"

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a folder of a model whose config says nothing of quantization."""
        return (path / CONFIG).is_file() and super().sniff(path)

    def claims(self, quantization: Mapping[str, Any]) -> bool:
        """Tell whether nothing is said of quantization."""
        return not quantization

    def layers(self, folder: Folder) -> Mapping[str, Layer]:
        """Return nothing: no matrix is quantized."""
        return {}
