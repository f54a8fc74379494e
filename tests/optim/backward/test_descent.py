"""Descent along the gradient: what a step moves, what it leaves alone, and how it goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.tiny import write_checkpoint
from tests.toy import toy_batch, toy_loss, toy_model
from zoquant.errors import CheckpointError, LossError, UnsupportedLayoutError
from zoquant.optim.backward.descent import GradientDescent
from zoquant.optim.backward.layer_checkpoints import checkpointed
from zoquant.record.rules import RULES, Adam


def of_toy(**settings: object) -> tuple[GradientDescent, Callable[[], Tensor]]:
    model = toy_model()
    views = zoquant.attach(model, roles=("scale", "zero"))
    descent = GradientDescent(model, views, **settings)  # type: ignore[arg-type]
    return descent, partial(toy_loss, model, toy_batch())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_descends(rule: str) -> None:
    descent, loss = of_toy(rule=RULES[rule](), lr=0.3 if rule == "sgd" else 1e-2, clip=1.0)
    results = [descent.step(loss) for _ in range(30)]
    assert results[-1].loss < 0.95 * results[0].loss
    assert [result.step for result in results] == list(range(30))
    assert all(result.derivative > 0 for result in results)
    descent.close()
    assert not loss().requires_grad


def test_adam_is_that_of_torch() -> None:
    descent, loss = of_toy(rule=Adam(), lr=1e-2)
    model = toy_model()
    views = zoquant.attach(model, roles=("scale", "zero"))
    with zoquant.Gradients(model, views) as deltas:
        optimizer = torch.optim.Adam(deltas.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            toy_loss(model, toy_batch()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            descent.step(loss)
        for key in views.keys:
            torch.testing.assert_close(descent.views.delta(key), views.delta(key), rtol=1e-4, atol=1e-6)


def test_micro_batches_are_one_batch() -> None:
    model = toy_model()
    views = zoquant.attach(model)
    x, y = toy_batch(count=6)

    def loss(start: int, stop: int) -> Tensor:
        return toy_loss(model, (x[start:stop], y[start:stop]))

    with GradientDescent(model, views) as whole:
        first = whole.step(lambda: loss(0, 6))
    deltas = {key: views.delta(key) for key in views.keys}
    views.reset()
    with GradientDescent(model, views) as parts:
        second = parts.step([lambda: loss(0, 4), lambda: loss(4, 6)], [4, 2])
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    assert second.derivative == pytest.approx(first.derivative, rel=1e-4)
    for key in views.keys:
        torch.testing.assert_close(views.delta(key), deltas[key], rtol=1e-2, atol=1e-4)


def test_the_gradient_is_cut_to_the_norm() -> None:
    descent, loss = of_toy(rule=RULES["sgd"](), lr=1.0, clip=1e-4)
    assert descent.step(loss).clipped
    moved = torch.cat([descent.views.delta(key).flatten() for key in descent.views.keys])
    assert float(moved.norm()) == pytest.approx(1e-4, rel=1e-3)


def test_decay_pulls_to_the_base() -> None:
    descent, loss = of_toy(lr=1e-2, decay=10.0)
    descent.step(loss)
    before = {key: descent.views.delta(key) for key in descent.views.keys}
    descent.lr = 0.05
    descent.step(lambda: 0.0 * loss())
    moved = descent.views.keys[0]
    assert descent.views.delta(moved).abs().mean() < before[moved].abs().mean() + 0.06


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_undone_and_counts(where: str) -> None:
    descent, loss = of_toy()
    descent.step(loss)
    before = descent.state()
    before = {name: tensor.clone() for name, tensor in before.items()}

    def bad() -> Tensor:
        value = loss()
        return value * float("nan") if where == "loss" else value + Infinite.apply(value)  # type: ignore[no-untyped-call]

    message = "the loss is nan" if where == "loss" else "the norm of the gradient is nan"
    with pytest.raises(LossError, match=f"step 1: {message}, expected a finite number. The step was undone; lower lr"):
        descent.step(bad)
    assert descent.steps == 2
    after = descent.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name != "counts")
    descent.step(loss)


class Infinite(torch.autograd.Function):
    """Zero, with a gradient that is no number."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


def test_what_a_closure_raises_leaves_no_trace() -> None:
    descent, loss = of_toy()
    before = {name: tensor.clone() for name, tensor in descent.state().items()}

    def interrupt() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descent.step([loss, interrupt])
    assert all(torch.equal(descent.state()[name], tensor) for name, tensor in before.items())
    with pytest.raises(LossError, match="the closure returned float without a gradient, expected a tensor"):
        descent.step(lambda: 1.0)


def test_it_goes_on_from_its_state() -> None:
    descent, loss = of_toy()
    for _ in range(3):
        descent.step(loss)
    state = {name: tensor.clone() for name, tensor in descent.state().items()}
    other, again = of_toy()
    other.load_state(state)
    assert other.steps == 3
    for _ in range(2):
        assert descent.step(loss) == other.step(again)
    assert all(torch.equal(other.state()[name], tensor) for name, tensor in descent.state().items())
    with pytest.raises(CheckpointError, match=r"counts: the state of a descent has nothing, expected \[2\] of int64"):
        other.load_state({name: tensor for name, tensor in state.items() if name != "counts"})
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity"):
        other.load_state(
            {name: tensor * float("nan") if name != "counts" else tensor for name, tensor in state.items()}
        )
    assert other.steps == 5


def test_checkpointed_layers_give_the_same_gradient_and_keep_less(tmp_path: Path) -> None:
    model, _ = zoquant.load(write_checkpoint(tmp_path / "model.gguf"), compute_dtype=torch.float32)
    views = zoquant.attach(model)
    ids = torch.arange(24).view(2, 12) + 40

    def gradients(kept: list[int]) -> list[Tensor]:
        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with zoquant.Gradients(model, views) as deltas:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(input_ids=ids).logits.square().mean()
            loss.backward()
            return [parameter.grad for parameter in deltas.parameters() if parameter.grad is not None]

    all_kept: list[int] = []
    plain = gradients(all_kept)
    before = [layer.forward for layer in model.model.layers]  # type: ignore[union-attr]
    few_kept: list[int] = []
    with checkpointed(model):
        again = gradients(few_kept)
    assert all(torch.equal(left, right) for left, right in zip(plain, again, strict=True))
    assert sum(few_kept) < 0.5 * sum(all_kept)
    assert [layer.forward for layer in model.model.layers] == before  # type: ignore[union-attr]


def test_a_model_without_layers_is_not_checkpointed() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    views = zoquant.attach(model, roles=("dense",))
    with pytest.raises(UnsupportedLayoutError, match="Sequential: has no list of layers to keep the inputs of"):
        GradientDescent(model, views, space="absolute", checkpoint=True)
    assert not model(torch.ones(1, 2)).grad_fn.name().startswith("Gradients")


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("decay", float("nan")), ("clip", float("inf")), ("clip", 0.0)]
)
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"GradientDescent: {name} is {value!r}, expected a finite number"):
        of_toy(**{name: value})


def test_a_rate_that_leaps_over_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr is 1\.0, expected at most 1 / decay = 0\.25: more leaps over the base"):
        of_toy(lr=1.0, decay=4.0)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 3.0], [1.0], [float("nan"), 1.0]])
def test_weights_that_do_not_fit_change_nothing(weights: list[float]) -> None:
    descent, loss = of_toy()
    with pytest.raises(ValueError, match="expected 2 numbers above 0, one for each closure"):
        descent.step([loss, loss], weights)
    with pytest.raises(ValueError, match="expected 1 numbers above 0"):
        descent.step([])
    assert descent.steps == 0


def test_memory_that_runs_out_in_a_move_is_asked_for_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is done again in smaller micro-batches, so no part of it may have moved."""
    descent, loss = of_toy(rule=Adam())
    descent.step(loss)
    before = {name: tensor.clone() for name, tensor in descent.state().items()}
    asked = iter([True, False])

    def empty(*args: object, **settings: object) -> Tensor:
        if next(asked, False):
            raise torch.OutOfMemoryError("none left")
        return torch.ones(*args, **settings)  # type: ignore[call-overload, no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr("zoquant.optim.backward.descent.torch.empty", empty)
        patch.setattr("zoquant.optim.backward.descent.torch.empty_like", empty)
        with pytest.raises(torch.OutOfMemoryError):
            descent.step(loss)
    after = descent.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_layer_that_stands_twice_is_put_back() -> None:
    layer = nn.Linear(3, 3)
    with checkpointed(nn.ModuleDict({"layers": nn.ModuleList([layer, layer])})):
        assert "forward" in layer.__dict__
    assert "forward" not in layer.__dict__
