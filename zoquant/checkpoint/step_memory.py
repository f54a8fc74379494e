"""What a step takes of memory, from the headers of a checkpoint: its model is computed by shapes, without weights."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.optim.backward.layer_checkpoints import checkpointed
from zoquant.optim.backward.live_bytes import LiveBytes
from zoquant.protocol import Buildable, Format

EXAMPLES, TOKENS = 16, 64
"""The batch that is meant."""


def activations(found: Format, path: Path) -> dict[str, int] | None:
    """Return the most bytes of activations that are alive at a time in a step on `EXAMPLES` texts of `TOKENS` tokens.

    Args:
        found: the format.
        path: the checkpoint.

    Returns:
        By way: `forward`; `backward`; with layers checkpointed `backward_checkpoint`, and the same an example at a time
        `backward_checkpoint_micro_batches`. None where the model is not computed from token ids, or not from shapes.
    """
    if not isinstance(found, Buildable):
        return None
    try:
        model = found.empty(path).to("meta")
        body = getattr(model, "base_model", model)  # a task reads few of the logits
        _let_weights_move(body)
        whole, one = (torch.zeros(count, TOKENS, dtype=torch.int64, device="meta") for count in (EXAMPLES, 1))
        return {
            "forward": _peak(body, whole, torch.no_grad()),
            "backward": _peak(body, whole, nullcontext()),
            "backward_checkpoint": _peak(body, whole, checkpointed(body)),
            "backward_checkpoint_micro_batches": _peak(body, one, checkpointed(body)),
        }
    except Exception:  # whatever keeps a kind of model from that: an operation that looks at values, an image for ids
        return None


def _peak(body: Any, ids: Tensor, mode: AbstractContextManager[object]) -> int:
    mask = torch.ones(len(ids), 1, TOKENS, TOKENS, dtype=torch.bool, device="meta")  # a whole one is not looked into
    with mode, LiveBytes() as live:
        states = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        if states.requires_grad:
            states.sum().backward()
        del states
    peak: int = live.peak
    return peak


def _let_weights_move(model: nn.Module) -> None:
    """Let a backward keep the inputs of linear layers, as that of native ones does; what it finds of weights goes."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.requires_grad_()
            weight.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
