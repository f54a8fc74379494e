"""zoquant's own layers: they hold the file's packed words and values, keep no cache, and run in any mode."""

from zoquant.native.codec import Codec, FieldSpec
from zoquant.native.layers import QuantEmbedding, QuantLinear, QuantWeight

__all__ = ["Codec", "FieldSpec", "QuantEmbedding", "QuantLinear", "QuantWeight"]
