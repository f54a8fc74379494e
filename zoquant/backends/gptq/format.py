"""Checkpoints that AutoGPTQ and GPTQModel write: tensors in `weight`, the config in `config`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from zoquant.backends.gptq.config import GPTQConfig, Scheme, read_config
from zoquant.backends.gptq.weight import gptq_weight
from zoquant.backends.gptq.zeros import check_symmetric, wrap_alone
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import CheckpointError
from zoquant.native import AffineWeight
from zoquant.protocol import Role

_WORD = 32


class GPTQFormat(FolderFormat):
    """2, 3, 4 and 8 bits, any group size, with and without act order, symmetric or not, zeros as v1 or v2.

    Where config.json says nothing, quantize_config.json does; early AutoGPTQ does not name its method there.
    """

    name = "gptq"
    methods = frozenset({"gptq"})
    library = "gptqmodel"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix that has a `qweight`.

        Raises:
            CheckpointError: a tensor is missing, or its shape is none that the config allows.
        """
        return gptq_layers(folder, read_config(folder))


@dataclass(frozen=True, kw_only=True)
class GPTQLayer(StoredMatrix):
    """One matrix.

    Attributes:
        scheme: how it is quantized.
        config: what holds for all of them.
    """

    scheme: Scheme
    config: GPTQConfig

    def packed(self, folder: Folder) -> AffineWeight:
        """Read the matrix.

        Raises:
            CheckpointError: `g_idx` names a group that there is not, or zeros are others than `sym` says.
        """
        qweight, qzeros, scales = (folder.read(f"{self.path}.{name}") for name in ("qweight", "qzeros", "scales"))
        bits, minus_one = self.scheme.bits, self.config.minus_one
        make = partial(
            gptq_weight, qweight, qzeros, scales, self._g_idx(folder, len(scales)),
            bits=bits, group_size=self.scheme.group(self.columns), columns=self.columns, minus_one=minus_one,
        )  # fmt: skip
        if self.scheme.sym:
            name = f"{self.path}.qzeros"
            check_symmetric(folder, name, qzeros, bits=bits, rows=self.rows, minus_one=minus_one)
            return make()
        alone = minus_one and not self.config.borrows and wrap_alone(self.path, make(), qzeros, bits=bits)
        return make(wrap="fields" if alone else "words")

    def _g_idx(self, folder: Folder, groups: int) -> Tensor | None:
        name = f"{self.path}.g_idx"
        if name not in folder.tensors:
            return None
        g_idx = folder.read(name)
        if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
            raise folder.error(name, f"groups from 0 to {groups - 1}", f"{int(g_idx.min())}, {int(g_idx.max())}")
        return g_idx


def gptq_layers(folder: Folder, config: GPTQConfig) -> dict[str, StoredMatrix]:
    """Return every matrix that has a `qweight`, by its path, checked against the config.

    Raises:
        CheckpointError: there is none, a tensor is missing, or its shape is none that the config allows.
    """
    layers: dict[str, StoredMatrix] = {path: _layer(folder, path, config) for path in quantized_paths(folder)}
    if not layers:
        raise folder.error("qweight", "a tensor of this name for each quantized layer", "none")
    return layers


def quantized_paths(folder: Folder) -> Iterator[str]:
    """Yield the path of every module with a tensor `qweight`."""
    for name in folder.tensors:
        path, _, field = name.rpartition(".")
        if field == "qweight":
            yield path


def _layer(folder: Folder, path: str, config: GPTQConfig) -> GPTQLayer:
    """Return the layer by the first scheme that its tensors fit; it is symmetric if all that they fit are."""
    errors: list[CheckpointError] = []
    found: list[GPTQLayer] = []
    for scheme in config.schemes:
        try:
            found.append(_checked(folder, path, scheme, config))
        except CheckpointError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return replace(found[0], scheme=replace(found[0].scheme, sym=all(layer.scheme.sym for layer in found)))


def _checked(folder: Folder, path: str, scheme: Scheme, config: GPTQConfig) -> GPTQLayer:
    """Return the layer, if its tensors have the shapes that a scheme gives them."""
    scales, qweight, g_idx = (f"{path}.{name}" for name in ("scales", "qweight", "g_idx"))
    rows = _length(folder, scales, axis=1)
    columns = _length(folder, g_idx, axis=0) if g_idx in folder.tensors else None
    if columns is None:
        columns = _length(folder, qweight, axis=0) * _WORD // scheme.bits
    if scheme.bits == 3 and (columns % _WORD or rows % _WORD):
        raise folder.error(qweight, "multiples of 32 rows and columns for 3 bits", f"{rows} and {columns}")
    groups = -(-columns // scheme.group(columns))
    folder.expect(qweight, (words(columns, scheme.bits), rows), (torch.int32,))
    folder.expect(f"{path}.qzeros", (groups, words(rows, scheme.bits)), (torch.int32,))
    folder.expect(scales, (groups, rows), DENSE)
    tensors = [f"{path}.{name}" for name in ("qweight", "qzeros", "scales")]
    if g_idx in folder.tensors:
        folder.expect(g_idx, (columns,), (torch.int32,))
        tensors.append(g_idx)
    kind = f"{scheme.bits}-bit g{scheme.group_size}" + (" act-order" if config.desc_act else "")
    fields: dict[str, tuple[Role, str]] = {"scales": ("scale", scales)}
    return GPTQLayer(
        path=path,
        rows=rows,
        columns=columns,
        type=kind,
        tensors=tuple(tensors),
        fields=fields,
        scheme=scheme,
        config=config,
    )


def words(count: int, bits: int) -> int:
    """Return the words that hold some codes."""
    return -(-count * bits // _WORD)


def _length(folder: Folder, name: str, *, axis: int) -> int:
    """Return one length of a tensor, at least 1."""
    shape = folder.tensor(name).shape
    if len(shape) <= axis or shape[axis] < 1:
        raise folder.error(name, f"at least {axis + 1} dimensions, none of them empty", str(list(shape)))
    return shape[axis]
