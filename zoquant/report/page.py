"""The page of a report, section by section."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from zoquant.report.charts import derivative_figure, key_of, loss_figure, metric_figures, step_figures
from zoquant.report.heat import heat_map
from zoquant.report.markup import Markup, figure, joined, shown, table, tag
from zoquant.report.run_reading import Recorded, Sample, finite, number_in

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that keeps to it loads nothing, whatever the page holds."""
_SIZES = ("rss_loaded_bytes", "rss_peak_bytes", "delta_bytes", "trajectory_bytes")
_SAMPLES = 20


def page(runs: Sequence[Recorded]) -> str:
    """Return the whole page."""
    title = f"Report: {', '.join(run.name for run in runs)}"
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"), tag("title", title),
        tag("style", Markup((files("zoquant.report") / "style.css").read_text(encoding="utf-8"))),
    )  # fmt: skip
    links = [tag("li", tag("a", run.name, href=f"#run-{number}")) for number, run in enumerate(runs)]
    top = tag(
        "header", tag("h1", title), *([tag("nav", tag("ul", *links), aria_label="Runs")] if len(runs) > 1 else [])
    )
    parts = [_comparison(runs)] if len(runs) > 1 else []
    parts += [_run(number, run) for number, run in enumerate(runs)]
    made = tag("footer", f"Made by zoquant {version('zoquant')}. Nothing on this page is loaded from elsewhere.")
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', top, tag('main', *parts), made), lang='en')}\n"


def _comparison(runs: Sequence[Recorded]) -> Markup:
    """Return what several runs look like beside each other."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [[name, *(_setting(run, name) for run in runs)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    settings = (
        table("Settings that differ", ["setting", *(run.name for run in runs)], differing)
        if differing
        else tag("p", "All settings are the same.")
    )
    figures = tag("div", loss_figure(runs), metric_figures(runs), class_="figures")
    return tag("section", tag("h2", "Comparison"), _results(runs), figures, settings)


def _results(runs: Sequence[Recorded]) -> Markup:
    metrics = list(dict.fromkeys(name for run in runs for name, _, _ in _measured(run)))
    head = ["run", "steps", *(f"held-out {_words(name)}" for name in metrics), "s/step", "x forwards", "peak memory"]
    rows = []
    for number, run in enumerate(runs):
        ends = {name: f"{shown(before)} → {shown(after)}" for name, before, after in _measured(run)}
        speed = [shown(finite(run.summary, name) or "–") for name in ("step_seconds", "overhead")]
        memory = _mebibytes(run.summary.get("rss_peak_bytes"))
        said = [f"{len(run.steps):,}", *(ends.get(name, "–") for name in metrics), *speed, memory]
        rows.append([joined([key_of(number), run.name]), *said])
    return table("What each run came to", head, rows)


def _measured(run: Recorded) -> list[tuple[str, float, float]]:
    """Return name, value before and value after of what was measured both times."""
    before, after = run.summary.get("eval_before"), run.summary.get("eval_after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    return [(name, value, after[name]) for name, value in before.items() if isinstance(value, float) and name in after]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _run(number: int, run: Recorded) -> Markup:
    model = tag("p", f"{run.settings.get('model', 'unknown')} on {run.settings.get('data', 'unknown')}", class_="soft")
    figures = [loss_figure([run]), metric_figures([run]), derivative_figure(run), step_figures(run)]
    if run.moves is not None:
        figures.append(heat_map(run.moves))
    parts = [tag("h2", run.name), model, _state(run), _tiles(run), tag("div", *figures, class_="figures")]
    return tag("section", *parts, *_samples(run), *_calibration(run), _facts(run), id=f"run-{number}")


def _state(run: Recorded) -> Markup:
    means = f"Each point of a curve is the mean of {run.stretch} steps." if run.stretch > 1 else ""
    if run.summary.get("finished") is True:
        return tag("p", means, class_="soft") if means else Markup("")
    told = "was interrupted" if run.summary else "is under way, or was ended from outside"
    return tag(
        "p",
        f"This run {told}: {len(run.steps):,} of {shown(run.settings.get('steps', 'unknown'))} steps are here. {means}",
    )


def _tiles(run: Recorded) -> Markup:
    """Return the numbers to see first."""
    found = {name: value if isinstance(value, (int, float)) else "–" for name, value in run.summary.items()}
    tiles = [
        (f"Held-out {_words(name)}", f"{shown(before)} → {shown(after)}", _interval(run, name))
        for name, before, after in _measured(run)
    ]
    tiles += _tested(run)
    if "step_seconds" in found:
        loaded = f"{_mebibytes(found.get('rss_loaded_bytes'))} when loaded"
        views = f"in {shown(found.get('views', '–'))} views, {shown(found.get('steps', '–'))} steps"
        tiles += [
            ("Step", f"{shown(found['step_seconds'])} s", f"{shown(found.get('overhead', '–'))} x its forwards"),
            ("Peak memory", _mebibytes(found.get("rss_peak_bytes")), loaded),
            ("Values moved", shown(found.get("trainable", "–")), views),
        ]
    drawn = (
        tag("div", tag("dt", name), tag("dd", value), tag("dd", more, class_="more")) for name, value, more in tiles
    )
    return tag("dl", *drawn, class_="tiles") if tiles else Markup("")


def _tested(run: Recorded) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured of the step that was tested, if one was."""
    test, step = run.summary.get("test"), shown(run.summary.get("best_step", "–"))
    measured: dict[str, Any] = test if isinstance(test, dict) else {}
    for name, value in measured.items():
        if isinstance(value, float) and isinstance(ends := measured.get(f"{name}_interval"), list) and len(ends) == 2:
            interval = f"95 %: {shown(ends[0])} to {shown(ends[1])}"
            yield f"Test {_words(name)}", shown(value), f"{interval}, of step {step}"


def _interval(run: Recorded, name: str) -> str:
    ends = [run.summary[when].get(f"{name}_interval") for when in ("eval_before", "eval_after")]
    if any(not isinstance(each, list) or len(each) != 2 for each in ends):
        return "before → after"
    return "95 %: " + " → ".join(f"{shown(low)} to {shown(high)}" for low, high in ends)


def _samples(run: Recorded) -> Iterator[Markup]:
    """Yield what the model makes of the prompts, before training and after."""
    prompts: dict[str, list[Sample]] = {}
    for sample in run.samples:
        prompts.setdefault(sample.prompt, []).append(sample)
    if not prompts:
        return
    yield tag("h3", "Samples before and after")
    yield tag("div", *(_sample(*item) for item in list(prompts.items())[:_SAMPLES]), class_="samples")
    if len(prompts) > _SAMPLES:
        yield tag("p", f"{len(prompts) - _SAMPLES:,} more prompts are in samples.jsonl.", class_="soft")


def _sample(prompt: str, found: Sequence[Sample]) -> Markup:
    first, last = min(found, key=lambda each: each.step), max(found, key=lambda each: each.step)
    texts = [
        tag("div", tag("h4", f"After {each.step:,} steps"), tag("pre", each.text))
        for each in dict.fromkeys((first, last))
    ]
    return figure("Prompt", tag("pre", prompt), tag("div", *texts, class_="sample"))


def _calibration(run: Recorded) -> Iterator[Markup]:
    reasons = run.calibration.get("reasons")
    if isinstance(reasons, list):
        yield tag("h3", "Calibration")
        yield tag("ul", *(tag("li", reason) for reason in reasons))


def _facts(run: Recorded) -> Markup:
    chosen = [[name, _setting(run, name)] for name in run.settings]
    came = [
        [_words(name.removesuffix("_bytes")), _mebibytes(value) if name in _SIZES else shown(value)]
        for name, value in run.summary.items()
        if isinstance(value, (int, float, str))
    ]
    parts = [tag("h3", "Settings"), table(f"Settings of {run.name}", ["setting", "value"], chosen)]
    if came:
        parts += [tag("h3", "Memory, speed and size"), table(f"What {run.name} came to", ["what", "value"], came)]
    return joined(parts)


def _setting(run: Recorded, name: str) -> str:
    """Return a setting as text: a number that was calibrated, where that was asked for."""
    value = run.settings.get(name)
    if value is None:
        found = run.calibration.get(name)
        return "none" if found is None else f"{shown(found)}, calibrated"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _mebibytes(count: Any) -> str:
    if number_in(count) is None:
        return "–"
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
