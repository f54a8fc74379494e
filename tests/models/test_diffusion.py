"""The transformer of a Stable Diffusion 3 pipeline: the example from captions to a tuned checkpoint, and the files."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.models import sd3
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.checkpoint.inspection import inspect
from zoquant.checkpoint.stored_values import values_at
from zoquant.errors import BaseMismatchError, CheckpointError, NoViewsError, UnsupportedLayoutError
from zoquant.record.delta import read_delta
from zoquant.testing.tensors import same_bits

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    folder = tmp_path_factory.mktemp("sd3")
    sd3.write_images(folder / "images")
    return sd3.write_pipeline(folder / "pipeline")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module; diffusers, which quantizes on a GPU alone, is made to do it here as well."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    quantizer = pytest.importorskip("diffusers.quantizers.bitsandbytes.bnb_quantizer")
    monkeypatch.setattr(quantizer.BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.syspath_prepend(EXAMPLES)
    sys.modules.pop("diffusion", None)
    return __import__("diffusion")


def arguments(pipeline: Path, out: Path, *more: str) -> list[str]:
    images = pipeline.parent / "images"
    return [
        "--model", str(pipeline), "--images", str(images), "--out", str(out), "--size", "16", "--steps", "40",
        "--sampling-steps", "2", "--dtype", "float32", "--device", "cpu", *more,
    ]  # fmt: skip


def output(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found: Tensor = model(
            hidden_states=torch.randn(2, 4, 8, 8, generator=generator),
            encoder_hidden_states=torch.randn(2, 5, 4 * sd3.WIDTH, generator=generator),
            pooled_projections=torch.randn(2, 2 * sd3.WIDTH, generator=generator),
            timestep=torch.tensor([100.0, 700.0]),
        ).sample
    return found


def open_gguf(pipeline: Path, path: Path) -> Any:
    from diffusers import GGUFQuantizationConfig, SD3Transformer2DModel

    config: Any = GGUFQuantizationConfig(compute_dtype=torch.float32)
    return SD3Transformer2DModel.from_single_file(
        path, config=str(pipeline), subfolder="transformer", quantization_config=config, torch_dtype=torch.float32
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "gguf", "gguf of Stability AI"])
def test_the_example(pipeline: Path, example: Any, tmp_path: Path, kind: str) -> None:
    """Loss falls, the image changes, and what was exported and loaded again has the very same loss."""
    more, out = [], tmp_path / "out"
    if kind != "nf4":
        stability = kind.endswith("AI")
        more = ["--gguf", str(sd3.write_gguf(sd3.transformer(), tmp_path / "base.gguf", stability=stability))]
    losses = example.main(arguments(pipeline, out, *more))
    assert losses["after"] < losses["before"] - 0.01
    assert losses["reloaded"] == losses["after"]
    assert (out / "before.png").read_bytes() != (out / "after.png").read_bytes()
    if kind == "nf4":
        check_nf4(out, losses["after"])
    else:
        check_gguf(tmp_path / "base.gguf", out / "tuned.gguf", out / "delta.safetensors")


def check_nf4(out: Path, loss: float) -> None:
    """The folder opens on native layers, which compute the same, and was patched in absmax alone."""
    native, tokenizer = zoquant.load(out / "transformer", compute_dtype=torch.float32)
    vendor, _ = zoquant.load(out / "transformer", runtime="vendor", compute_dtype=torch.float32)
    assert tokenizer is None
    torch.testing.assert_close(output(native), output(vendor), rtol=1e-4, atol=1e-5)
    files = [out / name / "diffusion_pytorch_model.safetensors" for name in ("base", "transformer")]
    before, after = (np.fromfile(file, np.uint8) for file in files)
    spans = zoquant.registry.format_of(out / "base").index(out / "base")
    allowed = np.zeros(len(before), bool)
    for key, span in spans.items():
        if key.endswith(".absmax"):
            allowed[span.offset : span.offset + 4 * span.shape[0]] = True
    assert (before != after).any()
    assert not ((before != after) & ~allowed).any()


def check_gguf(base: Path, tuned: Path, delta: Path) -> None:
    """Every code is the base's: the files differ in the values that the delta names, and nowhere else."""
    before, after = np.fromfile(base, np.uint8), np.fromfile(tuned, np.uint8)
    index, allowed = GGUFFormat().index(base), np.zeros(len(before), bool)
    for key in read_delta(delta).values:
        span = index[key]
        places = span.offset + np.add.outer(*(np.arange(n) * s for n, s in zip(span.shape, span.strides, strict=True)))
        allowed[places] = allowed[places + 1] = True
    assert (before != after).any()
    assert not ((before != after) & ~allowed).any()


@pytest.mark.parametrize("stability", [False, True])
def test_the_index_names_what_diffusers_holds(pipeline: Path, tmp_path: Path, stability: bool) -> None:
    """All values of the live model have their place in the file, but two modulations that diffusers turns around."""
    path = sd3.write_gguf(sd3.transformer(), tmp_path / "base.gguf", "Q4_1", stability=stability)
    index, views = GGUFFormat().index(path), zoquant.attach(open_gguf(pipeline, path), roles=("scale", "dense"))
    turned = {"norm_out.linear", "transformer_blocks.1.norm1_context.linear"} if stability else set()
    assert {key for key in views.keys if key not in index} == {
        f"{module}.{field}" for module in turned for field in ("d", "m", "bias")
    }
    assert set(index) <= set(views.keys)
    packed = torch.from_numpy(np.fromfile(path, np.uint8))
    for view in views:
        if view.name in index:
            assert same_bits(view.read(), values_at(packed, index[view.name]).float()), view.name


def test_a_delta_of_the_modulations_is_refused(pipeline: Path, tmp_path: Path) -> None:
    path = sd3.write_gguf(sd3.transformer(), tmp_path / "base.gguf", stability=True)
    views = zoquant.attach(open_gguf(pipeline, path), include="norm_out.*")
    views.add(1, 0.1, "rademacher")
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    with pytest.raises(BaseMismatchError, match=r"made for norm_out\.linear\.d"):
        zoquant.export(path, delta=tmp_path / "delta.safetensors", out=tmp_path / "out.gguf")


def test_inspect_says_who_computes_it(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    path = sd3.write_gguf(sd3.transformer(), tmp_path / "base.gguf")
    assert inspect(path)["runtimes"] == {
        "native": "no: diffusers builds the model",
        "vendor": "yes: load it with diffusers' from_single_file and attach",
    }
    with pytest.raises(CheckpointError, match="expected one of the architectures"):
        zoquant.load(path)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("joint_blocks.0.x_block.attn.qkv.weight", 32, "expected rows in 3 equal parts"),
        ("joint_blocks.0.x_block.other.weight", 32, "got an unknown name"),
        ("joint_blocks.x.weight", 32, "got an unknown name"),
        ("other.weight", 32, "got an unknown name"),
    ],
)
def test_files_that_are_no_such_transformer(tmp_path: Path, name: str, rows: int, message: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bad.gguf", "sd3")
    writer.add_tensor("joint_blocks.0.x_block.attn.ln_q.weight", np.zeros(32, np.float32))
    writer.add_tensor(name, np.zeros((rows, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match=message):
        GGUFFormat().index(tmp_path / "bad.gguf")


@pytest.mark.parametrize("name", ["NoSuchModel", "DDIMScheduler", 3])
def test_a_class_that_diffusers_has_not(pipeline: Path, tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    sd3.transformer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": name}))
    with pytest.raises(CheckpointError, match="_class_name"):
        zoquant.load(folder)


def test_a_folder_of_plain_weights(pipeline: Path, tmp_path: Path) -> None:
    """A transformer that nobody quantized trains by role dense; whole and in shards, the folder opens alike."""
    model = sd3.transformer()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json").exists()
    for folder in ("whole", "shards"):
        native, _ = zoquant.load(tmp_path / folder, compute_dtype=torch.float32)
        torch.testing.assert_close(output(native), output(model), rtol=1e-4, atol=1e-5)
    with pytest.raises(NoViewsError):
        zoquant.attach(model)
    assert zoquant.attach(model, roles=("dense",)).trainable == sum(p.numel() for p in model.parameters())


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.42.1"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    from safetensors.torch import save_file

    save_file({"proj_out.weight": torch.zeros(2, 2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr("zoquant.checkpoint.folder.diffusion.find_spec", lambda _: None)
    with pytest.raises(UnsupportedLayoutError, match="pip install diffusers"):
        zoquant.load(tmp_path)


def test_noise_and_timesteps_are_those_of_both_probes(example: Any) -> None:
    data = example.Encoded(torch.randn(3, 4, 8, 8), torch.randn(3, 5, 4 * sd3.WIDTH), torch.randn(3, 2 * sd3.WIDTH), ())
    model: nn.Module = sd3.transformer()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        first, second = (example.flow_matching(model, data, generator) for _ in range(2))
        assert first() == first()
        assert first() != second()
