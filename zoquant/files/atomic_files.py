"""Files and folders appear whole or not at all: written beside their place, flushed to the disk, renamed."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from zoquant.errors import CheckpointError, OutputExistsError, WriteError, ZoquantError
from zoquant.files.plain_json import parse_json
from zoquant.files.safetensors import read_safetensors

_METADATA = "zoquant"


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` that nobody else takes: no other thread, process or container, nor one of before.

    What a kill leaves under such a name is in nobody's way. It ends in `.tmp`, and may be deleted.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        WriteError: the disk is full, the folder is missing or read-only; `path` is as it was.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise WriteError(f"{path}: is a device or a pipe, expected a place for a file. Choose another name.")
    temporary = temporary_path(path)
    try:
        with writing(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a write to `path` into one clear error.

    Raises:
        WriteError: the disk is full, the folder is missing or read-only.
    """
    try:
        yield
    except ZoquantError:  # it has its own reason, e.g. that the place was taken meanwhile
        raise
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written: {error.strerror or error}. Whatever stood there is unchanged; free some space "
            "or choose another folder."
        ) from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        WriteError: the disk is full, the place is read-only, or something stands at `path`.
    """
    temporary = temporary_path(path)
    try:
        with writing(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_existing(path: Path) -> None:
    """Raise OutputExistsError when something already stands at `path`."""
    if path.exists():
        raise OutputExistsError(f"{path}: already exists; nothing is overwritten. Choose another name or remove it.")


def refuse_place(path: Path) -> None:
    """Refuse a place for a new file where something stands already, or in a folder that is not there.

    Raises:
        OutputExistsError: something stands at `path`.
        WriteError: its folder does not exist.
    """
    refuse_existing(path)
    if not path.parent.is_dir():
        raise WriteError(f"{path}: the folder {path.parent} does not exist. Make it, or choose another place.")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file, whole or not at all; the same content gives the same bytes.

    Args:
        path: the file.
        tensors: CPU tensors by key.
        metadata: anything JSON can hold; kept under one key, since the order of several is not fixed.
    """
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    data = safetensors.torch.save(dict(tensors), {_METADATA: text})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of a kind, `"delta"` or `"trajectory"`, that `save_tensors` wrote.

    Nothing of it stays mapped, so that it may change afterwards.

    Raises:
        CheckpointError: the file is missing, truncated, or not of this kind.
    """
    try:
        stored, said = read_safetensors(path)
        metadata = parse_json(said.get(_METADATA, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata is damaged: {str(error)[:120]}. Is it whole?") from error
    if not isinstance(metadata, dict) or metadata.get("kind") != kind:
        got = metadata.get("kind") if isinstance(metadata, dict) else None
        other = f"a {got}" if got in ("delta", "trajectory") else "another safetensors file"
        raise CheckpointError(f"{path}: expected a zoquant {kind}, got {other}. Check the path.")
    return {name: tensor.read() for name, tensor in stored.items()}, metadata
