"""A tiny causal model with its tokenizer, for all tasks."""

from typing import Any

import pytest
import torch

import zoquant
from tests.tiny import write_checkpoint


@pytest.fixture(scope="package")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = write_checkpoint(tmp_path_factory.mktemp("tasks") / "tiny.gguf")
    return zoquant.load(path, compute_dtype=torch.float32)
