"""The sha256 of rows, wherever they come from."""

import hashlib
import json
from collections.abc import Sequence

from zoquant.tasks.rows.row import Row


def rows_sha256(rows: Sequence[Row]) -> str:
    """Return the sha256 of rows in their order, in hexadecimal digits; the order of their columns does not count."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
