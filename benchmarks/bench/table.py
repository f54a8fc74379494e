"""What was measured as rows for people, with its targets: the same on the terminal and in the documents."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.bench.target import Side, Target

COLUMNS = ("figure", "measured", "target", "verdict")

_NAMES = {
    "native_activations": "native with bfloat16 activations",
    "dense_float32": "dense float32",
    "dense_bfloat16": "dense bfloat16",
}


class Row(NamedTuple):
    """What a figure is called, the figure, and what was aimed at, if anything."""

    figure: str
    measured: str
    target: Target | None = None

    @property
    def cells(self) -> list[str]:
        """The texts of `COLUMNS`."""
        aim = ["", ""] if self.target is None else [self.target.wanted, self.target.verdict]
        return [self.figure, self.measured, *aim]


def rows(found: Mapping[str, Any]) -> list[Row]:
    """Return the rows of what `bench` returned. A quick run has no targets: its figures are not to be kept."""
    parts = (
        _setting, _estimators, _input, _memory, _memory_of_peers, _beside, _batched, _scaling, _forward, _derivatives,
        _peers,
    )  # fmt: skip
    made = [row for part in parts for row in part(found)]
    return [row._replace(target=None) for row in made] if found["quick"] else made


def _setting(found: Mapping[str, Any]) -> Iterator[Row]:
    machine = found["machine"]
    yield Row("machine", f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}")
    yield Row("kernels", str(machine["kernels"]))
    batch = f"{found['batch']} x {found['length']} tokens, products in {found['compute_dtype']}"
    yield Row("batch", f"{batch}, {found['rounds']} rounds{', quick: no figures to keep' if found['quick'] else ''}")


def _estimators(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, each in found["estimators"].items():
        count = each["forwards"]
        figure = f"step / {count} forwards, {name}"
        yield _aimed(figure, each["overhead"], "at most", 1.03, 1) if count == 2 else _plain(figure, each["overhead"])
        yield _plain(f"tokens a second, {name}", each["tokens_a_second"], digits=0)
    first = found["estimators"]["two-point"]
    yield _plain("step, two-point", first["step_seconds"], " s")
    yield _plain("two forwards", first["forwards_seconds"], " s")


def _input(found: Mapping[str, Any]) -> Iterator[Row]:
    made = found["input"]
    figure = f"input, share of a step of {made['subspace']}, {made['rows']:,} rows"
    yield _aimed(figure, made["batch_over_step"], "at most", 0.02, 0, digits=5)
    yield _plain(f"step of {made['subspace']}, {made['values']:,} values, with its input", made["step_seconds"], " s")


def _memory(found: Mapping[str, Any]) -> Iterator[Row]:
    memory, grown = found["memory"], found["growth"]
    yield Row("peak memory, training all views", mebibytes(memory["train_peak_bytes"]))
    yield Row("peak memory, evaluating", mebibytes(memory["evaluate_peak_bytes"]))
    if (peak := memory.get("default_peak_bytes")) is not None:
        yield Row("peak memory, training as zoquant train", mebibytes(peak))
    for kind in ("", "gpu_"):
        if (share := memory.get(f"{kind}train_over_evaluate")) is not None:
            figure = f"training all views / evaluating, {'peak memory' if not kind else 'memory of the GPU'}"
            yield Row(figure, f"{share:.3f}", Target(figure, "at most", 1.03, share, 1))
    if (share := memory.get("default_over_evaluate")) is not None:
        figure = "training as zoquant train / evaluating as many rows, peak memory"
        yield Row(figure, f"{share:.3f}", Target(figure, "at most", 1.03, share, 1))
    yield Row("load, peak over imports", mebibytes(memory["load_peak_over_imports_bytes"]))
    yield Row(f"growth of memory over {grown['steps']} steps", mebibytes(grown["rss_growth_bytes"]))


def _memory_of_peers(found: Mapping[str, Any]) -> Iterator[Row]:
    memory = found["memory"]
    for name, each in memory.get("peers", {}).items():
        figure, kind = f"peak memory, {name}", "gpu_" if "gpu_train_peak_bytes" in each else ""
        if "skipped" in each:
            yield Row(figure, each["skipped"])
            continue
        peak, ours = each[f"{kind}train_peak_bytes"], memory[f"{kind}train_peak_bytes"]
        yield Row(figure, f"{mebibytes(peak)}, {peak / ours:.2f} x zoquant's")


def _beside(found: Mapping[str, Any]) -> Iterator[Row]:
    band, replay = found["bandwidth"], found["replay"]
    yield _plain(f"noise / copy bandwidth, {band['values']:,} values", band["noise_over_copy"])
    yield _plain("write / copy bandwidth", band["write_over_copy"])
    yield _plain("copy", {k: v / 1e9 for k, v in band["copy_bytes_a_second"].items()}, " GB/s")
    figure = f"replay, steps a second of {replay['values']:,} values"
    yield _aimed(figure, replay["steps_a_second"], "at least", 1000, digits=0)


def _batched(found: Mapping[str, Any]) -> Iterator[Row]:
    batched = found["batched"]
    if "skipped" in batched:
        yield Row("probes of rows and columns", batched["skipped"])
        return
    told = {
        "together": "directions on the whole batch",
        "each": "directions, one an example",
        "default": "directions, one an example, as zoquant train",
    }
    for name, what in told.items():
        each = batched[name]
        figure = f"throughput / inference, {each['directions']} {what}, {each['rows']} rows"
        yield _aimed(figure, each["throughput_over_inference"], "at least", 0.95, 1)


def _scaling(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, points in found["scaling"].items():
        for each in points:
            what = f"{each['batch']} x {each['length']} tokens, {each['values']:,} values"
            row = _plain(f"step / two forwards by {name}, {what}", each["overhead"])
            yield row._replace(measured=f"{row.measured}, {each['step_seconds']['median']:.3f} s a step")


def _forward(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of the forwards; the targets are those of the first shape, the batch of the bench, on a CPU."""
    for number, shape in enumerate(found["forward"]):
        tokens = f"{shape['batch']} x {shape['length']} tokens"
        if "skipped" in shape:
            yield Row(f"native / dense forward, {tokens}", shape["skipped"])
            continue
        for name, bound in (("float32", 0.5), ("bfloat16", 1.1), ("activations", 1.1)):
            figure, value = _against_dense(shape, name, tokens)
            aimed = number == 0 and found["machine"]["device"] == "cpu"
            yield _aimed(figure, value, "at most", bound) if aimed else _plain(figure, value)
        in_float32 = f"native / dense forward, both in float32, {tokens}"
        yield _plain(in_float32, shape["native_float32_over_dense_float32"])
        for name in ("native", "native_activations", "dense_float32", "dense_bfloat16"):
            yield _plain(f"forward, {_NAMES.get(name, name)}, {tokens}", shape[f"{name}_seconds"], " s")


def _against_dense(shape: Mapping[str, Any], name: str, tokens: str) -> tuple[str, Mapping[str, float]]:
    if name == "activations":
        figure = f"native with bfloat16 activations / dense bfloat16 forward, {tokens}"
        return figure, shape["native_activations_over_dense_bfloat16"]
    return f"native / dense {name} forward, {tokens}", shape[f"native_over_dense_{name}"]


def _derivatives(found: Mapping[str, Any]) -> Iterator[Row]:
    if (each := found.get("derivatives")) is None:
        return
    for path, what in (("products", "products"), ("activations", "products and activations")):
        figure = f"derivatives of {each['probes']} probes, {what} in {each['compute_dtype']} against float32"
        correlation = each[path]["correlation"]
        target = Target(f"{figure}, correlation", "at least", 0.99, correlation, 1)
        yield Row(target.name, f"{correlation:.4f}", target)
        yield Row(f"{figure}, relative error", f"{each[path]['relative_error']:.3f}")


def _peers(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, each in found.get("peers", {}).items():
        if "skipped" in each:
            yield Row(f"step, {name}", each["skipped"])
        else:
            yield _plain(f"step, {name}", each["step_seconds"], " s")
            yield _plain(f"step / two forwards, {name}", each["overhead"])


def mebibytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 2**20:,.1f} MiB"


def _plain(figure: str, values: Mapping[str, float], unit: str = "", digits: int = 3) -> Row:
    low, middle, high = (f"{values[name]:,.{digits}f}" for name in ("q1", "median", "q3"))
    return Row(figure, f"{middle}{unit} ({low} to {high})")


def _aimed(
    figure: str,
    values: Mapping[str, float],
    side: Side,
    bound: float,
    floor: float | None = None,
    digits: int = 3,
) -> Row:
    target = Target(figure, side, bound, values["median"], floor)
    return _plain(figure, values, digits=digits)._replace(target=target)
