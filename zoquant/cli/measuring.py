"""The command that measures speed and memory."""

from pathlib import Path
from typing import Annotated

import typer

from zoquant.cli.app import JSON, app
from zoquant.cli.show import console, show_json, show_rows


@app.command("bench")
def bench_command(
    model: Annotated[Path, typer.Argument(help="A checkpoint.")],
    batch: Annotated[int, typer.Option(help="Rows of the batch.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens a row.")] = 32,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are shown.")] = 15,
    quick: Annotated[bool, typer.Option("--quick", help="Three rounds and few steps: whether it runs.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="Also MeZO, QZO, LoRA and full fine-tuning.")] = False,
    derivatives: Annotated[
        bool, typer.Option("--derivatives", help="Also 200 derivatives against float32: 1,200 forwards, minutes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder that gets a JSON file with the device's name.")] = None,
    json: JSON = False,
) -> None:
    """Measure training against inference of the same model, side by side.

    Medians with quartiles. Ratios are taken round by round, so that other work on the machine shows in their spread.
    The targets are those of SmolLM2-135M Q4_1 on two cores; a quick run is not held to them.

    Example: `zoquant bench model.gguf --peers --derivatives --out benchmarks/results`
    """
    from zoquant.cli.bench.run import bench, save
    from zoquant.cli.bench.table import COLUMNS, rows

    if out is not None and not out.is_dir():
        raise ValueError(f"{out}: is no folder, expected the one that the results go to. Make it first.")
    found = bench(model, batch=batch, length=length, rounds=rounds, quick=quick, peers=peers, derivatives=derivatives)
    if json:
        show_json(found)
    else:
        show_rows(f"zoquant bench {model.name}", list(COLUMNS), [row.cells for row in rows(found)])
    if out is not None:
        path = save(found, out)
        if not json:
            console.print(f"Written to {path}")
