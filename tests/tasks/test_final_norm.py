"""The norm in front of the head is found by what it gives, whatever a model calls it."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from zoquant.errors import UnsupportedLayoutError
from zoquant.tasks.final_norm import final_norm, left_out
from zoquant.tasks.scoring import hidden_states

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("model.norm", {"intermediate_size": 64, "num_key_value_heads": 2}),
    "gemma2": ("model.norm", {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}),
    "phi": ("model.final_layernorm", {"intermediate_size": 64}),
    "gpt_neox": ("gpt_neox.final_layer_norm", {"intermediate_size": 64}),
    "gpt2": ("transformer.ln_f", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **ends, **KINDS[kind][1])).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_goes_in_and_comes_out(kind: str) -> None:
    model = tiny(kind)
    path = final_norm(model)
    assert path == KINDS[kind][0]
    norm, ids = model.get_submodule(path), torch.arange(10)[None] + 5
    expected = hidden_states(model, ids)
    with left_out(norm):
        before = hidden_states(model, ids)
    assert not torch.equal(before, expected)
    assert torch.equal(norm(before), expected)
    assert torch.equal(hidden_states(model, ids), expected)


def test_a_model_without_is_refused() -> None:
    model = tiny("llama")
    model.model.norm = nn.Identity()
    with pytest.raises(UnsupportedLayoutError, match="LlamaForCausalLM: no norm gives the last hidden state"):
        final_norm(model)
    assert not any(module._forward_hooks for module in model.modules())
