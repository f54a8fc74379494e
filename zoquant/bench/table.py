"""What was measured as rows for people: the same on the terminal and in the documents."""

from collections.abc import Iterator, Mapping
from typing import Any

Row = tuple[str, str]
"""What a figure is called, and the figure."""


def rows(found: Mapping[str, Any]) -> list[Row]:
    """Return the rows of what `bench` returned."""
    parts = (_setting, _estimators, _input, _memory, _beside, _batched, _scaling, _forward, _peers)
    return [row for part in parts for row in part(found)]


def _setting(found: Mapping[str, Any]) -> Iterator[Row]:
    machine = found["machine"]
    yield "machine", f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"
    yield "kernels", str(machine["kernels"])
    batch = f"{found['batch']} x {found['length']} tokens, products in {found['compute_dtype']}"
    yield "batch", f"{batch}, {found['rounds']} rounds{', quick: no figures to keep' if found['quick'] else ''}"


def _estimators(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, each in found["estimators"].items():
        count = each["forwards"]
        yield f"step / {count} forwards, {name}", _spread(each["overhead"])
        yield f"tokens a second, {name}", _spread(each["tokens_a_second"], digits=0)
    first = found["estimators"]["two-point"]
    yield "step, two-point", _spread(first["step_seconds"], " s")
    yield "two forwards", _spread(first["forwards_seconds"], " s")


def _input(found: Mapping[str, Any]) -> Iterator[Row]:
    made = found["input"]
    yield f"input, share of a step, {made['rows']:,} rows", _spread(made["batch_over_step"], digits=5)


def _memory(found: Mapping[str, Any]) -> Iterator[Row]:
    memory, grown = found["memory"], found["growth"]
    yield "peak memory, training", mebibytes(memory["train_peak_bytes"])
    yield "peak memory, evaluating", mebibytes(memory["evaluate_peak_bytes"])
    yield "training / evaluating", f"{memory['train_over_evaluate']:.3f}"
    if "gpu_train_over_evaluate" in memory:
        yield "training / evaluating, memory of the GPU", f"{memory['gpu_train_over_evaluate']:.3f}"
    yield "load, peak over imports", mebibytes(memory["load_peak_over_imports_bytes"])
    yield f"growth of memory over {grown['steps']} steps", mebibytes(grown["rss_growth_bytes"])


def _beside(found: Mapping[str, Any]) -> Iterator[Row]:
    band, replay = found["bandwidth"], found["replay"]
    yield f"noise / copy bandwidth, {band['values']:,} values", _spread(band["noise_over_copy"])
    yield "write / copy bandwidth", _spread(band["write_over_copy"])
    yield "copy", _spread({k: v / 1e9 for k, v in band["copy_bytes_a_second"].items()}, " GB/s")
    yield f"replay, steps a second of {replay['values']:,} values", _spread(replay["steps_a_second"], digits=0)


def _batched(found: Mapping[str, Any]) -> Iterator[Row]:
    batched = found["batched"]
    if "skipped" in batched:
        yield "batched probes", batched["skipped"]
        return
    told = {"together": "directions on the whole batch", "each": "directions, one an example"}
    for name, what in told.items():
        each = batched[name]
        row = f"throughput / inference, {each['directions']} {what}, {each['rows']} rows"
        yield row, _spread(each["throughput_over_inference"])


def _scaling(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, points in found["scaling"].items():
        for each in points:
            what = f"{each['batch']} x {each['length']} tokens, {each['values']:,} values"
            yield f"step / two forwards by {name}, {what}", _spread(each["overhead"])


def _forward(found: Mapping[str, Any]) -> Iterator[Row]:
    for shape in found["forward"]:
        for dtype in ("float32", "bfloat16"):
            what = f"{dtype}, {shape['batch']} x {shape['length']} tokens"
            yield f"native / dense forward, {what}", _spread(shape[dtype]["native_over_dense"])


def _peers(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, each in found.get("peers", {}).items():
        if "skipped" in each:
            yield name, each["skipped"]
        else:
            yield f"step, {name}", _spread(each["step_seconds"], " s")
            yield f"step / two forwards, {name}", _spread(each["overhead"])


def mebibytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 2**20:,.1f} MiB"


def _spread(values: Mapping[str, float], unit: str = "", digits: int = 3) -> str:
    low, middle, high = (f"{values[name]:,.{digits}f}" for name in ("q1", "median", "q3"))
    return f"{middle}{unit} ({low} to {high})"
