"""What a run moves when nobody says, and that a run on rows and columns is a run like any other."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from tests.toy import toy_model
from zoquant.checkpoint.exporting import export
from zoquant.checkpoint.replay_views import recorded_views
from zoquant.cli import demo
from zoquant.errors import CheckpointError, DataError, UnsupportedLayoutError
from zoquant.integrations.refused_settings import check_subspace
from zoquant.optim.choosing import WALK
from zoquant.tasks import Classification, Template
from zoquant.tasks.objective import WithObjective
from zoquant.tasks.template import parse_words
from zoquant.training import Job, Progress, RunFolder, Settings, run
from zoquant.training.moving import Moving
from zoquant.views.checkpoint_names import keep_names

FREE = Settings(steps=6, batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("automatic") / "tiny.gguf")


@pytest.fixture
def opened(checkpoint: Path) -> tuple[nn.Module, Classification]:
    model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
    return model, Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))


@pytest.fixture
def job(checkpoint: Path, tmp_path: Path) -> Callable[..., Job]:
    def make(name: str = "run", settings: Settings = FREE, kind: type[Classification] = Classification) -> Job:
        model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
        examples = kind(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
        return Job(model, examples, examples, settings, RunFolder(tmp_path / name), {"model": str(checkpoint)})

    return make


def files(work: Job) -> tuple[bytes, bytes]:
    return work.folder.delta.read_bytes(), work.folder.trajectory.read_bytes()


def test_layers_that_are_excluded_leave_values(opened: tuple[nn.Module, Classification]) -> None:
    resolved = Moving.choose(Settings(exclude=("model.layers.1.*",)), *opened)
    assert resolved.settings.subspace == "values"
    assert resolved.why is not None
    assert resolved.why.endswith("(subspace values), since exclude leaves nothing of the layers that would move.")
    assert not any(key.startswith("model.layers.1.") for key in resolved.views.keys)


def test_with_no_number_given_it_is_rows_and_columns(opened: tuple[nn.Module, Classification]) -> None:
    resolved = Moving.choose(Settings(), *opened)
    assert resolved.settings.subspace == "rows-columns"
    assert resolved.settings.include == ("model.layers.1.*",)
    assert resolved.settings.estimator == "group-relative"
    assert {key.split(".")[2] for key in resolved.views.keys} == {"1"}
    assert resolved.why is not None
    assert resolved.why.startswith("Training the 7 matrices of layer 1, their rows and columns (subspace rows-colu")
    assert all(bool((resolved.views.delta(key) == 0).all()) for key in resolved.views.keys)
    assert Moving.choose(Settings(include=("*.layers.0.*",)), *opened).settings.include == ("*.layers.0.*",)
    assert Moving.choose(resolved.settings, *opened).settings == resolved.settings


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"lr": 1e-3}, "lr is 0.001"), ({"eps": 0.03}, "eps is 0.03"), ({"clip": math.inf}, "clip is inf"),
        ({"estimator": "one-sided"}, "estimator is 'one-sided'"), ({"probes": 2}, "probes is 2"),
        ({"noise": "gaussian"}, "noise is 'gaussian'"), ({"density": 0.5}, "density is 0.5"),
        ({"rule": "sign"}, "rule is 'sign'"), ({"decay": 0.1}, "decay is 0.1"),
        ({"coupled": False}, "coupled is false"),
        ({"space": "absolute", "coupled": False}, "space is 'absolute'"),
        ({"roles": ("scale", "dense")}, "roles is"), ({"batch_size": 1}, "batch_size is 1"),
        ({"include": ("*embed_tokens*",)}, "model.embed_tokens"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_speaks_for_values(given: dict[str, Any], why: str, opened: tuple[nn.Module, Classification]) -> None:
    settings = Settings(**given)
    resolved = Moving.choose(settings, *opened)
    assert resolved.settings == replace(settings, subspace="values")
    assert resolved.why is not None
    assert ", each value by itself (subspace values), since " in resolved.why
    assert why in resolved.why


def test_a_run_of_values_moves_all_values(opened: tuple[nn.Module, Classification]) -> None:
    model, task = opened
    everything = zoquant.attach(model).keys
    assert Moving.choose(Settings(subspace="values"), model, task).views.keys == everything
    assert Moving.choose(Settings(subspace="values"), model, task).why is None
    assert Moving.choose(Settings(lr=1.0), model, task).views.keys == everything


def test_a_task_without_a_loss_of_each_example(opened: tuple[nn.Module, Classification]) -> None:
    model, task = opened
    other = WithObjective(task, lambda model, batch: -task.accuracy(model, batch))
    told = Moving.choose(Settings(), model, other).why
    assert told is not None
    assert told.endswith("since this task with this objective does not tell the loss of each example.")
    with pytest.raises(DataError, match="subspace is 'rows-columns', but WithObjective does not tell the loss of each"):
        Moving.choose(Settings(subspace="rows-columns"), model, other)


class OneByOne(Classification):
    """A task that puts each example through the model by itself: no block of rows can have a probe of its own."""

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        parts = [batch.part(number, number + 1) for number in range(batch.weight)]
        return torch.cat([super(OneByOne, self).losses(model, part) for part in parts])


def test_a_forward_that_takes_the_batch_apart(job: Callable[..., Job]) -> None:
    work = job(kind=OneByOne)
    resolved = Moving.choose(Settings(), work.model, work.train)
    assert resolved.settings == Settings(subspace="values")
    assert resolved.why is not None
    assert "its input has 1 rows, expected a multiple of the 2 losses" in resolved.why
    assert resolved.views.keys == zoquant.attach(work.model).keys


def test_a_format_whose_scales_alone_do_not_scale_its_weights(opened: tuple[nn.Module, Classification]) -> None:
    _, task = opened
    resolved = Moving.choose(Settings(), toy_model(), task)
    assert resolved.settings == Settings(subspace="values")
    assert resolved.why is not None
    assert "is not attached, but its weights are scaled by" in resolved.why
    with pytest.raises(UnsupportedLayoutError, match="is not attached"):
        Moving.choose(Settings(subspace="rows-columns"), toy_model(), task)


class Unnumbered(nn.Module):
    """One layer of a model and its embedding, under names without numbers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed, self.up = model.model.embed_tokens, model.model.layers[0].mlp.up_proj


@pytest.mark.parametrize("name", ["up", "text.up"])
def test_without_numbers_all_that_has_a_grid_moves(opened: tuple[nn.Module, Classification], name: str) -> None:
    """Under the names of its checkpoint."""
    model, task = opened
    unnumbered = Unnumbered(model)
    keep_names(unnumbered, {"up": name})
    resolved = Moving.choose(Settings(subspace="rows-columns"), unnumbered, task)
    assert resolved.settings.include == (f"{name}.*",)
    assert resolved.views.keys == (f"{name}.d", f"{name}.m")


def test_the_demo_is_a_run_of_values(opened: tuple[nn.Module, Classification]) -> None:
    model, task = opened
    settings = replace(demo.SETTINGS, include=None)
    assert demo.SETTINGS.subspace == "auto"
    assert Moving.choose(settings, model, task).settings == replace(settings, subspace="values")


@pytest.mark.parametrize(("schedule", "batch_size"), [("linear", 16), ("constant", 2), ("cosine", 5)])
def test_the_rate_makes_a_walk(schedule: Any, batch_size: int) -> None:
    settings = Settings(steps=62, batch_size=batch_size, schedule=schedule, subspace="rows-columns")
    numbers = settings.by_rule()
    moves = [numbers.lr * settings.rate_at(step) / math.sqrt(batch_size) for step in range(62)]
    assert math.sqrt(sum(move**2 for move in moves)) == pytest.approx(WALK)
    assert (numbers.eps, numbers.clip, numbers.forwards) == (0.03, None, 0)
    assert all("say little" not in reason for reason in numbers.reasons)
    given = replace(settings, lr=0.5, eps=0.1, clip=2.0).by_rule()
    assert (given.lr, given.eps, given.clip) == (0.5, 0.1, 2.0)
    assert all("was given" in reason for reason in given.reasons)


@pytest.mark.parametrize(("steps", "batch_size"), [(3, 2), (1, 2), (10, 4), (60, 2)])
def test_few_examples_make_a_short_walk(steps: int, batch_size: int) -> None:
    """The step of a run of few steps is no leap: three steps of two examples took 92 % of a model to 50 %."""
    settings = Settings(steps=steps, batch_size=batch_size, subspace="rows-columns")
    numbers = settings.by_rule()
    moves = [numbers.lr * settings.rate_at(step) / math.sqrt(batch_size) for step in range(steps)]
    walk = math.sqrt(sum(move**2 for move in moves))
    assert walk == pytest.approx(WALK * min(1, math.sqrt(steps * batch_size / 120)))
    said = f"less than 0.15, since {steps * batch_size} examples say little."
    assert numbers.reasons[1].endswith(said) == (steps * batch_size < 120)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1"), ({"estimator": "fzoo"}, "estimator is 'fzoo'"),
        ({"probes": 2}, "probes is 2"), ({"space": "absolute"}, "space is 'absolute'"),
    ],
)  # fmt: skip
def test_what_rows_and_columns_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(subspace="rows-columns", **given)
    with pytest.raises(ValueError, match="subspace is 'columns', expected one of auto, values, rows-columns"):
        Settings(subspace="columns")  # type: ignore[arg-type]


def test_a_run_leaves_its_files_and_says_what_it_chose(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    work = job()
    outcome = run(work, on_progress=seen.append)
    assert outcome.finished
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.before.loss != outcome.after.loss
    told = [progress.calibration for progress in seen if progress.calibration is not None]
    found = json.loads(work.folder.calibration.read_text())
    assert [one.to_dict() for one in told] == [found]
    assert found["forwards"] == 0
    assert [reason.split()[0] for reason in found["reasons"]] == ["Training", "eps", "lr", "clip:"]
    settings = json.loads(work.folder.settings.read_text())
    assert (settings["subspace"], settings["include"]) == ("rows-columns", ["model.layers.1.*"])
    recorded = zoquant.Trajectory.load(work.folder.trajectory)
    assert recorded.subspace == "rows-columns"
    assert (recorded.probes, recorded.steps[0].rates[0]) == (4, found["lr"])
    assert any(recorded.steps[0].derivatives)


def test_with_all_numbers_given_the_choice_is_still_said(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    work = job(settings=replace(FREE, lr=1e-3, eps=1e-2))
    run(work, on_progress=seen.append)
    moved = "Training the 16 matrices from model.embed_tokens to lm_head, each value by itself (subspace values)"
    assert [progress.notice for progress in seen if progress.notice] == [f"{moved}, since lr is 0.001."]
    assert json.loads(work.folder.settings.read_text())["subspace"] == "values"


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("resumed", ["auto", "rows-columns"])
def test_a_killed_run_goes_on_to_the_same_bytes(stop: int, resumed: Any, job: Callable[..., Job]) -> None:
    whole, part = job("whole"), job("part")
    run(whole)

    def kill(progress: Progress) -> None:
        if progress.step == stop and progress.result is not None:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(part, on_progress=kill)
    part.folder.trajectory.unlink()
    part.folder.delta.unlink()
    run(job("part", replace(FREE, subspace=resumed)), resume=True)
    assert files(part) == files(whole)
    assert part.folder.calibration.read_bytes() == whole.folder.calibration.read_bytes()


def test_resume_takes_the_choice_of_the_folder(job: Callable[..., Job]) -> None:
    run(job())
    with pytest.raises(
        CheckpointError, match=r"begun with subspace rows-columns, estimator .*, now it is subspace values"
    ):
        run(job(settings=replace(FREE, subspace="values")), resume=True)
    run(job("values", replace(FREE, subspace="values", lr=1e-3, eps=1e-2)))
    assert run(job("values", replace(FREE, lr=1e-3, eps=1e-2)), resume=True).finished
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        run(job("nowhere"), resume=True)
    path = job("values").folder.settings
    path.write_text(re.sub('"subspace": "values"', '"subspace": "rows"', path.read_text()))
    with pytest.raises(CheckpointError, match="subspace is 'rows', expected one of values, rows-columns"):
        run(job("values"), resume=True)


@pytest.mark.parametrize("steps", [None, 3])
def test_replay_from_the_file_and_export(steps: int | None, job: Callable[..., Job], checkpoint: Path) -> None:
    work = job()
    run(work)
    recorded = zoquant.Trajectory.load(work.folder.trajectory)
    views = recorded_views(checkpoint, recorded)
    zoquant.replay(recorded, views, steps=steps)
    again = work.folder.path / "again.safetensors"
    zoquant.save_delta(again, views)
    assert (again.read_bytes() == work.folder.delta.read_bytes()) == (steps is None)
    tuned = export(checkpoint, delta=work.folder.delta, out=work.folder.path / "tuned.gguf")
    model, _ = zoquant.load(tuned, compute_dtype=torch.float32)
    exported = work.held_out.evaluate(model)  # type: ignore[union-attr]
    assert exported == work.folder.evaluations()[-1][1]


class NarrowMemory(Classification):
    """A task whose forward takes four rows while it trains: half of what a step wants."""

    seen: list[int]

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        self.seen.append(batch.weight)
        if batch.weight > 4:
            raise MemoryError
        return super().losses(model, batch)


def test_a_batch_that_does_not_fit_goes_through_in_halves(job: Callable[..., Job]) -> None:
    whole, cut = job("whole"), job("cut", kind=NarrowMemory)
    cut.train.seen = []  # type: ignore[attr-defined]
    run(whole)
    run(cut)
    assert cut.train.seen[:5] == [2, 1, 8, 4, 4]  # type: ignore[attr-defined]
    one, other = (zoquant.Trajectory.load(work.folder.trajectory).steps for work in (whole, cut))
    assert [step.seeds for step in one] == [step.seeds for step in other]
    for step, same in zip(one, other, strict=True):
        assert step.derivatives == pytest.approx(same.derivatives, rel=2e-2, abs=3e-3)


def test_a_step_is_two_forwards_of_its_batch(job: Callable[..., Job]) -> None:
    seen: list[Progress] = []
    outcome = run(job(), on_progress=seen.append)
    for progress in seen:
        if progress.result is not None:
            assert 0 < 2 * progress.forward_seconds <= progress.seconds
    assert outcome.overhead is not None
    assert outcome.forward_seconds is not None
    assert outcome.step_seconds is not None
    assert outcome.overhead >= 1
    assert 2 * outcome.forward_seconds <= outcome.step_seconds * 1.5


def test_a_trainer_with_one_loss_a_batch_refuses_rows_and_columns() -> None:
    check_subspace(Settings())
    with pytest.raises(ValueError, match="subspace is 'rows-columns', which needs the loss of each example"):
        check_subspace(Settings(subspace="rows-columns"))
