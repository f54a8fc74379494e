"""Folders of ExLlamaV3.

Source: turboderp-org/exllamav3, doc/exl3.md, modules/quant/exl3.py (`LinearEXL3`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zoquant.backends.exl3.trellis import SIDE
from zoquant.backends.exl3.weight import BLOCK, TrellisWeight
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight

_TRELLIS = ".trellis"
_BOOKS = ("mcg", "mul1")
_MOST_BITS = 8


class EXL3Format(FolderFormat):
    """Trellis codes of 1 to 8 bits with each of the three codebooks."""

    name = "exl3"
    methods = frozenset({"exl3"})
    reason = "exllamav3 computes it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every trellis by the path of its module.

        Raises:
            CheckpointError: scales are missing, or do not fit the trellis.
            UnsupportedLayoutError: signs take the place of scales, as before version 0.0.2.
        """
        paths = [name.removesuffix(_TRELLIS) for name in folder.tensors if name.endswith(_TRELLIS)]
        return {path: _layer(folder, path) for path in paths}


@dataclass(frozen=True, kw_only=True)
class TrellisLayer(StoredMatrix):
    """A trellis with one scale an input and one an output.

    Attributes:
        book: name of the codebook.
    """

    book: str

    def packed(self, folder: Folder) -> PackedWeight:
        """Read the matrix."""
        trellis, suh, svh = (folder.read(f"{self.path}.{name}") for name in ("trellis", "suh", "svh"))
        return TrellisWeight(self.type, trellis, suh, svh, self.book)


def _layer(folder: Folder, path: str) -> StoredMatrix:
    trellis = folder.tensor(f"{path}{_TRELLIS}")
    tiles = BLOCK // SIDE
    whole = len(trellis.shape) == 3 and trellis.dtype == torch.int16 and 0 not in trellis.shape
    bits = trellis.shape[-1] // SIDE if whole else 0
    fits = 1 <= bits <= _MOST_BITS and trellis.shape[-1] % SIDE == 0
    if not fits or trellis.shape[0] % tiles or trellis.shape[1] % tiles:
        raise folder.error(
            trellis.name, f"int16 of inputs / 16, outputs / 16, both in blocks of {BLOCK}, and 16 times 1 to 8 bits",
            f"{list(trellis.shape)} of {trellis.dtype}",
        )  # fmt: skip
    for sign in ("su", "sv"):
        if f"{path}.{sign}" in folder.tensors:
            raise UnsupportedLayoutError(
                f"{folder.path}: {path}.{sign}: signs in the place of scales, as exllamav3 wrote before 0.0.2, have "
                "nothing to train. Use a checkpoint that a later version wrote."
            )
    columns, rows = trellis.shape[0] * SIDE, trellis.shape[1] * SIDE
    for name, length in (("suh", columns), ("svh", rows)):
        folder.expect(f"{path}.{name}", (length,), DENSE)
    found = [book for book in _BOOKS if f"{path}.{book}" in folder.tensors]
    if len(found) > 1:
        raise folder.error(f"{path}.{found[1]}", "one codebook", " and ".join(found))
    names = [f"{path}.{name}" for name in ("trellis", "suh", "svh", *found)]
    book = found[0] if found else "3inst"
    fields = {name: ("scale", f"{path}.{name}") for name in ("suh", "svh")}
    return TrellisLayer(path, rows, columns, f"{bits}-bit trellis {book}", tuple(names), fields, book=book)  # type: ignore[arg-type]
