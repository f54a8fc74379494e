"""What all formats of checkpoint folders share. A format adds which matrices are quantized, and how."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.checkpoint.folder.libraries import is_installed
from zoquant.checkpoint.folder.matrix import DENSE, StoredMatrix
from zoquant.checkpoint.folder.model import build_model, empty_model, load_with_transformers
from zoquant.checkpoint.folder.reading import (
    CONFIG,
    Folder,
    holds_only_adapter,
    open_folder,
    read_json,
    read_quantization,
)
from zoquant.checkpoint.folder.tokenizer import build_tokenizer
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.files.zipped import read_members
from zoquant.protocol import Checksum, Span, Summary


class FolderFormat(ABC):
    """Base of the formats of checkpoint folders; an implementation of `zoquant.protocol.Format`.

    Attributes:
        name: the format's name, in kebab-case.
        methods: the values of `quant_method` that it claims.
        library: the import name of the library whose modules compute the vendor runtime; empty where there is none.
        reason: why modules of a library cannot be trained, so that there is no vendor runtime; without a full stop.
        notes: what `zoquant inspect` says of every checkpoint of the format.
    """

    name: str
    methods: frozenset[str]
    library: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()

    @abstractmethod
    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every quantized matrix by the path of its module, reading headers alone.

        Raises:
            CheckpointError: a tensor is missing, or shapes and dtypes contradict each other or the config; it is named.
            UnsupportedLayoutError: the folder is whole, but native layers do not compute what is in it.
        """

    def prepare(self, model: nn.Module) -> None:
        """Change an empty model of transformers so that it has a Linear or an Embedding for every matrix."""
        return

    def claims(self, quantization: Mapping[str, Any]) -> bool:
        """Tell from what the config says of quantization whether the checkpoint is of this kind."""
        method = quantization.get("quant_method")
        return isinstance(method, str) and method in self.methods

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a folder whose config names this format, and that holds more than an adapter."""
        try:
            return path.is_dir() and self.claims(quantization_of(path)) and not holds_only_adapter(path)
        except CheckpointError:
            return False

    def index(self, path: Path) -> Mapping[str, Span]:
        """Return the place of every continuous value: those of the layers, and tensors that are not quantized.

        Raises:
            CheckpointError: a file is missing, damaged, or contradicts the others.
        """
        folder = open_folder(path)
        layers = self.layers(folder)
        spans = {
            f"{layer.path}.{name}": folder.span(tensor, role)
            for layer in layers.values()
            for name, (role, tensor) in layer.fields.items()
        }
        dense = {name: folder.span(name, "dense") for name in dense_tensors(folder, layers)}
        return {**spans, **dense}

    def checksums(self, path: Path) -> Sequence[Checksum]:
        """Return the checksums of the members of files of torch.save; safetensors files have none.

        Raises:
            CheckpointError: a file is damaged.
        """
        files = sorted({tensor.file for tensor in open_folder(path).tensors.values()})
        return [
            Checksum(file.relative_to(path).as_posix(), member.start, member.size, member.crc_places)
            for file in files
            if file.suffix != ".safetensors"
            for member in read_members(file).values()
        ]

    def summarize(self, path: Path) -> Summary:
        """Return what the config and the headers say."""
        folder = open_folder(path)
        layers = self.layers(folder)
        dense = [folder.tensors[name] for name in dense_tensors(folder, layers)]
        types = Counter(layer.type for layer in layers.values())
        types.update(str(tensor.dtype).removeprefix("torch.") for tensor in dense)
        return Summary(
            architecture=str(folder.config.get("model_type", "unknown")),
            layers=len(layers),
            parameters=sum(layer.rows * layer.columns for layer in layers.values())
            + sum(prod(tensor.shape) for tensor in dense),
            bytes=folder.bytes,
            types=types,
            notes=[
                *sorted({f"{layer.type}: nothing to train, {layer.note}" for layer in layers.values() if layer.note}),
                *self.notes,
            ],
            runtimes=self.runtimes(),
        )

    def empty(self, path: Path) -> nn.Module:
        """Return the model without memory for its weights."""
        return empty_model(open_folder(path))

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on native layers, and its tokenizer or None.

        Raises:
            CheckpointError: a file is damaged, or zoquant cannot build the model.
        """
        folder = open_folder(path)
        layers = self.layers(folder)
        model = build_model(folder, layers, compute_dtype=compute_dtype, device=device, prepare=self.prepare)
        return model, build_tokenizer(path)

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on the library's own layers, and its tokenizer or None.

        Raises:
            UnsupportedLayoutError: there is no such library, it is not installed, or what it has cannot be trained.
            CheckpointError: transformers refuses the checkpoint.
        """
        if self._lacking:
            raise UnsupportedLayoutError(
                f"{path}: the format {self.name} has no vendor runtime here: {self._lacking}. Use runtime='native'."
            )
        return load_with_transformers(path, compute_dtype=compute_dtype, device=device), build_tokenizer(path)

    def runtimes(self) -> dict[str, str]:
        """Return whether zoquant's layers and those of the library can compute the forward here, and why."""
        vendor = f"no: {self._lacking}" if self._lacking else f"yes: {self.library} is installed"
        return {"native": "yes: runs on the file's own words", "vendor": vendor}

    @property
    def _lacking(self) -> str:
        """Why the library does not compute the forward here; empty where it does."""
        if self.reason or not self.library:
            return self.reason or "no library computes it here"
        return "" if is_installed(self.library) else f"{self.library} is not installed"


def dense_tensors(folder: Folder, layers: Mapping[str, StoredMatrix]) -> Iterator[str]:
    """Yield the tensors of plain numbers that belong to no quantized matrix."""
    taken = {name for layer in layers.values() for name in layer.tensors}
    for name, tensor in folder.tensors.items():
        if name not in taken and tensor.dtype in DENSE:
            yield name


def quantization_of(path: Path) -> Mapping[str, Any]:
    """Return what the config of a folder says of its quantization; may be empty.

    Raises:
        CheckpointError: the config is damaged.
    """
    return read_quantization(path, read_json(path / CONFIG) if (path / CONFIG).exists() else {})
