"""Laws 4 and 5: the index names the bytes of every view, and an export changes those alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from zoquant.checkpoint.exporting import export
from zoquant.checkpoint.stored_files import checksums_of, holds
from zoquant.checkpoint.stored_values import read_base
from zoquant.errors import ZoquantError
from zoquant.protocol import Checksum, Format, Span
from zoquant.record.delta import save_delta
from zoquant.registry import all_formats
from zoquant.testing.case import values_of
from zoquant.testing.format_case import FormatCase, end_of, span_bytes
from zoquant.testing.results import ConformanceError
from zoquant.testing.tensors import same_bits

_FOREIGN = {"empty": b"", "text": b"not a checkpoint\n", "zeros": bytes(4096)}
_CONFIG: dict[str, object] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_FOLDERS: dict[str, dict[str, object]] = {
    "an empty folder": {},
    "a folder of plain weights": _CONFIG,
    "a folder of another method": _CONFIG | {"quantization_config": {"quant_method": "a-method-that-nobody-has"}},
}


def check_sniff_knows_only_its_own(case: FormatCase) -> None:
    """sniff() says yes to the checkpoint, no to files of no kind and to folders of others, and never raises."""
    name = case.format.name
    if not case.format.sniff(case.path):
        raise ConformanceError(f"{case.path}: sniff() says no to a checkpoint of the format {name}.")
    with TemporaryDirectory() as place:
        for what, data in _FOREIGN.items():
            path = Path(place, what)
            path.write_bytes(data)
            if _sniffs(case.format, path):
                raise ConformanceError(f"sniff() of the format {name} says yes to a file of {what}.")
        for what, config in _FOLDERS.items():
            path = Path(place, what)
            path.mkdir()
            if config:
                (path / "config.json").write_text(json.dumps(config))
                save_file({"model.norm.weight": torch.ones(4)}, path / "model.safetensors")
            others = [each.name for each in all_formats() if each.name != name and each.sniff(path)]
            if _sniffs(case.format, path) and (others or config != _CONFIG):
                whose = f", which is of the format {others[0]}: nobody could load it then" if others else ""
                raise ConformanceError(f"sniff() of the format {name} says yes to {what}{whose}. Ask what is in it.")


def _sniffs(format: Format, path: Path) -> bool:
    try:
        return format.sniff(path)
    except Exception as error:
        raise ConformanceError(
            f"sniff() of the format {format.name} raised {type(error).__name__} for {path.name}, expected yes or no: "
            f"{error}"
        ) from error


def check_summary_agrees_with_the_file(case: FormatCase) -> None:
    """summarize() counts the bytes of the files with values, and something to train or a reason why not."""
    summary, files = case.format.summarize(case.path), case.contents()
    least = sum(len(files[name]) for name in {span.file for span in case.format.index(case.path).values()})
    most = sum(map(len, files.values()))
    if not least <= summary.bytes <= most or not summary.types:
        raise ConformanceError(
            f"{case.path}: summarize() says {summary.bytes} bytes and {len(summary.types)} types, expected {least} to "
            f"{most} bytes and at least one type."
        )


def check_index_lies_in_the_file(case: FormatCase) -> None:
    """Every span names a file of the checkpoint and ends before that file does."""
    sizes = {name: len(data) for name, data in case.contents().items()}
    for key, span in case.format.index(case.path).items():
        if span.offset < 0 or end_of(span) > sizes.get(span.file, -1):
            raise ConformanceError(
                f"{key}: its span {span} ends at byte {end_of(span)} of {span.file}, expected a place in one of the "
                f"files {sizes}."
            )


def check_index_matches_views(case: FormatCase) -> None:
    """Role, shape, dtype and values at the index are those of the view, in the same order."""
    index = case.format.index(case.path)
    _, views = case.open()
    for view in views:
        if view.name not in index:
            raise ConformanceError(f"{view.name}: the index does not name this view; it has {', '.join(index)}.")
        span = index[view.name]
        got, expected = (span.role, span.shape, span.dtype), (view.role, tuple(view.shape), view.dtype)
        if got != expected:
            raise ConformanceError(f"{view.name}: the index says {got}, the view {expected}.")
        if not same_bits(read_base(case.path, span), view.read()):
            raise ConformanceError(f"{view.name}: the bytes at the index are not what the view reads, in its order.")


def check_zero_delta_exports_the_base(case: FormatCase) -> None:
    """Exporting a delta of zero gives the checkpoint, byte for byte, and leaves the checkpoint alone."""
    before = case.contents()
    with TemporaryDirectory() as folder:
        delta, out = Path(folder, "delta.safetensors"), Path(folder, case.path.name)
        _, views = case.open()
        save_delta(delta, views)
        exported = export(case.path, delta=delta, out=out)
        for what, path in (("the export of a zero delta", exported), ("the checkpoint after an export", case.path)):
            if case.contents(path) != before:
                raise ConformanceError(f"{path}: {what} differs from the checkpoint.")


def check_export_changes_only_indexed_bytes(case: FormatCase) -> None:
    """An export changes bytes that the index names for moved keys alone, to what the live views hold.

    Beside them it changes the checksums that the format names; those that held in the checkpoint hold in the export.
    """
    index = case.format.index(case.path)
    with TemporaryDirectory() as folder:
        delta, out = Path(folder, "delta.safetensors"), Path(folder, case.path.name)
        views = case.moved(delta)
        exported = export(case.path, delta=delta, out=out)
        before, after = case.contents(), case.contents(exported)
        if {name: len(data) for name, data in before.items()} != {name: len(data) for name, data in after.items()}:
            raise ConformanceError(f"the export has other files or sizes than the checkpoint: {', '.join(after)}.")
        for name, data in before.items():
            spans = [index[key] for key in views.keys[:-1] if index[key].file == name]
            sums = [each for each in checksums_of(case.path, case.format) if each.file == name]
            _check_changes(name, data, after[name], spans, sums)
        there = case.format.index(exported)
        for key, values in values_of(views).items():
            if not same_bits(read_base(exported, there[key]), values):
                raise ConformanceError(f"{key}: the export does not hold what the live view holds.")


def _check_changes(
    name: str, before: bytes, after: bytes, spans: Sequence[Span], checksums: Sequence[Checksum]
) -> None:
    old, new = (torch.frombuffer(bytearray(data or b"-"), dtype=torch.uint8) for data in (before, after))
    allowed = torch.zeros(len(old), dtype=torch.bool)
    for span in spans:
        allowed |= span_bytes(len(old), span)
    for checksum in checksums:
        for place in checksum.places:
            allowed[place : place + 4] = True
        if holds(memoryview(before), checksum) and not holds(memoryview(after), checksum):
            raise ConformanceError(f"{name}: the checksum at {checksum.places} holds no longer in the export.")
    stray = ((old != new) & ~allowed).nonzero().view(-1)
    if len(stray):
        raise ConformanceError(
            f"the export changed {len(stray)} bytes of {name} that belong to no moved key, from {stray[0]}."
        )


def check_exported_file_loads(case: FormatCase) -> None:
    """The exported checkpoint opens, with the values of the live views."""
    with TemporaryDirectory() as folder:
        delta, out = Path(folder, "delta.safetensors"), Path(folder, case.path.name)
        expected = values_of(case.moved(delta))
        exported = export(case.path, delta=delta, out=out)
        try:
            got = values_of(case.open(exported)[1])
        except ZoquantError as error:
            raise ConformanceError(f"the exported checkpoint does not open: {error}") from error
        wrong = [key for key in expected if key not in got or not same_bits(got[key], expected[key])]
        if wrong:
            raise ConformanceError(f"{wrong[0]}: the exported checkpoint opens with other values than were trained.")
