"""Logits of a causal language model, only where they are needed."""

from typing import Any

from torch import Tensor, nn

from zoquant.native import QuantLinear


def hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the last hidden states of a causal transformers model, `[batch, length, width]`.

    Padding stands at the end of a row, where a causal model's earlier positions do not see it, so no mask is needed.

    Args:
        model: a causal language model of transformers.
        ids: token ids, int64 `[batch, length]`.
    """
    body: Any = model.base_model
    states: Tensor = body(input_ids=ids, use_cache=False).last_hidden_state
    return states


def logits_at(model: nn.Module, states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Return the logits of some hidden states, float32 `[..., len(tokens)]`.

    Args:
        model: the model that the states came from.
        states: `[..., width]`.
        tokens: the tokens whose logits are wanted, int64; None for the whole vocabulary.
    """
    whole: Any = model
    head = whole.get_output_embeddings()
    logits: Tensor
    if tokens is None:
        logits = head(states)
    elif isinstance(head, QuantLinear):
        logits = head.rows(states, tokens)
    else:
        logits = nn.functional.linear(states, head.weight[tokens], None if head.bias is None else head.bias[tokens])
    logits = logits.float()
    cap = getattr(whole.config, "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap
