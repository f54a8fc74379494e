"""Laws 1 to 3, 8 and 9 for a format: its layers, its base, and damaged files."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from zoquant.checkpoint.exporting import export
from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.testing.backends import check_backend
from zoquant.testing.format_case import FormatCase, end_of
from zoquant.testing.results import ConformanceError
from zoquant.views.attach import claimed

_CUTS = 24


def check_layers_conform(case: FormatCase) -> None:
    """Every kind of layer of the native model that has something to train passes `check_backend`."""
    model, _ = case.open()
    kinds: dict[str, tuple[str, nn.Module]] = {}
    for path, module, backend in claimed(model):
        if backend.open(module):
            kinds.setdefault(repr(module), (path, module))
    for path, module in kinds.values():
        try:
            check_backend(lambda module=module: copy.deepcopy(module), steps=case.steps)  # type: ignore[misc]
        except ConformanceError as error:
            raise ConformanceError(f"{path}: {error}") from error


def check_export_refuses_another_base(case: FormatCase) -> None:
    """A delta is refused by a checkpoint with other values, with the key that differs, and nothing is written."""
    with TemporaryDirectory() as folder:
        delta, other, out = (Path(folder, name) for name in ("delta.safetensors", "other", "out"))
        key = case.moved(delta).keys[0]
        span = case.format.index(case.path)[key]
        other.mkdir()
        stranger, files = case.copy_to(other)
        data = bytearray(files[span.file].read_bytes())
        data[span.offset] ^= 1
        files[span.file].write_bytes(data)
        try:
            export(stranger, delta=delta, out=out)
        except BaseMismatchError as error:
            if key not in str(error):
                raise ConformanceError(f"the refusal does not name {key}: {error}") from error
        else:
            raise ConformanceError(f"{key}: a delta was exported to a checkpoint with other values.")
        if out.exists():
            raise ConformanceError(f"a refused export left {out.name} behind.")


def check_truncated_file_is_refused(case: FormatCase) -> None:
    """index() of a file cut short, down to the last value that it names, raises CheckpointError and nothing else."""
    spans = case.format.index(case.path).values()
    for name in sorted({span.file for span in spans}):
        data = case.contents()[name]
        end = min(max(end_of(span) for span in spans if span.file == name), len(data)) - 1
        cuts = {0, 1, 4, 8, 16, 32, 64, end, *(end * n // _CUTS for n in range(_CUTS))}
        with TemporaryDirectory() as folder:
            path, files = case.copy_to(Path(folder))
            for cut in sorted(cuts):
                files[name].write_bytes(data[:cut])
                _check_refused(case, path, f"{name} cut to {cut} of its {len(data)} bytes")


def _check_refused(case: FormatCase, path: Path, what: str) -> None:
    try:
        case.format.index(path)
    except CheckpointError:
        return
    except Exception as error:
        raise ConformanceError(
            f"index() with {what} raised {type(error).__name__}, expected CheckpointError: {error}"
        ) from error
    raise ConformanceError(f"index() took a checkpoint with {what} for a whole one.")
