"""Folders of float8 weights.

    fp8:         W = weight * weight_scale_inv, one scale for each block of 128 x 128 weights, or for the whole matrix
    mxfp8, FP4:  the same with E8M0 scales for runs of 32 columns: powers of two, nothing to train
    fbgemm_fp8:  W = weight * weight_scale, one scale a row

Source: transformers 5.23.0, integrations/finegrained_fp8.py (`Fp8Dequantize`, `FP8Linear`, `FP8Embedding`) and
integrations/fbgemm_fp8.py (`FbgemmFp8Linear`); deepseek-ai/DeepSeek-V3, inference/kernel.py (`weight_dequant`).
"""

from collections.abc import Mapping

import torch

from zoquant.backends.float_table import E2M1
from zoquant.checkpoint.folder import (
    DENSE,
    MATRIX,
    POWERS,
    ROW,
    AffineLayout,
    Folder,
    FolderFormat,
    Layout,
    StoredCodes,
    StoredMatrix,
    StoredNumbers,
    TableLayout,
    layouts_that_fit,
    refuse_experts,
    with_attention,
)

FP8 = torch.float8_e4m3fn
SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""What the scales of a module are called: by DeepSeek-V3, lookup tables, DeepSeek-V4 and Mistral."""
_CACHE = ("q_scale", "k_scale", "v_scale", "kv_scale")
"""Scales of the cache of keys and values, beside the projections of an attention or in them."""
_BESIDE = ("activation_scale", "input_scale", "input_scale_ub", "qscale_act", *_CACHE)
_RUN = (1, 32)


class FineGrainedFP8Format(FolderFormat):
    """Float8 weights in square blocks, as DeepSeek-V3 and Qwen3 have them, and MXFP8."""

    name = "fp8"
    methods = frozenset({"fp8", "mxfp8"})
    reason = "transformers computes it on a GPU alone, with kernels from the Hub; elsewhere it dequantizes the model"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        refuse_experts(folder, (FP8, torch.int8))
        block = _block(folder)
        layouts = {path: _fine_grained(folder, path, block) for path in folder.paths("weight", FP8)}
        layouts |= {path: _fp4(folder, path) for path in folder.paths("weight", torch.int8)}
        return {path: with_attention(folder, layout.matrix(folder, path), _CACHE) for path, layout in layouts.items()}


class FbgemmFP8Format(FolderFormat):
    """Float8 weights with one scale a row, as FBGEMM's kernels take them."""

    name = "fbgemm-fp8"
    methods = frozenset({"fbgemm_fp8"})
    reason = "fbgemm-gpu computes it on a GPU alone"

    def layers(self, folder: Folder) -> Mapping[str, StoredMatrix]:
        refuse_experts(folder, (FP8,))
        paths = folder.paths("weight", FP8)
        layouts = {path: _float8(folder, path, ROW, "row") for path in paths}
        return {path: with_attention(folder, layout.matrix(folder, path), _CACHE) for path, layout in layouts.items()}


def _block(folder: Folder) -> tuple[int, int]:
    """Return the rows and columns of a block, or `MATRIX` for one scale a matrix."""
    said = folder.quantization.get("weight_block_size", (128, 128))
    if said is None:
        return MATRIX
    whole = isinstance(said, list | tuple) and len(said) == 2 and all(type(n) is int and n > 0 for n in said)
    if not whole:
        raise folder.error("weight_block_size", "two positive integers", repr(said)[:80])
    return said[0], said[1]


def _fine_grained(folder: Folder, path: str, block: tuple[int, int]) -> Layout:
    scale = folder.tensor(f"{path}.{_scale(folder, path)}")
    blocks = [MATRIX if scale.shape in ((), (1,)) else block, *([_RUN] if scale.dtype in POWERS else [])]
    layouts = [_float8(folder, path, each, "x".join(map(str, each)) if each != MATRIX else "tensor") for each in blocks]
    return layouts_that_fit(folder, path, layouts)[0]


def _float8(folder: Folder, path: str, block: tuple[int, int], where: str) -> AffineLayout:
    scale = StoredNumbers(_scale(folder, path), block, (*DENSE, *POWERS), ragged=True)
    powers = " E8M0" if folder.tensor(f"{path}.{scale.name}").dtype in POWERS else ""
    return AffineLayout(
        type=f"float8 {where}{powers}", codes=StoredCodes("weight", (FP8,)), scale=scale, beside=_BESIDE
    )


def _fp4(folder: Folder, path: str) -> TableLayout:
    scale = StoredNumbers(_scale(folder, path), _RUN, POWERS, ragged=True)
    codes = StoredCodes("weight", (torch.int8,), bits=4)
    return TableLayout(type="float4 1x32 E8M0", codes=codes, table=E2M1, scales=(scale,), beside=_BESIDE)


def _scale(folder: Folder, path: str) -> str:
    """Return the local name of the scales of a module, by the first name if there are none."""
    return next(iter(folder.held(path, SCALES)), SCALES[0])
