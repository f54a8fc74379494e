"""A tokenizer as SentencePiece's were: it puts a token of its own before every text."""

from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers

_MERGES = [("#", "b"), ("g", "o"), ("go", "o"), ("goo", "d"), ("▁", "good"), ("b", "a"), ("ba", "d"), ("▁", "bad")]


def sentencepiece() -> Any:
    """Return the tokenizer: letters, the bytes of others, and the words good and bad."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁"]
    tokens += [left + right for left, right in _MERGES]
    numbers = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(numbers, _MERGES, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
