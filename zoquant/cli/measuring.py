"""The command that measures speed and memory."""

from pathlib import Path
from typing import Annotated, Any

import typer

from zoquant.cli.app import JSON, app
from zoquant.cli.show import mebibytes, show_json, show_pairs


@app.command("bench")
def bench_command(
    model: Annotated[Path, typer.Argument(help="A checkpoint.")],
    batch: Annotated[int, typer.Option(help="Rows of the batch.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens a row.")] = 32,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are shown.")] = 15,
    json: JSON = False,
) -> None:
    """Measure training against inference of the same model, side by side.

    Example: `zoquant bench model.gguf --batch 16 --length 32`
    """
    from zoquant.bench import bench

    found = bench(model, batch=batch, length=length, rounds=rounds)
    if json:
        show_json(found)
        return
    memory, step, growth = found["memory"], found["step"], found["growth"]
    pairs: dict[str, Any] = {
        "machine": f"{found['machine']['processor']}, torch {found['machine']['torch']}",
        "kernels": found["machine"]["kernels"],
        "batch": f"{batch} x {length} tokens, products in {found['compute_dtype']}",
        "step / two forwards": _spread(step["overhead"], ""),
        "step": _spread(step["step_seconds"], " s"),
        "two forwards": _spread(step["two_forwards_seconds"], " s"),
        "writing all views once": _spread(step["write_seconds"], " s"),
        f"memory growth over {growth['steps']} steps": mebibytes(growth["rss_growth_bytes"]),
        "peak memory, training": mebibytes(memory["train_peak_bytes"]),
        "peak memory, evaluating": mebibytes(memory["evaluate_peak_bytes"]),
        "training / evaluating": f"{memory['train_over_evaluate']:.3f}",
        "load, peak over imports": mebibytes(memory["load_peak_over_imports_bytes"]),
    }
    for dtype in ("float32", "bfloat16"):
        forward = found["forward"][dtype]
        pairs[f"native / dense forward, {dtype}, 512 tokens"] = _spread(forward["native_over_dense"], "")
    show_pairs(f"zoquant bench {model.name}", pairs)


def _spread(values: dict[str, float], unit: str) -> str:
    return f"{values['median']:.3f}{unit} ({values['q1']:.3f} to {values['q3']:.3f})"
