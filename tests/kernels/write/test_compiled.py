"""The compiled write leaves the bits that torch leaves, and nothing beside them."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoquant.errors import ShapeError
from zoquant.kernels.write import compiled as write
from zoquant.protocol import Role
from zoquant.views.flat_buffer import FlatBuffer
from zoquant.views.tensor_views import TensorView

pytestmark = pytest.mark.skipif(not write.ready(), reason="nothing is compiled here")
SPECIAL = (0.0, -0.0, 1e-7, -1e-7, 6e4, -6e4, 3e38, 1.0)
ROLES: tuple[Role, ...] = ("scale", "zero", "codebook")

views = st.lists(
    st.tuples(st.integers(1, 300), st.sampled_from(write.DTYPES), st.sampled_from(ROLES)), min_size=1, max_size=6
)


def filled(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return numbers of both signs, the limits of their dtype among them, with a wall on either side."""
    numbers = torch.randn(count + 2, generator=generator)
    numbers[1 : 1 + min(count, len(SPECIAL))] = torch.tensor(SPECIAL[:count])
    limit = torch.finfo(dtype).max
    return numbers.clamp(-limit, limit).to(dtype)


def buffer_of(drawn: list[Any], coupled: bool) -> tuple[FlatBuffer, list[Tensor]]:
    generator = torch.Generator().manual_seed(len(drawn))
    stored = [filled(count, dtype, generator) for count, dtype, _ in drawn]
    made = [
        TensorView(f"layer{number % 2}.v{number}", role, tensor[1:-1])
        for number, (tensor, (_, _, role)) in enumerate(zip(stored, drawn, strict=True))
    ]
    buffer = FlatBuffer(made, torch.device("cpu"), coupled=coupled)
    buffer.delta.copy_(torch.randn(buffer.delta.numel(), generator=generator) * 1.5)
    return buffer, stored


def bits(stored: list[Tensor]) -> list[Tensor]:
    return [tensor.view(torch.uint8).clone() for tensor in stored]


@given(views, st.booleans(), st.sampled_from(("relative", "absolute")), st.sampled_from((None, 0, 2**63 + 5)),
       st.sampled_from(("rademacher", "gaussian")), st.sampled_from((0.03, -0.5)))  # fmt: skip
def test_the_bits_are_those_of_torch(
    drawn: list[Any], coupled: bool, space: Any, seed: int | None, noise: Any, eps: float
) -> None:
    found = []
    for compiled in (True, False):
        buffer, stored = buffer_of(drawn, coupled and space == "relative")
        buffer.space = space
        assert buffer._fused is not None
        buffer._fused = buffer._fused if compiled else None
        buffer.write(seed=seed, eps=eps, noise=noise)
        found.append(bits(stored))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_many_blocks_and_threads() -> None:
    drawn = [(70_001, torch.float16, "scale"), (5, torch.float32, "zero"), (40_000, torch.bfloat16, "scale")]
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            buffer, stored = buffer_of(drawn, False)
            buffer.write(seed=1, eps=0.1)
        finally:
            torch.set_num_threads(before)
        found.append(bits(stored))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    written = buffer._fused._tables[0]  # type: ignore[union-attr]
    spans = [written.rows[start:stop, 2] for start, stop in zip(written.runs[:-1], written.runs[1:], strict=True)]
    assert sum(len(span) for span in spans) == len(written.rows)
    assert all(span[-1] - span[0] < 16 and set(span.diff().tolist()) <= {0, 1} for span in spans)


def test_views_that_share_a_delta_are_one_run() -> None:
    buffer, _ = buffer_of(
        [(300, torch.float16, "scale"), (1, torch.float32, "zero"), (300, torch.float16, "scale")], True
    )
    written = buffer._fused._tables[0]  # type: ignore[union-attr]
    assert written.rows[:, 2].tolist() == sorted(written.rows[:, 2].tolist())
    assert len(written.runs) == 2


def test_a_delta_that_is_too_short_is_refused() -> None:
    buffer, stored = buffer_of([(300, torch.float16, "scale")], False)
    before, written = bits(stored), buffer._fused._tables[0]  # type: ignore[union-attr]
    with pytest.raises(ShapeError, match="expected contiguous float32 on the CPU, 384 elements"):
        write.write(written, buffer.delta[:256], relative=True)
    noise = buffer.source_of("rademacher").definition
    with pytest.raises(ShapeError, match="counters: expected those of 3 blocks, got 2"):
        write.write(written, buffer.delta, relative=True, noise=noise._replace(counters=noise.counters[:, :2]), eps=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(stored), strict=True))
