"""What can be said of a checkpoint from its headers alone."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from zoquant.checkpoint.step_memory import activations
from zoquant.files.hub import local_path
from zoquant.protocol import Format, Span
from zoquant.registry import format_of
from zoquant.views.layout import coupled_key


def inspect(path: str | Path) -> dict[str, Any]:
    """Return format, runtimes, layers, views by role and dtype, sizes and a memory estimate, as plain data.

    Args:
        path: a checkpoint, or its name on the Hub. Its headers are read, the model is not loaded.

    Raises:
        CheckpointError: not a checkpoint that zoquant knows, or a damaged one.
    """
    source = local_path(path)
    found = format_of(source)
    summary = found.summarize(source)
    index = found.index(source)
    views: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for span in index.values():
        kind = f"{span.role} {str(span.dtype).removeprefix('torch.')}"
        views[kind] += 1
        values[kind] += prod(span.shape)
    trained = {key: span for key, span in index.items() if span.role == "scale"}
    scales, beside = sum(prod(span.shape) for span in trained.values()), _base_and_delta(trained)
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
            "base_and_delta": beside,
            "total_without_activations": summary.bytes + beside,
            **_steps(found, source, summary.bytes + beside, scales),
        },
        "notes": list(summary.notes),
    }


def list_keys(path: str | Path) -> list[dict[str, Any]]:
    """Return every key of a checkpoint, with the role, dtype and shape of its values, as plain data.

    Raises:
        CheckpointError: see `inspect`.
    """
    source = local_path(path)
    return [
        {"key": key, "role": span.role, "dtype": str(span.dtype).removeprefix("torch."), "shape": list(span.shape)}
        for key, span in format_of(source).index(source).items()
    ]


def _steps(found: Format, path: Path, held: int, values: int) -> dict[str, int]:
    """Return what each way of a step takes with the model, base and delta; nothing where that cannot be told.

    A backward has a gradient for each value, and the two numbers of rule adam.
    """
    ways = activations(found, path) or {}
    return {way: held + size + (0 if way == "forward" else 3 * 4 * values) for way, size in ways.items()}


def _base_and_delta(spans: Mapping[str, Span]) -> int:
    """Return what training adds to the memory of inference when all values move, coupled as `attach` couples them.

    The base is kept as it is stored, the delta in float32, once for the views of one layer, role and shape.
    """
    coupled = {coupled_key(key, span.role, span.shape): prod(span.shape) for key, span in spans.items()}
    return sum(prod(span.shape) * span.dtype.itemsize for span in spans.values()) + 4 * sum(coupled.values())
