"""The trajectory: what it keeps, and that replaying it gives the run's bytes."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.toy import toy_batch, toy_loss, toy_model
from zoquant import ZOSGD, BoundView, ScaleView, TensorView, Trajectory, Views, attach, replay, save_delta
from zoquant.errors import BaseMismatchError, CheckpointError, ValueRangeError
from zoquant.files.atomic_files import load_tensors
from zoquant.kernels.noise.definition import Noise
from zoquant.record.group import Group
from zoquant.record.rules import SGD, Adam, Momentum, Rule, Sign
from zoquant.record.step import MOST_AMOUNT, MOST_MOVE, Step
from zoquant.testing.tensors import same_bits

finite = st.floats(-1e12, 1e12)


def run(steps: int = 4, **settings: Any) -> ZOSGD:
    model = toy_model()
    optimizer = ZOSGD(attach(model), lr=2e-2, seed=8, **settings)
    for step in range(steps):
        optimizer.step(lambda step=step: toy_loss(model, toy_batch(seed=step)))
    return optimizer


def bits(views: Views) -> dict[str, Tensor]:
    return {view.name: view.read() for view in views}


@pytest.fixture
def optimizer() -> ZOSGD:
    return run()


@pytest.fixture
def file(tmp_path: Path, optimizer: ZOSGD) -> Path:
    path = tmp_path / "trajectory.safetensors"
    optimizer.trajectory.save(path)
    return path


def test_replayed_from_its_file(file: Path, optimizer: ZOSGD, tmp_path: Path) -> None:
    views = attach(toy_model(order=(2, 1, 0)))
    done = replay(str(file), views)
    assert list(done) == optimizer.trajectory.steps
    expected = bits(optimizer.views)
    assert all(same_bits(view.read(), expected[view.name]) for view in views)
    one, two = tmp_path / "one", tmp_path / "two"
    save_delta(one, views)
    save_delta(two, optimizer.views)
    assert one.read_bytes() == two.read_bytes()


def test_replayed_over_something_else(file: Path, optimizer: ZOSGD) -> None:
    views = run(2, space="absolute").views
    replay(file, views)
    assert views.space == "relative"
    expected = bits(optimizer.views)
    assert all(same_bits(view.read(), expected[view.name]) for view in views)


def test_a_negative_number_of_steps(file: Path) -> None:
    with pytest.raises(ValueError, match="steps is -1, expected 0 or more"):
        replay(file, attach(toy_model()), steps=-1)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_replayed_in_part(file: Path, steps: int) -> None:
    views, expected = attach(toy_model()), bits(run(steps).views)
    assert len(replay(file, views, steps=steps)) == steps
    assert all(same_bits(view.read(), expected[view.name]) for view in views)


@given(
    st.lists(st.tuples(st.tuples(st.integers(0, 2**63 - 1), finite), st.tuples(st.floats(0, 1), finite)), max_size=4),
    st.sampled_from(("relative", "absolute")),
    st.sampled_from((Noise("gaussian"), Noise("sphere", 0.5, "view"))),
    st.booleans(),
    st.sampled_from((SGD(), Momentum(0.5), Sign(), Adam(0.5, 0.9, 1e-4))),
)
def test_round_trip(rows: list[Any], space: Any, noise: Noise, coupled: bool, rule: Rule) -> None:
    steps = [Step((seed, seed // 2), (d, -d), (lr,)) for (seed, d), (lr, _) in rows]
    trajectory = Trajectory((Group({"a.d": "00ff"}, space, noise, coupled, rule, 0.25),), "fzoo", steps=steps)
    assert Trajectory.from_dict(trajectory.to_dict()) == trajectory
    assert trajectory.probes == (2 if steps else 0)


def test_saved_and_loaded(file: Path, optimizer: ZOSGD) -> None:
    assert Trajectory.load(file) == optimizer.trajectory
    assert file.stat().st_size < 1000


def test_an_empty_run(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    run(0).trajectory.save(path)
    views = attach(toy_model())
    assert list(replay(path, views)) == []
    assert all(same_bits(view.read(), views.base(view.name)) for view in views)


def test_a_copy_is_left_alone(optimizer: ZOSGD) -> None:
    copy = optimizer.trajectory.copy()
    optimizer.trajectory.steps.append(Step((1,), (1.0,), (1.0,)))
    optimizer.trajectory.groups[0].base["x"] = "y"
    assert (len(copy.steps), "x" in copy.base) == (4, False)


def rewrite(path: Path, change: dict[str, Any] | None = None, **tensors: Tensor | None) -> None:
    metadata = load_tensors(path, "trajectory")[1]
    values = {
        key: value for key, value in {**safetensors.torch.load_file(path), **tensors}.items() if value is not None
    }
    path.write_bytes(safetensors.torch.save(values, {"zoquant": json.dumps({**metadata, **(change or {})})}))


@pytest.mark.parametrize(
    ("change", "tensors", "error", "text"),
    [
        ({"version": 7}, {}, CheckpointError, "trajectory of version 7, expected 2. Replay it with the zoquant that"),
        ({"kind": "delta"}, {}, CheckpointError, "expected a zoquant trajectory, got a delta."),
        ({"noise_version": 2}, {}, CheckpointError, "trajectory of noise version 2, expected 1. Replay it with the"),
        ({"noise": {"kind": "uniform"}}, {}, CheckpointError, "the header is not that of a trajectory: noise is 'uni"),
        ({"noise": "gaussian"}, {}, CheckpointError, "the header is not that of a trajectory: "),
        ({"rule": {"name": "lion"}}, {}, CheckpointError, "the header is not that of a trajectory: rule is 'lion'"),
        ({"rule": {"name": "sgd", "beta": 1}}, {}, CheckpointError, "the header is not that of a trajectory: rule sgd"),
        ({"decay": None}, {}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({"coupled": None}, {}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({"space": "log"}, {}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({"base": []}, {}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({}, {"lr": None}, CheckpointError, "expected seeds, derivatives, lr. Is the file whole?"),
        ({}, {"lr": torch.ones(3).double()}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({}, {"seeds": torch.ones(4).long()}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({}, {"seeds": torch.ones(4, 1)}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        ({}, {"seeds": -torch.ones(4, 1).long()}, CheckpointError, "the parts do not fit together. Is the file whole"),
        ({}, {"derivatives": torch.ones(4, 1)}, CheckpointError, "the parts do not fit together. Is the file whole?"),
        (
            {}, {"derivatives": torch.full((4, 1), float("nan")).double()}, ValueRangeError,
            "step 0 moves by 0.02 times nan, expected finite numbers. Nothing was changed.",
        ),
        ({}, {"lr": torch.full((4,), float("inf")).double()}, ValueRangeError, "step 0 moves by inf times "),
        ({}, {"lr": -torch.ones(4).double()}, ValueRangeError, "step 0 has a rate of -1 with a decay of 0, expected"),
        ({"decay": 51.0}, {}, ValueRangeError, "step 0 has a rate of 0.02 with a decay of 51, expected from 0 to 1"),
        (
            {}, {"derivatives": torch.ones(4, 2).double()}, CheckpointError,
            "the parts do not fit together. Is the file whole?",
        ),
        (
            {"subspace": "rows-columns", "space": "absolute"}, {}, CheckpointError,
            "the parts do not fit together. Is the file whole?",
        ),
    ],
)  # fmt: skip
def test_damage_is_refused(
    file: Path, change: dict[str, Any], tensors: dict[str, Tensor | None], error: type[Exception], text: str
) -> None:
    rewrite(file, change, **tensors)
    views = attach(toy_model())
    with pytest.raises(error) as caught:
        replay(file, views)
    assert str(caught.value).startswith(f"{file}: {text}")
    assert all(same_bits(view.read(), views.base(view.name)) for view in views)


def test_cut_short_anywhere(file: Path) -> None:
    views, data = attach(toy_model()), file.read_bytes()
    for cut in range(len(data)):
        file.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"trajectory\.safetensors: "):
            replay(file, views)


def test_another_base_and_other_views_are_refused(file: Path) -> None:
    stranger = attach(toy_model(seed=1))
    with pytest.raises(
        BaseMismatchError, match=r"made on another base: layers\.l0\.d has fingerprint [0-9a-f]{16}, exp"
    ):
        replay(file, stranger)
    more = attach(toy_model(), roles=("scale", "zero"))
    with pytest.raises(BaseMismatchError, match=r"^these views: made for layers\.l0\.m, which does not exist here"):
        replay(file, more)
    fewer = attach(toy_model(), exclude="*.l1.*")
    with pytest.raises(BaseMismatchError, match=r"made for layers\.l1\.d, which does not exist here"):
        replay(file, fewer)


@pytest.mark.parametrize(
    ("rule", "lr", "derivative"),
    [(SGD(), 1.0, 3e38), (SGD(), 1.0, 1e13), (Sign(), 3e38, 1.0), (Momentum(0.999), 1.0, 1e38), (Adam(), 1e-3, 1e20)],
)
def test_steps_whose_sums_float32_does_not_hold_are_refused(rule: Rule, lr: float, derivative: float) -> None:
    """Each is a number of float32; a few of them, or a square of it, are none."""
    views = attach(toy_model(dtype=torch.float32))
    run = Trajectory((Group(views.fingerprints(), coupled=True, rule=rule),), steps=[Step((5,), (derivative,), (lr,))])
    with pytest.raises(ValueRangeError, match=r"step 0 moves by .* times .*, of which float32 holds all sums"):
        replay(Trajectory.from_dict(run.to_dict()), views)
    assert not any(buffer.delta.any() for buffer in views.buffers)


@pytest.mark.parametrize("rule", [SGD(), Momentum(0.999), Sign(), Adam()])
@pytest.mark.parametrize("subspace", ["values", "rows-columns"])
def test_the_longest_steps_that_are_taken_leave_finite_numbers(rule: Rule, subspace: Any) -> None:
    roles: Any = ("scale", "zero")
    views = attach(toy_model(dtype=torch.float32), roles=roles)
    group = Group(views.fingerprints(), noise=Noise("gaussian"), coupled=True, rule=rule)
    for rate, amount in ((MOST_MOVE, 1.0), (MOST_MOVE / MOST_AMOUNT, MOST_AMOUNT), (1e-30, MOST_AMOUNT)):
        steps = [Step((5,), (amount,), (rate,)), Step((5,), (-amount,), (rate,))] * 8
        run = Trajectory((group,), subspace=subspace, steps=steps + [Step((5,), (amount,), (rate,))] * 16)
        replay(Trajectory.from_dict(run.to_dict()), views)
        assert all(bool(buffer.delta.isfinite().all()) for buffer in views.buffers)
        assert all(bool(view.read().isfinite().all()) for view in views)


def test_shared_deltas_in_absolute_space_are_refused() -> None:
    two: list[ScaleView] = [TensorView(name, "scale", torch.ones(3)) for name in ("d", "m")]
    views = Views([BoundView(f"a.{view.name}", view, "pair") for view in two], coupled=True)
    assert views.coupled_keys() == [("a.d", "a.m")]
    run = Trajectory((Group(views.fingerprints(), "absolute", coupled=True),))
    with pytest.raises(BaseMismatchError, match=r"share their delta, which is only right in relative space"):
        replay(run, views)


def test_a_step_has_no_group_beyond_its_own() -> None:
    step = Step((1,), (0.5,), (0.1,))
    assert step.of(0) is step
    with pytest.raises(IndexError):
        step.of(1)
