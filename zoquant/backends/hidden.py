"""Kernels of the GPTQ and AWQ libraries that hide their scales: each is refused with the name of one that does not.

They arrange the scales anew for a GPU, or hand them to C++, when the model is loaded; what is written to a layer's
`scales` afterwards is not read, or is no longer in the order of the file.

Source: gptqmodel 7.7.0, nn_modules/qlinear; auto-gptq 0.7.1, nn_modules/qlinear; autoawq 0.2.9, awq/modules/linear.
"""

from zoquant.backends.refused_layers import RefusedLayersBackend
from zoquant.registry import class_name

_GPTQ = "GPTQModel.load(..., backend=BACKEND.GPTQ_TORCH), or GPTQConfig(bits=..., backend='gptq_torch') in transformers"
_AWQ = "GPTQModel.load(..., backend=BACKEND.AWQ_TORCH), or AwqConfig(backend='torch_awq') in transformers"
_AUTO_GPTQ = "disable_exllama=True, disable_exllamav2=True, use_marlin=False, use_qigen=False"
_AUTO_AWQ = "the version 'gemm' and none of use_exllama, use_exllama_v2, use_ipex"
_QLINEAR = "gptqmodel.nn_modules.qlinear"

INSTEAD: dict[str, str] = {
    f"{_QLINEAR}.exllamav2.ExllamaV2Linear": _GPTQ,
    f"{_QLINEAR}.marlin.MarlinLinear": _GPTQ,
    f"{_QLINEAR}.machete.MacheteLinear": _GPTQ,
    f"{_QLINEAR}.bitblas.BitblasLinear": _GPTQ,
    f"{_QLINEAR}.swordfish.SwordfishLinear": _GPTQ,
    f"{_QLINEAR}.torch_int8.TorchInt8Linear": _GPTQ,
    f"{_QLINEAR}.exllamav2_awq.AwqExllamaV2Linear": _AWQ,
    f"{_QLINEAR}.marlin_awq.AwqMarlinLinear": _AWQ,
    f"{_QLINEAR}.machete_awq.AwqMacheteLinear": _AWQ,
    f"{_QLINEAR}.bitblas_awq.AWQBitBlasKernel": _AWQ,
    f"{_QLINEAR}.swordfish.AwqSwordfishLinear": _AWQ,
    f"{_QLINEAR}.torch_int8_awq.TorchInt8AwqLinear": _AWQ,
    "auto_gptq.nn_modules.qlinear.qlinear_exllama.QuantLinear": _AUTO_GPTQ,
    "auto_gptq.nn_modules.qlinear.qlinear_exllamav2.QuantLinear": _AUTO_GPTQ,
    "auto_gptq.nn_modules.qlinear.qlinear_marlin.QuantLinear": _AUTO_GPTQ,
    "auto_gptq.nn_modules.qlinear.qlinear_qigen.QuantLinear": _AUTO_GPTQ,
    "awq.modules.linear.exllama.WQLinear_Exllama": _AUTO_AWQ,
    "awq.modules.linear.exllamav2.WQLinear_ExllamaV2": _AUTO_AWQ,
    "awq.modules.linear.marlin.WQLinear_Marlin": _AUTO_AWQ,
    "awq.modules.linear.gemm_ipex.WQLinear_IPEX": _AUTO_AWQ,
}
"""The dotted name of each such class -> how to load the model instead."""


class HiddenScalesBackend(RefusedLayersBackend):
    """Refused: they rearrange their scales at loading, so a write is not read. `attach` names a kernel that reads."""

    name = "hidden-scales"

    def reason(self, cls: type) -> str:
        """Return which kernel to load instead."""
        return (
            f"the kernel {cls.__module__.rpartition('.')[2]}.{cls.__name__} keeps its scales in an order of its own, "
            f"expected one that reads them as the file has them. Load the model with {INSTEAD[class_name(cls)]}, or "
            "with zoquant.load(..., runtime='native')."
        )
