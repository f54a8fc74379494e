"""Folders become models of transformers on native layers, whole or not at all."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoquant
from tests.folders import save_folder, tiny_llama, write_folder
from tests.tasks.kinds.test_masked import model_of
from zoquant.errors import CheckpointError
from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.native.meta import ModuleSlots


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        out: torch.Tensor = model(ids).logits
    return out


def load(path: Path) -> nn.Module:
    return zoquant.load(path, compute_dtype=torch.float32, device="cpu")[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_llama_agrees_with_transformers(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    model = tiny_llama(tie_word_embeddings=tied).to(dtype)
    path = save_folder(model, tmp_path / "a", tie_word_embeddings=tied)
    native = load(path)
    assert not any(tensor.requires_grad for tensor in native.parameters())
    assert not native.training
    torch.testing.assert_close(logits(native), logits(model.float()), rtol=1e-5, atol=1e-6)


def test_plain_matrices_stay_in_the_dtype_of_the_file(tmp_path: Path) -> None:
    native: Any = load(save_folder(tiny_llama().to(torch.bfloat16), tmp_path / "a"))
    assert isinstance(native.model.embed_tokens, QuantEmbedding)
    assert isinstance(native.lm_head, QuantLinear)
    assert native.lm_head.packed.value("weight").dtype == torch.bfloat16
    assert native.model.norm.weight.dtype == torch.float32


def test_dense_training_exports_and_reloads(tmp_path: Path) -> None:
    path = save_folder(tiny_llama().to(torch.bfloat16), tmp_path / "a", shards=2)
    model = load(path)
    views = zoquant.attach(model, roles=("dense",))
    optimizer = zoquant.ZOSGD(views, lr=1e-3, eps=1e-2)
    for _ in range(3):
        optimizer.step(lambda: logits(model).square().mean())
    zoquant.save_delta(tmp_path / "d.safetensors", views)
    tuned = zoquant.export(path, delta=tmp_path / "d.safetensors", out=tmp_path / "b")
    assert torch.equal(logits(load(tuned)), logits(model))
    from transformers import AutoModelForCausalLM

    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tuned).float()), logits(model), rtol=1e-5, atol=1e-6
    )


def opt(**changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import OPTConfig, OPTForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 48, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32, "bos_token_id": 1, "eos_token_id": 2, **changes,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = OPTForCausalLM(OPTConfig(**settings)).eval().requires_grad_(False)
    return model, {"model_type": "opt", "architectures": ["OPTForCausalLM"], **settings}


def test_layer_norms_and_biases(tmp_path: Path) -> None:
    """OPT: biases everywhere, torch's own LayerNorm, learned positions, a tied head."""
    model, config = opt()
    model = model.to(torch.float16)
    tensors = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    native = load(write_folder(tmp_path / "a", tensors, config=config))
    torch.testing.assert_close(logits(native), logits(model.float()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_a_bias_that_two_layers_share(tmp_path: Path, kind: str, name: str) -> None:
    """The output layer of masked models: its matrix is that of the embedding, its bias the module's above it."""
    import transformers

    source: Any = model_of(kind)
    torch.nn.init.normal_(source.get_submodule(name).bias, generator=torch.Generator().manual_seed(0))
    source.save_pretrained(tmp_path / "a")
    native: Any = load(tmp_path / "a")
    torch.testing.assert_close(masked_logits(native), masked_logits(source), rtol=1e-5, atol=1e-6)
    views = zoquant.attach(native, roles=("dense",), include=f"{name}*bias")
    assert f"{name}.bias" in views.keys
    assert not [key for key in views.keys if "decoder" in key]
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-2, space="absolute")
    optimizer.step(lambda: masked_logits(native).square().mean())
    zoquant.save_delta(tmp_path / "d.safetensors", views)
    tuned = zoquant.export(tmp_path / "a", delta=tmp_path / "d.safetensors", out=tmp_path / "b")
    assert not torch.equal(masked_logits(native), masked_logits(source))
    assert torch.equal(masked_logits(load(tuned)), masked_logits(native))
    if kind == "bert" or transformers.__version__ >= "5":  # 4.48 forgets the bias of every RoBERTa that it reads
        reread = transformers.AutoModelForMaskedLM.from_pretrained(tuned).eval()
        torch.testing.assert_close(masked_logits(reread), masked_logits(native), rtol=1e-5, atol=1e-6)


def masked_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([[2, 8, 9, 4, 3]])).logits
    return found


def test_a_bias_that_nobody_has_is_named(tmp_path: Path) -> None:
    model_of("bert").save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    del tensors["cls.predictions.bias"]
    save_file(tensors, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'cls\.predictions\.(decoder\.)?bias': expected a tensor, got none"):
        load(tmp_path / "a")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = tiny_llama().state_dict()
    del tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight': expected a tensor, got none"):
        load(write_folder(tmp_path / "a", tensors))


@pytest.mark.parametrize("name", ["model.layers.7.mlp.up_proj.weight", "stray"])
def test_a_tensor_without_a_place_is_named(tmp_path: Path, name: str) -> None:
    tensors = {**tiny_llama().state_dict(), name: torch.ones(2, 2)}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load(write_folder(tmp_path / "a", tensors))


def test_numbers_that_no_format_claims_are_named(tmp_path: Path) -> None:
    tensors = tiny_llama().state_dict()
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 32, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.mlp\.up_proj\.weight'.*float64, which no format"):
        load(write_folder(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": 3}, r"'model_type': expected a string"),
        ({"model_type": "no-such-model"}, r"transformers cannot build a 'no-such-model' model"),
        ({"architectures": ["os.system"]}, r"'architectures': expected a model class of transformers"),
        ({"architectures": ["AutoConfig"]}, r"'architectures'"),
        ({"hidden_size": 16}, r"expected"),
        ({"num_attention_heads": 0}, r"transformers cannot build"),
    ],
)
def test_lying_configs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(save_folder(tiny_llama(), tmp_path / "a", **changes))


def test_code_of_the_checkpoint_never_runs(tmp_path: Path) -> None:
    path = save_folder(tiny_llama(), tmp_path / "a", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (path / "evil.py").write_text("raise SystemExit('ran')")
    load(path)


def test_a_module_is_replaced_wherever_the_model_refers_to_it() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared})
    places, first, second = ModuleSlots(model), nn.Identity(), nn.Identity()
    places.replace("a.0", first)
    assert model["b"] is model.get_submodule("a.0") is first
    places.replace("b", second)
    assert model["b"] is model.get_submodule("a.0") is second


def test_modules_with_children_are_replaced_and_the_old_ones_let_go() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU())
    places, gone, inner = ModuleSlots(model), weakref.ref(model.get_submodule("0.0")), nn.Identity()
    places.replace("0", nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    assert gone() is None
    places.replace("0.0.0", inner)
    assert model.get_submodule("0.0.0") is inner


def test_a_module_may_be_put_around_the_one_that_it_replaces() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    places, inner = ModuleSlots(model), nn.Identity()
    places.replace("0", nn.Sequential(model[0]))
    places.replace("0.0.0", inner)
    assert model.get_submodule("0.0.0") is inner
