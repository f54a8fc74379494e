"""Folders whose tensors have other names than in the model: views are called as in the folder, and export finds them.

The reference is transformers, on a dense folder with the weights that the quantized one stands for.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoquant
from tests.folders import tiny_llama
from tests.tasks.kinds.test_masked import model_of
from zoquant.checkpoint.folder.model import load_with_transformers
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.native import QuantLinear
from zoquant.registry import format_of

NEW = int(transformers.__version__.partition(".")[0]) >= 5
IDS = torch.randint(5, 17, (2, 7), generator=torch.Generator().manual_seed(0))
TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def seeded(make: Callable[[], Any]) -> Any:
    """Return a model with the same random weights every time; its routers do choose."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval().requires_grad_(False)
        for name, value in model.named_parameters():
            if value.dim() > 1 or "bias" in name:
                value.normal_(std=0.3)
    return model


def mixtral() -> Any:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    )


def qwen2_moe() -> Any:
    return transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(**TEXT, **EXPERTS, shared_expert_intermediate_size=32, decoder_sparse_step=1)
    )


def olmoe() -> Any:
    return transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**TEXT, num_experts=4, num_experts_per_tok=2))


def deepseek() -> Any:
    return transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **{**TEXT, "num_key_value_heads": 4}, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
            n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=8, n_shared_experts=1,
        )
    )  # fmt: skip


def llava(kind: str) -> Any:
    text = {"model_type": kind, **TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16,
    }  # fmt: skip
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=63, image_token_id=63)
    )


def folders(make: Callable[[], Any], path: Path) -> tuple[Path, Path]:
    """Write a model as transformers does, its matrices in float8; return that folder and a dense one that equals it."""
    dense, packed = path / "dense", path / "packed"
    seeded(make).save_pretrained(dense)
    tensors = load_file(dense / "model.safetensors")
    plain: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if re.search(r"(layers\.\d+\..*(proj|w[123]))\.weight$", name) and tensor.dim() == 2:
            codes = (tensor / 2**-7).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored |= {name: codes, f"{name}_scale_inv": torch.full((-(-len(tensor) // 16), 1), 2**-7)}
            stored[f"{name}_scale_inv"] = stored[f"{name}_scale_inv"].repeat(1, -(-tensor.shape[1] // 32))
            plain[name] = codes.float() * 2**-7
        else:
            plain[name] = stored[name] = tensor
    said = json.loads((dense / "config.json").read_text())
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    return written(dense, plain, said), written(packed, stored, {**said, "quantization_config": quantization})


def written(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"}
    )
    return path


def load(path: Path) -> Any:
    return zoquant.load(path, runtime="native", compute_dtype=torch.float32, device="cpu")[0]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def reread(path: Path) -> Tensor:
    """Return the logits by transformers alone."""
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    return logits(getattr(transformers, name).from_pretrained(path).float().eval())


def trained(model: Any, path: Path, folder: Path, **choice: Any) -> Path:
    """Train for three steps, export; the export loads as the model that was trained."""
    views = zoquant.attach(model, **choice)
    assert set(views.keys) <= set(format_of(path).index(path))
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-2)
    before = logits(model)
    for _ in range(3):
        optimizer.step(lambda: logits(model).square().mean())
    assert not torch.equal(logits(model), before)
    zoquant.save_delta(folder / "d.safetensors", views)
    out = zoquant.export(path, delta=folder / "d.safetensors", out=folder / "tuned")
    assert torch.equal(logits(load(out)), logits(model))
    return out


MODELS = {
    "mixtral": mixtral, "qwen2-moe": qwen2_moe, "olmoe": olmoe, "deepseek-v3": deepseek,
    "llava": lambda: llava("llama"), "llava-qwen2": lambda: llava("qwen2"),
}  # fmt: skip
if not hasattr(transformers, "DeepseekV3Config"):
    del MODELS["deepseek-v3"]


@pytest.mark.parametrize("name", MODELS)
def test_quantized_folders_under_the_names_of_the_folder(tmp_path: Path, name: str) -> None:
    """Experts one by one, a text model within another: transformers 5 renames and joins them, the views do not."""
    dense, packed = folders(MODELS[name], tmp_path)
    native = load(packed)
    torch.testing.assert_close(logits(native), reread(dense), rtol=1e-4, atol=1e-4)
    views = zoquant.attach(native)
    assert set(views.keys) == {key for key, span in format_of(packed).index(packed).items() if span.role == "scale"}
    trained(native, packed, tmp_path)


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "llava-qwen2"])
def test_plain_folders_under_the_names_of_the_folder(tmp_path: Path, name: str) -> None:
    dense, _ = folders(MODELS[name], tmp_path)
    native = load(dense)
    torch.testing.assert_close(logits(native), reread(dense), rtol=1e-4, atol=1e-4)
    out = trained(native, dense, tmp_path, roles=("dense",), exclude="*vision*")
    torch.testing.assert_close(reread(out), logits(native), rtol=1e-4, atol=1e-4)


def test_the_same_names_on_the_layers_of_transformers(tmp_path: Path) -> None:
    dense, _ = folders(MODELS["llava"], tmp_path)
    model = load_with_transformers(dense, compute_dtype=torch.float32, device=torch.device("cpu"))
    trained(model, dense, tmp_path, roles=("dense",), include="language_model.*")


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    dense, _ = folders(mixtral, tmp_path)
    tensors = load_file(dense / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    written(dense, tensors, json.loads((dense / "config.json").read_text()))
    with pytest.raises(CheckpointError, match=r"experts\.2\.w3\.weight': expected a tensor, got none"):
        load(dense)


def test_tokens_that_experts_gather_are_no_rows_of_the_batch(tmp_path: Path) -> None:
    native = load(folders(mixtral, tmp_path)[1])
    views = zoquant.attach(native, include="*.experts.1.w1.*")
    with pytest.raises(UnsupportedLayoutError, match=r"experts\.1\.w1: .*gathered"):
        zoquant.ZOSGD(views, subspace="rows-columns", probes=2, lr=1e-3, eps=1e-3)


def test_a_head_alone_stands_for_the_embedding(tmp_path: Path) -> None:
    model: Any = tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    path = written(tmp_path / "a", tensors, json.loads((tmp_path / "a" / "config.json").read_text()))
    native = load(path)
    torch.testing.assert_close(logits(native), logits(model), rtol=1e-5, atol=1e-6)
    trained(native, path, tmp_path, roles=("dense",), include="lm_head.weight")


@pytest.mark.parametrize(("kind", "name"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_a_bias_under_the_other_name_of_two(tmp_path: Path, kind: str, name: str) -> None:
    source = seeded(lambda: model_of(kind))
    source.save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors[f"{name}.decoder.bias"] = tensors.pop(f"{name}.bias")
    path = written(tmp_path / "a", tensors, json.loads((tmp_path / "a" / "config.json").read_text()))
    native = load(path)
    torch.testing.assert_close(logits(native), logits(source), rtol=1e-5, atol=1e-6)
    trained(native, path, tmp_path, roles=("dense",), include=f"{name}.decoder.bias")


def test_names_of_old(tmp_path: Path) -> None:
    """BERT of TensorFlow: gamma and beta; and both at once are one too many."""
    source = model_of("bert")
    source.save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    native = load(written(tmp_path / "old", old, config))
    torch.testing.assert_close(logits(native), logits(source), rtol=1e-5, atol=1e-6)
    trained(native, tmp_path / "old", tmp_path, roles=("dense",), include="*LayerNorm.gamma")
    gamma = {name: tensor.clone() for name, tensor in old.items() if name.endswith("gamma")}
    with pytest.raises(CheckpointError, match=r"a name of its own in the model, got .*LayerNorm\.weight"):
        load(written(tmp_path / "both", {**tensors, **gamma}, config))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_body_of_a_model_alone(tmp_path: Path, kind: str) -> None:
    """GPT-2 on the Hub has no prefix; the head is tied to the embedding."""
    if kind == "llama":
        model: Any = tiny_llama(tie_word_embeddings=True)
    else:
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
        model = seeded(lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)))
    body: Any = model.base_model
    body.save_pretrained(tmp_path / "a")
    config = {**json.loads((tmp_path / "a" / "config.json").read_text()), "architectures": [type(model).__name__]}
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    if kind == "gpt2":
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    path = written(tmp_path / "a", tensors, config)
    native = load(path)
    torch.testing.assert_close(logits(native), logits(model), rtol=1e-5, atol=1e-5)
    trained(native, path, tmp_path, roles=("dense",), exclude=("*attn.bias", "*masked_bias"))


def test_positions_and_layers_that_transformers_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved buffers of long ago, and quantized layers that predict further tokens."""
    source = model_of("roberta")
    source.save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["roberta.embeddings.position_ids"] = torch.arange(34)[None]
    path = written(tmp_path / "a", tensors, json.loads((tmp_path / "a" / "config.json").read_text()))
    torch.testing.assert_close(logits(load(path)), logits(source), rtol=1e-5, atol=1e-6)

    monkeypatch.setattr(transformers.MixtralForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
    _, packed = folders(mixtral, tmp_path)
    expected, tensors = logits(load(packed)), load_file(packed / "model.safetensors")
    layer = {name: value for name, value in tensors.items() if "layers.1." in name}
    further = {name.replace("layers.1.", "layers.2."): value.clone() for name, value in layer.items()}
    written(packed, {**tensors, **further}, json.loads((packed / "config.json").read_text()))
    native = load(packed)
    assert torch.equal(logits(native), expected)
    assert isinstance(native.get_submodule("model.layers.1.self_attn.q_proj"), QuantLinear)
