"""Folders of ExLlamaV3.

Source: turboderp-org/exllamav3, doc/exl3.md, modules/quant/exl3.py (`LinearEXL3`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from zoquant.backends.exl3.trellis import SIDE
from zoquant.backends.exl3.weight import BLOCK, TrellisWeight
from zoquant.checkpoint.folder import DENSE, Folder, FolderFormat, MadeMatrix, StoredMatrix
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight
from zoquant.protocol import Role

_BOOKS = ("mcg", "mul1")
_MOST_BITS = 8


class EXL3Format(FolderFormat):
    """Trellis codes of 1 to 8 bits with each of the three codebooks."""

    name = "exl3"
    methods = frozenset({"exl3"})
    reason = "exllamav3 computes it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        return {path: _matrix(folder, path) for path in folder.paths("trellis")}


def _matrix(folder: Folder, path: str) -> StoredMatrix:
    trellis = folder.tensor(f"{path}.trellis")
    tiles = BLOCK // SIDE
    whole = len(trellis.shape) == 3 and trellis.dtype == torch.int16 and 0 not in trellis.shape
    bits = trellis.shape[-1] // SIDE if whole else 0
    fits = 1 <= bits <= _MOST_BITS and trellis.shape[-1] % SIDE == 0
    if not fits or trellis.shape[0] % tiles or trellis.shape[1] % tiles:
        raise folder.error(
            trellis.name, f"int16 of inputs / 16, outputs / 16, both in blocks of {BLOCK}, and 16 times 1 to 8 bits",
            trellis.described,
        )  # fmt: skip
    for sign in folder.held(path, ("su", "sv")):
        raise UnsupportedLayoutError(
            f"{folder.path}: {path}.{sign}: signs in the place of scales, as exllamav3 wrote before 0.0.2, have "
            "nothing to train. Use a checkpoint that a later version wrote."
        )
    columns, rows = trellis.shape[0] * SIDE, trellis.shape[1] * SIDE
    for name, length in (("suh", columns), ("svh", rows)):
        folder.expect(f"{path}.{name}", (length,), DENSE)
    found = folder.held(path, _BOOKS)
    if len(found) > 1:
        raise folder.error(f"{path}.{found[1]}", "one codebook", " and ".join(found))
    names = tuple(f"{path}.{name}" for name in ("trellis", "suh", "svh", *found))
    kind, book = f"{bits}-bit trellis", found[0] if found else "3inst"
    fields: Mapping[str, tuple[Role, str]] = {name: ("scale", f"{path}.{name}") for name in ("suh", "svh")}

    def make(tensors: Mapping[str, Tensor]) -> PackedWeight:
        return TrellisWeight(kind, tensors["trellis"], tensors["suh"], tensors["svh"], book)

    return MadeMatrix(path, rows, columns, f"{kind} {book}", names, fields, make=make)
