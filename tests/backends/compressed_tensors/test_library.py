"""compressed-tensors itself: what it writes is read, and what zoquant exports it reads."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import zoquant
from tests.backends.compressed_tensors import library
from tests.backends.compressed_tensors.samples import KINDS, stored
from tests.checkpoint.folder.llama import logits

pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.slow
HALF = {"w4a16-asym": torch.float16, "fp8-block": torch.float16, "nvfp4": torch.bfloat16, "mxfp4": torch.bfloat16}
"""The dtype of scales, where it is not float32. compressed-tensors 0.20.0 decompresses FP4 to bfloat16 always."""
FIXTURES = Path(os.environ.get("ZOQUANT_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
"""compressed-tensors rounds the weights to the dtype of their scales; native layers do not."""


def theirs(path: Path, *, dequantize: bool = True) -> Tensor:
    """Return the logits of transformers on a checkpoint, float32."""
    import transformers

    config = transformers.CompressedTensorsConfig(dequantize=dequantize)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=config)
    return logits(model.eval())


def ours(path: Path) -> Tensor:
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    return logits(model)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def codes_of(path: Path) -> dict[str, str]:
    """Return a hash of every tensor that holds codes."""
    tensors = load_file(path / "model.safetensors")
    codes = {
        name: tensor for name, tensor in tensors.items() if name.endswith(("packed", "zero_point", "shape"))
        or (name.endswith(".weight") and tensor.element_size() == 1)
    }  # fmt: skip
    return {
        name: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest() for name, tensor in codes.items()
    }


@pytest.mark.parametrize("name", library.SCHEMES)
def test_round_trip(tmp_path: Path, name: str) -> None:
    """Read what the library wrote, train, export, and let the library read that."""
    dtype = HALF.get(name, torch.float32)
    path, tolerance = library.write(tmp_path, name, dtype), TOLERANCE[dtype]
    assert distance(ours(path), theirs(path)) < tolerance
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    scales = zoquant.attach(model, roles=("scale",) if name != "mxfp4" else ("dense",))
    before, delta = logits(model), tmp_path / "delta.safetensors"
    zoquant.save_delta(delta, scales)
    same = zoquant.export(path, delta=delta, out=tmp_path / "same")
    assert (same / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    optimizer = zoquant.ZOSGD(scales, lr=5e-2, eps=1e-2)
    target = torch.randint(0, before.shape[-1], before.shape[:2], generator=torch.Generator().manual_seed(3))
    for _ in range(20):
        optimizer.step(lambda: float(torch.nn.functional.cross_entropy(logits(model).flatten(0, 1), target.flatten())))
    zoquant.save_delta(delta, scales)
    out = zoquant.export(path, delta=delta, out=tmp_path / "out")
    assert codes_of(out) == codes_of(path)
    assert codes_of(path)
    assert distance(ours(out), before) > 1e-3
    assert distance(ours(out), logits(model)) < 1e-6
    assert distance(ours(out), theirs(out)) < tolerance


def test_activations_are_what_native_leaves_out(tmp_path: Path) -> None:
    """Left compressed, transformers rounds activations to eight bits for each token: half a percent of the logits."""
    path = library.write(tmp_path, "w8a8", torch.float32)
    error = distance(theirs(path, dequantize=False), ours(path))
    assert 1e-3 < error < 2e-2


@pytest.mark.parametrize("name", ["ct_w4a16_sym_g128", "ct_fp8_channel", "ct_w8_channel"])
def test_fixtures(name: str) -> None:
    """Checkpoints that compressed-tensors wrote elsewhere, in float32: the logits agree to 1e-6."""
    if not (FIXTURES / name).exists():
        pytest.skip(f"no fixtures in {FIXTURES}")
    assert distance(ours(FIXTURES / name), theirs(FIXTURES / name)) < 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_the_samples_are_what_the_library_reads(name: str) -> None:
    """The checkpoints that the fast tests write by hand mean the same to compressed-tensors."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    kind = KINDS[name]
    if kind.g_idx:
        pytest.skip("compressed-tensors 0.20.0 no longer reads weight_g_idx")
    tensors, expected = stored(kind, 40, 96)
    form = {"nvfp4": "nvfp4-pack-quantized", "nvfp4-bf16": "nvfp4-pack-quantized", "mxfp4": "mxfp4-pack-quantized",
            "mxfp6": "mxfp6-pack-quantized", "mxfp8": "mxfp8-quantized"}.get(
        name, "pack-quantized" if kind.packed else "naive-quantized")  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**kind.args))
    weight = BaseCompressor.get_value_from_registry(form).decompress(dict(tensors), scheme)["weight"]
    error = (weight.double() - torch.from_numpy(expected)).norm() / torch.from_numpy(expected).norm()
    assert error < {torch.float16: 1e-3, torch.float32: 1e-6}.get(kind.dtype, 8e-3)
