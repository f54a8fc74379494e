"""What was aimed at, beside what was measured."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.bench.target import Target


def targets(found: Mapping[str, Any]) -> Iterator[Target]:
    """Yield every target that the parts in `found` speak of."""
    if "noise" in found:
        share = found["noise"]["rademacher"]["median"]
        yield Target("noise, perturbation and cast / copy bandwidth", "at least", 0.8, share)
    for name, each in found.get("products", {}).items():
        if not name.endswith(" 1024 tokens"):
            yield Target(f"packed / decoded product, {name}", "at most", 1.0, each["packed_over_decoded"]["median"])
    for name, case in found.get("cases", {}).items():
        if "skipped" not in case:
            yield from _of_case(name, case)


def _of_case(name: str, case: Mapping[str, Any]) -> Iterator[Target]:
    yield Target(f"peak memory, GB, {name}", "at most", case["limit_gb"], case["train_peak_gb"])
    if not case["compared_with_adamw"]:
        return
    yield Target(f"AdamW bf16 / zoquant, {name}", "at least", 18, case.get("adamw_over_zoquant"))
    for batch in ("batch 1", "batch 16"):
        yield Target(f"step / two forwards, {batch}, {name}", "at most", 1.03, case[batch]["overhead"]["median"])
