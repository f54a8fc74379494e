"""Ranks in step: their bytes are those of one process, and who differs is named."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import zoquant
from tests.distributed.processes import closures, enter_group, held, on_ranks, spread, toy_views
from tests.toy import toy_model
from zoquant.distributed import DistributedZO
from zoquant.distributed.agreement import checksum, odd_ones
from zoquant.errors import LossError, RankError
from zoquant.optim.estimators import ESTIMATORS, RobustClip
from zoquant.record.rules import Momentum
from zoquant.record.step import Step

STEPS = 4
WEIGHTS = [3.0, 1.0, 2.0]


def optimizer_of(name: str = "two-point", probes: int = 1, seed: int = 0) -> tuple[Any, zoquant.ZOSGD]:
    model, views = toy_views()
    estimator = ESTIMATORS[name]()
    return model, zoquant.ZOSGD(
        views, lr=3e-3, eps=1e-2, probes=probes, seed=seed, estimator=estimator, rule=Momentum(0.5), clip=RobustClip()
    )


def train(stepper: Any, model: Any, parts: int, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        if parts == 1:
            stepper.step(closures(model, step, 1)[0])
        else:
            stepper.step(closures(model, step, parts), WEIGHTS[:parts])


def alone(name: str, probes: int, parts: int, steps: int = STEPS) -> dict[str, Any]:
    model, optimizer = optimizer_of(name, probes)
    train(optimizer, model, parts, last=steps)
    return held(optimizer)


def together(rank: int, name: str, probes: int, parts: int, axes: dict[str, int] | None) -> dict[str, Any]:
    model, optimizer = optimizer_of(name, probes)
    mesh = None if axes is None else init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))
    stepper = DistributedZO(optimizer, mesh, audit_every=3)
    train(stepper, model, parts)
    stepper.check()
    return held(optimizer)


CASES = [
    (2, "two-point", 1, 1, None), (2, "two-point", 1, 3, {"data": 2}), (2, "one-sided", 2, 2, {"probe": 2}),
    (2, "group-relative", 2, 2, {"sign": 2}), (4, "two-point", 2, 3, None),
    (4, "two-point", 2, 2, {"data": 2, "sign": 2}), (4, "fzoo", 3, 2, {"probe": 2, "data": 2}),
    (3, "two-point", 1, 1, None),
]  # fmt: skip


@pytest.mark.parametrize(("world", "name", "probes", "parts", "axes"), CASES)
def test_ranks_hold_the_bytes_of_one_process(
    world: int, name: str, probes: int, parts: int, axes: dict[str, int] | None
) -> None:
    expected = alone(name, probes, parts)
    assert len(expected["steps"]) == STEPS
    for found in on_ranks(world, together, name, probes, parts, axes):
        assert found == expected


def optimizer_of_groups(seed: int = 0) -> tuple[Any, zoquant.ZOSGD]:
    """Scales in relative space and zeros in absolute space, each with numbers and a rule of its own."""
    model = toy_model(seed)
    scales, zeros = zoquant.attach(model), zoquant.attach(model, roles=("zero",))
    groups = [
        {"views": scales, "lr": 3e-3, "eps": 1e-2, "rule": Momentum(0.5), "clip": RobustClip()},
        {"views": zeros, "lr": 1e-3, "eps": 2e-2, "space": "absolute", "noise": "gaussian"},
    ]
    return model, zoquant.ZOSGD(groups, probes=2)


def groups_together(rank: int, behind: bool) -> dict[str, Any]:
    model, optimizer = optimizer_of_groups()
    if behind and rank == 0:
        train(optimizer, model, 2, last=2)  # the other rank gets these steps of both groups when it joins
    stepper = DistributedZO(optimizer, audit_every=3)
    train(stepper, model, 2, first=optimizer.steps)
    stepper.check()
    return held(optimizer)


@pytest.mark.parametrize("behind", [False, True], ids=["from the start", "one joins later"])
def test_groups_of_ranks_hold_the_bytes_of_one_process(behind: bool) -> None:
    model, optimizer = optimizer_of_groups()
    train(optimizer, model, 2)
    expected = held(optimizer)
    assert {len(rates) for _, _, rates in expected["steps"]} == {2}
    assert [found == expected for found in on_ranks(2, groups_together, behind)] == [True, True]


def two_halves(rank: int) -> tuple[float, dict[str, Any]]:
    """A layer split over two ranks, as tensor-parallel models are: one forward is the work of both."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tp"))
    model, views = toy_views()
    optimizer = zoquant.ZOSGD(views, lr=3e-3, eps=1e-2)
    stepper = DistributedZO(optimizer, mesh)
    half = [mesh.get_local_rank("tp")] * 4

    def closure(part: int) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            x = torch.full((2, 8), float(part + half[0]))
            own: torch.Tensor = model(x).square().sum()
            dist.all_reduce(own, group=mesh.get_group("tp"))
            return own

        return loss

    for _ in range(2):
        result = stepper.step([closure(0), closure(1)])
    return result.loss, held(optimizer)


def test_a_model_split_over_ranks_is_one_worker() -> None:
    found = on_ranks(4, two_halves)
    assert len({loss for loss, _ in found}) == 1
    assert all(bytes_of == found[0][1] for _, bytes_of in found)


def halves_of_groups(rank: int) -> int:
    """Each of two ranks holds other values of both groups."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    _, optimizer = optimizer_of_groups(seed=rank)
    stepper = DistributedZO(optimizer, mesh)
    for step in range(2):
        stepper.step(lambda step=step: 0.5 * step)
    return optimizer.steps


def test_parts_of_a_model_have_groups_of_bases_of_their_own() -> None:
    assert on_ranks(2, halves_of_groups) == [2, 2]


def fails(rank: int, kind: str) -> tuple[str, str, int, bool]:
    model, optimizer = optimizer_of()
    stepper = DistributedZO(optimizer)
    train(stepper, model, 1, last=2)
    before = held(optimizer)

    def wrong() -> float:
        if kind == "nan":
            return math.nan
        if kind == "shape":
            return torch.zeros(2)  # type: ignore[return-value]
        raise KeyError("no such row")

    closure = wrong if rank == 1 else closures(model, 2, 1)[0]
    error = ""
    try:
        stepper.step(closure)
    except (LossError, RankError, KeyError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    same = held(optimizer)["stored"] == before["stored"]
    steps = optimizer.steps
    train(stepper, model, 1, first=3, last=4)
    stepper.check()
    return error.partition(":")[0], error, steps, same


@pytest.mark.parametrize("kind", ["nan", "shape"])
def test_a_loss_that_is_no_number_undoes_the_step_on_all_ranks(kind: str) -> None:
    for name, _, steps, same in on_ranks(2, fails, kind):
        assert (name, steps, same) == ("LossError", 3, True)


def test_a_rank_that_fails_is_named_and_no_rank_waits() -> None:
    (first, message, steps, same), (second, _, _, also) = on_ranks(2, fails, "raises")
    assert (first, second) == ("RankError", "KeyError")
    assert "rank 1 failed" in message
    assert (steps, same, also) == (2, True, True)


def corrupted(rank: int, wrong: int, what: str) -> str:
    model, optimizer = optimizer_of(probes=2)
    stepper = DistributedZO(optimizer, audit_every=1)
    train(stepper, model, 1, last=2)
    before = optimizer.steps
    if rank == wrong:
        if what == "delta":
            optimizer.views.buffers[0].delta.view(torch.int32)[3] ^= 1
        elif what == "steps":
            optimizer.trajectory.steps[-1] = optimizer.trajectory.steps[0]
        elif what == "eps":
            optimizer.param_groups[0]["eps"] *= 2
        else:  # a code of the model: no checksum of deltas sees it
            model.layers["l0"].packed.codes[0, 0, 0] ^= 64
    try:
        train(stepper, model, 1, first=2, last=3)
    except RankError as error:
        assert optimizer.steps == before
        return str(error)
    return ""


@pytest.mark.parametrize("what", ["delta", "steps", "eps", "code"])
def test_a_corrupted_rank_is_named_within_a_step(what: str) -> None:
    messages = on_ranks(4, corrupted, 2, what)
    assert all("rank 2 does not" in message for message in messages), messages


def test_of_two_ranks_the_one_with_the_wrong_delta_is_named() -> None:
    assert all("rank 1 does not hold the delta" in message for message in on_ranks(2, corrupted, 1, "delta"))


def test_where_there_is_no_majority_all_are_named() -> None:
    assert all("ranks 0, 1 do not agree with each other" in message for message in on_ranks(2, corrupted, 1, "code"))


def late(rank: int, folder: str) -> list[dict[str, Any]]:
    """Two ranks do three steps; a third one comes, which has done none; one leaves and comes back."""
    seen = []
    model, optimizer = optimizer_of()
    for number, (world, first, last) in enumerate([(2, 0, 3), (3, 3, 5), (2, 5, 6), (3, 6, 8)]):
        if rank < world:
            enter_group(rank, world, folder, f"group{number}")
            stepper = DistributedZO(optimizer)
            train(stepper, model, 3, first, last)
            stepper.check()
            dist.destroy_process_group()
            seen.append(held(optimizer))
    return seen


def test_a_rank_that_joins_late_or_comes_back_replays_what_it_missed() -> None:
    first, second, third = spread(3, late)
    expected = [alone("two-point", 1, 3, steps) for steps in (3, 5, 6, 8)]
    assert first == second == expected
    assert third == [expected[1], expected[3]]


def strangers(rank: int, what: str) -> str:
    model, optimizer = optimizer_of(
        probes=1 + rank // 2 if what == "probes" else 1, seed=rank // 2 if what == "seed" else 0
    )
    if what == "steps":
        train(optimizer, model, 1, first=rank // 2, last=3 + rank // 2)
    if what == "tail" and rank:
        train(optimizer, model, 1, first=rank, last=1 + 2 * rank)
    if what == "base" and rank == 1:
        model.layers["l0"].packed.value("d").mul_(2)
        optimizer = zoquant.ZOSGD(zoquant.attach(model, roles=("scale", "zero")), rule=Momentum(0.5))
    if what == "long" and rank == 1:
        optimizer.trajectory.steps.append(Step((7,), (1e300,), (1e-3,)))
    before = held(optimizer)
    try:
        DistributedZO(optimizer)
    except RankError as error:
        assert held(optimizer) == before
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("steps", "rank 2 does not agree"), ("tail", "rank 1 cannot join rank 2, which has done 3"),
        ("base", "base differs"), ("seed", "rank 2 does not agree"), ("probes", "rank 2 does not agree"),
        ("long", "Step 0 moves by 0.001 times 1e+300, expected at most 1e+12"),
    ],
)  # fmt: skip
def test_ranks_of_different_runs_do_not_join(what: str, message: str) -> None:
    messages = on_ranks(3, strangers, what)
    assert all(messages)
    assert any(message in text for text in messages), messages


def measures_bytes(rank: int) -> tuple[int, int]:
    optimizer = optimizer_of(probes=4)[1]
    stepper = DistributedZO(optimizer)
    sent: list[int] = []
    gather = dist.all_gather

    def counting(rows: list[torch.Tensor], own: torch.Tensor) -> None:
        sent.append(own.numel() * own.element_size())
        gather(rows, own)

    dist.all_gather = counting  # type: ignore[assignment]
    stepper.step([lambda: 0.5, lambda: 0.25])
    return sum(sent), stepper.bytes_a_step(2)


def test_only_scalars_travel() -> None:
    for sent, said in on_ranks(2, measures_bytes):
        assert sent == said == 8 * (3 + 8)


def test_a_single_changed_element_changes_the_checksum() -> None:
    delta = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for place in (0, 255, 256, 999):
        other = delta.clone()
        other.view(torch.int32)[place] ^= 1
        assert checksum([other]) != checksum([delta])
    assert checksum([delta[:512], delta[512:]]) != checksum([delta[512:], delta[:512]])


def test_the_odd_ones_are_those_outside_the_majority() -> None:
    assert odd_ones({0: 5, 1: 5, 2: 5}) == []
    assert odd_ones({0: 5, 1: 6, 2: 5}) == [1]
    assert odd_ones({0: 5, 1: 6}) == [0, 1]
    assert odd_ones({0: 1, 1: 2, 2: 3}) == [0, 1, 2]
    assert odd_ones({3: None}) == []
