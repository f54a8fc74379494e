"""AWQ checkpoints: the three layouts against the reference; configs that lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoquant
from tests.backends.awq.reference import random_awq
from tests.backends.awq.samples import awq_folder
from tests.checkpoint.folder.llama import edit_tensors, logits, write_llama, write_tensors
from zoquant.backends.awq.format import AWQFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError
from zoquant.native import PackedWeight

PATH = "model.layer"
LAYOUTS = ("gemm", "gemv", "gemv_fast")


def one_layer(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", **changes}
    return write_tensors(folder, tensors, config)


def packed_of(path: Path) -> PackedWeight:
    folder = open_folder(path)
    (layer,) = AWQFormat().layers(folder).values()
    return layer.packed(folder)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    group_size=st.sampled_from([32, 64, 128]),
    columns=st.sampled_from([128, 384]),
    rows=st.sampled_from([8, 64, 168]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_native_weight_is_the_reference(
    tmp_path_factory: pytest.TempPathFactory, layout: str, group_size: int, columns: int, rows: int,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    tensors, expected = random_awq(PATH, rows, columns, layout=layout, group_size=group_size, dtype=dtype, seed=seed)
    path = one_layer(tmp_path_factory.mktemp("awq"), tensors, version=layout, group_size=group_size)
    packed = packed_of(path)
    whole, some = packed.dequantize(), torch.tensor([rows - 1, 0, 5, 5])
    np.testing.assert_allclose(whole.double().numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(packed.decode_rows(some), whole[some])
    assert torch.equal(packed.decode_rows(slice(3, 7)), whole[3:7])


@pytest.mark.parametrize("version", ["GEMM", "exllama", "ipex"])
def test_names_of_kernels_that_load_gemm(tmp_path: Path, version: str) -> None:
    tensors, expected = random_awq(PATH, 16, 64)
    np.testing.assert_allclose(
        packed_of(one_layer(tmp_path, tensors, version=version)).dequantize().double().numpy(), expected, rtol=1e-6
    )


def test_gptqmodel_and_llm_awq_configs(tmp_path: Path) -> None:
    tensors, expected = random_awq(PATH, 16, 64, layout="gemv_fast", zeros_name="scaled_zeros")
    said = {"version": None, "checkpoint_format": "llm-awq", "group_size": None, "bits": None}
    path = one_layer(tmp_path, tensors, **{**said, "group_size": 32, "bits": 4})
    assert set(AWQFormat().index(path)) == {f"{PATH}.scales", f"{PATH}.scaled_zeros"}
    np.testing.assert_allclose(packed_of(path).dequantize().double().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_computes_with_the_reference_weights(tmp_path: Path, layout: str) -> None:
    native, _ = zoquant.load(awq_folder(tmp_path, layout=layout), compute_dtype=torch.float32)

    def reference(path: str, weight: Tensor) -> dict[str, Tensor]:
        found = random_awq(path, *weight.shape, layout=layout, seed=len(path))[1]
        return {f"{path}.weight": torch.from_numpy(found).float()}

    dense = transformers.LlamaForCausalLM.from_pretrained(write_llama(tmp_path / "dense", reference, None))
    torch.testing.assert_close(logits(native), logits(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_the_tensors_of_the_file(tmp_path: Path, layout: str) -> None:
    path = awq_folder(tmp_path, layout=layout)
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views, folder = zoquant.attach(model), open_folder(path)
    assert len(views) == 7 * (2 if layout == "gemv_fast" else 1)
    for view in views:
        assert torch.equal(view.read(), folder.read(view.name).float())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bits", 8), ("bits", None), ("group_size", 64), ("group_size", 48), ("group_size", 0), ("version", "marlin"),
        ("version", "gemv"), ("version", "gemv_fast"), ("version", 3),
    ],
)  # fmt: skip
def test_lying_configs_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = one_layer(tmp_path, random_awq(PATH, 16, 64)[0], **{key: value})
    with pytest.raises(CheckpointError, match=r"expected .* got"):
        AWQFormat().index(path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("how", ["shape", "dtype", "scalar", "empty", "missing"])
def test_wrong_tensors_are_refused(tmp_path: Path, layout: str, name: str, how: str) -> None:
    path = one_layer(tmp_path, random_awq(PATH, 16, 64, layout=layout)[0], version=layout)
    full = f"{PATH}.{name}"

    def change(tensors: dict[str, Tensor]) -> None:
        old = tensors.pop(full)
        if how != "missing":
            tensors[full] = {
                "shape": torch.cat([old, old]), "dtype": old.long(), "scalar": old.reshape(-1)[0].clone(),
                "empty": old[:0].clone(),
            }[how]  # fmt: skip

    edit_tensors(path, change)
    with pytest.raises(CheckpointError, match=r"model\.layer|qweight"):
        AWQFormat().index(path)
