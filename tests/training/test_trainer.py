"""Runs: their files, their end to the same bytes, and what happens when something goes wrong."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from zoquant.errors import CheckpointError, LossError, OutputExistsError, WriteError
from zoquant.tasks import Classification, Template
from zoquant.tasks.template import parse_words
from zoquant.training import Job, Outcome, Progress, RunFolder, Settings, run

SETTINGS = Settings(steps=6, batch_size=4, lr=1e-3, eps=1e-2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trainer") / "tiny.gguf")


@pytest.fixture
def job(checkpoint: Path, tmp_path: Path) -> Callable[..., Job]:
    def make(name: str = "run", settings: Settings = SETTINGS, **changes: Any) -> Job:
        model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
        examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
        made = Job(model, examples, examples, settings, RunFolder(tmp_path / name), {"model": str(checkpoint)})
        return replace(made, **changes)

    return make


class FailsAfter:
    """A task whose loss goes wrong after some calls."""

    def __init__(self, task: Classification, calls: int, wrong: Callable[[], float], times: int = 10**9) -> None:
        self.task, self.calls, self.wrong, self.times = task, calls, wrong, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, *arguments: Any) -> Tensor | float:
        self.calls -= 1
        if -self.times <= self.calls < 0:
            return self.wrong()
        return self.task.loss(*arguments)


def interrupt() -> float:
    raise KeyboardInterrupt


def files(outcome_of: Job) -> tuple[bytes, bytes]:
    return outcome_of.folder.delta.read_bytes(), outcome_of.folder.trajectory.read_bytes()


def test_a_run_leaves_its_files_and_moves_the_model(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    work = job(eval_every=4)
    outcome = run(work, on_progress=seen.append)
    assert isinstance(outcome, Outcome)
    assert outcome.finished
    assert outcome.steps == 6
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.before.loss != outcome.after.loss
    assert [p.step for p in seen if p.evaluation is not None] == [0, 4, 6]
    assert [p.step for p in seen if p.result is not None] == [1, 2, 3, 4, 5, 6]
    assert outcome.overhead is not None
    assert outcome.overhead >= 1
    assert outcome.delta_bytes == work.folder.delta.stat().st_size
    assert json.loads(work.folder.settings.read_text())["lr"] == SETTINGS.lr


def test_the_same_seed_gives_the_same_bytes(job: Callable[..., Job]) -> None:
    one, two, other = job("one"), job("two"), job("other", replace(SETTINGS, seed=1))
    for work in (one, two, other):
        run(work)
    assert files(one) == files(two)
    assert files(one) != files(other)


def test_a_batch_that_is_cut_has_the_mean_loss_of_the_whole(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    for parts in (1, 2, 4):
        run(job(f"in-{parts}", replace(SETTINGS, steps=1, micro_batches=parts), held_out=None), on_progress=seen.append)
    whole, *cut = [progress.result.loss for progress in seen if progress.result is not None]
    assert cut == pytest.approx([whole, whole], rel=1e-6)
    for parts in (0, 3, 8):
        with pytest.raises(ValueError, match="power of 2 of at most batch_size, 4"):
            replace(SETTINGS, micro_batches=parts)


@pytest.mark.parametrize("calls", [0, 1, 5, 10])
def test_an_interrupted_run_goes_on_to_the_same_bytes(job: Callable[..., Job], calls: int) -> None:
    whole, part = job("whole"), job("part")
    run(whole)
    stopped = run(replace(part, train=FailsAfter(part.train, calls, interrupt)))  # type: ignore[arg-type]
    assert not stopped.finished
    assert stopped.steps == calls // 2
    rest = run(job("part"), resume=True)
    assert rest.finished
    assert files(part) == files(whole)
    assert rest.before == run(job("again")).before
    steps = [line["step"] for line in part.folder.read_metrics() if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("torn", [0, 1, 20])
def test_a_killed_run_goes_on_from_its_journal_to_the_same_bytes(job: Callable[..., Job], torn: int) -> None:
    """What a kill leaves is the journal alone, and perhaps half a line in either file."""
    whole, part = job("whole"), job("part")
    run(whole)
    left: list[bytes] = []

    def kill(progress: Progress) -> None:
        if progress.step == 3 and progress.result is not None:
            left.append(part.folder.journal.read_bytes())
            raise SystemExit

    with pytest.raises(SystemExit):
        run(part, on_progress=kill)
    part.folder.trajectory.unlink()
    part.folder.delta.unlink()
    part.folder.journal.write_bytes(left[0][: len(left[0]) - torn])
    assert len(zoquant.Trajectory.load(part.folder.journal).steps) == (2 if torn else 3)
    with open(part.folder.metrics, "a") as metrics:
        metrics.write('{"step": 4, "lo')
    run(job("part"), resume=True)
    assert files(part) == files(whole)
    assert not part.folder.journal.exists()


def test_the_journal_grows_by_one_record_a_step(job: Callable[..., Job]) -> None:
    sizes: list[int] = []
    work = job()

    def note(progress: Progress) -> None:
        if progress.result is not None:
            sizes.append(work.folder.journal.stat().st_size)

    run(work, on_progress=note)
    assert {after - before for before, after in pairwise(sizes)} == {32}


def test_missing_numbers_are_calibrated_saved_and_kept_when_the_run_goes_on(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    free = replace(SETTINGS, lr=None, eps=None, subspace="values")
    whole, part = job("whole", free), job("part", free)
    run(whole, on_progress=seen.append)
    found = json.loads(whole.folder.calibration.read_text())
    told = [p.calibration for p in seen if p.calibration is not None]
    assert len(told) == 1
    assert told[0].to_dict() == found
    steps = zoquant.Trajectory.load(whole.folder.trajectory).steps
    assert [step.rates[0] for step in steps] == pytest.approx([found["lr"] * (1 - n / 6) for n in range(6)])
    # The calibration takes more than the 70 first calls; stop in the steps behind it.
    stopped = run(replace(part, train=FailsAfter(part.train, found["forwards"] + 5, interrupt)))  # type: ignore[arg-type]
    assert stopped.steps == 2
    run(job("part", free), resume=True, on_progress=lambda p: seen.append(p))
    assert len([p for p in seen if p.calibration is not None]) == 1
    assert files(part) == files(whole)


@pytest.mark.parametrize(("subspace", "still", "moving"), [("values", [4], [4, 4]), ("rows-columns", [4], [8])])
def test_layers_that_do_not_move_run_once_a_step(
    job: Callable[..., Job], subspace: Any, still: list[int], moving: list[int]
) -> None:
    settings = replace(SETTINGS, subspace=subspace, steps=3, include=("model.layers.1.*",))
    begun = job(settings=settings, held_out=None)
    rows: list[list[int]] = [[], []]
    for number, seen in enumerate(rows):
        layer = begun.model.get_submodule(f"model.layers.{number}.mlp")
        layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
    run(begun)
    assert [rows[0][-3:], rows[1][-3 * len(moving) :]] == [still * 3, moving * 3]


def test_given_numbers_are_kept(job: Callable[..., Job]) -> None:
    work = job(settings=replace(SETTINGS, lr=1e-3, eps=None, clip=0.25))
    run(work)
    found = json.loads(work.folder.calibration.read_text())
    assert (found["lr"], found["clip"]) == (1e-3, 0.25)
    assert zoquant.Trajectory.load(work.folder.trajectory).steps[0].rates[0] == 1e-3
    other = job("other")
    run(other)
    assert not other.folder.calibration.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "fzoo", "probes": 3, "lr": 1e-4}, {"estimator": "one-sided", "rule": "momentum"},
        {"rule": "adam", "decay": 0.5}, {"rule": "sign", "density": 0.5, "unit": "layer"}, {"noise": "sphere"},
    ],
)  # fmt: skip
def test_every_estimator_and_rule_goes_on_to_the_same_bytes(job: Callable[..., Job], changes: dict[str, Any]) -> None:
    chosen = replace(SETTINGS, **changes)
    whole, part = job("whole", chosen), job("part", chosen)
    run(whole)
    run(replace(part, train=FailsAfter(part.train, 9, interrupt)))  # type: ignore[arg-type]
    run(job("part", chosen), resume=True)
    assert files(part) == files(whole)


def test_a_run_killed_before_its_first_save_begins_again(job: Callable[..., Job]) -> None:
    whole, part = job("whole"), job("part")
    run(whole)

    def kill(progress: Progress) -> None:
        if progress.step == 2:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(part, on_progress=kill)
    part.folder.trajectory.unlink()
    part.folder.journal.unlink()
    run(job("part"), resume=True)
    assert files(part) == files(whole)
    assert [line["step"] for line in part.folder.read_metrics() if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_what_the_system_refuses_is_one_clear_error(job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/run: .* is a file, so no folder can lie in it\."):
        run(job("file/run"))
    work = job("full")

    def fill(progress: Progress) -> None:
        if progress.step == 1:
            work.folder.metrics.unlink()
            work.folder.metrics.symlink_to("/dev/full")

    with pytest.raises(WriteError, match=r"metrics\.jsonl: cannot be written: No space left"):
        run(work, on_progress=fill)
    assert work.folder.trajectory.exists()
    work.folder.settings.write_text("{")
    with pytest.raises(CheckpointError, match=r"settings\.json: cannot be read"):
        run(job("full"), resume=True)


def test_resume_refuses_other_settings_and_names_the_first(job: Callable[..., Job]) -> None:
    run(job())
    with pytest.raises(CheckpointError, match=r"begun with lr 0\.001, now it is 0\.5"):
        run(job(settings=replace(SETTINGS, lr=0.5)), resume=True)
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        run(job("nowhere"), resume=True)


def test_a_folder_that_exists_is_refused(job: Callable[..., Job]) -> None:
    run(job())
    with pytest.raises(OutputExistsError, match="already exists"):
        run(job())


@pytest.mark.parametrize("wrong", [lambda: math.nan, lambda: math.inf])
def test_a_bad_loss_is_undone_counted_and_survived(job: Callable[..., Job], wrong: Callable[[], float]) -> None:
    work = job()
    outcome = run(replace(work, train=FailsAfter(work.train, 4, wrong, times=2)))  # type: ignore[arg-type]
    assert outcome.finished
    assert outcome.steps == 6
    steps = zoquant.Trajectory.load(work.folder.trajectory).steps
    assert [step.derivatives != (0.0,) for step in steps] == [True, True, False, False, True, True]


def test_bad_losses_in_a_row_stop_the_run_with_advice(job: Callable[..., Job]) -> None:
    work = job()
    with pytest.raises(LossError, match=r"3 times in a row\. The run so far is saved in .*half the lr"):
        run(replace(work, train=FailsAfter(work.train, 4, lambda: math.nan)))  # type: ignore[arg-type]
    steps = zoquant.Trajectory.load(work.folder.trajectory).steps
    assert [step.derivatives != (0.0,) for step in steps] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(schedule: Any, rates: list[float]) -> None:
    settings = Settings(steps=4, lr=1.0, schedule=schedule)
    assert [settings.rate_at(step) for step in range(4)] == pytest.approx(rates, abs=1e-6)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        Settings(steps=0)
    with pytest.raises(ValueError, match="schedule is 'step', expected one of constant, linear, cosine"):
        Settings(schedule="step")  # type: ignore[arg-type]
