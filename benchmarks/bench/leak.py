"""How much resident memory many steps add."""

import gc
from typing import Any

from torch import nn

from zoquant.optim.optimizer import ZOSGD
from zoquant.training.memory.resident import rss_bytes
from zoquant.views.attach import attach


def leak(model: nn.Module, steps: int) -> dict[str, Any]:
    """Return how much resident memory many steps add, with real noise and writes and a loss that costs nothing."""
    optimizer = ZOSGD(attach(model), lr=0.0)
    for _ in range(3):
        optimizer.step(lambda: 1.0)
    gc.collect()
    before = rss_bytes()
    for _ in range(steps):
        optimizer.step(lambda: 1.0)
    gc.collect()
    return {"steps": steps, "rss_growth_bytes": rss_bytes() - before}
