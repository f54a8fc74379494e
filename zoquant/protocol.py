"""The contract between the core and its plugins: views, backends, formats.

A *backend* maps the live modules of one library to views, a *format* maps the files of a checkpoint to the bytes of
the same values. The core knows nothing else of either, and neither knows who moves the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Role = Literal["scale", "zero", "codebook", "dense", "adapter"]
ROLES: tuple[Role, ...] = ("scale", "zero", "codebook", "dense", "adapter")
PLAIN_ROLES: tuple[Role, ...] = ("dense", "adapter")
"""The roles of values that are no part of a packed layout: their module reads them as they are."""


@runtime_checkable
class ScaleView(Protocol):
    """One continuous tensor of one quantized layer.

    Attributes:
        name: local to the layer (`"d"`); `attach` makes it a key (`"model.layers.0.mlp.up_proj.d"`).
        role: what the values are to the layer.
        shape: logical shape, in the order of the tensor on disk.
        dtype: the dtype that stores the values; what is written is cast to it.
        device: where the values live.
        live: the storage itself if it is a plain tensor in disk order: the core then writes there, many views at once,
            and never calls `write`. None where a write is more than a copy.
    """

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def live(self) -> Tensor | None: ...

    def read(self) -> Tensor:
        """Return the values as a detached float32 copy of shape `shape`, in the order of the tensor on disk."""

    def write(self, value: Tensor) -> None:
        """Store `value` (float32, of shape `shape`), cast to `dtype`.

        Raises:
            ShapeError: `value` has another shape.
            ValueRangeError: `value` holds NaN or infinity. In both cases nothing was written.
        """


class Backend(Protocol):
    """Maps the modules of one class to views. Claimed by the dotted name of that exact class, or of their weight's.

    `name` is how messages and `zoquant backends` call it, in kebab-case.
    """

    name: str

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Return the views of one module, with local names.

        Raises:
            UnsupportedLayoutError: the module's kernel keeps a private copy of its values; the message names the
                kernel or the flag to use instead.
        """

    def dequantize(self, module: nn.Module) -> Tensor:
        """Return the weight that the module multiplies with: `[out_features, in_features]`, float32."""

    def sample_input(self, module: nn.Module) -> Tensor:
        """Return an input for trials: random `[2, in_features]` as the module takes it; for a table int64 `[n]`."""


@runtime_checkable
class Uncached(Protocol):
    """What a backend has besides, if its layers keep nothing of their values from one forward to the next.

    A write cannot but reach their next forward, so that `attach` does not run them to see it.
    """

    cached: Literal[False]


@runtime_checkable
class Refreshed(Protocol):
    """What a backend has besides, if its layers keep something that they computed of their values."""

    def refresh(self, module: nn.Module) -> None:
        """Compute anew what the forward uses of the values, without gradients.

        Called once a layer after all of its values are written, be it by a probe, a step, `restore`, `load_delta`,
        `replay` or a single view.
        """


@dataclass(frozen=True, eq=False)
class Grid:
    """How the values of a view lie over the matrix of its layer, as rows and columns of a grid.

    Attributes:
        shape: rows and columns of the grid.
        rows: for every output of the layer its row of the grid, int64 `[out_features]`.
        columns: for every input its column, int64 `[in_features]`.
        transposed: whether the view is stored `[columns, rows]`, as in GPTQ; its own shape is of no account.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    transposed: bool = False

    def same(self, other: Grid) -> bool:
        """Tell whether two grids lie over the matrix alike, however their views are stored."""
        alike = self.shape == other.shape and self.rows.shape == other.rows.shape
        return alike and self.rows.equal(other.rows) and self.columns.equal(other.columns)


@runtime_checkable
class Gridded(Protocol):
    """What a backend has besides, if it can say how values scale the rows and columns of a layer's matrix.

    Probes of rows and columns rest on it: they scale the inputs and outputs of a layer instead of its values.
    """

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        """Return, by local name, the grids of the views that together scale the weights.

        Multiplying all of them by the same number multiplies every weight of the layer by it. Empty where there are
        none, or where the module is no product of an input with a matrix.
        """


@dataclass(frozen=True)
class Span:
    """Where the values of one key lie in the files of a checkpoint.

    Attributes:
        role: what the values are to the layer.
        file: path relative to the checkpoint's folder (for a single file, its name).
        offset: bytes from the start of the file to the first value.
        shape: logical shape, the same as the view's.
        strides: bytes between neighbours, one number a dimension.
        dtype: the dtype of the values on disk.
        tensor: the checkpoint's own name of the tensor that holds the values.
    """

    role: Role
    file: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    tensor: str


@dataclass(frozen=True)
class Summary:
    """What `zoquant inspect` says of a checkpoint without loading it.

    Attributes:
        architecture: the checkpoint's own word for the kind of model.
        layers: quantized matrices.
        parameters: numbers in the model, quantized or not.
        bytes: size of the checkpoint's files.
        types: how many tensors are stored in which type, and why a type has no continuous values.
        runtimes: who can compute the forward here, each with a word of why or why not.
    """

    architecture: str
    layers: int
    parameters: int
    bytes: int
    types: Mapping[str, int]
    notes: Sequence[str]
    runtimes: Mapping[str, str]


class Format(Protocol):
    """Maps the files of one kind of checkpoint to the bytes of its continuous values.

    `name` is how messages, deltas and `zoquant backends` call it, in kebab-case.
    """

    name: str

    def sniff(self, path: Path) -> bool:
        """Tell from the first bytes whether `path` is of this kind. Never raises for a readable path."""

    def index(self, path: Path) -> Mapping[str, Span]:
        """Return for every key the place of its values, reading headers alone.

        Raises:
            CheckpointError: the files are truncated, or their header contradicts itself.
        """

    def summarize(self, path: Path) -> Summary:
        """Return what can be said of the checkpoint from its headers alone."""

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return a model on zoquant's native layers, in eval mode and without gradients, and its tokenizer or None.

        Args:
            path: the checkpoint.
            compute_dtype: dtype of the matrix products; everything beside them is float32.
            device: where the packed words and the values go.
        """


@runtime_checkable
class SeveralFiles(Protocol):
    """What a format has besides, if the path of one file may stand for a checkpoint of several, such as shards."""

    def files(self, path: Path) -> Sequence[Path]:
        """Return all files of the checkpoint, in one folder.

        Raises:
            CheckpointError: one is missing; it is named.
        """


@dataclass(frozen=True)
class Checksum:
    """A CRC-32 that a file keeps of some of its own bytes, as a zip archive does of its members.

    Attributes:
        file: path relative to the checkpoint's folder (for a single file, its name).
        start: bytes from the start of the file to the first that it covers.
        size: number of bytes that it covers.
        places: bytes from the start of the file to each copy of it, four little-endian bytes.
    """

    file: str
    start: int
    size: int
    places: tuple[int, ...]


@runtime_checkable
class Checksummed(Protocol):
    """What a format has besides, if its files keep checksums of their own bytes. An export renews them."""

    def checksums(self, path: Path) -> Sequence[Checksum]:
        """Return the checksums of all files of the checkpoint, whether or not they hold.

        Raises:
            CheckpointError: a file is damaged.
        """


@runtime_checkable
class Vendor(Protocol):
    """What a format has besides, if a library of its own can compute the forward."""

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on the library's own layers, and its tokenizer; arguments are those of `open_native`.

        Raises:
            UnsupportedLayoutError: the library is not installed; the message says which.
        """


@runtime_checkable
class Runtimes(Protocol):
    """What a format has besides, if it can tell without a checkpoint who computes the forward here."""

    def runtimes(self) -> Mapping[str, str]:
        """Return for `"native"` and `"vendor"` a word that begins with yes or no, and why."""


@runtime_checkable
class Explains(Protocol):
    """What a format has besides, if it knows why certain checkpoints cannot be read by anyone."""

    def explain(self, path: Path) -> str:
        """Return why nobody reads this checkpoint and what to do, or nothing. Never raises for a readable path."""
