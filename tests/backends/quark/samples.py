"""A small llama in every layout of Quark, with the weights that the published layout gives."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.backends.compressed_tensors import reference as ref
from tests.backends.quark.reference import TABLES, Array, fours, sixes, words
from tests.checkpoint.folder.llama import write_llama

Made = tuple[dict[str, Tensor], Array]
RANGES = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}


def integers(dtype: str, scheme: str, size: int = 32, *, order: str = "reorder", stored: torch.dtype = torch.float32,
             symmetric: bool = False) -> Callable[[int, int, int], Made]:  # fmt: skip
    def make(rows: int, columns: int, seed: int) -> Made:
        random = np.random.default_rng(seed)
        low, high = RANGES[dtype]
        codes = random.integers(low, high, (rows, columns))
        shape = {"per_tensor": (), "per_channel": (rows,), "per_group": (columns // size, rows)}[scheme]
        zeros = np.zeros(shape, int) if symmetric else random.integers(low // 2, high // 2, shape)
        scale = torch.from_numpy(np.asarray(random.uniform(0.5, 1, shape) * 0.2 / (high - low))).to(stored)
        spread = [_spread(each, scheme, size) for each in (zeros, scale.double().numpy())]
        transposed = codes.T if scheme == "per_group" else codes
        kind = np.int8 if dtype == "int8" else np.uint8
        four = dtype.endswith("4")
        tensors = {
            "weight": words(transposed, order) if four else transposed.astype(kind),
            "weight_zero_point": np.asarray((words(zeros, order) if shape else np.int32(zeros & 15)) if four
                                            else zeros.astype(kind)),
        }  # fmt: skip
        found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
        if not shape:
            found["weight_zero_point"] = found["weight_zero_point"].reshape(())
        return {**found, "weight_scale": scale}, (codes - spread[0]) * spread[1]

    return make


def _spread(values: Any, scheme: str, size: int) -> Any:
    if scheme == "per_group":
        return np.repeat(values.T, size, 1)
    return values[:, None] if scheme == "per_channel" else values


def float8(scheme: str, block: tuple[int, int] = (1, 1), stored: torch.dtype = torch.float32) -> Any:
    def make(rows: int, columns: int, seed: int) -> Made:
        random = np.random.default_rng(seed)
        codes = random.integers(0, 120, (rows, columns)) | random.integers(0, 2, (rows, columns)) << 7
        height, width = {"per_tensor": (rows, columns), "per_channel": (1, columns), "per_block": block}[scheme]
        shape = {"per_tensor": (), "per_channel": (rows,)}.get(scheme, (-(-rows // height), -(-columns // width)))
        scale = torch.from_numpy(np.asarray(random.uniform(0.5, 1, shape) * 1e-3)).to(stored)
        weight = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn)
        factor = ref.spread(scale.double().numpy(), rows, columns, height, width)
        return {"weight": weight, "weight_scale": scale}, ref.float8_e4m3(codes.astype(np.uint8)) * factor

    return make


def microfloat(dtype: str, scales: str, size: int = 32) -> Any:
    def make(rows: int, columns: int, seed: int) -> Made:
        random = np.random.default_rng(seed)
        table = TABLES[dtype]
        codes = random.integers(0, len(table), (rows, columns))
        shape = (rows, columns // size)
        tensors = {"weight": torch.from_numpy(fours(codes) if dtype == "fp4" else sixes(codes))}
        if scales == "e8m0":
            exponents = random.integers(119, 124, shape)
            tensors["weight_scale"], factor = torch.from_numpy(exponents.astype(np.uint8)), 2.0 ** (exponents - 127.0)
        elif scales == "fp8":
            bytes_ = random.integers(40, 90, shape).astype(np.uint8)
            top = torch.tensor(0.003)
            tensors["weight_scale"] = torch.from_numpy(bytes_).view(torch.float8_e4m3fn)
            tensors["weight_scale_2"], factor = top, ref.float8_e4m3(bytes_) * float(top.double())
        else:
            stored = torch.from_numpy(random.uniform(0.5, 1, shape) * 0.03).float()
            tensors["weight_scale"], factor = stored, stored.double().numpy()
        return tensors, table[codes] * np.repeat(factor, size, 1)

    return make


def spec(dtype: str, scheme: str, **more: Any) -> dict[str, Any]:
    """Return the entry of a weight as `QTensorConfig.to_dict` writes it."""
    axis = {"per_tensor": None, "per_channel": 0, "per_group": 1, "per_block": None}[scheme]
    observer = {"per_tensor": "PerTensorMinMaxObserver", "per_channel": "PerChannelMinMaxObserver"}
    sizes = {"group_size": 32 if scheme == "per_group" else None, "block_size": None}
    return {
        "dtype": dtype, "qscheme": scheme, "ch_axis": axis, "symmetric": False, "is_dynamic": False,
        "round_method": "half_even", "scale_type": "float",
        "observer_cls": observer.get(scheme, "PerGroupMinMaxObserver"), **sizes, **more,
    }  # fmt: skip


KINDS: dict[str, tuple[Any, Callable[[int, int, int], Made]]] = {
    **{
        f"{dtype}-{scheme}": (spec(dtype, scheme), integers(dtype, scheme))
        for dtype in RANGES
        for scheme in ("per_tensor", "per_channel", "per_group")
    },
    "int4-sym": (spec("int4", "per_group", symmetric=True), integers("int4", "per_group", symmetric=True)),
    "uint4-bf16": (spec("uint4", "per_group"), integers("uint4", "per_group", stored=torch.bfloat16)),
    "fp8-tensor": (spec("fp8_e4m3", "per_tensor"), float8("per_tensor")),
    "fp8-row": (spec("fp8_e4m3", "per_channel"), float8("per_channel", stored=torch.float16)),
    "fp8-block": (spec("fp8_e4m3", "per_block", block_size=[32, 64]), float8("per_block", (32, 64))),
    "mxfp4": (spec("fp4", "per_group", scale_format="e8m0"), microfloat("fp4", "e8m0")),
    "fp4-float": (spec("fp4", "per_group"), microfloat("fp4", "float")),
    "nvfp4": ([spec("fp4", "per_group", group_size=16), spec("fp8_e4m3", "per_tensor", is_scale_quant=True)],
              microfloat("fp4", "fp8", 16)),
    "mxfp6-e2m3": (spec("fp6_e2m3", "per_group", scale_format="e8m0"), microfloat("fp6_e2m3", "e8m0")),
    "mxfp6-e3m2": (spec("fp6_e3m2", "per_group", scale_format="e8m0"), microfloat("fp6_e3m2", "e8m0")),
}  # fmt: skip
ORDERED = {
    f"{dtype}-{scheme}-order": (spec(dtype, scheme), integers(dtype, scheme, order="order"))
    for dtype in ("int4", "uint4")
    for scheme in ("per_tensor", "per_channel", "per_group")
}


def write(folder: Path, *names: str, order: str = "reorder", activations: Any = None) -> Path:
    """Write a llama of one layer whose matrices are stored in the kinds of these names, in turn."""
    layers: dict[str, Any] = {}
    kinds = KINDS if order == "reorder" else ORDERED

    def quantize(path: str, weight: Tensor) -> Mapping[str, Tensor]:
        described, make = kinds[names[len(layers) % len(names)]]
        tensors, _ = make(*weight.shape, len(layers))  # type: ignore[call-arg]
        layers[path] = {"weight": described, "bias": None, "input_tensors": activations, "output_tensors": None}
        return {f"{path}.{name}": tensor for name, tensor in tensors.items()}

    said = {
        "quant_method": "quark", "global_quant_config": {"weight": None}, "layer_quant_config": layers,
        "layer_type_quant_config": {}, "kv_cache_quant_config": {}, "exclude": ["lm_head"], "algo_config": None,
        "quant_mode": "eager_mode", "version": "0.13",
        "export": {"weight_format": "real_quantized", "pack_method": order, "kv_cache_group": [], "min_kv_scale": 0.0},
    }  # fmt: skip
    return write_llama(folder, quantize, said)


def linear(name: str = "uint4-per_group", rows: int = 96, columns: int = 64) -> nn.Module:
    """Return Quark's own layer, as transformers makes it and fills it from a checkpoint."""
    from quark.torch.export.nn.modules.qparamslinear import QParamsLinear
    from quark.torch.quantization.config.config import QLayerConfig

    described, make = {**KINDS, **ORDERED}[name]
    config = QLayerConfig.from_dict({"weight": described, "bias": None, "input_tensors": None, "output_tensors": None})
    layer: Any = QParamsLinear(
        nn.Linear(columns, rows, bias=False), "quark", "order" if name in ORDERED else "reorder", config
    )
    tensors, _ = make(rows, columns, 3)
    nested = "weight_scale_2" in tensors
    names = {
        "weight": "weight",
        "weight_scale": f"weight_quantizer.{'0.' if nested else ''}scale",
        "weight_zero_point": "weight_quantizer.zero_point",
        "weight_scale_2": "weight_quantizer.1.scale",
    }
    for local, tensor in tensors.items():
        path, _, field = names[local].rpartition(".")
        owner = layer.get_submodule(path)
        if field in owner._parameters:
            owner._parameters[field] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner.register_buffer(field, tensor)
    module: nn.Module = layer.eval()
    return module


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "quark.torch.export.nn.modules.qparamslinear.QParamsLinear": linear,
}
BESIDES = dict.fromkeys(BACKEND_SAMPLES, "onnx")  # which Quark imports
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {
    "quark": lambda folder: write(
        folder / "quark", "int4-per_group", "uint8-per_channel", "fp8-tensor", "mxfp4", "nvfp4", "int4-sym"
    ),
}
