"""The command that writes a tuned checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from zoquant.cli.show import JSON, mebibytes, show_json, show_pairs


def export_command(
    base: Annotated[Path, typer.Argument(help="The checkpoint that the training started from.")],
    delta: Annotated[str, typer.Option(help="What the training saved: a delta, the folder of a run, or owner/name.")],
    out: Annotated[Path, typer.Option(help="The new checkpoint; must not exist.")],
    json: JSON = False,
) -> None:
    """Write the tuned checkpoint: a copy of the base in which only the moved values differ.

    Example: `zoquant export model.gguf --delta run/delta.safetensors --out tuned.gguf`
    """
    from zoquant.checkpoint.exporting import export_counted
    from zoquant.cli.progress import waiting

    with waiting(f"exporting to {out}", silent=json):
        path, values, changed = export_counted(base, delta=delta, out=out)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if json:
        show_json({"export_path": str(path), "bytes": size, "values": values, "changed": changed})
        return
    show_pairs(
        "Exported", {"checkpoint": path, "size": mebibytes(size), "changed": f"{changed:,} of {values:,} values"}
    )
