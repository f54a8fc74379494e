"""JSON of strangers: it may not be deep, nor made of so many values that they fill the memory."""

import json
from collections.abc import Callable
from typing import Any

MAX_VALUES = 1 << 22
"""Values of one text: half a million tensors' entries in a header. A value takes some tens of bytes once it is read."""


def parse_json(text: str | bytes, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse a text; `pairs` makes an object of its names and values, None makes a dict.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deep, or has more than `MAX_VALUES` values.
    """
    whole = text.decode("utf-8") if isinstance(text, bytes) else text
    values = whole.count(",") + whole.count("[") + whole.count("{")
    if values > MAX_VALUES:
        raise ValueError(f"about {values} values, expected at most {MAX_VALUES}")
    try:
        return json.loads(whole, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("values nested too deep") from error
