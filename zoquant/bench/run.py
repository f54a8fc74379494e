"""All that `zoquant bench` measures of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from zoquant.attach import attach
from zoquant.bench.forward import native_against_dense
from zoquant.bench.machine import file_name, machine
from zoquant.bench.peak import peaks
from zoquant.bench.peers import peers as measure_peers
from zoquant.bench.pipeline import pipeline, reviews
from zoquant.bench.probes import batched
from zoquant.bench.sample import sample_ids
from zoquant.bench.steps import bandwidth, growth, overheads, replay_rate, scaling
from zoquant.files import write_text
from zoquant.finetune import Source
from zoquant.load import default_compute_dtype

_DIRECTIONS = 4
_FORWARD_TOKENS = 512


def bench(
    path: Path, *, batch: int = 16, length: int = 32, rounds: int = 15, quick: bool = False, peers: bool = False
) -> dict[str, Any]:
    """Measure a checkpoint on this machine's default device.

    Args:
        path: a checkpoint.
        batch: rows of the batch.
        length: tokens a row.
        rounds: repetitions; medians are reported with the quartiles beside them.
        quick: three rounds and few steps: whether it runs, not what it costs.
        peers: measure MeZO, QZO, LoRA and full fine-tuning as textbook code, too.

    Returns:
        Plain data: seconds, bytes and ratios.

    Raises:
        CheckpointError: not a checkpoint, damaged, or without a tokenizer.
    """
    rounds = 3 if quick else rounds
    memory = peaks(path, batch, length)
    model, tokenizer, _ = Source(str(path)).open()
    ids = sample_ids(model, batch, length)
    dtype = default_compute_dtype(ids.device)
    found: dict[str, Any] = {
        "kind": "bench",
        "checkpoint": path.name,
        "machine": machine(ids.device),
        "batch": batch,
        "length": length,
        "rounds": rounds,
        "quick": quick,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "memory": memory,
        "estimators": overheads(model, ids, rounds),
        "input": pipeline(model, reviews(model, tokenizer, length), batch, rounds),
        "bandwidth": bandwidth(attach(model), rounds),
        "replay": replay_rate(attach(model), 50 if quick else 1000),
        "growth": growth(model, 50 if quick else 1000),
        "scaling": scaling(model, batch, length, rounds),
        "batched": batched(model, ids, _DIRECTIONS, rounds),
    }
    if peers:
        found["peers"] = measure_peers(model, ids, dtype, rounds)
    shapes = [(batch, length)] if quick else [(batch, length), (1, _FORWARD_TOKENS)]
    found["forward"] = [native_against_dense(model, sample_ids(model, *shape), rounds) for shape in shapes]
    return found


def save(found: dict[str, Any], folder: Path) -> Path:
    """Write what `bench` returned to `<folder>/<device>.json` and return the file.

    Raises:
        WriteError: the file could not be written.
    """
    path = folder / f"{file_name(str(found['machine']['processor']))}.json"
    write_text(path, json.dumps(found, indent=1) + "\n")
    return path
