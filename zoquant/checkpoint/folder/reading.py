"""A checkpoint folder: its config, what it says of its quantization, and the place of every tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoquant.errors import CheckpointError, shown
from zoquant.files.archive import Plain, read_archive
from zoquant.files.plain_json import parse_json
from zoquant.files.safe_paths import refuse_stray
from zoquant.files.safetensors import read_safetensors
from zoquant.files.tensors import StoredTensor, byte_strides
from zoquant.protocol import Role, Span

CONFIG = "config.json"
QUANTIZE_CONFIG = "quantize_config.json"
HF_QUANT_CONFIG = "hf_quant_config.json"
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Where config.json describes the quantization: everyone, and early llm-compressor and SparseML."""
WHOLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
INDEXES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json", PICKLED_INDEX)
HQQ_ARCHIVE = "qmodel.pt"
ARCHIVES = ("pytorch_model.bin", HQQ_ARCHIVE)
"""Files of torch.save."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""Files of an adapter, which may lie beside a copy of its base's config."""
MAX_JSON = 64 << 20
MAX_NAME = 255
"""Bytes of a file's name."""


@dataclass(frozen=True)
class Folder:
    """What a checkpoint folder holds; no tensor is read before `read`.

    Attributes:
        path: the folder.
        config: config.json.
        quantization: what it says of its quantization, see `read_quantization`; may be empty.
        tensors: name -> place, of all files.
        metadata: the metadata of all safetensors files together.
        values: plain values that files of torch.save hold beside their tensors, by name.
        aliases: other names that files of torch.save have for the bytes of a tensor -> its name in `tensors`.
    """

    path: Path
    config: Mapping[str, Any]
    quantization: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    values: Mapping[str, Plain]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the files that hold tensors."""
        return sum(file.stat().st_size for file in {tensor.file for tensor in self.tensors.values()})

    def read(self, name: str) -> Tensor:
        """Return a tensor as stored.

        Raises:
            CheckpointError: there is no such tensor, or its file was cut off.
        """
        return self.tensor(name).read()

    def tensor(self, name: str) -> StoredTensor:
        """Return the place of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self.tensors:
            raise self.error(name, "a tensor of this name", "none")
        return self.tensors[name]

    def expect(self, name: str, shape: tuple[int, ...], dtypes: Iterable[torch.dtype]) -> StoredTensor:
        """Return the place of a tensor whose shape and dtype are known beforehand.

        Raises:
            CheckpointError: the tensor is missing, or of another shape or dtype.
        """
        tensor, allowed = self.tensor(name), tuple(dtypes)
        if tensor.shape != shape or tensor.dtype not in allowed:
            raise self.error(name, f"{list(shape)} of {dtype_names(allowed)}", tensor.described)
        return tensor

    def expect_matrix(self, name: str, dtypes: Iterable[torch.dtype]) -> StoredTensor:
        """Return the place of a tensor that is a matrix, and not empty.

        Raises:
            CheckpointError: the tensor is missing, of another dtype, empty, or no matrix.
        """
        tensor, allowed = self.tensor(name), tuple(dtypes)
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in allowed:
            raise self.error(name, f"a matrix of {dtype_names(allowed)}", tensor.described)
        return tensor

    def paths(self, name: str, *dtypes: torch.dtype) -> list[str]:
        """Return the paths of all modules that have a tensor of this name, of one of the dtypes if any are given."""
        return [
            found.removesuffix(f".{name}")
            for found, tensor in self.tensors.items()
            if found.endswith(f".{name}") and tensor.dtype in (dtypes or (tensor.dtype,))
        ]

    def held(self, path: str, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of some tensors of a module that there are."""
        return tuple(name for name in names if f"{path}.{name}" in self.tensors)

    def span(self, name: str, role: Role) -> Span:
        """Return the whole of a tensor as the values of a view."""
        tensor = self.tensor(name)
        file, strides = tensor.file.relative_to(self.path).as_posix(), byte_strides(tensor.shape, tensor.dtype)
        return Span(role, file, tensor.offset, tensor.shape, strides, tensor.dtype, name)

    def error(self, what: str, expected: str, got: str) -> CheckpointError:
        """Return the error for a tensor, or a key of the config, that is not as expected."""
        return CheckpointError(
            f"{self.path}: {what!r}: expected {expected}, got {got}. The checkpoint contradicts itself, or is of "
            "another kind than its config says; get it again."
        )


def dtype_names(dtypes: Iterable[torch.dtype]) -> str:
    """Return dtypes as a message names them."""
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def open_folder(path: Path) -> Folder:
    """Read the config and the headers of all files of a checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged, or contradicts the others.
    """
    config = read_json(path / CONFIG) if (path / CONFIG).exists() else {}
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    values: dict[str, Plain] = {}
    aliases: dict[str, str] = {}
    for file, names in _files(path).items():
        refuse_stray(path, file)
        if file.suffix == ".safetensors":
            found, said = read_safetensors(file)
            metadata.update(said)
        else:
            found, plain = read_archive(file)
            values.update(plain)
        _check_shard(path, file, names, found)
        others = _aliases(found)
        aliases.update(others)
        for name, tensor in found.items():
            if name in others:
                continue
            if name in tensors:
                raise CheckpointError(
                    f"{path}: tensor {name!r}: expected it once, got it from {tensors[name].file.name} and "
                    f"{file.name}. Get the checkpoint again."
                )
            tensors[name] = tensor
    return Folder(path, config, read_quantization(path, config), tensors, metadata, values, aliases)


def read_quantization(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a folder says of its quantization, in config.json or in a file of its own; may be empty.

    Early AutoGPTQ does not name its method in quantize_config.json, nor Model Optimizer in hf_quant_config.json.

    Raises:
        CheckpointError: the file is damaged.
    """
    said = next((config[key] for key in QUANTIZATION_KEYS if config.get(key) is not None), None)
    if said is None and (path / QUANTIZE_CONFIG).exists():
        said = read_json(path / QUANTIZE_CONFIG)
        said = {"quant_method": "gptq", **said} if "bits" in said else said
    if said is None and (path / HF_QUANT_CONFIG).exists():
        said = {"quant_method": "modelopt", **read_json(path / HF_QUANT_CONFIG)}
    return said if isinstance(said, dict) else {}


def holds_only_adapter(path: Path) -> bool:
    """Whether a folder has the weights of an adapter and none of a model."""
    names = {file.name for file in path.glob("*.safetensors")}
    names.update(name for name in (*INDEXES, *ARCHIVES, *ADAPTERS) if (path / name).exists())
    return (path / ADAPTER_CONFIG).is_file() and bool(names) and names <= {*ADAPTERS}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, is too large, lies elsewhere, or holds something else.
    """
    refuse_stray(path.parent, path)
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(
                f"{path}: expected at most {MAX_JSON} bytes of JSON, got {path.stat().st_size}. Get it again."
            )
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Get the whole checkpoint.") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path}: expected JSON, got {str(error)[:120]}. The file is damaged; get it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {shown(content)}. Get the checkpoint again.")
    return content


def _files(path: Path) -> dict[Path, set[str] | None]:
    """Return the files that hold tensors, with the names that an index file promises of each.

    In the order of transformers: one file before several, safetensors before files of torch.save.
    """
    whole = path / WHOLE
    if whole.exists():
        return {whole: None}
    archives = [path / name for name in ARCHIVES if (path / name).exists()]
    for index in INDEXES:
        if (path / index).exists() and not (index == PICKLED_INDEX and archives):
            return dict(_shards(path, index))
    found = sorted(path.glob("*.safetensors")) or archives
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: expected {WHOLE}, or {INDEXES[0]} and its shards, or one of {', '.join(ARCHIVES)}, got "
            f"{', '.join(file.name for file in found) or 'no such file'}. Get the whole checkpoint."
        )
    return {found[0]: None}


def _aliases(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Return the names of tensors whose bytes have another name too: torch.save keeps every name of tied weights.

    The first name stays, as the live model has it, since state dicts follow its modules; a head's name never does where
    there is another.
    """
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.nbytes:
            groups.setdefault((tensor.offset, tensor.shape, tensor.dtype), []).append(name)
    ordered = (sorted(group, key=lambda name: name.startswith("lm_head.")) for group in groups.values())
    return {name: first for first, *others in ordered for name in others}


def _shards(path: Path, index: str) -> Iterable[tuple[Path, set[str]]]:
    places = read_json(path / index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path / index}: 'weight_map': expected names of tensors and files. Get it again.")
    shards: dict[str, set[str]] = {}
    for name, file in places.items():
        if not _is_plain_name(file):
            raise CheckpointError(
                f"{path / index}: {name!r}: expected the name of a file in this folder, got {shown(file)}."
            )
        shards.setdefault(file, set()).add(name)
    for file, names in sorted(shards.items()):
        if not (path / file).is_file():
            raise CheckpointError(f"{path}: expected the shard {file}, as {index} says, got none. Get that file too.")
        yield path / file, names


def _is_plain_name(file: Any) -> bool:
    """Whether this can be the name of a file in the folder itself, on any system."""
    if not isinstance(file, str) or not file.isprintable() or file in ("", ".", ".."):
        return False
    return Path(file).name == file and len(file.encode()) <= MAX_NAME


def _check_shard(path: Path, file: Path, names: set[str] | None, found: Mapping[str, StoredTensor]) -> None:
    missing = sorted((names or set()) - found.keys())
    if missing:
        raise CheckpointError(
            f"{path}: tensor {missing[0]!r}: expected it in {file.name}, as the index says, got none there. "
            "Get that file again."
        )
