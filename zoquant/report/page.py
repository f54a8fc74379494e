"""The page of a report: what its templates are given. Every text of a run is escaped where it is written."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from zoquant.registry import own_package
from zoquant.report.charts import key_line
from zoquant.report.figures import figures_of, shared_figures
from zoquant.report.run_reading import Recorded, Sample, finite
from zoquant.report.wording import mebibytes, shown, words

_SIZES = ("rss_loaded_bytes", "rss_peak_bytes", "delta_bytes", "trajectory_bytes")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def page(runs: Sequence[Recorded]) -> str:
    """Return the whole page."""
    beside = runs if len(runs) > 1 else runs[0].parts()
    return templates().get_template("page.html").render(
        title=f"Report: {', '.join(run.name for run in runs)}",
        comparison=_comparison(beside) if beside else None,
        runs=[_run(run) for run in runs],
        made_by=own_package(),
    )  # fmt: skip


def templates() -> Environment:
    """Return the templates of the page: what stands between their braces is escaped, and holds no control character."""
    made = Environment(
        loader=PackageLoader("zoquant.report"), autoescape=True, finalize=_writable, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters["shown"] = shown
    made.globals["key_line"] = key_line
    return made


def _writable(value: Any) -> str:
    """Return a text in which the characters that no page may hold are a replacement character."""
    if isinstance(value, Markup):
        return value
    return _CONTROL.sub("\ufffd", str(value).encode("utf-8", "replace").decode("utf-8"))


def _comparison(runs: Sequence[Recorded]) -> dict[str, Any]:
    """Return what several runs look like beside each other."""
    metrics = list(dict.fromkeys(name for run in runs for name, _, _ in _measured(run)))
    settings = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(_setting(run, name) for run in runs)] for name in settings]
    return {
        "head": [
            "run",
            "steps",
            *(f"held-out {words(name)}" for name in metrics),
            "s/step",
            "x forwards",
            "peak memory",
        ],
        "rows": [_result(run, metrics) for run in runs],
        "figures": shared_figures(runs),
        "names": ["setting", *(run.name for run in runs)],
        "differing": [row for row in rows if len(set(row[1:])) > 1],
    }


def _result(run: Recorded, metrics: Sequence[str]) -> list[str]:
    ends = {name: f"{shown(before)} → {shown(after)}" for name, before, after in _measured(run)}
    speed = [shown(finite(run.summary, name) or "–") for name in ("step_seconds", "overhead")]
    memory = mebibytes(run.summary.get("rss_peak_bytes"))
    return [run.name, f"{len(run.steps):,}", *(ends.get(name, "–") for name in metrics), *speed, memory]


def _run(run: Recorded) -> dict[str, Any]:
    """Return what a section shows of one run."""
    reasons = run.calibration.get("reasons")
    return {
        "run": run,
        "tiles": [*_gained(run), *_tested(run), *_cost(run)],
        "figures": figures_of(run),
        "prompts": _prompts(run),
        "answers": _answers(run),
        "reasons": reasons if isinstance(reasons, list) else [],
        "settings": [[name, _setting(run, name)] for name in run.settings],
        "came": [
            [words(name.removesuffix("_bytes")), mebibytes(value) if name in _SIZES else shown(value)]
            for name, value in run.summary.items()
            if isinstance(value, (int, float, str))
        ],
    }


def _measured(run: Recorded) -> list[tuple[str, float, float]]:
    """Return name, value before and value after of what was measured both times."""
    before, after = run.summary.get("eval_before"), run.summary.get("eval_after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    return [(name, value, after[name]) for name, value in before.items() if isinstance(value, float) and name in after]


def _gained(run: Recorded) -> Iterator[tuple[str, str, str]]:
    for name, before, after in _measured(run):
        yield f"Held-out {words(name)}", f"{shown(before)} → {shown(after)}", _interval(run, name)


def _tested(run: Recorded) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured of the step that was tested, if one was."""
    test, step = run.summary.get("test"), shown(run.summary.get("best_step", "–"))
    measured: dict[str, Any] = test if isinstance(test, dict) else {}
    for name, value in measured.items():
        if isinstance(value, float) and isinstance(ends := measured.get(f"{name}_interval"), list) and len(ends) == 2:
            interval = f"95 %: {shown(ends[0])} to {shown(ends[1])}"
            yield f"Test {words(name)}", shown(value), f"{interval}, of step {step}"


def _cost(run: Recorded) -> Iterator[tuple[str, str, str]]:
    found = {name: value if isinstance(value, (int, float)) else "–" for name, value in run.summary.items()}
    if "step_seconds" not in found:
        return
    yield "Step", f"{shown(found['step_seconds'])} s", f"{shown(found.get('overhead', '–'))} x its forwards"
    loaded = f"{mebibytes(found.get('rss_loaded_bytes'))} when loaded"
    yield "Peak memory", mebibytes(found.get("rss_peak_bytes")), loaded
    views = f"in {shown(found.get('views', '–'))} views, {shown(found.get('steps', '–'))} steps"
    yield "Values moved", shown(found.get("trainable", "–")), views


def _interval(run: Recorded, name: str) -> str:
    ends = [run.summary[when].get(f"{name}_interval") for when in ("eval_before", "eval_after")]
    if any(not isinstance(each, list) or len(each) != 2 for each in ends):
        return "before → after"
    return "95 %: " + " → ".join(f"{shown(low)} to {shown(high)}" for low, high in ends)


def _prompts(run: Recorded) -> list[tuple[str, Sample, Sample]]:
    """Return each prompt with what the model makes of it first and last."""
    found: dict[str, list[Sample]] = {}
    for sample in run.samples:
        found.setdefault(sample.prompt, []).append(sample)
    return [
        (prompt, min(samples, key=lambda each: each.step), max(samples, key=lambda each: each.step))
        for prompt, samples in found.items()
    ]


def _answers(run: Recorded) -> dict[str, Any] | None:
    """Return how often the held-out rows of each label were answered with each, at first and at last."""
    found = [table for line in run.evaluations if (table := _counts(line.get("eval_answers")))]
    if not found or len(found[0]) != len(found[-1]):
        return None
    labels = run.settings.get("labels")
    names = list(map(str, labels.values())) if isinstance(labels, dict) else []
    names = names if len(names) == len(found[0]) else [f"label {number}" for number in range(1, len(found[0]) + 1)]
    rows = [
        [name, *(f"{before} → {after}" for before, after in zip(*both, strict=True))]
        for name, *both in zip(names, found[0], found[-1], strict=True)
    ]
    return {"head": ["true label", *names], "rows": rows}


def _counts(found: Any) -> list[list[int]]:
    """Return a square of counts, nothing where it is none."""
    square = isinstance(found, list) and all(isinstance(row, list) and len(row) == len(found) for row in found)
    return found if square and all(type(count) is int for row in found for count in row) else []


def _setting(run: Recorded, name: str) -> str:
    """Return a setting as text: a number that was calibrated, where that was asked for."""
    value = run.settings.get(name)
    if value is None:
        found = run.calibration.get(name)
        return "none" if found is None else f"{shown(found)}, calibrated"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
