"""The native layers against float64 dequantizers, every class and block."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

import zoquant
from tests.backends.torchao import reference
from tests.backends.torchao.samples import CONFIG, torchao_folder
from tests.checkpoint.folder.llama import logits, write_llama, write_tensors
from zoquant.backends.torchao.format import TorchAOFormat
from zoquant.checkpoint.folder import open_folder


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor"]),
    blocks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 6), st.sampled_from([2, 6, 16])),
    zero=st.sampled_from([None, torch.int8, torch.float32, torch.bfloat16]),
    codes=st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]),
    seed=st.integers(0, 9),
)
def test_against_the_reference(
    kind: str, blocks: tuple[int, int], size: tuple[int, int], zero: Any, codes: torch.dtype, seed: int
) -> None:
    height = 1 if kind == "Int4Tensor" else size[0]
    options: dict[str, Any] = {
        "zero": zero if kind == "IntxUnpackedToInt8Tensor" else torch.int8,
        "codes": codes,
        "seed": seed,
    }
    block = (height, size[1])
    tensors, metadata = reference.random_layer("a", blocks[0] * height, blocks[1] * size[1], kind, block, **options)
    with TemporaryDirectory() as place:
        folder = open_folder(write_tensors(Path(place), tensors, CONFIG, metadata=metadata))
        got = TorchAOFormat().layers(folder)["a"].packed(folder).dequantize()
    expected = torch.from_numpy(reference.dequantize(tensors, metadata, "a"))
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_the_dequantized_one(tmp_path: Path, dtype: torch.dtype) -> None:
    path = torchao_folder(tmp_path, dtype=dtype)
    tensors = load_file(path / "model.safetensors")
    with safe_open(path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()

    def dense(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{module}.weight": torch.from_numpy(reference.dequantize(tensors, metadata, module)).float()}

    plain = write_llama(tmp_path / "plain", dense, None, dtype=dtype)
    got, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32)
    expected, _ = zoquant.load(plain, runtime="native", compute_dtype=torch.float32)
    torch.testing.assert_close(logits(got), logits(expected), rtol=1e-4, atol=1e-4)


def test_views(tmp_path: Path) -> None:
    model, _ = zoquant.load(torchao_folder(tmp_path), runtime="native")
    views = zoquant.attach(model, roles=("scale", "zero"))
    found = {view.name.rpartition("layers.0.")[2]: (view.role, view.shape, view.dtype) for view in views}
    assert found == {
        "self_attn.q_proj.weight_scale": ("scale", (64, 1), torch.float32),
        "self_attn.k_proj.weight_scale": ("scale", (2, 4), torch.float32),
        "self_attn.v_proj.weight_scale": ("scale", (1, 1), torch.float32),
        "self_attn.o_proj.weight_scale": ("scale", (64, 2), torch.bfloat16),
        "mlp.gate_proj.weight_scale": ("scale", (128, 4), torch.float32),
        "mlp.gate_proj.weight_zero_point": ("zero", (128, 4), torch.float32),
        "mlp.up_proj.weight_scale": ("scale", (2, 128), torch.bfloat16),
        "mlp.up_proj.weight_zero_point": ("scale", (2, 128), torch.bfloat16),
        "mlp.down_proj.weight_scale": ("scale", (64, 1), torch.float32),
    }
