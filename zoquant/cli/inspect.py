"""The command that shows what is in a checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoquant.cli.show import JSON, mebibytes, percent, printable, show_json, show_pairs, show_rows


def inspect_command(
    path: Annotated[Path, typer.Argument(help="A checkpoint.")],
    keys: Annotated[bool, typer.Option("--keys", help="List every key: what --include and --exclude match.")] = False,
    json: JSON = False,
) -> None:
    """Show what is in a checkpoint and what training would move, from its headers alone.

    Example: `zoquant inspect model.gguf`
    """
    from zoquant.checkpoint.inspection import inspect, list_keys

    if keys:
        listed = list_keys(path)
        if json:
            show_json({"path": str(path), "keys": listed})
        else:
            for each in listed:
                print(printable(f"{each['key']}  {each['role']} {each['dtype']} {each['shape']}"))
        return
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
