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
    """Return the page with what stands between its two marks made anew: a row for the runs of one way.

    Args:
        page: text of docs/gradients.md.
        path: the lines of benchmarks.gradient.
    """
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        found.setdefault((run["model"], run["task"], run["way"]), []).append(run)
    head = (
        "model", "task", "way", "seeds", "steps x batch", "accuracy", "of rows", "processor", "peak memory",
        "what comes out", "the same file comes back",
    )  # fmt: skip
    return _between(page, table(head, [_way(found[key]) for key in sorted(found, key=lambda key: key[:2])]))


def _between(page: str, made: str) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return "".join([before, BEGIN, made, END, after])


def _way(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    one = runs[0]
    named = [
        one["model"].partition("-Instruct")[0],
        one["task"],
        one["way"],
        ", ".join(map(str, sorted(run["seed"] for run in runs))),
    ]
    if "steps" not in one:
        return [*named, "", _accuracy(runs), str(one["examples"]), *[""] * 4]
    took = [
        f"{_mean(runs, 'processor_minutes'):.1f} min", f"{max(run['peak_mib'] for run in runs):,.0f} MiB",
        f"{_mean(runs, 'out_mib'):,.0f} MiB" if one["out_mib"] > 1 else f"{2**10 * one['out_mib']:.1f} KiB",
    ]  # fmt: skip
    seen = f"{one['steps']} x {one['batch']}" if one["steps"] > 1 else "each row once"
    return [*named, seen, _accuracy(runs), str(one["examples"]), *took, _same(runs)]


def _accuracy(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean of several runs and their range, or the 95 % interval of one."""
    found = [run["accuracy"] for run in runs]
    low, high = (min(found), max(found)) if len(runs) > 1 else runs[0]["interval"]
    return f"{_mean(runs, 'accuracy'):.1%} ({low:.1%} to {high:.1%})"


def _same(runs: Sequence[Mapping[str, Any]]) -> str:
    rounded = [run for run in runs if run.get("rounded_again") is not None]
    if rounded:
        return f"no; rounded to its types again, {_mean(rounded, 'rounded_again'):.1%}"
    return "yes" if all(run["same_file"] for run in runs) else "no"


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(run[name] for run in runs) / len(runs))


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
