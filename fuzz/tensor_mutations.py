"""Mutations of a safetensors file that leave it whole: what a parser of tensors' names, shapes and dtypes has to face.

The container's own checks let these files through, so that they reach the checks of the format.
"""

import json
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from fuzz.byte_mutations import mutate_bytes
from fuzz.choices import Choices
from fuzz.json_mutations import mutate_json

SIZES = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
    "F8_E5M2": 1, "F8_E8M0": 1, "U32": 4, "U16": 2, "U64": 8,
}  # fmt: skip
MOST = 1 << 18
"""Bytes that a tensor is let grow to."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def mutate_safetensors(content: bytes, choices: Choices) -> bytes:
    """Change one thing in a safetensors file: mostly a tensor, else its header or its bytes."""
    how = choices.below(8)
    start = 8 + int.from_bytes(content[:8], "little")
    if how == 0 or start > len(content):
        return mutate_bytes(content, choices)
    if how == 1:
        header = mutate_json(content[8:start], choices)
        return len(header).to_bytes(8, "little") + header + content[start:]
    try:
        metadata, tensors = _parse(content, start)
    except (ValueError, TypeError, KeyError, AttributeError):
        return mutate_bytes(content, choices)
    if how == 2:
        metadata = _mutate_metadata(metadata, choices)
    elif tensors:
        _mutate_tensor(tensors, choices)
    return _write(metadata, tensors)


def _mutate_metadata(metadata: dict[str, str], choices: Choices) -> dict[str, Any]:
    """Change the metadata, or the JSON within it that zoquant writes."""
    inner = metadata.get("zoquant")
    if isinstance(inner, str) and choices.below(4):
        return {
            **metadata,
            "zoquant": mutate_json(inner.encode("utf-8", "surrogatepass"), choices).decode("utf-8", "replace"),
        }
    return _parse_object(mutate_json(json.dumps(metadata).encode(), choices))


def _mutate_tensor(tensors: list[Stored], choices: Choices) -> None:
    place, how = choices.below(len(tensors)), choices.below(8)
    tensor, other = tensors[place], choices.one(tensors)
    if how == 0:
        del tensors[place]
    elif how == 1:
        tensors[place] = _resized(replace(tensor, dtype=choices.one(tuple(SIZES))))
    elif how == 2:
        tensors[place] = _resized(replace(tensor, shape=_other_shape(tensor.shape, choices)))
    elif how == 3:
        tensors[place] = replace(other, name=tensor.name)
    elif how == 4:
        suffix = choices.one(tensors).name.rpartition(".")[2]
        tensors[place] = replace(tensor, name=f"{tensor.name.rpartition('.')[0]}.{suffix}")
    elif how == 5:
        tensors.append(replace(tensor, name=choices.one((f"{tensor.name}x", f"x.{tensor.name}", "", ".", "weight"))))
    elif how == 6:
        tensors[place] = replace(tensor, name=other.name.replace(".0.", f".{choices.below(3)}."))
    else:
        tensors[place] = replace(tensor, data=_changed(tensor.data, choices))


def _other_shape(shape: tuple[int, ...], choices: Choices) -> tuple[int, ...]:
    how, sizes = choices.below(6), list(shape) or [1]
    place = choices.below(len(sizes))
    if how == 0:
        return shape[::-1]
    if how == 1:
        return (prod(shape),)
    if how == 2:
        sizes.insert(place, choices.one((0, 1, 2)))
    elif how == 3:
        del sizes[place]
    else:
        sizes[place] = choices.one((0, 1, 2, sizes[place] + 1, max(0, sizes[place] - 1), sizes[place] * 2))
    return tuple(sizes)


def _changed(data: bytes, choices: Choices) -> bytes:
    """Change numbers of a tensor, and leave it as long as it was."""
    return mutate_bytes(data, choices)[: len(data)].ljust(len(data), b"\xff")


def _resized(tensor: Stored) -> Stored:
    size = prod(tensor.shape) * SIZES[tensor.dtype]
    return replace(tensor, data=tensor.data[: min(size, MOST)].ljust(min(size, MOST), b"\x01"))


def _parse(content: bytes, start: int) -> tuple[dict[str, str], list[Stored]]:
    header = _parse_object(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = []
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        if entry["dtype"] not in SIZES or not all(type(n) is int and 0 <= n < MOST for n in entry["shape"]):
            raise ValueError("a mutation before this one left no tensor here")
        tensors.append(Stored(name, entry["dtype"], tuple(entry["shape"]), content[start + first : start + last]))
    return metadata if isinstance(metadata, dict) else {}, tensors


def _parse_object(text: bytes) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _write(metadata: dict[str, str], tensors: list[Stored]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [place, place + len(tensor.data)],
        }  # fmt: skip
        place += len(tensor.data)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensor.data for tensor in tensors)])
