"""A bound on memory: sizes, estimates that are not below what is taken, and what is chosen."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant.errors import ConfigError, DoesNotFitError
from zoquant.optim.backward.live_bytes import LiveBytes
from zoquant.tasks import Classification, Template
from zoquant.tasks.objective import with_objective
from zoquant.tasks.template import parse_words
from zoquant.training import Config, Progress, Settings, finetune
from zoquant.training.config import convert, key_of
from zoquant.training.config.value import parse_size
from zoquant.training.memory import ways
from zoquant.training.memory.plan import Plan
from zoquant.training.memory.ways import Footprint
from zoquant.training.steps import cut

CPU = torch.device("cpu")
BACKWARD = Settings(steps=3, batch_size=8, gradient="backward")


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Classification]:
    monkeypatch.setattr(ways, "held_bytes", lambda device: 0)
    monkeypatch.setattr(ways, "_EVALUATED", 2)
    monkeypatch.setattr(ways, "_LATER", 0)
    model, tokenizer = zoquant.load(write_checkpoint(tmp_path / "tiny.gguf"), compute_dtype=torch.float32)
    return model, Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, CPU)


def test_sizes() -> None:
    assert parse_size("6GiB") == 6 << 30
    assert parse_size("512 MiB") == 512 << 20
    assert parse_size("1.5GB") == 1_500_000_000
    assert parse_size("100b") == 100


@pytest.mark.parametrize("text", ["6", "GiB", "0MiB", "-1GiB", "6 GiB of it", "nanGiB", ""])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a size such as 6GiB or 512MiB"):
        Config.of({"model": "m", "data": "d", "template": "{a} {label}", "labels": "0=a,1=b", "memory": text})
    assert convert("memory", "6GiB", key_of("memory").kind) == "6GiB"


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2, 8])
@pytest.mark.parametrize("rule", ["adam", "sign"])
def test_the_estimate_is_not_below_what_a_run_takes(
    setting: tuple[Any, Classification], checkpoint: bool, micro_batches: int, rule: str
) -> None:
    model, train = setting
    settings = replace(BACKWARD, checkpoint=checkpoint, micro_batches=micro_batches, rule=rule)
    expected = Footprint(model, train, settings, CPU).way(settings).bytes
    with LiveBytes() as live:
        views = zoquant.attach(model)
        with settings.descent(model, views) as descent:
            for step in range(3):
                parts = cut(train.batch_of_step(0, step, 8), micro_batches)
                descent.step([partial(train.loss, model, part) for part in parts])
        train.evaluate(model, batch_size=2)
    assert 0.2 * expected < live.peak <= expected


def test_the_estimate_of_forwards_is_not_below_what_they_take(setting: tuple[Any, Classification]) -> None:
    model, train = setting
    settings = Settings(batch_size=8)
    expected = Footprint(model, train, settings, CPU).way(settings).bytes
    with LiveBytes() as live, torch.no_grad():
        batch = train.batch_of_step(0, 0, 8)
        train.losses(model, batch.repeat(2))
    assert live.peak <= expected


def test_a_footprint_leaves_model_and_random_numbers_as_they_were(setting: tuple[Any, Classification]) -> None:
    model, train = setting
    state, before = torch.get_rng_state(), train.evaluate(model).loss
    Footprint(model, train, BACKWARD, CPU).way(replace(BACKWARD, checkpoint=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert train.evaluate(model).loss == before
    assert not train.loss(model, train.batch_of_step(0, 0, 2)).requires_grad


def test_the_fastest_way_below_a_bound_is_taken(setting: tuple[Any, Classification]) -> None:
    model, train = setting
    found = Footprint(model, train, BACKWARD, CPU)

    def chosen(bound: int, settings: Settings = BACKWARD) -> Settings:
        plan = Plan.make(model, train, settings, CPU, f"{bound}B", None)
        assert plan.way is not None
        assert plan.way.bytes <= bound
        return plan.settings

    tried = [(1, False), (2, False), (1, True), (2, True), (4, True), (8, True)]
    sizes = {
        way: found.way(replace(BACKWARD, micro_batches=way[0], checkpoint=way[1], rule="adam")).bytes for way in tried
    }
    for bound in sorted(sizes.values()):
        first = next(way for way in tried if sizes[way] <= bound)
        taken = chosen(bound)
        assert (taken.micro_batches, taken.checkpoint, taken.rule) == (*first, "adam")
    least = min(sizes.values())
    assert chosen(least - 1).rule == "sign"
    with pytest.raises(
        DoesNotFitError,
        match=r"memory is 0 MiB, but of all ways the least takes about \d+ MiB by --gradient backward --rule",
    ):
        chosen(1)
    with pytest.raises(DoesNotFitError, match="--rule adam --checkpoint --micro-batches 8"):
        chosen(least - 1, replace(BACKWARD, rule="adam"))
    assert chosen(1 << 40, replace(BACKWARD, micro_batches=4, checkpoint=True)).micro_batches == 4
    forward = Settings(batch_size=8)
    whole, halves = (found.way(replace(forward, micro_batches=count)).bytes for count in (1, 2))
    if halves < whole:
        assert chosen(halves, forward).micro_batches == 2


def test_what_a_run_says_before_it_begins(setting: tuple[Any, Classification], monkeypatch: pytest.MonkeyPatch) -> None:
    model, train = setting
    (told,) = Plan.make(model, train, BACKWARD, CPU, None, None).notices
    for words in (
        " MiB by --gradient backward --rule adam. Others: ",
        " MiB by forwards alone; ",
        "--checkpoint --micro-batches 4",
    ):
        assert words in told
    assert "--checkpoint --micro-batches 8" in told
    forward = Settings(batch_size=8)
    (told,) = Plan.make(model, train, forward, CPU, None, None).notices
    assert "The gradient would work here and fit: about " in told
    assert " MiB by --gradient backward --rule adam --checkpoint" in told
    monkeypatch.setattr(ways, "free_bytes", lambda device: 1)
    (told,) = Plan.make(model, train, forward, CPU, None, None).notices
    assert "gradient" not in told
    learned = with_objective(train, "accuracy")
    assert Plan.make(model, learned, forward, CPU, None, None).notices == ()
    with pytest.raises(ConfigError, match="what an objective takes cannot be told"):
        Plan.make(model, learned, forward, CPU, "6GiB", None)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    write_checkpoint(tmp_path / "base.gguf")
    write_rows(tmp_path / "rows.jsonl")
    values = {
        "model": str(tmp_path / "base.gguf"), "data": str(tmp_path / "rows.jsonl"), "template": TEMPLATE,
        "labels": LABELS, "steps": 4, "batch_size": 4, "gradient": "backward", "compute_dtype": "float32",
        "device": "cpu",
    }  # fmt: skip
    return lambda **changes: Config.of(values | changes)


def test_a_run_within_a_bound_names_what_was_chosen_and_goes_on_with_it(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    out, seen = tmp_path / "run", []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.step == 2:
            raise KeyboardInterrupt

    found = finetune(config(memory="64GiB", checkpoint=True), out, on_progress=stop)
    assert not found["finished"]
    assert 0 < found["memory_estimate_bytes"] < 64 << 30
    assert found["memory_peak_bytes"] > 0
    assert any("by --gradient backward" in (progress.notice or "") for progress in seen)
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["micro_batches"], settings["checkpoint"], settings["rule"]) == (1, True, "adam")
    assert "memory" not in (out / "config.toml").read_text()
    again = finetune(config(memory="32GiB"), out, resume=True)
    assert again["finished"]
    finetune(Config.read(out / "config.toml", {}), tmp_path / "same")
    delta = "delta.safetensors"
    assert (out / delta).read_bytes() == (tmp_path / "same" / delta).read_bytes()


def test_a_bound_that_adam_does_not_keep_below_takes_another_rule(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "held_bytes", lambda device: 0)
    with pytest.raises(DoesNotFitError, match="rule adam"):
        finetune(config(memory="1B", rule="adam"), tmp_path / "none")
    with pytest.raises(DoesNotFitError, match="rule sign") as error:
        finetune(config(memory="1B"), tmp_path / "none")
    assert "rule adam" not in str(error.value)
    assert config(memory="1GiB").resolved().settings.rule is None
    assert config().resolved().settings.rule == "adam"


def test_nothing_is_begun_where_nothing_fits(config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(DoesNotFitError, match="memory is 1 MiB, but of all ways the least takes about"):
        finetune(config(memory="1MiB"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
