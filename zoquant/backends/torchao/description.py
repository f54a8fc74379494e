"""What the metadata of a safetensors file says of each of torchao's tensors, read with every bound checked.

Source: torchao 0.18.0, prototype/safetensors/safetensors_support.py (`flatten_tensor_state_dict`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoquant.checkpoint.folder import Folder

MAX_CHARACTERS = 16384
NATIVE = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor")
REFUSED = {
    "Int4TilePackedTo4dTensor": "its words are in the order of one GPU kernel's tiles",
    "Int4PlainInt32Tensor": "its words are in the order of a kernel for XPU or NPU",
    "Int4PreshuffledTensor": "its words are in the order of one GPU kernel",
    "MXTensor": "its scales are powers of two, and a step is not continuous",
    "NVFP4Tensor": "zoquant reads NVFP4 as compressed-tensors or ModelOpt write it",
}


@dataclass(frozen=True)
class Description:
    """One tensor subclass.

    Attributes:
        type: its class, one of `NATIVE`.
        block: rows and columns that share one scale; None where the file does not say.
        parts: the tensors within it that were stored, such as `"qdata"`.
        bits: the name of the codes' own dtype, such as `"int4"`; empty where the stored one says it.
    """

    type: str
    block: tuple[int, int] | None
    parts: tuple[str, ...]
    bits: str


def read_description(folder: Folder, name: str) -> Description | None:
    """Read the metadata of the parameter `name`; None for a plain tensor.

    Raises:
        CheckpointError: it is no JSON object, of a class that zoquant cannot run, or contradicts itself.
    """
    content = _json(folder, name)
    kind, data, parts = content.get("_type"), content.get("_data", {}), content.get("_tensor_data_names")
    if kind == "Tensor":
        return None
    if not isinstance(kind, str) or kind not in NATIVE:
        reason = REFUSED.get(str(kind), "zoquant does not know it")
        raise folder.error(name, f"one of {', '.join(NATIVE)}", f"{str(kind)[:60]}: {reason}")
    if not isinstance(data, dict) or not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise folder.error(name, "'_data' and '_tensor_data_names'", repr(content)[:80])
    if "act_pre_scale" in parts:
        raise folder.error(name, "a weight alone", "a scale of the activations besides, which zoquant does not follow")
    bits = data.get("target_dtype")
    bits = bits.get("_data") if isinstance(bits, dict) else ""
    return Description(kind, _block(folder, name, data), tuple(parts), bits if isinstance(bits, str) else "")


def _block(folder: Folder, name: str, data: Mapping[str, Any]) -> tuple[int, int] | None:
    block = data.get("block_size")
    if block in (None, []):
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in block):
        raise folder.error(f"{name}: block_size", "rows and columns of a block of a matrix", repr(block)[:80])
    return block[0], block[1]


def _json(folder: Folder, name: str) -> Mapping[str, Any]:
    text = folder.metadata[name]
    try:
        content = json.loads(text) if len(text) <= MAX_CHARACTERS else None
    except (ValueError, RecursionError) as error:
        raise folder.error(name, "JSON in the metadata of the file", str(error)[:80]) from error
    if not isinstance(content, dict):
        raise folder.error(name, "a JSON object in the metadata of the file", repr(text)[:80])
    return content
