"""The command that trains."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from zoquant.cli.flags import MOST, PANELS, config_of, panel_of, with_flags
from zoquant.cli.progress import reporting
from zoquant.cli.show import JSON, mebibytes, percent, score, show_json, show_pairs
from zoquant.training import finetune
from zoquant.training.config import keys
from zoquant.training.outcome import step_time, warnings_of
from zoquant.training.run_folder import RunFolder

INTERRUPTED = 130
"""The exit code after Ctrl-C, as of any command: `train ... && export ...` exports no part of a run."""


@with_flags(*sorted(keys(), key=lambda name: list(PANELS).index(panel_of(name))))
def train_command(
    given: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="The folder of the run; must not exist, unless --resume.", rich_help_panel=MOST)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML or YAML file that says what flags say.", rich_help_panel=MOST)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, to the same end.", rich_help_panel=MOST)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines instead of a live table.")] = False,
    json: JSON = False,
) -> None:
    """Fine-tune a checkpoint on rows of data. Ctrl-C saves; --resume goes on to the very same bytes.

    Example: `zoquant train model.gguf --data train.jsonl --eval-data test.jsonl
    --template "{sentence} It was {label}" --labels "0=terrible,1=great" --out run`

    The same run again: `zoquant train --config run/config.toml --out again`
    """
    from zoquant.distributed.launch import is_first
    from zoquant.report import write_report

    chosen, out = config_of(given, config, [] if out else ["out"]), out or Path()
    with reporting(quiet=quiet, silent=json or not is_first()) as on_progress:
        summary = finetune(chosen, out, resume=resume, on_progress=on_progress)
    if is_first():
        write_report([out])
        if json:
            show_json(summary)
        else:
            _show_end(summary, chosen.model, out)
    if not summary["finished"]:
        raise typer.Exit(INTERRUPTED)


def _show_end(summary: dict[str, Any], model: str, out: Path) -> None:
    """Print what a run came to, what speaks against it, and what to do next."""
    show_summary(summary, out)
    against = warnings_of(summary)
    for warning in against:
        print(warning)
    if not summary["finished"]:
        print(f"Interrupted after {summary['steps']} steps; all is saved. The same command with --resume goes on.")
    elif not against:
        folder, tuned = RunFolder(out), "tuned.gguf" if Path(model).suffix == ".gguf" else "tuned"
        delta = folder.best if "better" in summary else folder.delta
        if "better" in summary:
            print(f"Step {summary['better_step']} was measured better than the end; its delta is {delta}.")
        words = ["zoquant", "export", model, "--delta", str(delta), "--out", tuned]
        print(f"Next: {shlex.join(words)}")


def show_summary(summary: dict[str, Any], out: Path) -> None:
    """Print what a run came to as a short table."""
    pairs: dict[str, Any] = {
        "model": f"{summary['model']} ({summary['format']})",
        "trained": f"{summary['trainable']:,} values in {summary['views']} views, {summary['steps']} steps",
        "changed in the file": f"{percent(summary['changed'])} of these values",
    }
    for when in ("before", "after"):
        found = summary[f"eval_{when}"]
        if found is not None:
            pairs[f"held-out {when}"] = score(found)
    if "better" in summary:
        pairs[f"held-out, step {summary['better_step']}"] = score(summary["better"])
    if "test" in summary:
        pairs[f"test of step {summary['best_step']}"] = score(summary["test"])
    if summary["skipped"]:
        pairs["skipped"] = f"{summary['skipped']} steps without a finite loss; metrics.jsonl says why"
    pairs |= {
        "step": step_time(summary),
        "memory": _memory(summary),
        "delta": mebibytes(summary["delta_bytes"]),
        **({"trajectory": mebibytes(summary["trajectory_bytes"])} if summary["trajectory_bytes"] else {}),
        "report": out / "report.html",
        "files": out,
    }
    if summary["export_path"] is not None:
        pairs["tuned checkpoint"] = summary["export_path"]
    show_pairs("zoquant", pairs)


def _memory(summary: dict[str, Any]) -> str:
    """Return the peak of a run beside what was estimated before it began."""
    peak, estimate = summary["memory_peak_bytes"], summary["memory_estimate_bytes"]
    return f"{mebibytes(peak)} at its peak" + ("" if estimate is None else f", estimated at most {mebibytes(estimate)}")
