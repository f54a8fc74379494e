"""Layers over packed words: they decode as they multiply, and keep nothing dequantized.

Which file has which words is told by `backends`. Begin with `layers` and `packed`.
"""

from zoquant.native.codec import Codec, FieldSpec
from zoquant.native.dense import DenseWeight
from zoquant.native.experts import QuantExperts
from zoquant.native.layers import QuantEmbedding, QuantLinear, QuantWeight
from zoquant.native.packed import PackedWeight
from zoquant.native.scalar import AffineWeight, TableWeight
from zoquant.native.values import Values
from zoquant.native.vector import VectorWeight
from zoquant.native.words import Codes, PackedWords, PlainCodes, SharedWords

__all__ = [
    "AffineWeight",
    "Codec",
    "Codes",
    "DenseWeight",
    "FieldSpec",
    "PackedWeight",
    "PackedWords",
    "PlainCodes",
    "QuantEmbedding",
    "QuantExperts",
    "QuantLinear",
    "QuantWeight",
    "SharedWords",
    "TableWeight",
    "Values",
    "VectorWeight",
]
