"""Checkpoint folders as transformers writes them: config.json and tensors in safetensors files, one or many."""

from zoquant.checkpoint.folder.format import FolderFormat
from zoquant.checkpoint.folder.layout import (
    POWER_NOTE,
    AffineLayout,
    LaidMatrix,
    Layout,
    TableLayout,
    layouts_that_fit,
)
from zoquant.checkpoint.folder.matrix import (
    DENSE,
    MadeMatrix,
    StoredMatrix,
    refuse_experts,
    refuse_leftovers,
    with_attention,
)
from zoquant.checkpoint.folder.reading import Folder, open_folder
from zoquant.checkpoint.folder.stored_codes import SharedCodes, StoredCodes
from zoquant.checkpoint.folder.stored_numbers import (
    MATRIX,
    POWERS,
    ROW,
    PackedZeros,
    StoredNumbers,
    power_of_two,
    reciprocal,
)
from zoquant.checkpoint.folder.tokenizer import build_tokenizer
from zoquant.files.tensors import StoredTensor

__all__ = [
    "DENSE",
    "MATRIX",
    "POWERS",
    "POWER_NOTE",
    "ROW",
    "AffineLayout",
    "Folder",
    "FolderFormat",
    "LaidMatrix",
    "Layout",
    "MadeMatrix",
    "PackedZeros",
    "SharedCodes",
    "StoredCodes",
    "StoredMatrix",
    "StoredNumbers",
    "StoredTensor",
    "TableLayout",
    "build_tokenizer",
    "layouts_that_fit",
    "open_folder",
    "power_of_two",
    "reciprocal",
    "refuse_experts",
    "refuse_leftovers",
    "with_attention",
]
