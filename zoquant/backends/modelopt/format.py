"""Folders of NVIDIA's Model Optimizer, as it exports them for vLLM and TensorRT-LLM.

    NVFP4:  W = table[code] * weight_scale * weight_scale_2: one float8 for 16 columns, one float32 for the matrix
    FP8:    W = weight * weight_scale: one scale for the matrix, a row, or a block of 128 x 128 weights

Source: compressed-tensors 0.20.0, entrypoints/convert/converters/modelopt_nvfp4.py; vLLM 0.13,
layers/quantization/modelopt.py.
"""

from collections.abc import Mapping
from typing import Any

import torch

from zoquant.backends.grids import ScaleGrid
from zoquant.backends.microfloat import MicrofloatLayer
from zoquant.backends.native_only import NativeOnlyFormat
from zoquant.backends.scaled import ScaledLayer, check_grid, check_matrix, refuse_experts
from zoquant.folder import Folder, Layer
from zoquant.folder.format import DENSE

FP8 = torch.float8_e4m3fn
_COMPANIONS = ("input_scale", "k_scale", "v_scale")


class ModelOptFormat(NativeOnlyFormat):
    """NVFP4 and FP8. The dtype of a weight says which: algorithms may be mixed in a checkpoint."""

    name = "modelopt"
    methods = frozenset({"modelopt", "modelopt_fp4"})
    reason = "transformers does not load it; vLLM and TensorRT-LLM compute it on a GPU alone"

    def claims(self, quantization: Mapping[str, Any]) -> bool:
        """Tell whether the config was written by Model Optimizer, old or new."""
        producer = quantization.get("producer")
        said = producer.get("name") if isinstance(producer, Mapping) else None
        return super().claims(quantization) or said == "modelopt"

    def layers(self, folder: Folder) -> Mapping[str, Layer]:
        """Return every FP4 or float8 matrix by the path of its module.

        Raises:
            CheckpointError: a scale is missing, or does not fit its matrix.
            UnsupportedLayoutError: all experts of a layer lie in one tensor.
        """
        refuse_experts(folder, (torch.uint8,))
        makers = {torch.uint8: _nvfp4, FP8: _fp8}
        return {
            name.removesuffix(".weight"): makers[tensor.dtype](folder, name.removesuffix(".weight"))
            for name, tensor in folder.tensors.items()
            if name.endswith(".weight") and tensor.dtype in makers
        }


def _nvfp4(folder: Folder, path: str) -> Layer:
    weight, scale, whole = (f"{path}.{name}" for name in ("weight", "weight_scale", "weight_scale_2"))
    rows, length = check_matrix(folder, weight, (torch.uint8,)).shape
    grid = ScaleGrid(rows, 2 * length, 1, 16)
    check_grid(folder, scale, grid, (FP8,))
    check_grid(folder, whole, ScaleGrid(rows, 2 * length, rows, 2 * length), (torch.float32,))
    return MicrofloatLayer(
        path, rows, 2 * length, "float4 g16", (weight, scale, whole, *_companions(folder, path)),
        {"weight_scale_2": ("scale", whole)}, codes=weight, scale=scale, grid=grid, whole=whole,
    )  # fmt: skip


def _fp8(folder: Folder, path: str) -> Layer:
    weight, scale = f"{path}.weight", f"{path}.weight_scale"
    rows, columns = check_matrix(folder, weight, (FP8,)).shape
    shape = folder.tensor(scale).shape
    blocks = {"tensor": (rows, columns), "row": (1, columns), "128x128": (128, 128)}
    grids = {where: ScaleGrid(rows, columns, *block) for where, block in blocks.items()}
    where = next((where for where, grid in grids.items() if grid.holds(shape)), "tensor")
    check_grid(folder, scale, grids[where], DENSE)
    return ScaledLayer(
        path, rows, columns, f"float8 {where}", (weight, scale, *_companions(folder, path)),
        {"weight_scale": ("scale", scale)}, codes=weight, scale=scale, grid=grids[where],
    )  # fmt: skip


def _companions(folder: Folder, path: str) -> list[str]:
    return [f"{path}.{name}" for name in _COMPANIONS if f"{path}.{name}" in folder.tensors]
