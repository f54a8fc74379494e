"""Small GPTQ checkpoints and layers, the same bytes every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backends.gptq.layers import auto_gptq_layer, gptqmodel_embedding, gptqmodel_layer, warm
from tests.backends.gptq.reference import random_gptq
from tests.checkpoint.folder.llama import write_llama

CONFIG: dict[str, Any] = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False, "checkpoint_format": "gptq",
    "dynamic": {
        r"+:.*q_proj.*": {"bits": 8}, r".*k_proj": {"bits": 3, "group_size": -1}, r".*v_proj": {"bits": 2},
        r".*up_proj": {"group_size": 64}, r"-:.*lm_head": {},
    },
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "q_proj": {"bits": 8},
    "k_proj": {"bits": 3, "group_size": -1, "act_order": True},
    "v_proj": {"bits": 2},
    "o_proj": {"act_order": True},
    "up_proj": {"group_size": 64, "g_idx": False},
}
"""What is special about some layers of the sample; all others are plain 4 bits in groups of 32."""


def gptq_folder(folder: Path, *, minus_one: bool = True, **changes: Any) -> Path:
    """Write a llama of one layer, nearly every matrix of another kind."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        kind = KINDS.get(path.rpartition(".")[2], {})
        return random_gptq(path, *weight.shape, minus_one=minus_one, seed=len(path), **kind)

    config = {**CONFIG, "checkpoint_format": "gptq" if minus_one else "gptq_v2"}
    return write_llama(folder / "gptq", quantize, config, **changes)


def _of_gptqmodel(name: str, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: warm(gptqmodel_layer(name, **changes))


def _of_auto_gptq(module: str) -> Callable[[], nn.Module]:
    return lambda: auto_gptq_layer(module)


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "gptqmodel.nn_modules.qlinear.torch.TorchLinear": _of_gptqmodel("torch.TorchLinear"),
    "gptqmodel.nn_modules.qlinear.torch.TorchQuantEmbeddings": lambda: warm(gptqmodel_embedding()),
    "gptqmodel.nn_modules.qlinear.torch_aten_kernel.TorchAtenLinear": _of_gptqmodel(
        "torch_aten_kernel.TorchAtenLinear", act_order=True
    ),
    "gptqmodel.nn_modules.qlinear.torch_fused.TorchFusedLinear": _of_gptqmodel(
        "torch_fused.TorchFusedLinear", sym=True
    ),
    "gptqmodel.nn_modules.qlinear.torch_cpu_avx512.TorchCpuAvx512Linear": _of_gptqmodel(
        "torch_cpu_avx512.TorchCpuAvx512Linear", act_order=True, dtype=torch.bfloat16
    ),
    "auto_gptq.nn_modules.qlinear.qlinear_cuda.QuantLinear": _of_auto_gptq("qlinear_cuda"),
    "auto_gptq.nn_modules.qlinear.qlinear_cuda_old.QuantLinear": _of_auto_gptq("qlinear_cuda_old"),
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"gptq": gptq_folder}
NEED_GPU = {
    "gptqmodel.nn_modules.qlinear.tritonv2.TritonV2Linear",
    "auto_gptq.nn_modules.qlinear.qlinear_triton.QuantLinear",
}
