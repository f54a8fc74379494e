"""Speed and memory of training against inference of the same model, measured side by side in one run."""

import copy
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoquant import kernels
from zoquant.attach import Views, attach
from zoquant.load import default_compute_dtype, load
from zoquant.memory import peak_rss_bytes, rss_bytes
from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.optim import ZOSGD
from zoquant.scoring import hidden_states, logits_at

_GROWTH_STEPS = 1000
_WARM_UP = 3


def bench(path: Path, *, batch: int = 16, length: int = 32, rounds: int = 15) -> dict[str, Any]:
    """Measure a checkpoint on this machine's default device.

    Args:
        path: a checkpoint.
        batch: rows of the batch.
        length: tokens a row.
        rounds: repetitions; medians are reported with the quartiles beside them.

    Returns:
        Plain data: seconds, bytes and ratios.
    """
    memory = {how: _in_child(how, path, batch, length) for how in ("load", "evaluate", "train")}
    model, _ = load(path)
    dtype = default_compute_dtype(next(model.buffers()).device)
    ids = sample_ids(model, batch, length)
    return {
        "machine": {
            "device": ids.device.type,
            "processor": _processor(ids.device),
            "threads": torch.get_num_threads(),
            "kernels": kernels.status(),
            "torch": torch.__version__,
        },
        "batch": batch,
        "length": length,
        "rounds": rounds,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "step": _step_against_forwards(model, ids, rounds),
        "growth": _growth(model),
        "forward": _native_against_dense(model, sample_ids(model, 1, 512), rounds),
        "memory": _memory(memory, Path(path).stat().st_size),
    }


def sample_ids(model: nn.Module, batch: int, length: int) -> Tensor:
    """Return random token ids, int64 `[batch, length]`, the same on every call."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    return ids.to(next(model.buffers()).device)


def sample_loss(model: nn.Module, ids: Tensor) -> float:
    """Return a loss that costs what classification costs: the logits of two tokens at the last position."""
    with torch.no_grad():
        logits = logits_at(model, hidden_states(model, ids)[:, -1], ids[0, :2])
        return float(nn.functional.cross_entropy(logits, torch.zeros_like(ids[:, 0])))


def _step_against_forwards(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Time one step and two forwards of the same batch in turn."""
    optimizer = ZOSGD(attach(model), lr=0.0)
    pair: list[float] = []
    step: list[float] = []
    for _ in range(rounds + _WARM_UP):
        pair.append(seconds(lambda: (sample_loss(model, ids), sample_loss(model, ids))))
        step.append(seconds(lambda: optimizer.step(lambda: sample_loss(model, ids))))
    ratios = [s / p for s, p in zip(step, pair, strict=True)][_WARM_UP:]
    return {
        "two_forwards_seconds": spread(pair[_WARM_UP:]),
        "step_seconds": spread(step[_WARM_UP:]),
        "overhead": spread(ratios),
        "write_seconds": spread([seconds(optimizer.views.write) for _ in range(rounds)]),
    }


def _growth(model: nn.Module) -> dict[str, Any]:
    """Return how much resident memory many steps add, with real noise and writes and a loss that costs nothing."""
    optimizer = ZOSGD(attach(model), lr=0.0)
    for _ in range(_WARM_UP):
        optimizer.step(lambda: 1.0)
    gc.collect()
    before = rss_bytes()
    for _ in range(_GROWTH_STEPS):
        optimizer.step(lambda: 1.0)
    gc.collect()
    return {"steps": _GROWTH_STEPS, "rss_growth_bytes": rss_bytes() - before}


def _native_against_dense(model: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Time a forward over packed words against the same model with dense weights, in both dtypes."""
    result: dict[str, Any] = {"tokens": ids.numel()}
    for dtype in (torch.float32, torch.bfloat16):
        native, dense = _with_compute_dtype(model, dtype), dense_copy(model, dtype)
        result[str(dtype).removeprefix("torch.")] = _in_turn(native, dense, ids, rounds)
    return result


@torch.no_grad()
def _in_turn(native: nn.Module, dense: nn.Module, ids: Tensor, rounds: int) -> dict[str, Any]:
    pairs = [
        (seconds(lambda: hidden_states(native, ids)), seconds(lambda: hidden_states(dense, ids)))
        for _ in range(rounds + _WARM_UP)
    ][_WARM_UP:]
    return {
        "native_seconds": spread([n for n, _ in pairs]),
        "dense_seconds": spread([d for _, d in pairs]),
        "native_over_dense": spread([n / d for n, d in pairs]),
    }


def dense_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the same model with plain linear layers, in `dtype` throughout."""
    shared: dict[int, Any] = {id(module.packed): module.packed for module in model.modules() if _packed(module)}
    dense = copy.deepcopy(model, shared)
    for path, module in list(dense.named_modules()):
        if isinstance(module, QuantEmbedding):
            module.dtype = dtype
        if isinstance(module, QuantLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            linear.weight = nn.Parameter(module.packed.dequantize(), requires_grad=False)
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.clone(), requires_grad=False)
            parent, _, name = path.rpartition(".")
            setattr(dense.get_submodule(parent), name, linear)
    return dense.to(dtype)


def _packed(module: nn.Module) -> bool:
    return hasattr(module, "packed")


def _with_compute_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.compute_dtype = dtype
    return model


def _memory(found: dict[str, dict[str, int]], file_bytes: int) -> dict[str, Any]:
    loaded = found["load"]
    return {
        "file_bytes": file_bytes,
        "load_peak_over_imports_bytes": loaded["peak"] - loaded["before"],
        "load_limit_bytes": int(1.3 * file_bytes) + 300 * 10**6,
        "evaluate_peak_bytes": found["evaluate"]["peak"],
        "train_peak_bytes": found["train"]["peak"],
        "train_over_evaluate": found["train"]["peak"] / found["evaluate"]["peak"],
    }


def _in_child(how: str, path: Path, batch: int, length: int) -> dict[str, int]:
    """Run one way of using the model in a process of its own and return its memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(how, path, batch, length, sender))
    child.start()
    sender.close()
    found: dict[str, int] = receiver.recv()
    child.join()
    return found


def _child(how: str, path: Path, batch: int, length: int, sender: Any) -> None:
    import transformers  # noqa: F401  (what every load imports is not the load's memory)

    before = rss_bytes()
    model, _ = load(path)
    ids = sample_ids(model, batch, length)
    views: Views | None = None
    if how == "train":
        views = attach(model)
        optimizer = ZOSGD(views, lr=0.0)
        for _ in range(5):
            optimizer.step(lambda: sample_loss(model, ids))
    elif how == "evaluate":
        for _ in range(10):
            sample_loss(model, ids)
    sender.send({"before": before, "peak": peak_rss_bytes()})


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes, the work that it left on a GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "q1": low, "q3": high}


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
