"""Experts that no token was sent to: their delta is noise, and taking it back gives the run without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from examples.reached_experts import ReachedExperts
from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import metadata_of, tiny
from tests.toy import toy_layer
from zoquant.native import QuantExperts
from zoquant.testing.tensors import same_bits

IDS = torch.tensor([[5, 6]])
MIXTURE = "model.layers.0.mlp.experts"


class Expert(nn.Module):
    """One expert as a module of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up = toy_layer(seed)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.tanh(self.up(x))
        return y


class Mixture(nn.Module):
    """Every token goes to the experts that `chosen` names; the others are called with no token, or not at all."""

    def __init__(self, *, calls_all: bool) -> None:
        super().__init__()
        self.first = toy_layer(9)
        self.experts = nn.ModuleList(Expert(seed) for seed in range(4))
        self.chosen, self.calls_all = (1, 3), calls_all

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, expert in enumerate(self.experts):
            if number in self.chosen:
                x = x + expert(x)
            elif self.calls_all:
                expert(x[:0])
        return x


def loss_of(model: nn.Module) -> Tensor:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    loss: Tensor = model(x).square().mean()
    return loss


@pytest.mark.parametrize("calls_all", [False, True])
def test_experts_that_are_modules(calls_all: bool) -> None:
    """Afterwards every byte is that of a run which left the other experts out."""
    model = Mixture(calls_all=calls_all)
    views = zoquant.attach(model)
    base = {key: views.base(key) for key in views.keys}
    optimizer = zoquant.ZOSGD(views, lr=1e-2, clip=1.0)
    with ReachedExperts(model, views) as reached:
        for _ in range(5):
            optimizer.step(lambda: loss_of(model))
    idle = {key for key in views.keys if key.startswith(("experts.0.", "experts.2."))}
    assert {key for key, share in reached.share().items() if share == 0} == idle
    assert {share for key, share in reached.share().items() if key not in idle} == {1.0}
    assert reached.forget_the_rest() == sum(base[key].numel() for key in idle)
    assert reached.forget_the_rest() == 0

    other = Mixture(calls_all=calls_all)
    without = zoquant.attach(other, exclude=("experts.0.*", "experts.2.*"))
    alone = zoquant.ZOSGD(without, lr=1e-2, clip=1.0)
    for _ in range(5):
        alone.step(lambda: loss_of(other))
    for view in views:
        expected = base[view.name] if view.name in idle else next(o for o in without if o.name == view.name).read()
        assert same_bits(view.read(), expected), view.name


def test_stacked_experts_of_a_real_mixture(tmp_path: Path) -> None:
    """Of a GGUF mixture's matrices only the rows of the experts that a token was sent to keep their delta."""
    source = tiny("qwen3moe", num_hidden_layers=1)
    path = TinyFile("qwen3moe", source, metadata_of(source), "Q8_0").write(tmp_path / "tiny.gguf")
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    mixture: Any = model.get_submodule(MIXTURE)
    assert isinstance(mixture, QuantExperts)
    views = zoquant.attach(model)
    optimizer = zoquant.ZOSGD(views, lr=1e-3, clip=1.0)
    chosen: set[int] = set()
    mixture.register_forward_pre_hook(lambda _, args: chosen.update(args[1].flatten().tolist()))
    with ReachedExperts(model, views) as reached:
        for _ in range(3):
            optimizer.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    assert mixture.reached == chosen
    assert 0 < len(chosen) < mixture.count
    with torch.no_grad():
        before = model(input_ids=IDS).logits
    changed = reached.forget_the_rest()
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, before)
    assert changed > 0
    for name in ("gate_proj", "up_proj", "down_proj"):
        key = f"{MIXTURE}.{name}.d"
        assert reached.share()[key] == pytest.approx(len(chosen) / mixture.count)
        for number, rows in enumerate(views.delta(key).chunk(mixture.count)):
            assert bool(rows.any()) == (number in chosen)
    assert reached.share()["model.layers.0.self_attn.q_proj.d"] == 1


def test_what_is_no_expert_counts_as_reached() -> None:
    model = nn.ModuleDict({"used": toy_layer(0), "idle": toy_layer(1)})
    views = zoquant.attach(model)
    with ReachedExperts(model, views) as reached:
        views.add(1, 0.1, "rademacher")
    assert set(reached.share().values()) == {1.0}
    assert reached.forget_the_rest() == 0
    assert all(views.delta(key).any() for key in views.keys)


def test_an_error_leaves_no_hook() -> None:
    model = Mixture(calls_all=False)
    watcher = ReachedExperts(model, zoquant.attach(model))
    with pytest.raises(RuntimeError), watcher:
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks for module in model.modules())
