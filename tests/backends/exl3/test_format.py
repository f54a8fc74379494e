"""ExLlamaV3: every width and codebook against a reference, and files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backends.exl3 import reference as ref
from tests.backends.exl3.samples import stored
from tests.checkpoint.folder.llama import write_tensors
from zoquant.backends.exl3.format import EXL3Format
from zoquant.backends.exl3.trellis import codebook
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError

FORMAT = EXL3Format()
BOOKS = ("3inst", "mcg", "mul1")


@pytest.mark.parametrize("book", BOOKS)
def test_codebooks(book: str) -> None:
    some = np.random.default_rng(0).integers(0, 1 << 16, 2000)
    expected = [ref.number(int(state), book) for state in some]
    assert codebook(book)[some].tolist() == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights(tmp_path: Path, bits: int) -> None:
    book = BOOKS[bits % 3]
    tensors, expected = stored(256, 128, bits, book)
    named = {f"a.{name}": each for name, each in tensors.items()}
    folder = open_folder(write_tensors(tmp_path, named, {"quant_method": "exl3"}))
    layer = FORMAT.layers(folder)["a"]
    packed = layer.packed(folder)
    assert (layer.rows, layer.columns, layer.type) == (256, 128, f"{bits}-bit trellis {book}")
    np.testing.assert_allclose(packed.dequantize().double().numpy(), expected, rtol=1e-4, atol=1e-6)
    some = torch.tensor([200, 3, 3, 0])
    np.testing.assert_allclose(packed.decode_rows(some).double().numpy(), expected[some], rtol=1e-4, atol=1e-6)
    assert torch.equal(packed.value("suh"), tensors["suh"])
    assert torch.equal(packed.value("svh"), tensors["svh"])


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("trellis", torch.zeros(8, 8, 60, dtype=torch.int16), "a.trellis': expected int16 of inputs / 16"),
        ("trellis", torch.zeros(4, 8, 64, dtype=torch.int16), "a.trellis': expected int16 of inputs / 16"),
        ("trellis", torch.zeros(8, 8, 0, dtype=torch.int16), "a.trellis': expected int16 of inputs / 16"),
        ("trellis", torch.zeros(8, 8, 144, dtype=torch.int16), "a.trellis': expected int16 of inputs / 16"),
        ("suh", torch.zeros(64, dtype=torch.float16), "a.suh': expected [128] of"),
        ("mul1", torch.zeros((), dtype=torch.int32), "a.mul1': expected one codebook"),
    ],
)
def test_files_that_lie(tmp_path: Path, name: str, tensor: torch.Tensor, text: str) -> None:
    tensors = {f"a.{each}": value for each, value in stored(128, 128, 2, "mcg")[0].items()} | {f"a.{name}": tensor}
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(write_tensors(tmp_path, tensors, {"quant_method": "exl3"}))
    assert text in str(caught.value)


def test_signs_are_refused(tmp_path: Path) -> None:
    tensors = {f"a.{name}": each for name, each in stored(128, 128, 2, "3inst")[0].items() if name != "suh"}
    tensors["a.su"] = torch.zeros(8, dtype=torch.int16)
    with pytest.raises(UnsupportedLayoutError, match="signs in the place of scales"):
        FORMAT.index(write_tensors(tmp_path, tensors, {"quant_method": "exl3"}))


def test_a_missing_vector(tmp_path: Path) -> None:
    tensors = {f"a.{name}": each for name, each in stored(128, 128, 2, "mcg")[0].items() if name != "svh"}
    with pytest.raises(CheckpointError, match=r"a\.svh': expected a tensor of this name"):
        FORMAT.index(write_tensors(tmp_path, tensors, {"quant_method": "exl3"}))
