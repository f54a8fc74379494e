"""Checkpoints that AutoRound writes in its own format: the layers of GPTQ or AWQ, told apart by `packing_format`.

Source: auto-round 0.16.1, auto_round/inference/backend.py (`GPTQ_FORMAT`, `GPTQ_FORMAT_NO_ZP`, `AWQ_FORMAT`).
"""

from collections.abc import Mapping

from zoquant.backends.awq.format import awq_layers
from zoquant.backends.gptq.config import GPTQConfig, read_schemes
from zoquant.backends.gptq.format import gptq_layers
from zoquant.backends.gptq.layout import BITS
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix

_AWQ = "auto_round:auto_awq"
_MINUS_ONE = {
    "auto_round:auto_gptq": True,
    "auto_round": False,
    "auto_round:gptqmodel": False,
    "auto_round:exllamav2": False,
}
_HALF = 16


class AutoRoundFormat(FolderFormat):
    """Integers of 2, 3, 4 and 8 bits; what GPTQ or AWQ have, under another config."""

    name = "auto-round"
    methods = frozenset({"auto-round", "intel/auto-round"})
    library = "auto_round"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        said = folder.quantization
        packing = said.get("packing_format") or said.get("backend") or "auto_round:auto_gptq"
        act_bits = said.get("act_bits", _HALF)
        if isinstance(act_bits, int) and act_bits < _HALF:
            raise folder.error("act_bits", "16 or more: only weights are quantized", str(act_bits))
        if said.get("rotation_config"):
            raise folder.error("rotation_config", "none: inputs are not rotated", "one")
        if packing == _AWQ:
            return awq_layers(folder)
        if not isinstance(packing, str) or packing not in _MINUS_ONE:
            raise folder.error("packing_format", ", ".join([*_MINUS_ONE, _AWQ]), repr(packing)[:60])
        return gptq_layers(folder, GPTQConfig(read_schemes(folder, BITS), _MINUS_ONE[packing], desc_act=False))
