"""One deliberately broken format for each check of `check_format`. Each fails that check and none but those in ALSO."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.toy import ToyCodec, ToyFormat
from zoquant import Span, Summary
from zoquant.native import QuantLinear, QuantWeight


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


BROKEN: dict[str, ToyFormat] = {
    "check_sniff_knows_only_its_own": SniffsAnything(),
    "check_summary_agrees_with_the_file": MiscountingSummary(),
    "check_index_lies_in_the_file": IndexBeyondTheEnd(),
    "check_index_matches_views": WrongRole(),
    "check_zero_delta_exports_the_base": WritesWhileReading(),
    "check_export_changes_only_indexed_bytes": AliasedIndex(),
    "check_exported_file_loads": OpensTheFirst(),
    "check_layers_conform": Scribbles(),
    "check_export_refuses_another_base": Heals(),
    "check_truncated_file_is_refused": TrustsTheHeader(),
}
"""For each check the format that breaks it, on a file whose layers l0 and l1 hold the same values."""

ALSO = {
    "check_export_changes_only_indexed_bytes": {
        "check_export_refuses_another_base",
        "check_exported_file_loads",
        "check_zero_delta_exports_the_base",
    },
}
"""A file that does not hold the trained values cannot open with them; keys on the same bytes are never exported."""
