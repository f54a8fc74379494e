"""Every estimator with every rule answers the same questions; laws 3, 5 and 7 hold for all of them."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.optim.carried import check_it_goes_on
from tests.toy import ToyModel, toy_batch, toy_loss, toy_model, write_toy
from zoquant import ZOSGD, Noise, Trajectory, Views, attach, export, load_delta, replay, save_delta
from zoquant.errors import LossError
from zoquant.kernels.noise.definition import KINDS, UNITS
from zoquant.optim.closures import mean_loss
from zoquant.optim.estimators import FZOO, Estimator, GroupRelative, OneSided, RobustClip, TwoPoint
from zoquant.protocol import Role
from zoquant.record.rules import SGD, Adam, Momentum, Rule, Sign
from zoquant.testing.tensors import same_bits
from zoquant.views import flat_buffer as buffer
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.tensor_views import TensorView

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ESTIMATORS: list[Estimator] = [TwoPoint(), OneSided(), FZOO(), GroupRelative()]
RULES: list[Rule] = [SGD(), Momentum(), Sign(), Adam()]
LR = {"sgd": 1e-2, "momentum": 1e-3, "sign": 3e-3, "adam": 3e-3}


@dataclass(frozen=True)
class Engine:
    """One combination to ask."""

    estimator: Estimator
    rule: Rule
    probes: int = 3

    def optimizer(self, views: Views, **changes: Any) -> ZOSGD:
        lr = LR[self.rule.name] * (0.03 if self.estimator.name == "fzoo" and self.rule.gain(2) > 1 else 1)
        chosen: dict[str, Any] = {
            "lr": lr, "eps": 1e-2, "seed": 4, "probes": self.probes, "estimator": self.estimator, "rule": self.rule
        }  # fmt: skip
        return ZOSGD(views, **{**chosen, **changes})


ENGINES = [Engine(e, r) for e in ESTIMATORS for r in RULES]
every = pytest.mark.parametrize("engine", ENGINES, ids=[f"{e.estimator.name}-{e.rule.name}" for e in ENGINES])
engines = st.sampled_from(ENGINES)
noises = st.builds(Noise, st.sampled_from(KINDS), st.sampled_from((1.0, 0.5)), st.sampled_from(UNITS))
roles = st.sampled_from((("scale",), ("zero",), ("scale", "zero")))


def closure_of(model: ToyModel, seed: int = 0) -> Callable[[], Tensor]:
    batch = toy_batch(seed=seed)
    return lambda: toy_loss(model, batch)


def steps_of(optimizer: ZOSGD, model: ToyModel, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(count):
            optimizer.step(closure_of(model, optimizer.steps))


def bits(views: Views) -> dict[str, Tensor]:
    return {view.name: view.read() for view in views}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(same_bits(one[key], two[key]) for key in one)


class Bowl:
    """L = mean (theta − target)² over two vectors, as views without a model."""

    def __init__(self) -> None:
        self.live = [torch.full((3,), 0.5 + n) for n in range(2)]
        self.views = Views([_bound(n, tensor) for n, tensor in enumerate(self.live)], coupled=False)

    def loss(self) -> float:
        return float(sum((tensor.double() - 1.2).square().mean() for tensor in self.live))


def _bound(number: int, tensor: Tensor) -> Any:
    from zoquant.views.model_views import BoundView

    return BoundView(f"v{number}", TensorView(f"v{number}", "zero", tensor), "bowl")


@every
def test_descends_a_quadratic(engine: Engine) -> None:
    bowl = Bowl()
    optimizer = engine.optimizer(bowl.views)
    first = bowl.loss()
    for _ in range(100):
        optimizer.step(bowl.loss)
    assert bowl.loss() < 0.7 * first


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
@every
def test_lr_0_leaves_every_byte(engine: Engine, steps: int) -> None:
    bowl = Bowl()
    before = [tensor.clone() for tensor in bowl.live]
    optimizer = engine.optimizer(bowl.views, lr=0.0, decay=0.5)
    for _ in range(steps):
        optimizer.step(bowl.loss)
    assert all(same_bits(a, b) for a, b in zip(bowl.live, before, strict=True))
    assert not any(b.delta.any() for b in bowl.views.buffers)


@every
def test_replays_bit_for_bit(engine: Engine, tmp_path: Path) -> None:
    model = toy_model()
    optimizer = engine.optimizer(attach(model), decay=0.1)
    steps_of(optimizer, model, 7)
    optimizer.trajectory.save(tmp_path / "t")
    for threads, limit in ((1, 1 << 17), (2, 128)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(buffer._CHUNK, "cpu", limit)
            views = attach(toy_model(order=(1, 2, 0)))
            torch.set_num_threads(threads)
            try:
                replay(tmp_path / "t", views)
            finally:
                torch.set_num_threads(1)
        assert same(bits(views), bits(optimizer.views))
        assert all(same_bits(views.delta(key), optimizer.views.delta(key)) for key in views.keys)


@every
def test_goes_on_after_save_and_load(engine: Engine) -> None:
    check_it_goes_on(lambda model: engine.optimizer(attach(model)), steps_of)


@every
@pytest.mark.parametrize("error", [RuntimeError("gone"), KeyboardInterrupt()])
def test_an_exception_changes_nothing(engine: Engine, error: BaseException) -> None:
    model, twin = toy_model(), toy_model()
    optimizer, expected = engine.optimizer(attach(model)), engine.optimizer(attach(twin))
    steps_of(optimizer, model, 2)
    before = bits(optimizer.views)
    calls = itertools.count()

    def raising() -> float:
        if next(calls) == 2:
            raise error
        return 1.0 + next(calls)

    with pytest.raises(type(error)):
        optimizer.step(raising)
    assert same(bits(optimizer.views), before)
    steps_of(optimizer, model, 2)
    steps_of(expected, twin, 4)
    assert same(bits(optimizer.views), bits(expected.views))


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), torch.ones(2)])
def test_a_bad_loss_is_a_step_that_moves_and_remembers_nothing(engine: Engine, bad: Any) -> None:
    model = toy_model()
    optimizer = engine.optimizer(attach(model))
    steps_of(optimizer, model, 2)
    before, remembered = (
        bits(optimizer.views),
        [s.clone() for states in optimizer._run.movers[0].states for s in states],
    )
    with pytest.raises(LossError):
        optimizer.step(lambda: bad)
    assert same(bits(optimizer.views), before)
    steps_of(optimizer, model, 1)
    views = attach(toy_model())
    replay(optimizer.trajectory, views)
    assert same(bits(views), bits(optimizer.views))
    assert len(remembered) == engine.rule.states


@every
def test_workers_may_share_out_the_evaluations(engine: Engine) -> None:
    """Two workers evaluate every other point, exchange losses, and end at the bytes of one."""
    alone = toy_model()
    single = engine.optimizer(attach(alone))
    steps_of(single, alone, 4)
    models = [toy_model(order=order) for order in ((0, 1, 2), (2, 0, 1))]
    ordered = [ToyModel({name: model.layers[name] for name in ("l0", "l1", "l2")}) for model in models]  # type: ignore[misc]
    workers = [engine.optimizer(attach(model)) for model in models]
    for step in range(4):
        plan = workers[0].plan()
        assert plan == workers[1].plan()
        losses = [
            workers[n % 2].loss_at(point, closure_of(ordered[n % 2], step)) for n, point in reversed([*enumerate(plan)])
        ][::-1]
        for worker in workers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                worker.apply(losses)
    for worker in workers:
        assert same(bits(worker.views), bits(single.views))


@every
def test_memory_is_taken_only_by_rules_that_remember(engine: Engine) -> None:
    optimizer = engine.optimizer(attach(toy_model()))
    states = optimizer._run.movers[0].states
    assert [len(each) for each in states] == [{"sgd": 0, "momentum": 1, "sign": 0, "adam": 2}[engine.rule.name]]
    assert all(
        tensor.shape == b.delta.shape
        for each, b in zip(states, optimizer.views.buffers, strict=True)
        for tensor in each
    )


@settings(max_examples=25)
@given(
    engines, noises, st.sampled_from(SPACES), roles, st.sampled_from(DTYPES),
    st.sampled_from((None, 0.5, RobustClip(2.0, 4, 1))), st.sampled_from((0.0, 0.3)),
)  # fmt: skip
def test_laws_3_5_and_7_under_every_combination(
    tmp_path_factory: pytest.TempPathFactory, toy_format_once: None, engine: Engine, noise: Noise, space: Space,
    role: tuple[Role, ...], dtype: torch.dtype, clip: Any, decay: float,
) -> None:  # fmt: skip
    """Lr 0 leaves every byte, replay equals the run, export of no delta is the base, of a delta what was trained."""
    folder = tmp_path_factory.mktemp("laws")
    scale = 1.0 if space == "relative" else 1e-3
    model = toy_model(dtype=dtype)
    write_toy(folder / "base.toy", model, str(dtype).removeprefix("torch."))
    chosen: dict[str, Any] = {"noise": noise, "space": space, "clip": clip, "eps": 3e-2 * scale}
    frozen = engine.optimizer(attach(model, roles=role), lr=0.0, **chosen)
    before = bits(frozen.views)
    steps_of(frozen, model, 5)
    assert same(bits(frozen.views), before)
    save_delta(folder / "zero", frozen.views)
    same_file = export(folder / "base.toy", delta=folder / "zero", out=folder / "same.toy")
    assert same_file.read_bytes() == (folder / "base.toy").read_bytes()

    rate = LR[engine.rule.name] * scale * (1e-2 if engine.estimator.name == "fzoo" else 1)
    optimizer = engine.optimizer(attach(model, roles=role), lr=rate, decay=decay, **chosen)
    steps_of(optimizer, model, 6)
    with optimizer.trajectory.prefix(2).journal(folder / "journal", optimizer.probes) as journal:
        for step in optimizer.trajectory.steps[2:]:
            journal.append(step)
    other = attach(toy_model(dtype=dtype, order=(2, 0, 1)), roles=role)
    replay(folder / "journal", other)
    assert same(bits(other), bits(optimizer.views))
    found = optimizer.trajectory.delta(attach(toy_model(dtype=dtype), roles=role))
    assert all(same_bits(found.values[key], optimizer.views.delta(key)) for key in found.values)
    found.save(folder / "delta")
    tuned = export(folder / "base.toy", delta=folder / "delta", out=folder / "tuned.toy")
    again = write_toy(folder / "again.toy", model, str(dtype).removeprefix("torch."))
    assert tuned.read_bytes() == again.read_bytes()


@pytest.fixture(scope="module")
def toy_format_once() -> Any:
    import zoquant
    from tests.toy import ToyFormat

    zoquant.register(format=ToyFormat())
    yield
    zoquant.unregister("toy")


def test_micro_batches_weigh_as_they_are_told() -> None:
    model, twin = toy_model(), toy_model()
    parts = [closure_of(model, seed) for seed in range(3)]
    weights = [4.0, 2.0, 1.0]
    optimizer, expected = (ZOSGD(attach(m), probes=2, lr=1e-2) for m in (model, twin))
    result = optimizer.step(parts, weights=weights)
    twins = [closure_of(twin, seed) for seed in range(3)]
    by_hand = expected.step(lambda: sum(w * float(p().double()) for w, p in zip(weights, twins, strict=True)) / 7.0)
    assert result.loss == pytest.approx(by_hand.loss)
    assert same(bits(optimizer.views), bits(expected.views))
    assert mean_loss([lambda: 1.0, lambda: 2.0])() == 1.5


@pytest.mark.parametrize(
    ("closures", "weights"), [([], None), (2, [1.0]), (2, [1.0, 0.0]), (2, [1.0, float("nan")]), (0, [1.0])]
)
def test_weights_that_do_not_fit_are_refused(closures: Any, weights: Any) -> None:
    parts: Any = (lambda: 1.0) if closures == 0 else [lambda: 1.0] * (closures or 0)
    optimizer = ZOSGD(attach(toy_model()))
    with pytest.raises(ValueError, match="weights is"):
        optimizer.step(parts, weights)
    assert optimizer.steps == 0


def test_losses_that_do_not_fit_the_plan_are_refused() -> None:
    optimizer = ZOSGD(attach(toy_model()), probes=2)
    with pytest.raises(ValueError, match=r"ZOSGD: losses is \[1\.0\], expected 4 of them"):
        optimizer.apply([1.0])
    assert optimizer.steps == 0


def test_any_objective_will_do() -> None:
    """Steps, such as those of an accuracy, have differences too."""
    bowl = Bowl()
    optimizer = ZOSGD(bowl.views, lr=1e-3, eps=0.2, probes=4)
    first = bowl.loss()
    for _ in range(100):
        optimizer.step(lambda: round(bowl.loss() * 20) / 20)
    assert bowl.loss() < first


def test_a_derivative_too_large_for_float32_is_undone() -> None:
    optimizer = ZOSGD(attach(toy_model()), eps=1e-2)
    losses = iter([1e300, -1e300])
    with pytest.raises(LossError, match=r"step 0: moves by 0.006 times 1e\+302, .* float32 holds"):
        optimizer.step(lambda: next(losses))
    assert not any(b.delta.any() for b in optimizer.views.buffers)
    assert optimizer.steps == 1


def test_decay_pulls_back_to_the_base() -> None:
    optimizer = ZOSGD(attach(toy_model(dtype=torch.float32)), lr=0.1, decay=1.0)
    losses = itertools.cycle([1.0, 0.0])
    for _ in range(400):
        optimizer.step(lambda: next(losses))
    step = 0.1 / 0.06  # lr · |derivative|
    spread = torch.cat([optimizer.views.delta(key).view(-1) for key in optimizer.views.keys]).std()
    assert 0.5 < float(spread) / (step / (1 - 0.9**2) ** 0.5) < 2  # the stationary walk of delta ← 0.9 delta ± step


def test_a_prefix_and_differences_of_deltas(tmp_path: Path) -> None:
    model = toy_model(dtype=torch.float32)
    optimizer = ZOSGD(attach(model), lr=1e-2, rule=Momentum())
    steps_of(optimizer, model, 8)
    run = optimizer.trajectory
    views = attach(toy_model(dtype=torch.float32))
    early, late = run.prefix(3).delta(views), run.delta(views)
    assert [len(run.prefix(n).steps) for n in (0, 3, 99)] == [0, 3, 8]
    assert not any(b.delta.any() for b in views.buffers)
    replay(run, views, steps=3)
    assert all(same_bits(early.values[key], views.delta(key)) for key in views.keys)
    between = late - early
    for key in views.keys:
        torch.testing.assert_close(between.values[key] + early.values[key], late.values[key])
    between.save(tmp_path / "between")
    load_delta(tmp_path / "between", views)
    assert all(same_bits(between.values[key], views.delta(key)) for key in views.keys)
    assert Trajectory.load(_saved(run, tmp_path)) == run


def _saved(run: Trajectory, folder: Path) -> Path:
    run.save(folder / "t")
    return folder / "t"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_losses_whose_difference_overflows_are_undone(estimator: Estimator) -> None:
    optimizer = ZOSGD(attach(toy_model()), probes=2, estimator=estimator)
    losses = itertools.cycle([1e308, -1e308])
    with pytest.raises(LossError, match="have no finite difference quotient"):
        optimizer.step(lambda: next(losses))
    assert not any(buffer.delta.any() for buffer in optimizer.views.buffers)


def test_adam_needs_a_number_that_float32_holds() -> None:
    """Elements that no direction has moved yet would be 0 / 0."""
    with pytest.raises(ValueError, match=r"adam: tiny is 1e-50, expected at least 1\.2e-38, which float32 holds"):
        Adam(tiny=1e-50)
    optimizer = ZOSGD(attach(toy_model()), rule=Adam(tiny=2.0**-126), noise=Noise(density=0.1))
    losses = itertools.cycle([1.0, 0.0])
    optimizer.step(lambda: next(losses))
    assert all(bool(buffer.delta.isfinite().all()) for buffer in optimizer.views.buffers)
