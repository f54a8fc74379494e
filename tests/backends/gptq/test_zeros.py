"""Zeros that a file says twice: by its words and by `sym`; and zeros of 0, stored less one, that wrapped."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.backends.auto_round.samples import auto_round_folder
from tests.backends.gptq.reference import Ints, pack, random_gptq
from tests.backends.gptq.test_format import PATH, one_layer, weight_of
from tests.checkpoint.folder.llama import edit_config
from zoquant.backends.auto_round.format import AutoRoundFormat
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError

ROWS, COLUMNS, GROUP = 64, 256, 32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("minus_one", [True, False])
def test_symmetric_zeros_of_the_other_version_are_refused(
    tmp_path: Path, bits: int, kind: str | None, minus_one: bool
) -> None:
    tensors = random_gptq(PATH, 32, 64, bits=bits, sym=True, minus_one=minus_one)
    path = one_layer(tmp_path, tensors, bits=bits, sym=True, checkpoint_format=kind)
    if minus_one == (kind != "gptq_v2"):
        right = one_layer(tmp_path / "asym", tensors, bits=bits, sym=False, checkpoint_format=kind)
        assert torch.equal(weight_of(path), weight_of(right))
        return
    stored, meant = (1 << (bits - 1)) - minus_one, (1 << (bits - 1)) - (not minus_one)
    how = "less one, as gptq does" if minus_one else "as it is, as gptq_v2 does"
    with pytest.raises(CheckpointError) as caught:
        weight_of(path)
    assert (
        f"'{PATH}.qzeros': expected zeros stored as {meant}, as 'sym' and 'checkpoint_format' say, got {stored}: "
        f"stored {how}, so that 'checkpoint_format' has to say so."
    ) in str(caught.value)


def test_other_zeros_than_sym_says_are_refused(tmp_path: Path) -> None:
    tensors = random_gptq(PATH, 32, 64, sym=False)
    with pytest.raises(CheckpointError, match=r"got \d+ to \d+\. The checkpoint contradicts itself"):
        weight_of(one_layer(tmp_path / "a", tensors, sym=True))
    assert weight_of(one_layer(tmp_path / "b", tensors)).isfinite().all()
    rules = {"-:head": False, "+:some": {"sym": False}}
    assert weight_of(one_layer(tmp_path / "c", tensors, sym=True, dynamic=rules)).isfinite().all()


def test_auto_round_is_held_to_sym_too(tmp_path: Path) -> None:
    path = edit_config(auto_round_folder(tmp_path), lambda config: config["quantization_config"].update(sym=True))
    folder = open_folder(path)
    with pytest.raises(CheckpointError, match=r"qzeros.* expected zeros stored as"):
        next(iter(AutoRoundFormat().layers(folder).values())).packed(folder)


def layer(zeros: Ints, bits: int, *, act_order: bool = False, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of a layer of normal weights without zeros, and the matrix that they stand for."""
    rng = np.random.default_rng(seed)
    order = np.arange(COLUMNS) // GROUP
    order = rng.permutation(order) if act_order else order
    scale = rng.uniform(0.5, 1, zeros.shape)
    spread = (1 << bits) / 5
    codes = np.clip(np.round(rng.normal(0, spread, (ROWS, COLUMNS))) + zeros[order].T, 0, (1 << bits) - 1).astype(int)
    tensors = {
        f"{PATH}.qweight": torch.from_numpy(np.ascontiguousarray(pack(codes, bits).T)),
        f"{PATH}.scales": torch.from_numpy(scale).half(),
        f"{PATH}.g_idx": torch.from_numpy(order.astype(np.int32)),
    }
    held = tensors[f"{PATH}.scales"].double().numpy()
    return tensors, torch.from_numpy((codes - zeros[order].T) * held[order].T)


def zeros_with_many_of_zero(bits: int) -> Ints:
    zeros = np.random.default_rng(7).integers(0, 1 << bits, (COLUMNS // GROUP, ROWS))
    zeros[:, ::3] = 0
    return zeros


def stored(zeros: Ints, bits: int, how: str) -> Tensor:
    """Return the words of zeros less one, taken off whole words or off each field."""
    if how == "fields":
        return torch.from_numpy(pack(zeros - 1 & (1 << bits) - 1, bits))
    with np.errstate(over="ignore"):
        return torch.from_numpy(pack(zeros, bits) - pack(np.ones_like(zeros), bits))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("how", ["words", "fields"])
@pytest.mark.parametrize("act_order", [False, True])
def test_zeros_of_zero_are_read_as_they_were_written(tmp_path: Path, bits: int, how: str, act_order: bool) -> None:
    zeros = zeros_with_many_of_zero(bits)
    tensors, expected = layer(zeros, bits, act_order=act_order)
    tensors[f"{PATH}.qzeros"] = stored(zeros, bits, how)
    got = weight_of(one_layer(tmp_path, tensors, bits=bits, sym=False))
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


def test_words_of_ones_alone_are_zeros_of_zero(tmp_path: Path) -> None:
    zeros = np.zeros((COLUMNS // GROUP, ROWS), np.int64)
    tensors, expected = layer(zeros, 4)
    tensors[f"{PATH}.qzeros"] = torch.full((COLUMNS // GROUP, ROWS // 8), -1, dtype=torch.int32)
    got = weight_of(one_layer(tmp_path, tensors, sym=False))
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("quantizer", ["gptqmodel:7.7.0", ["gptqmodel:7.7.0", "optimum:2.3.0"]])
def test_what_gptqmodel_signed_is_read_as_it_writes(tmp_path: Path, quantizer: Any) -> None:
    """Whatever the codes look like: these are as others would write them."""
    zeros = zeros_with_many_of_zero(4)
    tensors, expected = layer(zeros, 4)
    tensors[f"{PATH}.qzeros"] = stored(zeros, 4, "fields")
    got = weight_of(one_layer(tmp_path, tensors, sym=False, meta={"quantizer": quantizer}))
    assert not torch.allclose(got.double(), expected)


def test_where_the_codes_do_not_tell_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = random_gptq(PATH, 32, 32)
    zeros = np.full((1, 32), 7)
    zeros[0, 0] = 0
    tensors[f"{PATH}.qzeros"] = stored(zeros, 4, "words")
    with caplog.at_level(logging.WARNING, "zoquant"):
        first = weight_of(one_layer(tmp_path / "v1", tensors))
    assert [record.getMessage() for record in caplog.records] == [
        f"{PATH}: zeros of 0 can be read in two ways, and its codes do not tell which: taken as GPTQModel writes them."
    ]
    tensors[f"{PATH}.qzeros"] = torch.from_numpy(pack(zeros, 4))
    assert torch.equal(first, weight_of(one_layer(tmp_path / "v2", tensors, checkpoint_format="gptq_v2")))


def test_one_step_of_eight_bits_is_too_small_to_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zeros = zeros_with_many_of_zero(8)
    tensors, expected = layer(zeros, 8)
    tensors[f"{PATH}.qzeros"] = stored(zeros, 8, "fields")
    with caplog.at_level(logging.WARNING, "zoquant"):
        got = weight_of(one_layer(tmp_path, tensors, bits=8))
    assert "can be read in two ways" in caplog.text
    assert float((got - expected).abs().max()) <= float(tensors[f"{PATH}.scales"].max())
