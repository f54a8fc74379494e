"""What `inspect` says of training's memory, without a model, is what buffers hold."""

from pathlib import Path

import pytest
import torch

import zoquant
from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import tiny
from zoquant.checkpoint.inspection import inspect
from zoquant.kernels.noise.definition import BLOCK
from zoquant.views.flat_buffer import FlatBuffer


@pytest.mark.parametrize("types", ["Q4_1", "Q4_K", "Q6_K", "Q4_0"])
def test_base_and_delta_are_those_of_a_buffer(tmp_path: Path, types: str) -> None:
    path = TinyFile("llama", tiny("llama"), types=types).write(tmp_path / "tiny.gguf")
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    trained = [view for view in zoquant.attach(model) if view.role == "scale"]
    buffer = FlatBuffer(trained, torch.device("cpu"), coupled=True)
    base = sum(buffer.base(n).numel() * view.dtype.itemsize for n, view in enumerate(trained))
    delta = inspect(path)["training_bytes"]["base_and_delta"] - base
    assert 0 < delta <= buffer.delta.nbytes < delta + 4 * BLOCK * len(buffer.slots)
