"""zoquant's own layers: they hold the file's packed words and values, keep no cache, and run in any mode."""

from zoquant.native.affine import AffineWeight
from zoquant.native.codec import Codec, FieldSpec
from zoquant.native.dense import DenseWeight
from zoquant.native.experts import QuantExperts
from zoquant.native.layers import QuantEmbedding, QuantLinear, QuantWeight
from zoquant.native.packed import PackedWeight
from zoquant.native.table import TableWeight
from zoquant.native.values import Values
from zoquant.native.vector import VectorWeight
from zoquant.native.words import Codes, PackedWords, PlainCodes

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
    "TableWeight",
    "Values",
    "VectorWeight",
]
