"""What can be said of a checkpoint from its headers alone."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from zoquant.registry import format_of

_BYTES_A_VALUE = 8
"""Base and delta, float32 each: what training adds to the memory of inference, per value that moves."""


def inspect(path: str | Path) -> dict[str, Any]:
    """Return format, runtimes, layers, views by role and dtype, sizes and a memory estimate, as plain data.

    Args:
        path: a checkpoint. Its headers are read, the model is not loaded.

    Raises:
        CheckpointError: not a checkpoint that zoquant knows, or a damaged one.
    """
    source = Path(path)
    found = format_of(source)
    summary = found.summarize(source)
    index = found.index(source)
    views: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for span in index.values():
        kind = f"{span.role} {str(span.dtype).removeprefix('torch.')}"
        views[kind] += 1
        values[kind] += prod(span.shape)
    scales = sum(prod(span.shape) for span in index.values() if span.role == "scale")
    return {
        "path": str(path),
        "format": found.name,
        "architecture": summary.architecture,
        "runtimes": dict(summary.runtimes),
        "layers": summary.layers,
        "parameters": summary.parameters,
        "bytes": summary.bytes,
        "types": dict(summary.types),
        "views": {kind: {"views": views[kind], "values": values[kind]} for kind in sorted(views)},
        "trainable": scales,
        "trainable_share": scales / summary.parameters if summary.parameters else 0.0,
        "training_bytes": {
            "checkpoint": summary.bytes,
            "base_and_delta": scales * _BYTES_A_VALUE,
            "total_without_activations": summary.bytes + scales * _BYTES_A_VALUE,
        },
        "notes": list(summary.notes),
    }
