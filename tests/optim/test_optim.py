"""ZOSGD: what a step does, what it undoes, and how it goes on."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.optim.carried import carried_by_state, check_it_goes_on
from tests.toy import ToyModel, registered, toy_batch, toy_loss, toy_model
from zoquant import ZOSGD, Views, attach
from zoquant.errors import BaseMismatchError, CheckpointError, LossError
from zoquant.kernels.noise.definition import KINDS, Kind, Noise, reference, step_seed
from zoquant.optim.estimators import FZOO, OneSided
from zoquant.protocol import Role
from zoquant.record.mover import Mover
from zoquant.record.rules import SGD, Adam, Momentum, Rule, Sign
from zoquant.testing.tensors import same_bits
from zoquant.views import flat_buffer as buffer
from zoquant.views.flat_buffer import SPACES, Space
from zoquant.views.tensor_views import TensorView

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BOTH: tuple[Role, ...] = ("scale", "zero")


def closure_of(model: ToyModel, seed: int = 0) -> Callable[[], Tensor]:
    batch = toy_batch(seed=seed)
    return lambda: toy_loss(model, batch)


def run(steps: int, *, dtype: torch.dtype = torch.float16, **settings: Any) -> tuple[dict[str, Tensor], ZOSGD]:
    """Train a fresh toy model, a new batch at every step, and return what its views read."""
    model = toy_model(dtype=dtype)
    optimizer = ZOSGD(attach(model, roles=BOTH), **settings)
    steps_of(optimizer, model, steps)
    return bits(optimizer.views), optimizer


def steps_of(optimizer: ZOSGD, model: ToyModel, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(steps):
            optimizer.step(closure_of(model, optimizer.steps))


def bits(views: Views) -> dict[str, Tensor]:
    return {view.name: view.read() for view in views}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(same_bits(one[key], two[key]) for key in one)


def test_a_textbook_agrees() -> None:
    """Ten steps are ten lines of float64 with the same noise."""
    lr, eps, clip, seed = 1e-4, 1e-3, 2.0, 5
    model, twin = toy_model(dtype=torch.float32), toy_model(dtype=torch.float32)
    optimizer = ZOSGD(
        attach(model, roles=BOTH, coupled=False),
        lr=lr, eps=eps, clip=clip, seed=seed, noise="gaussian", space="absolute",
    )  # fmt: skip
    stored = {view.name: (view.role, view.live) for view in attach(twin, roles=BOTH)}
    theta = {name: cast(Tensor, live).double() for name, (_, live) in stored.items()}
    base = {name: value.clone() for name, value in theta.items()}
    clipped = 0

    def loss_at(values: dict[str, Tensor], step: int) -> float:
        for name, value in values.items():
            role, live = stored[name]
            kept = torch.where(value * base[name] > 0, value, 0.0) if role == "scale" else value
            cast(Tensor, live).copy_(kept)
        return float(closure_of(twin, step)())

    for step in range(10):
        result = optimizer.step(closure_of(model, step))
        z = {
            name: torch.from_numpy(reference(step_seed(seed, step), name, value.numel(), "gaussian")).view(value.shape)
            for name, value in theta.items()
        }
        plus = loss_at({name: theta[name] + eps * z[name] for name in theta}, step)
        minus = loss_at({name: theta[name] - eps * z[name] for name in theta}, step)
        d = max(-clip, min(clip, (plus - minus) / (2 * eps)))
        theta = {name: theta[name] - lr * d * z[name] for name in theta}
        clipped += result.clipped
        assert result.loss == pytest.approx((plus + minus) / 2, abs=1e-5)
    assert 0 < clipped < 10
    for name in theta:
        torch.testing.assert_close(base[name] + optimizer.views.delta(name).double(), theta[name], rtol=0, atol=1e-6)
        assert (theta[name] - base[name]).abs().max() > 1e-4


@settings(max_examples=12)
@given(
    st.sampled_from(DTYPES), st.sampled_from(SPACES), st.sampled_from(KINDS), st.integers(1, 3),
    st.sampled_from((None, 0.5)), st.permutations((0, 1, 2)), st.integers(0, 2**31),
)  # fmt: skip
def test_same_seed_same_bytes_in_any_order(
    dtype: torch.dtype, space: Space, kind: Kind, probes: int, clip: float | None, order: list[int], seed: int
) -> None:
    chosen: dict[str, Any] = {
        "space": space, "noise": kind, "probes": probes, "clip": clip, "seed": seed,
        "lr": 1e-2 if space == "relative" else 1e-6, "eps": 3e-2 if space == "relative" else 1e-4,
    }  # fmt: skip
    one, optimizer = run(3, dtype=dtype, **chosen)
    again, _ = run(3, dtype=dtype, **chosen)
    assert same(one, again)
    other_seed, _ = run(3, dtype=dtype, **{**chosen, "seed": seed + 1})
    assert not same(one, other_seed)
    shuffled = toy_model(dtype=dtype, order=order)
    views = attach(shuffled, roles=BOTH)
    views.space = space
    for step in optimizer.trajectory.steps:
        for step_seed_, derivative in zip(step.seeds, step.derivatives, strict=True):
            views.add(step_seed_, -step.rates[0] * derivative / probes, kind)
    views.write()
    assert same(bits(views), one)


def test_threads_do_not_matter_to_what_is_written() -> None:
    expected, optimizer = run(3)
    try:
        torch.set_num_threads(2)
        fresh = attach(toy_model(), roles=BOTH)
        ZOSGD(fresh).resume(optimizer.trajectory)
    finally:
        torch.set_num_threads(1)
    assert same(bits(fresh), expected)


def test_the_loss_falls() -> None:
    model = toy_model(dtype=torch.float32)
    optimizer = ZOSGD(attach(model, roles=BOTH), lr=2e-2, eps=1e-2)
    closure = closure_of(model)
    first = float(closure())
    for _ in range(150):
        result = optimizer.step(closure)
    assert float(closure()) < 0.9 * first
    assert result.step == 149
    assert optimizer.steps == 150


def test_a_result_says_what_the_step_saw(model: ToyModel) -> None:
    optimizer = ZOSGD(attach(model), lr=0.5, eps=0.1, clip=1.0, probes=2)
    losses = iter([1.0, 0.2, 3.0, 2.8])
    result = optimizer.step(lambda: next(losses))
    assert result.loss == pytest.approx(1.75)
    assert result.derivative == pytest.approx((4.0 + 1.0) / 2)
    assert result.clipped
    assert (result.lr, result.step, result.moved) == (0.5, 0, 1.0)
    assert optimizer.trajectory.steps[0].derivatives == pytest.approx((1.0, 1.0))
    gone = [views.read() for views in optimizer.views]
    losses = iter([1.0] * 4)
    assert optimizer.step(lambda: next(losses)).derivative == 0.0
    assert all(same_bits(before, view.read()) for before, view in zip(gone, optimizer.views, strict=True))


def test_each_evaluation_sees_its_probe() -> None:
    views = attach(toy_model(dtype=torch.float32))
    seen: list[Tensor] = []

    def loss() -> float:
        seen.append(views[0].read())
        assert not torch.is_grad_enabled()
        return 1.0

    ZOSGD(views, eps=0.25, probes=2).step(loss)
    base = views.base("layers.l0.d")
    assert len(seen) == 4
    torch.testing.assert_close((seen[0] + seen[1]) / 2, base)
    torch.testing.assert_close((seen[2] + seen[3]) / 2, base)
    torch.testing.assert_close((seen[0] - base).abs(), (base * 0.25).abs())
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("evaluation", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [RuntimeError("cuda is gone"), KeyboardInterrupt()])
def test_a_raising_loss_is_undone_and_does_not_count(model: ToyModel, evaluation: int, error: BaseException) -> None:
    optimizer = ZOSGD(attach(model, roles=BOTH), probes=2)
    optimizer.step(closure_of(model))
    before, deltas = bits(optimizer.views), [optimizer.views.delta(key) for key in optimizer.views.keys]
    calls = itertools.count()

    def loss() -> Tensor:
        if next(calls) == evaluation:
            raise error
        return closure_of(model)()

    with pytest.raises(type(error)) as caught:
        optimizer.step(loss)
    assert caught.value is error
    assert same(bits(optimizer.views), before)
    assert all(same_bits(optimizer.views.delta(k), d) for k, d in zip(optimizer.views.keys, deltas, strict=True))
    assert optimizer.steps == 1
    assert same(after_one_more(optimizer, model), run_two_steps())


def after_one_more(optimizer: ZOSGD, model: ToyModel) -> dict[str, Tensor]:
    optimizer.step(closure_of(model))
    return bits(optimizer.views)


def run_two_steps() -> dict[str, Tensor]:
    model = toy_model()
    optimizer = ZOSGD(attach(model, roles=BOTH), probes=2)
    optimizer.step(closure_of(model))
    return after_one_more(optimizer, model)


@pytest.mark.parametrize("evaluation", [0, 1])
@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (float("nan"), "step 1: the loss is nan, expected a finite number. The step was undone; lower eps or lr, or"),
        (float("inf"), "step 1: the loss is inf, expected a finite number. The step was undone; lower eps or lr, or"),
        (torch.tensor(float("-inf")), "step 1: the loss is -inf, expected a finite number."),
        (torch.ones(3), "step 1: the closure returned a tensor of shape (3,), expected one number. The step was"),
        (None, "step 1: the closure returned a NoneType, expected one number. The step was undone; return the loss"),
    ],
)
def test_a_bad_loss_is_undone_and_counts_as_a_step_of_length_zero(
    model: ToyModel, evaluation: int, bad: Any, text: str
) -> None:
    optimizer = ZOSGD(attach(model, roles=BOTH))
    optimizer.step(closure_of(model))
    before, losses = bits(optimizer.views), iter([1.0] * evaluation + [bad])
    with pytest.raises(LossError) as caught:
        optimizer.step(lambda: next(losses))
    assert str(caught.value).startswith(text)
    assert same(bits(optimizer.views), before)
    assert optimizer.steps == 2
    assert optimizer.trajectory.steps[1].derivatives == (0.0,)
    optimizer.step(closure_of(model))
    fresh = attach(toy_model(), roles=BOTH)
    ZOSGD(fresh).resume(optimizer.trajectory)
    assert same(bits(fresh), bits(optimizer.views))


def test_losses_too_far_apart(model: ToyModel) -> None:
    optimizer = ZOSGD(attach(model))
    losses = iter([1.7e308, -1.7e308])
    with pytest.raises(LossError, match=r"step 0: the losses 1\.7e\+308 and -1\.7e\+308 have no finite difference"):
        optimizer.step(lambda: next(losses))
    assert not any(optimizer.views.delta(key).any() for key in optimizer.views.keys)


@pytest.mark.parametrize("rule", [SGD(), Momentum(), Adam()])
def test_an_interrupted_update_is_undone(model: ToyModel, monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    monkeypatch.setitem(buffer._CHUNK, "cpu", 128)
    optimizer = ZOSGD(attach(model, roles=BOTH), probes=2, rule=rule)
    optimizer.step(closure_of(model))
    before, remembered = bits(optimizer.views), [state.clone() for state in optimizer._run.movers[0].states[0]]
    moving, calls = Mover._tile, itertools.count()

    def interrupted(self: Mover, *arguments: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        moving(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Mover, "_tile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure_of(model))
    assert optimizer.steps == 1
    assert same(bits(optimizer.views), before)
    assert all(same_bits(a, b) for a, b in zip(optimizer._run.movers[0].states[0], remembered, strict=True))


def test_steps_lost_to_rounding_are_reported(model: ToyModel) -> None:
    optimizer = ZOSGD(attach(model), eps=1e-5)
    with pytest.warns(UserWarning, match=r"a probe of eps=1e-05 changes only 0\.0% of the values once they are stored"):
        assert optimizer.step(closure_of(model)).moved == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure_of(model))


def test_a_warning_made_an_error_leaves_no_trace(model: ToyModel) -> None:
    optimizer = ZOSGD(attach(model), eps=1e-4)
    before = bits(optimizer.views)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            optimizer.step(closure_of(model))
    assert same(bits(optimizer.views), before)
    assert optimizer.steps == 0


def test_float32_storage_moves_entirely() -> None:
    _, optimizer = run(1, dtype=torch.float32, eps=1e-4)
    assert optimizer.state_dict()["moved"] > 0.99


def test_a_scheduler_sets_the_rate(model: ToyModel) -> None:
    optimizer = ZOSGD(attach(model), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            rates.append(optimizer.step(closure_of(model)).lr)
            scheduler.step()
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], abs=1e-6)
    assert [step.rates[0] for step in optimizer.trajectory.steps] == rates


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lr", float("nan"), "ZOSGD: lr is nan, expected at least 0."),
        ("lr", -1.0, "ZOSGD: lr is -1.0, expected at least 0."),
        ("eps", 0.0, "ZOSGD: eps is 0.0, expected above 0."),
        ("clip", -1.0, "ZOSGD: clip is -1.0, expected above 0, or None."),
    ],
)
def test_rates_are_checked_at_every_step(model: ToyModel, name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match="ZOSGD") as at_once:
        ZOSGD(attach(model), **{name: value})  # type: ignore[arg-type]
    assert str(at_once.value) == text
    optimizer = ZOSGD(attach(model))
    optimizer.param_groups[0][name] = value
    before = bits(optimizer.views)
    with pytest.raises(ValueError, match="ZOSGD") as later:
        optimizer.step(closure_of(model))
    assert str(later.value) == text
    assert same(bits(optimizer.views), before)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"probes": 0}, "ZOSGD: probes is 0, expected at least 1."),
        ({"estimator": FZOO()}, "ZOSGD: probes is 1, expected at least 2."),
        (
            {"estimator": "two-point"},
            "ZOSGD: estimator is 'two-point', expected one of two-point, one-sided, fzoo, group-relative.",
        ),
        ({"rule": "sgd"}, "rule is 'sgd', expected one of sgd, momentum, sign, adam."),
        ({"decay": -1.0}, "ZOSGD: decay is -1.0, expected at least 0."),
        ({"lr": 0.5, "decay": 4.0}, "ZOSGD: lr is 0.5, expected at most 1 / decay = 0.25: more leaps over the base."),
        ({"noise": "uniform"}, "noise is 'uniform', expected one of rademacher, gaussian, sphere."),
        ({"space": "log"}, "ZOSGD: space is 'log', expected one of relative, absolute."),
        ({"lr": float("inf")}, "ZOSGD: lr is inf, expected at least 0."),
    ],
)
def test_settings_are_checked(model: ToyModel, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        ZOSGD(attach(model), **settings)
    assert str(caught.value) == text


def test_training_starts_at_the_base() -> None:
    _, optimizer = run(2)
    with pytest.raises(BaseMismatchError, match=r"the views hold a delta, expected their base.*views\.reset\(\)"):
        ZOSGD(optimizer.views)
    optimizer.views.reset()
    ZOSGD(optimizer.views)


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize(
    "carry",
    [
        carried_by_state,
        lambda old, new: new.load_state_dict(old.state_dict()),
        lambda old, new: new.resume(old.trajectory),
    ],
    ids=["torch.load", "state_dict", "resume"],
)
def test_resumed_is_uninterrupted(carry: Callable[[ZOSGD, ZOSGD], None], probes: int) -> None:
    settings: dict[str, Any] = {"seed": 3, "probes": probes, "lr": 2e-2, "clip": 0.3, "noise": "gaussian"}
    check_it_goes_on(lambda model: ZOSGD(attach(model, roles=BOTH), **settings), steps_of, carry)


def test_state_dict_brings_all_settings_along() -> None:
    _, old = run(2, seed=9, probes=2, lr=0.3, eps=0.2, clip=0.7, noise="gaussian", space="absolute")
    new = ZOSGD(attach(toy_model(), roles=BOTH))
    new.load_state_dict(old.state_dict())
    assert (new.seed, new.probes, new.views.space) == (9, 2, "absolute")
    assert new.trajectory.groups[0].noise == Noise("gaussian")
    group = new.param_groups[0]
    assert (group["lr"], group["eps"], group["clip"]) == (0.3, 0.2, 0.7)
    state = old.state_dict()
    assert state.keys() == {"state", "param_groups", "seed", "probes", "moved", "trajectory"}
    assert state["trajectory"]["seeds"].shape == (2, 2)


class Pair:
    """Two scales of one shape in one layer: `w = d q + m`."""

    name = "pair"

    def open(self, module: nn.Module) -> list[TensorView]:
        return [TensorView(name, "scale", cast(Tensor, getattr(module, name))) for name in ("d", "m")]

    def dequantize(self, module: nn.Module) -> Tensor:
        return cast(Tensor, module.d) * cast(Tensor, module.q) + cast(Tensor, module.m)

    def sample_input(self, module: nn.Module) -> Tensor:
        return torch.ones(2, 4)


class PairLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("q", torch.randint(0, 16, (3, 4), generator=generator).float())
        self.register_buffer("d", torch.rand(3, 1, generator=generator) + 0.5)
        self.register_buffer("m", -torch.rand(3, 1, generator=generator) - 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x @ Pair().dequantize(self).t()


def test_coupled_scales_rescale_the_weight_as_a_whole() -> None:
    with registered(Pair(), PairLinear):
        model = nn.Sequential(PairLinear(), PairLinear())
        before = [Pair().dequantize(layer) for layer in model]
        views = attach(model)
        assert views.coupled_keys() == [("0.d", "0.m"), ("1.d", "1.m")]
        optimizer = ZOSGD(views, lr=0.1, clip=0.5)
        for _ in range(3):
            optimizer.step(lambda: model[1](model[0](torch.ones(1, 4))[:, [0, 1, 2, 0]]).square().sum())
        for index, layer in enumerate(model):
            factor = 1 + views.delta(f"{index}.d")
            assert same_bits(views.delta(f"{index}.d"), views.delta(f"{index}.m"))
            torch.testing.assert_close(Pair().dequantize(layer), factor * before[index])
            assert not torch.allclose(factor, torch.ones_like(factor))


def test_coupled_noise_is_the_same_for_any_subset_of_views() -> None:
    with registered(Pair(), PairLinear):
        both, alone = attach(PairLinear()), attach(PairLinear(), include="m")
        for views in (both, alone):
            views.add(3, 0.5, "rademacher")
        assert same_bits(both.delta("m"), alone.delta("m"))


def test_coupled_scales_do_not_move_in_absolute_space() -> None:
    with registered(Pair(), PairLinear):
        with pytest.raises(ValueError, match="d and m share their delta"):
            ZOSGD(attach(PairLinear()), space="absolute")
        ZOSGD(attach(PairLinear(), coupled=False), space="absolute")


def test_a_saved_state_stays_as_it_was() -> None:
    _, optimizer = run(2)
    state = optimizer.state_dict()
    model = toy_model()
    other = ZOSGD(attach(model, roles=BOTH))
    other.load_state_dict(state)
    steps_of(other, model, 1)
    assert len(state["trajectory"]["seeds"]) == 2
    assert optimizer.steps == 2


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"probes": 2}, "ZOSGD: probes is 2, expected 1, as in the trajectory."),
        (
            {"noise": "gaussian"},
            f"ZOSGD: noise is {Noise('gaussian')!r}, expected {Noise('rademacher')!r}, as in the trajectory.",
        ),
        ({"rule": Sign()}, "ZOSGD: rule is Sign(), expected SGD(), as in the trajectory."),
        ({"estimator": OneSided()}, "ZOSGD: estimator is 'one-sided', expected 'two-point', as in the trajectory."),
        ({"decay": 0.5}, "ZOSGD: decay is 0.5, expected 0.0, as in the trajectory."),
        ({"space": "absolute"}, "ZOSGD: space is 'absolute', expected 'relative', as in the trajectory."),
    ],
)
def test_resume_wants_the_same_settings(settings: dict[str, Any], text: str) -> None:
    _, optimizer = run(2)
    other = ZOSGD(attach(toy_model(), roles=BOTH), **settings)
    with pytest.raises(ValueError, match="as in the trajectory") as caught:
        other.resume(optimizer.trajectory)
    assert str(caught.value) == text
    assert other.steps == 0


def test_another_base_is_refused() -> None:
    _, optimizer = run(2)
    stranger = ZOSGD(attach(toy_model(seed=1), roles=BOTH))
    before = bits(stranger.views)
    carriers: tuple[Callable[[], None], ...] = (
        lambda: stranger.resume(optimizer.trajectory),
        lambda: stranger.load_state_dict(optimizer.state_dict()),
    )
    for carry in carriers:
        with pytest.raises(BaseMismatchError, match=r"made on another base: layers\.l0\.d has fingerprint"):
            carry()
        assert same(bits(stranger.views), before)
        assert stranger.steps == 0
    fewer = ZOSGD(attach(toy_model()))
    with pytest.raises(BaseMismatchError, match=r"trajectory: made for layers\.l0\.m, which does not exist here"):
        fewer.resume(optimizer.trajectory)


def test_a_damaged_state_changes_nothing() -> None:
    _, optimizer = run(2)
    before = bits(optimizer.views)
    state = optimizer.state_dict()
    state["trajectory"].pop("lr")
    with pytest.raises(CheckpointError, match=r"^state_dict: expected seeds, derivatives, lr\."):
        optimizer.load_state_dict(state)
    assert same(bits(optimizer.views), before)
    assert optimizer.steps == 2


def test_zeros_that_cannot_move_in_relative_space_are_named() -> None:
    model = torch.nn.Linear(4, 4)
    torch.nn.init.zeros_(model.bias)
    views = attach(model, roles=("dense",))
    with pytest.warns(UserWarning, match=r"1 of the views, such as bias, are zero everywhere.*space='absolute'"):
        ZOSGD(views)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZOSGD(views, space="absolute")


def test_losses_that_no_probe_changes_are_said_once(model: ToyModel) -> None:
    optimizer, batch = ZOSGD(attach(model)), toy_batch()
    other = toy_model()

    def steps(count: int, trained: nn.Module) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(count):
                optimizer.step(lambda: toy_loss(trained, batch))
        return [str(warning.message) for warning in caught]

    assert steps(7, other) == []
    assert steps(1, model) == []
    (said,) = steps(20, other)
    assert said.startswith("the derivatives of 8 steps in a row are exactly 0: no probe changed the loss")
