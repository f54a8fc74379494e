"""Memory that runs out in an evaluation: fewer examples at a time, and the same measure of each."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from tests.tasks.kinds import test_choice, test_generation, test_masked
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant.errors import DoesNotFitError
from zoquant.native import QuantEmbedding
from zoquant.tasks import Classification, LanguageModeling, MaskedClassification, Task, TaskSettings, Template
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.kinds.language import text_sequences
from zoquant.tasks.template import parse_words
from zoquant.training import Config, Settings, Source, evaluate, finetune

CPU = torch.device("cpu")
tokenizer = test_masked.tokenizer
"""The one of the masked models."""


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 12))
def test_every_example_is_measured_once_and_in_order(sizes: list[int], room: int) -> None:
    numbers = iter(range(sum(sizes)))
    groups = [[next(numbers) for _ in range(size)] for size in sizes]
    failed: list[int] = []

    def measure(some: list[int]) -> list[int]:
        if len(some) > room:
            failed.append(len(some))
            raise MemoryError
        return [10 * number for number in some]

    found = [
        (example, value)
        for some, values in in_groups(groups, measure)
        for example, value in zip(some, values, strict=True)
    ]
    assert found == [(number, 10 * number) for number in range(sum(sizes))]
    assert failed == sorted(failed, reverse=True)
    assert len(set(failed)) == len(failed)  # what did not fit is not tried again


def test_one_example_that_does_not_fit_and_other_errors() -> None:
    def measure(some: list[int]) -> None:
        raise MemoryError if some != [7] else KeyError("shape")

    with pytest.raises(DoesNotFitError, match="evaluation: one example alone does not fit in memory: MemoryError"):
        list(in_groups([[1, 2, 3]], measure))
    with pytest.raises(KeyError):
        list(in_groups([[7]], measure))


@contextmanager
def room_for(tokens: int, seen: list[int]) -> Iterator[None]:
    """Let every look-up of more tokens at once run out of memory, and note how many each one has."""

    def limited(forward: Any) -> Any:
        def checked(self: Any, ids: torch.Tensor) -> torch.Tensor:
            seen.append(ids.numel())
            if ids.numel() > tokens:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            found: torch.Tensor = forward(self, ids)
            return found

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for layer in (QuantEmbedding, torch.nn.Embedding):
            patch.setattr(layer, "forward", limited(layer.forward))
        yield


def tasks(model: Any, tokenizer: Any) -> dict[str, Task[Any]]:
    return {
        "classification": Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, CPU),
        "choice": test_choice.task(tokenizer),
        "generation": test_generation.task(tokenizer),
        "language": LanguageModeling(text_sequences(ROWS, "sentence", tokenizer, 64), CPU),
    }


def same(small: Any, whole: Any) -> None:
    assert small.examples == whole.examples
    for name, metric in whole.metrics.items():
        assert small[name] == pytest.approx(metric.value, rel=1e-4), name


@pytest.mark.parametrize("name", ["classification", "choice", "generation", "language"])
def test_a_task_is_measured_in_halves(name: str, loaded: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    task, seen = tasks(*loaded)[name], list[int]()
    with room_for(1 << 30, seen):
        whole = task.evaluate(loaded[0])
    most = max(seen)
    assert most > 1
    with room_for(most // 2, seen), caplog.at_level(logging.WARNING, logger="zoquant"):
        same(task.evaluate(loaded[0]), whole)
    assert "evaluation: out of memory (CUDA out of memory). From here on at most" in caplog.text


def test_a_masked_task_is_measured_in_halves(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**test_masked.SMALL)).eval()
    task, seen = MaskedClassification(test_masked.ROWS, test_masked.CLOZE, tokenizer, CPU), list[int]()
    whole = task.evaluate(model)
    with room_for(20, seen):
        same(task.evaluate(model), whole)
    assert max(seen) > 20


def test_a_run_and_eval_go_on_where_an_evaluation_does_not_fit(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    source = Source(str(write_checkpoint(tmp_path / "model.gguf")), compute_dtype="float32", device="cpu")
    asked = TaskSettings(template=TEMPLATE, labels=parse_words(LABELS))
    settings, seen = Settings(steps=2, batch_size=2, lr=1e-3, eps=1e-2), list[int]()
    config = Config(source.model, str(rows), asked, str(rows), compute_dtype="float32", device="cpu", settings=settings)
    whole = finetune(config, tmp_path / "whole")
    with room_for(150, seen):  # two examples, not twelve
        cut = finetune(config, tmp_path / "cut")
        found = evaluate(source, rows, asked, tmp_path / "cut" / "delta.safetensors")
    assert max(seen) > 150
    assert not (tmp_path / "cut" / "micro_batches.json").exists()
    assert (tmp_path / "cut" / "delta.safetensors").read_bytes() == (
        tmp_path / "whole" / "delta.safetensors"
    ).read_bytes()
    for when in ("eval_before", "eval_after"):
        assert cut[when]["loss"] == pytest.approx(whole[when]["loss"], rel=1e-4)
    assert found.loss == pytest.approx(whole["eval_after"]["loss"], rel=1e-4)
