"""Logits where they are needed are the model's own, or the model is refused."""

from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from zoquant.errors import UnsupportedLayoutError
from zoquant.tasks.scoring import hidden_states, logits_at

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "lru_width": 32,
        "head_dim": 8,
        "logits_soft_cap": 0.5,
    },
}


def tiny(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind]})
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_those_of_the_model(kind: str) -> None:
    model = tiny(kind)
    ids = torch.arange(10)[None] + 5
    states = hidden_states(model, ids)
    expected = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits_at(model, states), expected)
    some = torch.tensor([3, 9])
    torch.testing.assert_close(logits_at(model, states, some), expected[..., some])


@pytest.mark.parametrize("factor", [2, 1.03])
@torch.no_grad()
def test_a_model_whose_logits_are_made_otherwise_is_refused(factor: float) -> None:
    model = tiny("llama")
    forward = model.forward
    model.forward = lambda **given: type(found := forward(**given))(logits=factor * found.logits)
    with pytest.raises(UnsupportedLayoutError, match="LlamaForCausalLM: its logits are not those of its head"):
        hidden_states(model, torch.tensor([[5, 6]]))


@torch.no_grad()
def test_a_head_of_another_library_is_asked_for_all_of_its_logits() -> None:
    model = tiny("llama")
    states = hidden_states(model, torch.arange(4)[None])
    some = torch.tensor([3, 9])
    expected = logits_at(model, states, some)
    head = model.lm_head
    model.lm_head = nn.Sequential(cast(nn.Module, head))
    assert torch.equal(logits_at(model, states, some), logits_at(model, states)[..., some])
    torch.testing.assert_close(logits_at(model, states, some), expected)


class Adapted(nn.Module):
    """As a layer of peft: it shows the weight of the layer that it is put around, and adds to its output."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.low = base, nn.Linear(base.in_features, base.out_features)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base(x) + self.low(x)
        return found


@pytest.mark.parametrize("patched", [False, True])
@torch.no_grad()
def test_what_an_adapter_adds_to_the_head_is_among_the_logits(patched: bool) -> None:
    """Also where a library has put another function in the place of the head's forward."""
    model = tiny("llama")
    adapted = Adapted(cast(nn.Linear, model.lm_head))
    if patched:
        cast(Any, model.lm_head).forward = lambda x: nn.functional.linear(x, adapted.weight) + adapted.low(x)
    else:
        model.lm_head = adapted
    states, some = hidden_states(model, torch.arange(4)[None]), torch.tensor([3, 9])
    torch.testing.assert_close(logits_at(model, states, some), model(input_ids=torch.arange(4)[None]).logits[..., some])


@torch.no_grad()
def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(UnsupportedLayoutError, match="T5ForConditionalGeneration: it cannot be asked for the logits"):
        hidden_states(T5ForConditionalGeneration(config).eval(), torch.tensor([[5, 6]]))


@torch.no_grad()
def test_logits_that_are_no_numbers_are_left_to_the_loss() -> None:
    model = tiny("llama")
    cast(Any, model.lm_head).weight.fill_(float("nan"))
    assert not hidden_states(model, torch.tensor([[5, 6]])).isnan().any()
