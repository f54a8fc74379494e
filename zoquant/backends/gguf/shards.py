"""A model in one GGUF file or in several: any of its shards stands for all.

The first shard has the metadata, every shard has a part of the tensors, and `split.*` says which part.

Source: llama.cpp `llama_split_path`, tools/gguf-split; gguf-py 0.19 `GGUFWriter.add_shard_kv_data`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoquant.backends.gguf.header import Header, TensorInfo, read_header, refusal
from zoquant.files.safe_paths import refuse_stray

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_REMEDY = "Get all shards of one model again."
_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def read_model(path: Path) -> Header:
    """Read the headers of all files of a model as one.

    Args:
        path: the file, or any of its shards.

    Returns:
        The metadata of the first shard, the tensors of all, and their size together.

    Raises:
        CheckpointError: a shard is missing, damaged, or belongs to another model; it is named.
    """
    headers = _headers(path)
    if len(headers) == 1:
        return headers[0]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise tensor.error("it once", f"it in {tensors[name].file.name}, too", _REMEDY)
            tensors[name] = tensor
    said = headers[0].metadata.get(_TENSORS)
    if said != len(tensors):
        raise refusal(headers[0].path, f"key {_TENSORS!r}", f"{len(tensors)}, as the shards hold", repr(said), _REMEDY)
    return Header(headers[0].path, sum(header.size for header in headers), headers[0].metadata, tensors)


def shard_paths(path: Path) -> Sequence[Path]:
    """Return all files of a model.

    Raises:
        CheckpointError: see `read_model`.
    """
    return [header.path for header in _headers(path)]


def _headers(path: Path) -> list[Header]:
    header = read_header(path)
    count = _whole(header, _COUNT, 1)
    if count == 1:
        return [header]
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        expected = f"a name that ends in -00001-of-{count:05}.gguf, as every shard of {count} has"
        raise refusal(path, "the name of the file", expected, repr(path.name), "Rename the file.")
    headers = []
    for number in range(count):
        place = path.with_name(f"{match[1]}-{number + 1:05}-of-{match[3]}.gguf")
        if not place.is_file():
            raise refusal(place, f"shard {number + 1} of {count}", "a file", "none", "Get that file, too.")
        if place != path:
            refuse_stray(path.parent, place)
        shard = header if place == path else read_header(place)
        for key, expected_number in ((_COUNT, count), (_NO, number)):
            if _whole(shard, key, -1) != expected_number:
                raise refusal(place, f"key {key!r}", str(expected_number), repr(shard.metadata.get(key)), _REMEDY)
        headers.append(shard)
    return headers


def _whole(header: Header, key: str, default: int) -> int:
    value: Any = header.metadata.get(key, default)
    if not isinstance(value, int) or not -1 <= value < 1 << 16:
        raise refusal(header.path, f"key {key!r}", "a whole number of shards", repr(value)[:80], _REMEDY)
    return max(value, 1) if key == _COUNT else value
