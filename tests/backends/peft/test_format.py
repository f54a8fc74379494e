"""Adapter folders: a delta goes into the file without peft, and peft reads what comes out."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoquant
from tests.backends.peft.models import IDS, KINDS, adapted, logits, trained
from tests.folders import save_folder, tiny_llama
from zoquant.backends.peft.format import PeftFormat
from zoquant.checkpoint.inspection import inspect
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.registry import format_of

FIXTURES = Path(os.environ.get("ZOQUANT_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures"))


def saved(model: Any, folder: Path) -> Path:
    base = save_folder(tiny_llama(), folder / "base")
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "adapter"


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_trained_live_exports_to_what_peft_saves(tmp_path: Path, kind: str) -> None:
    peft = pytest.importorskip("peft")
    model = adapted(kind)
    path = saved(model, tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    views = zoquant.attach(model, roles=("adapter",))
    assert set(PeftFormat().index(path)) == set(views.keys)
    zoquant.save_delta(tmp_path / "zero", views)
    zero = zoquant.export(path, delta=tmp_path / "zero", out=tmp_path / "same")
    assert {file.name: file.read_bytes() for file in zero.iterdir()} == before
    zoquant.save_delta(tmp_path / "delta", trained(model))
    tuned = zoquant.export(path, delta=tmp_path / "delta", out=tmp_path / "tuned")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    again = peft.PeftModel.from_pretrained(tiny_llama(), str(tuned)).eval()
    assert torch.equal(logits(again), logits(model))
    native, _ = zoquant.load(tuned, compute_dtype=torch.float32)
    torch.testing.assert_close(logits(native), logits(model), rtol=1e-5, atol=1e-6)


def test_a_delta_of_the_file_applies_live(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = adapted("lora")
    native, _ = zoquant.load(saved(model, tmp_path), compute_dtype=torch.float32)
    views = trained(native)
    zoquant.save_delta(tmp_path / "delta", views)
    zoquant.load_delta(tmp_path / "delta", zoquant.attach(model, roles=("adapter",)))
    torch.testing.assert_close(logits(native), logits(model), rtol=1e-5, atol=1e-6)


def test_inspect(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    said = inspect(saved(adapted("lora"), tmp_path))
    assert (said["format"], said["architecture"], said["layers"]) == ("peft", "lora", 0)
    assert said["views"] == {"adapter float32": {"views": 4, "values": said["parameters"]}}
    assert said["notes"] == [f"an adapter of {tmp_path / 'base'}"]


def written(folder: Path, tensors: dict[str, torch.Tensor] | None, config: object = None) -> Path:
    """Write an adapter folder without peft."""
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": None} if config is None else config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_the_file_needs_no_peft(tmp_path: Path) -> None:
    tensors = {
        "a.lora_A.weight": torch.ones(2, 4),
        "a.base_layer.weight": torch.ones(4, 4),
        "a.ia3_l": torch.ones(4, 1),
    }
    path = written(tmp_path / "adapter", tensors)
    assert PeftFormat().sniff(path)
    index = PeftFormat().index(path)
    assert {key: span.role for key, span in index.items()} == {
        "a.lora_A.weight": "adapter",
        "a.base_layer.weight": "dense",
        "a.ia3_l": "adapter",
    }
    assert index["a.lora_A.weight"].strides == (16, 4)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (None, None, "expected adapter_model.safetensors or adapter_model.bin, got neither"),
        (
            {"a.lora_A.weight": torch.ones(2, dtype=torch.int8)},
            None,
            r"'a\.lora_A\.weight': expected float32, .* got int8",
        ),
    ],
)
def test_damaged_folders(tmp_path: Path, tensors: Any, config: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        PeftFormat().index(written(tmp_path / "adapter", tensors, config))


def test_what_is_no_adapter(tmp_path: Path) -> None:
    assert not PeftFormat().sniff(tmp_path)
    assert not PeftFormat().sniff(written(tmp_path / "other", {}, config={"something": "else"}))
    assert not PeftFormat().sniff(written(tmp_path / "list", {}, config=[]))


def test_an_adapter_of_no_base_does_not_open(tmp_path: Path) -> None:
    path = written(tmp_path / "adapter", {"a.lora_A.weight": torch.ones(2, 4)})
    with pytest.raises(CheckpointError, match="expected the base of the adapter, got None"):
        zoquant.load(path)


@pytest.mark.parametrize("name", ["peft_lora", "peft_prefix"])
def test_fixtures(tmp_path: Path, name: str) -> None:
    """Adapters that peft itself wrote: twenty steps, export, and peft reads the same model from the file."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"no fixtures in {FIXTURES}")

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "base_tiny", dtype=torch.float32)

    model = peft.PeftModel.from_pretrained(base(), str(path)).eval()
    stored = load_file(path / "adapter_model.safetensors")
    before, views = logits(model), trained(model, steps=20)
    assert len(views) == len(stored)
    assert not torch.equal(before, logits(model))
    zoquant.save_delta(tmp_path / "delta", views)
    tuned = zoquant.export(path, delta=tmp_path / "delta", out=tmp_path / "tuned")
    again = peft.PeftModel.from_pretrained(base(), str(tuned)).eval()
    assert torch.equal(logits(again), logits(model))
    assert IDS.max() < model.config.vocab_size


@pytest.mark.parametrize("said", [{}, {"quantization_config": {"quant_method": "gptq", "bits": 4}}])
def test_a_config_of_the_base_beside_an_adapter_makes_no_model(tmp_path: Path, said: dict[str, Any]) -> None:
    """Trainers save it there."""
    base = save_folder(tiny_llama(), tmp_path / "both", **said)
    (base / "model.safetensors").rename(base / "adapter_model.safetensors")
    (base / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert format_of(base).name == "peft"


def test_a_model_with_an_adapter_beside_it_is_the_model(tmp_path: Path) -> None:
    both = save_folder(tiny_llama(), tmp_path / "both")
    expected = logits(zoquant.load(both, compute_dtype=torch.float32)[0])
    alone = written(tmp_path / "alone", {"a.lora_A.weight": torch.ones(2, 4)})
    for file in alone.iterdir():
        shutil.copy(file, both)
    assert format_of(alone).name == "peft"
    assert format_of(both).name == "dense"
    assert torch.equal(logits(zoquant.load(both, compute_dtype=torch.float32)[0]), expected)


def ring(folder: Path, *names: str) -> Path:
    """Write adapters each of which names the next as its base, and the last the first."""
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        config = {"peft_type": "LORA", "base_model_name_or_path": str(folder / base)}
        written(folder / name, {"a.lora_A.weight": torch.ones(2, 4)}, config)
    return folder / names[0]


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("runtime", ["native", "vendor"])
def test_a_base_that_is_an_adapter_is_refused(tmp_path: Path, names: tuple[str, ...], runtime: Any) -> None:
    pytest.importorskip("peft")
    path = ring(tmp_path, *names)
    with pytest.raises(CheckpointError) as caught:
        zoquant.load(path, runtime=runtime)
    assert str(caught.value).startswith(f"{path}: 'base_model_name_or_path': expected a model, got ")
    assert str(caught.value).endswith(", which is an adapter itself. Name the model there.")


def with_config(folder: Path, kind: str = "lora", **changes: Any) -> Path:
    """Return an adapter that peft wrote, with another config."""
    path = saved(adapted(kind), folder)
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("megatron_config", {"tensor_model_parallel_size": 1}), ("layer_replication", [[0, 1]]), ("use_qalora", True),
        ("target_parameters", ["x"]), ("init_lora_weights", "pissa"), ("init_lora_weights", "loftq"),
        ("a_key_of_tomorrow", "x"), ("arrow_config", {"top_k": 1}), ("trainable_token_indices", [1]),
    ],
)  # fmt: skip
def test_keys_that_peft_would_act_on_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UnsupportedLayoutError, match=f"'{key}': peft would act on it, and zoquant does not tell it"):
        zoquant.load(with_config(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", "8"), ("r", -1), ("lora_alpha", [1]), ("modules_to_save", "(a+)+b"), ("modules_to_save", ["(a+)+b"]),
        ("alpha_pattern", {"(a+)+b": 8}), ("use_dora", "yes"), ("bias", 3), ("task_type", 3), ("lora_alpha", "0"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    pytest.importorskip("peft")
    with pytest.raises(CheckpointError, match=f"'{key}': expected what peft writes there, got "):
        zoquant.load(with_config(tmp_path, **{key: value}))


def test_other_kinds_of_adapters_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(UnsupportedLayoutError, match=r"'peft_type': zoquant opens LORA, IA3, .* and this is 'LOHA'"):
        zoquant.load(with_config(tmp_path, peft_type="LOHA"))


def test_no_pattern_and_no_name_of_a_module_is_taken_from_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported by a name that stands there, and layers and ranks are those of the tensors."""
    pytest.importorskip("peft")
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    expected = logits(zoquant.load(with_config(tmp_path / "a"), compute_dtype=torch.float32)[0])
    path = with_config(
        tmp_path / "b", megatron_core="evil_module", target_modules="(a+)+$", rank_pattern={"(a+)+": 2}, r=64,
        auto_mapping={"base_model_class": "X", "parent_library": "evil_module"},
    )  # fmt: skip
    changed = zoquant.load(path, compute_dtype=torch.float32)[0]
    assert "evil_module" not in sys.modules
    assert torch.equal(logits(changed), expected)
