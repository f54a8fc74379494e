"""Which models in which formats, and what they shall stay below."""

from dataclasses import dataclass
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "OPT-6.7B": {
        "kind": "opt", "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32,
        "word_embed_proj_dim": 4096, "vocab_size": 50272,
    },
    "Llama-2-7B": {
        "kind": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "Llama-3.1-8B": {
        "kind": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "Llama-2-13B": {
        "kind": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000,
    },
    "Llama-2-70B": {
        "kind": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "SD3.5-Large": {
        "kind": "mmdit", "latent": 128, "layers": 38, "heads": 38, "width": 2432, "text": 4096, "pooled": 2048,
        "channels": 16, "positions": 192,
    },
}  # fmt: skip
"""Shapes of the published configs."""

TINY = {
    "opt": {"hidden_size": 128, "ffn_dim": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 128, "vocab_size": 300},
    "llama": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 2, "vocab_size": 300},
    "mmdit": {"latent": 16, "layers": 2, "heads": 2, "width": 128, "text": 64, "pooled": 64, "positions": 16},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model in one format.

    Attributes:
        model: a name of `SHAPES`.
        format: a name of `PACKED`.
        limit: peak memory at batch 1 x 64 tokens that it shall stay below, in GB of 10⁹ bytes.
        timed: whether a step is timed at batch 1 and 16.
    """

    model: str
    format: str
    limit: float
    timed: bool = True


CASES = (
    Case("OPT-6.7B", "GPTQ 4-bit g128", 4.8),
    Case("Llama-2-7B", "GPTQ 4-bit g128", 5.0),
    Case("Llama-3.1-8B", "GPTQ 4-bit g128", 6.2),
    Case("Llama-2-13B", "AQLM 2-bit 1x16", 5.8, timed=False),
    Case("Llama-2-70B", "AQLM 2-bit 1x16", 24.0, timed=False),
    Case("SD3.5-Large", "NF4 b64", 12.4, timed=False),
)
"""Limits: QZO's own figures (arXiv 2505.13430); 24 GB is one consumer card."""
