"""What steps ask of memory: bytes that are alive, and those of many examples from two and three."""

from pathlib import Path

import pytest
import torch

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from zoquant.optim.backward import footprint
from zoquant.optim.backward.live_bytes import LiveBytes
from zoquant.tasks import Classification, Template
from zoquant.tasks.template import parse_words


def test_bytes_are_those_of_tensors_that_live() -> None:
    before = torch.ones(1000)
    with LiveBytes() as live:
        one = before + 1
        assert live.alive == 4000
        two = one.view(10, 100).mul_(2)  # the same memory
        assert live.alive == 4000
        three = two.double()
        assert (live.alive, live.peak) == (12000, 12000)
        del three
        assert live.alive == 4000
        before.add_(1)
    assert (live.alive, live.peak) == (4000, 12000)


def test_many_examples_follow_from_two_and_three() -> None:
    assert footprint.of_examples(6, [10, 3], [11, 6]) == 15
    assert footprint.of_examples(2, [10, 3], [11, 6]) == 10
    assert footprint.of_examples(5, [10, 3], [11, 6, 7]) == 30
    assert footprint.of_examples(5, [10, 3], None) == 30


@pytest.mark.parametrize("checkpoint", [False, True])
def test_what_follows_is_what_is_measured(tmp_path: Path, checkpoint: bool) -> None:
    model, tokenizer = zoquant.load(write_checkpoint(tmp_path / "tiny.gguf"), compute_dtype=torch.float32)
    train = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
    example = train.batch_of_step(0, 0, 1)

    def traced(count: int) -> list[int]:
        batch = example.repeat(count)
        return footprint.of_backward(model, lambda: train.loss(model, batch), roles=("scale",), checkpoint=checkpoint)

    traced(1)
    two, three, many = traced(2), traced(3), traced(9)
    assert len(two) == len(three)
    assert max(many) <= footprint.of_examples(9, two, three) <= 1.1 * max(many)
