"""Adapters of peft on bases of 4 bits, alone, with the scales, and with norms: every law of theirs together."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoquant
from tests.folders import save_folder, tiny_llama
from zoquant.protocol import Role
from zoquant.testing.tensors import same_bits

pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("hqq", reason="hqq is not installed")

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
IDS = torch.arange(1, 17).view(2, 8)
KINDS = ("lora", "prefix", "prompt")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tiny_llama(**SIZES), tmp_path_factory.mktemp("base") / "llama", **SIZES)


@pytest.fixture(scope="module")
def example() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        import zo_qlora  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return zo_qlora


def opened(example: Any, base: Path, library: str, kind: str, *, scales: bool, norms: bool = False) -> Any:
    model = example.open_base(str(base), library)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return example.adapted(model, kind, scales=scales, norms=norms)


def loss(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, labels=IDS).loss
    return found


def everything(views: dict[str, zoquant.Views]) -> dict[str, Tensor]:
    return {view.name: view.read() for each in views.values() for view in each}


@pytest.mark.parametrize("scales", [False, True], ids=["alone", "with scales"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["bitsandbytes", "hqq"])
def test_steps_delta_and_restore(
    example: Any, base: Path, tmp_path: Path, library: str, kind: str, scales: bool
) -> None:
    model, views = opened(example, base, library, kind, scales=scales)
    assert set(views) == ({"adapter", "scales"} if scales else {"adapter"})
    before = everything(views)
    losses = example.train(example.optimizer_of(views, 0), lambda batch: loss(model), [{}], 25)
    assert min(losses[-5:]) < losses[0]
    after, trained = everything(views), float(loss(model))
    assert all(not same_bits(after[key], before[key]) for key in after)
    for name, each in views.items():
        zoquant.save_delta(tmp_path / f"{name}.safetensors", each)

    again, others = opened(example, base, library, kind, scales=scales)
    for name, each in others.items():
        zoquant.load_delta(tmp_path / f"{name}.safetensors", each)
    assert float(loss(again)) == trained

    for each in views.values():  # the law of restore: perturb and restore, then reset
        each.write(seed=7, eps=1e-2)
        each.write()
    assert float(loss(model)) == trained
    for each in views.values():
        each.reset()
    assert all(same_bits(value, before[key]) for key, value in everything(views).items())


def test_scales_carry_the_keys_of_the_base_s_own_checkpoint(example: Any, base: Path) -> None:
    _, views = opened(example, base, "bitsandbytes", "lora", scales=True, norms=True)
    plain = zoquant.attach(example.open_base(str(base), "bitsandbytes"))
    assert views["scales"].keys == plain.keys
    assert views["norms"].keys == (
        "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight", "model.norm.weight",
    )  # fmt: skip
    assert len(views["adapter"]) == 4


def test_the_whole_example(example: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file of rows to an adapter that peft loads and a delta that the base takes."""
    import peft

    rows = [
        {"prompt": f"is {word} so?", "answer": answer} for word, answer in (("a", "yes"), ("b", "no")) for _ in "12"
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(example.AutoTokenizer, "from_pretrained", lambda _: letters)
    losses = example.main([
        "--model", str(base), "--adapter", "lora", "--scales", "--norms", "--data", str(tmp_path / "train.jsonl"),
        "--out", str(tmp_path / "out"), "--steps", "10", "--batch", "2",
    ])  # fmt: skip
    assert len(losses) == 10
    model = example.open_base(str(base), "bitsandbytes")
    kept: tuple[tuple[str, Role], ...] = (("scales", "scale"), ("norms", "dense"))
    for name, role in kept:
        zoquant.load_delta(tmp_path / "out" / f"{name}.safetensors", zoquant.attach(model, roles=(role,)))
    tuned = peft.PeftModel.from_pretrained(model, str(tmp_path / "out" / "adapter")).eval()
    batch = example.read_batches(tmp_path / "train.jsonl", letters, 2, 0)[-1]
    assert batch["input_ids"].shape == batch["labels"].shape
    assert torch.isfinite(tuned(**batch).loss)


def letters(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
    """Stand in for a tokenizer: one token a letter."""
    return {"input_ids": [1] * add_special_tokens + [2 + ord(letter) % 40 for letter in text]}
