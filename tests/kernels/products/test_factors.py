"""Compiled rows and columns leave the bits that torch leaves."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.threads import threads
from tests.toy import toy_model
from zoquant import attach
from zoquant.errors import ShapeError
from zoquant.kernels.build import library
from zoquant.kernels.noise.definition import Noise
from zoquant.kernels.products import factors
from zoquant.optim.probes.probed_layers import ratios
from zoquant.record.rows_and_columns import LEAST, RowsAndColumnsBuffer

pytestmark = pytest.mark.skipif(library() is None, reason="nothing is compiled here")

evaluations = st.lists(
    st.tuples(st.sampled_from((None, 0, 7, 2**64 - 1)), st.sampled_from((0.03, -0.03, 1.5))), min_size=1, max_size=6
)


def buffer_of(seed: int) -> RowsAndColumnsBuffer:
    """Return u and v of a model, some of them below the bound."""
    buffer = RowsAndColumnsBuffer(attach(toy_model(), roles=("scale", "zero")).buffers[0])
    buffer.delta.copy_(torch.randn(buffer.delta.shape, generator=torch.Generator().manual_seed(seed)))
    return buffer


@given(evaluations, st.sampled_from(("rademacher", "gaussian")), st.integers(0, 3), st.integers(1, 2))
def test_ratios_are_those_of_torch(blocks: Any, kind: Any, seed: int, workers: int) -> None:
    buffer, noise = buffer_of(seed), Noise(kind)
    with threads(workers):
        found = ratios(buffer, noise, blocks)
    assert buffer.kernels is factors
    buffer.kernels = None
    assert torch.equal(found.view(torch.int32), ratios(buffer, noise, blocks).view(torch.int32))


@given(st.integers(0, 3), st.integers(1, 2), st.booleans())
def test_deltas_are_those_of_torch(seed: int, workers: int, transposed: bool) -> None:
    u, v = torch.randn(2, 37, generator=torch.Generator().manual_seed(seed)).unbind()
    v, vectors = v[:21], torch.cat([u, v[:21]])
    delta = torch.full((5 + 37 * 21 + 5,), 9.0)
    with threads(workers):
        factors.compose(torch.tensor([[0, 37, 37, 21, 5, int(transposed)]]), vectors, LEAST, delta)
    expected = expected_of(u.clamp(min=LEAST), v.clamp(min=LEAST))
    found = delta[5:-5].view(21, 37).t() if transposed else delta[5:-5].view(37, 21)
    assert torch.equal(found, expected)
    assert torch.equal(torch.cat([delta[:5], delta[-5:]]), torch.full((10,), 9.0))


def expected_of(u: Tensor, v: Tensor) -> Tensor:
    return u[:, None] * v + u[:, None] + v


def test_a_buffer_composes_the_same_either_way() -> None:
    views = attach(toy_model(), roles=("scale", "zero"))
    buffer, found = buffer_of(0), []
    for kernels in (factors, None):
        buffer.kernels = kernels
        found.append(torch.zeros_like(views.buffers[0].delta))
        buffer.compose(found[-1])
    assert torch.equal(*found)
    assert found[0].any()


def test_what_does_not_fit_is_refused() -> None:
    buffer = buffer_of(0)
    noise, u = buffer.source_of(Noise()).definition, buffer.delta
    out = torch.ones(2, len(u))
    for vectors, place, row in ((u[1:], out, 0), (u.double(), out, 0), (u, out[:, 1:], 0), (u, out, 2), (u, out, -1)):
        with pytest.raises(ShapeError, match="expected"):
            factors.ratios(noise, [(3, 0.1, row)], vectors, LEAST, place)
    for outside in ((0, 4, 5, 4, 0, 0), (0, 4, 4, 5, 0, 0), (0, 4, 4, 4, 1, 0), (-1, 4, 4, 4, 0, 0)):
        with pytest.raises(ShapeError, match="places: expected"):
            factors.compose(torch.tensor([outside]), torch.ones(8), LEAST, torch.ones(16))
