"""Checkpoints that bitsandbytes quantized, as transformers saves them.

    4 bits:  <path>.weight              uint8 [rows * columns / 2, 1]
             <path>.weight.absmax       float32 [blocks], or uint8 when nested
             <path>.weight.quant_map    float32 [16]
             <path>.weight.nested_absmax, .nested_quant_map        float32 [ceil(blocks / 256)], [256], when nested
             <path>.weight.quant_state.bitsandbytes__nf4 (or fp4)  JSON in bytes
    8 bits:  <path>.weight int8 [rows, columns], <path>.SCB float32 [rows], <path>.weight_format uint8 []

Source: bitsandbytes 0.50.2, functional.py (`QuantState`), nn/modules.py.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.bitsandbytes.quant_state import PREFIX, QUANT_TYPES, QuantState, read_quant_state
from zoquant.backends.bitsandbytes.weights import TABLES, NestedAbsmax, eight_bit, four_bit
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE
from zoquant.native import FieldSpec, PackedWeight, Values
from zoquant.native.values import flat_groups

_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
_CLOSE = 1e-3


class BitsAndBytesFormat(FolderFormat):
    """NF4, FP4, both with nested absmax, and LLM.int8()."""

    name = "bitsandbytes"
    methods = frozenset({"bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"})
    library = "bitsandbytes"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every matrix with a packed quant_state (4 bits) or an SCB (8 bits).

        Raises:
            CheckpointError: a tensor is missing, left over, or of another shape or dtype than the quant_state says.
        """
        found = {layer.path: layer for layer in [*_four_bit_layers(folder), *_eight_bit_layers(folder)]}
        _check_config(folder, found.values())
        taken = {name for layer in found.values() for name in layer.tensors}
        for name, tensor in folder.tensors.items():
            if name not in taken and (tensor.dtype not in DENSE or name.endswith(_PARTS)):
                raise folder.error(name, f"a {PREFIX}nf4, {PREFIX}fp4 or SCB of its layer", "none")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on bitsandbytes' own layers, their AVX512 kernel switched off, and its tokenizer.

        That kernel packs the words anew at the first forward and rounds absmax to bfloat16.

        Raises:
            UnsupportedLayoutError: bitsandbytes is not installed.
            CheckpointError: transformers refuses the checkpoint.
        """
        model, tokenizer = super().open_vendor(path, compute_dtype=compute_dtype, device=device)
        layers: list[Any] = [each for each in model.modules() if hasattr(each, "support_avx512bf16_for_cpu")]
        for layer in layers:
            layer.support_avx512bf16_for_cpu = False
        return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class FourBit(StoredMatrix):
    """A matrix of NF4 or FP4."""

    state: QuantState

    def packed(self, folder: Folder) -> PackedWeight:
        """Read words and absmax."""
        at = f"{self.path}.weight"
        codes, absmax = folder.read(at), folder.read(f"{at}.absmax")
        if not self.state.nested_blocksize:
            spec = FieldSpec("absmax", "scale", absmax.dtype)
            return four_bit(
                codes, Values(spec, absmax, flat_groups(self.state.columns, self.state.blocksize)), self.state
            )
        nested, quant_map = folder.read(f"{at}.nested_absmax"), folder.read(f"{at}.nested_quant_map")
        spec = FieldSpec("nested_absmax", "scale", nested.dtype)
        return four_bit(codes, NestedAbsmax(spec, nested, absmax, quant_map, self.state), self.state)


class EightBit(StoredMatrix):
    """A matrix of LLM.int8()."""

    def packed(self, folder: Folder) -> PackedWeight:
        """Read codes and SCB."""
        return eight_bit(folder.read(f"{self.path}.weight"), folder.read(f"{self.path}.SCB"))


def _four_bit_layers(folder: Folder) -> Iterator[FourBit]:
    for name in folder.tensors:
        path, found, quant_type = name.rpartition(f".weight.{PREFIX}")
        if found and quant_type in QUANT_TYPES:
            yield _four_bit_layer(folder, path, name)


def _four_bit_layer(folder: Folder, path: str, name: str) -> FourBit:
    state, at = read_quant_state(folder, name), f"{path}.weight"
    if folder.tensor(at).nbytes != state.rows * state.columns // 2:
        raise folder.error(
            at, f"{state.rows * state.columns // 2} bytes for {state.rows} x {state.columns} codes of 4 bits",
            f"{folder.tensor(at).nbytes}",
        )  # fmt: skip
    blocks = -(-state.rows * state.columns // state.blocksize)
    folder.expect(f"{at}.quant_map", (16,), [torch.float32])
    table = torch.tensor(TABLES[state.quant_type])
    if not torch.allclose(folder.read(f"{at}.quant_map"), table, rtol=0, atol=_CLOSE):
        raise folder.error(f"{at}.quant_map", f"the table of {state.quant_type}, which the kernels use", "another")
    names = [at, f"{at}.absmax", f"{at}.quant_map", name]
    if state.nested_blocksize:
        folder.expect(f"{at}.absmax", (blocks,), [torch.uint8])
        folder.expect(f"{at}.nested_absmax", (-(-blocks // state.nested_blocksize),), [torch.float32])
        folder.expect(f"{at}.nested_quant_map", (256,), [torch.float32])
        names += [f"{at}.nested_absmax", f"{at}.nested_quant_map"]
    else:
        folder.expect(f"{at}.absmax", (blocks,), [torch.float32])
    view = "nested_absmax" if state.nested_blocksize else "absmax"
    return FourBit(
        path=path,
        rows=state.rows,
        columns=state.columns,
        type=f"{state.quant_type} b{state.blocksize}{' nested' if state.nested_blocksize else ''}",
        tensors=tuple(names),
        fields={view: ("scale", f"{at}.{view}")},
        state=state,
    )


def _eight_bit_layers(folder: Folder) -> Iterator[EightBit]:
    for name in folder.tensors:
        path, found, _ = name.rpartition(".SCB")
        if not found:
            continue
        shape = folder.tensor(f"{path}.weight").shape
        if len(shape) != 2 or 0 in shape:
            raise folder.error(f"{path}.weight", "a matrix", f"shape {list(shape)}")
        folder.expect(f"{path}.weight", shape, [torch.int8])
        folder.expect(name, shape[:1], [torch.float32])
        names = [f"{path}.weight", name]
        if f"{path}.weight_format" in folder.tensors:
            names.append(f"{path}.weight_format")
            _check_row_major(folder, names[-1])
        yield EightBit(path, *shape, "int8 rows", tuple(names), {"SCB": ("scale", name)})


def _check_row_major(folder: Folder, name: str) -> None:
    folder.expect(name, (), [torch.uint8])
    order = int(folder.read(name))
    if order != 0:
        raise folder.error(name, "0, rows in their order", f"{order}, an order of one GPU that nobody reads any more")


def _check_config(folder: Folder, layers: Iterable[StoredMatrix]) -> None:
    """Compare what the config says with what there is: the library builds its layers from the config."""
    bits = {4 if isinstance(layer, FourBit) else 8 for layer in layers}
    said = {n for n in (4, 8) for key in (f"load_in_{n}bit", f"_load_in_{n}bit") if folder.quantization.get(key)}
    if bits != said or len(bits) != 1:
        raise folder.error(
            "quantization_config",
            "one of load_in_4bit and load_in_8bit, as the tensors are",
            f"a config of {sorted(said)} bits and tensors of {sorted(bits)} bits",
        )
