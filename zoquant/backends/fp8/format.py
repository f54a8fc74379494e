"""Folders of float8 weights.

    fp8:         W = weight * weight_scale_inv, one scale for each block of 128 x 128 weights, or for the whole matrix
    mxfp8, FP4:  the same with E8M0 scales for runs of 32 columns: powers of two, nothing to train
    fbgemm_fp8:  W = weight * weight_scale, one scale a row

Source: transformers 5.23.0, integrations/finegrained_fp8.py (`Fp8Dequantize`, `FP8Linear`, `FP8Embedding`) and
integrations/fbgemm_fp8.py (`FbgemmFp8Linear`); deepseek-ai/DeepSeek-V3, inference/kernel.py (`weight_dequant`).
"""

from collections.abc import Iterator, Mapping

import torch

from zoquant.backends.layouts.microfloat import MicrofloatLayer
from zoquant.backends.layouts.scale_grid import ScaleGrid
from zoquant.backends.layouts.scaled import POWER_NOTE, POWERS, ScaledLayer, check_grid, check_matrix, refuse_experts
from zoquant.checkpoint.folder import Folder, FolderFormat, StoredMatrix
from zoquant.checkpoint.folder.matrix import DENSE

FP8 = torch.float8_e4m3fn
SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""What the scales of a module are called: by DeepSeek-V3, lookup tables, DeepSeek-V4 and Mistral."""
_COMPANIONS = ("activation_scale", "input_scale", "input_scale_ub", "qscale_act")
_CACHE = ("q_scale", "k_scale", "v_scale", "kv_scale")
"""Scales of the cache of keys and values, beside the projections of an attention or in them."""
_RUN = 32


class FineGrainedFP8Format(FolderFormat):
    """Float8 weights in square blocks, as DeepSeek-V3 and Qwen3 have them, and MXFP8."""

    name = "fp8"
    methods = frozenset({"fp8", "mxfp8"})
    reason = "transformers computes it on a GPU alone, with kernels from the Hub; elsewhere it dequantizes the model"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every float8 or FP4 matrix by the path of its module.

        Raises:
            CheckpointError: a scale is missing, or does not fit its matrix and the config.
            UnsupportedLayoutError: all experts of a layer lie in one tensor.
        """
        refuse_experts(folder, (FP8, torch.int8))
        block = _block(folder)
        return {path: _blocks(folder, path, block) for path in _paths(folder, FP8)} | {
            path: _fp4(folder, path) for path in _paths(folder, torch.int8)
        }


class FbgemmFP8Format(FolderFormat):
    """Float8 weights with one scale a row, as FBGEMM's kernels take them."""

    name = "fbgemm-fp8"
    methods = frozenset({"fbgemm_fp8"})
    reason = "fbgemm-gpu computes it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        """Return every float8 matrix by the path of its module.

        Raises:
            CheckpointError: a scale is missing, or does not fit its matrix.
            UnsupportedLayoutError: all experts of a layer lie in one tensor.
        """
        refuse_experts(folder, (FP8,))
        return {path: _rows(folder, path) for path in _paths(folder, FP8)}


def _paths(folder: Folder, dtype: torch.dtype) -> Iterator[str]:
    for name, tensor in folder.tensors.items():
        if name.endswith(".weight") and tensor.dtype == dtype:
            yield name.removesuffix(".weight")


def _block(folder: Folder) -> tuple[int, int] | None:
    """Return the rows and columns of a block, or None for one scale a matrix."""
    said = folder.quantization.get("weight_block_size", (128, 128))
    if said is None:
        return None
    whole = isinstance(said, list | tuple) and len(said) == 2 and all(type(n) is int and n > 0 for n in said)
    if not whole:
        raise folder.error("weight_block_size", "two positive integers", repr(said)[:80])
    return said[0], said[1]


def _blocks(folder: Folder, path: str, block: tuple[int, int] | None) -> StoredMatrix:
    rows, columns = check_matrix(folder, f"{path}.weight", (FP8,)).shape
    scale = folder.tensor(f"{path}.{_scale(folder, path)}")
    if block is None or scale.shape in ((), (1,)):
        block = (rows, columns)
    elif scale.dtype in POWERS and not ScaleGrid(rows, columns, *block).holds(scale.shape):
        block = (1, _RUN)
    where = "tensor" if block == (rows, columns) else "x".join(map(str, block))
    return _scaled(folder, path, ScaleGrid(rows, columns, *block), where)


def _rows(folder: Folder, path: str) -> StoredMatrix:
    rows, columns = check_matrix(folder, f"{path}.weight", (FP8,)).shape
    return _scaled(folder, path, ScaleGrid(rows, columns, 1, columns), "row")


def _scaled(folder: Folder, path: str, grid: ScaleGrid, where: str) -> StoredMatrix:
    name, weight = _scale(folder, path), f"{path}.weight"
    powers = check_grid(folder, f"{path}.{name}", grid, (*DENSE, *POWERS)).dtype in POWERS
    return ScaledLayer(
        path, grid.rows, grid.columns, f"float8 {where}{' E8M0' if powers else ''}",
        (weight, f"{path}.{name}", *_companions(folder, path)),
        {} if powers else {name: ("scale", f"{path}.{name}")},
        POWER_NOTE if powers else "",
        codes=weight, scale=f"{path}.{name}", grid=grid,
    )  # fmt: skip


def _fp4(folder: Folder, path: str) -> StoredMatrix:
    rows, length = check_matrix(folder, f"{path}.weight", (torch.int8,)).shape
    name, grid = f"{path}.{_scale(folder, path)}", ScaleGrid(rows, 2 * length, 1, _RUN)
    check_grid(folder, name, grid, POWERS)
    return MicrofloatLayer(
        path, rows, 2 * length, "float4 1x32 E8M0",
        (f"{path}.weight", name, *_companions(folder, path)), {}, POWER_NOTE,
        codes=f"{path}.weight", scale=name, grid=grid,
    )  # fmt: skip


def _scale(folder: Folder, path: str) -> str:
    """Return the local name of the scales of a module, by the first name if there are none."""
    return next((name for name in SCALES if f"{path}.{name}" in folder.tensors), SCALES[0])


def _companions(folder: Folder, path: str) -> list[str]:
    """Return the tensors that stand beside a layer's own: for its activations, and for the cache of its attention."""
    names = [f"{path}.{name}" for name in (*_COMPANIONS, *_CACHE)]
    names += [f"{path.rpartition('.')[0]}.{name}" for name in _CACHE]
    return [name for name in names if name in folder.tensors]
