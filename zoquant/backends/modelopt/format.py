"""Folders of NVIDIA's Model Optimizer, as it exports them for vLLM and TensorRT-LLM.

    NVFP4:  W = table[code] * weight_scale * weight_scale_2: one float8 for 16 columns, one float32 for the matrix
    FP8:    W = weight * weight_scale: one scale for the matrix, a row, or a block of 128 x 128 weights

Source: compressed-tensors 0.20.0, entrypoints/convert/converters/modelopt_nvfp4.py; vLLM 0.13,
layers/quantization/modelopt.py; Model Optimizer, docs/source/deployment/3_unified_hf.rst.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from zoquant.backends.layouts.microfloat import MicrofloatLayer
from zoquant.backends.layouts.scale_grid import ScaleGrid
from zoquant.backends.layouts.scaled import ScaledLayer, check_grid, check_matrix, refuse_experts
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import UnsupportedLayoutError

FP8 = torch.float8_e4m3fn
_COMPANIONS = ("input_scale", "k_scale", "v_scale")
_ALGORITHMS = (
    "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "MIXED_PRECISION",
)  # fmt: skip
_PRE_SCALE = ".pre_quant_scale"


class ModelOptFormat(FolderFormat):
    """NVFP4 and FP8, described in config.json or in hf_quant_config.json. The dtype of a weight says which of the two.

    Other algorithms, and those that scale the inputs of a layer, are refused.
    """

    name = "modelopt"
    methods = frozenset({"modelopt", "modelopt_fp4"})
    reason = "transformers does not load it; vLLM and TensorRT-LLM compute it on a GPU alone"

    def claims(self, quantization: Mapping[str, Any]) -> bool:
        """Tell whether the config was written by Model Optimizer, old or new."""
        producer = quantization.get("producer")
        said = producer.get("name") if isinstance(producer, Mapping) else None
        return super().claims(quantization) or said == "modelopt"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every FP4 or float8 matrix by the path of its module.

        Raises:
            CheckpointError: a scale is missing, or does not fit its matrix.
            UnsupportedLayoutError: another algorithm, or all experts of a layer in one tensor.
        """
        _refuse_algorithms(folder)
        refuse_experts(folder, (torch.uint8,))
        makers = {torch.uint8: _nvfp4, FP8: _fp8}
        return {
            name.removesuffix(".weight"): makers[tensor.dtype](folder, name.removesuffix(".weight"))
            for name, tensor in folder.tensors.items()
            if name.endswith(".weight") and tensor.dtype in makers
        }


def _refuse_algorithms(folder: Folder) -> None:
    unread = [each for each in _algorithms(folder.quantization) if each not in _ALGORITHMS]
    if unread:
        raise UnsupportedLayoutError(
            f"{folder.path}: 'quant_algo': expected one of {', '.join(_ALGORITHMS)}, got {unread[0]!r:.60}. "
            "Quantize the model with one of those."
        )
    scaled = next((name for name in folder.tensors if name.endswith(_PRE_SCALE)), None)
    if scaled is not None:
        algorithm = next(_algorithms(folder.quantization), None)
        raise UnsupportedLayoutError(
            f"{folder.path}: tensor {scaled!r}: 'quant_algo' {algorithm!r:.60} scales the inputs of its layers, which "
            "native layers do not compute. Quantize the model with one that does not, such as NVFP4 or FP8."
        )


def _algorithms(said: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a config names under `quant_algo`, for the whole model and for single layers, old and new."""
    layers = said.get("quantized_layers")
    inner = [said.get("quantization"), *(layers.values() if isinstance(layers, Mapping) else ())]
    if said.get("quant_algo") is not None:
        yield said["quant_algo"]
    for each in inner:
        if isinstance(each, Mapping):
            yield from _algorithms(each)


def _nvfp4(folder: Folder, path: str) -> StoredMatrix:
    weight, scale, whole = (f"{path}.{name}" for name in ("weight", "weight_scale", "weight_scale_2"))
    rows, length = check_matrix(folder, weight, (torch.uint8,)).shape
    grid = ScaleGrid(rows, 2 * length, 1, 16)
    check_grid(folder, scale, grid, (FP8,))
    check_grid(folder, whole, ScaleGrid(rows, 2 * length, rows, 2 * length), (torch.float32,))
    return MicrofloatLayer(
        path, rows, 2 * length, "float4 g16", (weight, scale, whole, *_companions(folder, path)),
        {"weight_scale_2": ("scale", whole)}, codes=weight, scale=scale, grid=grid, whole=whole,
    )  # fmt: skip


def _fp8(folder: Folder, path: str) -> StoredMatrix:
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
