"""Laws 1 to 3, 8 and 9 for a format: its layers, its base, and damaged files."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from zoquant.attach import claimed
from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.export import export
from zoquant.testing.backends import check_backend
from zoquant.testing.format_case import FormatCase, end_of
from zoquant.testing.results import ConformanceError

_CUTS = 24


def check_layers_conform(case: FormatCase) -> None:
    """Every kind of layer of the native model passes `check_backend`."""
    model, _ = case.open()
    kinds: dict[str, tuple[str, nn.Module]] = {}
    for path, module, _ in claimed(model):
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
        data = bytearray(case.path.read_bytes())
        data[span.offset] ^= 1
        other.mkdir()
        stranger = other / case.path.name
        stranger.write_bytes(data)
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
    data, spans = case.path.read_bytes(), case.format.index(case.path).values()
    end = min(max(map(end_of, spans)), len(data)) - 1
    cuts = {0, 1, 4, 8, 16, 32, 64, end, *(end * n // _CUTS for n in range(_CUTS))}
    with TemporaryDirectory() as folder:
        path = Path(folder, case.path.name)
        for cut in sorted(cuts):
            path.write_bytes(data[:cut])
            try:
                case.format.index(path)
            except CheckpointError:
                continue
            except Exception as error:
                raise ConformanceError(
                    f"index() of the first {cut} of {len(data)} bytes raised {type(error).__name__}, expected "
                    f"CheckpointError: {error}"
                ) from error
            raise ConformanceError(f"index() took the first {cut} of {len(data)} bytes for a whole checkpoint.")
