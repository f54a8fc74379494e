"""The command that measures speed and memory on the user's own model."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from zoquant.cli.flags import SOURCE, source_of, with_flags
from zoquant.cli.progress import waiting
from zoquant.cli.show import JSON, mebibytes, show_json, show_pairs, show_rows


@with_flags("model", *SOURCE)
def bench_command(
    given: dict[str, Any],
    batch_size: Annotated[int, typer.Option(help="Rows of the batch.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens a row.")] = 32,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are shown, quartiles in brackets.")] = 15,
    json: JSON = False,
) -> None:
    """Measure what a step of training costs beside plain forwards of as many rows, and the memory.

    Tokens are random. Step and forwards take turns, and their ratio is taken round by round, so that other work on the
    machine shows in its spread.

    Example: `zoquant bench model.gguf --batch-size 8 --length 64`
    """
    from zoquant.cli.bench.measure import measure

    for name, value, least in (("--batch-size", batch_size, 1), ("--length", length, 1), ("--rounds", rounds, 2)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}.")
    source = source_of(given)
    with waiting(f"measuring {source.model}", silent=json):
        found = measure(source, batch_size, length, rounds)
    if json:
        show_json(found)
        return
    here = found["machine"]
    pairs = {
        "machine": f"{here['processor']}, {here['threads']} threads, torch {here['torch']}, kernels {here['kernels']}",
        "batch": f"{batch_size} x {length} tokens, {rounds} rounds",
        "memory": f"{mebibytes(found['rss_loaded_bytes'])} when loaded, {mebibytes(found['rss_peak_bytes'])} at its "
        "peak, python and libraries included",
    }
    if found["gpu_peak_bytes"] is not None:
        pairs["memory of the GPU"] = f"{mebibytes(found['gpu_peak_bytes'])} at its peak"
    show_pairs(found["checkpoint"], pairs)
    columns = ["what moves", "views", "values", "step, s", "forwards, s", "step / forwards", "tokens a second"]
    show_rows("A step", columns, list(_rows(found["ways"])))


def _rows(ways: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for name, each in ways.items():
        if "skipped" in each:
            yield [name, each["skipped"], "", "", "", "", ""]
            continue
        times = [_figure(each[key]) for key in ("step_seconds", "forward_seconds", "overhead")]
        yield [name, f"{each['views']:,}", f"{each['trainable']:,}", *times, _figure(each["tokens_a_second"], 0)]


def _figure(values: Mapping[str, float], digits: int = 3) -> str:
    low, middle, high = (f"{values[name]:,.{digits}f}" for name in ("q1", "median", "q3"))
    return f"{middle} ({low} to {high})"
