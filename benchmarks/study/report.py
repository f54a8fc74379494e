"""The table of the study, and whether its targets are met."""

import statistics
from collections.abc import Callable, Sequence

from benchmarks.study.record import Records, Result
from benchmarks.study.rows import Row

_HEAD = "| row | forwards | seeds | dev | test | loss | lr, ε | minutes |"


def table(lines: Sequence[Row], records: Records) -> str:
    """Return the table in Markdown, and a line on what was not run."""
    missing = [row.name for row in lines if not records.of(row)]
    body = [_line(row, found) for row in lines if (found := records.of(row))]
    notes = [f"Not run: {'; '.join(missing)}."] if missing else []
    return "\n".join([_HEAD, "|---" * 8 + "|", *body, "", *targets(lines, records), *notes]) + "\n"


def targets(lines: Sequence[Row], records: Records) -> list[str]:
    """Return a sentence on each target of the study that the results so far can tell of."""
    found = {row.name: records.of(row) for row in lines}
    said = []
    if found["default"] and (tuned := found["qzo, the best of the grid"]):
        said.append(_against_qzo([row for row in lines if row.name.startswith("default")], found, tuned))
    bound, long, start = found["first-order, Adam, lr 2e-3"], found["default, long"], found["zero-shot"]
    if bound and long and start:
        said.append(_against_first_order(bound, long, start))
    return [f"- {sentence}" for sentence in said]


def median_curve(results: Sequence[Result]) -> list[tuple[float, float, float, float]]:
    """Return forwards and the median, least and greatest accuracy of the seeds at each mark, as far as all went."""
    points = zip(*(result["curve"] for result in results), strict=False)
    return [(mark[0]["forwards"], *_spread([each["accuracy"] for each in mark])) for mark in points]


def _against_qzo(defaults: Sequence[Row], found: dict[str, list[Result]], tuned: Sequence[Result]) -> str:
    """Say after how many forwards the default is where QZO ends: of all its runs the one that is there first."""
    goal = statistics.median(result["curve"][-1]["accuracy"] for result in tuned)
    spent = tuned[0]["forwards"]
    curves = [median_curve(found[row.name]) for row in defaults if found[row.name]]
    reached = [next((forwards for forwards, middle, _, _ in curve if middle >= goal), None) for curve in curves]
    first = min((forwards for forwards in reached if forwards is not None), default=None)
    said = f"tuned QZO has {_percent(goal)} of the 256 after {spent:,.0f} forwards; the target is {spent / 8:,.0f}"
    if first is None:
        return f"N/8: {said}, and the default never gets there: missed."
    kept = "met" if first <= spent / 8 else "missed"
    return f"N/8: {said}, and the default (median of its seeds) is there after {first:,.0f}: {kept}."


def _against_first_order(bound: Sequence[Result], long: Sequence[Result], start: Sequence[Result]) -> str:
    """Say which share of the first-order gain the long run has, both at their best evaluation, and on test."""
    base = start[0]["curve"][0]["accuracy"]
    top = statistics.median(max(each["accuracy"] for each in result["curve"]) for result in bound)
    best = max(long[0]["curve"], key=lambda each: float(each["accuracy"]))
    last = long[0]["curve"][-1]["accuracy"]
    share = (best["accuracy"] - base) / (top - base)
    ends = [statistics.median(result["test"]["accuracy"] for result in group) for group in (start, bound, long)]
    return (
        f"90 %: zero-shot has {_percent(base)} of the 256, first-order {_percent(top)}, the default within "
        f"{long[0]['forwards']:,.0f} forwards {_percent(best['accuracy'])} (at the end {_percent(last)}): {share:.0%} "
        f"of the gain, {'met' if share >= 0.9 else 'missed'}; on test {_percent(ends[0])}, {_percent(ends[1])} and "
        f"{_percent(ends[2])}, {(ends[2] - ends[0]) / (ends[1] - ends[0]):.0%}."
    )


def _line(row: Row, results: Sequence[Result]) -> str:
    spent = f"{results[0]['forwards']:,.0f}" + (" + backward" if row.method == "first-order" else "")
    minutes = statistics.median(result["seconds"] for result in results) / 60
    dev, test = (_range([result[part]["accuracy"] for result in results], _percent) for part in ("dev", "test"))
    losses = [result["dev"]["loss"] for result in results if result["dev"]["loss"] is not None]
    loss = _range(losses, "{:.3f}".format) if losses else "not finite"
    lifeless = ", stopped: ten steps in a row moved nothing" if any(map(_is_lifeless, results)) else ""
    cells = [row.name + lifeless, spent, str(len(results)), dev, test, loss, _numbers(results), f"{minutes:.1f}"]
    return f"| {' | '.join(cells)} |"


def _is_lifeless(result: Result) -> bool:
    return bool(result.get("lifeless"))


def _numbers(results: Sequence[Result]) -> str:
    """Return lr and eps, medians where the seeds chose their own."""
    values = [[result["numbers"].get(name) for result in results] for name in ("lr", "eps")]
    return ", ".join(f"{statistics.median(found):.2g}" for found in values if None not in found)


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    middle, least, most = map(show, _spread(values))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
