"""A forward that does not fit: the batch goes through in halves, and the step is the same step."""

import json
import logging
from pathlib import Path

import pytest
import torch

from tests.faults.runs import Numbers, Rows, files, job
from zoquant import Trajectory
from zoquant.errors import CheckpointError, DoesNotFitError
from zoquant.kernels.out_of_memory import is_out_of_memory
from zoquant.training.micro_batches import MicroBatches
from zoquant.training.run_folder import Progress
from zoquant.training.settings import Settings
from zoquant.training.trainer import run

MESSAGES = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("not enough memory: you tried to allocate 8 bytes."), RuntimeError("MPS backend out of memory"),
]  # fmt: skip


def at_most(rows: int, error: Exception | None = None) -> Numbers:
    """Return a task whose forward takes so many rows."""

    def check(count: int) -> None:
        if count > rows:
            raise error or torch.cuda.OutOfMemoryError("CUDA out of memory")

    return Numbers(check)


@pytest.mark.parametrize("error", MESSAGES, ids=[f"{type(e).__name__} {str(e)[:12]}" for e in MESSAGES])
def test_what_says_that_memory_ran_out(error: Exception, tmp_path: Path) -> None:
    assert is_out_of_memory(error)
    task = at_most(4, error)
    assert run(job(tmp_path / "run", task)).finished
    assert task.seen[:3] == [8, 4, 4]


def test_a_real_allocation_that_fails() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        run(job(tmp_path / "run", at_most(4, RuntimeError("shapes"))))
    assert not (tmp_path / "run" / "micro_batches.json").exists()


@pytest.mark.parametrize("rows", [4, 2, 1])
def test_the_derivatives_are_those_of_the_whole_batch(rows: int, tmp_path: Path) -> None:
    run(job(tmp_path / "whole"))
    run(job(tmp_path / "cut", at_most(rows)))
    whole, cut = (Trajectory.load(tmp_path / name / "trajectory.safetensors").steps for name in ("whole", "cut"))
    for one, other in zip(whole, cut, strict=True):
        assert one.seeds == other.seeds
        assert one.derivatives == pytest.approx(other.derivatives, rel=1e-3, abs=1e-4)


def test_uneven_halves_are_weighted(tmp_path: Path) -> None:
    settings = Settings(steps=4, batch_size=7, lr=1e-3, eps=1e-2)
    run(job(tmp_path / "whole", settings=settings))
    run(job(tmp_path / "cut", at_most(2), settings))
    whole, cut = (Trajectory.load(tmp_path / name / "trajectory.safetensors").steps for name in ("whole", "cut"))
    assert [s.derivatives[0] for s in whole] == pytest.approx([s.derivatives[0] for s in cut], rel=1e-3, abs=1e-4)


def test_it_is_said_once_and_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="zoquant"):
        run(job(tmp_path / "run", at_most(2)))
    said = [record.message for record in caplog.records if "out of memory" in record.message]
    assert [text.partition(" parts")[0][-1] for text in said] == ["2", "4"]
    assert json.loads((tmp_path / "run" / "micro_batches.json").read_text()) == {"halved_at": [0, 0]}


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("missing", [{}, {"lr": None}])
def test_a_run_that_goes_on_cuts_as_before(stop: int, missing: dict[str, None], tmp_path: Path) -> None:
    """Memory runs out in step 3 alone: after a kill it need not run out again, and the bytes must be the same."""
    settings = Settings(**{**{"steps": 6, "batch_size": 8, "lr": 1e-3, "eps": 1e-2}, **missing})  # type: ignore[arg-type]

    def once(work: Numbers) -> Numbers:
        def check(rows: int) -> None:
            if rows == 8 and armed:
                armed.clear()
                raise MemoryError

        work.check = check
        return work

    armed: list[bool] = []

    def arm(progress: Progress) -> None:
        armed.extend([True] if progress.step == 3 and progress.result else [])

    def kill(progress: Progress) -> None:
        arm(progress)
        if progress.step == stop and progress.result is not None:
            raise SystemExit

    run(job(tmp_path / "whole", once(Numbers()), settings), report=arm)
    assert json.loads((tmp_path / "whole" / "micro_batches.json").read_text()) == {"halved_at": [3]}
    armed.clear()
    with pytest.raises(SystemExit):
        run(job(tmp_path / "part", once(Numbers()), settings), report=kill)
    for name in ("trajectory.safetensors", "delta.safetensors"):
        (tmp_path / "part" / name).unlink()
    run(job(tmp_path / "part", once(Numbers()), settings), resume=True, report=arm)
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_memory_that_runs_out_while_calibrating(tmp_path: Path) -> None:
    run(job(tmp_path / "run", at_most(4), Settings(steps=4, batch_size=8)))
    assert json.loads((tmp_path / "run" / "micro_batches.json").read_text()) == {"halved_at": [0]}


@pytest.mark.parametrize("size", [7, 8])
def test_memory_that_runs_out_while_calibrating_on_micro_batches(size: int, tmp_path: Path) -> None:
    task = at_most(1)
    assert run(job(tmp_path / "run", task, Settings(steps=2, batch_size=size, micro_batches=4))).finished
    assert set(task.seen[-2 * size :]) == {1}
    assert json.loads((tmp_path / "run" / "micro_batches.json").read_text()) == {"halved_at": [0]}


def test_one_example_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"step 0: one example alone does not fit in memory: .*shorten"):
        run(job(tmp_path / "run", at_most(0)))
    assert Trajectory.load(tmp_path / "run" / "trajectory.safetensors").steps == []


def test_a_batch_that_cannot_be_cut_is_not_tried_for_ever(tmp_path: Path) -> None:
    batches = MicroBatches(tmp_path / "m.json")
    calls: list[int] = []

    def call(parts: list[list[Rows]]) -> None:
        calls.append(len(parts[0]))
        raise MemoryError

    with pytest.raises(DoesNotFitError):
        batches.fit(5, [Rows(torch.ones(3, 2))], call)
    assert calls == [1, 2, 3]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"halved_at": [-1]}', '{"halved_at": [1.5]}', '{"halved_at": 3}'])
def test_a_damaged_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"m\.json"):
        MicroBatches(tmp_path / "m.json")


def test_batches_of_the_tasks_halve() -> None:
    from zoquant.tasks import Batch

    batch = Batch(torch.arange(20).view(10, 2), torch.arange(5), torch.arange(5), (2,) * 10)
    first, second = batch.halves()
    assert (first.weight, second.weight) == (2, 3)
    assert torch.equal(torch.cat([first.ids, second.ids]), batch.ids)
    assert torch.equal(torch.cat([first.labels, second.labels]), batch.labels)
    assert len(first.ids) == 4
    assert len(second.rows) == 6
