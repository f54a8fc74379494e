"""The parts of the pages of results that benchmarks/results gives: the rest of them is written by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.table import rows
from benchmarks.gpu_suite import lines
from benchmarks.growth import fits, told
from docs.matrix import table

BEGIN, END = "<!-- make docs: begin -->\n", "<!-- make docs: end -->\n"
PLOT = Path(__file__).parent / "images" / "growth.png"
_MODELS = (
    "Models are random, shapes of llama in Q4_1; views, batch and directions are varied on one of 135 million weights."
)


def with_results(page: str, folder: Path) -> str:
    """Return the page with what stands between its two marks made anew.

    Args:
        page: text of docs/results/speed.md.
        folder: the JSON files of benchmarks.bench, benchmarks.gpu_suite and benchmarks.growth.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return _between(page, _results([each for each in found if "kind" in each]))


def with_runs(page: str, path: Path) -> str:
    """Return the page with what stands between its two marks made anew.

    Args:
        page: text of docs/results/quality.md.
        path: the lines of benchmarks.gradient.
    """
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    head = ("task", "way", "seed", "steps", "before", "after (95 %)", "rows", "peak memory", "step / forward")
    return _between(page, table(head, [_run(each) for each in runs]))


def _between(page: str, made: str) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return "".join([before, BEGIN, made, END, after])


def _run(found: Mapping[str, Any]) -> list[str]:
    low, high = found["interval"]
    after = f"{found['after']:.1%} ({low:.1%} to {high:.1%})"
    numbers = [f"{found['before']:.1%}", after, str(found["examples"]), f"{found['peak_mib']:,.0f} MiB"]
    named = [found["task"], found["way"], str(found["seed"]), f"{found['steps']} of {found['batch']}"]
    return [*named, *numbers, f"{found['overhead']:.2f}"]


def _results(found: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[Mapping[str, Any]]] = {"bench": [], "gpu-suite": [], "growth": []}
    for each in found:
        kinds[each["kind"]].append(each)
    measured = [_bench(each) for each in kinds["bench"] if not each["quick"]]
    suites = [_suite(each) for each in kinds["gpu-suite"] if not each["tiny"]]
    grown = [_growth(each) for each in kinds["growth"] if not each["short"]]
    return "\n".join([
        *(measured or [_missing("Bench", "`make bench`")]),
        *(suites or [_missing("Suite for GPUs", "on a GPU, by `python -m benchmarks.gpu_suite`")]),
        *(grown or [_missing("Growth", "`python -m benchmarks.growth`")]),
    ])  # fmt: skip


def _missing(title: str, how: str) -> str:
    return f"## {title}\n\nNot measured yet: {how}.\n"


def _bench(found: Mapping[str, Any]) -> str:
    made = rows(found)
    aimed = [(row.measured, row.target) for row in made if row.target is not None]
    targets = [
        [aim.name, aim.wanted, measured, aim.verdict, "" if aim.floor is None else f"{aim.floor:g}", aim.left]
        for measured, aim in aimed
    ]
    met = sum(aim.verdict == "met" for _, aim in aimed)
    machine = found["machine"]
    return "\n".join([
        f"## Bench, {machine['processor']}\n",
        f"`{found['checkpoint']}`, {found['batch']} x {found['length']} tokens, {machine['threads']} threads, torch "
        f"{machine['torch']}. Medians over {found['rounds']} rounds, three times as many for a step over its forwards, "
        "quartiles in brackets; one run, contestants in turn. Ratios are taken round by round.\n",
        f"{met} of {len(aimed)} targets are met. No code can pass the floor; what is left is the way to it.\n",
        table(("figure", "target", "measured", "verdict", "floor", "left"), targets),
        "Everything that was measured:\n",
        table(("figure", "measured"), [[row.figure, row.measured] for row in made]),
    ])  # fmt: skip


def _suite(found: Mapping[str, Any]) -> str:
    told = "".join(f"- {line}\n" for line in lines(dict(found)))
    return f"## Suite for GPUs, {found['machine']['processor']}\n\n{told}"


def _growth(found: Mapping[str, Any]) -> str:
    machine, count = found["machine"], len(found["points"])
    parts = [
        f"## Growth, {machine['processor']}\n",
        f"{machine['threads']} threads, torch {machine['torch']}; {count} points, a sweep in turn. {_MODELS}\n",
        f"![Points and lines](../images/{PLOT.name})\n" if PLOT.exists() else "",
        "".join(f"- {told(name, each)}\n" for name, each in fits(found["points"]).items()),
    ]
    return "\n".join(part for part in parts if part)
