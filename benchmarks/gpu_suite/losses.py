"""Forwards that end in one number, left on the device so that they can be recorded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_suite.mmdit import MMDiT

Loss = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A function of tensors that returns the loss of each row, and its inputs."""

TEXT = 333
"""Tokens of a prompt that Stable Diffusion 3 sees."""


def row_losses(model: nn.Module, batch: int, length: int, device: torch.device) -> Loss:
    """Return the loss of each row, float32 `[rows]`, and a batch. Of language models the last position has logits.

    Args:
        model: what `build` returned.
        batch: rows.
        length: tokens of a row; an image has as many as its latent.
        device: where the batch goes.
    """
    if isinstance(model, MMDiT):
        return _denoising(model, batch, device)
    whole: Any = model
    body, head = whole.base_model, whole.get_output_embeddings()

    def losses(ids: Tensor) -> Tensor:
        states = body(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        return nn.functional.cross_entropy(head(states).float(), ids[:, 0], reduction="none").nan_to_num()

    return losses, (torch.randint(0, whole.config.vocab_size, (batch, length), device=device),)


def _denoising(model: MMDiT, batch: int, device: torch.device) -> Loss:
    dtype = model.positions.dtype
    shapes = ((model.channels, model.latent, model.latent), (TEXT, model.text), (model.pooled,), (256,))

    def losses(*given: Tensor) -> Tensor:
        squares: Tensor = model(*given).float().square()
        return squares.mean((1, 2)).nan_to_num()

    return losses, tuple(torch.randn(batch, *shape, device=device, dtype=dtype) for shape in shapes)
