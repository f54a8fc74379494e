"""The tokenizer is the one that transformers reads from the same file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import VERSION, tiny
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.errors import CheckpointError

TEXTS = ["the cat", " the  cat\n", "a b<s> the", "tété", "", "cat" * 20]
LETTERS = "abcehtĠĊ▁é"
PIECES = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "th", "the"]


def byte_level(writer: gguf.GGUFWriter) -> None:
    tokens = ["<unk>", "<s>", "</s>", *LETTERS, "th", "the", "Ġthe", "ca", "cat", "Ġcat"]
    merges = ["t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")


def sentencepiece(writer: gguf.GGUFWriter) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *PIECES]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * (len(tokens) - len(PIECES)) + [-float(n) for n in range(len(PIECES))])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(LETTERS) + len(PIECES)))
    writer.add_unk_token_id(0)


def written(tmp_path: Path, edit: Callable[[gguf.GGUFWriter], None] | None, vocab_size: int = 300) -> Path:
    return TinyFile("llama", tiny("llama", vocab_size=vocab_size), edit=edit).write(tmp_path / "tiny.gguf")


def tokenizer_of(path: Path) -> Any:
    return GGUFFormat().open_native(path, compute_dtype=torch.float32, device=torch.device("cpu"))[1]


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
@pytest.mark.parametrize("flags", [(None, None), (True, True), (False, False), (False, True)])
def test_tokens_are_those_of_transformers(
    tmp_path: Path, kind: Callable[[gguf.GGUFWriter], None], flags: tuple[bool | None, bool | None]
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        kind(writer)
        if flags[0] is not None:
            writer.add_add_bos_token(flags[0])
        if flags[1] is not None:
            writer.add_add_eos_token(flags[1])

    path = written(tmp_path, edit)
    mine = tokenizer_of(path)
    if VERSION.major >= 5:
        theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        assert [mine(text).input_ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]
        assert mine.chat_template == theirs.chat_template
        assert mine.get_vocab() == theirs.get_vocab()
    first, last = flags[0] if flags[0] is not None else kind is sentencepiece, bool(flags[1])
    for text in TEXTS[:3]:
        ids = mine(text).input_ids
        assert ids == [1] * first + mine(text, add_special_tokens=False).input_ids + [2] * last
        assert mine.decode(ids, skip_special_tokens=True).split() == text.replace("<s>", " ").split()


def test_special_tokens_and_chat_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(written(tmp_path, byte_level))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<unk>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert set(tokenizer("the cat")) == {"input_ids", "attention_mask"}
    message = [{"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "the cat"


def test_llama3_files_that_do_not_say_get_a_first_token(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        byte_level(writer)
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "llama-bpe"

    assert tokenizer_of(written(tmp_path, edit))("the cat").input_ids[0] == 1


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert tokenizer_of(written(tmp_path, None)) is None


def test_a_token_number_out_of_range_is_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        byte_level(writer)
        writer.kv_data[0]["tokenizer.ggml.eos_token_id"].value = 5000

    with pytest.raises(
        CheckpointError, match=r"ggml.eos_token_id': expected the number of one of \d+ tokens, got 5000"
    ):
        tokenizer_of(written(tmp_path, edit))


def test_a_tokenizer_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        byte_level(writer)
        del writer.kv_data[0]["tokenizer.ggml.merges"]

    with pytest.raises(CheckpointError, match=r"keys 'tokenizer.ggml.\*': transformers cannot build a tokenizer"):
        tokenizer_of(written(tmp_path, edit))
