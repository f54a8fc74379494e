"""Memory that runs out on one rank: all ranks undo the step, halve, and do it again, to the bytes of one process."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.processes import closures, held, on_ranks
from tests.distributed.test_distributed import optimizer_of, train
from tests.faults.runs import Numbers, files, job
from zoquant.distributed import DistributedZO, launch
from zoquant.distributed.exchange import add_up
from zoquant.errors import DoesNotFitError, RankError
from zoquant.kernels.out_of_memory import is_out_of_memory
from zoquant.training import Progress, Settings, run

SETTINGS = Settings(steps=6, batch_size=8, lr=1e-3, eps=1e-2)
KINDS = [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory")]
HALVED_AT = [1, 1]
"""What `at_most_two_rows` leads to: rows are scarce from the second step on."""


def at_most_two_rows(error: Exception, armed: list[bool]) -> Numbers:
    """Return a task whose forward takes two rows at most, once it is armed."""

    def check(rows: int) -> None:
        if armed and rows > 2:
            raise error

    return Numbers(check)


def arming(armed: list[bool], then: Callable[[Progress], None] = lambda _: None) -> Callable[[Progress], None]:
    """Return a report that makes memory scarce after the first step."""

    def report(progress: Progress) -> None:
        armed.extend([True] if progress.step == 1 and progress.result else [])
        then(progress)

    return report


def one_process(folder: Path, settings: Settings = SETTINGS) -> tuple[bytes, bytes]:
    armed: list[bool] = []
    run(job(folder, at_most_two_rows(KINDS[0], armed), settings), on_progress=arming(armed))
    assert json.loads((folder / "micro_batches.json").read_text()) == {"halved_at": HALVED_AT}
    return files(folder)


def on_rank(rank: int, out: str, scarce: int, error: Exception, stop: int, resume: bool) -> list[str]:
    """Run on a rank, where memory is scarce on one of them alone; return what was said of memory."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("zoquant").addHandler(handler)
    armed: list[bool] = []

    def end(progress: Progress) -> None:
        if progress.step == stop and progress.result is not None:
            raise SystemExit

    task = at_most_two_rows(error, armed) if rank == scarce and not resume else Numbers()
    work = job(launch.folder_of_rank(out), task, SETTINGS)
    try:
        assert run(work, resume=resume and rank == 0, on_progress=arming(armed, end)).finished == (not stop)
    except SystemExit:
        assert stop
    return [text for text in said if "memory" in text]


@pytest.mark.parametrize("scarce", [0, 1])
@pytest.mark.parametrize("error", KINDS, ids=["cuda", "mps"])
def test_all_ranks_halve_where_one_runs_out(error: Exception, scarce: int, tmp_path: Path) -> None:
    expected = one_process(tmp_path / "alone")
    said = on_ranks(2, on_rank, str(tmp_path / "ranks"), scarce, error, 0, False)
    assert files(tmp_path / "ranks") == expected
    assert json.loads((tmp_path / "ranks" / "micro_batches.json").read_text()) == {"halved_at": HALVED_AT}
    for rank, texts in enumerate(said):
        assert ["in 2 parts" in texts[0], "in 4 parts" in texts[1]] == [True, True]
        assert len(texts) == 2
        assert all(("out of memory (" if rank == scarce else f"rank {scarce} ran out of memory") in t for t in texts)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_ranks_that_come_back_cut_as_before(stop: int, tmp_path: Path) -> None:
    """After the restart there is memory enough, and the bytes must be those of the first life none the less."""
    expected = one_process(tmp_path / "alone") if stop > 1 else None
    on_ranks(2, on_rank, str(tmp_path / "ranks"), 1, KINDS[0], stop, False)
    assert (tmp_path / "ranks" / "micro_batches.json").exists() == (stop > 1)
    on_ranks(2, on_rank, str(tmp_path / "ranks"), 1, KINDS[0], 0, True)
    if expected is None:  # it had not run out before the restart, so it never does
        run(job(tmp_path / "whole", Numbers(), SETTINGS))
        expected = files(tmp_path / "whole")
    assert files(tmp_path / "ranks") == expected


def calibrated(rank: int, out: str) -> list[int]:
    """Rank 0 alone calibrates, and memory runs out on it then."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    task = at_most_two_rows(MemoryError(), [True] if rank == 0 else [])
    assert run(job(launch.folder_of_rank(out), task, Settings(steps=3, batch_size=8))).finished
    return task.seen


def test_ranks_cut_as_the_one_that_calibrated(tmp_path: Path) -> None:
    task = at_most_two_rows(MemoryError(), [True])
    run(job(tmp_path / "alone", task, Settings(steps=3, batch_size=8)))
    _, second = on_ranks(2, calibrated, str(tmp_path / "ranks"))
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")
    assert set(second) == {2}


def alone_does_not_fit(rank: int, out: str) -> str:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})

    def check(rows: int) -> None:
        if rank == 1:
            raise MemoryError

    try:
        run(job(launch.folder_of_rank(out), Numbers(check), SETTINGS))
    except DoesNotFitError as error:
        return str(error)
    return ""


def test_all_ranks_end_where_one_example_does_not_fit(tmp_path: Path) -> None:
    messages = on_ranks(2, alone_does_not_fit, str(tmp_path / "ranks"))
    assert all("step 0: one example alone does not fit in memory" in text for text in messages)


def raises(rank: int, errors: list[Exception | None]) -> tuple[str, bool, bool]:
    """Raise what this rank is told to; return the error that came out, whether it is of memory, and what was held."""
    model, optimizer = optimizer_of()
    stepper = DistributedZO(optimizer)
    train(stepper, model, 1, last=2)
    before, error = held(optimizer), errors[rank]

    def closure() -> torch.Tensor:
        if error is not None:
            raise error
        return closures(model, 2, 1)[0]()  # type: ignore[return-value]

    try:
        stepper.step(closure)
    except (RankError, KeyError, MemoryError) as found:
        text, memory = f"{type(found).__name__}: {found}", is_out_of_memory(found)
    same = held(optimizer) == before
    train(stepper, model, 2, first=2, last=3)  # all may go on, in more micro-batches
    stepper.check()
    return text, memory, same


def test_a_rank_that_runs_out_is_named_and_the_others_may_halve() -> None:
    (first, of_memory, same), (second, own, also) = on_ranks(2, raises, [None, MemoryError("no more")])
    assert first.startswith("RankMemoryError: step 2: rank 1 ran out of memory;")
    assert second == "MemoryError: no more"
    assert (of_memory, same, own, also) == (True, True, True, True)


def test_a_rank_that_fails_otherwise_goes_before_one_without_memory() -> None:
    (first, of_memory, _), (second, _, _) = on_ranks(2, raises, [MemoryError(), KeyError("no such row")])
    assert first.startswith("RankError: step 2: rank 1 failed;")
    assert not of_memory
    assert second.startswith("KeyError")


def summing(rank: int, error: BaseException) -> tuple[str, str, list[float]]:
    """Add up a gradient that one of two ranks cannot compute, and then one that both can."""
    found, said = torch.ones(3), ""
    try:
        add_up([found], error if rank == 1 else None)  # type: ignore[arg-type]
    except Exception as raised:
        said = f"{type(raised).__name__}: {raised}"
    before = found.tolist()
    add_up([found], None)
    assert before == [1.0] * 3
    return said, str(rank), found.tolist()


@pytest.mark.parametrize("error", KINDS)
def test_the_gradient_of_a_step_is_done_again_by_all_ranks(error: Exception) -> None:
    first, second = on_ranks(2, summing, error)
    assert first[0].startswith("RankMemoryError: the gradient of a step: rank 1 ran out of memory; its own log says")
    assert second[0] == f"{type(error).__name__}: {error}"
    assert first[2] == second[2] == [2.0] * 3


def test_another_failure_of_a_gradient_is_no_lack_of_memory() -> None:
    first, _ = on_ranks(2, summing, KeyError("no such row"))
    assert first[0].startswith("RankError: the gradient of a step: rank 1 failed; its own log says why.")
