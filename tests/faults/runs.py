"""Small runs on a toy model: a run that takes a second, and a task whose forward can be made to fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.toy import toy_model
from zoquant.training import Job, RunFolder, Settings

SETTINGS = Settings(steps=6, batch_size=8, lr=1e-3, eps=1e-2)


@dataclass(frozen=True)
class Rows:
    """A batch of rows of numbers."""

    values: Tensor

    @property
    def weight(self) -> int:
        return len(self.values)

    def halves(self) -> tuple["Rows", "Rows"]:
        middle = len(self.values) // 2
        return Rows(self.values[:middle]), Rows(self.values[middle:])


@dataclass
class Numbers:
    """A task on random numbers: the model's outputs shall be small.

    Attributes:
        check: called with the rows of each forward; it may raise.
        seen: the number of rows of each forward.
    """

    check: Callable[[int], None] = lambda rows: None
    seen: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return 64

    def batch_of_step(self, seed: int, step: int, size: int) -> Rows:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        return Rows(torch.randn(size, 8, generator=generator))

    def loss(self, model: nn.Module, batch: Rows) -> Tensor:
        self.seen.append(len(batch.values))
        self.check(len(batch.values))
        output: Tensor = model(batch.values)
        return (output - 1).square().mean()


def job(folder: Path, task: Any = None, settings: Settings = SETTINGS, **changes: Any) -> Job:
    """Return a job on a new toy model."""
    task = Numbers() if task is None else task
    return Job(toy_model(), task, None, settings, RunFolder(folder), {}, **changes)


def files(folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of delta and trajectory."""
    return (folder / "delta.safetensors").read_bytes(), (folder / "trajectory.safetensors").read_bytes()
