"""Workers that wait for nobody: the order of the log makes all of them, and every replay, come to the same bytes."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

import zoquant
from examples.slow_links import AsyncZO, LoggedStep, StepLog, weight_of
from tests.distributed.processes import closures, held, spread, toy_views
from tests.toy import ToyModel
from zoquant.errors import BaseMismatchError, LossError, RankError
from zoquant.record.group import Group
from zoquant.record.rules import Momentum
from zoquant.record.step import Step

STEPS = 30


def worker_of(
    store: Any, worker: int = 0, *, trajectory: zoquant.Trajectory | None = None, eps: float = 1e-2, **settings: Any
) -> tuple[ToyModel, AsyncZO]:
    model, views = toy_views()
    optimizer = zoquant.ZOSGD(views, lr=1e-3, eps=eps, seed=5, rule=Momentum(0.5))
    if trajectory is not None:
        optimizer.resume(trajectory)
    return model, AsyncZO(optimizer, store, worker=worker, **settings)


def do(worker: AsyncZO, model: ToyModel, steps: int = 1) -> list[Any]:
    return [worker.step(closures(model, worker.optimizer.steps, 1)[0]) for _ in range(steps)]


def slowly(seconds: float, closure: Callable[[], Tensor]) -> Tensor:
    time.sleep(seconds)
    return closure()


def run_worker(number: int, port: int, folder: str) -> tuple[dict[str, Any], list[tuple[int, int, float]], float]:
    store = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
    model, worker = worker_of(store, number, steps=STEPS, oldest=4)
    seen, start = [], time.perf_counter()
    while not worker.finished:
        loss = closures(model, worker.optimizer.steps, 1)[0]
        result = worker.step(partial(slowly, 0.3 if number == 3 else 0.005, loss))  # type: ignore[arg-type]
        if result is not None:
            seen.append((result.slot, result.age, result.weight))
    return held(worker.optimizer), seen, time.perf_counter() - start


def test_four_workers_and_a_slow_one_come_to_the_same_bytes() -> None:
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = spread(4, run_worker, host.port)
    bytes_of, seen, seconds = zip(*found, strict=True)
    assert len(bytes_of[0]["steps"]) == STEPS
    assert all(each == bytes_of[0] for each in bytes_of)
    slots = sorted(slot for results in seen for slot, _, _ in results)
    assert slots == list(range(STEPS))
    assert all(weight == weight_of(age, 4) for results in seen for _, age, weight in results)
    assert len(seen[3]) < min(len(results) for results in seen[:3])
    assert max(seconds) < 0.6 * STEPS / 2  # nobody waited for the slow one at each step
    views = toy_views()[1]
    group = Group(views.fingerprints(), coupled=views.coupled, rule=Momentum(0.5))
    trajectory = zoquant.Trajectory((group,), steps=[Step(*step) for step in bytes_of[0]["steps"]])
    zoquant.replay(trajectory, views)
    assert {key: views.delta(key).numpy().tobytes() for key in views.keys} == bytes_of[0]["delta"]


def test_one_worker_alone_waits_for_no_age() -> None:
    model, worker = worker_of(HashStore())
    results = do(worker, model, 3)
    assert [(result.slot, result.age, result.weight) for result in results] == [(0, 0, 1.0), (1, 0, 1.0), (2, 0, 1.0)]
    assert worker.optimizer.trajectory.steps[-1].derivatives[0] == results[-1].derivative


def test_a_stale_step_is_weighted_and_a_very_stale_one_dropped() -> None:
    store = HashStore()
    fast_model, fast = worker_of(store, 0, oldest=2)
    slow_model, slow = worker_of(store, 1, oldest=2)
    loss = closures(slow_model, 0, 1)[0]

    def after(others: int) -> Any:
        do(fast, fast_model, others)
        return loss()

    for others, weight in ((1, 1 / 2), (2, 1 / 3), (3, 0.0)):
        done = fast.optimizer.steps
        result = slow.step(once(partial(after, others), loss))
        assert result is not None
        assert (result.age, result.weight) == (others, weight)
        applied = slow.optimizer.trajectory.steps[-1].derivatives[0]
        assert applied == weight * result.derivative
        fast.pull()
        assert held(fast.optimizer) == held(slow.optimizer)
        assert fast.optimizer.steps == done + others + 1


def once(first: Callable[[], Any], then: Callable[[], Any]) -> Callable[[], Any]:
    """Return a closure that is another one at its first call."""
    calls = iter([first])
    return lambda: next(calls, then)()


def test_a_late_worker_does_what_the_log_holds() -> None:
    store = HashStore()
    model, first = worker_of(store)
    do(first, model, 5)
    _, second = worker_of(store, 1)
    assert held(second.optimizer) == held(first.optimizer)


def test_a_resumed_trajectory_is_put_into_a_new_log() -> None:
    model, first = worker_of(HashStore())
    do(first, model, 5)
    store = HashStore()
    _, again = worker_of(store, 1, trajectory=first.optimizer.trajectory)
    _, other = worker_of(store, 2)
    assert held(first.optimizer) == held(again.optimizer) == held(other.optimizer)


def test_the_run_ends_where_it_shall() -> None:
    store = HashStore()
    model, worker = worker_of(store, steps=2)
    other_model, other = worker_of(store, 1, steps=2)
    do(worker, model, 2)
    assert worker.finished
    assert do(other, other_model) == [None]
    assert held(other.optimizer) == held(worker.optimizer)


def test_a_step_that_was_measured_too_late_for_the_end_is_left_out() -> None:
    store = HashStore()
    model, worker = worker_of(store, steps=2)
    other_model, other = worker_of(store, 1, steps=2)
    loss = closures(other_model, 0, 1)[0]

    def late() -> Any:
        do(worker, model, 2)
        return loss()

    assert other.step(once(late, loss)) is None
    assert other.finished
    assert held(other.optimizer) == held(worker.optimizer)


def test_workers_take_directions_of_their_own() -> None:
    store = HashStore()
    (_, one), (_, two) = worker_of(store, 0), worker_of(store, 1)
    assert one.optimizer.plan()[0].seed != two.optimizer.plan()[0].seed


def test_a_loss_that_is_no_number_is_not_pushed() -> None:
    store = HashStore()
    model, worker = worker_of(store)
    with pytest.raises(LossError):
        worker.step(lambda: float("nan"))
    assert worker.log.read(0) == []
    assert do(worker, model)[0].slot == 0


def test_a_worker_of_another_run_is_refused() -> None:
    store = HashStore()
    model, worker = worker_of(store)
    do(worker, model, 2)
    with pytest.raises(BaseMismatchError, match="oldest=64"):
        worker_of(store, 1, oldest=3)
    model, views = toy_views()
    optimizer = zoquant.ZOSGD(views, lr=1e-3, eps=1e-2, seed=5, rule=Momentum(0.5))
    optimizer.step(closures(model, 0, 1)[0])
    with pytest.raises(BaseMismatchError, match="other steps"):
        AsyncZO(optimizer, store, worker=1)


@pytest.mark.parametrize("text", ["", "zz", "00" * 16, LoggedStep(1, 9, Step((1,), (0.5,), (0.1,))).encode()])
def test_a_slot_that_holds_no_step_is_refused(text: str) -> None:
    store = HashStore()
    _, worker = worker_of(store)
    store.set("step/0", text)
    with pytest.raises(RankError, match="slot 0"):
        worker.pull()


@pytest.mark.parametrize(
    "step", [Step((1,), (1e300,), (0.1,)), Step((1,), (1e30,), (1e30,))], ids=["derivative", "move"]
)
def test_a_step_that_float32_does_not_hold_is_refused(step: Step) -> None:
    store = HashStore()
    _, worker = worker_of(store)
    store.set("step/0", LoggedStep(1, 0, step).encode())
    with pytest.raises(RankError, match=r"slot 0 of the log, by worker 1, moves by .* of which float32 holds all sums"):
        worker.pull()
    assert worker.optimizer.steps == 0


def test_a_step_comes_out_of_the_log_as_it_went_in() -> None:
    step = LoggedStep(3, 2, Step((2**63 - 1, 7), (-0.1, 1e-300), (1e-3,)))
    assert LoggedStep.decode(step.encode().encode(), 2) == step
    log = StepLog(HashStore(), {})
    first = replace(step, seen=0)
    assert log.offer(0, first) == first
    assert log.offer(0, replace(first, worker=4)) == first
    assert log.read(0) == [first]
    assert log.sent == 2 * len(step.encode()) == 2 * (32 + 2 * 32)


def test_a_log_without_its_count_is_read_to_the_end() -> None:
    store = HashStore()
    log = StepLog(store, {})
    for slot in range(3):
        store.set(f"step/{slot}", LoggedStep(0, slot, Step((slot,), (0.5,), (0.1,))).encode())
    assert [each.seen for each in log.read(1)] == [1, 2]
    assert torch.equal(torch.tensor([each.step.rates[0] for each in log.read(0)]), torch.full((3,), 0.1))


def test_two_workers_that_restore_the_same_steps_leave_a_log_that_can_be_read() -> None:
    model, alone = worker_of(HashStore())
    do(alone, model, 3)
    store = HashStore()
    store.set_timeout(timedelta(seconds=5))
    logs = [StepLog(store, {}) for _ in range(2)]
    assert logs[0].read(0) == logs[1].read(0) == []
    step = LoggedStep(7, 0, alone.optimizer.trajectory.steps[0])
    assert [log.offer(0, step) for log in logs] == [step, step]
    assert [log.read(0) for log in logs] == [[step], [step]]
