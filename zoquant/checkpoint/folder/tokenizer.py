"""The tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

from zoquant.checkpoint.folder.libraries import refusing
from zoquant.checkpoint.folder.reading import read_json

_RENAMED = ("TokenizersBackend", "TokenizersBackendFast")
"""What transformers 5 calls the class that transformers 4 calls PreTrainedTokenizerFast."""
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def build_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a folder, or None for a folder without one. Never runs code of the checkpoint.

    Raises:
        CheckpointError: transformers cannot read the tokenizer.
    """
    if not any((path / file).exists() for file in _FILES):
        return None
    import transformers

    kind = transformers.AutoTokenizer
    if read_class(path) in _RENAMED and not hasattr(transformers, "TokenizersBackend"):
        kind = transformers.PreTrainedTokenizerFast
    with refusing(path, "transformers cannot read the tokenizer", "Get its files again."):
        tokenizer: Any = kind.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    return tokenizer


def read_class(path: Path) -> str:
    """Return the class that tokenizer_config.json names, or nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = path / "tokenizer_config.json"
    return str(read_json(file).get("tokenizer_class", "")) if file.exists() else ""
