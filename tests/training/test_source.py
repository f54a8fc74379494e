"""Where a run's model comes from: what cannot be trained on text says so."""

from pathlib import Path

import pytest

from tests.samples import dense_folder
from zoquant.errors import CheckpointError
from zoquant.training.source import Source


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    text = r"dense: opened without a tokenizer.* Either the checkpoint carries none, or a plugin returned None"
    with pytest.raises(CheckpointError, match=text):
        Source(str(dense_folder(tmp_path)), compute_dtype="float32", device="cpu").open()
