"""Compiled noise is the noise of the definition, and many directions in one walk are one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.threads import threads
from zoquant import kernels
from zoquant.errors import ShapeError
from zoquant.kernels.noise.compiled import accumulate, draw
from zoquant.kernels.noise.definition import BLOCK, Kind, reference
from zoquant.kernels.noise.source import NoiseSource
from zoquant.kernels.noise.tables import NoiseTables

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("compiled")
kinds = st.sampled_from(("rademacher", "gaussian"))
seeds = st.integers(0, 2**64 - 1)
layouts = st.lists(st.tuples(st.text(max_size=9), st.integers(1, 20 * BLOCK)), min_size=1, max_size=5)
directions = st.lists(st.tuples(seeds, st.floats(-2, 2, width=32)), max_size=6)


def sources(layout: list[tuple[str, int]], kind: Kind) -> tuple[NoiseSource, NoiseSource, int]:
    """Return a source that is compiled, one that is not, and the size of their layout."""
    counts = [count for _, count in layout]
    fast, slow = (NoiseSource([key for key, _ in layout], counts, kind, CPU) for _ in range(2))
    assert fast.kernels is not None
    slow.kernels = None
    return fast, slow, sum(-(-n // BLOCK) for n in counts) * BLOCK


def random(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)) * 0.1


@given(layouts, seeds, kinds)
def test_noise_is_the_reference(layout: list[tuple[str, int]], seed: int, kind: Kind) -> None:
    fast, slow, size = sources(layout, kind)
    z, start = fast.draw(seed, 0, torch.full([size], float("nan"))), 0
    for key, count in layout:
        np.testing.assert_array_equal(z[start : start + count].numpy(), reference(seed, key, count, kind))
        start += -(-count // BLOCK) * BLOCK
    assert torch.equal(z, slow.draw(seed, 0, torch.empty(size)))


@given(layouts, seeds, kinds, st.floats(-1, 1, width=32))
def test_probe(layout: list[tuple[str, int]], seed: int, kind: Kind, eps: float) -> None:
    fast, slow, size = sources(layout, kind)
    delta = random(size)
    expected = slow.probe(seed, 0, delta, eps, torch.empty(size))
    assert torch.equal(fast.probe(seed, 0, delta, eps, torch.empty(size)), expected)
    start = size // BLOCK // 2 * BLOCK
    assert torch.equal(fast.probe(seed, start, delta[start:], eps, torch.empty(size - start)), expected[start:])


@given(layouts, directions, kinds)
def test_accumulate_is_one_step_after_the_other(
    layout: list[tuple[str, int]], steps: list[tuple[int, float]], kind: Kind
) -> None:
    fast, slow, size = sources(layout, kind)
    whole, pieces, expected = random(size), random(size), random(size)
    for seed, amount in steps:
        slow.accumulate(expected, 0, [seed], [amount])
    chosen, amounts = [seed for seed, _ in steps], [amount for _, amount in steps]
    fast.accumulate(whole, 0, chosen, amounts)
    middle = size // BLOCK // 2 * BLOCK
    for start, stop in ((0, middle), (middle, size)):
        fast.accumulate(pieces[start:stop], start, chosen, amounts)
    assert torch.equal(whole, expected)
    assert torch.equal(pieces, expected)


def test_threads_do_not_matter() -> None:
    source, _, size = sources([("a", 70_000), ("b", 3)], "rademacher")
    found = []
    for count in (1, 2, 5):
        found.append(torch.zeros(size))
        with threads(count):
            source.accumulate(found[-1], 0, [1, 2], [0.1, 0.2])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_does_not_fit_is_refused() -> None:
    noise = NoiseTables(0, torch.zeros(1), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="expected a stretch of whole blocks of 128 elements within 256"):
        draw(noise, 0, 128, torch.empty(256))
    with pytest.raises(ShapeError, match="expected 256 elements and an amount a seed, got 128 elements"):
        accumulate(noise, [1], [1.0], torch.empty(128))
    with pytest.raises(ShapeError, match=r"expected a contiguous torch\.float32 tensor on the CPU, got torch\.float64"):
        accumulate(noise, [], [], torch.empty(256, dtype=torch.float64))
    assert kernels.status().startswith("compiled: ")
