"""Codecs of the ggml block types."""

from collections.abc import Mapping

from zoquant.backends.gguf.blocks import iq, k_quants, legacy, nibble, ternary
from zoquant.backends.gguf.blocks.base import BlockCodec

CODECS: Mapping[str, BlockCodec] = {
    codec.name: codec for family in (legacy, k_quants, iq, nibble, ternary) for codec in family.CODECS
}
"""ggml's name of a type -> its codec."""

__all__ = ["CODECS", "BlockCodec"]
