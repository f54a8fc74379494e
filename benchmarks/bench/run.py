"""All that `make bench` measures of a checkpoint."""

from pathlib import Path
from typing import Any

from benchmarks.bench.bandwidth import bandwidth
from benchmarks.bench.derivatives import derivatives as agreement
from benchmarks.bench.derivatives import sentences
from benchmarks.bench.forward import native_against_dense
from benchmarks.bench.leak import leak
from benchmarks.bench.peak import peaks, peaks_of_peers
from benchmarks.bench.peers import peers as measure_peers
from benchmarks.bench.pipeline import pipeline, reviews
from benchmarks.bench.probes import batched
from benchmarks.bench.replay import replay_rate
from benchmarks.bench.scaling import scaling
from benchmarks.bench.steps import overheads
from zoquant.checkpoint.loading import default_compute_dtype
from zoquant.cli.bench.machine import machine
from zoquant.cli.bench.measure import sample_ids
from zoquant.training.finetune import Source
from zoquant.views.attach import attach

_DIRECTIONS = 4
_FORWARD_TOKENS = 512
_PROBES, _FEW_PROBES = 200, 5
_MORE = 3


def bench(
    path: Path,
    *,
    batch: int = 16,
    length: int = 32,
    rounds: int = 15,
    quick: bool = False,
    peers: bool = False,
    derivatives: bool = False,
) -> dict[str, Any]:
    """Measure a checkpoint on zoquant's own layers, on this machine's default device.

    Args:
        path: a checkpoint.
        batch: rows of the batch.
        length: tokens a row.
        rounds: repetitions; medians are reported with the quartiles beside them. What a step costs over its forwards,
            a few hundredths, takes three times as many.
        quick: three rounds and few steps: whether it runs, not what it costs.
        peers: measure MeZO, QZO, LoRA and full fine-tuning as textbook code, too.
        derivatives: compare the derivatives of 200 probes with those of float32, which takes 1,200 forwards.

    Returns:
        Plain data: seconds, bytes and ratios.

    Raises:
        CheckpointError: not a checkpoint, damaged, or without a tokenizer.
    """
    rounds = 3 if quick else rounds
    memory = peaks(path, batch, length)
    if peers:
        memory["peers"] = peaks_of_peers(path, batch, length)
    model, tokenizer, device = Source(str(path), runtime="native").open()
    ids, dtype = sample_ids(model, batch, length), default_compute_dtype(device)
    shapes = [(batch, length)] if quick else [(batch, length), (1, _FORWARD_TOKENS)]
    found: dict[str, Any] = {
        "kind": "bench",
        "checkpoint": path.name,
        "machine": machine(device),
        "batch": batch,
        "length": length,
        "rounds": rounds,
        "quick": quick,
        "compute_dtype": str(dtype).removeprefix("torch."),
        "memory": memory,
        "estimators": overheads(model, ids, rounds if quick else _MORE * rounds),
        "input": pipeline(model, reviews(model, tokenizer, length), batch, rounds),
        "bandwidth": bandwidth(attach(model), rounds),
        "replay": replay_rate(attach(model), 50 if quick else 1000),
        "growth": leak(model, 50 if quick else 1000),
        "scaling": scaling(model, batch, length, rounds),
        "batched": batched(model, ids, _DIRECTIONS, rounds),
        "forward": [native_against_dense(model, sample_ids(model, *shape), rounds) for shape in shapes],
    }
    if peers:
        found["peers"] = measure_peers(model, ids, rounds)
    if derivatives:
        probes = _FEW_PROBES if quick else _PROBES
        found["derivatives"] = agreement(model, sentences(tokenizer, device), batch, probes, dtype)
    return found
