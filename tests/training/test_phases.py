"""A run that begins by backwards and ends by forwards: one command, one folder, one delta, to the same bytes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.distributed.processes import on_ranks
from tests.tiny import LABELS, TEMPLATE, write_checkpoint, write_rows
from zoquant.checkpoint.replay_views import checkpoint_views
from zoquant.errors import DataError
from zoquant.record.delta import Delta
from zoquant.report.run_reading import Recorded
from zoquant.training import Config, Progress, Settings, Source, evaluate, finetune
from zoquant.training.phases import joined

DELTA = "delta.safetensors"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    write_checkpoint(tmp_path / "base.gguf")
    write_rows(tmp_path / "rows.jsonl")
    values = {
        "model": str(tmp_path / "base.gguf"), "data": str(tmp_path / "rows.jsonl"), "template": TEMPLATE,
        "labels": LABELS, "steps": 3, "forward_steps": 4, "batch_size": 4, "gradient": "backward", "lr": 1e-3,
        "compute_dtype": "float32", "device": "cpu",
        "eval_data": str(tmp_path / "rows.jsonl"),
    }  # fmt: skip
    return lambda **changes: Config.of(values | changes)


def stopping(at: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step == at and progress.result is not None:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("space", ["relative", "absolute"])
def test_joined_is_what_both_runs_make_of_a_value(tmp_path: Path, space: Any) -> None:
    path = write_checkpoint(tmp_path / "base.gguf")
    key = "model.layers.0.mlp.up_proj.d"
    generator = torch.Generator().manual_seed(0)
    first = checkpoint_views(path, [key], coupled=False)
    first.space = space
    scale = 0.1 if space == "relative" else 0.1 * float(first.base(key).abs().mean())
    first.set_delta({key: scale * torch.randn(first[0].shape, generator=generator)})
    start = Delta.of(first)
    added = {key: scale * torch.randn(first[0].shape, generator=generator)}
    if space == "relative":
        start.values[key][0, 0], added[key][0, 0] = -1.5, -3.0  # a scale that stopped at zero stays there
    total = joined(start, Delta(added, {}, space)).values[key].double()
    base = first.base(key).double()
    one, two = start.values[key].double(), added[key].double()
    expected = base * (1 + one) * (1 + two) if space == "relative" else base + one + two
    if space == "relative":
        expected[0, 0] = base[0, 0] * (1 - 1.5)
    found = base * (1 + total) if space == "relative" else base + total
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    untouched = joined(start, Delta({}, {}, space)).values[key]
    assert torch.equal(untouched, start.values[key])


def test_a_run_begins_by_backwards_and_ends_by_forwards(config: Callable[..., Config], tmp_path: Path) -> None:
    seen: list[Progress] = []
    out = tmp_path / "run"
    summary = finetune(config(eval_every=0), out, on_progress=seen.append)
    assert summary["finished"]
    assert summary["steps"] == 7
    steps = [each.step for each in seen if each.result is not None or each.skipped is not None]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_primary" not in line] == steps
    assert [line["step"] for line in lines if "eval_primary" in line] == [0, 3, 7]
    asked = config()
    source = Source(asked.model, compute_dtype="float32", device="cpu")
    found = evaluate(source, asked.data, asked.asked, out / DELTA)
    assert found.loss == summary["eval_after"]["loss"]
    then = out / "forward"
    assert (then / "trajectory.safetensors").exists()
    assert json.loads((then / "settings.json").read_text())["gradient"] == "forward"
    assert "the last 4 steps with forward passes alone" in (out / "README.md").read_text()
    assert "forward_steps = 4" in (out / "config.toml").read_text()
    assert len(Recorded.read(out, "run").stepwise("loss")) == 7
    exported = zoquant.export(asked.model, delta=out / DELTA, out=tmp_path / "tuned.gguf")
    assert exported is not None
    finetune(Config.read(out / "config.toml", {}), tmp_path / "again")
    assert (tmp_path / "again" / DELTA).read_bytes() == (out / DELTA).read_bytes()


@pytest.mark.parametrize("at", [2, 3, 5, 7])
def test_a_run_that_was_stopped_in_either_part_goes_on_to_the_same_bytes(
    config: Callable[..., Config], tmp_path: Path, at: int
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    finetune(config(), whole)
    stopped = finetune(config(), part, on_progress=stopping(at))
    assert not stopped["finished"]
    assert stopped["steps"] == at
    assert finetune(config(), part, resume=True)["finished"]
    names = (DELTA, "forward/delta.safetensors", "forward/trajectory.safetensors")
    assert all((part / name).read_bytes() == (whole / name).read_bytes() for name in names)
    before, after = (
        [line["step"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]
        for out in (whole, part)
    )
    assert sorted(set(before)) == sorted(set(after))
    assert finetune(config(), part, resume=True)["finished"]  # a finished run stays as it is
    assert (part / DELTA).read_bytes() == (whole / DELTA).read_bytes()


def test_forward_steps_that_fit_nothing_are_refused(config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="forward_steps is 3, expected 0, or more with gradient backward"):
        Settings(forward_steps=3)
    with pytest.raises(ValueError, match="forward_steps is -1"):
        Settings(forward_steps=-1, gradient="backward")
    with pytest.raises(DataError, match=r"Take objective loss, gradient forward, or forward_steps, which follow"):
        finetune(config(forward_steps=0, objective="accuracy"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_forwards_take_the_objective_and_the_gradient_the_loss(config: Callable[..., Config], tmp_path: Path) -> None:
    out, calls = tmp_path / "run", list[float]()

    def objective(model: Any, batch: Any) -> float:
        calls.append(float(batch.ids.double().mean()))
        return float(model(input_ids=batch.ids, use_cache=False).logits.double().square().mean()) + 100

    assert finetune(config(), out, objective=objective)["finished"]
    assert calls
    losses = [
        line["loss"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert max(losses[:3]) < 10
    assert min(losses[3:]) > 100
    assert not (out / "config.toml").exists()


def ends_on_a_rank(rank: int, config: Config, out: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do a run on a rank of two, and return its summary and what its model holds in the end."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    opened = config.source.open()
    found = finetune(config, out, opened=opened)
    views = zoquant.attach(opened[0])
    return found, {key: views.base(key) for key in views.keys}


def test_two_ranks_within_a_bound_end_with_the_same_bytes(config: Callable[..., Config], tmp_path: Path) -> None:
    asked = config(memory="1GiB", objective="accuracy")
    (summary, held), (_, other) = on_ranks(2, ends_on_a_rank, asked, str(tmp_path / "run"))
    assert summary["steps"] == 7
    assert held.keys() == other.keys()
    assert all(torch.equal(held[key], other[key]) for key in held)
    model, _ = zoquant.load(tmp_path / "base.gguf", compute_dtype=torch.float32)
    zoquant.load_delta(tmp_path / "run" / DELTA, zoquant.attach(model))
    after = zoquant.attach(model)
    assert all(torch.equal(held[key], after.base(key)) for key in held)
