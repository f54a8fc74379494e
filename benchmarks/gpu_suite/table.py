"""What was measured as a few lines for people."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu_suite.targets import targets

_RATIOS = ("packed_over_decoded", "packed_over_dense")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a short table of whatever was measured; the targets come last."""
    yield f"{found['machine']['processor']}, torch {found['machine']['torch']}, {found['machine']['kernels']}"
    if "checks" in found:
        wrong = [name for name, same in found["checks"].items() if not same]
        verdict = f"{', '.join(wrong)} DIFFER" if wrong else "all agree"
        yield f"against the CPU: {len(found['checks'])} checks, {verdict}"
    if "multipliers" in found:
        yield "products: " + ", ".join(f"{name} by {who}" for name, who in found["multipliers"].items())
    for name, each in found.get("products", {}).items():
        yield f"{name}: {_product(each)}{_best(each)}"
    for name, case in found.get("cases", {}).items():
        yield f"{name}: {case['skipped']}" if "skipped" in case else f"{name}: {_case(case)}"
    if not found["tiny"]:
        yield from map(str, targets(found))


def _product(each: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{pair.replace('_', ' ')} {middle(each[pair])}" for pair in _RATIOS if pair in each)
    return f"{each['product_seconds']['median'] * 1e6:.0f} µs, {each['gb_a_second']:.0f} GB/s, {ratios}"


def _case(case: Mapping[str, Any]) -> str:
    ratios = [
        f"{what.replace('_', ' ')}, {batch}: {middle(each)}"
        for batch in ("batch 1", "batch 16")
        for what, each in case.get(batch, {}).items()
        if what not in ("step_seconds", "not_recorded")
    ]
    return (
        f"{case['weights'] / 1e9:.2f} billion weights, AdamW bf16 {case['adamw_bf16_gb']:.1f} GB; {'; '.join(ratios)}"
    )


def _best(each: Mapping[str, Any]) -> str:
    """Return the tile that is faster than the chosen one, if there is any."""
    tiles = {name: found["median"] for name, found in each["tiles"].items()}
    best = min(tiles, key=lambda name: tiles[name], default=None)
    return f"; {best} would take {tiles[best]:.2f} of the time" if best is not None and tiles[best] < 1 else ""


def middle(values: Mapping[str, float]) -> str:
    """Return a median as people read it."""
    return "nan" if math.isnan(values["median"]) else f"{values['median']:.3f}"
