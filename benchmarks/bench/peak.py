"""Peak memory of each way of using a checkpoint, each in a process of its own."""

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench.peers import PEERS, why_not
from zoquant.checkpoint.loading import load
from zoquant.cli.bench.measure import default_step, default_views, sample_ids, sample_loss
from zoquant.errors import ZoquantError
from zoquant.optim.optimizer import ZOSGD
from zoquant.training.memory.resident import peak_rss_bytes, rss_bytes
from zoquant.views.attach import attach

_SIGNS = 2  # both of them share the forward of the default
_FORWARDS, _STEPS, _STEPS_OF_A_PEER = 10, 5, 3


def peaks(path: Path, batch: int, length: int) -> dict[str, Any]:
    """Return peak memory of loading, evaluating and training; on a GPU also what its allocator held.

    `train` moves all views in two forwards a step; `default` is what `zoquant train` does with no number given, if the
    model's views have rows and columns, and is compared with evaluating as many rows as its one forward has.
    """
    found = {way: _in_child(way, path, batch, length) for way in ("load", "evaluate", "train", "default")}
    size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    result: dict[str, Any] = {
        "file_bytes": size,
        "load_peak_over_imports_bytes": found["load"]["peak"] - found["load"]["before"],
        "evaluate_peak_bytes": found["evaluate"]["peak"],
        "train_peak_bytes": found["train"]["peak"],
        "train_over_evaluate": found["train"]["peak"] / found["evaluate"]["peak"],
    }
    if "skipped" not in found["default"]:
        result["default_peak_bytes"] = found["default"]["peak"]
        same = _in_child("evaluate", path, _SIGNS * batch, length)
        result["default_over_evaluate"] = found["default"]["peak"] / same["peak"]
    if found["evaluate"]["gpu"]:
        result["gpu_evaluate_peak_bytes"] = found["evaluate"]["gpu"]
        result["gpu_train_peak_bytes"] = found["train"]["gpu"]
        result["gpu_train_over_evaluate"] = found["train"]["gpu"] / found["evaluate"]["gpu"]
    return result


def peaks_of_peers(path: Path, batch: int, length: int) -> dict[str, dict[str, Any]]:
    """Return peak memory of each peer in training, by its name, or `skipped` with the reason."""
    return {peer.name: _peak_of_peer(peer.name, path, batch, length) for peer in PEERS}


def _peak_of_peer(name: str, path: Path, batch: int, length: int) -> dict[str, Any]:
    try:
        found = _in_child(name, path, batch, length)
    except ChildProcessError as error:
        return {"skipped": str(error)}
    if "skipped" in found:
        return found
    return {"train_peak_bytes": found["peak"]} | ({"gpu_train_peak_bytes": found["gpu"]} if found["gpu"] else {})


def _in_child(way: str, path: Path, batch: int, length: int) -> dict[str, Any]:
    """Run one way in a process of its own and return its memory.

    Raises:
        ChildProcessError: the process ended early, as when the system has no memory left for it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(way, path, batch, length, torch.get_num_threads(), sender))
    child.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        child.join()
        raise ChildProcessError(f"{way}: its process ended with status {child.exitcode}") from None
    child.join()
    return found


def _child(way: str, path: Path, batch: int, length: int, threads: int, sender: Any) -> None:
    import transformers  # noqa: F401  (what every load imports is not the load's memory)

    torch.set_num_threads(threads)
    before = rss_bytes()
    model, _ = load(path, runtime="native")
    reason = _use(way, model, sample_ids(model, batch, length))
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    found = {"before": before, "peak": peak_rss_bytes(), "gpu": gpu}
    sender.send(found if reason is None else {"skipped": reason})


def _use(way: str, model: nn.Module, ids: Tensor) -> str | None:
    """Use a model in one way; return why a peer cannot."""
    if way == "train":
        optimizer = ZOSGD(attach(model), lr=0.0)
        for _ in range(_STEPS):
            optimizer.step(lambda: sample_loss(model, ids))
    elif way == "default":
        try:
            optimizer = ZOSGD(default_views(model), subspace="rows-columns", probes=len(ids), lr=0.0)
            step = default_step(model, ids, optimizer)
        except ZoquantError as error:
            return str(error)
        for _ in range(_STEPS):
            step()
    elif way == "evaluate":
        for _ in range(_FORWARDS):
            sample_loss(model, ids)
    elif way != "load":
        peer = next(each for each in PEERS if each.name == way)
        if (reason := why_not(peer, model)) is not None:
            return reason
        trained = peer.prepare(model)
        for number in range(_STEPS_OF_A_PEER):
            trained.step(trained.model, ids, number)
    return None
