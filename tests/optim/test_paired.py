"""Both probes of a pair in one forward give the losses and the bytes of two forwards."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.toy import ToyModel, toy_batch, toy_layer, toy_model
from zoquant import ZOSGD, PairedZO, attach, replay
from zoquant.errors import LossError, ShapeError, UnsupportedLayoutError
from zoquant.native import QuantEmbedding, QuantExperts
from zoquant.native.pair import pair_product, twin_of
from zoquant.native.twins import Twins
from zoquant.optim.estimators import FZOO, GroupRelative

ROWS = 6


def row_losses(model: nn.Module) -> Callable[[int], Tensor]:
    x, y = toy_batch(count=ROWS)
    return lambda repeat: (model(x.repeat(repeat, 1)) - y.repeat(repeat, 1)).square().mean(1)


def stored(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("space", ["relative", "absolute"])
def test_losses_and_bytes_are_those_of_two_forwards(probes: int, space: str) -> None:
    single, paired = toy_model(1), toy_model(1)
    settings = {"lr": 1e-2, "eps": 1e-2, "seed": 5, "probes": probes, "space": space}
    one = ZOSGD(attach(single, coupled=False), **settings)  # type: ignore[arg-type]
    two = PairedZO(attach(paired, coupled=False), **settings)
    losses, together = row_losses(single), row_losses(paired)
    for _ in range(5):
        expected, found = one.step(lambda: losses(1).double().mean()), two.step(together)
        assert found.derivative == pytest.approx(expected.derivative, rel=1e-4)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    fresh = toy_model(1)
    replay(two.trajectory, attach(fresh, coupled=False))
    assert same(stored(fresh), stored(paired))


def test_a_forward_is_called_once_for_two_probes() -> None:
    model, seen = toy_model(), []
    losses = row_losses(model)
    optimizer = PairedZO(attach(model), probes=3)
    optimizer.step(lambda repeat: (seen.append(repeat), losses(repeat))[1])  # type: ignore[func-returns-value]
    assert seen == [2, 2, 2]
    assert all(layer.twin is None for layer in model.layers.values())


def test_each_half_sees_its_own_values() -> None:
    layer = toy_layer(rows=8, groups=2)
    twin, x = twin_of(layer.packed), torch.randn(6, 8)
    assert twin.codes is layer.packed.codes
    assert twin.value("d").data_ptr() != layer.packed.value("d").data_ptr()
    twin.value("d").mul_(2)
    found = pair_product(x, layer.packed, twin, torch.float32)
    assert torch.equal(found[:3], x[:3] @ layer.packed.dequantize().t())
    assert torch.equal(found[3:], x[3:] @ twin.dequantize().t())
    assert not torch.allclose(found[3:], x[3:] @ layer.packed.dequantize().t())


def test_labels_and_lookups_are_halved_too() -> None:
    layer, x = toy_layer(rows=8, groups=2, bias=True), torch.randn(4, 8)
    lookup = QuantEmbedding(layer.packed, scale=0.5)
    with Twins({"head": layer, "embed": lookup}) as twins:
        before = layer.packed.dequantize()
        twins.take()
        layer.packed.value("d").mul_(3)
        after = layer.packed.dequantize()
        assert lookup.twin is layer.twin
        some = torch.tensor([5, 1])
        weights = torch.cat([x[:2] @ after[some].t(), x[2:] @ before[some].t()])
        assert layer.bias is not None
        torch.testing.assert_close(layer.rows(x, some), weights + layer.bias[some])
        rows = lookup(torch.tensor([[1, 2], [1, 2]]))
        assert torch.equal(rows[0], after[1:3] * 0.5)
        assert torch.equal(rows[1], before[1:3] * 0.5)
    assert layer.twin is None


def test_a_loss_that_is_no_number_undoes_the_step() -> None:
    model = toy_model()
    optimizer = PairedZO(attach(model), lr=1e-2)
    before = stored(model)
    for wrong in (lambda repeat: torch.full((repeat * ROWS,), float("nan")), lambda repeat: torch.ones(3)):
        with pytest.raises(LossError):
            optimizer.step(wrong)
        assert same(stored(model), before)
        assert all(layer.twin is None for layer in model.layers.values())
    assert optimizer.steps == 2
    assert optimizer.trajectory.steps[0].derivatives == (0.0,)


def test_a_forward_that_raises_leaves_everything_as_it_was() -> None:
    model = toy_model()
    optimizer = PairedZO(attach(model))
    before = stored(model)
    x, _ = toy_batch(count=3)
    with pytest.raises(ShapeError, match="expected an even number of rows"):
        optimizer.step(lambda repeat: model(x).sum(1))
    assert same(stored(model), before)
    assert optimizer.steps == 0
    assert model(x).isfinite().all()


def test_calibration_sees_the_batch_once() -> None:
    model = toy_model()
    losses, seen = row_losses(model), set()

    def closure(repeat: int) -> Tensor:
        seen.add(repeat)
        return losses(repeat)

    PairedZO(attach(model)).calibrate(closure, choose=("eps",))  # type: ignore[arg-type]
    assert seen == {1}


def test_what_has_one_set_of_values_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = toy_model(), nn.LayerNorm(8)

    views = attach(Mixed(), roles=("scale", "dense"))
    with pytest.raises(UnsupportedLayoutError, match=r"norm: a LayerNorm has one set of values.*exclude='norm\.\*'"):
        PairedZO(views)


def test_an_odd_number_of_evaluations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'fzoo' with probes=4 evaluates 5 points, expected an even number"):
        PairedZO(attach(toy_model()), estimator=FZOO(), probes=4)
    assert PairedZO(attach(toy_model()), estimator=GroupRelative(), probes=4).probes == 4


def test_experts_are_refused_before_they_mix_probes() -> None:
    gate, up, down = (toy_layer(seed, rows=8, groups=2) for seed in range(3))
    experts = QuantExperts(gate, up, down, count=1, activation=torch.tanh)
    with Twins({"up": up}), pytest.raises(UnsupportedLayoutError, match="an expert sees tokens that were gathered"):
        experts(torch.randn(2, 8), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))


def test_the_model_has_no_second_codes() -> None:
    model: ToyModel = toy_model()
    PairedZO(attach(model))
    twins = Twins(dict(model.layers.items()))
    assert {id(first.packed.codes) for first, _ in twins._layers} == {id(twin.codes) for _, twin in twins._layers}
