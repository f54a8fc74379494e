"""The table of the study, and whether its targets are met."""

import math
import statistics
from collections.abc import Callable, Sequence

from benchmarks.study.record import Records, Result
from benchmarks.study.rows import Row

_HEAD = "| row | forwards | seeds | dev | test | loss | lr, ε | products in |"


def table(lines: Sequence[Row], records: Records) -> str:
    """Return the table in Markdown, and a line on what was not run."""
    missing = [row.name for row in lines if not records.of(row)]
    body = [_line(row, found) for row in lines if (found := records.of(row))]
    notes = [f"Not run: {'; '.join(missing)}."] if missing else []
    return "\n".join([_HEAD, "|---" * 8 + "|", *body, "", *targets(lines, records), *notes]) + "\n"


def targets(lines: Sequence[Row], records: Records) -> list[str]:
    """Return a sentence on each target of the study that the results so far can tell of: means of the seeds on test."""
    found = {row.name: records.of(row) for row in lines}
    said = []
    if found["default"] and (tuned := found["qzo, the best of the grid"]):
        said.append(_against_qzo([found[row.name] for row in lines if row.name.startswith("default")], tuned))
    bound, long, start = found["first-order, Adam, lr 2e-3"], found["default, long"], found["zero-shot"]
    if bound and long and start:
        said.append(_against_first_order(bound, long, start))
    return [f"- {sentence}" for sentence in said]


def median_curve(results: Sequence[Result]) -> list[tuple[float, float, float, float]]:
    """Return forwards and the median, least and greatest accuracy of the seeds at each mark, as far as all went."""
    points = zip(*(result["curve"] for result in results), strict=False)
    return [(mark[0]["forwards"], *_spread([each["accuracy"] for each in mark])) for mark in points]


def _against_qzo(defaults: Sequence[Sequence[Result]], tuned: Sequence[Result]) -> str:
    """Say what the default has on test after each of its runs, and whether that of N/8 has what QZO has after N."""
    goal, spent = _mean(tuned, "test"), tuned[0]["forwards"]
    runs = sorted((results for results in defaults if results), key=lambda results: float(results[0]["forwards"]))
    said = ", ".join(f"{_percent(_mean(each, 'test'))} after {each[0]['forwards']:,.0f}" for each in runs)
    early = [_mean(each, "test") for each in runs if each[0]["forwards"] <= spent / 8]
    short = goal - max(early) if early else math.nan
    verdict = "met" if short <= 0 else f"missed by {100 * short:.1f} points" if early else "not run"
    return (
        f"N/8: tuned QZO has {_percent(goal)} of test after {spent:,.0f} forwards, the default {said}; the target is "
        f"{spent / 8:,.0f}: {verdict}."
    )


def _against_first_order(bound: Sequence[Result], long: Sequence[Result], start: Sequence[Result]) -> str:
    """Say which share of the first-order gain the long run has, on dev and on test."""
    said, shares = [], []
    for part in ("dev", "test"):
        base, reached, top = (_mean(group, part) for group in (start, long, bound))
        shares.append((reached - base) / (top - base))
        said.append(
            f"of {part} {_percent(base)}, {_percent(reached)} and {_percent(top)}: {shares[-1]:.0%} of the gain"
        )
    verdict = "met" if shares[-1] >= 0.9 else "missed"
    return (
        f"90 %: zero-shot, the default after {long[0]['forwards']:,.0f} forwards and first-order have {said[0]}; "
        f"{said[1]}, {verdict}."
    )


def _mean(results: Sequence[Result], part: str) -> float:
    return statistics.fmean(result[part]["accuracy"] for result in results)


def _line(row: Row, results: Sequence[Result]) -> str:
    spent = f"{results[0]['forwards']:,.0f}" + (" + backward" if row.method == "first-order" else "")
    dev, test = (_range([result[part]["accuracy"] for result in results], _percent) for part in ("dev", "test"))
    losses = [result["dev"]["loss"] for result in results if result["dev"]["loss"] is not None]
    loss = _range(losses, "{:.3f}".format) if losses else "not finite"
    lifeless = ", stopped: ten steps in a row moved nothing" if any(map(_is_lifeless, results)) else ""
    cells = [row.name + lifeless, spent, str(len(results)), dev, test, loss, _numbers(results), _dtypes(results)]
    return f"| {' | '.join(cells)} |"


def _is_lifeless(result: Result) -> bool:
    return bool(result.get("lifeless"))


def _numbers(results: Sequence[Result]) -> str:
    """Return lr and eps, medians where the seeds chose their own."""
    values = [[result["numbers"].get(name) for result in results] for name in ("lr", "eps")]
    return ", ".join(f"{statistics.median(found):.2g}" for found in values if None not in found)


def _dtypes(results: Sequence[Result]) -> str:
    """Return the dtypes of the matrix products, each once, in the order of the seeds."""
    return ", ".join(dict.fromkeys(result["compute_dtype"].removeprefix("torch.") for result in results))


def _range(values: Sequence[float], show: Callable[[float], str]) -> str:
    middle, least, most = map(show, _spread(values))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
