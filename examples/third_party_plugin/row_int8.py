"""Row-int8, a made-up format: a safetensors file with `<layer>.codes` and `<layer>.scale` for each of some layers."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoquant import Span, Summary, TensorView
from zoquant.checkpoint.folder import StoredTensor
from zoquant.errors import CheckpointError
from zoquant.files.safetensors import read_safetensors
from zoquant.native import AffineWeight, FieldSpec, PlainCodes, QuantLinear, Values
from zoquant.native.values import per_row


class RowLinear(nn.Module):
    """The library's own layer: int8 codes `[rows, columns]` and float16 scales `[rows, 1]`."""

    codes: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the dequantized weight, `[..., rows]`."""
        return x @ (self.codes.to(x.dtype) * self.scale.to(x.dtype)).t()


class RowBackend:
    """Shows zoquant the scales of a `RowLinear`."""

    name = "row-int8"

    def open(self, module: RowLinear) -> list[TensorView]:
        """Return the view of the scales: they lie in memory as they do in the file."""
        return [TensorView("scale", "scale", module.scale)]

    def dequantize(self, module: RowLinear) -> Tensor:
        """Return the weight, float32 `[rows, columns]`."""
        return module.codes.float() * module.scale.float()

    def sample_input(self, module: RowLinear) -> Tensor:
        """Return two random rows, the same ones every time."""
        return torch.randn(2, module.codes.shape[1], generator=torch.Generator().manual_seed(0))


class RowFormat:
    """Finds the scales in a file, and opens it on zoquant's layers or on the library's."""

    name = "row-int8"

    def sniff(self, path: Path) -> bool:
        """Tell whether the file says that it is of this format."""
        try:
            return path.is_file() and read_safetensors(path)[1].get("format") == self.name
        except CheckpointError:
            return False

    def index(self, path: Path) -> Mapping[str, Span]:
        """Return the place of the scales of every layer."""
        return {
            f"{layer}.scale": Span("scale", path.name, scale.offset, scale.shape, (2, 2), scale.dtype, scale.name)
            for layer, (_, scale) in _layers(path).items()
        }

    def summarize(self, path: Path) -> Summary:
        """Return what the header says."""
        layers = _layers(path)
        count = sum(codes.nbytes for codes, _ in layers.values())
        runtimes = {"native": "yes: runs on the file's own words", "vendor": "yes: this package has the layers"}
        return Summary("chain", len(layers), count, path.stat().st_size, {"int8": len(layers)}, (), runtimes)

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the layers one after the other, on zoquant's own; there is no tokenizer."""
        spec = FieldSpec("scale", "scale", torch.float16)

        def layer(codes: Tensor, scale: Tensor) -> QuantLinear:
            weight = AffineWeight("row-int8", PlainCodes(codes), Values(spec, scale, per_row))
            return QuantLinear(weight, compute_dtype=compute_dtype)

        return _chain(path, layer).to(device), None

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the same on layers of `RowLinear`, which compute in the dtype of their input."""
        return _chain(path, RowLinear).to(device), None


def _chain(path: Path, make: Callable[[Tensor, Tensor], nn.Module]) -> nn.Module:
    layers = {name: make(codes.read(), scale.read()) for name, (codes, scale) in _layers(path).items()}
    return nn.Sequential(OrderedDict(layers)).eval()


def _layers(path: Path) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Return codes and scale of every layer. `read_safetensors` has checked that they lie in the file."""
    tensors, _ = read_safetensors(path)
    layers = {}
    for name in sorted(name.removesuffix(".codes") for name in tensors if name.endswith(".codes")):
        codes, scale = tensors[f"{name}.codes"], tensors.get(f"{name}.scale")
        if scale is None or (codes.dtype, scale.dtype) != (torch.int8, torch.float16) or len(codes.shape) != 2:
            raise CheckpointError(f"{path}: {name!r}: expected int8 codes and a float16 scale. Get the file again.")
        if scale.shape != (codes.shape[0], 1):
            shapes = f"expected {[codes.shape[0], 1]}, got {list(scale.shape)}"
            raise CheckpointError(f"{path}: {scale.name!r}: {shapes}. Get the file again.")
        layers[name] = (codes, scale)
    return layers
