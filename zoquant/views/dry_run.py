"""A forward that only tries a model: what training has put around its layers lets it pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_trying: ContextVar[bool] = ContextVar("trying", default=False)


def trying() -> bool:
    """Whether the forward under way is a trial, so that hooks have to leave it alone."""
    return _trying.get()


@contextmanager
def trial() -> Iterator[None]:
    """Try a model within a `with`: without gradients and hooks of probes."""
    token = _trying.set(True)
    try:
        with torch.no_grad():
            yield
    finally:
        _trying.reset(token)


def ordinary_ids(model: nn.Module, count: int) -> Tensor:
    """Return ids from the middle of a vocabulary, int64 `[count]`: at its ends stand tokens that are no text."""
    language_model: Any = model
    size = int(getattr(language_model.get_input_embeddings(), "num_embeddings", 2 * count))
    device = next(chain(model.parameters(), model.buffers())).device
    return (size // 2 + torch.arange(count, device=device)) % size
