"""A learning rate is halved where the loss rises above that of the start, and not otherwise."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from zoquant.optim.rising import Rising
from zoquant.tasks import Classification, Template
from zoquant.tasks.template import parse_words
from zoquant.training import Job, Progress, RunFolder, Settings, run

CPU = torch.device("cpu")


def factors(losses: list[float], steps: int = 40) -> list[float]:
    watch, found = Rising(steps), []
    for loss in losses:
        watch.see(loss)
        found.append(watch.factor)
    return found


@given(st.integers(0, 2**32), st.floats(0.01, 1.0))
def test_a_loss_that_falls_or_stays_is_left_alone(seed: int, slope: float) -> None:
    draw = random.Random(seed)
    assert set(factors([5 - slope * step / 40 + draw.uniform(-0.01, 0.01) for step in range(40)])) == {1.0}
    assert set(factors([2.0] * 40)) == {1.0}


def test_a_loss_that_rises_halves_the_rate_once_a_window_until_it_falls() -> None:
    def of(*means: float) -> list[float]:
        return [mean + 0.1 * (-1) ** step for mean in means for step in range(8)]

    assert factors(of(1, 2, 3, 2.5, 2.5))[7::8] == [1, 0.5, 0.25, 0.25, 0.125]
    assert factors(of(1, 1.05, 1.1, 0.9, 1.04))[7::8] == [1, 1, 1, 1, 1]


def test_losses_of_any_size_are_compared() -> None:
    assert factors([1e308 * (-1) ** step for step in range(40)])[-1] == 1
    assert factors([1e300] * 8 + [1e301] * 8)[-1] == 0.5


def test_a_window_is_a_twentieth_of_a_run_and_eight_steps_at_least() -> None:
    rising = [1 + step / 10 for step in range(400)]
    assert factors(rising, steps=7)[:15] == [1.0] * 15
    assert factors(rising, steps=400).index(0.5) == 39


class Worse(Classification):
    """Whose loss is larger by 5 from the 9th step on, at all probes alike."""

    step = 0

    def batch_of_step(self, seed: int, step: int, size: int) -> Any:
        self.step = step
        return super().batch_of_step(seed, step, size)

    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch) + 5 * (self.step >= 8)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    checkpoint = write_checkpoint(tmp_path / "base.gguf")

    def make(name: str, **changes: Any) -> Job:
        model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
        examples = Worse(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, CPU)
        settings = Settings(steps=20, batch_size=4, lr=1e-3, schedule="constant", if_loss_rises="halve")
        return Job(model, examples, None, replace(settings, **changes), RunFolder(tmp_path / name))

    return make


def rates(work: Job) -> list[float]:
    return [line["lr"] for line in work.folder.read_metrics()]


@pytest.mark.parametrize("way", [{"gradient": "backward"}, {"eps": 1e-2, "subspace": "values"}])
def test_a_run_halves_says_so_and_goes_on_to_the_same_bytes(job: Callable[..., Job], way: dict[str, Any]) -> None:
    seen: list[Progress] = []
    whole, stopped, kept = job("whole", **way), job("stopped", **way), job("kept", **way, if_loss_rises="keep")
    run(whole, on_progress=seen.append)
    assert rates(whole) == pytest.approx([1e-3] * 16 + [5e-4] * 4)
    (notice,) = [each.notice for each in seen if each.notice and "risen" in each.notice]
    assert notice.startswith("step 16: the loss of the examples has risen from ")
    assert notice.endswith("the learning rate is halved, to 0.5 of what it would be.")

    def stop(progress: Progress) -> None:
        if progress.step == 14 and progress.result is not None:
            raise KeyboardInterrupt

    run(stopped, on_progress=stop)
    run(replace(stopped, model=job("other").model), resume=True)
    assert stopped.folder.delta.read_bytes() == whole.folder.delta.read_bytes()
    run(kept)
    assert rates(kept) == pytest.approx([1e-3] * 20)


def test_a_rate_that_is_given_is_kept() -> None:
    assert Settings().resolved().if_loss_rises == "halve"
    assert Settings(gradient="backward").resolved().if_loss_rises == "halve"
    assert Settings(lr=1e-3).resolved().if_loss_rises == "keep"
    assert Settings(lr=1e-3, if_loss_rises="halve").resolved().if_loss_rises == "halve"
