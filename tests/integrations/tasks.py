"""A tiny checkpoint, and rows of tokens to train it on."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoquant
from tests.tiny import write_checkpoint

TOKENS = torch.randint(3, 300, (13, 8), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": row, "labels": row} for row in TOKENS]
HELD_OUT = ROWS[:4]


def tiny(folder: Path) -> Any:
    """Return a model of the tiny checkpoint, in eval mode."""
    path = folder / "model.gguf"
    if not path.exists():
        write_checkpoint(path)
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    return model


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every floating-point value that zoquant sees in a model."""
    return {view.name: view.read() for view in zoquant.attach(model, coupled=False)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two models hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
