"""Folders of NVIDIA's Model Optimizer, as it exports them for vLLM and TensorRT-LLM.

    NVFP4:  W = table[code] * weight_scale * weight_scale_2: one float8 for 16 columns, one float32 for the matrix
    FP8:    W = weight * weight_scale: one scale for the matrix, a row, or a block of 128 x 128 weights

Source: compressed-tensors 0.20.0, entrypoints/convert/converters/modelopt_nvfp4.py; vLLM 0.13,
layers/quantization/modelopt.py; Model Optimizer, docs/source/deployment/3_unified_hf.rst.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from zoquant.backends.float_table import E2M1
from zoquant.checkpoint.folder import (
    MATRIX,
    ROW,
    AffineLayout,
    Folder,
    FolderFormat,
    Layout,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    TableLayout,
    layouts_that_fit,
    refuse_experts,
)
from zoquant.errors import UnsupportedLayoutError

FP8 = torch.float8_e4m3fn
_BESIDE = ("input_scale", "k_scale", "v_scale")
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
        _refuse_algorithms(folder)
        refuse_experts(folder, (torch.uint8,))
        return {
            path: layouts_that_fit(folder, path, layouts)[0].matrix(folder, path)
            for dtype, layouts in _LAYOUTS.items()
            for path in folder.paths("weight", dtype)
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


def _nvfp4() -> TableLayout:
    scales = (
        StoredNumbers("weight_scale", (1, 16), (FP8,), ragged=True),
        StoredNumbers("weight_scale_2", MATRIX, (torch.float32,)),
    )
    codes = StoredCodes("weight", (torch.uint8,), bits=4)
    return TableLayout(type="float4 g16", codes=codes, table=E2M1, scales=scales, beside=_BESIDE)


def _fp8(where: str, block: tuple[int, int]) -> AffineLayout:
    scale, codes = StoredNumbers("weight_scale", block, ragged=True), StoredCodes("weight", (FP8,))
    return AffineLayout(type=f"float8 {where}", codes=codes, scale=scale, beside=_BESIDE)


_LAYOUTS: Mapping[torch.dtype, Sequence[Layout]] = {
    torch.uint8: [_nvfp4()],
    FP8: [_fp8("tensor", MATRIX), _fp8("row", ROW), _fp8("128x128", (128, 128))],
}
"""The dtype of a weight -> the layouts that it may have."""
