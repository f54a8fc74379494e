"""Formats whose own library computes nothing that could be trained here."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.checkpoint.folder import FolderFormat
from zoquant.errors import UnsupportedLayoutError


class NativeOnlyFormat(FolderFormat):
    """A format that runs on zoquant's own layers alone.

    Attributes:
        reason: why the library's own modules cannot be trained, without a full stop.
    """

    reason: str

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Refuse.

        Raises:
            UnsupportedLayoutError: always, with the reason.
        """
        raise UnsupportedLayoutError(
            f"{path}: the format {self.name} has no vendor runtime: {self.reason}. Use runtime='native'."
        )

    def runtimes(self) -> dict[str, str]:
        """Return that zoquant's layers compute the forward, and why no others do."""
        return {"native": "yes: runs on the file's own words", "vendor": f"no: {self.reason}"}
