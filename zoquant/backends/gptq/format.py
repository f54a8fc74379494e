"""Checkpoints that AutoGPTQ and GPTQModel write: tensors in `layout`, the config in `config`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from zoquant.backends.gptq.config import GPTQConfig, Scheme, read_config
from zoquant.backends.gptq.layout import GPTQZeros, gptq_layout
from zoquant.backends.gptq.zeros import check_symmetric, wrap_alone
from zoquant.checkpoint.folder import (
    DENSE,
    AffineLayout,
    Folder,
    FolderFormat,
    StoredMatrix,
    layouts_that_fit,
)
from zoquant.native import AffineWeight


class GPTQFormat(FolderFormat):
    """2, 3, 4 and 8 bits, any group size, with and without act order, symmetric or not, zeros as v1 or v2.

    Where config.json says nothing, quantize_config.json does; early AutoGPTQ does not name its method there.
    """

    name = "gptq"
    methods = frozenset({"gptq"})
    library = "gptqmodel"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        return gptq_layers(folder, read_config(folder))


def gptq_layers(folder: Folder, config: GPTQConfig) -> dict[str, StoredMatrix]:
    """Return every matrix that has a `qweight`, by its path, checked against the config.

    A layer takes the first scheme that its tensors fit; it is symmetric if all that they fit are.

    Raises:
        CheckpointError: there is none, a tensor is missing, or its shape is none that the config allows.
    """
    layers: dict[str, StoredMatrix] = {}
    for path in folder.paths("qweight"):
        layouts = [_layout(scheme, config, bool(folder.held(path, ["g_idx"]))) for scheme in config.schemes]
        fitting = layouts_that_fit(folder, path, layouts)
        layout = replace(fitting[0], sym=all(each.sym for each in fitting))
        layers[path] = layout.matrix(folder, path)
    if not layers:
        raise folder.error("qweight", "a tensor of this name for each quantized layer", "none")
    return layers


@dataclass(frozen=True, kw_only=True, eq=False)
class GPTQLayout(AffineLayout):
    """The layout of a file.

    Attributes:
        sym: whether the config says that every zero is the middle of the codes.
        borrows: whether ones were surely taken off whole words of zeros.
    """

    zero: GPTQZeros
    sym: bool
    borrows: bool

    def size(self, folder: Folder, path: str) -> tuple[int, int]:
        """Return the rows of the scales, and the columns of `g_idx` or of the words."""
        rows = folder.expect_matrix(f"{path}.scales", DENSE).shape[1]
        if self.group_of:
            groups = folder.tensor(f"{path}.g_idx")
            columns = groups.shape[0] if len(groups.shape) == 1 else 0
            if not columns or groups.dtype != torch.int32:
                raise folder.error(groups.name, "a group for each column, int32", groups.described)
        else:
            words = folder.expect_matrix(f"{path}.qweight", (torch.int32,))
            columns = self.codes.size(words.shape, words.dtype)[1]
        if self.codes.bits == 3 and (columns % 32 or rows % 32):
            raise folder.error(
                f"{path}.qweight", "multiples of 32 rows and columns for 3 bits", f"{rows} and {columns}"
            )
        return rows, columns

    def read(self, folder: Folder, matrix: StoredMatrix) -> AffineWeight:
        """Return the matrix; how ones come back that were taken off its zeros is read off the codes."""
        tensors, size, zero = self.tensors(folder, matrix), (matrix.rows, matrix.columns), self.zero
        words, weight = tensors[zero.name], self.weight(tensors, size)
        if self.sym:
            name = f"{matrix.path}.{zero.name}"
            check_symmetric(folder, name, words, bits=zero.bits, rows=matrix.rows, minus_one=zero.minus_one)
        elif zero.minus_one and not self.borrows and wrap_alone(matrix.path, weight, words, bits=zero.bits):
            return replace(self, zero=replace(zero, wrap="fields")).weight(tensors, size)
        return weight


def _layout(scheme: Scheme, config: GPTQConfig, g_idx: bool) -> GPTQLayout:
    kind = f"{scheme.bits}-bit g{scheme.group_size}" + (" act-order" if config.desc_act else "")
    layout = gptq_layout(scheme.bits, scheme.group_size, minus_one=config.minus_one, g_idx=g_idx, type=kind)
    return GPTQLayout(**vars(layout), sym=scheme.sym, borrows=config.borrows)
