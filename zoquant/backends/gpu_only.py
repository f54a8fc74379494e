"""Layers that only a GPU or Apple's hardware computes, or that give up their scales: each is refused with another way.

What a write to them does was not checked on such hardware, and `attach` serves nothing that was not.

Source: transformers 5.23.0, integrations; compressed-tensors 0.20.0, linear/compressed_linear.py; fp_quant 0.3.2,
module/linear.py; flute 0.4.2, integrations/higgs.py; spqr_quant 0.2.0, inference.py; sinq 0.2.0, sinqlinear_hf.py;
amd-quark 0.13, qparamslinear.py; EETQ, modules/qlinear.py; exllamav3, integration/transformers.py.
"""

from zoquant.backends.refused_layers import RefusedLayersBackend
from zoquant.registry import class_name

_NATIVE = "Load the checkpoint with zoquant.load(..., runtime='native')"
_OTHER = "Quantize the model in a format that `zoquant backends` lists"
_INTEGRATIONS = "transformers.integrations"
_DECOMPRESSED = "turns its weight into a plain matrix at its first forward, and its scales are dead then"
_FP8 = "multiplies float8 on a GPU alone"
_EETQ = "multiplies int8 on a GPU alone"

WHY: dict[str, tuple[str, str]] = {
    "compressed_tensors.linear.compressed_linear.CompressedLinear": (_DECOMPRESSED, _NATIVE),
    f"{_INTEGRATIONS}.compressed_tensors.CompressedTensorsFP8Linear": (_FP8, _NATIVE),
    f"{_INTEGRATIONS}.finegrained_fp8.FP8Linear": (_FP8, _NATIVE),
    f"{_INTEGRATIONS}.finegrained_fp8.FP8GroupedLinear": (_FP8, _NATIVE),
    f"{_INTEGRATIONS}.finegrained_fp8.FP8Experts": (_FP8, _NATIVE),
    f"{_INTEGRATIONS}.fbgemm_fp8.FbgemmFp8Linear": (_FP8, _NATIVE),
    f"{_INTEGRATIONS}.fbgemm_fp8.FbgemmFp8Llama4TextExperts": (_FP8, _OTHER),
    f"{_INTEGRATIONS}.mxfp4.Mxfp4GptOssExperts": ("has scales that are powers of two, nothing to train", _NATIVE),
    f"{_INTEGRATIONS}.nvfp4.NVFP4Linear": ("keeps its scales in the order of a Blackwell GPU, in float8", _OTHER),
    f"{_INTEGRATIONS}.metal_quantization.MetalLinear": ("runs on Apple's hardware alone", _NATIVE),
    f"{_INTEGRATIONS}.higgs.HiggsLinear": (
        "keeps its codes in an order that FLUTE tunes for one GPU, and turns its inputs by a Hadamard matrix there",
        _OTHER,
    ),
    "spqr_quant.inference.QuantizedLinear": (
        "keeps its numbers in 8 bits of every word, at no byte of their own, and multiplies on a GPU alone",
        _OTHER,
    ),
    "fp_quant.module.linear.FPQuantLinear": ("runs on a GPU alone, with scales in float8 or powers of two", _OTHER),
    "quark.torch.export.nn.modules.qparamslinear.QParamsLinearWithRotation": (
        "turns its input before it multiplies, so that it does not multiply with one matrix",
        _OTHER,
    ),
    f"{_INTEGRATIONS}.eetq.EetqLinear": (_EETQ, _NATIVE),
    "eetq.modules.qlinear.W8A16Linear": (_EETQ, _NATIVE),
    "eetq.modules.qlinear.EetqLinear": (_EETQ, _NATIVE),
    "exllamav3.integration.transformers.Exl3HfLinear": ("multiplies on a GPU alone", _NATIVE),
    "sinq.sinqlinear_hf.SINQExperts": ("holds all experts of a layer, which zoquant does not read", _OTHER),
}
"""The dotted name of each such class -> why it is refused, and what to do instead."""


class GPUOnlyBackend(RefusedLayersBackend):
    """Refused: a GPU or Apple's hardware alone computes them, or scales cannot be written. `attach` says what to do."""

    name = "gpu-only"

    def reason(self, cls: type) -> str:
        """Return why a class is refused, and what to do instead."""
        why, instead = WHY[class_name(cls)]
        return f"a {cls.__name__} {why}. {instead}."
