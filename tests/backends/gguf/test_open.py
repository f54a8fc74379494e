"""A model on native layers computes what transformers computes of the same file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.backends.gguf.files import VOCAB, TinyFile
from tests.backends.gguf.models import ARCHITECTURES, VENDOR, VERSION, logits, metadata_of, relative_error, tiny
from zoquant.backends.gguf import architectures as architectures_of
from zoquant.backends.gguf.blocks import CODECS
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.backends.gguf.header import read_header
from zoquant.errors import CheckpointError
from zoquant.native import QuantEmbedding, QuantLinear, QuantWeight

CLOSE = 1e-5
MIXED = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F16", "IQ4_XS", "BF16", "Q5_0")
EVERY = (*CODECS, "F32", "F16", "BF16")

architectures = pytest.mark.parametrize("arch", ARCHITECTURES)


def opened(path: Path, compute_dtype: torch.dtype = torch.float32) -> nn.Module:
    model, _ = GGUFFormat().open_native(path, compute_dtype=compute_dtype, device=torch.device("cpu"))
    return model


def written(tmp_path: Path, arch: str, *, types: str | Sequence[str] = "F32", **changes: Any) -> tuple[nn.Module, Path]:
    model = tiny(arch, **changes)
    return model, TinyFile(arch, model, metadata_of(model), types).write(tmp_path / "tiny.gguf")


def vendor(path: Path) -> nn.Module:
    """Return transformers' own model of a file: dequantized, on plain layers."""
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert next(model.parameters()).dtype == torch.float32
    return model.eval()


@architectures
def test_plain_weights_give_the_model_they_were_written_from(tmp_path: Path, arch: str) -> None:
    model, path = written(tmp_path, arch)
    assert relative_error(logits(opened(path)), logits(model)) < CLOSE


def test_opening_walks_the_model_as_often_whatever_its_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    named_modules = nn.Module.named_modules

    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        walks[-1] += isinstance(module, transformers.PreTrainedModel)
        return named_modules(module, *args, **kwargs)

    for layers in (1, 3):
        _, path = written(tmp_path, "llama", types="Q4_0", num_hidden_layers=layers)
        monkeypatch.setattr(nn.Module, "named_modules", counted)
        walks.append(0)
        opened(path)
        monkeypatch.undo()
    assert walks[0] == walks[1]


@pytest.mark.parametrize("arch", VENDOR)
def test_quantized_weights_give_what_transformers_gives(tmp_path: Path, arch: str) -> None:
    wide = {"sliding_window": 4096} if arch.startswith("gemma") else {}  # transformers 4.48 does not read it
    _, path = written(tmp_path, arch, types=MIXED, **wide)
    assert relative_error(logits(opened(path)), logits(vendor(path))) < CLOSE


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - set(VENDOR)))
def test_quantized_weights_give_what_their_numbers_give(tmp_path: Path, arch: str) -> None:
    model, path = written(tmp_path, arch, types=MIXED)
    found = gguf.GGUFReader(path).tensors
    numbers = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in found}
    plain = TinyFile(arch, model, metadata_of(model), extra=numbers).write(tmp_path / "plain.gguf")
    got = logits(opened(path))
    assert relative_error(got, logits(opened(plain))) < CLOSE
    assert relative_error(got, logits(model)) > 1e-4


@pytest.mark.parametrize("types", [EVERY[:9], EVERY[9:18], EVERY[18:]], ids=lambda types: "-".join(types))
@pytest.mark.parametrize("tied", [True, False])
def test_every_type_gives_what_transformers_gives(tmp_path: Path, types: Sequence[str], tied: bool) -> None:
    _, path = written(tmp_path, "llama", types=types, tie_word_embeddings=tied)
    model = opened(path)
    assert relative_error(logits(model), logits(vendor(path))) < CLOSE
    used = {module.codec.name for module in model.modules() if isinstance(module, QuantWeight)}
    assert used == set(types) & set(CODECS)


def test_row_order_matters(tmp_path: Path) -> None:
    _, path = written(tmp_path, "llama", types="Q8_0")
    model = opened(path)
    before = logits(model)
    packed = model.get_submodule("model.layers.0.self_attn.q_proj.packed")
    assert isinstance(packed, QuantWeight)
    packed.row_order = None
    assert relative_error(logits(model), before) > 1e-3


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_tied_head_shares_the_embedding(tmp_path: Path, kind: str) -> None:
    _, path = written(tmp_path, "llama", types=kind, tie_word_embeddings=True)
    model = opened(path)
    embedding, head = model.get_submodule("model.embed_tokens"), model.get_submodule("lm_head")
    assert isinstance(embedding, QuantEmbedding)
    assert isinstance(head, QuantLinear)
    assert head.packed is embedding.packed
    assert not any(key.startswith("lm_head") for key in GGUFFormat().index(path))
    assert model.config.tie_word_embeddings  # type: ignore[union-attr]


def test_an_untied_head_has_its_own_weights(tmp_path: Path) -> None:
    _, path = written(tmp_path, "llama", types="Q6_K")
    model = opened(path)
    assert model.get_submodule("lm_head.packed") is not model.get_submodule("model.embed_tokens.packed")
    assert "lm_head.d" in GGUFFormat().index(path)


@architectures
def test_nothing_trains_and_nothing_is_kept_dequantized(tmp_path: Path, arch: str) -> None:
    _, path = written(tmp_path, arch, types="Q4_K")
    model = opened(path)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.device.type == "meta" for tensor in [*model.parameters(), *model.buffers()])
    # command-r has norms of a head, [heads, width], which the file holds as plain numbers
    assert all(each.dim() == 1 or name.endswith("norm.weight") for name, each in model.named_parameters())
    assert not any(isinstance(module, (nn.Linear, nn.Embedding)) for module in model.modules())
    logits(model)
    kept = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert kept < 1.3 * path.stat().st_size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_half_precision_stay_close(tmp_path: Path, dtype: torch.dtype) -> None:
    _, path = written(tmp_path, "llama", types="Q8_0")
    assert relative_error(logits(opened(path, dtype)), logits(opened(path))) < 0.1


def test_biases_of_llama_are_in_the_model_s_order(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
    model, path = written(tmp_path, "llama", **changes)
    assert relative_error(logits(opened(path)), logits(model)) < CLOSE
    _, path = written(tmp_path, "llama", types="Q8_0", **changes)
    reference = opened(path)
    expected = model.get_submodule("model.layers.1.self_attn.q_proj").bias
    assert torch.equal(reference.get_submodule("model.layers.1.self_attn.q_proj").bias, expected)  # type: ignore[arg-type]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def frequencies(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.get_submodule("model.rotary_emb").inv_freq  # type: ignore[assignment]
    return found


def test_rope_factors_of_llama3_are_applied(tmp_path: Path) -> None:
    plain, model = tiny("llama"), tiny("llama", rope_scaling=LLAMA3)
    factors = (frequencies(plain) / frequencies(model)).numpy()
    assert factors.max() > 2
    path = TinyFile("llama", model, extra={"rope_freqs.weight": factors}).write(tmp_path / "tiny.gguf")
    got = logits(opened(path))
    assert relative_error(got, logits(model)) < CLOSE
    assert relative_error(got, logits(plain)) > 1e-3


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling_is_applied(tmp_path: Path, arch: str, kind: str) -> None:
    scaling: dict[str, Any] = {"rope_type": kind, "factor": 4.0}
    keys: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = 128
        keys["rope.scaling.original_context_length"] = 128
    plain, model = tiny(arch), tiny(arch, rope_scaling=scaling)
    path = TinyFile(arch, model, keys).write(tmp_path / "tiny.gguf")
    got = logits(opened(path))
    assert relative_error(got, logits(model)) < CLOSE
    assert relative_error(got, logits(plain)) > 1e-3


def test_long_rope_factors_of_phi3_are_applied(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    short, long = (np.float32(random.uniform(1, 4, 32)) for _ in range(2))
    scaling = {"type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist()}
    changes = {"rope_scaling": scaling, "original_max_position_embeddings": 32, "max_position_embeddings": 128}
    plain, model = tiny("phi3"), tiny("phi3", **changes)
    keys = {"rope.scaling.original_context_length": 32}
    extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    path = TinyFile("phi3", model, keys, extra=extra).write(tmp_path / "tiny.gguf")
    got = logits(opened(path))
    assert relative_error(got, logits(model)) < CLOSE
    assert relative_error(got, logits(plain)) > 1e-3
    factor = model.get_submodule("model.rotary_emb").attention_scaling
    good = TinyFile("phi3", model, {**keys, "rope.scaling.attn_factor": factor}, extra=extra)
    assert relative_error(logits(opened(good.write(tmp_path / "good.gguf"))), logits(model)) < CLOSE
    bad = TinyFile("phi3", model, {**keys, "rope.scaling.attn_factor": 1.5}, extra=extra)
    with pytest.raises(
        CheckpointError, match=r"scaling.attn_factor': expected 1\.\d+, as transformers has it, got 1.5"
    ):
        opened(bad.write(tmp_path / "bad.gguf"))
    half = TinyFile("phi3", model, keys, extra={"rope_factors_long.weight": long})
    with pytest.raises(CheckpointError, match=r"'rope_factors_short\.weight': expected long and short rope factors"):
        opened(half.write(tmp_path / "half.gguf"))


def test_part_of_the_head_is_rotated_in_phi3(tmp_path: Path) -> None:
    if VERSION.release < (4, 50):
        pytest.skip(f"transformers {VERSION} rotates the whole head")
    model = tiny("phi3", partial_rotary_factor=0.5)
    path = TinyFile("phi3", model, {"rope.dimension_count": 32}).write(tmp_path / "tiny.gguf")
    assert relative_error(logits(opened(path)), logits(model)) < CLOSE


def test_rope_of_gemma3_is_scaled_in_global_layers_only(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    plain, model = (tiny("gemma3", num_hidden_layers=6, rope_scaling=rope) for rope in (None, scaling))
    keys = {**metadata_of(model), "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    path = TinyFile("gemma3", model, keys).write(tmp_path / "tiny.gguf")
    got = logits(opened(path))
    assert relative_error(got, logits(model)) < CLOSE
    assert relative_error(got, logits(plain)) > 1e-4


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemma_divides_queries_by_the_width_of_a_head(tmp_path: Path, arch: str) -> None:
    model = tiny(arch, head_dim=64, num_attention_heads=2, query_pre_attn_scalar=64)
    path = TinyFile(arch, model, metadata_of(model)).write(tmp_path / "tiny.gguf")
    assert relative_error(logits(opened(path)), logits(model)) < CLOSE


def test_soft_caps_of_gemma2_are_read(tmp_path: Path) -> None:
    model = tiny("gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    keys = {**metadata_of(model), "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    path = TinyFile("gemma2", model, keys).write(tmp_path / "tiny.gguf")
    got = logits(opened(path))
    assert relative_error(got, logits(model)) < CLOSE
    assert got.abs().max() <= 3


def refused(tmp_path: Path, arch: str = "llama", **changes: Any) -> str:
    types = changes.pop("types", "Q8_0")
    keys = changes.pop("metadata", {})
    model = tiny(arch)
    path = TinyFile(arch, model, {**metadata_of(model), **keys}, types, **changes).write(tmp_path / "bad.gguf")
    with pytest.raises(CheckpointError) as info:
        opened(path)
    assert str(path) in str(info.value)
    return str(info.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": ["blk.1.ffn_up.weight"]}, "expected a tensor for 'model.layers.1.mlp.up_proj.weight', got none"),
        ({"skip": ["token_embd.weight"]}, "tensor 'token_embd.weight': expected a matrix, got none"),
        ({"extra": {"blk.0.ffn_gate_inp.weight": np.zeros((4, 256), np.float32)}}, "'blk.0.ffn_gate_inp.weight'"),
        ({"extra": {"blk.0.attn_q_norm.weight": np.zeros(4, np.float32)}}, "of a llama model, got an unknown name"),
        ({"extra": {"something": np.zeros(4, np.float32)}}, "tensor 'something': expected a tensor of a llama model"),
        ({"extra": {"output_norm.bias": np.zeros(256, np.float32)}}, "(model.norm.bias): expected no such tensor"),
        (
            {"extra": {"rope_freqs.weight": np.ones(7, np.float32)}},
            "rope_freqs.weight': expected shape (32,), got (7,)",
        ),
        ({"metadata": {"block_count": 3}}, "'llama.block_count': expected 2, the number of layers in the file, got 3"),
        ({"metadata": {"block_count": 4000000000}}, "'llama.block_count': expected 2"),
        ({"metadata": {"embedding_length": 128}}, "'llama.embedding_length': expected 256"),
        ({"metadata": {"feed_forward_length": 500}}, "(model.layers.0.mlp.gate_proj.weight): expected (500, 256)"),
        ({"metadata": {"feed_forward_length": "wide"}}, "'llama.feed_forward_length': expected a number, got 'wide'"),
        ({"metadata": {"attention.head_count": 0}}, "'llama.attention.head_count': expected a whole number above 0"),
        (
            {"metadata": {"attention.head_count": 8}},
            "key_length': expected 8 heads in the 256 rows of 'blk.0.attn_q.weight'",
        ),
        ({"metadata": {"attention.key_length": 1 << 31, "attention.value_length": 1 << 31}}, "got heads of 2147483648"),
        ({"metadata": {"attention.head_count_kv": 4}}, "k_proj.weight): expected (256, 256), got (128, 256)"),
        ({"metadata": {"rope.dimension_count": 1 << 31}}, "expected at most 64, the width of a head, got more"),
        ({"skip": ["blk.0.attn_q.weight"]}, "tensor 'blk.0.attn_q.weight': expected a matrix, got none"),
        ({"metadata": {"attention.value_length": 32}}, "'llama.attention.value_length': expected the key_length 64"),
        ({"metadata": {"rope.dimension_count": 32}}, "'llama.rope.dimension_count': expected 64, as model.rotary_emb."),
        ({"metadata": {"rope.scaling.type": "su", "rope.scaling.factor": 2.0}}, "expected 'none', 'linear', 'yarn' or"),
        (
            {"metadata": {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 0.5}},
            "'llama.rope.scaling.attn_factor': expected 1.0, for zoquant knows no other for 'yarn', got 0.5",
        ),
        ({"metadata": {"expert_count": 8}}, "'llama.expert_used_count': expected a number, got nothing"),
        ({"metadata": {"attention.scale": 0.5}}, "'llama.attention.scale': expected no such key"),
        (
            {"edit": lambda writer: writer.add_uint16("split.count", 3)},
            "expected a name that ends in -00001-of-00003.gguf",
        ),
    ],
)
def test_a_file_that_contradicts_its_model_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, **changes)


def test_experts_in_a_model_without_them_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, "qwen2", metadata={"expert_count": 8})
    assert "'qwen2.expert_count': expected no such key" in message


@pytest.mark.parametrize("types", ["Q8_0", "F32"])
def test_a_missing_bias_is_refused(tmp_path: Path, types: str) -> None:
    message = refused(tmp_path, "qwen2", types=types, skip=["blk.1.attn_k.bias"])
    assert "expected a tensor for 'model.layers.1.self_attn.k_proj.bias', got none" in message


def test_a_model_that_transformers_cannot_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such(*args: object, **settings: object) -> None:
        raise ValueError("no such\nmodel.")

    _, path = written(tmp_path, "llama")
    monkeypatch.setattr(transformers.AutoConfig, "for_model", no_such)
    with pytest.raises(
        CheckpointError, match=r"cannot build a 'llama' model from .*: no such model\. Update transformers"
    ):
        opened(path)


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    path = TinyFile("mamba", tiny("llama")).write(tmp_path / "bad.gguf")
    known = ", ".join(sorted(architectures_of.ARCHITECTURES))
    with pytest.raises(CheckpointError, match=f"{known}, got 'mamba'"):
        opened(path)
    with pytest.raises(CheckpointError, match="got 'mamba'"):
        GGUFFormat().index(path)


def test_a_kind_that_cannot_be_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = TinyFile("gpt-oss", tiny("llama")).write(tmp_path / "bad.gguf")
    with pytest.raises(CheckpointError, match=r"got 'gpt-oss'\. zoquant cannot run .* have no biases, and it does not"):
        GGUFFormat().index(path)
    assert set(architectures_of.REFUSED) < set(gguf.MODEL_ARCH_NAMES.values()) - set(architectures_of.ARCHITECTURES)


def test_the_page_lists_the_architectures() -> None:
    page = Path(__file__).parents[3].joinpath("docs/formats/gguf.md").read_text(encoding="utf-8")
    assert ", ".join(sorted(architectures_of.ARCHITECTURES)) in " ".join(page.split())


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("stablelm", {"use_qkv_bias": False, "use_parallel_residual": True}),
        ("granite", {"attention_bias": True}),
        ("command-r", {"use_qk_norm": False, "attention_bias": True}),
        ("starcoder2", {"use_bias": False}),
        ("glm4", {"attention_bias": False}),
        ("qwen2", {"head_dim": 64}),
    ],
)
def test_what_a_kind_may_have_is_seen_in_its_tensors(tmp_path: Path, arch: str, changes: dict[str, Any]) -> None:
    model, path = written(tmp_path, arch, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(100 if name.endswith(("q_proj.bias", "k_proj.bias")) else 1)
    TinyFile(arch, model, metadata_of(model)).write(path)
    assert relative_error(logits(opened(path)), logits(model)) < CLOSE


@pytest.mark.parametrize(
    ("arch", "key", "value"),
    [
        ("granite", "attention.scale", 0.9),
        ("granite", "embedding_scale", 1.0),
        ("granite", "residual_scale", 1.0),
        ("granite", "logit_scale", 5.0),
        ("command-r", "logit_scale", 0.25),
        ("cohere2", "attention.sliding_window", 64),
        ("phi2", "rope.dimension_count", 64),
    ],
)
def test_a_key_of_a_kind_changes_the_logits(tmp_path: Path, arch: str, key: str, value: float) -> None:
    model = tiny(arch)
    path = TinyFile(arch, model, {**metadata_of(model), key: value}).write(tmp_path / "tiny.gguf")
    assert relative_error(logits(opened(path)), logits(model)) > 1e-4


@pytest.mark.parametrize("arch", ["command-r", "cohere2"])
def test_a_scale_of_the_logits_has_no_default(tmp_path: Path, arch: str) -> None:
    path = TinyFile(arch, tiny(arch), {"attention.sliding_window": 8}).write(tmp_path / "bad.gguf")
    with pytest.raises(CheckpointError, match=f"key '{arch}.logit_scale': expected a number, got nothing"):
        opened(path)


def test_olmo_3_is_not_olmo_2(tmp_path: Path) -> None:
    message = refused(tmp_path, "olmo2", metadata={"attention.sliding_window": 8})
    assert "'olmo2.attention.sliding_window': expected no such key, for zoquant cannot run OLMo 3" in message


def test_types_without_a_decoder_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    model = tiny("llama")
    blocks = np.zeros((VOCAB, 36), dtype=np.uint8)

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q1_0)

    TinyFile("llama", model, skip=["token_embd.weight"], edit=add).write(path)
    with pytest.raises(CheckpointError, match=r"'token_embd.weight': expected one of the types F32, .*, got Q1_0"):
        opened(path)
    summary = GGUFFormat().summarize(path)
    assert summary.runtimes["native"] == "no: zoquant cannot decode Q1_0"
    assert "Q1_0: zoquant cannot decode this type" in summary.notes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_with_a_changed_byte_opens_or_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "tiny.gguf"
    if not path.exists():
        TinyFile("llama", tiny("llama"), {"rope.dimension_count": 64}, "Q8_0").write(path)
    original = path.read_bytes()
    end = min(tensor.offset for tensor in read_header(path).tensors.values())
    position = data.draw(st.integers(0, end - 1))
    changed = bytearray(original)
    changed[position] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(changed))
    try:
        opened(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
    finally:
        path.write_bytes(original)
