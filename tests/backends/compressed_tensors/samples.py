"""Small matrices as compressed-tensors stores them, with the float64 weight that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.backends.compressed_tensors import reference as ref
from tests.checkpoint.folder.llama import write_llama

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """One way of storing weights, as the config says it.

    Attributes:
        args: the `weights` of a config group.
        dtype: of the scales.
        g_idx: whether columns belong to groups in another order.
    """

    args: Mapping[str, Any]
    dtype: torch.dtype = torch.float16
    g_idx: bool = False
    packed: bool = True


def integers(bits: int, strategy: str = "group", *, symmetric: bool = True, block: Any = None, **more: Any) -> Kind:
    """Return a kind of integers, in groups of 32 if in groups."""
    group = 32 if strategy == "group" else None
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group}
    return Kind({**args, "block_structure": block}, **more)


def floats(bits: int, strategy: str = "channel", *, group: int | None = None, block: Any = None, **more: Any) -> Kind:
    """Return a kind of floats."""
    args = {"num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, "group_size": group}
    return Kind({**args, "block_structure": block}, **more)


KINDS: dict[str, Kind] = {
    **{f"w{bits}-g32-sym": integers(bits) for bits in range(1, 9)},
    **{f"w{bits}-g32-asym": integers(bits, symmetric=False) for bits in (2, 3, 4, 5, 8)},
    "w4-channel-sym": integers(4, "channel", dtype=torch.bfloat16),
    "w4-channel-asym": integers(4, "channel", symmetric=False),
    "w4-tensor-asym": integers(4, "tensor", symmetric=False, dtype=torch.float32),
    "w4-actorder": integers(4, g_idx=True),
    "w4-actorder-asym": integers(4, symmetric=False, g_idx=True),
    "int8-channel": integers(8, "channel", packed=False),
    "int8-tensor": integers(8, "tensor", packed=False, dtype=torch.float32),
    "int8-group-asym": integers(8, symmetric=False, packed=False),
    "int4-naive": integers(4, packed=False),
    "int8-block": integers(8, "block", block=[24, 40], packed=False),
    "fp8-channel": floats(8, packed=False),
    "fp8-tensor": floats(8, "tensor", packed=False, dtype=torch.float32),
    "fp8-group": floats(8, "group", group=16, packed=False),
    "fp8-block": floats(8, "block", block=[24, 40], packed=False),
    "fp8-block-even": floats(8, "block", block="16x32", packed=False, dtype=torch.bfloat16),
    "nvfp4": floats(4, "tensor_group", group=16, dtype=torch.float8_e4m3fn),
    "nvfp4-bf16": floats(4, "tensor_group", group=16, dtype=torch.bfloat16),
    "mxfp4": floats(4, "group", group=32, dtype=torch.uint8),
    "mxfp6": floats(6, "group", group=32, dtype=torch.uint8),
    "mxfp8": floats(8, "group", group=32, dtype=torch.uint8, packed=False),
}


def stored(kind: Kind, rows: int, columns: int, seed: int = 0, size: float = 0.02) -> tuple[Tensors, ref.Array]:
    """Return random codes and scales as the file has them, by local name, and the weight that they stand for."""
    random = np.random.default_rng(seed)
    args = kind.args
    block = args.get("block_structure") or [0, 0]
    block = [int(part) for part in block.split("x")] if isinstance(block, str) else block
    height, width = {"tensor": (rows, columns), "channel": (1, columns), "block": block}.get(
        args["strategy"], (1, args["group_size"])
    )
    grid = (-(-rows // height), -(-columns // width))
    shape = (1,) if args["strategy"] == "tensor" else grid
    scale, factors = _scales(random, kind, shape, size)
    factors = ref.spread(factors, rows, columns, height, width)
    tensors: Tensors = {"weight_scale": scale}
    if args["type"] == "float":
        tensors |= _floats(random, kind, rows, columns)
        levels = _levels(tensors, kind, columns)
        if args["strategy"] == "tensor_group":
            tensors["weight_global_scale"] = torch.tensor([448.0 * 6 / 3.7])
            factors = factors / float(tensors["weight_global_scale"])
        return tensors, levels * factors
    bits, middle = args["num_bits"], 1 << (args["num_bits"] - 1)
    codes = random.integers(0, 1 << bits, (rows, columns))
    zeros = random.integers(0, 1 << bits, grid) if not args["symmetric"] else np.full(grid, middle)
    spread_zeros = ref.spread(zeros.astype(float), rows, columns, height, width)
    if kind.packed:
        tensors["weight_packed"] = torch.from_numpy(ref.pack(codes, bits, 32).view(np.int32))
        tensors["weight_shape"] = torch.tensor([rows, columns])
    else:
        tensors["weight"] = torch.from_numpy((codes - middle).astype(np.int8))
    if not args["symmetric"]:
        loose = torch.from_numpy((zeros - middle).astype(np.int8)).view(shape)
        packed = torch.from_numpy(np.ascontiguousarray(ref.pack(zeros.T, bits, 32).view(np.int32).T))
        tensors["weight_zero_point"] = packed if kind.packed and args["strategy"] != "tensor" else loose
    if kind.g_idx:
        order = random.permutation(columns)
        tensors["weight_g_idx"] = torch.from_numpy((order // width).astype(np.int32))
        factors, spread_zeros = factors[:, order], spread_zeros[:, order]
    return tensors, (codes - spread_zeros) * factors


def _scales(random: np.random.Generator, kind: Kind, shape: tuple[int, ...], size: float) -> tuple[Tensor, ref.Array]:
    if kind.dtype == torch.uint8:
        exponents = torch.from_numpy(random.integers(118, 124, shape).astype(np.uint8))
        return exponents, 2.0 ** (exponents.numpy().astype(float) - 127)
    top = 400.0 if kind.args["strategy"] == "tensor_group" else size
    values = torch.from_numpy(random.uniform(0.2, 1, shape) * top).to(kind.dtype)
    if kind.dtype == torch.float8_e4m3fn:
        return values, ref.float8_e4m3(values.view(torch.uint8).numpy())
    return values, values.double().numpy()


def _floats(random: np.random.Generator, kind: Kind, rows: int, columns: int) -> Tensors:
    bits = kind.args["num_bits"]
    if bits == 8:
        codes = random.integers(0, 127, (rows, columns)) + 128 * random.integers(0, 2, (rows, columns))
        return {"weight": torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn)}
    return {"weight_packed": torch.from_numpy(ref.pack(random.integers(0, 1 << bits, (rows, columns)), bits, 8))}


def _levels(tensors: Tensors, kind: Kind, columns: int) -> ref.Array:
    bits = kind.args["num_bits"]
    if bits == 8:
        return ref.float8_e4m3(tensors["weight"].view(torch.uint8).numpy())
    table: ref.Array = ref.E2M1 if bits == 4 else ref.E2M3
    return table[ref.unpack(tensors["weight_packed"].numpy(), bits, columns)]


def config_of(*kinds: Kind, **more: Any) -> dict[str, Any]:
    """Return a quantization_config with one group a kind."""
    groups = {
        f"group_{number}": {"targets": ["Linear"], "weights": dict(kind.args), "input_activations": None}
        for number, kind in enumerate(kinds)
    }
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"], **more}


def write(folder: Path, *names: str, **more: Any) -> Path:
    """Write a llama of one layer whose matrices are stored in the kinds of these names, in turn."""
    kinds = [KINDS[name] for name in names]
    count = 0

    def quantize(path: str, weight: Tensor) -> Tensors:
        nonlocal count
        kind, count = kinds[count % len(kinds)], count + 1
        rows, columns = weight.shape
        tensors, _ = stored(kind, rows, columns, seed=count, size=0.02 if kind.args["type"] == "int" else 2e-4)
        return {f"{path}.{name}": tensor.contiguous() for name, tensor in tensors.items()}

    return write_llama(folder, quantize, config_of(*kinds, **more))


def sample(folder: Path) -> Path:
    """Write the sample of the conformance kit: a layer of every kind that a model of seven matrices has room for."""
    names = ("w4-g32-sym", "w3-g32-asym", "int8-channel", "fp8-block", "nvfp4", "w4-actorder-asym", "mxfp4")
    return write(folder / "compressed-tensors", *names)


FORMAT_SAMPLES = {"compressed-tensors": sample}
