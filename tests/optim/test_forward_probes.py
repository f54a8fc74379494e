"""Probes of rows and columns descend, replay and leave no trace, with every estimator and rule."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.carried import check_it_goes_on
from tests.optim.test_engine import bits, same
from tests.record.test_rows_and_columns import drawn
from tests.threads import threads
from tests.toy import ToyModel, toy_batch, toy_layer, toy_model, write_toy
from zoquant import ZOSGD, Trajectory, Views, attach, export, replay, save_delta
from zoquant.errors import BaseMismatchError, LossError, ShapeError, UnsupportedLayoutError
from zoquant.kernels.noise.definition import Noise, child_seed, step_seed
from zoquant.optim.estimators import FZOO, Estimator, GroupRelative, OneSided, RobustClip, TwoPoint
from zoquant.record.rows_and_columns import RowsAndColumnsMover
from zoquant.record.rules import SGD, Adam, Momentum, Rule, Sign
from zoquant.record.step import Step
from zoquant.testing.tensors import same_bits
from zoquant.views import flat_buffer as buffer

ROLES: Any = ("scale", "zero")
COUNT = 8
LR = {"sgd": 2e-2, "momentum": 2e-3, "sign": 3e-3, "adam": 3e-3}


@dataclass(frozen=True)
class Engine:
    """One combination to ask."""

    estimator: Estimator
    rule: Rule
    split: bool

    def optimizer(self, model: nn.Module, **changes: Any) -> ZOSGD:
        lr = LR[self.rule.name] * (0.05 if self.estimator.name == "fzoo" and self.rule.gain(2) > 1 else 1)
        chosen: dict[str, Any] = {"lr": lr, "eps": 1e-2, "seed": 4, "probes": 4, "split": self.split}
        chosen |= {"estimator": self.estimator, "rule": self.rule, **changes}
        return ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", **chosen)


BOTH: list[Estimator] = [TwoPoint(), GroupRelative()]
WHOLE: list[Estimator] = [OneSided(), FZOO()]
RULES: list[Rule] = [SGD(), Momentum(), Sign(), Adam()]
ENGINES = [Engine(e, r, split) for split in (True, False) for e in BOTH for r in RULES]
ENGINES += [Engine(e, r, False) for e in WHOLE for r in RULES]
NAMES = [f"{e.estimator.name}-{e.rule.name}-{'split' if e.split else 'whole'}" for e in ENGINES]
every = pytest.mark.parametrize("engine", ENGINES, ids=NAMES)
some = pytest.mark.parametrize("engine", ENGINES[::3], ids=NAMES[::3])


def losses_of(model: nn.Module, seed: int = 0) -> Callable[[int], Tensor]:
    x, y = toy_batch(count=COUNT, seed=seed)
    return lambda repeat: (model(x.repeat(repeat, 1)) - y.repeat(repeat, 1)).square().mean(1)


def steps_of(optimizer: ZOSGD, model: nn.Module, count: int) -> None:
    for _ in range(count):
        optimizer.step(losses_of(model, optimizer.steps))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@every
def test_descends(engine: Engine) -> None:
    model, target = toy_model(dtype=torch.float32), toy_model(dtype=torch.float32)
    away = attach(target, roles=ROLES)
    RowsAndColumnsMover(away, Noise(), SGD()).advance([Step((9,), (1.0,), (0.3,))])
    away.write()
    x = toy_batch(count=COUNT)[0]
    y = target(x)
    optimizer = engine.optimizer(model)
    first = (model(x) - y).square().sum()
    for _ in range(100):
        optimizer.step(lambda repeat: (model(x.repeat(repeat, 1)) - y.repeat(repeat, 1)).square().sum(1))
    assert (model(x) - y).square().sum() < 0.7 * first


@every
def test_lr_0_leaves_every_byte(engine: Engine) -> None:
    model = toy_model()
    optimizer = engine.optimizer(model, lr=0.0, decay=0.5)
    before = bits(optimizer.views)
    steps_of(optimizer, model, 20)
    assert same(bits(optimizer.views), before)
    assert not any(b.delta.any() for b in optimizer.views.buffers)
    assert hooks(model) == 0


@every
def test_replays_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    model = toy_model()
    optimizer = engine.optimizer(model, decay=0.1, clip=RobustClip())
    steps_of(optimizer, model, 7)
    run = optimizer.trajectory
    run.save(tmp_path / "t")
    with run.prefix(3).journal(tmp_path / "j", optimizer.probes) as journal:
        for step in run.steps[3:]:
            journal.append(step)
    assert Trajectory.load(tmp_path / "t") == Trajectory.load(tmp_path / "j") == run
    for workers, limit, file in ((1, 1 << 17, "t"), (2, 128, "j")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(buffer._CHUNK, "cpu", limit)
            views = attach(toy_model(order=(1, 2, 0)), roles=ROLES)
            with threads(workers):
                replay(tmp_path / file, views)
        assert same(bits(views), bits(optimizer.views))
        assert all(same_bits(views.delta(key), optimizer.views.delta(key)) for key in views.keys)
    found = run.delta(attach(toy_model(), roles=ROLES))
    assert all(same_bits(found.values[key], optimizer.views.delta(key)) for key in found.values)


@every
def test_goes_on_after_save_and_load(engine: Engine) -> None:
    check_it_goes_on(engine.optimizer, steps_of)


@some
@pytest.mark.parametrize("error", [RuntimeError("gone"), KeyboardInterrupt()])
def test_an_exception_changes_nothing(engine: Engine, error: BaseException) -> None:
    model, twin = toy_model(), toy_model()
    optimizer, expected = engine.optimizer(model), engine.optimizer(twin)
    steps_of(optimizer, model, 2)

    def broken(repeat: int) -> Tensor:
        losses_of(model)(repeat)
        raise error

    with pytest.raises(type(error)):
        optimizer.step(broken)
    assert hooks(model) == 0
    steps_of(optimizer, model, 2)
    steps_of(expected, twin, 4)
    assert same(bits(optimizer.views), bits(expected.views))


def test_an_error_within_a_layer_leaves_no_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4)
    before = losses_of(model)(1)
    with monkeypatch.context() as patch:
        patch.setattr(model.layers["l1"].packed, "product", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step(losses_of(model))
    assert hooks(model) == 0
    assert torch.equal(losses_of(model)(1), before)


def test_a_hook_that_cannot_be_set_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(model.layers["l2"], "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no hooks here"):
        optimizer.step(losses_of(model))
    assert hooks(model) == 0
    assert optimizer.steps == 0


BAD_LOSSES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a number": (lambda losses: float(losses.mean()), "returned a float, expected a tensor of one loss"),
    "a scalar": (lambda losses: losses.mean(), r"returned shape \[\], expected a tensor of one loss"),
    "a matrix": (lambda losses: losses[:, None], r"returned shape \[16, 1\]"),
    "too few": (
        lambda losses: losses[:-1],
        r"returned shape \[15\], .* multiple of 8: 2 times the batch, 4 directions",
    ),
    "none": (lambda losses: losses[:0], r"returned shape \[0\]"),
    "NaN": (lambda losses: losses.index_fill(0, torch.tensor([3]), torch.nan), "the loss is nan"),
}


@pytest.mark.parametrize("bad", BAD_LOSSES)
def test_losses_that_do_not_fit_are_undone(bad: str) -> None:
    change, message = BAD_LOSSES[bad]
    model = toy_model()
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4)
    before = bits(optimizer.views)
    with pytest.raises(LossError, match=message):
        optimizer.step(lambda repeat: change(losses_of(model)(repeat)))
    assert same(bits(optimizer.views), before)
    assert optimizer.trajectory.steps[0].derivatives == (0.0,) * 4
    assert hooks(model) == 0


class Tokens(nn.Module):
    """Takes `[batch, length, width]`, and treats it as it is told before its second layer."""

    def __init__(self, treat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.treat = toy_layer(1), toy_layer(2), treat

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.treat(self.first(x)))
        return y


BAD_ROWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "flattened": (lambda x: x.flatten(0, 1), r"second: its input is \[40, 8\], expected 8 rows of a batch first"),
    "gathered": (lambda x: x[:3], r"second: its input is \[3, 5, 8\], expected 8 rows .* a multiple of 4"),
    "one row": (lambda x: x[0, 0], r"second: its input is \[8\], expected 8 rows"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_rows_that_are_no_batch_are_refused(bad: str) -> None:
    treat, message = BAD_ROWS[bad]
    model = Tokens(treat)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=2)
    with pytest.raises(ShapeError, match=message):
        optimizer.step(lambda repeat: model(torch.randn(4 * repeat, 5, 8)).mean((1, 2)))
    assert (optimizer.steps, hooks(model)) == (0, 0)


def test_a_batch_in_the_second_dimension_is_refused() -> None:
    model = Tokens(lambda x: x)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=2)
    with pytest.raises(ShapeError, match=r"first: its input has 4 rows, expected a multiple of the 12 losses"):
        optimizer.step(lambda repeat: model(torch.randn(4, 6 * repeat, 8)).mean((0, 2)))


def test_a_layer_that_is_not_called_is_refused() -> None:
    model = Tokens(lambda x: x)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=2)
    with pytest.raises(UnsupportedLayoutError, match=r"second: was not called .*exclude='second\.\*'"):
        optimizer.step(lambda repeat: model.first(torch.randn(4 * repeat, 8)).mean(1))
    assert optimizer.steps == 0


def test_every_example_has_a_direction_of_its_own() -> None:
    """The losses of a step are those of the written probes, each of its own example."""
    model = toy_model(dtype=torch.float32)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=COUNT, eps=0.05, lr=1e-2)
    steps_of(optimizer, model, 3)
    seen: list[Tensor] = []
    at = {key: optimizer.views.delta(key) for key in optimizer.views.keys}

    def closure(repeat: int) -> Tensor:
        seen.append(losses_of(model)(repeat))
        return seen[0]

    optimizer.step(closure)
    assert (optimizer.repeat, seen[0].shape) == (2, (2 * COUNT,))
    step = optimizer.trajectory.steps[-1]
    assert step.seeds == (step_seed(0, 3),)
    assert step.directions == tuple(child_seed(step.seeds[0], number) for number in range(COUNT))
    written = toy_model(dtype=torch.float32)
    views = attach(written, roles=ROLES)
    for number, seed in enumerate(step.directions):
        for row, eps in ((number, 0.05), (COUNT + number, -0.05)):
            (mover,) = optimizer.trajectory.prefix(3).movers([views])
            mover.reset()
            mover.advance(optimizer.trajectory.steps[:3])
            assert all(same_bits(views.delta(key), at[key]) for key in views.keys)
            moved = mover.buffers[0].delta
            moved.add_(drawn(mover.vectors[0], seed), alpha=eps)  # type: ignore[attr-defined]
            mover.advance([])
            views.write()
            torch.testing.assert_close(losses_of(written)(1)[number], seen[0][row], rtol=1e-5, atol=1e-6)
    assert step.derivatives[1] == pytest.approx(float(seen[0][1] - seen[0][COUNT + 1]) / 0.1, rel=1e-4)


@pytest.mark.parametrize("shares", [[4, 4], [3, 5], [1] * 8])
def test_micro_batches_have_the_directions_of_their_examples(shares: list[int]) -> None:
    models = [toy_model(dtype=torch.float32) for _ in range(2)]
    whole, parts = (ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=COUNT) for model in models)
    x, y = toy_batch(count=COUNT)

    def losses_of_part(start: int, stop: int) -> Callable[[int], Tensor]:
        rows, goals = x[start:stop], y[start:stop]
        return lambda repeat: (models[1](rows.repeat(repeat, 1)) - goals.repeat(repeat, 1)).square().mean(1)

    ends = [sum(shares[: number + 1]) for number in range(len(shares))]
    closures = [losses_of_part(end - share, end) for share, end in zip(shares, ends, strict=True)]
    expected, result = whole.step(losses_of(models[0])), parts.step(closures, shares)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert parts.trajectory.steps[0].derivatives == pytest.approx(whole.trajectory.steps[0].derivatives, rel=1e-3)


@pytest.mark.parametrize(("split", "shares"), [(True, [4, 3]), (True, [8, 0]), (True, [8]), (False, [4, 4])])
def test_shares_that_do_not_fit_are_refused(split: bool, shares: list[int]) -> None:
    model = toy_model()
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=COUNT, split=split)
    with pytest.raises(ValueError, match="weights"):
        optimizer.step([losses_of(model)] * 2, shares)
    assert optimizer.steps == 0


def test_one_forward_is_as_good_as_one_for_each_point() -> None:
    model = toy_model(dtype=torch.float32)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=3, split=False, estimator=OneSided())
    plan = optimizer.plan()
    apart = [optimizer.loss_at(evaluation, losses_of(model)) for evaluation in plan]
    result = optimizer.step(losses_of(model))
    assert (optimizer.repeat, len(plan)) == (4, 4)
    assert result.loss == pytest.approx(sum(apart) / 4, rel=1e-5)
    assert result.derivative == pytest.approx((sum(apart[1:]) / 3 - apart[0]) / 3e-2, rel=1e-3)


def test_a_record_has_8_bytes_a_direction(tmp_path: Path) -> None:
    sizes = []
    for directions in (2, 8):
        model = toy_model()
        optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=directions)
        steps_of(optimizer, model, 3)
        with optimizer.trajectory.prefix(0).journal(tmp_path / "j", directions) as journal:
            empty = (tmp_path / "j").stat().st_size
            for step in optimizer.trajectory.steps:
                journal.append(step)
        sizes.append(((tmp_path / "j").stat().st_size - empty) / 3)
    assert sizes == [24 + 8 * 2, 24 + 8 * 8]


def test_exports_what_it_trained(tmp_path: Path, toy_format: Any) -> None:
    model = toy_model()
    write_toy(tmp_path / "base.toy", model)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4, lr=1e-2)
    steps_of(optimizer, model, 5)
    save_delta(tmp_path / "delta", optimizer.views)
    tuned = export(tmp_path / "base.toy", delta=tmp_path / "delta", out=tmp_path / "tuned.toy")
    assert tuned.read_bytes() == write_toy(tmp_path / "again.toy", model).read_bytes()
    assert tuned.read_bytes() != (tmp_path / "base.toy").read_bytes()


@pytest.mark.parametrize("estimator", WHOLE)
def test_directions_that_share_the_examples_share_no_point(estimator: Estimator) -> None:
    with pytest.raises(ValueError, match=r"compares all directions with one loss at theta.*split=False"):
        ZOSGD(attach(toy_model(), roles=ROLES), subspace="rows-columns", probes=4, estimator=estimator)


def test_is_no_other_optimizer() -> None:
    views = attach(toy_model(), roles=ROLES)
    rows, plain = ZOSGD(views, subspace="rows-columns", probes=1), ZOSGD(views, lr=4e-3, eps=3e-2)
    for one, other in ((rows, plain), (plain, rows)):
        with pytest.raises(ValueError, match="subspace is"):
            one.load_state_dict(other.state_dict())
        with pytest.raises(ValueError, match="subspace is"):
            one.resume(other.trajectory)


def test_replay_needs_the_layers() -> None:
    model = toy_model()
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4)
    steps_of(optimizer, model, 1)
    alone = attach(toy_model(), roles=ROLES)
    for view in alone:
        view.layer = None
    with pytest.raises(UnsupportedLayoutError, match="belongs to no layer of a model"):
        replay(optimizer.trajectory, alone)
    other = attach(toy_model(1), roles=ROLES)
    with pytest.raises(BaseMismatchError):
        replay(optimizer.trajectory, other)


def test_calibrates_what_whole_batches_tell() -> None:
    model = toy_model(dtype=torch.float32)
    optimizer = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4, split=False)
    before = bits(optimizer.views)
    found = optimizer.calibrate([losses_of(model, 0), losses_of(model, 1)])
    assert optimizer.param_groups[0]["lr"] == found.lr
    assert same(bits(optimizer.views), before)
    split = ZOSGD(attach(model, roles=ROLES), subspace="rows-columns", probes=4)
    with pytest.raises(ValueError, match=r"expected \('eps',\)"):
        split.calibrate(losses_of(model))
    assert split.calibrate(losses_of(model), choose=("eps",)).eps == split.param_groups[0]["eps"]


def test_group_relative_weights_have_no_scale() -> None:
    losses = [1.0, 0.5, 0.25, 0.75, 1.0, 0.5]
    found = GroupRelative().derivatives(losses, 0.1)
    spread = (sum((d - 1 / 6) ** 2 for d in (0.5, -0.5, 0.5)) / 3) ** 0.5
    assert found == pytest.approx([d / spread for d in (0.5, -0.5, 0.5)])
    assert GroupRelative().derivatives([8 * loss for loss in losses], 0.7) == pytest.approx(found)
    assert GroupRelative().derivatives([2.0, 1.0] * 3, 0.1) == (0.0,) * 3


def test_views_of_a_toy_model_are_one_layer_each() -> None:
    model: ToyModel = toy_model()
    views: Views = attach(model, roles=ROLES)
    assert [view.layer.path for view in views if view.layer] == [f"layers.l{n}" for n in range(3) for _ in "dm"]
