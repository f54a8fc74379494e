"""The README of a run's folder: what was trained on what, what came of it, and how to load it.

The head is what the Hugging Face Hub reads of a model card.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoquant.errors import CheckpointError, reason_of
from zoquant.files.atomic_files import write_text
from zoquant.registry import own_package
from zoquant.tasks.rows.hub import HUB
from zoquant.training.outcome import step_time, warnings_of
from zoquant.training.run_folder import RunFolder

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_HOW = {
    "forward": "found with forward passes alone",
    "backward": "found along its gradient",
    "linear-probe": "found by a linear probe of the norm in front of the head, with forward passes alone",
}
_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")


def write_card(folder: RunFolder) -> Path:
    """Write `README.md` from the settings and the summary of a run, finished or interrupted, and return its path.

    Raises:
        CheckpointError: settings or summary are missing or damaged.
        WriteError: the file could not be written.
    """
    settings, summary = folder.read_settings(), folder.read_summary()
    try:
        text = _card(folder, settings, summary)
    except (AttributeError, LookupError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder.path}: settings or summary hold something else than a run writes: {reason_of(error)}."
        ) from error
    write_text(folder.card, text)
    return folder.card


def _card(folder: RunFolder, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    parts = [
        _head(settings),
        _what(settings, summary),
        _measured(summary),
        _table(["run", ""], _facts(folder, settings, summary)),
        _loading(settings, folder),
        f"Made with {own_package()}. The files of this folder:\n",
        _files(folder, settings, summary.get("best_step")),
    ]
    return "\n".join(parts)


def _head(settings: Mapping[str, Any]) -> str:
    """Return the block that the Hub reads; a base that is no name on the Hub is left out of it."""
    order = "first-order" if settings["gradient"] == "backward" else "zeroth-order"
    lines = ["---", "library_name: zoquant", f"tags: [zoquant, {order}, quantized, delta]"]
    if repository := _repository(settings["model"]):
        lines.append(f"base_model: {json.dumps(repository)}")
    return "\n".join([*lines, "---", ""])


def _repository(model: str) -> str | None:
    """Return the repository of a checkpoint's name, None if it is a path."""
    parts = model.split("/")
    name = "/".join(parts[:2])
    there = Path(model).expanduser().exists()
    return name if len(parts) in (2, 3) and _REPOSITORY.fullmatch(name) and not there else None


def _base(model: str) -> str:
    """Return how the card names the base: as on the Hub, or the name of the file without its folders."""
    return model if _repository(model) else Path(model).name


def _what(settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    base = _text(_base(settings["model"]))
    how = _HOW[settings["gradient"]]
    how += f", the last {count:,} steps with forward passes alone" if (count := settings.get("forward_steps")) else ""
    done = "" if summary["finished"] else " The run was interrupted before its last step."
    return (
        f"# {base}, tuned\n\nA delta for the quantized checkpoint **{base}** ({_text(summary['format'])}), "
        f"{how}: {summary['steps']:,} steps moved {summary['trainable']:,} values in "
        f"{summary['views']:,} views. The integer codes of the base stay as they are.{done}\n"
        + "".join(f"\n**{_text(warning)}**\n" for warning in warnings_of(summary))
    )


def _by_forwards(settings: Mapping[str, Any]) -> bool:
    """Whether the steps of the run were made of losses alone."""
    return bool(settings["gradient"] == "forward")


def _measured(summary: Mapping[str, Any]) -> str:
    """Return the table of what was measured; a column a metric."""
    test = f"test of step {summary.get('best_step')}"
    better = f"held-out of step {summary.get('better_step')}"
    found = {"held-out before": "eval_before", "held-out after": "eval_after", better: "better", test: "test"}
    measured = {when: summary[name] for when, name in found.items() if summary.get(name) is not None}
    if not measured:
        return "The run had no data to evaluate on.\n"
    names = list(dict.fromkeys(name for each in measured.values() for name in each if f"{name}_interval" in each))
    rows = [
        [when, *(_metric(each, name) for name in names), f"{each['examples']:,}"] for when, each in measured.items()
    ]
    return _table(["", *map(_text, names), "examples"], rows) + "\nIn brackets: 95 % confidence intervals.\n"


def _metric(found: Mapping[str, Any], name: str) -> str:
    if name not in found:
        return ""
    interval = found[f"{name}_interval"]
    return f"{found[name]:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _facts(folder: RunFolder, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> list[list[str]]:
    chosen = {**settings, **(folder.read_calibration() or {}), "roles": ", ".join(settings["roles"])}
    facts = {
        "data": _data(settings["data"]),
        "held-out data": _data(settings["eval_data"]) if settings.get("eval_data") else "none",
        **{name: settings.get(name) for name in ("task", "protocol", "objective", "reward")},
        **{
            name: json.dumps(settings[name], ensure_ascii=False)
            for name in ("template", "labels")
            if settings.get(name)
        },
        "steps x batch": f"{summary['steps']} x {settings['batch_size']}",
        **{name: chosen.get(name) for name in _numbers(settings)},
        "changed in the file": f"{summary['changed']:.1%} of the values that may move",
        "step": step_time(summary),
        "peak memory": f"{summary['rss_peak_bytes'] / 2**20:,.0f} MiB",
        "device": f"{summary['device']}, products in {summary['compute_dtype']}",
    }
    return [[name, _text(value)] for name, value in facts.items() if value not in (None, "")]


def _data(source: str) -> str:
    """Return how the card names data: as on the Hub, or the name of the file without its folders."""
    return source if source.startswith(HUB) else Path(source).name


def _numbers(settings: Mapping[str, Any]) -> Sequence[str]:
    """Return the settings of a step: a backward has neither probes nor an estimator, a linear probe no rate."""
    if settings["gradient"] == "linear-probe":
        return ("gradient", "seed")
    if _by_forwards(settings):
        return ("batches", "lr", "eps", "clip", "seed", "space", "estimator", "rule", "roles")
    return ("batches", "gradient", "lr", "clip", "seed", "space", "rule", "micro_batches", "checkpoint", "roles")


def _loading(settings: Mapping[str, Any], folder: RunFolder) -> str:
    base, delta = json.dumps(_base(settings["model"])), json.dumps(folder.path.resolve().name)
    return f"""
## Load it

```python
import zoquant

# delta: this folder, or its name on the Hub as owner/name. A base of other values is refused.
model, tokenizer = zoquant.load({base}, delta={delta})
zoquant.export({base}, delta={delta}, out="tuned")  # the same checkpoint, tuned, in its own format
```
"""


def _files(folder: RunFolder, settings: Mapping[str, Any], best: int | None) -> str:
    until = "" if best is None else f" until step {best}, which did best on held-out data and was tested"
    replay = "`zoquant replay`" if best is None else f"`zoquant replay --steps {best}`"
    reward = ", and its reward again, by `--reward`" if settings.get("reward") else ""
    told = {
        folder.delta: f"what training added to each value{until}",
        folder.trajectory: f"all of training: a seed and a derivative a step; {replay} makes the delta of it",
        folder.state: "where the run stands: deltas and what the rule remembers, for `--resume`",
        folder.best: "the delta of the step that did best on held-out data",
        folder.forward: "the forwards that followed: a run on what the gradient had left",
        folder.config: f"the run again: `zoquant train --config config.toml --out again`{reward}",
        folder.settings: "what decides the bytes, for `--resume`",
        folder.calibration: "the numbers that were chosen, and why",
        folder.micro_batches: "at which steps batches were halved, since memory ran out",
        folder.metrics: "a line a step and an evaluation",
        folder.summary: "what came of it",
        folder.samples: "what the model says of some held-out rows",
    }
    return _table(["file", ""], [[f"`{path.name}`", text] for path, text in told.items() if path.exists()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def _text(value: Any) -> str:
    """Return a value as text that Markdown and a terminal take for nothing else, on one line."""
    line = " ".join(str(value).encode("utf-8", "replace").decode("utf-8").split())
    seen = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return _SPECIAL.sub(r"\\\1", html.escape(seen, quote=False))
