"""What `inspect` says of training's memory, without a model, is what buffers hold."""

from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import tiny
from zoquant.backends.gguf.format import GGUFFormat
from zoquant.checkpoint.inspection import inspect
from zoquant.checkpoint.step_memory import EXAMPLES, TOKENS, activations
from zoquant.kernels.noise.definition import BLOCK
from zoquant.optim.backward import footprint
from zoquant.registry import format_of
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


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_what_a_step_takes_is_told_from_shapes_as_it_is_measured(tmp_path: Path, kind: str) -> None:
    path = TinyFile(kind, tiny(kind), types="Q4_1").write(tmp_path / "tiny.gguf")
    told = inspect(path)["training_bytes"]
    found = activations(format_of(path), path)
    assert found is not None
    assert told["forward"] == told["total_without_activations"] + found["forward"]
    model, _ = zoquant.load(path, compute_dtype=torch.float32)

    def loss(examples: int) -> torch.Tensor:
        body: Any = model.base_model
        states: torch.Tensor = body(torch.zeros(examples, TOKENS, dtype=torch.int64), use_cache=False).last_hidden_state
        return states.sum()

    def measured(examples: int, *, checkpoint: bool) -> int:
        return max(footprint.of_backward(model, lambda: loss(examples), roles=("scale",), checkpoint=checkpoint))

    loss(1)
    for way, taken in (
        ("forward", max(footprint.of_forward(lambda: loss(EXAMPLES)))),
        ("backward", measured(EXAMPLES, checkpoint=False)),
        ("backward_checkpoint", measured(EXAMPLES, checkpoint=True)),
        ("backward_checkpoint_micro_batches", measured(1, checkpoint=True)),
    ):
        assert taken <= found[way] < 1.5 * taken


def test_a_step_is_not_told_of_where_the_model_is_not_computed_from_token_ids(tmp_path: Path) -> None:
    assert activations(GGUFFormat(), tmp_path / "missing.gguf") is None
