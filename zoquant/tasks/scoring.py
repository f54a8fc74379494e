"""Logits of a causal language model, only where they are needed."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError, one_line
from zoquant.kernels.out_of_memory import is_out_of_memory
from zoquant.native import QuantLinear
from zoquant.tasks.encoding import text_config
from zoquant.tasks.packing import pack, packable, packed_states, worth_packing
from zoquant.views.dry_run import ordinary_ids, trial
from zoquant.views.streamed_buffer import as_called

_POSITIONS = 1024
_SAME = {torch.float32: 0.01}
_SAME_ELSE = 0.1
"""Relative distance of logits that count as the same: bfloat16 gives 0.02, a scale that is left out far more, a bound
of 30 on logits of 10 gives 0.03."""

_checked: WeakSet[nn.Module] = WeakSet()


def hidden_states(model: nn.Module, ids: Tensor, lengths: Sequence[int] | None = None, repeat: int = 1) -> Tensor:
    """Return the last hidden states of a causal transformers model, `[batch, length, width]`.

    Padding stands at the end of a row, where a causal model's earlier positions do not see it, so no mask is needed.

    Args:
        model: a causal language model of transformers.
        ids: token ids, int64 `[batch, length]`.
        lengths: tokens of each row: where much of the batch is padding and the model can, rows are packed, and the
            states of padding are zero. None: the rows are computed as they are.
        repeat: how often the batch stands one below the other: no row is shared by two of its repetitions.

    Raises:
        UnsupportedLayoutError: the model's own logits are not what `logits_at` makes of its hidden states.
    """
    _check(model)
    body: Any = model.base_model
    if lengths is not None and worth_packing(lengths, ids.shape[1]) and packable(model, ids.shape[1]):
        return packed_states(body, ids, pack(lengths[: len(lengths) // repeat], ids.shape[1]).repeat(repeat))
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
    elif _is_plain(head, states.shape[-1]):
        with as_called(head):
            logits = nn.functional.linear(states, head.weight[tokens], None if head.bias is None else head.bias[tokens])
    else:  # of another library, whose weight is packed, or not all that it computes with
        logits = head(states)[..., tokens]
    config = text_config(model)
    scale = (_number(config, "logit_scale") or 1.0) / (_number(config, "logits_scaling") or 1.0)
    logits = logits.float() if scale == 1 else logits.float() * scale
    cap = _number(config, "final_logit_softcapping") or _number(config, "logits_soft_cap")
    return logits if cap is None else (logits / cap).tanh() * cap


def _is_plain(head: Any, columns: int) -> bool:
    """Whether a head is a product with its weight and no more: an adapter's has the weight of what it is put around."""
    if getattr(type(head), "forward", None) is not nn.Linear.forward or "forward" in vars(head):
        return False
    weight: Tensor = head.weight
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.shape[1:] == (columns,)


def _number(config: Any, name: str) -> float | None:
    """Return a number of a config: Cohere's and Granite's scale, Gemma's and RecurrentGemma's bound on the logits."""
    return getattr(config, name, None)


def _check(model: nn.Module) -> None:
    """Compare `logits_at` with the model's own logits, once."""
    if model in _checked:
        return
    try:
        with trial():
            said = "" if _agrees(model) else "its logits are not those of its head on the last hidden states"
    except Exception as error:  # whatever a model says that is asked for no text of its own, as an encoder and decoder
        if is_out_of_memory(error):
            raise
        said = f"it cannot be asked for the logits of a text: {one_line(error)}"
    if said:
        raise UnsupportedLayoutError(
            f"{type(model).__name__}: {said}, so a task cannot score tokens by them. Write a closure on "
            "model(...).logits instead, see zoquant.ZOSGD."
        )
    _checked.add(model)


def _agrees(model: nn.Module) -> bool:
    """Whether the logits of a few tokens are the same."""
    whole: Any = model
    ids = ordinary_ids(model, 4)[None]
    states = getattr(whole.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    own = whole(input_ids=ids, use_cache=False).logits
    bound, own = _SAME.get(own.dtype, _SAME_ELSE), own.float()
    if states is None:
        return False
    distance = float((logits_at(model, states) - own).norm() / own.norm())
    return not distance > bound  # NaN, as of numbers beyond float16, is what the loss will speak of


def token_log_probs(model: nn.Module, states: Tensor, ids: Tensor, scored: Tensor) -> Tensor:
    """Return the log-probability of some tokens of a batch, float32 `[scored tokens]`, in the order of `scored`.

    The head sees the positions before those tokens alone, some hundreds at a time.

    Args:
        model: a causal language model.
        states: its last hidden states, `[rows, length, width]`.
        ids: token ids, int64 `[rows, length]`.
        scored: which tokens count, bool `[rows, length]`; never the first of a row.
    """
    rows, places = scored.nonzero(as_tuple=True)
    picked, targets = states[rows, places - 1], ids[rows, places]
    parts = [
        logits_at(model, some).log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
        for some, wanted in zip(torch.split(picked, _POSITIONS), torch.split(targets, _POSITIONS), strict=True)
    ]
    return torch.cat(parts)
