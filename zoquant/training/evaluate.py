"""How well a checkpoint does on data."""

from pathlib import Path

from zoquant.errors import DataError
from zoquant.files.hub import delta_path
from zoquant.tasks import Evaluation, TaskSettings
from zoquant.tasks.rows import DataSource, Row
from zoquant.tasks.rows.naming import naming
from zoquant.tasks.splits import drawn, parts_differ, read_part, read_test
from zoquant.training.source import OpenedSource, Source


def evaluate(
    source: Source | OpenedSource,
    data: DataSource,
    task: TaskSettings,
    delta: str | Path | None = None,
    *,
    protocol: str | None = None,
    shots: int = 0,
    shots_from: DataSource | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return how well a checkpoint does on data, with a delta on it if one is given.

    Args:
        source: the model.
        data: rows to measure on: a file, a folder, or the Hub, as `read_rows` has it.
        task: what is measured.
        delta: a delta file, or None.
        protocol: `"mezo"` for the 1,000 test rows of the papers.
        shots: worked examples before every prompt.
        shots_from: rows to draw them from; None for the training split of the same folder.
        seed: of the draws.

    Raises:
        ZoquantError: any of its kinds; see `zoquant.errors`.
    """
    if min(shots, seed) < 0:
        raise ValueError(f"shots is {shots} and seed {seed}, expected 0 or more each.")
    if shots and shots_from is None and not parts_differ(task, data):
        raise DataError(f"shots is {shots}, but {data} has no splits. Name other rows to draw them from: --shots-from.")
    rows = read_test(task, data, protocol, seed)
    with naming(data):
        task.check(rows, shots=shots)
    examples = _worked(task, shots_from or data, shots, seed) if shots else []
    model, tokenizer, device = source.open(None if delta is None else delta_path(delta))
    with naming(data):
        built = task.build(rows, model, tokenizer, device, shots=examples)
    return built.evaluate(model)


def _worked(task: TaskSettings, data: DataSource, shots: int, seed: int) -> list[Row]:
    """Return so many rows that stand as worked examples before every prompt."""
    rows = read_part(task, data, "train")
    with naming(data):
        task.check(rows)
    if len(rows) < shots:
        raise DataError(f"shots is {shots}, but {data} holds {len(rows)} rows. Ask for fewer.")
    return drawn(rows, seed, shots)
