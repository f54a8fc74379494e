"""BitNet: packing against a loop, transformers' own layers, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.backends.bitnet.samples import AUTO, BITLINEAR, auto_bitlinear, bitlinear, ternary, write
from tests.checkpoint.folder.llama import edit_config, edit_tensors, logits
from tests.checkpoint.folder.round_trip import check_round_trip
from zoquant.backends.bitnet.format import BitNetFormat
from zoquant.backends.bitnet.layout import QuarterCodes
from zoquant.backends.bitnet.live import BitNetBackend
from zoquant.checkpoint.folder import open_folder
from zoquant.errors import CheckpointError, UnsupportedLayoutError

FORMAT = BitNetFormat()
TOLERANCE = 2e-2
"""transformers rounds activations to eight bits, native layers do not: 1 % of these logits."""


def test_codes() -> None:
    weight, packed = ternary(24, 10)
    codes = QuarterCodes(packed)
    assert (codes.rows, codes.columns) == (24, 10)
    assert torch.equal(codes.read(slice(0, 24)).double(), weight)
    assert torch.equal(codes.read(slice(5, 9)).double(), weight[5:9])
    rows = torch.tensor([23, 0, 6, 6])
    assert torch.equal(codes.read(rows).double(), weight[rows])


def test_codes_are_packed_as_transformers_packs_them() -> None:
    from transformers.integrations.bitnet import pack_weights

    weight, packed = ternary(24, 10)
    assert torch.equal(pack_weights(weight.clone()), packed)


@pytest.mark.parametrize("said", [BITLINEAR, AUTO], ids=["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights(tmp_path: Path, said: dict[str, Any], dtype: torch.dtype) -> None:
    folder = open_folder(write(tmp_path / "m", said, dtype=dtype))
    layers = FORMAT.layers(folder)
    assert len(layers) == 7
    for path, layer in layers.items():
        bytes_, scale = folder.read(f"{path}.weight"), folder.read(f"{path}.weight_scale").double()
        quarters = [(bytes_ >> 2 * quarter) & 3 for quarter in range(4)]
        weight = torch.cat(quarters).double() - 1
        packed = layer.packed(folder)
        expected = weight / scale if said is BITLINEAR else weight * scale
        torch.testing.assert_close(packed.dequantize().double(), expected, rtol=3e-7, atol=0)
        assert packed.value("weight_scale").dtype == dtype


@pytest.mark.parametrize("make", [bitlinear, auto_bitlinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_live(make: Any, dtype: torch.dtype) -> None:
    views = zoquant.attach(torch.nn.ModuleDict({"q": make(dtype=dtype)}))
    assert views.keys == ("q.weight_scale",)
    assert views[0].shape == (1,)
    assert views[0].dtype == dtype


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lambda: bitlinear(use_rms_norm=True), "use_rms_norm=False"),
        (lambda: auto_bitlinear(online_quant=True), "quantization_mode='offline'"),
        (lambda: auto_bitlinear(bias=True), "linear_class='bitlinear'"),
    ],
)
def test_layers_that_do_more_than_multiply(layer: Any, text: str) -> None:
    with pytest.raises(UnsupportedLayoutError) as caught:
        BitNetBackend().open(layer())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"linear_class": "other"}, CheckpointError, "'linear_class': expected 'bitlinear' or 'autobitlinear'"),
        ({**AUTO, "quantization_mode": "online"}, UnsupportedLayoutError, "quantized in every forward"),
        ({"use_rms_norm": True}, UnsupportedLayoutError, "normalize their input"),
    ],
)
def test_configs(tmp_path: Path, change: dict[str, Any], error: type[Exception], text: str) -> None:
    path = edit_config(write(tmp_path / "m"), lambda config: config["quantization_config"].update(change))
    with pytest.raises(error) as caught:
        FORMAT.index(path)
    assert text in str(caught.value)


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(1).double(), torch.ones(1, dtype=torch.uint8)])
def test_scales_that_lie(tmp_path: Path, bad: torch.Tensor) -> None:
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    path = edit_tensors(write(tmp_path / "m"), lambda tensors: tensors.update({name: bad}))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale': expected \[1, 1\] of float32"):
        FORMAT.index(path)


def test_a_bias_that_is_scaled(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    path = edit_tensors(write(tmp_path / "m", AUTO), lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(UnsupportedLayoutError, match=r"q_proj\.bias is multiplied with weight_scale"):
        FORMAT.index(path)


def theirs(path: Path) -> Any:
    import transformers

    pytest.importorskip("accelerate")
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.slow
@pytest.mark.parametrize("said", [BITLINEAR, AUTO], ids=["bitlinear", "autobitlinear"])
def test_transformers_reads_the_same(tmp_path: Path, said: dict[str, Any]) -> None:
    path = write(tmp_path / "m", said)
    expected = logits(theirs(path))
    error = (logits(zoquant.load(path, compute_dtype=torch.float32)[0]) - expected).norm() / expected.norm()
    assert 1e-4 < error < TOLERANCE


@pytest.mark.slow
def test_round_trip(tmp_path: Path) -> None:
    check_round_trip(write(tmp_path / "m"), tmp_path, tolerance=TOLERANCE, reload=theirs)
