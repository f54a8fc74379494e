"""Runs by backwards: their files, their end to the same bytes, what is refused, and several processes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.distributed.processes import on_ranks
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from zoquant.distributed import launch
from zoquant.errors import CheckpointError, DataError, LossError, UnsupportedLayoutError
from zoquant.tasks import Classification, Template
from zoquant.tasks.objective import with_objective
from zoquant.tasks.template import parse_words
from zoquant.training import Job, Progress, RunFolder, Settings, run
from zoquant.training.best_step import BestStep

SETTINGS = Settings(steps=6, batch_size=4, lr=1e-2, gradient="backward")


def job_of(checkpoint: Path, out: Path, settings: Settings = SETTINGS, **changes: Any) -> Job:
    model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
    examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
    made = Job(model, examples, examples, settings, RunFolder(out), {"model": str(checkpoint)})
    return replace(made, **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("backward") / "tiny.gguf")


@pytest.fixture
def job(checkpoint: Path, tmp_path: Path) -> Callable[..., Job]:
    return lambda name="run", settings=SETTINGS, **changes: job_of(checkpoint, tmp_path / name, settings, **changes)


class Spoiled:
    """A task of which some losses go wrong."""

    def __init__(self, task: Classification, calls: set[int], wrong: Callable[[Tensor], Any]) -> None:
        self.task, self.calls, self.wrong, self.count = task, calls, wrong, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, model: nn.Module, batch: Any) -> Any:
        self.count += 1
        loss = self.task.loss(model, batch)
        return self.wrong(loss) if self.count in self.calls else loss


def kept(work: Job) -> tuple[bytes, bytes]:
    return work.folder.delta.read_bytes(), work.folder.state.read_bytes()


def test_a_run_learns_and_leaves_its_files(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    work = job(settings=replace(SETTINGS, steps=20))
    outcome = run(work, on_progress=seen.append)
    assert outcome.finished
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.after.loss < 0.5 * outcome.before.loss
    assert outcome.trajectory_bytes == 0
    assert not work.folder.trajectory.exists()
    assert not work.folder.calibration.exists()
    assert outcome.overhead is not None
    assert outcome.overhead > 1
    settings = json.loads(work.folder.settings.read_text())
    assert (settings["gradient"], settings["subspace"]) == ("backward", "values")
    assert not any(parameter.requires_grad for parameter in work.model.parameters())
    fresh = job("fresh")
    zoquant.load_delta(work.folder.delta, zoquant.attach(fresh.model))
    assert fresh.train.evaluate(fresh.model).loss == outcome.after.loss


@pytest.mark.parametrize(
    "changes", [{}, {"rule": "sign", "schedule": "constant"}, {"rule": "momentum", "micro_batches": 2, "clip": 0.1},
                {"checkpoint": True, "decay": 0.1}, {"space": "absolute", "coupled": False, "lr": 1e-5},
                {"roles": ("scale", "dense"), "lr": 1e-3}],
)  # fmt: skip
def test_a_run_that_was_stopped_or_killed_goes_on_to_the_same_bytes(
    job: Callable[..., Job], changes: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, **changes)
    whole = job("whole", settings)
    assert run(whole).finished

    def interrupt(loss: Tensor) -> Tensor:
        raise KeyboardInterrupt

    part = job("part", settings)
    stopped = run(replace(part, train=Spoiled(part.train, {6}, interrupt)))  # type: ignore[arg-type]
    assert not stopped.finished
    assert 0 < stopped.steps < 6
    run(job("part", settings), resume=True)
    assert kept(part) == kept(whole)

    killed = job("killed", settings)

    def kill(progress: Progress) -> None:
        if progress.step == 4 and progress.result is not None:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(killed, on_progress=kill)
    killed.folder.state.unlink()  # a kill leaves the state of some steps before, here of none
    killed.folder.delta.unlink()
    run(job("killed", settings), resume=True)
    assert kept(killed) == kept(whole)
    steps = [line["step"] for line in killed.folder.read_metrics() if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_step_without_a_gradient_is_undone_counted_and_told(job: Callable[..., Job]) -> None:
    work = job()
    spoiled = Spoiled(work.train, {3}, lambda loss: loss * float("nan"))  # type: ignore[arg-type]
    outcome = run(replace(work, train=spoiled))
    assert (outcome.steps, outcome.skipped) == (6, 1)
    hopeless = job("hopeless")
    always = Spoiled(hopeless.train, set(range(2, 99)), lambda loss: loss * float("inf"))  # type: ignore[arg-type]
    with pytest.raises(
        LossError,
        match=r"lower lr, set clip, or look at the batch\. If .*compute_dtype.* This happened 3 times in a row",
    ):
        run(replace(hopeless, train=always))
    assert not zoquant.record.delta.read_delta(hopeless.folder.delta).values["model.layers.0.mlp.up_proj.d"].any()


def test_the_best_step_is_tested(job: Callable[..., Job]) -> None:
    work = job(settings=replace(SETTINGS, steps=12), eval_every=3, best=BestStep("loss", 4))
    outcome = run(replace(work, test=work.held_out))
    evaluations = dict(work.folder.evaluations())
    assert outcome.best_step == min((step for step in evaluations if step), key=lambda step: evaluations[step].loss)
    assert outcome.test is not None
    assert outcome.test.loss == evaluations[outcome.best_step].loss
    assert work.folder.delta.read_bytes() == work.folder.best.read_bytes()


def test_what_has_no_gradient_is_refused_before_anything_starts(job: Callable[..., Job]) -> None:
    work = job()
    scored = with_objective(work.train, "accuracy")
    with pytest.raises(DataError, match="gradient is backward, but the objective is a number without a gradient"):
        run(replace(work, train=scored))
    plain = Spoiled(work.train, {1}, float)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="gradient is backward, but the loss of Spoiled has no gradient"):
        run(replace(work, train=plain))
    bare = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UnsupportedLayoutError, match="has no list of layers to keep the inputs of"):
        run(job(settings=replace(SETTINGS, roles=("dense",), checkpoint=True), model=bare))
    assert not work.folder.path.exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"eps": 0.1}, "eps is 0.1, but gradient is backward, which draws no directions. Leave eps out, or take"),
        ({"probes": 2}, "probes is 2, but gradient is backward"),
        ({"estimator": "fzoo"}, "estimator is 'fzoo', but gradient is backward"),
        ({"subspace": "rows-columns"}, "subspace is 'rows-columns', but gradient is backward, which moves values."),
        ({"gradient": "forward", "checkpoint": True}, "checkpoint is for gradient backward: forwards keep nothing."),
        ({"gradient": "sideways"}, "gradient is 'sideways', expected one of forward, backward."),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(SETTINGS, **changes)


def test_a_damaged_state_is_refused(job: Callable[..., Job]) -> None:
    work = job()
    run(work)
    work.folder.state.write_bytes(work.folder.state.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"descent\.safetensors"):
        run(job(), resume=True)
    with pytest.raises(
        CheckpointError, match=r"was begun with eps not given, gradient backward, now it is eps 0\.01, gradient forward"
    ):
        run(job(settings=Settings(steps=6, batch_size=4, lr=1e-2, eps=1e-2)), resume=True)


def test_dropout_is_told(job: Callable[..., Job]) -> None:
    work, seen = job(), list[Progress]()
    work.model.add_module("noise", nn.Dropout(0.5))
    run(work, on_progress=seen.append)
    assert "the model is in training mode: 1 layers drop out, anew in each forward." in [each.notice for each in seen]


def run_on_rank(rank: int, checkpoint: str, out: str, resume: bool) -> list[float]:
    import os

    names = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    os.environ.update(names)
    settings = replace(SETTINGS, micro_batches=4)
    work = job_of(Path(checkpoint), launch.folder_of_rank(out), settings)
    run(work if rank == 0 else replace(work, held_out=None), resume=launch.goes_on(resume, work.folder.path))
    views = zoquant.attach(work.model)
    return [float(view.read().double().sum()) for view in views]


def test_two_processes_end_with_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    run(job_of(checkpoint, tmp_path / "alone", replace(SETTINGS, micro_batches=4)))
    first, second = on_ranks(2, run_on_rank, str(checkpoint), str(tmp_path / "ranks"), False)
    assert first == second
    alone, ranks = (
        zoquant.record.delta.read_delta(tmp_path / name / "delta.safetensors").values for name in ("alone", "ranks")
    )
    for key, value in alone.items():
        torch.testing.assert_close(ranks[key], value, rtol=0.2, atol=5e-3)
    again = on_ranks(2, run_on_rank, str(checkpoint), str(tmp_path / "ranks"), True)
    assert again == [first, first]
