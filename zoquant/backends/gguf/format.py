"""GGUF files: the place of every continuous value, and a model that runs on their blocks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.gguf import diffusion
from zoquant.backends.gguf.architectures import ARCHITECTURES, Architecture, Target, architecture_of, target_of
from zoquant.backends.gguf.blocks import CODECS
from zoquant.backends.gguf.header import MAGIC, Header, TensorInfo
from zoquant.backends.gguf.shards import read_model, shard_paths
from zoquant.backends.gguf.types import DENSE
from zoquant.files.tensors import byte_strides
from zoquant.protocol import Span, Summary


class GGUFFormat:
    """The format of llama.cpp: metadata, tokenizer and tensors of block-quantized weights, in one file or in shards."""

    name = "gguf"

    def sniff(self, path: Path) -> bool:
        """Tell whether `path` is a file that starts as a GGUF file does."""
        try:
            with path.open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        except OSError:
            return False

    def files(self, path: Path) -> Sequence[Path]:
        """Return the file, or all shards of the model that it belongs to."""
        return shard_paths(path)

    def index(self, path: Path) -> Mapping[str, Span]:
        """Return the place of every continuous value: the fp16 fields of the blocks, and plain numbers.

        Values are those of the file, also where the model holds them in another form: the norms of Gemma, to which the
        file adds 1, weights and biases in llama.cpp's rope order, and numbers of 16 bits, some of which become float32.
        """
        header = read_model(path)
        if header.architecture in diffusion.ARCHITECTURES:
            return dict(_diffusion_spans(header))
        return dict(_spans(header, architecture_of(header)))

    def summarize(self, path: Path) -> Summary:
        """Return what the header says of the file; any architecture will do."""
        header = read_model(path)
        tensors = header.tensors.values()
        sizes = [(tensor, _numbers(tensor)) for tensor in tensors]
        return Summary(
            architecture=header.architecture,
            layers=sum(tensor.type.name in CODECS for tensor in tensors),
            parameters=sum(count for _, count in sizes),
            bytes=header.size,
            types=Counter(tensor.type.name for tensor in tensors),
            notes=list(_notes(header)),
            runtimes=_runtimes(header),
        )

    def empty(self, path: Path) -> nn.Module:
        """Return the model without memory for its weights."""
        from zoquant.backends.gguf.model import empty_model

        return empty_model(read_model(path))

    def open_native(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on native layers and its tokenizer, or None for a file without one."""
        from zoquant.backends.gguf.model import build_model
        from zoquant.backends.gguf.tokenizer import build_tokenizer

        header = read_model(path)
        model = build_model(header, compute_dtype=compute_dtype, device=device)
        return model, build_tokenizer(header)


def _spans(header: Header, architecture: Architecture) -> Iterator[tuple[str, Span]]:
    for found in header.tensors.values():
        if found.name in architecture.rope_tensors:
            continue
        target = target_of(header.path, architecture, found.name)
        tensor = target.placed(found)
        if tensor.type.name in CODECS or target.experts is not None:
            _check_matrix(target, tensor)
        if tensor.type.name in CODECS:
            yield from _block_spans(target.module, tensor)
        elif tensor.type.name in DENSE:
            shape = tensor.shape if target.experts is None else (tensor.shape[0] * tensor.shape[1], tensor.shape[2])
            yield f"{target.module}.{target.field}", _dense_span(shape, tensor)


def _diffusion_spans(header: Header) -> Iterator[tuple[str, Span]]:
    for name, tensor in diffusion.parts(header):
        if tensor.type.name in CODECS:
            yield from _block_spans(name.rpartition(".")[0], tensor)
        elif tensor.type.name in DENSE:
            yield name, _dense_span(tensor.shape, tensor)


def _check_matrix(target: Target, tensor: TensorInfo) -> None:
    dimensions = 2 if target.experts is None else 3
    if len(tensor.shape) != dimensions:
        what = "a matrix" if target.experts is None else "[experts, rows, columns]"
        raise tensor.error(f"{what} for type {tensor.type.name}", f"shape {tensor.shape}")


def _dense_span(shape: tuple[int, ...], tensor: TensorInfo) -> Span:
    dtype = DENSE[tensor.type.name]
    return Span("dense", tensor.file.name, tensor.offset, shape, byte_strides(shape, dtype), dtype, tensor.name)


def _block_spans(module: str, tensor: TensorInfo) -> Iterator[tuple[str, Span]]:
    """Yield the fields of a matrix; those of experts are one matrix, one below the other."""
    codec = CODECS[tensor.type.name]
    groups = tensor.shape[-1] // codec.block
    for field, start in zip(codec.fields, codec.offsets, strict=True):
        shape, strides = (prod(tensor.shape[:-1]), groups), (groups * codec.nbytes, codec.nbytes)
        place = (tensor.file.name, tensor.offset + start, shape, strides, field.dtype, tensor.name)
        yield f"{module}.{field.name}", Span(field.role, *place)


def _numbers(tensor: TensorInfo) -> int:
    return tensor.nbytes // tensor.type.nbytes * tensor.type.block


def _notes(header: Header) -> Iterator[str]:
    for name in sorted({tensor.type.name for tensor in header.tensors.values()} - set(DENSE)):
        codec = CODECS.get(name)
        if codec is None:
            yield f"{name}: zoquant cannot decode this type"
        elif codec.reason:
            yield f"{name}: nothing to train, {codec.reason}"


def _runtimes(header: Header) -> dict[str, str]:
    unknown = sorted({tensor.type.name for tensor in header.tensors.values()} - set(DENSE) - set(CODECS))
    if header.architecture in diffusion.ARCHITECTURES:
        return {
            "native": "no: diffusers builds the model",
            "vendor": "yes: load it with diffusers' from_single_file and attach",
        }
    if header.architecture not in ARCHITECTURES:
        native = f"no: architecture {header.architecture!r} is not one of {', '.join(sorted(ARCHITECTURES))}"
    elif unknown:
        native = f"no: zoquant cannot decode {', '.join(unknown)}"
    else:
        native = "yes: runs on the file's own blocks"
    return {"native": native, "vendor": "no: transformers dequantizes GGUF files when it loads them"}
