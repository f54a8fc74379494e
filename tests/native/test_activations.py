"""What passes between layers may be in fewer bits; values, normalizations and results stay what they are."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from tests.toy import toy_layer
from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.native.activations import pass_activations
from zoquant.tasks import Classification, Template
from zoquant.tasks.scoring import hidden_states
from zoquant.tasks.template import parse_words
from zoquant.training import Source

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("activations") / "tiny.gguf")


def dtypes_between(model: nn.Module, ids: Tensor) -> dict[str, set[torch.dtype]]:
    """Return the dtypes of what the leaves of a model return, by their class."""
    seen: dict[str, set[torch.dtype]] = {}
    packed = (QuantLinear, QuantEmbedding)
    leaves = [module for module in model.modules() if isinstance(module, packed) or not list(module.children())]

    def note(module: nn.Module, args: Any, out: Any) -> None:
        for part in out if isinstance(out, tuple) else (out,):
            if isinstance(part, Tensor) and part.is_floating_point():
                seen.setdefault(type(module).__name__, set()).add(part.dtype)

    handles = [module.register_forward_hook(note) for module in leaves]
    hidden_states(model, ids)
    for handle in handles:
        handle.remove()
    assert seen.keys() >= {"QuantLinear", "QuantEmbedding"}
    return seen


def test_all_that_passes_is_rounded_and_nothing_that_is_stored(checkpoint: Path) -> None:
    plain, _ = zoquant.load(checkpoint)
    half, _ = zoquant.load(checkpoint, activation_dtype=HALF)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert set().union(*dtypes_between(plain, ids).values()) == {torch.float32}
    assert set().union(*dtypes_between(half, ids).values()) == {HALF}
    assert zoquant.attach(half).fingerprints() == zoquant.attach(plain).fingerprints()
    assert [p.dtype for p in half.parameters()] == [p.dtype for p in plain.parameters()]
    close, exact = hidden_states(half, ids).float(), hidden_states(plain, ids)
    distance = float((close - exact).norm() / exact.norm())
    assert 1e-4 < distance < 3e-2


def test_float32_changes_nothing(checkpoint: Path) -> None:
    model, _ = zoquant.load(checkpoint, activation_dtype=torch.float32)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_vendor_has_one_dtype(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"activation_dtype is torch\.bfloat16, but a vendor's layers"):
        zoquant.load(checkpoint, runtime="vendor", activation_dtype=HALF)


def test_a_source_names_its_dtype(checkpoint: Path) -> None:
    model, _, _ = Source(str(checkpoint), activation_dtype="bfloat16").open()
    assert dtypes_between(model, torch.tensor([[1, 2]]))["QuantLinear"] == {HALF}
    with pytest.raises(ValueError, match="activation_dtype is 'int8', expected one of auto, "):
        Source(str(checkpoint), activation_dtype="int8").open()


def test_steps_are_the_same_steps(checkpoint: Path) -> None:
    """A derivative is that of float32 but for the rounding, and a run gives the same bytes again."""
    found = []
    for dtype in (None, HALF, HALF):
        model, tokenizer = zoquant.load(checkpoint, activation_dtype=dtype)
        task = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
        batch = task.batch(range(4))
        optimizer = zoquant.ZOSGD(zoquant.attach(model), eps=0.1, lr=1e-3)
        result = optimizer.step(partial(task.loss, model, batch))
        found.append((result.derivative, optimizer.views.fingerprints()))
    assert found[1] == found[2]
    assert found[0][0] == pytest.approx(found[1][0], rel=0.2)


class Plain(nn.Module):
    """Layers of several dtypes, of which one takes numbers that are not floating-point."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 8), nn.LayerNorm(8)
        self.packed, self.last = toy_layer(0, rows=8, groups=2), nn.Linear(8, 2).to(HALF)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.last(self.packed(self.norm(input=self.table(ids))))
        return found


def test_plain_layers_compute_in_the_dtype_of_their_parameters() -> None:
    model = Plain()
    pass_activations(model, HALF)
    got: list[torch.dtype] = []
    model.norm.register_forward_pre_hook(
        lambda module, args, kwargs: got.append(kwargs["input"].dtype), with_kwargs=True
    )
    assert model(torch.tensor([[0, 4]])).dtype == HALF
    assert got == [torch.float32], "the hook that casts comes first"
    assert model.norm.weight.dtype == torch.float32
