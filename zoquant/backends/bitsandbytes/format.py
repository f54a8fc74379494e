"""Checkpoints that bitsandbytes quantized, as transformers saves them.

    4 bits:  <path>.weight              uint8 [rows * columns / 2, 1]
             <path>.weight.absmax       float32 [blocks], or uint8 when nested
             <path>.weight.quant_map    float32 [16]
             <path>.weight.nested_absmax, .nested_quant_map        float32 [ceil(blocks / 256)], [256], when nested
             <path>.weight.quant_state.bitsandbytes__nf4 (or fp4)  JSON in bytes
    8 bits:  <path>.weight int8 [rows, columns], <path>.SCB float32 [rows], <path>.weight_format uint8 []

Source: bitsandbytes 0.50.2, functional.py (`QuantState`), nn/modules.py.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.backends.bitsandbytes.quant_state import PREFIX, QUANT_TYPES, read_quant_state
from zoquant.backends.bitsandbytes.weights import EIGHT_BIT, TABLES, four_bit
from zoquant.checkpoint.folder import DENSE, Folder, FolderFormat, MadeMatrix, StoredMatrix
from zoquant.protocol import Role

_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
_CLOSE = 1e-3


class BitsAndBytesFormat(FolderFormat):
    """NF4, FP4, both with nested absmax, and LLM.int8()."""

    name = "bitsandbytes"
    methods = frozenset({"bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"})
    library = "bitsandbytes"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        found: dict[str, StoredMatrix] = {
            path: _four_bit(folder, path, kind)
            for kind in QUANT_TYPES
            for path in folder.paths(f"weight.{PREFIX}{kind}")
        }
        found |= {path: _eight_bit(folder, path) for path in folder.paths("SCB")}
        _check_config(folder, found.values())
        taken = {name for layer in found.values() for name in layer.tensors}
        for name, tensor in folder.tensors.items():
            if name not in taken and (tensor.dtype not in DENSE or name.endswith(_PARTS)):
                raise folder.error(name, f"a {PREFIX}nf4, {PREFIX}fp4 or SCB of its layer", "none")
        return found

    def open_vendor(self, path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
        """Return the model on bitsandbytes' own layers, their AVX512 kernel switched off, and its tokenizer.

        That kernel packs the words anew at the first forward and rounds absmax to bfloat16.
        """
        model, tokenizer = super().open_vendor(path, compute_dtype=compute_dtype, device=device)
        layers: list[Any] = [each for each in model.modules() if hasattr(each, "support_avx512bf16_for_cpu")]
        for layer in layers:
            layer.support_avx512bf16_for_cpu = False
        return model, tokenizer


def _four_bit(folder: Folder, path: str, quant_type: str) -> StoredMatrix:
    at = f"{path}.weight"
    name = f"{at}.{PREFIX}{quant_type}"
    state = read_quant_state(folder, name)
    if folder.tensor(at).nbytes != state.rows * state.columns // 2:
        raise folder.error(
            at, f"{state.rows * state.columns // 2} bytes for {state.rows} x {state.columns} codes of 4 bits",
            f"{folder.tensor(at).nbytes}",
        )  # fmt: skip
    blocks, nested = -(-state.rows * state.columns // state.blocksize), state.nested_blocksize
    shapes = {"quant_map": 16, "absmax": blocks}
    if nested:
        shapes |= {"nested_absmax": -(-blocks // nested), "nested_quant_map": 256}
    for part, count in shapes.items():
        codes = nested and part == "absmax"
        folder.expect(f"{at}.{part}", (count,), [torch.uint8 if codes else torch.float32])
    table = torch.tensor(TABLES[quant_type])
    if not torch.allclose(folder.read(f"{at}.quant_map"), table, rtol=0, atol=_CLOSE):
        raise folder.error(f"{at}.quant_map", f"the table of {quant_type}, which the kernels use", "another")
    view = "nested_absmax" if nested else "absmax"
    fields: dict[str, tuple[Role, str]] = {view: ("scale", f"{at}.{view}")}
    names = (at, name, *(f"{at}.{part}" for part in shapes))
    kind = f"{quant_type} b{state.blocksize}{' nested' if nested else ''}"
    return MadeMatrix(path, state.rows, state.columns, kind, names, fields, make=partial(four_bit, state=state))


def _eight_bit(folder: Folder, path: str) -> StoredMatrix:
    for name in folder.held(path, EIGHT_BIT.beside):
        _check_row_major(folder, f"{path}.{name}")
    return EIGHT_BIT.matrix(folder, path)


def _check_row_major(folder: Folder, name: str) -> None:
    folder.expect(name, (), [torch.uint8])
    order = int(folder.read(name))
    if order != 0:
        raise folder.error(name, "0, rows in their order", f"{order}, an order of one GPU that nobody reads any more")


def _check_config(folder: Folder, layers: Iterable[StoredMatrix]) -> None:
    """Compare what the config says with what there is: the library builds its layers from the config."""
    bits = {8 if layer.type == EIGHT_BIT.type else 4 for layer in layers}
    said = {n for n in (4, 8) for key in (f"load_in_{n}bit", f"_load_in_{n}bit") if folder.quantization.get(key)}
    if bits != said or len(bits) != 1:
        raise folder.error(
            "quantization_config",
            "one of load_in_4bit and load_in_8bit, as the tensors are",
            f"a config of {sorted(said)} bits and tensors of {sorted(bits)} bits",
        )
