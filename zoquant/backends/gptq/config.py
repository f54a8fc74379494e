"""What the config of a GPTQ checkpoint says of its layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoquant.backends.gptq.layout import BITS
from zoquant.checkpoint.folder import Folder

_MINUS_ONE = {"gptq": True, "gptq_v2": False, "gptq_p": False}
_PLANAR = "gptq_p"
"""GPTQModel's planar words: the same as `gptq_v2` but for 3, 5, 6 and 7 bits."""
_OVERRIDES = ("dynamic", "extra_config")
"""Where GPTQModel and AutoRound say what is different about some layers: pattern -> keys, or pattern -> False."""


@dataclass(frozen=True)
class Scheme:
    """How some layers are quantized.

    Attributes:
        bits: bits of a code.
        group_size: columns of a group; -1 for all of them.
        sym: whether every zero is the middle of the codes.
    """

    bits: int
    group_size: int
    sym: bool = False


@dataclass(frozen=True)
class GPTQConfig:
    """What a config says.

    Attributes:
        schemes: how a layer may be quantized, that of most layers first.
        minus_one: whether `qzeros` holds zero − 1.
        desc_act: whether `g_idx` may be a permutation.
        borrows: whether the ones were surely taken off whole words of zeros, as GPTQModel does.
    """

    schemes: tuple[Scheme, ...]
    minus_one: bool
    desc_act: bool
    borrows: bool = False


def read_config(folder: Folder) -> GPTQConfig:
    """Read the config of a checkpoint whose quant_method is gptq.

    Raises:
        CheckpointError: a key holds what no library writes, or the words are in the order of a kernel.
    """
    said = folder.quantization
    kind = said.get("checkpoint_format") or said.get("format") or "gptq"
    if not isinstance(kind, str) or kind not in _MINUS_ONE or said.get("is_marlin_format"):
        raise folder.error(
            "checkpoint_format", "gptq or gptq_v2; a kernel's own order of words has to be converted back", repr(kind)
        )
    schemes = read_schemes(folder, BITS)
    if kind == _PLANAR and any(scheme.bits == 3 for scheme in schemes):
        raise folder.error("checkpoint_format", "gptq or gptq_v2 for 3 bits", "gptq_p, whose words are planar")
    meta = said.get("meta")
    quantizer = str(meta.get("quantizer"))[:80] if isinstance(meta, Mapping) else ""
    return GPTQConfig(schemes, _MINUS_ONE[kind], bool(said.get("desc_act")), borrows="gptqmodel" in quantizer)


def read_schemes(folder: Folder, allowed: tuple[int, ...]) -> tuple[Scheme, ...]:
    """Return every scheme that a config names, the one of most layers first.

    Which layer takes which is told by the shapes of its tensors: the patterns of a config are never run.

    Raises:
        CheckpointError: a number of bits or a group size that cannot be.
    """
    said = folder.quantization
    found = [_scheme(folder, said, allowed)]
    for changes in _overrides(said):
        found.append(_scheme(folder, {**said, **changes}, allowed))
    return tuple(dict.fromkeys(found))


def _overrides(said: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what is different about some layers; layers of 16 bits or more are not quantized."""
    for name in _OVERRIDES:
        patterns = said.get(name)
        for changes in patterns.values() if isinstance(patterns, Mapping) else ():
            if isinstance(changes, Mapping) and not (isinstance(changes.get("bits"), int) and changes["bits"] >= 16):
                yield changes


def _scheme(folder: Folder, said: Mapping[str, Any], allowed: tuple[int, ...]) -> Scheme:
    bits, size = said.get("bits", said.get("w_bit")), said.get("group_size", said.get("q_group_size", -1))
    if type(bits) is not int or bits not in allowed:
        raise folder.error("bits", " or ".join(map(str, allowed)), repr(bits)[:40])
    if type(size) is not int or size < -1 or size == 0:
        raise folder.error("group_size", "a number of columns, or -1 for all of them", repr(size)[:40])
    return Scheme(bits, size, sym=said.get("sym") is True)
