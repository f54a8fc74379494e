"""Peak memory of each way of using a checkpoint, each in a process of its own."""

import multiprocessing
from pathlib import Path
from typing import Any, Literal

import torch

from zoquant.attach import Views, attach
from zoquant.bench.sample import sample_ids, sample_loss
from zoquant.load import load
from zoquant.memory import peak_rss_bytes, rss_bytes
from zoquant.optim import ZOSGD

Way = Literal["load", "evaluate", "train"]
_WAYS: tuple[Way, ...] = ("load", "evaluate", "train")


def peaks(path: Path, batch: int, length: int) -> dict[str, Any]:
    """Return peak memory of loading, evaluating and training; on a GPU also what its allocator held."""
    found = {way: _in_child(way, path, batch, length) for way in _WAYS}
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    result: dict[str, Any] = {
        "file_bytes": size,
        "load_peak_over_imports_bytes": found["load"]["peak"] - found["load"]["before"],
        "evaluate_peak_bytes": found["evaluate"]["peak"],
        "train_peak_bytes": found["train"]["peak"],
        "train_over_evaluate": found["train"]["peak"] / found["evaluate"]["peak"],
    }
    if found["evaluate"]["gpu"]:
        result["gpu_evaluate_peak_bytes"] = found["evaluate"]["gpu"]
        result["gpu_train_peak_bytes"] = found["train"]["gpu"]
        result["gpu_train_over_evaluate"] = found["train"]["gpu"] / found["evaluate"]["gpu"]
    return result


def _in_child(way: Way, path: Path, batch: int, length: int) -> dict[str, int]:
    """Run one way in a process of its own and return its memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(way, path, batch, length, torch.get_num_threads(), sender))
    child.start()
    sender.close()
    found: dict[str, int] = receiver.recv()
    child.join()
    return found


def _child(way: Way, path: Path, batch: int, length: int, threads: int, sender: Any) -> None:
    import transformers  # noqa: F401  (what every load imports is not the load's memory)

    torch.set_num_threads(threads)
    before = rss_bytes()
    model, _ = load(path)
    ids = sample_ids(model, batch, length)
    views: Views | None = None
    if way == "train":
        views = attach(model)
        optimizer = ZOSGD(views, lr=0.0)
        for _ in range(5):
            optimizer.step(lambda: sample_loss(model, ids))
    elif way == "evaluate":
        for _ in range(10):
            sample_loss(model, ids)
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    sender.send({"before": before, "peak": peak_rss_bytes(), "gpu": gpu})
