"""Adapters of peft: only they are views, their keys are the names of their files, and what is trained reloads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zoquant
from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import tiny
from tests.backends.peft import samples
from tests.backends.peft.models import IDS, KINDS, TARGETS, adapted, configs, logits, trained
from tests.folders import tiny_llama
from zoquant.backends.peft.live import lora_on_native, prompts_on_native
from zoquant.errors import NoViewsError, UnsupportedLayoutError
from zoquant.native import QuantLinear
from zoquant.testing.tensors import codes_of

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_values_are_those_of_the_adapter_s_file(tmp_path: Path, kind: str) -> None:
    model = adapted(kind)
    views = zoquant.attach(model, roles=("adapter",))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    keys = {key.removeprefix("prompt_encoder.default.") for key in views.keys}
    assert keys == stored.keys()
    for view in views:
        assert view.role == "adapter"
        assert torch.equal(view.read(), stored[view.name.removeprefix("prompt_encoder.default.")])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_adapter_saves_and_reloads_equal(tmp_path: Path, kind: str) -> None:
    model = adapted(kind)
    frozen = {name: value.clone() for name, value in model.get_base_model().state_dict().items()}
    before = logits(model)
    trained(model)
    after = logits(model)
    assert not torch.equal(after, before)
    for name, value in model.get_base_model().state_dict().items():
        if not any(word in name for word in ("lora_", "ia3_l", "modules_to_save")):
            assert torch.equal(value, frozen[name]), name
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval()
    assert torch.equal(logits(again), after)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_drifts(kind: str) -> None:
    model = adapted(kind)
    before = logits(model)
    views = zoquant.attach(model, roles=("adapter",))
    views.space = "absolute"
    for seed in range(50):
        views.write(seed=seed, eps=0.1)
    assert not torch.equal(logits(model), before)
    views.write()
    assert torch.equal(logits(model), before)


def test_a_delta_goes_from_one_adapter_to_another_of_another_name(tmp_path: Path) -> None:
    model = adapted("lora")
    zoquant.save_delta(tmp_path / "delta.safetensors", trained(model))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        other = peft.get_peft_model(tiny_llama(), configs()["lora"], adapter_name="another").eval()
    zoquant.load_delta(tmp_path / "delta.safetensors", zoquant.attach(other, roles=("adapter",)))
    assert torch.equal(logits(other), logits(model))


def native_llama(path: Path) -> nn.Module:
    file = TinyFile("llama", tiny("llama", num_hidden_layers=1), types="Q4_0").write(path / "tiny.gguf")
    model, _ = zoquant.load(file, compute_dtype=torch.float32)
    assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), QuantLinear)
    return model


def test_lora_on_native_layers(tmp_path: Path) -> None:
    settings = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(native_llama(tmp_path), lora_on_native(peft.LoraConfig(**settings))).eval()
    before = logits(model)
    assert torch.equal(before, logits(native_llama(tmp_path)))
    views = zoquant.attach(model, roles=("adapter",))
    assert len(views) == 4
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-2, space="absolute", clip=1.0)
    for _ in range(5):
        optimizer.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    after = logits(model)
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path / "adapter")
    config = lora_on_native(peft.PeftConfig.from_pretrained(str(tmp_path / "adapter")))
    again = peft.PeftModel.from_pretrained(native_llama(tmp_path), str(tmp_path / "adapter"), config=config).eval()
    assert torch.equal(logits(again), after)


def test_scales_and_adapter_together(tmp_path: Path) -> None:
    config = lora_on_native(peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model = peft.get_peft_model(native_llama(tmp_path), config).eval()
    roles = {view.role for view in zoquant.attach(model, roles=("scale", "adapter"), coupled=False)}
    assert roles == {"scale", "adapter"}
    assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer.d" in zoquant.attach(model).keys


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_prompts_on_native_layers(tmp_path: Path, kind: str) -> None:
    model = prompts_on_native(adapted(kind, native_llama(tmp_path)))
    before = logits(model)
    trained(model)
    assert not torch.equal(logits(model), before)


def test_the_plain_parameters_of_an_adapted_model() -> None:
    """What lies within an adapter's layer is the adapter's or its base's, never both and never an idle adapter's."""
    model = adapted("lora")
    model.add_adapter("idle", peft.LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"))
    model.set_adapter("default")
    adapter = zoquant.attach(model, roles=("adapter",))
    dense = zoquant.attach(model, roles=("dense",))
    plain = {name for name, _ in tiny_llama().named_parameters()}
    keys = {key.removeprefix("base_model.model.").replace(".base_layer", "") for key in dense.keys}
    assert keys == plain
    assert len(adapter) == 4
    assert len(zoquant.attach(model, roles=("dense", "adapter"))) == len(adapter) + len(dense)


def test_an_adapter_that_the_forward_does_not_add_is_refused() -> None:
    model = adapted("lora")
    model.merge_adapter()
    with pytest.raises(UnsupportedLayoutError, match=r"q_proj \(peft\): the adapter is merged into its base"):
        zoquant.attach(model, roles=("adapter",))
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(UnsupportedLayoutError, match="the adapter is disabled: unmerge"):
        zoquant.attach(model, roles=("adapter",))
    model.add_adapter("second", configs()["lora"])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnsupportedLayoutError, match="2 adapters are active, default, second"):
        zoquant.attach(model, roles=("adapter",))
    model.set_adapter("second")
    assert len(zoquant.attach(model, roles=("adapter",))) == 4


def test_a_projected_prefix_is_refused() -> None:
    encoder = samples.prefix(prefix_projection=True)
    with pytest.raises(UnsupportedLayoutError, match="prefix_projection=True"):
        zoquant.attach(encoder, roles=("adapter",))


def test_an_adapter_is_no_view_unless_asked_for() -> None:
    with pytest.raises(NoViewsError, match="no view has a role of"):
        zoquant.attach(adapted("lora"))


def hqq_linear(linear: nn.Linear) -> nn.Module:
    quantize = pytest.importorskip("hqq.core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=4, group_size=16, axis=1)
    layer: nn.Module = quantize.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    return layer


def nf4_linear(linear: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(linear.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    layer.support_avx512bf16_for_cpu = False  # its kernel takes no rows of less than 64
    moved: nn.Module = layer.to("cpu")
    return moved


@pytest.mark.parametrize(("quantized", "kind"), [(hqq_linear, "HqqLoraLinear"), (nf4_linear, "Linear4bit")])
def test_lora_on_the_layers_of_other_libraries(tmp_path: Path, quantized: Any, kind: str) -> None:
    """Only the adapter is a view, whatever the base; its codes stay, and what is trained reloads."""

    def base() -> nn.Module:
        model: Any = tiny_llama()
        attention = model.model.layers[0].self_attn
        attention.q_proj, attention.v_proj = quantized(attention.q_proj), quantized(attention.v_proj)
        model.is_loaded_in_4bit = quantized is nf4_linear  # as transformers says it, which peft goes by
        return model  # type: ignore[no-any-return]

    model = adapted("lora", base())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == kind
    codes = codes_of(layer.base_layer, [])
    assert codes
    before = logits(model)
    views = trained(model)
    assert {view.role for view in views} == {"adapter"}
    assert len(views) == 4
    assert not torch.equal(logits(model), before)
    after = codes_of(layer.base_layer, [])
    assert all(torch.equal(after[name], value) for name, value in codes.items())
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    assert torch.equal(logits(again), logits(model))
