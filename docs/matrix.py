"""The tables of what was run, from the JSON that the benchmarks write."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = ("live", "native", "export", "inspect", "conformance", "library", "real size")
RUN = ("format", "checkpoint", "runtime", "steps", "loss before", "loss after", "logits, reloaded natively",
       "logits, reloaded by the library", "codes", "zero delta", "seconds a step")  # fmt: skip
"""What a row of `benchmarks/formats.py` holds, in the order of its table."""


def matrix(results: Mapping[str, Any]) -> str:
    """Return both tables as markdown.

    Args:
        results: `cells`: format -> column -> "works", "refused: why" or "not tried: why"; `runs`: rows by `RUN`.
    """
    cells = results.get("cells", {})
    rows = [[name, *(cells[name].get(column, "not tried") for column in COLUMNS)] for name in sorted(cells)]
    runs = [[str(run.get(name, "")) for name in RUN] for run in results.get("runs", ())]
    parts = ["## What was run\n", table(("format", *COLUMNS), rows)]
    if runs:
        parts += ["## Real size\n", table(RUN, runs)]
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
