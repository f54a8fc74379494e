"""What a package with a format of its own tests: the kit, and a whole round in both runtimes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zoquant

RUNTIMES = ("native", "vendor")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write a small llama as the library does."""
    import nib3
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 60, "intermediate_size": 90, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    tensors = LlamaForCausalLM(config).state_dict()
    for name in [name for name in tensors if "proj.weight" in name]:
        parts = nib3.quantize(tensors.pop(name))
        tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    path = tmp_path / "nib3"
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    settings = config.to_dict() | {
        "architectures": ["LlamaForCausalLM"],
        "quantization_config": {"quant_method": "nib3"},
    }
    (path / "config.json").write_text(json.dumps(settings, default=str))
    return path


def logits(model: nn.Module) -> Tensor:
    """Return the logits of some tokens, `[1, 8, 32]`."""
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(8)[None]).logits
    return found


def test_it_is_found_without_an_import() -> None:
    """The class and the format are known by name before anything of the package is imported."""
    assert zoquant.list_backends()["nib3.Nib3Linear"].package == "zoquant-nib3 1.0"
    assert zoquant.list_formats()["nib3"].target == "nib3_zoquant:Nib3Folder"
    assert "nib3" not in sys.modules


def test_backend() -> None:
    """The live layer keeps every law."""
    import nib3

    parts = nib3.quantize(torch.randn(8, 60, generator=torch.Generator().manual_seed(0)))
    results = zoquant.testing.check_backend(
        lambda: nib3.Nib3Linear(**{name: tensor.clone() for name, tensor in parts.items()}), steps=100
    )
    assert {result.outcome for result in results} == {"passed"}


def test_format(checkpoint: Path) -> None:
    """The folder keeps every law, and is what the library and the library's own arithmetic say."""
    import nib3

    def reference(path: Path) -> dict[str, Tensor]:
        model = nib3.load(path)
        return {name: part.kept for name, part in model.named_modules() if isinstance(part, nib3.Nib3Linear)}

    results = zoquant.testing.check_format(checkpoint, reference=reference)
    assert {result.outcome for result in results} == {"passed"}


def test_a_damaged_folder_names_the_tensor(checkpoint: Path) -> None:
    """A scale of another shape is refused."""
    from safetensors.torch import load_file

    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.scale"
    save_file(tensors | {name: torch.ones(3, 90).half()}, checkpoint / "model.safetensors")
    with pytest.raises(zoquant.errors.CheckpointError, match=rf"{name}.*\[2, 90\].*one for each 1 x 30 weights"):
        zoquant.load(checkpoint)


@pytest.mark.parametrize("subspace", ["values", "rows-columns"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_train_export_reload(checkpoint: Path, tmp_path: Path, runtime: str, subspace: str) -> None:
    """Probes that are written and probes within a forward train it; both runtimes open what was exported."""
    model, _ = zoquant.load(checkpoint, runtime=runtime, compute_dtype=torch.float32, device="cpu")
    ids = torch.arange(8).repeat(4, 1)

    def losses(repeat: int = 1) -> Tensor:
        found = model(input_ids=ids.repeat(repeat, 1)).logits[:, :-1].flatten(0, 1)
        each = nn.functional.cross_entropy(found, ids[:, 1:].repeat(repeat, 1).flatten(), reduction="none")
        return each.view(-1, 7).mean(1)

    views = zoquant.attach(model)
    optimizer = zoquant.ZOSGD(views, lr=3e-2, eps=2e-2, clip=2.0, seed=1, subspace=subspace, probes=2)
    with torch.no_grad():
        before = float(losses().mean())
    closure = losses if optimizer.together else lambda: losses().mean()
    for _ in range(40):
        optimizer.step(closure)
    with torch.no_grad():
        assert float(losses().mean()) < 0.6 * before
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    tuned = zoquant.export(checkpoint, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned")
    for other in RUNTIMES:
        reloaded, _ = zoquant.load(tuned, runtime=other, compute_dtype=torch.float32, device="cpu")
        torch.testing.assert_close(logits(reloaded), logits(model), rtol=1e-4, atol=1e-4)
