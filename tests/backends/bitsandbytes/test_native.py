"""The native layers against float64 dequantizers, every layout, and the kit on a folder of 8 bits."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import zoquant
from tests.backends.bitsandbytes import reference
from tests.backends.bitsandbytes.samples import eight_bit_folder, four_bit_folder
from tests.checkpoint.folder.llama import logits, write_llama, write_tensors
from zoquant.backends.bitsandbytes.format import BitsAndBytesFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.testing import FORMAT_CHECKS, Check, FormatCase


def dequantized(tensors: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    with TemporaryDirectory() as place:
        folder = write_tensors(Path(place), tensors, {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True})
        found = open_folder(folder)
        return BitsAndBytesFormat().layers(found)["a"].packed(found).dequantize()


@settings(deadline=None, max_examples=60)
@given(
    quant_type=st.sampled_from(["nf4", "fp4"]),
    blocksize=st.sampled_from([32, 64, 128, 256, 512, 1024, 2048, 4096]),
    nested=st.booleans(),
    rows=st.integers(1, 70),
    pairs=st.integers(1, 70),
    seed=st.integers(0, 9),
)
def test_four_bits(quant_type: str, blocksize: int, nested: bool, rows: int, pairs: int, seed: int) -> None:
    """Blocks that straddle rows, a last block that is not full, one level of absmax or two."""
    tensors = reference.random_four_bit(
        "a", rows, 2 * pairs, quant_type=quant_type, blocksize=blocksize, nested=nested, seed=seed
    )
    expected = torch.from_numpy(reference.four_bit(tensors, "a.weight"))
    torch.testing.assert_close(dequantized(tensors, 4).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("storage", [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32])
def test_storage_dtypes(storage: torch.dtype) -> None:
    """bnb_4bit_quant_storage gives the bytes another dtype, and means nothing by it."""
    tensors = reference.random_four_bit("a", 8, 64, storage=storage)
    expected = torch.from_numpy(reference.four_bit(tensors, "a.weight"))
    torch.testing.assert_close(dequantized(tensors, 4).double(), expected, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 9))
def test_eight_bits(rows: int, columns: int, seed: int) -> None:
    tensors = reference.random_eight_bit("a", rows, columns, seed)
    expected = torch.from_numpy(reference.eight_bit(tensors, "a"))
    torch.testing.assert_close(dequantized(tensors, 8).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_model_is_the_dequantized_one(tmp_path: Path, bits: int, dtype: torch.dtype) -> None:
    """The logits are those of the same llama with the reference's weights in its plain layers."""
    path = (four_bit_folder if bits == 4 else eight_bit_folder)(tmp_path, dtype=dtype)
    tensors = load_file(path / "model.safetensors")

    def dense(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        read = reference.four_bit(tensors, f"{module}.weight") if bits == 4 else reference.eight_bit(tensors, module)
        return {f"{module}.weight": torch.from_numpy(read).float()}

    plain = write_llama(tmp_path / "plain", dense, None, dtype=dtype)
    got, _ = zoquant.load(path, runtime="native", compute_dtype=torch.float32)
    expected, _ = zoquant.load(plain, runtime="native", compute_dtype=torch.float32)
    torch.testing.assert_close(logits(got), logits(expected), rtol=1e-4, atol=1e-5)


def test_views(tmp_path: Path) -> None:
    model, _ = zoquant.load(four_bit_folder(tmp_path), runtime="native")
    shapes = {view.name.removeprefix("model.layers.0."): view.shape for view in zoquant.attach(model)}
    assert shapes == {
        "self_attn.q_proj.absmax": (64,),
        "self_attn.k_proj.nested_absmax": (1,),
        "self_attn.v_proj.nested_absmax": (1,),
        "self_attn.o_proj.absmax": (1,),
        "mlp.gate_proj.absmax": (64,),
        "mlp.up_proj.absmax": (128,),
        "mlp.down_proj.absmax": (128,),
    }


@pytest.mark.parametrize("check", FORMAT_CHECKS.values(), ids=FORMAT_CHECKS)
def test_eight_bits_conform(tmp_path: Path, check: Check[FormatCase]) -> None:
    """The sample of the registry is one of 4 bits."""
    path: Any = eight_bit_folder(tmp_path)
    check.run(FormatCase(path, BitsAndBytesFormat(), torch.float32, steps=5))
