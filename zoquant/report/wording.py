"""How the page says a value."""

from typing import Any

from zoquant.report.run_reading import number_in


def shown(value: Any) -> str:
    """Return a number with four digits that count, and anything else as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def words(name: str) -> str:
    """Return the name of a metric or a number as people write it."""
    return name.replace("_", " ")


def mebibytes(count: Any) -> str:
    """Return a number of bytes, a dash where it is none."""
    if number_in(count) is None:
        return "–"
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
