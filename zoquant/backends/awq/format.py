"""Checkpoints that AutoAWQ, llm-awq and GPTQModel write: tensors in `weight`, their order in `words`.

Source: AutoAWQ 0.2.9, awq/models/base.py; transformers 5.23, utils/quantization_config.py (`AwqConfig`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zoquant.backends.awq.weight import fast_weight, gemm_weight, gemv_weight
from zoquant.backends.awq.words import BITS
from zoquant.backends.gptq.config import Scheme, read_schemes
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.errors import CheckpointError
from zoquant.native import AffineWeight
from zoquant.protocol import Role

_GEMM, _GEMV, _FAST = "gemm", "gemv", "gemv_fast"
_LAYOUTS = {
    "gemm": _GEMM, "exllama": _GEMM, "exllamav2": _GEMM, "ipex": _GEMM,
    "gemv": _GEMV, "gemv_fast": _FAST, "llm-awq": _FAST,
}  # fmt: skip
"""The layout on disk of each `version`; kernels that arrange the words of `gemm` when they load them count as that."""
_ZEROS = ("qzeros", "scaled_zeros")
_MULTIPLES = {64: 2, 32: 4, 16: 8}
"""Scales of `gemv` are filled up to whole words, of small groups to several."""


class AWQFormat(FolderFormat):
    """4 bits in the layouts gemm, gemv and gemv_fast."""

    name = "awq"
    methods = frozenset({"awq"})
    library = "gptqmodel"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix that has a `qweight`.

        Raises:
            CheckpointError: the layout is a kernel's own, or a tensor has another shape than the config says.
        """
        said = folder.quantization
        version = said.get("version") or said.get("checkpoint_format") or said.get("format") or _GEMM
        layout = _LAYOUTS.get(str(version).lower().replace("-fast", "_fast"))
        if layout is None:
            known = ", ".join(_LAYOUTS)
            raise folder.error("version", f"{known}; a kernel's own order has to be converted back", repr(version)[:40])
        return awq_layers(folder, layout)


@dataclass(frozen=True, kw_only=True)
class AWQLayer(StoredMatrix):
    """One matrix.

    Attributes:
        layout: `gemm`, `gemv` or `gemv_fast`.
        groups: groups of a row.
        zeros: the local name of the tensor of zeros.
    """

    layout: str
    groups: int
    zeros: str

    def packed(self, folder: Folder) -> AffineWeight:
        """Read the matrix."""
        qweight, qzeros, scales = (folder.read(f"{self.path}.{name}") for name in ("qweight", self.zeros, "scales"))
        if self.layout == _GEMM:
            return gemm_weight(qweight, qzeros, scales)
        if self.layout == _GEMV:
            return gemv_weight(qweight, qzeros, scales, groups=self.groups)
        return fast_weight(qweight, qzeros, scales, groups=self.groups, zeros_name=self.zeros)


def awq_layers(folder: Folder, layout: str = _GEMM) -> dict[str, StoredMatrix]:
    """Return every matrix that has a `qweight`, by its path, checked against the config.

    Raises:
        CheckpointError: there is none, a tensor is missing, or its shape is none that the config allows.
    """
    schemes = read_schemes(folder, (BITS,))
    layers: dict[str, StoredMatrix] = {path: _layer(folder, path, layout, schemes) for path in folder.paths("qweight")}
    if not layers:
        raise folder.error("qweight", "a tensor of this name for each quantized layer", "none")
    return layers


def _layer(folder: Folder, path: str, layout: str, schemes: tuple[Scheme, ...]) -> AWQLayer:
    errors: list[CheckpointError] = []
    for scheme in schemes:
        try:
            return _checked(folder, path, layout, scheme)
        except CheckpointError as error:
            errors.append(error)
    raise errors[0]


def _checked(folder: Folder, path: str, layout: str, scheme: Scheme) -> AWQLayer:
    """Return the layer, if its tensors have the shapes that a scheme gives them."""
    zeros = next((name for name in _ZEROS if f"{path}.{name}" in folder.tensors), _ZEROS[0])
    rows, columns = _size(folder, path, layout)
    size = scheme.group(columns)
    if columns % size:
        raise folder.error("group_size", f"a divisor of the {columns} columns of {path}", str(size))
    groups = columns // size
    padded = _padded(groups, size)
    shapes: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {
        _GEMM: ((groups, rows // 8), (torch.int32,)),
        _GEMV: ((rows, padded // 8), (torch.int32,)),
        _FAST: ((padded, rows), DENSE),
    }
    folder.expect(f"{path}.{zeros}", *shapes[layout])
    scales = {_GEMM: (groups, rows), _GEMV: (rows, padded), _FAST: (padded, rows)}[layout]
    folder.expect(f"{path}.scales", scales, DENSE)
    names = ("scales", zeros) if layout == _FAST else ("scales",)
    fields: dict[str, tuple[Role, str]] = {name: ("scale", f"{path}.{name}") for name in names}
    return AWQLayer(
        path=path,
        rows=rows,
        columns=columns,
        type=f"{BITS}-bit g{scheme.group_size} {layout}",
        tensors=tuple(f"{path}.{name}" for name in ("qweight", zeros, "scales")),
        fields=fields,
        layout=layout,
        groups=groups,
        zeros=zeros,
    )


def _size(folder: Folder, path: str, layout: str) -> tuple[int, int]:
    """Return rows and columns from the shape of the codes."""
    name = f"{path}.qweight"
    tensor = folder.tensor(name)
    dtype = torch.int16 if layout == _FAST else torch.int32
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise folder.error(name, "a matrix", str(list(tensor.shape)))
    folder.expect(name, tensor.shape, (dtype,))
    high, wide = tensor.shape
    if layout == _GEMM:
        return wide * 8, high
    if layout == _GEMV:
        return high, wide * 8
    if wide % 64:
        raise folder.error(name, "a multiple of 64 columns", str(wide))
    return high * 4, wide


def _padded(groups: int, size: int) -> int:
    """Return the groups of `gemv` scales with those that fill them up."""
    words = -(-groups // 8)
    multiple = _MULTIPLES.get(size, 1)
    return -(-words // multiple) * multiple * 8
