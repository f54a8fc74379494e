"""The step that a run tests: the one that did best on held-out data, with the bytes that it had then."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from tests.toy import toy_batch, toy_loss, toy_model
from zoquant.record.group import Subspace
from zoquant.tasks import Classification, Evaluation, Metric, Template
from zoquant.tasks.template import parse_words
from zoquant.testing.tensors import same_bits
from zoquant.training import Job, RunFolder, Settings, run
from zoquant.training.best_step import CAUSAL, MASKED, BestStep, holding

SETTINGS = Settings(steps=5, batch_size=4, lr=1e-2, eps=3e-2, schedule="constant")


class HeldOut:
    """Held-out data of which losses and accuracies are known beforehand."""

    def __init__(self, losses: Sequence[float], shares: Sequence[float] = ()) -> None:
        self.losses, self.shares = list(losses), list(shares) or [0.5] * len(losses)

    def evaluate(self, model: nn.Module) -> Evaluation:
        return measured(self.losses.pop(0), self.shares.pop(0))


def measured(loss: float, accuracy: float = 0.5) -> Evaluation:
    return Evaluation("accuracy", {"loss": Metric(loss, None), "accuracy": Metric(accuracy, None)}, 1)


def test_the_first_of_the_best_after_a_step() -> None:
    found = [(step, measured(loss, share)) for step, loss, share in ((0, 0.0, 1.0), (2, 0.3, 0.4), (4, 0.1, 0.7),
                                                                     (6, 0.1, 0.7), (8, 0.2, 0.6))]  # fmt: skip
    assert BestStep("loss", 5).among(found) == BestStep("accuracy", 10).among(found) == 4
    assert CAUSAL.among([(2, measured(0.1, 0.2)), (4, measured(0.2, 0.9))]) == 2
    assert MASKED.among([(2, measured(0.1, 0.2)), (4, measured(0.2, 0.9))]) == 4
    assert CAUSAL.among(found[:1]) is None
    assert CAUSAL.among([]) is None


def test_evaluations_of_mezo() -> None:
    assert CAUSAL.every(20_000) == 4_000
    assert MASKED.every(100_000) == 10_000
    assert CAUSAL.every(3) == 1


def test_another_delta_for_a_while() -> None:
    model = toy_model(layers=2)
    views = zoquant.attach(model)
    optimizer = zoquant.ZOSGD(views, lr=1e-2)
    for _ in range(4):
        optimizer.step(lambda: float(toy_loss(model, toy_batch())))
    early = optimizer.trajectory.prefix(1).delta(views)
    late = {key: views.delta(key) for key in views.keys}
    before = {view.name: view.read() for view in views}

    def look_and_fail() -> None:
        assert all(same_bits(views.delta(key), early.values[key]) for key in views.keys)
        assert any(not same_bits(view.read(), before[view.name]) for view in views)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), holding(views, early):
        look_and_fail()
    assert all(same_bits(views.delta(key), late[key]) for key in views.keys)
    assert all(same_bits(view.read(), before[view.name]) for view in views)


@pytest.mark.parametrize("subspace", get_args(Subspace))
def test_a_run_tests_its_best_step(subspace: Subspace, tmp_path: Path) -> None:
    """The delta that is tested is, byte for byte, the one that the run held after that step."""
    checkpoint = write_checkpoint(tmp_path / "tiny.gguf")

    def job(name: str, **changes: Any) -> Job:
        model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
        examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
        settings = replace(SETTINGS, subspace=subspace)
        return replace(Job(model, examples, examples, settings, RunFolder(tmp_path / name), {}), **changes)

    held_out: Any = HeldOut([0.0, 0.9, 0.2, 0.3, 0.2, 0.5])
    whole = job("whole", held_out=held_out, eval_every=1)
    outcome = run(replace(whole, test=whole.train))
    assert outcome.best_step == 2
    short = job("short")
    cut = run(replace(short, settings=replace(short.settings, steps=2)))
    assert whole.folder.delta.read_bytes() == short.folder.delta.read_bytes()
    assert outcome.test is not None
    assert outcome.test == cut.after
    assert outcome.after == measured(0.2)
    last, tested = job("last"), job("tested")
    recorded = zoquant.Trajectory.load(whole.folder.trajectory)
    zoquant.replay(recorded, zoquant.attach(last.model, include=tuple(recorded.base)))
    assert whole.train.evaluate(whole.model) == last.train.evaluate(last.model)
    zoquant.load_delta(whole.folder.delta, zoquant.attach(tested.model))
    assert outcome.test == tested.train.evaluate(tested.model)


def test_without_data_to_test_on_nothing_is_chosen(tmp_path: Path) -> None:
    model, tokenizer = zoquant.load(write_checkpoint(tmp_path / "tiny.gguf"), compute_dtype=torch.float32)
    examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
    job = Job(model, examples, examples, SETTINGS, RunFolder(tmp_path / "run"), {}, eval_every=1)
    outcome = run(job)
    assert outcome.best_step is None
    assert outcome.test is None


WAYS = {
    "values": {"lr": 1e-2, "eps": 3e-2, "subspace": "values"},
    "rows-columns": {"lr": 1e-2, "eps": 3e-2, "subspace": "rows-columns"},
    "backward": {"lr": 1e-2, "gradient": "backward"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_was_measured_better_than_the_last_is_kept_beside_it(way: str, tmp_path: Path) -> None:
    def done(name: str, steps: int, shares: Sequence[float]) -> Job:
        model, tokenizer = zoquant.load(write_checkpoint(tmp_path / f"{name}.gguf"), compute_dtype=torch.float32)
        examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
        settings: Any = Settings(steps=steps, batch_size=4, schedule="constant", **WAYS[way])  # type: ignore[arg-type]
        held_out: Any = HeldOut([1.0] * len(shares), shares)
        job = Job(model, examples, held_out, settings, RunFolder(tmp_path / name), {}, eval_every=1)
        outcome = run(job)
        better = max(range(1, steps + 1), key=lambda step: shares[step])
        assert outcome.better_step == (better if shares[better] > shares[-1] else None)
        assert (outcome.better is None) == (outcome.better_step is None)
        assert ("better" in outcome.to_dict()) == job.folder.best.exists() == (outcome.better_step is not None)
        assert outcome.after == measured(1.0, shares[-1])
        return job

    whole, short = done("whole", 4, [0.4, 0.5, 0.8, 0.6, 0.7]), done("short", 2, [0.4, 0.5, 0.6])
    assert whole.folder.best.read_bytes() == short.folder.delta.read_bytes()
    done("level", 2, [0.4, 0.6, 0.6])
