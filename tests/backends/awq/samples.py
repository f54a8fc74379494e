"""Small AWQ checkpoints and layers, the same bytes every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backends.awq.layers import auto_awq, gptqmodel_awq
from tests.backends.awq.reference import random_awq
from tests.backends.gptq.layers import warm
from tests.checkpoint.folder.llama import write_llama


def awq_folder(folder: Path, *, layout: str = "gemm", **changes: Any) -> Path:
    """Write a llama of one layer."""

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        return random_awq(path, *weight.shape, layout=layout, seed=len(path))[0]

    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": layout}
    return write_llama(folder / "awq", quantize, config, **changes)


def _of_gptqmodel(name: str, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: warm(gptqmodel_awq(name, **changes))


_QLINEAR = "gptqmodel.nn_modules.qlinear"
BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    f"{_QLINEAR}.torch_awq.AwqTorchLinear": _of_gptqmodel("torch_awq.AwqTorchLinear"),
    f"{_QLINEAR}.torch_aten_kernel_awq.TorchAtenAwqLinear": _of_gptqmodel("torch_aten_kernel_awq.TorchAtenAwqLinear"),
    f"{_QLINEAR}.torch_fused_awq.TorchFusedAwqLinear": _of_gptqmodel("torch_fused_awq.TorchFusedAwqLinear"),
    f"{_QLINEAR}.torch_cpu_avx512_awq.TorchCpuAvx512AwqLinear": _of_gptqmodel(
        "torch_cpu_avx512_awq.TorchCpuAvx512AwqLinear", dtype=torch.bfloat16
    ),
    "awq.modules.linear.gemm.WQLinear_GEMM": lambda: auto_awq("gemm.WQLinear_GEMM", "gemm"),
}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"awq": awq_folder}
NEED_GPU = {
    f"{_QLINEAR}.gemm_awq.AwqGEMMLinear",
    f"{_QLINEAR}.gemm_awq_triton.AwqGEMMTritonLinear",
    f"{_QLINEAR}.gemv_awq.AwqGEMVLinear",
    f"{_QLINEAR}.gemv_fast_awq.AwqGEMVFastLinear",
    f"{_QLINEAR}.gemv_fast_awq.LLMAwqLinear",
    "awq.modules.linear.gemv.WQLinear_GEMV",
    "awq.modules.linear.gemv_fast.WQLinear_GEMVFast",
}
