"""Compiled noise is the noise of the definition, and many directions in one walk are one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoquant import kernels, noise
from zoquant.buffer import FlatBuffer
from zoquant.errors import ShapeError
from zoquant.kernels.noise import accumulate, draw
from zoquant.noise import BLOCK, KINDS, Kind, NoiseSource, reference
from zoquant.views import TensorView

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("compiled")
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 2**64 - 1)
layouts = st.lists(st.tuples(st.text(max_size=9), st.integers(1, 20 * BLOCK)), min_size=1, max_size=5)
directions = st.lists(st.tuples(seeds, st.floats(-2, 2, width=32)), max_size=6)


def by_torch(source: NoiseSource, seed: int, size: int) -> Tensor:
    return source._look_up(source._words(seed), 0, torch.empty(size))


def source_of(layout: list[tuple[str, int]], kind: Kind) -> tuple[NoiseSource, int]:
    counts = [count for _, count in layout]
    return NoiseSource([key for key, _ in layout], counts, kind, CPU), sum(-(-n // BLOCK) for n in counts) * BLOCK


@given(layouts, seeds, kinds)
def test_noise_is_the_reference(layout: list[tuple[str, int]], seed: int, kind: Kind) -> None:
    source, size = source_of(layout, kind)
    z, start = source.draw(seed, 0, torch.full([size], float("nan"))), 0
    for key, count in layout:
        np.testing.assert_array_equal(z[start : start + count].numpy(), reference(seed, key, count, kind))
        start += -(-count // BLOCK) * BLOCK
    assert torch.equal(z, by_torch(source, seed, size))


@given(layouts, seeds, kinds, st.floats(-1, 1, width=32))
def test_probe_is_torch_add(layout: list[tuple[str, int]], seed: int, kind: Kind, eps: float) -> None:
    source, size = source_of(layout, kind)
    delta = torch.randn(size, generator=torch.Generator().manual_seed(seed % 97)) * 0.1
    expected = torch.add(delta, by_torch(source, seed, size), alpha=eps)
    assert torch.equal(source.probe(seed, 0, delta, eps, torch.empty(size)), expected)
    start = size // BLOCK // 2 * BLOCK
    assert torch.equal(source.probe(seed, start, delta[start:], eps, torch.empty(size - start)), expected[start:])


@given(layouts, directions, kinds)
def test_accumulate_is_one_step_after_the_other(
    layout: list[tuple[str, int]], steps: list[tuple[int, float]], kind: Kind
) -> None:
    source, size = source_of(layout, kind)
    expected = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.1
    delta = expected.clone()
    for seed, amount in steps:
        expected.add_(by_torch(source, seed, size).mul_(amount))
    source.accumulate([seed for seed, _ in steps], [amount for _, amount in steps], delta)
    assert torch.equal(delta, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_moves_the_same_without_compiled_code(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.randn(count, generator=torch.Generator().manual_seed(count)).half() for count in (140_000, 77, 500)]

    def moved() -> tuple[Tensor, list[Tensor]]:
        buffer = FlatBuffer([TensorView(f"v{n}", "scale", value.clone()) for n, value in enumerate(values)], CPU)
        buffer.add(3, 0.1, kind)
        buffer.accumulate([4, 5, 2**63], [0.3, -1e-3, 1 / 3], kind)
        buffer.write(seed=9, eps=1e-2, noise=kind)
        return buffer.delta, [view.read() for view in buffer.views]

    fast = moved()
    monkeypatch.setattr(noise, "compiled_for", lambda counters: False)
    slow = moved()
    assert torch.equal(fast[0], slow[0])
    assert all(torch.equal(a, b) for a, b in zip(fast[1], slow[1], strict=True))


def test_threads_do_not_matter() -> None:
    source, size = source_of([("a", 70_000), ("b", 3)], "rademacher")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(source.accumulate([1, 2], [0.1, 0.2], torch.zeros(size)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_does_not_fit_is_refused() -> None:
    counters, table = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(1)
    with pytest.raises(ShapeError, match="expected a stretch of whole blocks of 128 elements within 256"):
        draw(0, table, counters, 0, 128, torch.empty(256))
    with pytest.raises(ShapeError, match="expected 256 elements and an amount a seed, got 128 elements"):
        accumulate(0, table, counters, [1], [1.0], torch.empty(128))
    with pytest.raises(ShapeError, match=r"expected a contiguous torch\.float32 tensor on the CPU, got torch\.float64"):
        accumulate(0, table, counters, [], [], torch.empty(256, dtype=torch.float64))
    assert kernels.status().startswith("compiled: ")
