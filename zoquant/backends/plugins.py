"""The table of zoquant's own plugins: which class of a live model, and which format of files, is served by what.

`zoquant/__init__.py` hands it to the registry. All of it is text, so that nothing is imported before it is needed.
A class whose values cannot be moved is claimed as well, so that `attach` says why and what to do instead.

Source of the refusals: gptqmodel 7.7.0 and auto-gptq 0.7.1, nn_modules/qlinear; autoawq 0.2.9, awq/modules/linear;
transformers 5.23.0, integrations; compressed-tensors 0.20.0, linear/compressed_linear.py; fp_quant 0.3.2,
module/linear.py; flute 0.4.2, integrations/higgs.py; spqr_quant 0.2.0, inference.py; sinq 0.2.0, sinqlinear_hf.py;
amd-quark 0.13, qparamslinear.py; EETQ, modules/qlinear.py; exllamav3, integration/transformers.py.

Long: it is a table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """Stands in the place of a plugin where there can be none.

    Attributes:
        why: the reason and what to do instead; `{name}` is the class, `{file}` the last part of its module's name.
    """

    why: str


def _refused(why: str, instead: str) -> Refused:
    """What a write to the layer does was not checked on its hardware, or it has nothing to write to."""
    return Refused(f"a {{name}} {why}. {instead}.")


def _reordered(instead: str) -> Refused:
    """The kernel arranges its scales anew, or hands them to C++, at loading: what is written later is not read."""
    return Refused(
        "the kernel {file}.{name} keeps its scales in an order of its own, expected one that reads them as the file "
        f"has them. Load the model with {instead}, or with zoquant.load(..., runtime='native')."
    )


_NATIVE = "Load the checkpoint with zoquant.load(..., runtime='native')"
_OTHER = "Quantize the model in a format that `zoquant backends` lists"
_DECOMPRESSED = "turns its weight into a plain matrix at its first forward, and its scales are dead then"
_FP8 = "multiplies float8 on a GPU alone"
_EETQ = "multiplies int8 on a GPU alone"
_GGML = "keeps its blocks as they are for a kernel of the hub, and a write to them was not checked against it"
_POWERS = "has scales that are powers of two, nothing to train"
_BLACKWELL = "keeps its scales in the order of a Blackwell GPU, in float8"
_FLUTE = "keeps its codes in an order that FLUTE tunes for one GPU, and turns its inputs by a Hadamard matrix there"
_NARROW = "runs on a GPU alone, with scales in float8 or powers of two"
_TURNED = "turns its input before it multiplies, so that it does not multiply with one matrix"
_BITS_OF_WORDS = "keeps its numbers in 8 bits of every word, at no byte of their own, and multiplies on a GPU alone"
_GPTQ = "GPTQModel.load(..., backend=BACKEND.GPTQ_TORCH), or GPTQConfig(bits=..., backend='gptq_torch') in transformers"
_AWQ = "GPTQModel.load(..., backend=BACKEND.AWQ_TORCH), or AwqConfig(backend='torch_awq') in transformers"
_AUTO_GPTQ = "disable_exllama=True, disable_exllamav2=True, use_marlin=False, use_qigen=False"
_AUTO_AWQ = "the version 'gemm' and none of use_exllama, use_exllama_v2, use_ipex"

FORMATS: dict[str, str] = {
    "aqlm": "zoquant.backends.aqlm.format:AQLMFormat",
    "auto-round": "zoquant.backends.auto_round.format:AutoRoundFormat",
    "awq": "zoquant.backends.awq.format:AWQFormat",
    "bitnet": "zoquant.backends.bitnet.format:BitNetFormat",
    "bitsandbytes": "zoquant.backends.bitsandbytes.format:BitsAndBytesFormat",
    "compressed-tensors": "zoquant.backends.compressed_tensors.format:CompressedTensorsFormat",
    "dense": "zoquant.backends.dense.format:DenseFormat",
    "eetq": "zoquant.backends.eetq.format:EETQFormat",
    "exl3": "zoquant.backends.exl3.format:EXL3Format",
    "fbgemm-fp8": "zoquant.backends.fp8.format:FbgemmFP8Format",
    "fp8": "zoquant.backends.fp8.format:FineGrainedFP8Format",
    "gguf": "zoquant.backends.gguf.format:GGUFFormat",
    "gptq": "zoquant.backends.gptq.format:GPTQFormat",
    "hqq": "zoquant.backends.hqq.format:HQQFormat",
    "metal": "zoquant.backends.metal.format:MetalFormat",
    "modelopt": "zoquant.backends.modelopt.format:ModelOptFormat",
    "mxfp4": "zoquant.backends.mxfp4.format:MXFP4Format",
    "peft": "zoquant.backends.peft.format:PeftFormat",
    "quanto": "zoquant.backends.quanto.format:QuantoFormat",
    "quark": "zoquant.backends.quark.format:QuarkFormat",
    "sinq": "zoquant.backends.sinq.format:SINQFormat",
    "torchao": "zoquant.backends.torchao.format:TorchAOFormat",
    "vptq": "zoquant.backends.vptq.format:VPTQFormat",
}
"""The name of each format -> its plugin, `module:attribute`."""

BACKENDS: dict[str, str | Refused] = {
    # zoquant and torch
    "zoquant.native.layers.QuantLinear": "zoquant.backends.native:NativeBackend",
    "zoquant.native.layers.QuantEmbedding": "zoquant.backends.native:NativeBackend",
    "torch.nn.Module": "zoquant.backends.dense.live:DenseBackend",
    # GPTQModel
    "gptqmodel.nn_modules.qlinear.torch.TorchLinear": "zoquant.backends.gptq.live:TorchBackend",
    "gptqmodel.nn_modules.qlinear.tritonv2.TritonV2Linear": "zoquant.backends.gptq.live:TorchBackend",
    "gptqmodel.nn_modules.qlinear.torch.TorchQuantEmbeddings": "zoquant.backends.gptq.live:EmbeddingBackend",
    "gptqmodel.nn_modules.qlinear.torch_aten_kernel.TorchAtenLinear": "zoquant.backends.gptq.live:Int4PackBackend",
    "gptqmodel.nn_modules.qlinear.torch_fused.TorchFusedLinear": "zoquant.backends.gptq.live:Int4PackBackend",
    "gptqmodel.nn_modules.qlinear.torch_cpu_avx512.TorchCpuAvx512Linear": "zoquant.backends.gptq.live:AVX512Backend",
    "gptqmodel.nn_modules.qlinear.torch_awq.AwqTorchLinear": "zoquant.backends.awq.live:GEMMBackend",
    "gptqmodel.nn_modules.qlinear.gemm_awq.AwqGEMMLinear": "zoquant.backends.awq.live:GEMMBackend",
    "gptqmodel.nn_modules.qlinear.gemm_awq_triton.AwqGEMMTritonLinear": "zoquant.backends.awq.live:GEMMBackend",
    "gptqmodel.nn_modules.qlinear.gemv_awq.AwqGEMVLinear": "zoquant.backends.awq.live:GEMVBackend",
    "gptqmodel.nn_modules.qlinear.gemv_fast_awq.AwqGEMVFastLinear": "zoquant.backends.awq.live:FastBackend",
    "gptqmodel.nn_modules.qlinear.gemv_fast_awq.LLMAwqLinear": "zoquant.backends.awq.live:FastBackend",
    "gptqmodel.nn_modules.qlinear.torch_aten_kernel_awq.TorchAtenAwqLinear": "zoquant.backends.awq.live:Int4PackBackend",  # noqa: E501
    "gptqmodel.nn_modules.qlinear.torch_fused_awq.TorchFusedAwqLinear": "zoquant.backends.awq.live:Int4PackBackend",
    "gptqmodel.nn_modules.qlinear.torch_cpu_avx512_awq.TorchCpuAvx512AwqLinear": "zoquant.backends.awq.live:AVX512Backend",  # noqa: E501
    "gptqmodel.nn_modules.qlinear.exllamav2.ExllamaV2Linear": _reordered(_GPTQ),
    "gptqmodel.nn_modules.qlinear.marlin.MarlinLinear": _reordered(_GPTQ),
    "gptqmodel.nn_modules.qlinear.machete.MacheteLinear": _reordered(_GPTQ),
    "gptqmodel.nn_modules.qlinear.bitblas.BitblasLinear": _reordered(_GPTQ),
    "gptqmodel.nn_modules.qlinear.swordfish.SwordfishLinear": _reordered(_GPTQ),
    "gptqmodel.nn_modules.qlinear.torch_int8.TorchInt8Linear": _reordered(_GPTQ),
    "gptqmodel.nn_modules.qlinear.exllamav2_awq.AwqExllamaV2Linear": _reordered(_AWQ),
    "gptqmodel.nn_modules.qlinear.marlin_awq.AwqMarlinLinear": _reordered(_AWQ),
    "gptqmodel.nn_modules.qlinear.machete_awq.AwqMacheteLinear": _reordered(_AWQ),
    "gptqmodel.nn_modules.qlinear.bitblas_awq.AWQBitBlasKernel": _reordered(_AWQ),
    "gptqmodel.nn_modules.qlinear.swordfish.AwqSwordfishLinear": _reordered(_AWQ),
    "gptqmodel.nn_modules.qlinear.torch_int8_awq.TorchInt8AwqLinear": _reordered(_AWQ),
    # AutoGPTQ
    "auto_gptq.nn_modules.qlinear.qlinear_cuda.QuantLinear": "zoquant.backends.gptq.live:AutoGPTQBackend",
    "auto_gptq.nn_modules.qlinear.qlinear_cuda_old.QuantLinear": "zoquant.backends.gptq.live:AutoGPTQBackend",
    "auto_gptq.nn_modules.qlinear.qlinear_triton.QuantLinear": "zoquant.backends.gptq.live:AutoGPTQBackend",
    "auto_gptq.nn_modules.qlinear.qlinear_exllama.QuantLinear": _reordered(_AUTO_GPTQ),
    "auto_gptq.nn_modules.qlinear.qlinear_exllamav2.QuantLinear": _reordered(_AUTO_GPTQ),
    "auto_gptq.nn_modules.qlinear.qlinear_marlin.QuantLinear": _reordered(_AUTO_GPTQ),
    "auto_gptq.nn_modules.qlinear.qlinear_qigen.QuantLinear": _reordered(_AUTO_GPTQ),
    # AutoAWQ
    "awq.modules.linear.gemm.WQLinear_GEMM": "zoquant.backends.awq.live:GEMMBackend",
    "awq.modules.linear.gemv.WQLinear_GEMV": "zoquant.backends.awq.live:GEMVBackend",
    "awq.modules.linear.gemv_fast.WQLinear_GEMVFast": "zoquant.backends.awq.live:FastBackend",
    "awq.modules.linear.exllama.WQLinear_Exllama": _reordered(_AUTO_AWQ),
    "awq.modules.linear.exllamav2.WQLinear_ExllamaV2": _reordered(_AUTO_AWQ),
    "awq.modules.linear.marlin.WQLinear_Marlin": _reordered(_AUTO_AWQ),
    "awq.modules.linear.gemm_ipex.WQLinear_IPEX": _reordered(_AUTO_AWQ),
    # bitsandbytes
    "bitsandbytes.nn.modules.Linear4bit": "zoquant.backends.bitsandbytes.live:FourBitBackend",
    "bitsandbytes.nn.modules.LinearNF4": "zoquant.backends.bitsandbytes.live:FourBitBackend",
    "bitsandbytes.nn.modules.LinearFP4": "zoquant.backends.bitsandbytes.live:FourBitBackend",
    "bitsandbytes.nn.modules.Embedding4bit": "zoquant.backends.bitsandbytes.live:FourBitBackend",
    "bitsandbytes.nn.modules.EmbeddingNF4": "zoquant.backends.bitsandbytes.live:FourBitBackend",
    "bitsandbytes.nn.modules.EmbeddingFP4": "zoquant.backends.bitsandbytes.live:FourBitBackend",
    "bitsandbytes.nn.modules.Linear8bitLt": "zoquant.backends.bitsandbytes.live:EightBitBackend",
    "bitsandbytes.nn.modules.Embedding8bit": "zoquant.backends.bitsandbytes.live:EightBitBackend",
    # peft
    "peft.tuners.lora.layer.Linear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.layer.Embedding": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.bnb.Linear4bit": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.bnb.Linear8bitLt": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.gptq.GPTQLoraLinear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.awq.AwqLoraLinear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.aqlm.AqlmLoraLinear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.hqq.HqqLoraLinear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.torchao.TorchaoLoraLinear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.lora.eetq.EetqLoraLinear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.ia3.layer.Linear": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.ia3.bnb.Linear4bit": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.ia3.bnb.Linear8bitLt": "zoquant.backends.peft.live:PeftLayerBackend",
    "peft.tuners.prefix_tuning.model.PrefixEncoder": "zoquant.backends.peft.live:PeftPromptBackend",
    "peft.tuners.prompt_tuning.model.PromptEmbedding": "zoquant.backends.peft.live:PeftPromptBackend",
    "peft.utils.other.ModulesToSaveWrapper": "zoquant.backends.peft.live:PeftCopyBackend",
    # torchao
    "torchao.quantization.Int8Tensor": "zoquant.backends.torchao.live:TorchAOBackend",
    "torchao.quantization.Float8Tensor": "zoquant.backends.torchao.live:TorchAOBackend",
    "torchao.quantization.IntxUnpackedToInt8Tensor": "zoquant.backends.torchao.live:TorchAOBackend",
    # transformers
    "transformers.integrations.bitnet.BitLinear": "zoquant.backends.bitnet.live:BitNetBackend",
    "transformers.integrations.bitnet.AutoBitLinear": "zoquant.backends.bitnet.live:BitNetBackend",
    "transformers.integrations.compressed_tensors.CompressedTensorsFP8Linear": _refused(_FP8, _NATIVE),
    "transformers.integrations.finegrained_fp8.FP8Linear": _refused(_FP8, _NATIVE),
    "transformers.integrations.finegrained_fp8.FP8GroupedLinear": _refused(_FP8, _NATIVE),
    "transformers.integrations.finegrained_fp8.FP8Experts": _refused(_FP8, _NATIVE),
    "transformers.integrations.fbgemm_fp8.FbgemmFp8Linear": _refused(_FP8, _NATIVE),
    "transformers.integrations.fbgemm_fp8.FbgemmFp8Llama4TextExperts": _refused(_FP8, _OTHER),
    "transformers.integrations.mxfp4.Mxfp4GptOssExperts": _refused(_POWERS, _NATIVE),
    "transformers.integrations.nvfp4.NVFP4Linear": _refused(_BLACKWELL, _OTHER),
    "transformers.integrations.metal_quantization.MetalLinear": _refused("runs on Apple's hardware alone", _NATIVE),
    "transformers.integrations.higgs.HiggsLinear": _refused(
        _FLUTE,
        _OTHER,
    ),
    "transformers.integrations.gguf.utils.GgufLinear": _refused(_GGML, _NATIVE),
    "transformers.integrations.gguf.utils.GgufEmbedding": _refused(_GGML, _NATIVE),
    "transformers.integrations.gguf.utils.GgufExperts": _refused(_GGML, _NATIVE),
    "transformers.integrations.eetq.EetqLinear": _refused(_EETQ, _NATIVE),
    # one or two of a library
    "aqlm.inference.QuantizedLinear": "zoquant.backends.aqlm.live:AQLMBackend",
    "compressed_tensors.linear.compressed_linear.CompressedLinear": _refused(_DECOMPRESSED, _NATIVE),
    "diffusers.quantizers.gguf.utils.GGUFLinear": "zoquant.backends.gguf.live:GGUFLinearBackend",
    "eetq.modules.qlinear.W8A16Linear": _refused(_EETQ, _NATIVE),
    "eetq.modules.qlinear.EetqLinear": _refused(_EETQ, _NATIVE),
    "exllamav3.integration.transformers.Exl3HfLinear": _refused("multiplies on a GPU alone", _NATIVE),
    "fp_quant.module.linear.FPQuantLinear": _refused(_NARROW, _OTHER),
    "hqq.core.quantize.HQQLinear": "zoquant.backends.hqq.live:HQQBackend",
    "optimum.quanto.nn.qlinear.QLinear": "zoquant.backends.quanto.live:QuantoBackend",
    "quark.torch.export.nn.modules.qparamslinear.QParamsLinear": "zoquant.backends.quark.live:QuarkBackend",
    "quark.torch.export.nn.modules.qparamslinear.QParamsLinearWithRotation": _refused(_TURNED, _OTHER),
    "sinq.sinqlinear_hf.SINQLinear": "zoquant.backends.sinq.live:SINQBackend",
    "sinq.sinqlinear.SINQLinear": "zoquant.backends.sinq.live:SINQBackend",
    "sinq.sinqlinear_hf.SINQExperts": _refused("holds all experts of a layer, which zoquant does not read", _OTHER),
    "spqr_quant.inference.QuantizedLinear": _refused(_BITS_OF_WORDS, _OTHER),
    "vptq.layers.vqlinear.VQuantLinear": "zoquant.backends.vptq.live:VPTQBackend",
}
"""The dotted name of each class of a module, or of its weight -> its plugin, or why it has none."""


def targets() -> dict[str, str]:
    """Return the plugin of each class; that of a refused one says why."""
    return {
        name: "zoquant.backends.refused:RefusedBackend" if isinstance(plugin, Refused) else plugin
        for name, plugin in BACKENDS.items()
    }
