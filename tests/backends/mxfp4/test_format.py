"""GPT-OSS: experts against a reference, the model against transformers, tensors that lie."""

from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.backends.compressed_tensors import reference as ref
from tests.backends.mxfp4.samples import write
from tests.checkpoint.folder.llama import edit_tensors, logits
from zoquant.backends.mxfp4.format import MXFP4Format
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError

FORMAT = MXFP4Format()
EXPERTS = "model.layers.1.mlp.experts"


@pytest.mark.parametrize(("part", "rows", "columns"), [("gate_up_proj", 64, 64), ("down_proj", 64, 32)])
def test_weights(tmp_path: Path, part: str, rows: int, columns: int) -> None:
    folder = open_folder(write(tmp_path / "m"))
    layers = FORMAT.layers(folder)
    assert len(layers) == 2 * 2 * 4
    for expert in range(4):
        blocks = folder.read(f"{EXPERTS}.{part}_blocks")[expert].numpy().reshape(rows, -1)
        scales = folder.read(f"{EXPERTS}.{part}_scales")[expert].numpy().astype(float)
        levels = ref.E2M1[ref.unpack(blocks, 4, columns)]
        expected = levels * ref.spread(2.0 ** (scales - 127), rows, columns, 1, 32)
        layer = layers[f"{EXPERTS}.{part}.{expert}"]
        packed = layer.packed(folder)
        assert torch.equal(packed.dequantize().double(), torch.from_numpy(expected))
        assert (layer.rows, layer.columns, packed.fields) == (rows, columns, ())


def test_transformers_reads_the_same(tmp_path: Path) -> None:
    """Without triton transformers dequantizes when it loads: the logits agree to 1e-5."""
    import transformers

    pytest.importorskip("accelerate")
    path = write(tmp_path / "m")
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


def test_what_can_be_trained(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    assert {span.role for span in FORMAT.index(path).values()} == {"dense"}
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views = zoquant.attach(model, roles=("dense",))
    assert f"{EXPERTS}.down_proj_bias" in views.keys
    assert FORMAT.summarize(path).notes == [
        "float4 g32 E8M0: nothing to train, its scales are powers of two, so a step cannot be small"
    ]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("gate_up_proj_scales", None, "gate_up_proj_scales': expected a tensor of this name"),
        ("gate_up_proj_scales", torch.ones(4, 64, 1, dtype=torch.uint8), "gate_up_proj_scales': expected [4, 64, 2]"),
        ("down_proj_scales", torch.ones(4, 64, 1), "down_proj_scales': expected [4, 64, 1] of uint8"),
        ("down_proj_blocks", torch.ones(4, 64, 1, 8, dtype=torch.uint8), "expected [experts, rows, runs, 16]"),
        ("down_proj_blocks", torch.ones(64, 1, 16, dtype=torch.uint8), "expected [experts, rows, runs, 16]"),
        ("down_proj_blocks", torch.ones(4, 0, 1, 16, dtype=torch.uint8), "expected [experts, rows, runs, 16]"),
    ],
)
def test_tensors_that_contradict(tmp_path: Path, name: str, value: Any, text: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(f"{EXPERTS}.{name}")
        if value is not None:
            tensors[f"{EXPERTS}.{name}"] = value

    path = edit_tensors(write(tmp_path / "m"), change)
    with pytest.raises(CheckpointError) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)


def test_experts_that_the_model_does_not_have(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("blocks", "scales"):
            name = f"{EXPERTS}.down_proj_{part}"
            tensors[name] = tensors[name][:, :32].contiguous()

    with pytest.raises(CheckpointError, match=r"experts\.down_proj\.0'"):
        zoquant.load(edit_tensors(write(tmp_path / "m"), change), compute_dtype=torch.float32)
