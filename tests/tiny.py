"""A tiny GGUF checkpoint with a byte-level tokenizer, and reviews to train it on."""

import json
from pathlib import Path

import gguf

from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import tiny

TEMPLATE = "{sentence} It was {label}"
LABELS = "0=bad,1=good"
ROWS = [
    {"sentence": f"the {thing} {verb} here", "label": label}
    for label, verbs in (("0", ("broke", "failed")), ("1", ("shone", "worked")))
    for verb in verbs
    for thing in ("lamp", "old radio", "tap")
]


def write_checkpoint(path: Path, types: str | list[str] = "Q4_1", tensors_a_shard: int = 0) -> Path:
    """Write the checkpoint: llama, two layers, 300 tokens."""
    model = tiny("llama", vocab_size=300)
    return TinyFile("llama", model, types=types, edit=_tokenizer, tensors_a_shard=tensors_a_shard).write(path)


def write_rows(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _tokenizer(writer: gguf.GGUFWriter) -> None:
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
    words = [("b", "a"), ("ba", "d"), ("Ġ", "bad"), ("g", "o"), ("go", "o"), ("goo", "d"), ("Ġ", "good")]
    tokens = ["<unk>", "<s>", "</s>", *letters, *(left + right for left, right in words)]
    tokens += [f"<spare{number}>" for number in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{left} {right}" for left, right in words])
    writer.add_unk_token_id(0)
