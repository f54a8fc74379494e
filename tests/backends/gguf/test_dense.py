"""Plain numbers of a GGUF file train in the file's value, order and dtype, and export as the model computed."""

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import nn

from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import VERSION, logits, metadata_of, relative_error, tiny
from zoquant import ZOSGD, attach, export, load, save_delta
from zoquant.errors import UnsupportedLayoutError
from zoquant.views.stored_form import FormView

CASES = [
    ("gemma3", {}, "Q8_0"), ("gemma2", {}, ("F16", "BF16")), ("llama", {"attention_bias": True}, "F16"),
    ("llama", {"attention_bias": True}, ("BF16", "Q8_0", "F32")), ("llama", {"tie_word_embeddings": True}, "F16"),
    ("qwen2", {}, ("F32", "F16")), ("qwen3", {}, "BF16"), ("qwen2moe", {}, ("F16", "Q8_0", "BF16")),
    ("phi3", {}, "F16"), ("mixtral", {}, ("BF16", "F16")),
]  # fmt: skip


def written(folder: Path, arch: str, changes: dict[str, Any], types: Any) -> Path:
    if arch == "mixtral" and Version("5") > VERSION:
        pytest.skip("transformers 4 calls the experts of Mixtral by other names")
    name, model = ("llama", tiny(arch, **changes)) if arch == "mixtral" else (arch, tiny(arch, **changes))
    return TinyFile(name, model, metadata_of(model), types).write(folder / "base.gguf")


def opened(path: Path) -> nn.Module:
    model: nn.Module = load(path, compute_dtype=torch.float32, device="cpu")[0]
    return model


def numbers(path: Path) -> dict[str, Any]:
    """Return what llama.cpp's own reader finds, the blocks as bytes."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("space", ["relative", "absolute"])
@pytest.mark.parametrize(("arch", "changes", "types"), CASES)
def test_what_was_trained_is_what_the_file_holds(
    tmp_path: Path, arch: str, changes: dict[str, Any], types: Any, space: Any
) -> None:
    path = written(tmp_path, arch, changes, types)
    model = opened(path)
    start = logits(model)
    views = attach(model, roles=("dense",))
    optimizer = ZOSGD(views, lr=1e-2, eps=1e-2, space=space)
    for _ in range(3):
        optimizer.step(lambda: logits(model).square().mean())
    save_delta(tmp_path / "delta.safetensors", views)
    out = export(path, delta=tmp_path / "delta.safetensors", out=tmp_path / "out.gguf")
    assert relative_error(logits(model), start) > 1e-4
    assert torch.equal(logits(opened(out)), logits(model))
    before, after = numbers(path), numbers(out)
    moved = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    base = attach(opened(path), roles=("dense",))
    changed = [view for view, old in zip(views, base, strict=True) if not torch.equal(view.read(), old.read())]
    assert len(moved) == len(changed) > 0


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_a_norm_of_gemma_is_what_the_file_holds_less_one(tmp_path: Path, arch: str) -> None:
    path = written(tmp_path, arch, {}, "Q8_0")
    model, held = opened(path), numbers(path)["output_norm.weight"]
    norm: Any = model.get_submodule("model.norm")
    (view,) = attach(model, roles=("dense",), include="model.norm.weight")
    assert np.array_equal(view.read().numpy(), held)
    view.write(view.read() * 1.5)
    assert np.array_equal(norm.weight.detach().numpy(), held * np.float32(1.5) - 1)
    assert np.array_equal(view.read().numpy(), held * np.float32(1.5))


def test_rows_of_q_and_k_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "llama", {"attention_bias": True}, "F16")
    model, held = opened(path), numbers(path)
    views = {view.name: view for view in attach(model, roles=("dense",), include="*layers.0*")}
    for part, heads in (("q", 4), ("k", 2)):
        layer: Any = model.get_submodule(f"model.layers.0.self_attn.{part}_proj")
        for field in ("weight", "bias"):
            live = layer.packed.dequantize() if field == "weight" else layer.bias
            swapped = live.reshape(heads, 2, len(live) // heads // 2, -1).swapaxes(1, 2).reshape(live.shape)
            stored = held[f"blk.0.attn_{part}.{field}"].astype(np.float32)
            assert np.array_equal(swapped.numpy(), stored)
            assert np.array_equal(views[f"model.layers.0.self_attn.{part}_proj.{field}"].read().numpy(), stored)


def test_the_form_stays_known_to_a_copy_and_to_a_model_that_moves(tmp_path: Path) -> None:
    path = written(tmp_path, "gemma3", {}, "F16")
    model = opened(path)
    views, same = attach(model, roles=("dense",)), attach(copy.deepcopy(model).to("cpu"), roles=("dense",))
    assert views.fingerprints() == same.fingerprints()


def test_who_writes_past_the_view_is_heard(tmp_path: Path) -> None:
    model = opened(written(tmp_path, "gemma2", {}, "Q8_0"))
    norm: Any = model.get_submodule("model.norm")
    (view,) = attach(model, roles=("dense",), include="model.norm.weight")
    before = view.read()
    with torch.no_grad():
        norm.weight[3] = 7.0
    before[3] = 8.0
    assert torch.equal(view.read(), before)


def test_a_view_of_16_bits_over_a_wider_norm_rounds(tmp_path: Path) -> None:
    from zoquant.views.stored_form import StoredForm, keep_form

    layer = nn.LayerNorm(4)
    rows = torch.tensor([2, 0, 3, 1])
    keep_form(layer, "bias", StoredForm(torch.float16, rows))
    view = {view.name: view for view in attach(layer, roles=("dense",))}["bias"]
    value = torch.tensor([1.0, 2.0, 3.0, 4.0001])
    view.write(value)
    assert torch.equal(view.read(), value.half().float())
    assert torch.equal(layer.bias.detach(), value.half().float()[rows])
    assert isinstance(view._view, FormView)


def test_what_the_model_holds_otherwise_is_not_streamed(tmp_path: Path) -> None:
    model = opened(written(tmp_path, "gemma2", {}, "F16"))
    with pytest.raises(
        UnsupportedLayoutError, match=r"norm\.weight: is no plain contiguous tensor, so it cannot be str"
    ):
        attach(model, roles=("dense",), streamed=True)
    views = attach(model, roles=("dense",), exclude="*norm.weight", streamed=True)
    assert "model.embed_tokens.weight" in views.keys
    views.close()
