"""Folders of BitNet b1.58.

    linear_class bitlinear:      W = (code - 1) / weight_scale
    linear_class autobitlinear:  W = (code - 1) * weight_scale

Source: transformers 5.23.0, integrations/bitnet.py (`BitLinear`, `AutoBitLinear`, `BitNetDeserialize`).
"""

from collections.abc import Mapping

from zoquant.backends.bitnet.layout import bitnet_layout
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.errors import UnsupportedLayoutError


class BitNetFormat(FolderFormat):
    """Ternary matrices with one scale each, packed as transformers packs them."""

    name = "bitnet"
    methods = frozenset({"bitnet"})
    library = "transformers"
    notes = ("activations: rounded to int8 for each token by transformers, left in floating point by native layers",)

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        divided = _is_divided(folder)
        for path in folder.paths("weight_scale"):
            if not divided and folder.held(path, ["bias"]):
                raise _refusal(folder, f"{path}.bias is multiplied with weight_scale by AutoBitLinear")
        return bitnet_layout(divided=divided).matrices(folder, "weight_scale")


def _is_divided(folder: Folder) -> bool:
    said = folder.quantization
    kind = said.get("linear_class", "bitlinear")
    if kind not in ("bitlinear", "autobitlinear"):
        raise folder.error("linear_class", "'bitlinear' or 'autobitlinear'", repr(kind)[:80])
    if kind == "autobitlinear" and said.get("quantization_mode") == "online":
        raise _refusal(folder, "'quantization_mode' is 'online': plain weights are quantized in every forward")
    if said.get("use_rms_norm"):
        raise _refusal(folder, "'use_rms_norm': its layers normalize their input")
    return bool(kind == "bitlinear")


def _refusal(folder: Folder, why: str) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(
        f"{folder.path}: {why}, which native layers do not compute. Use a checkpoint with packed weights and "
        "linear_class='bitlinear'."
    )
