"""The tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

from zoquant.errors import CheckpointError

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def build_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a folder, or None for a folder without one. Never runs code of the checkpoint.

    Raises:
        CheckpointError: transformers cannot read the tokenizer.
    """
    if not any((path / file).exists() for file in _FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: transformers cannot read the tokenizer: {' '.join(str(error).split())[:300]} Get its files again."
        ) from error
