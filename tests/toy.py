"""A layout small enough to read at a glance: `w = d * (code - 128) + m`, four codes a group, on native layers.

Its file: `b"TOYQ"`, the header's length (8 bytes, little endian), a JSON header, then for every layer its groups, each
`d`, `m` and four bytes of codes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoquant
from zoquant import Backend, Span, Summary
from zoquant.errors import CheckpointError
from zoquant.native import FieldSpec, QuantLinear, QuantWeight
from zoquant.registry import class_name
from zoquant.views.tensor_views import bytes_of, values_of

BLOCK = 4
MAGIC = b"TOYQ"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class ToyCodec:
    """`w = d * (code - 128) + m`."""

    name = "toy"
    block = BLOCK

    def __init__(self, dtype: torch.dtype) -> None:
        self.fields: tuple[FieldSpec, ...] = (FieldSpec("d", "scale", dtype), FieldSpec("m", "zero", dtype))

    def decode(self, codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
        d, m = values
        torch.sub(codes.float(), 128.0, out=out)
        out.mul_(d.unsqueeze(-1)).add_(m.unsqueeze(-1))


class ToyModel(nn.Module):
    """Square layers, one after the other."""

    def __init__(self, layers: Mapping[str, QuantLinear]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = torch.tanh(layer(x)) + x
        return x


def toy_layer(
    seed: int = 0, *, rows: int = 8, groups: int = 2, dtype: torch.dtype = torch.float16, bias: bool = False
) -> QuantLinear:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, groups, BLOCK), generator=generator, dtype=torch.uint8)
    d = (torch.rand(rows, groups, generator=generator) * 2e-3 + 1e-3).to(dtype)
    d[0, 0] *= -1
    m = (torch.randn(rows, groups, generator=generator) * 1e-2).to(dtype)
    packed = QuantWeight(ToyCodec(dtype), codes, [d, m])
    b = torch.randn(rows, generator=generator) if bias else None
    return QuantLinear(packed, b, compute_dtype=torch.float32).requires_grad_(False).eval()


def toy_model(
    seed: int = 0,
    *,
    layers: int = 3,
    rows: int = 8,
    dtype: torch.dtype = torch.float16,
    order: Sequence[int] | None = None,
) -> ToyModel:
    chosen = order if order is not None else range(layers)
    made = {f"l{n}": toy_layer(100 * seed + n, rows=rows, groups=rows // BLOCK, dtype=dtype) for n in chosen}
    return ToyModel(made).eval()


def stored(model: ToyModel, layer: str, field: str) -> Tensor:
    """Return the storage of one field of one layer."""
    linear = model.layers[layer]
    assert isinstance(linear, QuantLinear)
    return linear.packed.value(field)


def toy_batch(rows: int = 8, count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(count, rows, generator=generator), torch.randn(count, rows, generator=generator)


def toy_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    loss: Tensor = (model(x) - y).square().mean()
    return loss


@contextmanager
def registered(backend: Backend, cls: type) -> Iterator[None]:
    """Register a backend for the length of a with block."""
    zoquant.register(backend=backend, claims=cls)
    try:
        yield
    finally:
        zoquant.unregister(class_name(cls))


def write_toy(path: Path, model: ToyModel, dtype: str = "float16") -> Path:
    """Write a model to a toy file."""
    body = bytearray()
    layers = []
    for name, layer in model.layers.items():
        assert isinstance(layer, QuantLinear)
        packed = layer.packed
        assert isinstance(packed, QuantWeight)
        layers.append({"name": name, "rows": packed.rows, "groups": packed.codes.shape[1], "offset": len(body)})
        parts = [packed.value(field).unsqueeze(-1).contiguous().view(torch.uint8) for field in ("d", "m")]
        body += torch.cat([*parts, packed.codes], dim=-1).numpy().tobytes()
    header = json.dumps({"dtype": dtype, "layers": layers}).encode()
    path.write_bytes(MAGIC + len(header).to_bytes(8, "little") + header + body)
    return path


class ToyFormat:
    """Reads toy files."""

    name = "toy"

    def sniff(self, path: Path) -> bool:
        if path.is_dir():
            return False
        with path.open("rb") as file:
            return file.read(4) == MAGIC

    def header(self, path: Path) -> tuple[dict[str, Any], int]:
        data = path.read_bytes()
        length = int.from_bytes(data[4:12], "little")
        start = 12 + length
        try:
            header: dict[str, Any] = json.loads(data[12:start]) if data[:4] == MAGIC else {}
            last = max(self._end(header, layer, start) for layer in header["layers"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: the header is damaged: {error}. Get the whole file.") from error
        if last > len(data):
            raise CheckpointError(f"{path}: has {len(data)} bytes, expected {last}. Get the whole file.")
        return header, start

    def index(self, path: Path) -> Mapping[str, Span]:
        header, start = self.header(path)
        dtype = DTYPES[header["dtype"]]
        block = 2 * dtype.itemsize + BLOCK
        spans = {}
        for layer in header["layers"]:
            shape = (layer["rows"], layer["groups"])
            for n, field in enumerate(ToyCodec(dtype).fields):
                offset = start + layer["offset"] + n * dtype.itemsize
                key = f"layers.{layer['name']}.{field.name}"
                spans[key] = Span(field.role, path.name, offset, shape, (shape[1] * block, block), dtype, layer["name"])
        return spans

    def summarize(self, path: Path) -> Summary:
        header, _ = self.header(path)
        layers = header["layers"]
        count = sum(layer["rows"] * layer["groups"] * BLOCK for layer in layers)
        return Summary("toy", len(layers), count, path.stat().st_size, {"toy": len(layers)}, (), {"native": "yes"})

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        header, start = self.header(path)
        dtype = DTYPES[header["dtype"]]
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        size = dtype.itemsize
        block = 2 * size + BLOCK
        layers = {}
        for layer in header["layers"]:
            rows, groups = shape = (layer["rows"], layer["groups"])
            strides, first = (groups * block, block), start + layer["offset"]
            d, m = (values_of(bytes_of(data, first + n * size, shape, strides, dtype), dtype) for n in (0, 1))
            codes = data.as_strided((rows, groups, BLOCK), (*strides, 1), first + 2 * size).clone()
            packed = QuantWeight(ToyCodec(dtype), codes, [d, m])
            layers[layer["name"]] = QuantLinear(packed, compute_dtype=compute_dtype)
        return ToyModel(layers).requires_grad_(False).eval().to(device), None

    @staticmethod
    def _end(header: Mapping[str, Any], layer: Mapping[str, Any], start: int) -> int:
        block = 2 * DTYPES[header["dtype"]].itemsize + BLOCK
        return int(start + layer["offset"] + layer["rows"] * layer["groups"] * block)
