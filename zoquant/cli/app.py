"""The commands that look at things: backends, inspect, eval, export, replay. Training has a file of its own."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zoquant.cli.flags import SOURCE, TASK, config_of, with_flags
from zoquant.cli.show import (
    PrintableFormatter,
    mebibytes,
    percent,
    score,
    show_error,
    show_json,
    show_pairs,
    show_rows,
)
from zoquant.errors import ZoquantError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fine-tune quantized models with forward passes alone. Integer codes stay, scales move, and the checkpoint "
    "keeps its format and size.",
)

JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]


def main() -> None:
    """Run the command line; an error that zoquant knows ends it with one line and exit code 2."""
    from zoquant.cli import checking, measuring, report, training  # noqa: F401  (they register their commands)

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    log = logging.getLogger("zoquant")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        app()
    except (ZoquantError, ValueError) as error:
        if "--json" in sys.argv:
            show_json({"error": type(error).__name__, "message": str(error)})
        show_error(str(error))
        sys.exit(2)
    finally:
        log.removeHandler(handler)


@app.command("backends")
def backends_command(json: JSON = False) -> None:
    """List what zoquant can train: layer classes of live models, and formats of checkpoint files.

    Nothing is imported for it. A package adds its own with an entry point.
    """
    from zoquant.registry import list_backends, list_formats

    classes = [
        {"class": c.name, "plugin": c.target, "package": c.package, "installed": c.installed}
        for c in list_backends().values()
    ]
    files = [{"format": c.name, "plugin": c.target, "package": c.package} for c in list_formats().values()]
    if json:
        show_json({"backends": classes, "formats": files})
        return
    rows = [[c["class"], c["package"], "yes" if c["installed"] else "no"] for c in classes]
    show_rows("Layers of live models", ["class", "served by", "library installed"], rows)
    show_rows("Checkpoint files", ["format", "served by"], [[f["format"], f["package"]] for f in files])


@app.command("inspect")
def inspect_command(path: Annotated[Path, typer.Argument(help="A checkpoint.")], json: JSON = False) -> None:
    """Show what is in a checkpoint and what training would move, from its headers alone.

    Example: `zoquant inspect model.gguf`
    """
    from zoquant.checkpoint.inspection import inspect

    found = inspect(path)
    if json:
        show_json(found)
        return
    memory = found["training_bytes"]
    pairs: dict[str, Any] = {
        "format": found["format"],
        "architecture": found["architecture"],
        "size": mebibytes(found["bytes"]),
        "quantized layers": found["layers"],
        "parameters": f"{found['parameters']:,}",
        "trainable scales": f"{found['trainable']:,} ({percent(found['trainable_share'])} of the parameters)",
        "memory to train": f"{mebibytes(memory['total_without_activations'])} and what a forward of your batch takes",
    }
    pairs |= {f"runtime {name}": why for name, why in found["runtimes"].items()}
    show_pairs(str(path), pairs)
    show_rows("Tensors", ["type", "count"], [[kind, count] for kind, count in found["types"].items()])
    views = [[kind, v["views"], f"{v['values']:,}"] for kind, v in found["views"].items()]
    show_rows("Continuous values", ["role and dtype", "views", "values"], views)
    for note in found["notes"]:
        show_pairs("Note", {"": note})


@app.command("eval")
@with_flags("model", "data", *TASK, "protocol", *SOURCE)
def eval_command(
    given: dict[str, Any],
    shots: Annotated[int, typer.Option(help="Worked examples before every prompt; 0 is zero-shot.")] = 0,
    shots_from: Annotated[str | None, typer.Option(help="Rows to draw them from. Not given: the train split.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws of --shots and --protocol.")] = 0,
    delta: Annotated[
        str | None, typer.Option(help="What training saved: a delta, a run's folder or owner/name.")
    ] = None,
    json: JSON = False,
) -> None:
    """Measure a checkpoint on rows with known answers, zero-shot or with worked examples.

    Example: `zoquant eval model.gguf --data test.jsonl --template "{sentence} It was {label}"
    --labels "0=terrible,1=great" --delta run`
    """
    from zoquant.training.finetune import evaluate, evaluation_summary

    chosen = config_of(given)
    found = evaluate(
        chosen.source, chosen.data, chosen.asked, delta,
        protocol=chosen.protocol, shots=shots, shots_from=shots_from, seed=seed,
    )  # fmt: skip
    if json:
        show_json(evaluation_summary(found))
        return
    pairs: dict[str, Any] = {"found": score(found.to_dict()), "examples": found.examples}
    pairs |= {f"wrote {number}": sample.text for number, sample in enumerate(found.samples[:3], 1)}
    show_pairs(f"{chosen.model}, {shots} worked examples" if shots else chosen.model, pairs)


@app.command("export")
def export_command(
    base: Annotated[Path, typer.Argument(help="The checkpoint that the training started from.")],
    delta: Annotated[str, typer.Option(help="What the training saved: a delta, the folder of a run, or owner/name.")],
    out: Annotated[Path, typer.Option(help="The new checkpoint; must not exist.")],
    json: JSON = False,
) -> None:
    """Write the tuned checkpoint: a copy of the base in which only the moved values differ.

    Example: `zoquant export model.gguf --delta run/delta.safetensors --out tuned.gguf`
    """
    from zoquant.checkpoint.export import export

    path = export(base, delta=delta, out=out)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if json:
        show_json({"export_path": str(path), "bytes": size})
        return
    show_pairs("Exported", {"checkpoint": path, "size": mebibytes(size)})


@app.command("replay")
def replay_command(
    base: Annotated[Path, typer.Argument(help="The checkpoint that the training started from.")],
    trajectory: Annotated[Path, typer.Argument(help="The trajectory that the training saved.")],
    out: Annotated[Path, typer.Option(help="The delta to write; must not exist.")],
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps: the model as it was then.")] = None,
    json: JSON = False,
) -> None:
    """Turn a trajectory into its delta without a single forward pass.

    Example: `zoquant replay model.gguf run/trajectory.safetensors --out delta.safetensors --steps 200`
    """
    from zoquant.checkpoint.replay_views import recorded_views
    from zoquant.files.atomic_files import refuse_existing
    from zoquant.record.delta import save_delta
    from zoquant.record.replay import replay
    from zoquant.record.trajectory import Trajectory

    refuse_existing(out)
    recorded = Trajectory.load(trajectory)
    views = recorded_views(base, recorded)
    done = len(replay(recorded, views, steps=steps))
    save_delta(out, views)
    result = {"delta": str(out), "steps": done, "bytes": out.stat().st_size}
    if json:
        show_json(result)
        return
    show_pairs("Replayed", {"delta": out, "steps": done, "size": mebibytes(out.stat().st_size)})
