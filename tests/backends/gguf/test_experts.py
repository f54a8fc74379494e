"""Mixtures of experts: the file's fused tensors on native layers compute what transformers computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn

import zoquant
from tests.backends.gguf.files import TinyFile, file_name, with_stacked_experts
from tests.backends.gguf.models import MIXTURES, VERSION, logits, metadata_of, relative_error, tiny
from zoquant.backends.gguf.blocks import CODECS
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.checkpoint.inspection import inspect
from zoquant.errors import CheckpointError
from zoquant.native import PackedWeight, QuantExperts, QuantLinear
from zoquant.testing import FORMAT_CHECKS, FormatCase

EVERY = (*CODECS, "F16", "BF16", "F32")
EXPERTS = "model.layers.0.mlp.experts"

mixtures = pytest.mark.parametrize("arch", MIXTURES)


def written(folder: Path, arch: str, types: str | tuple[str, ...] = "F32", **changes: Any) -> tuple[nn.Module, Path]:
    if arch == "mixtral" and Version("5") > VERSION:
        pytest.skip("transformers 4 calls the experts of Mixtral by other names")
    model = tiny(arch, num_hidden_layers=1)
    word = "llama" if arch == "mixtral" else arch
    file = TinyFile(word, model, {**metadata_of(model), **changes.pop("metadata", {})}, types, **changes)
    return model, file.write(folder / "tiny.gguf")


def opened(path: Path) -> Any:
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    return model


def dequantized(model: nn.Module, path: Path) -> nn.Module:
    """Put what the reader of gguf dequantizes into the model of transformers: its own forward, nothing of zoquant."""
    found = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in gguf.GGUFReader(path).tensors
    }
    kind = model.config.model_type.replace("_", "").replace("mixtral", "llama")  # type: ignore[union-attr,operator]
    with torch.no_grad():
        for key, target in with_stacked_experts(model.state_dict()).items():
            value = found[file_name(key, kind)]
            if model.config.model_type == "mixtral" and key.endswith(("q_proj.weight", "k_proj.weight")):  # type: ignore[union-attr]
                value = value.view(-1, 32, 2, 256).transpose(1, 2).reshape(value.shape)
            assert target.untyped_storage().data_ptr() in storages(model), key
            target.copy_(value.view(target.shape))
    return model


def storages(model: nn.Module) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in model.parameters()}


@mixtures
def test_plain_weights_give_the_model_they_were_written_from(tmp_path: Path, arch: str) -> None:
    model, path = written(tmp_path, arch)
    assert relative_error(logits(opened(path)), logits(model)) < 1e-5


@pytest.mark.skipif(Version("5") > VERSION, reason="the reference puts weights into fused experts")
@mixtures
@pytest.mark.parametrize("types", [EVERY[:9], EVERY[9:18], EVERY[18:]], ids=lambda types: "-".join(types))
def test_every_type_gives_what_transformers_gives(tmp_path: Path, arch: str, types: tuple[str, ...]) -> None:
    model, path = written(tmp_path, arch, types)
    assert relative_error(logits(opened(path)), logits(dequantized(model, path))) < 1e-5


@pytest.mark.parametrize("kind", EVERY)
def test_experts_of_every_type(tmp_path: Path, kind: str) -> None:
    """The three matrices of the experts themselves, dequantized by gguf, expert by expert."""
    _, path = written(tmp_path, "qwen3moe", kind)
    experts = opened(path).get_submodule(EXPERTS)
    assert isinstance(experts, QuantExperts)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2))

    def matrix(name: str, expert: int) -> Tensor:
        tensor = found[f"blk.0.ffn_{name}_exps.weight"]
        assert tensor.tensor_type.name == kind
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)[expert].astype(np.float32))

    for number in range(6):
        inner = nn.functional.silu(x @ matrix("gate", number).t()) * (x @ matrix("up", number).t())
        expected = inner @ matrix("down", number).t()
        assert relative_error(experts[number](x), expected) < 1e-5


@mixtures
def test_only_the_experts_that_were_hit_are_decoded(tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = written(tmp_path, arch, "Q4_0")
    experts = opened(path).get_submodule(EXPERTS)
    decoded: dict[int, set[int]] = {}

    def watch(packed: PackedWeight) -> None:
        original, height = packed.decode_rows_to, packed.rows // 6

        def decode_rows_to(rows: slice, dtype: torch.dtype) -> Tensor:
            assert rows.start // height == (rows.stop - 1) // height
            decoded.setdefault(id(packed), set()).add(rows.start // height)
            return original(rows, dtype)

        monkeypatch.setattr(packed, "decode_rows_to", decode_rows_to)

    for name in ("gate_proj", "up_proj", "down_proj"):
        watch(experts.get_submodule(f"{name}.packed"))
    chosen = torch.tensor([[1, 4], [4, 6], [1, 4]])  # 6: no such expert, as a masked token has it
    y = experts(torch.randn(3, 256), chosen, torch.rand(3, 2))
    assert y.isfinite().all()
    assert list(decoded.values()) == [{1, 4}] * 3


def test_weights_count_and_none_is_zero(tmp_path: Path) -> None:
    _, path = written(tmp_path, "qwen3moe", "Q8_0")
    experts = opened(path).get_submodule(EXPERTS)
    x = torch.randn(2, 256)
    both = experts(x, torch.tensor([[0, 5], [3, 0]]), torch.tensor([[0.25, 0.75], [1.0, 0.5]]))
    expected = torch.stack([
        0.25 * experts[0](x)[0] + 0.75 * experts[5](x)[0],
        1.0 * experts[3](x)[1] + 0.5 * experts[0](x)[1],
    ])  # fmt: skip
    torch.testing.assert_close(both, expected)
    assert not experts(x, torch.full((2, 1), 6), torch.ones(2, 1)).any()


@pytest.mark.parametrize("check", FORMAT_CHECKS.values(), ids=FORMAT_CHECKS)
def test_mixtures_conform(tmp_path: Path, check: zoquant.testing.Check[FormatCase]) -> None:
    _, path = written(tmp_path, "qwen2moe", "Q4_K")
    check.run(FormatCase(path, GGUFFormat(), torch.float32, steps=2))


def test_keys_and_spans(tmp_path: Path) -> None:
    _, path = written(tmp_path, "qwen2moe", ("Q4_1", "F16", "IQ4_NL"))
    index = GGUFFormat().index(path)
    keys = {key.removeprefix(f"{EXPERTS}."): span for key, span in index.items() if key.startswith(EXPERTS)}
    assert {key.partition(".")[0] for key in keys} == {"gate_proj", "up_proj", "down_proj"}
    for key, span in keys.items():
        rows = 6 * 256
        assert span.shape[0] == rows
        assert span.tensor == f"blk.0.ffn_{key.partition('_')[0]}_exps.weight"
    assert index["model.layers.0.mlp.gate.weight"].shape == (6, 256)
    assert index["model.layers.0.mlp.shared_expert_gate.weight"].shape == (1, 256)


def test_training_moves_the_loss_and_exports(tmp_path: Path) -> None:
    _, path = written(tmp_path, "qwen3moe", "Q4_0")
    model = opened(path)
    views = zoquant.attach(model, include="*.experts.*")
    assert len(views) == 3
    ids = torch.arange(20).view(2, 10)
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-2, clip=1.0)
    for _ in range(5):
        optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)
    zoquant.save_delta(tmp_path / "delta", views)
    tuned = zoquant.export(path, delta=tmp_path / "delta", out=tmp_path / "tuned.gguf")
    assert torch.equal(logits(opened(tuned)), logits(model))
    assert not torch.equal(logits(model), logits(opened(path)))


def test_inspect(tmp_path: Path) -> None:
    model, path = written(tmp_path, "qwen2moe", "Q4_0")
    said = inspect(path)
    assert said["parameters"] == sum(value.numel() for value in model.parameters())
    assert said["runtimes"]["native"].startswith("yes")


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        (
            "qwen3moe",
            {"skip": ["blk.0.ffn_up_exps.weight"]},
            "expected a tensor for 'model.layers.0.mlp.experts.up_proj",
        ),
        (
            "qwen3moe",
            {"metadata": {"expert_count": 5}},
            r"mlp.gate.weight\)|expected \(5, 256, 256\), got \(6, 256, 256\)",
        ),
        ("qwen3moe", {"metadata": {"expert_used_count": 7}}, "'qwen3moe.expert_used_count': expected at most 6"),
        ("qwen3moe", {"metadata": {"expert_gating_func": 2}}, "'qwen3moe.expert_gating_func': expected 1"),
        ("qwen3moe", {"metadata": {"expert_weights_scale": 2.5}}, "'qwen3moe.expert_weights_scale': expected 1.0"),
        (
            "qwen3moe",
            {"metadata": {"expert_feed_forward_length": 512}},
            r"expected \(6, 512, 256\), got \(6, 256, 256\)",
        ),
        (
            "qwen3moe",
            {"extra": {"blk.0.ffn_up_exps.bias": np.zeros((6, 256), np.float32)}},
            "'blk.0.ffn_up_exps.bias': expected a tensor of a qwen3moe model, got an unknown name",
        ),
        (
            "qwen2moe",
            {"extra": {"blk.1.ffn_up_exps.weight": np.zeros((6, 256, 256), np.float32)}},
            "'qwen2moe.block_count': expected 2",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, arch: str, changes: Mapping[str, Any], message: str
) -> None:
    _, path = written(tmp_path, arch, **changes)
    with pytest.raises(CheckpointError, match=message):
        opened(path)


def test_a_flat_tensor_of_experts_is_refused_by_the_index(tmp_path: Path) -> None:
    flat = {"blk.0.ffn_up_exps.weight": np.zeros((6 * 256, 256), np.float32)}
    _, path = written(tmp_path, "qwen3moe", "Q8_0", extra=flat)
    with pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_up_exps\.weight': expected \[experts, rows, columns\]"):
        GGUFFormat().index(path)


def test_tiles_of_an_expert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, path = written(tmp_path, "qwen3moe", "Q6_K")
    expected = logits(opened(path))
    monkeypatch.setattr("zoquant.native.experts.TILE", 256 * 100)
    assert relative_error(logits(opened(path)), expected) < 1e-6
    assert any(isinstance(module, QuantLinear) for module in opened(path).modules())
