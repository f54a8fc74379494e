"""What is fuzzed: every registered format on a sample of its own, and the readers below them."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import zoquant
from fuzz.guard import FindingError, guarded
from fuzz.mutations import mutate
from fuzz.page_targets import PAGE_TARGETS
from fuzz.row_targets import ROW_TARGETS
from fuzz.run_targets import RUN_TARGETS
from tests.samples import FORMAT_SAMPLES
from zoquant.backends.gguf.data import read_dense, read_matrix
from zoquant.backends.gguf.header import read_header
from zoquant.backends.gguf.types import DENSE
from zoquant.checkpoint.stored_files import file_of
from zoquant.checkpoint.stored_values import read_base
from zoquant.errors import (
    BaseMismatchError,
    CheckpointError,
    ConfigError,
    DataError,
    RankError,
    UnsupportedLayoutError,
    ValueRangeError,
)
from zoquant.files.archive import read_archive
from zoquant.files.safetensors import read_safetensors
from zoquant.registry import format_named
from zoquant.testing.format_case import end_of

Use = Callable[[Path, bool], object]
READERS = {**RUN_TARGETS, **ROW_TARGETS, **PAGE_TARGETS}
REFUSALS = (
    CheckpointError, UnsupportedLayoutError, DataError, ValueRangeError, ConfigError, BaseMismatchError, RankError,
)  # fmt: skip
"""What a parser may raise."""
_EVERY = 4
"""Headers are read again for the summary, so it is asked for in every fourth case alone."""


@dataclass
class Target:
    """A parser and the sound checkpoint that its cases are made from.

    Attributes:
        name: the format's name, or the reader's.
        path: a checkpoint, in a folder of its own; cases are written over it.
        use: calls the parser on a path, or all that a format has if the second argument is true.
    """

    name: str
    path: Path
    use: Use
    files: Mapping[str, bytes] = field(init=False)
    dirty: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.path = self.path.resolve()
        self.folder = self.path if self.path.is_dir() else self.path.parent
        self.files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        self.use(self.path, True)

    def run(self, script: bytes, *, traced: bool = True) -> bool:
        """Run one case; return whether the parser took the files for a checkpoint.

        Args:
            script: what is changed, see `mutate`.
            traced: see `guarded`.

        Raises:
            FindingError: the parser raised something else than a refusal, or did what `guarded` forbids.
        """
        changed = mutate(self.files, script)
        self._write({**{name: self.files.get(name) for name in self.dirty}, **changed})
        self.dirty = set(changed)
        size = sum(len(data) for data in {**self.files, **changed}.values() if data is not None)
        try:
            with guarded(self.folder, size, traced=traced):
                self.use(self.path, sum(script) % _EVERY == 0)
        except REFUSALS:
            return False
        except FindingError:
            raise
        except Exception as error:
            raise FindingError(f"raised {type(error).__name__}: {str(error)[:300]}") from error
        return True

    def save(self, script: bytes, place: Path) -> None:
        """Keep the files of a case, and its script."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name, data in {**self.files, **mutate(self.files, script)}.items():
            if data is not None:
                (place / name).write_bytes(data)
        place.with_suffix(".script").write_bytes(script)

    def _write(self, files: Mapping[str, bytes | None]) -> None:
        for name, data in files.items():
            if data is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                (self.folder / name).write_bytes(data)


def target_names() -> list[str]:
    """Return the names of all targets: the registered formats, and the readers of files."""
    return [*sorted(zoquant.list_formats()), "reader-archive", "reader-safetensors", "reader-gguf-tensors", *READERS]


def make_target(name: str, folder: Path) -> Target:
    """Write the sample of a target into an empty folder, and return the target."""
    if name == "reader-archive":
        return Target(name, _archive(folder), lambda path, _: read_archive(path))
    if name == "reader-safetensors":
        return Target(name, _safetensors(folder), lambda path, _: read_safetensors(path))
    if name == "reader-gguf-tensors":
        return Target(name, FORMAT_SAMPLES["gguf"](folder), lambda path, _: _read_tensors(path))
    if name in READERS:
        write, use = READERS[name]
        return Target(name, write(folder), use)
    path = _adapter(folder) if name == "peft" else FORMAT_SAMPLES[name](folder)
    return Target(name, path, _use_of(name))


def _use_of(name: str) -> Use:
    found = format_named(name)

    def use(path: Path, everything: bool) -> None:
        _without_errors(found.sniff, path)
        spans = found.index(path)
        if everything:
            found.summarize(path)
        for key, span in spans.items():
            size = file_of(path, span).stat().st_size
            if not 0 <= span.offset <= end_of(span) <= size:
                raise FindingError(f"{key}: its place {span} lies outside of a file of {size} bytes.")
        for span in list(spans.values())[:2] if everything else ():
            read_base(path, span)

    return use


def _read_tensors(path: Path) -> None:
    for tensor in read_header(path).tensors.values():
        (read_dense if tensor.type.name in DENSE else read_matrix)(tensor, torch.device("cpu"))


def _without_errors(sniff: Callable[[Path], bool], path: Path) -> None:
    try:
        sniff(path)
    except Exception as error:
        raise FindingError(f"sniff() raised {type(error).__name__}: {str(error)[:300]}") from error


def _archive(folder: Path) -> Path:
    tensors: dict[str, Any] = {"a": {"W_q": torch.ones(4, 8, dtype=torch.uint8), "scale": torch.ones(4, 1).half()}}
    tensors["a"] |= {"nbits": 4, "shape": torch.Size([4, 8]), "axis": None, "dtype": torch.float16, "on": True}
    torch.save({**tensors, "b": torch.arange(6.0).view(2, 3), "c": torch.nn.Parameter(torch.ones(3))}, folder / "a.pt")
    return folder / "a.pt"


def _safetensors(folder: Path) -> Path:
    tensors = {"a.codes": torch.ones(4, 8, dtype=torch.int8), "a.scale": torch.ones(4, 1), "b": torch.ones(3).half()}
    save_file(tensors, folder / "a.safetensors", {"format": "pt"})
    return folder / "a.safetensors"


def _adapter(folder: Path) -> Path:
    """Write what peft writes of a LoRA, without peft."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "base_model_name_or_path": "base"}')
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A.weight": torch.ones(4, 8), f"{path}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
