"""The batch that is measured on, and a loss that costs what classification costs."""

from typing import Any

import torch
from torch import Tensor, nn

from zoquant.tasks.scoring import hidden_states, logits_at
from zoquant.views.attach import attach
from zoquant.views.model_views import Views


def sample_ids(model: nn.Module, batch: int, length: int) -> Tensor:
    """Return random token ids, int64 `[batch, length]`, the same on every call."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    return ids.to(next(model.buffers()).device)


def row_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the loss of each row, float32 `[batch]`: the logits of two tokens at the last position."""
    logits = logits_at(model, hidden_states(model, ids)[:, -1], ids[0, :2])
    return nn.functional.cross_entropy(logits, torch.zeros_like(ids[:, 0]), reduction="none")


def sample_loss(model: nn.Module, ids: Tensor) -> float:
    """Return the mean of `row_losses`, without gradients."""
    with torch.no_grad():
        return float(row_losses(model, ids).mean())


def ends(model: nn.Module) -> list[str]:
    """Return patterns of the lookup table and the head: one multiplies no input, the other may share its values."""
    whole: Any = model
    ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
    return [f"{path}.*" for path, module in model.named_modules() if any(module is end for end in ends)]


def every_layer(model: nn.Module, share: int) -> Views:
    """Attach to every so-many-th layer, and to all if that is 1.

    Whole layers, since the views of one share their noise; the lookup table and the head, which are many times as large
    as a layer, only where all are taken.
    """
    if share == 1:
        return attach(model)
    layers = dict.fromkeys(key.rpartition(".")[0] for key in attach(model, exclude=ends(model)).keys)
    return attach(model, include=[f"{path}.*" for path in list(layers)[::share]])
