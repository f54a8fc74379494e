"""The part of docs/benchmarks.md that benchmarks/results gives: the rest of the page is written by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite import lines
from benchmarks.growth import fits
from docs.matrix import table
from zoquant.bench.table import rows

BEGIN, END = "<!-- make docs: begin -->\n", "<!-- make docs: end -->\n"


def with_results(page: str, folder: Path) -> str:
    """Return the page with what stands between its two marks made anew.

    Args:
        page: text of docs/benchmarks.md.
        folder: the JSON files of `zoquant bench`, benchmarks/gpu_suite and benchmarks/growth.py.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return "".join([before, BEGIN, _results([each for each in found if "kind" in each]), END, after])


def _results(found: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[Mapping[str, Any]]] = {"bench": [], "gpu-suite": [], "growth": []}
    for each in found:
        kinds[each["kind"]].append(each)
    measured = [_bench(each) for each in kinds["bench"]] or [_missing("zoquant bench", "`zoquant bench --peers`")]
    suites = [_suite(each) for each in kinds["gpu-suite"] if not each["tiny"]]
    grown = [_growth(each) for each in kinds["growth"]] or [_missing("Growth", "`benchmarks/growth.py`")]
    return "\n".join(
        [*measured, *(suites or [_missing("Suite for GPUs", "on a GPU, by `python -m benchmarks.gpu_suite`")]), *grown]
    )


def _missing(title: str, how: str) -> str:
    return f"## {title}\n\nNot measured yet: {how}.\n"


def _bench(found: Mapping[str, Any]) -> str:
    return f"## zoquant bench, {found['machine']['processor']}\n\n" + table(
        ("figure", found["checkpoint"]), rows(found)
    )


def _suite(found: Mapping[str, Any]) -> str:
    told = "".join(f"- {line}\n" for line in lines(dict(found)))
    return f"## Suite for GPUs, {found['machine']['processor']}\n\n{told}"


def _growth(found: Mapping[str, Any]) -> str:
    told = [
        [name, each["x"], f"{each['fixed']:.4g}", f"{each['each']:.4g}", f"{each['r2']:.4f}"]
        for name, each in fits(found["points"]).items()
    ]
    head = ("sweep", "over", "at zero", "for each", "R²")
    said = f"Straight lines through {len(found['points'])} points."
    return f"## Growth, {found['machine']['processor']}\n\n{said}\n\n" + table(head, told)
