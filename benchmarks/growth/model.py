"""A llama of random Q4_1 blocks, of any size: it costs what a real one costs."""

import torch
import transformers
from torch import nn

from zoquant.backends.gguf.blocks import CODECS
from zoquant.checkpoint.loading import default_compute_dtype
from zoquant.native import QuantEmbedding, QuantLinear, QuantWeight
from zoquant.native.meta import ModuleSlots, WithoutWeights, forget_weights

_CODEC = CODECS["Q4_1"]
_PERIOD = (1 << 16) - 15
"""Random numbers are drawn once and repeated: billions of them would take longer than the measurement."""


def random_model(width: int, layers: int, vocabulary: int) -> nn.Module:
    """Return a model whose every matrix is packed; products are in the dtype that `zoquant.load` takes on a CPU."""
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=-(-width * 8 // 3 // 64) * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, vocab_size=vocabulary,
    )  # fmt: skip
    with WithoutWeights():
        model: nn.Module = transformers.LlamaForCausalLM(config)
    forget_weights(model)
    dtype = default_compute_dtype(torch.device("cpu"))
    places = ModuleSlots(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            packed = random_blocks(module.out_features, module.in_features)
            places.replace(path, QuantLinear(packed, compute_dtype=dtype))
        elif isinstance(module, nn.Embedding):
            places.replace(path, QuantEmbedding(random_blocks(module.num_embeddings, module.embedding_dim)))
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.ones(value.shape), requires_grad=False)
    return model.eval().requires_grad_(False)


def random_blocks(rows: int, columns: int) -> QuantWeight:
    """Return a matrix of about the size that training gives: mean 0, standard deviation 0.02."""
    groups = columns // _CODEC.block
    words = torch.randint(0, 256, (_PERIOD,), dtype=torch.uint8)
    scale = torch.rand(_PERIOD) * 0.008
    codes = _repeated(words, rows * groups * _CODEC.code_bytes).view(rows, groups, _CODEC.code_bytes)
    d = _repeated(scale.half(), rows * groups).view(rows, groups)
    m = _repeated((scale * -7.5).half(), rows * groups).view(rows, groups)
    return QuantWeight(_CODEC, codes, [d, m])


def _repeated(numbers: torch.Tensor, count: int) -> torch.Tensor:
    out = torch.empty(count, dtype=numbers.dtype)
    for start in range(0, count, len(numbers)):
        out[start : start + len(numbers)] = numbers[: count - start]
    return out
