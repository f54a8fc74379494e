"""A linear probe finds the best values of the norm in front of the head, or leaves it alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.tiny import LABELS, TEMPLATE, write_checkpoint, write_rows
from zoquant.errors import CheckpointError, ConfigError, DataError, LossError
from zoquant.tasks.final_norm import final_norm, left_out
from zoquant.tasks.kinds.classification import Classification
from zoquant.training import Config, Progress, Settings, Source, evaluate, finetune
from zoquant.training.linear_probe.fit import Fit
from zoquant.training.linear_probe.steps import LinearProbe
from zoquant.views.gradients import Gradients

DELTA = "delta.safetensors"
ROWS = [
    {"sentence": f"the {thing} {verb} here", "label": label}
    for label, verbs in (("0", ("broke", "failed")), ("1", ("shone", "worked")))
    for verb in verbs
    for thing in ("lamp", "radio", "tap", "old car", "red boat", "wind", "door", "cable", "lift", "mill")
]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    write_checkpoint(tmp_path / "base.gguf")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    values = {
        "model": str(tmp_path / "base.gguf"), "data": str(tmp_path / "rows.jsonl"), "template": TEMPLATE,
        "labels": LABELS, "steps": 5, "batch_size": 4, "gradient": "linear-probe",
        "compute_dtype": "float32", "device": "cpu", "eval_data": str(tmp_path / "rows.jsonl"),
    }  # fmt: skip
    return lambda **changes: Config.of(values | changes)


def opened(config: Config, **changes: Any) -> tuple[nn.Module, Classification, LinearProbe]:
    model, tokenizer = zoquant.load(config.model, compute_dtype=torch.float32)
    rows = [json.loads(line) for line in Path(config.data).read_text().splitlines()]
    task: Any = config.asked.build(rows, model, tokenizer, torch.device("cpu"))
    return model, task, LinearProbe(model, task, Settings(gradient="linear-probe", **changes))


def test_the_norm_moves_and_nothing_else(config: Callable[..., Config], tmp_path: Path) -> None:
    seen: list[Progress] = []
    asked, out = config(), tmp_path / "run"
    summary = finetune(asked, out, on_progress=seen.append)
    assert summary["finished"]
    assert (summary["steps"], summary["views"], summary["trainable"]) == (1, 1, 256)
    assert any("Fitting model.norm, the norm in front of the head, to 20 rows" in (each.notice or "") for each in seen)
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"] - 0.1
    assert summary["eval_after"]["accuracy"] > summary["eval_before"]["accuracy"]
    tuned = tmp_path / "tuned.gguf"
    zoquant.export(asked.model, delta=out / DELTA, out=tuned)
    assert tuned.stat().st_size == Path(asked.model).stat().st_size
    source = Source(str(tuned), compute_dtype="float32", device="cpu")
    assert evaluate(source, asked.data, asked.asked).loss == summary["eval_after"]["loss"]
    assert "found by a linear probe of the norm in front of the head" in (out / "README.md").read_text()
    finetune(Config.read(out / "config.toml", {}), tmp_path / "again")
    assert (tmp_path / "again" / DELTA).read_bytes() == (out / DELTA).read_bytes()


def test_a_probe_that_was_stopped_goes_on_to_the_same_bytes(config: Callable[..., Config], tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.result is not None:
            raise KeyboardInterrupt

    whole, part = tmp_path / "whole", tmp_path / "part"
    finetune(config(), whole)
    assert not finetune(config(), part, on_progress=stop)["finished"]
    assert finetune(config(), part, resume=True)["finished"]
    assert (part / DELTA).read_bytes() == (whole / DELTA).read_bytes()
    with pytest.raises(CheckpointError, match="begun with seed 0, now it is 1"):
        finetune(config(seed=1), part, resume=True)


def test_the_fit_is_the_least_of_a_convex_loss(config: Callable[..., Config]) -> None:
    model, task, probe = opened(config())
    rows = list(range(len(task)))
    norm: Any = model.get_submodule(final_norm(model))
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    with left_out(norm), torch.no_grad():
        states = task.last_states(model, rows)
    with torch.no_grad():
        words = head(torch.eye(states.shape[1])).double()[:, [word[0] for word in task.words]]
        features = norm(states).double()
    labels = torch.tensor(task.labels)

    def loss_of(delta: Tensor) -> Tensor:
        return nn.functional.cross_entropy((features * (1 + delta)) @ words, labels) + 1e-2 * delta.square().sum()

    with Gradients(nn.ModuleList([norm, head]), probe.views) as deltas:
        fit = Fit(lambda x: task.word_scores(model, norm(x)), states, labels, deltas)
        loss, steepness = fit.start()
        fit.fit(1e-2, fit.all)
    delta = probe.views.delta(probe.views.keys[0]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(delta), delta)
    start = torch.zeros_like(delta).requires_grad_()
    (steep,) = torch.autograd.grad(loss_of(start), start)
    assert loss == pytest.approx(float(loss_of(start).detach()), rel=1e-4)
    assert steepness == pytest.approx(float(steep.norm()), rel=1e-3)
    assert float(gradient.norm()) < 1e-2 * float(steep.norm())


def test_where_nothing_is_to_be_learned_the_norm_mostly_stays(config: Callable[..., Config]) -> None:
    model, task, probe = opened(config())
    norm = probe.parts[0]
    chosen = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        states, labels = torch.randn(40, 256, generator=generator), torch.randint(2, (40,), generator=generator)
        with Gradients(probe.parts, probe.views) as deltas:
            fit = Fit(lambda x: task.word_scores(model, norm(x)), states, labels, deltas)
            chosen.append(fit.best_penalty())
        assert not probe.views.delta(probe.views.keys[0]).any()
    assert chosen.count(None) >= 5  # of labels that are drawn at random


def test_a_state_that_is_not_finite_moves_nothing(config: Callable[..., Config]) -> None:
    _, task, probe = opened(config())
    task.last_states = lambda model, rows, **_: torch.full((len(rows), 256), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(LossError, match="a hidden state is NaN or infinite"):
        probe.step()
    assert probe.done == 0
    assert not probe.views.delta(probe.views.keys[0]).any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": "0=terrible,1=good"}, DataError, "label words of one token each, and one of these has several"),
        ({"objective": "accuracy"}, DataError, "not task classification with objective accuracy"),
        ({"lr": 1e-3}, ValueError, "lr is 0.001, but gradient is linear-probe"),
        ({"roles": ("zero",)}, ValueError, r"roles is \('zero',\), but gradient is linear-probe"),
        ({"checkpoint": True}, ValueError, "checkpoint is for gradient backward"),
        ({"memory": "6GiB"}, ConfigError, "a linear probe takes what an evaluation takes"),
    ],
)
def test_what_it_is_not_for_is_refused(
    config: Callable[..., Config], tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        finetune(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
