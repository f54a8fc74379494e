"""Small AutoRound checkpoints, the same bytes every time."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tests.backends.awq.reference import random_awq
from tests.backends.gptq.reference import random_gptq
from tests.checkpoint.folder.llama import write_llama


def auto_round_folder(folder: Path, *, packing: str = "auto_round:auto_gptq") -> Path:
    """Write a llama of one layer; with GPTQ's layers the one of down_proj in 8 bits."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        if packing.endswith("awq"):
            return random_awq(path, *weight.shape, seed=len(path))[0]
        bits = 8 if path.endswith("down_proj") else 4
        minus_one = packing.endswith("auto_gptq")
        return random_gptq(path, *weight.shape, bits=bits, minus_one=minus_one, g_idx=False, seed=len(path))

    extra = {"model.layers.0.mlp.down_proj": {"bits": 8}, "lm_head": {"bits": 16, "data_type": "fp"}}
    config = {
        "quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int", "act_bits": 16,
        "packing_format": packing, "extra_config": {} if packing.endswith("awq") else extra,
    }  # fmt: skip
    return write_llama(folder / "auto_round", quantize, config)


FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"auto-round": auto_round_folder}
