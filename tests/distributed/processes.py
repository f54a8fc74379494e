"""Functions on several ranks of this machine, each a process of one thread, that talk through gloo."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every optimizer imports it: once by the parent, not by each process that it forks
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

import zoquant
from tests.toy import ToyModel, toy_batch, toy_loss, toy_model
from zoquant.optim.closures import Closure

SECONDS = 120


def on_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what `work(rank, *arguments)` returned on each rank of a gloo process group.

    Processes are forked, so that they import nothing anew.
    """
    return spread(count, _in_group, work, count, *arguments)


def spread(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what `work(number, ..., folder)` returned in each of some processes, which share a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        start: Callable[..., Any] = start_processes
        context = start(_kept, (work, arguments, folder), nprocs=count, join=False, start_method="fork")
        if not _join(context):
            raise TimeoutError(f"processes did not end within {SECONDS} s")
        return [torch.load(Path(folder) / f"{number}.pt") for number in range(count)]


def _join(context: Any) -> bool:
    try:
        return any(context.join(timeout=1) for _ in range(SECONDS))
    finally:
        for process in context.processes:
            process.kill()


def _kept(number: int, work: Callable[..., Any], arguments: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    torch.save(work(number, *arguments, folder), Path(folder) / f"{number}.pt")


def _in_group(rank: int, work: Callable[..., Any], count: int, *arguments: Any) -> Any:
    *rest, folder = arguments
    enter_group(rank, count, folder)
    try:
        return work(rank, *rest)
    finally:
        dist.destroy_process_group()


def enter_group(rank: int, count: int, folder: str, name: str = "group") -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=count)


def toy_views() -> tuple[ToyModel, zoquant.Views]:
    model = toy_model()
    return model, zoquant.attach(model, roles=("scale", "zero"))


def closures(model: ToyModel, step: int, parts: int) -> list[Closure]:
    """Return the micro-batches of a step, of 3 examples each."""
    return [partial(_loss, model, toy_batch(count=3, seed=10 * step + part)) for part in range(parts)]


def _loss(model: ToyModel, batch: tuple[Tensor, Tensor]) -> Tensor:
    return toy_loss(model, batch)


def held(optimizer: zoquant.ZOSGD) -> dict[str, Any]:
    """Return the bytes that a rank holds: deltas, what the model stores, and the steps."""
    return {
        "delta": {key: views.delta(key).numpy().tobytes() for views in optimizer.all_views for key in views.keys},
        "stored": {view.name: view.read().numpy().tobytes() for views in optimizer.all_views for view in views},
        "steps": [(step.seeds, step.derivatives, step.rates) for step in optimizer.trajectory.steps],
    }
