"""One deliberately broken format for each check of `check_format`. Each fails that check and none but those in ALSO."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.toy import ToyCodec, ToyFormat
from zoquant import PackedBackend, Span, Summary, TensorView
from zoquant.native import PackedWeight, QuantLinear, QuantWeight
from zoquant.protocol import Grid, Role, ScaleView


class SniffsAnything(ToyFormat):
    def sniff(self, path: Path) -> bool:
        return True


class MiscountingSummary(ToyFormat):
    def summarize(self, path: Path) -> Summary:
        return replace(super().summarize(path), bytes=0)


class IndexBeyondTheEnd(ToyFormat):
    def index(self, path: Path) -> Mapping[str, Span]:
        spans = dict(super().index(path))
        last = next(reversed(spans))
        return {**spans, "padding.d": replace(spans[last], offset=path.stat().st_size - 1)}


class WrongRole(ToyFormat):
    def index(self, path: Path) -> Mapping[str, Span]:
        spans = dict(super().index(path))
        last = next(reversed(spans))
        return {**spans, last: replace(spans[last], role="codebook")}


class WritesWhileReading(ToyFormat):
    """Stamps the file whenever its index is read."""

    def index(self, path: Path) -> Mapping[str, Span]:
        data = path.read_bytes()
        stamps = (b'"dtype": "float16"', b'"dtype" :"float16"', b'"dtype":"float16" ')
        number = next((number for number, stamp in enumerate(stamps) if stamp in data), 0)
        path.write_bytes(data.replace(stamps[number], stamps[(number + 1) % 3]))
        return super().index(path)


class AliasedIndex(ToyFormat):
    """Names the bytes of one layer for another whose values happen to be the same."""

    def index(self, path: Path) -> Mapping[str, Span]:
        spans = dict(super().index(path))
        return {**spans, "layers.l1.d": spans["layers.l0.d"]}


class OpensTheFirst(ToyFormat):
    """Opens what it opened first, whatever it is asked for."""

    def __init__(self) -> None:
        self.first: Path | None = None
        self.data = b""

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        self.first = self.first or path
        return super().open_native(self.first, compute_dtype=compute_dtype, device=device)


class ScribblingCodec(ToyCodec):
    """Decodes as it should, and then writes into the codes."""

    def decode(self, codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
        super().decode(codes & 0xFE, values, out)
        codes |= 1


class Scribbles(ToyFormat):
    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        model, tokenizer = super().open_native(path, compute_dtype=compute_dtype, device=device)
        for layer in model.modules():
            if isinstance(layer, QuantLinear) and isinstance(layer.packed, QuantWeight):
                layer.packed.codec = ScribblingCodec(layer.packed.codec.fields[0].dtype)
        return model, tokenizer


class Heals(ToyFormat):
    """Puts a file back to what it was when the format first saw one of its name, as a download cache may."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}

    def index(self, path: Path) -> Mapping[str, Span]:
        first = self.seen.setdefault(path.name, path.read_bytes())
        if path.parent.name == "other":
            path.write_bytes(first)
        return super().index(path)


class TrustsTheHeader(ToyFormat):
    def header(self, path: Path) -> tuple[dict[str, Any], int]:
        import json

        data = path.read_bytes()
        start = 12 + int.from_bytes(data[4:12], "little")
        return json.loads(data[12:start]), start


class WithLibrary(ToyFormat):
    """A toy format whose library has the very layers that `ToyFormat` makes."""

    def summarize(self, path: Path) -> Summary:
        return replace(super().summarize(path), runtimes={"native": "yes", "vendor": "yes: a toy"})

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        return ToyFormat().open_native(path, compute_dtype=compute_dtype, device=device)


class NoLibrary(WithLibrary):
    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        raise ImportError("no module named toylib")


class NoTokenizer(WithLibrary):
    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        model, _ = super().open_native(path, compute_dtype=compute_dtype, device=device)
        return model, lambda text: {"input_ids": [1, 2, 3]}


class LibraryLinear(QuantLinear):
    """The library's own class, for which a backend is registered."""


class TurnedView(TensorView):
    """Reads and writes rows in the opposite order."""

    def __init__(self, name: str, role: Role, tensor: Tensor) -> None:
        super().__init__(name, role, tensor)
        self.live = None

    def read(self) -> Tensor:
        return super().read().flip(0)

    def write(self, value: Tensor) -> None:
        super().write(value.flip(0))


class TurnedBackend(PackedBackend):
    """Reads and writes values in another order than the file has: all laws of a layer alone hold."""

    name = "turned"

    def packed(self, module: nn.Module) -> PackedWeight:
        assert isinstance(module, LibraryLinear)
        return module.packed

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        packed = self.packed(module)
        return [TurnedView(field.name, field.role, packed.value(field.name)) for field in packed.fields]

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        return {}


class WithTurnedLibrary(WithLibrary):
    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        model, _ = super().open_vendor(path, compute_dtype=compute_dtype, device=device)
        for layer in model.modules():
            if type(layer) is QuantLinear:
                layer.__class__ = LibraryLinear
        return model, None


class MisreadingCodec(ToyCodec):
    """Reads words in another way than they were meant."""

    def __init__(self, dtype: torch.dtype, *, size: float = 1.0, less: int = 0, sign: float = 1.0) -> None:
        super().__init__(dtype)
        self.size, self.less, self.sign = size, less, sign

    def decode(self, codes: Tensor, values: Sequence[Tensor], out: Tensor) -> None:
        d, m = values
        super().decode(codes, (d, self.sign * m - self.less * d), out)
        out.mul_(self.size)


class Misreads(WithLibrary):
    """A format whose native layers, and with them `dequantize`, misread the words."""

    def __init__(self, **how: Any) -> None:
        self.how = how

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        model, tokenizer = super().open_native(path, compute_dtype=compute_dtype, device=device)
        for layer in model.modules():
            if isinstance(layer, QuantLinear) and isinstance(layer.packed, QuantWeight):
                layer.packed.codec = MisreadingCodec(layer.packed.codec.fields[0].dtype, **self.how)
        return model, tokenizer


class MisreadsAlone(Misreads):
    """The same, with no library that could tell."""

    def summarize(self, path: Path) -> Summary:
        return ToyFormat.summarize(self, path)


class LeavesOutAReLU(WithLibrary):
    """Opens the right layers, and computes something else with them."""

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        return in_a_row(path, compute_dtype, device), None

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        model = in_a_row(path, compute_dtype, device)
        model.append(nn.ReLU())
        return model, None


def in_a_row(path: Path, compute_dtype: torch.dtype, device: torch.device) -> nn.Sequential:
    """Return the layers of a toy file, one after the other."""
    model, _ = ToyFormat().open_native(path, compute_dtype=compute_dtype, device=device)
    layers: Any = model.layers
    return nn.Sequential(OrderedDict(layers=nn.Sequential(OrderedDict(layers.items()))))


class SniffsFolders(ToyFormat):
    def sniff(self, path: Path) -> bool:
        return path.is_dir() or super().sniff(path)


class SniffsConfigs(ToyFormat):
    def sniff(self, path: Path) -> bool:
        return (path / "config.json").exists() or super().sniff(path)


BROKEN: dict[str, ToyFormat] = {
    "check_sniff_knows_only_its_own": SniffsAnything(),
    "check_summary_agrees_with_the_file": MiscountingSummary(),
    "check_index_lies_in_the_file": IndexBeyondTheEnd(),
    "check_index_matches_views": WrongRole(),
    "check_vendor_opens": NoLibrary(),
    "check_vendor_holds_the_values": WithTurnedLibrary(),
    "check_native_agrees_with_vendor": Misreads(size=1.01),
    "check_native_agrees_with_reference": MisreadsAlone(less=4),
    "check_zero_delta_exports_the_base": WritesWhileReading(),
    "check_export_changes_only_indexed_bytes": AliasedIndex(),
    "check_exported_file_loads": OpensTheFirst(),
    "check_layers_conform": Scribbles(),
    "check_export_refuses_another_base": Heals(),
    "check_truncated_file_is_refused": TrustsTheHeader(),
}
"""For each check the format that breaks it, on a file whose layers l0 and l1 hold the same values."""

FAULTS: dict[str, tuple[str, ToyFormat, str]] = {
    "sniffs every folder": ("check_sniff_knows_only_its_own", SniffsFolders(), "says yes to an empty folder"),
    "sniffs every config": (
        "check_sniff_knows_only_its_own", SniffsConfigs(),
        "says yes to a folder of plain weights, which is of the format dense: nobody could load it",
    ),
    "no tokenizer": ("check_vendor_opens", NoTokenizer(), "open_vendor() returned no tokenizer"),
    "x 1.01": ("check_native_agrees_with_vendor", Misreads(size=1.01), "the native weight is 1.01 times the library's"),
    "x 1.001": ("check_native_agrees_with_vendor", Misreads(size=1.001), "is 1.001 times the library's"),
    "code - 4": ("check_native_agrees_with_vendor", Misreads(less=4), "away from the library's, expected within"),
    "sign of the offset": ("check_native_agrees_with_vendor", Misreads(sign=-1.0), "away from the library's"),
    "another model": ("check_native_agrees_with_vendor", LeavesOutAReLU(), "all weights agree, and the logits"),
}  # fmt: skip
"""More of them, by what is wrong: the check that each fails, and a part of what it says."""

ALSO = {
    "check_export_changes_only_indexed_bytes": {
        "check_export_refuses_another_base",
        "check_exported_file_loads",
        "check_zero_delta_exports_the_base",
    },
}
"""A file that does not hold the trained values cannot open with them; keys on the same bytes are never exported."""
