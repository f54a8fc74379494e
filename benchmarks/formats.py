"""A checkpoint of any format through the whole way: `python -m benchmarks.formats CHECKPOINT... [--steps 50]`.

Load, attach, train on the packaged sentences, save the delta, export, and load the export again: on zoquant's layers,
and on those of the format's library where it is installed. Every row goes into benchmarks/results/formats.json, which
`make docs` makes a table of docs/formats.md from. Needs nothing but the checkpoints, which carry their tokenizers.
"""

import argparse
import gc
import json
import time
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import zoquant
from docs.matrix import RUN, table
from zoquant.checkpoint.stored_files import checksums_of, files_of
from zoquant.cli.demo import SETTINGS, TEMPLATE, reviews
from zoquant.errors import ZoquantError
from zoquant.files.atomic_files import write_text
from zoquant.registry import format_of
from zoquant.tasks import Classification
from zoquant.tasks.rows import read_rows

RESULTS = Path(__file__).parent / "results" / "formats.json"
BATCH, SEEN = 16, 64
LR, EPS = 1.5e-3, 1e-2
"""For all layers at once; the demo moves the upper ten with larger steps."""
CPU = torch.device("cpu")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runtime", default="native", choices=("native", "vendor"), help="who computes the training")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are kept")
    given = parser.parse_args()
    rows = []
    for path in given.checkpoints:
        row = measure(path, given.steps, given.runtime)
        rows.append([str(row[name]) for name in RUN])
        keep(given.out, row)
        print(table(RUN, rows[-1:]), flush=True)
    print(table(RUN, rows))


def measure(path: Path, steps: int, runtime: Any) -> dict[str, Any]:
    """Take one checkpoint through the whole way and return its row, by the names of `RUN`."""
    model, tokenizer = zoquant.load(path, runtime=runtime, device=CPU)
    task = Classification(read_rows(reviews("train")), TEMPLATE, tokenizer, CPU)
    views = zoquant.attach(model)
    before = _loss(task, model)
    seconds = _train(task, model, views, steps)
    after = _loss(task, model)
    with TemporaryDirectory() as folder:
        delta, out = Path(folder, "delta.safetensors"), Path(folder, path.name)
        zoquant.save_delta(delta, views)
        views.reset()
        zoquant.save_delta(Path(folder, "zero.safetensors"), views)
        keys = views.keys
        del model, views
        gc.collect()
        tuned = _with_delta(path, delta, task)
        exported = zoquant.export(path, delta=delta, out=out)
        zero = zoquant.export(path, delta=Path(folder, "zero.safetensors"), out=Path(folder, f"zero-{path.name}"))
        found = format_of(path)
        row: dict[str, Any] = {
            "format": found.name,
            "checkpoint": path.name,
            "runtime": runtime,
            "steps": steps,
            "loss before": round(before, 4),
            "loss after": round(after, 4),
            "logits, reloaded natively": _reloaded(exported, "native", task, tuned),
            "logits, reloaded by the library": _reloaded(exported, "vendor", task, tuned),
            "codes": "the same" if _hash(path, keys) == _hash(exported, keys) else "CHANGED",
            "zero delta": "byte-identical" if _hash(path, ()) == _hash(zero, ()) else "DIFFERS",
            "seconds a step": round(seconds, 2),
        }
    return row


def keep(place: Path, row: Mapping[str, Any]) -> None:
    """Put a row among the others, in the place of an older one of the same checkpoint and runtime."""
    results = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {"cells": {}, "runs": []}
    known = ("format", "checkpoint", "runtime")
    others = [run for run in results["runs"] if any(run[name] != row[name] for name in known)]
    results["runs"] = sorted([*others, dict(row)], key=lambda run: [run[name] for name in known])
    write_text(place, json.dumps(results, indent=1) + "\n")


def _train(task: Classification, model: nn.Module, views: Any, steps: int) -> float:
    """Train all views; return the median of the seconds of a step."""
    optimizer = zoquant.ZOSGD(views, lr=LR, eps=EPS, clip=SETTINGS.clip, seed=SETTINGS.seed)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=steps)
    seconds = []
    for step in range(steps):
        batch, start = task.batch_of_step(SETTINGS.seed, step, BATCH), time.perf_counter()
        optimizer.step(partial(task.loss, model, batch))
        seconds.append(time.perf_counter() - start)
        schedule.step()
    return median(seconds)


@torch.no_grad()
def _loss(task: Classification, model: nn.Module) -> float:
    batches = [task.batch(range(start, start + BATCH)) for start in range(0, SEEN, BATCH)]
    return sum(float(task.loss(model, batch)) for batch in batches) / len(batches)


@torch.no_grad()
def _logits(task: Classification, model: nn.Module) -> Tensor:
    whole: Any = model
    logits: Tensor = whole(input_ids=task.batch(range(4)).ids).logits.float()
    return logits


def _with_delta(path: Path, delta: Path, task: Classification) -> Tensor:
    """Return the logits of the base with a delta on zoquant's layers, whichever runtime trained it."""
    model, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32, device=CPU)
    zoquant.load_delta(delta, zoquant.attach(model))
    return _logits(task, model)


def _reloaded(path: Path, runtime: Any, task: Classification, expected: Tensor) -> str:
    """Return how far the logits of an exported checkpoint are from those expected, relative to their norm."""
    try:
        model, _ = zoquant.load(path, runtime=runtime, compute_dtype=torch.float32, device=CPU)
    except (ZoquantError, ImportError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"{path}: ").partition(". ")[0]
        return f"not run: {reason}"
    return f"{float((_logits(task, model) - expected).norm() / expected.norm()):.1e}"


def _hash(path: Path, keys: tuple[str, ...]) -> str:
    """Hash all bytes of a checkpoint but those of some keys, and of the checksums that follow them."""
    found, digest = format_of(path), sha256()
    index = found.index(path)
    for number, (_, file) in enumerate(sorted(files_of(path, found).items())):
        data = torch.frombuffer(bytearray(file.read_bytes() or b"-"), dtype=torch.uint8)
        for key in keys:
            span = index[key]
            if span.file == file.name:
                data.as_strided((*span.shape, span.dtype.itemsize), (*span.strides, 1), span.offset).zero_()
        for checksum in checksums_of(path, found) if keys else ():
            if checksum.file == file.name:
                for place in checksum.places:
                    data[place : place + 4] = 0
        digest.update(f"{number} {len(data)} ".encode())
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
