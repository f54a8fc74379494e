"""What training costs beside plain forwards of the same model, on a batch of random tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.cli.bench.machine import machine
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.errors import ZoquantError
from zoquant.optim.default_layers import upper_middle
from zoquant.optim.optimizer import ZOSGD
from zoquant.optim.trunk import Trunk
from zoquant.tasks.scoring import hidden_states, logits_at
from zoquant.training import Source
from zoquant.training.memory.resident import peak_rss_bytes, rss_bytes
from zoquant.views.attach import attach, claimed
from zoquant.views.model_views import Views


def measure(source: Source, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """Return what a step costs beside its forwards, and the memory that training takes.

    Args:
        source: the model.
        batch: rows of the batch, one or more.
        length: tokens a row, one or more.
        rounds: repetitions, two or more; a few before them do not count.

    Returns:
        Plain data: seconds, bytes, ratios. `ways` has for each way to train what moves, the rows and tokens that its
        forwards read in a step, times of the step and of the forwards alone, their ratio round by round, and tokens a
        second; or `skipped`, the reason why the model cannot be trained that way.

    Raises:
        CheckpointError: not a checkpoint, damaged, or without a tokenizer.
        UnsupportedLayoutError: the model is no causal language model.
    """
    model, _, device = source.open()
    loaded, ids = rss_bytes(), sample_ids(model, batch, length)
    return {
        "checkpoint": source.model,
        "machine": machine(device),
        "batch_size": batch,
        "length": length,
        "rounds": rounds,
        "ways": {name: _timed(model, ids, rounds, way) for name, way in WAYS.items()},
        "rss_loaded_bytes": loaded,
        "rss_peak_bytes": peak_rss_bytes(),
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def rows_and_columns(model: nn.Module, ids: Tensor) -> tuple[Views, int, Callable[[], object]]:
    """Return the views that move where nobody says which, how many rows a step computes, and what does a step.

    Each example has a direction, whose two signs share one forward; the layers below the views run once.
    """
    views = default_views(model)
    optimizer = ZOSGD(views, subspace="rows-columns", probes=len(ids), lr=0.0)
    return views, len(ids) * optimizer.repeat, default_step(model, ids, optimizer)


def values(model: nn.Module, ids: Tensor) -> tuple[Views, int, Callable[[], object]]:
    """Return all views, how many rows a step computes, and what does a step of two forwards."""
    views = attach(model)
    optimizer = ZOSGD(views, lr=0.0)
    return views, 2 * len(ids), lambda: optimizer.step(lambda: sample_loss(model, ids))


WAYS = {"rows-columns": rows_and_columns, "values": values}
"""What a step may move, as `--subspace` names it: the first is what `zoquant train` takes where it can."""


def default_views(model: nn.Module) -> Views:
    """Return the views that move where nobody says which: those of the layers from half to four fifths of the depth."""
    return attach(model, include=upper_middle(path for path, _, _ in claimed(model)))


def default_step(model: nn.Module, ids: Tensor, optimizer: ZOSGD) -> Callable[[], object]:
    """Return what does a step on a batch in which the layers below the views run once."""
    trunk = Trunk(model, optimizer.views)
    with trunk.shared(), torch.no_grad():
        row_losses(model, ids[:1])  # shows which layers can be left out

    def step() -> None:
        with trunk.shared(optimizer.repeat):
            optimizer.step(lambda repeat: row_losses(model, ids.repeat(repeat, 1)))

    return step


def sample_ids(model: nn.Module, batch: int, length: int) -> Tensor:
    """Return random token ids, int64 `[batch, length]`, the same on every call."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.get_text_config().vocab_size, (batch, length), generator=generator)
    return ids.to(next(model.buffers()).device)


def row_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the loss of each row, float32 `[batch]`: the logits of two tokens at the last position."""
    logits = logits_at(model, hidden_states(model, ids)[:, -1], ids.new_tensor([0, 1]))
    return nn.functional.cross_entropy(logits, torch.zeros_like(ids[:, 0]), reduction="none")


def sample_loss(model: nn.Module, ids: Tensor) -> float:
    """Return the mean of `row_losses`, without gradients."""
    with torch.no_grad():
        return float(row_losses(model, ids).mean())


def _timed(model: nn.Module, ids: Tensor, rounds: int, way: Callable[..., Any]) -> dict[str, Any]:
    try:
        views, rows, step = way(model, ids)
    except ZoquantError as error:
        return {"skipped": str(error)}

    def forwards() -> None:
        for _ in range(rows // len(ids)):
            sample_loss(model, ids)

    times = in_turn({"forwards": forwards, "step": step}, rounds)
    tokens = rows * ids.shape[1]
    return {
        "views": len(views),
        "trainable": views.trainable,
        "rows": rows,
        "step_seconds": spread(times["step"]),
        "forward_seconds": spread(times["forwards"]),
        "overhead": ratio(times["step"], times["forwards"]),
        "tokens_a_second": spread([tokens / each for each in times["step"]]),
    }
