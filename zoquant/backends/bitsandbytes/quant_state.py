"""The JSON that bitsandbytes packs into a tensor of bytes beside each 4-bit weight, read with every bound checked.

Source: bitsandbytes 0.50.2, functional.py (`QuantState.as_dict(packed=True)`), utils.py (`pack_dict_to_tensor`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from zoquant.checkpoint.folder import Folder

MAX_BYTES = 4096
BLOCKSIZES = tuple(1 << bits for bits in range(5, 13))
PREFIX = "quant_state.bitsandbytes__"
QUANT_TYPES = ("nf4", "fp4")


@dataclass(frozen=True)
class QuantState:
    """What the JSON says of one 4-bit matrix.

    Attributes:
        quant_type: `"nf4"` or `"fp4"`.
        blocksize: weights of the flattened matrix that share one absmax.
        rows: rows of the matrix.
        columns: columns of the matrix.
        nested_blocksize: numbers of absmax that share one second level; 0 where absmax is not nested.
        nested_offset: what is added to absmax after the second level.
    """

    quant_type: str
    blocksize: int
    rows: int
    columns: int
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def read_quant_state(folder: Folder, name: str) -> QuantState:
    """Read the JSON tensor `name`.

    Raises:
        CheckpointError: it is no JSON object, or a value is missing, of another type, or out of bounds.
    """
    content = _json(folder, name)

    def value(key: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        if not fits(content.get(key)):
            raise folder.error(f"{name}: {key}", expected, repr(content.get(key))[:80])
        return content[key]

    quant_type = name.rpartition(PREFIX)[2]
    value("quant_type", f"{quant_type!r}, as the tensor's name says", lambda it: it == quant_type)
    blocksize = value("blocksize", f"one of {BLOCKSIZES}", lambda it: type(it) is int and it in BLOCKSIZES)
    rows, columns = value("shape", "two counts, an even number of columns", _is_shape)
    if "nested_blocksize" not in content:
        return QuantState(quant_type, blocksize, rows, columns)
    nested = value("nested_blocksize", "a power of two up to 4096", lambda it: type(it) is int and it in BLOCKSIZES)
    offset = value("nested_offset", "a finite number", lambda it: type(it) in (int, float) and isfinite(it))
    return QuantState(quant_type, blocksize, rows, columns, nested, float(offset))


def _json(folder: Folder, name: str) -> Mapping[str, Any]:
    tensor = folder.tensor(name)
    if str(tensor.dtype) != "torch.uint8" or not 0 < tensor.nbytes <= MAX_BYTES:
        raise folder.error(name, f"at most {MAX_BYTES} bytes of JSON", f"{list(tensor.shape)} of {tensor.dtype}")
    try:
        content = json.loads(bytes(tensor.read().flatten().tolist()).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise folder.error(name, "JSON", str(error)[:80]) from error
    if not isinstance(content, dict):
        raise folder.error(name, "a JSON object", type(content).__name__)
    return content


def _is_shape(shape: Any) -> bool:
    counts = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)
    return counts and shape[1] % 2 == 0
