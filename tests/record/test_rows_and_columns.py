"""Grids: what a probe of rows and columns does to a layer is what its written values do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.toy import registered, toy_layer, toy_model
from zoquant import attach
from zoquant.backends.hqq.weights import striped
from zoquant.checkpoint.folder import StoredNumbers, reciprocal
from zoquant.errors import ShapeError, UnsupportedLayoutError
from zoquant.kernels.noise.definition import Noise
from zoquant.native import (
    AffineWeight,
    FieldSpec,
    PackedWeight,
    PlainCodes,
    QuantEmbedding,
    QuantLinear,
    QuantWeight,
    TableWeight,
    Values,
    VectorWeight,
)  # fmt: skip
from zoquant.native.values import column_groups, flat_groups, per_row, row_groups, tall_groups, whole
from zoquant.optim.probes.probe import Probe
from zoquant.optim.probes.probed_layers import ProbedLayers, sharing_rows
from zoquant.protocol import Grid, ScaleView
from zoquant.record.rows_and_columns import RowsAndColumnsBuffer, RowsAndColumnsMover
from zoquant.record.rules import SGD
from zoquant.record.step import Step
from zoquant.tasks.packing import pack
from zoquant.views.model_views import Views
from zoquant.views.tensor_views import TensorView

ROWS, COLUMNS = 6, 8
GROUP_OF = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def codes() -> PlainCodes:
    drawn = torch.randint(-7, 8, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(1))
    return PlainCodes(drawn.to(torch.int8))


def spec(name: str = "scale") -> FieldSpec:
    return FieldSpec(name, "scale", torch.float32)


def affine(shape: Sequence[int], place: Any, **more: Any) -> AffineWeight:
    return AffineWeight("int8", codes(), Values(spec(), numbers(*shape), place, **more))


def table() -> TableWeight:
    scale = Values(spec(), numbers(ROWS, 2), row_groups)
    return TableWeight("t", PlainCodes((codes().codes + 7).to(torch.uint8)), torch.linspace(-1, 1, 15), scale)


def vector() -> VectorWeight:
    books = FieldSpec("codebooks", "codebook", torch.float32), torch.randn(1, 4, 2, 4)
    picked = torch.randint(0, 4, (ROWS // 2, COLUMNS // 4, 1))
    return VectorWeight("v", picked, books, Values(spec(), numbers(ROWS // 2), per_row))


def shifted() -> AffineWeight:
    shift = Values(spec("shift"), numbers(ROWS, 2, seed=2), row_groups)
    return AffineWeight("q", codes(), Values(spec(), numbers(ROWS, 2), row_groups), shift=shift)


def blocks() -> PackedWeight:
    packed = toy_layer(rows=ROWS, groups=2, dtype=torch.float32).packed
    assert isinstance(packed, QuantWeight)
    values = [packed.value("d"), packed.value("m")]
    return QuantWeight(packed.codec, packed.codes, values, torch.tensor([2, 0, 1, 5, 3, 4]))


LAYOUTS: dict[str, Callable[[], PackedWeight]] = {
    "blocks in another order": blocks,
    "row groups": lambda: affine((ROWS, 2), row_groups),
    "column groups": lambda: affine((2, ROWS), column_groups),
    "column groups with g_idx": lambda: affine((2, ROWS), column_groups, group_of=GROUP_OF),
    "per row": lambda: affine((ROWS, 1), per_row),
    "per row over 127": lambda: affine((ROWS,), per_row, decode=lambda stored: stored / 127),
    "whole": lambda: affine((1,), whole),
    "tall": lambda: affine((2, 4), tall_groups(ROWS, 3)),
    "flat": lambda: affine((ROWS * 2,), flat_groups(COLUMNS, 4)),
    "flat, of two rows": lambda: affine((ROWS // 2, 1), flat_groups(COLUMNS, 2 * COLUMNS)),
    "stripes": lambda: affine((1, 2 * COLUMNS), striped(ROWS, COLUMNS)),
    "ragged tiles": lambda: AffineWeight(
        "f", codes(), StoredNumbers("s", (4, 3), ragged=True).values(numbers(2, 3), ROWS, COLUMNS)
    ),
    "table": table,
    "vector": vector,
    "shift": shifted,
}
NO_GRIDS: dict[str, Callable[[], PackedWeight]] = {
    "straddling": lambda: affine((ROWS * COLUMNS // 6,), flat_groups(COLUMNS, 6)),
    "stripes across rows": lambda: affine((1, 12), striped(ROWS, COLUMNS)),
    "reciprocal": lambda: affine((ROWS, 2), row_groups, decode=reciprocal),
    "not trained": lambda: AffineWeight("q", codes(), Values(None, numbers(ROWS, 2), row_groups)),
}


def linear(packed: PackedWeight, bias: bool = True) -> QuantLinear:
    return QuantLinear(packed, numbers(ROWS) if bias else None, compute_dtype=torch.float32)


def attached(layer: nn.Module) -> Views:
    return attach(layer, roles=("scale", "zero"))


def moved(views: Views, seed: int = 3) -> RowsAndColumnsMover:
    """Return views' u and v somewhere away from the base, the values written."""
    mover = RowsAndColumnsMover(views, Noise(), SGD())
    mover.advance([Step((seed, seed + 1), (1.0, 0.5), (-0.2,))])
    views.write()
    return mover


def probes_of(blocks: Sequence[tuple[int | None, float]]) -> list[Probe]:
    """Return probes of one group."""
    return [Probe(seed, (eps,)) for seed, eps in blocks]


def drawn(factors: RowsAndColumnsBuffer, seed: int) -> Tensor:
    """Return the direction of a seed."""
    return factors.source_of(Noise()).draw(seed, 0, torch.empty_like(factors.delta))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_probe_is_what_the_written_values_give(layout: str) -> None:
    layer = linear(LAYOUTS[layout]())
    views, x = attached(layer), torch.randn(4, 3, COLUMNS)
    mover = moved(views)
    before, weight = layer(x), layer.packed.dequantize()
    evaluations = [(7, 0.1), (7, -0.1), (None, 0.0), (8, 0.05)]
    with ProbedLayers([mover], probes_of(evaluations)) as probing:
        probed = layer(x)
    probing.check(4)
    assert torch.equal(layer(x), before)
    assert torch.equal(layer.packed.dequantize(), weight)
    torch.testing.assert_close(probed[2], before[2])
    center = mover.vectors[0].delta.clone()
    for row, (seed, length) in enumerate(evaluations):
        if seed is not None:
            mover.vectors[0].delta.copy_(center + length * drawn(mover.vectors[0], seed))
            mover.advance([])
            views.write()
            assert (layer(x)[row] - before[row]).norm() > 1e-3 * before[row].norm()
            torch.testing.assert_close(probed[row], layer(x)[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_derivative_is_that_of_full_scales_along_the_sum(layout: str) -> None:
    """At the base, along a ⊕ b: to the first order nothing but the sum is left of (1 + εa)(1 + εb)."""
    layer = linear(LAYOUTS[layout]())
    views, x, eps = attached(layer), torch.randn(2, 3, COLUMNS), 1e-2
    mover = RowsAndColumnsMover(views, Noise(), SGD())
    with ProbedLayers([mover], probes_of([(7, eps), (7, -eps)])):
        y = layer(torch.cat([x[:1], x[:1]]))
    factors = mover.vectors[0].layers[0]
    z = drawn(mover.vectors[0], 7)
    sums = z[factors.rows][:, None] + z[factors.columns]
    weight = layer.packed.dequantize().double()
    direction = weight * sums[factors.grid.rows][:, factors.grid.columns].double()
    torch.testing.assert_close(
        ((y[0] - y[1]) / (2 * eps)).double(), x[0].double() @ direction.t(), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("layout", NO_GRIDS)
def test_what_is_no_grid_says_so(layout: str) -> None:
    assert NO_GRIDS[layout]().grids() == {}


def test_factors_stop_before_zero() -> None:
    views = attached(linear(LAYOUTS["row groups"]()))
    mover = RowsAndColumnsMover(views, Noise(), SGD())
    mover.advance([Step((1,), (1.0,), (5.0,))])
    assert 2**-20 - 1 <= float(views.delta("scale").min()) < -0.99
    with ProbedLayers([mover], probes_of([(2, 0.1), (2, -0.1)])):
        assert torch.isfinite(views[0].layer.module(torch.ones(2, COLUMNS))).all()  # type: ignore[union-attr]


class Claimed(nn.Module):
    """A vendor's layer: `y = x (scale · code)ᵀ + bias`, with a scale for each row."""

    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(rows, COLUMNS), requires_grad=False)
        self.scale = nn.Parameter(numbers(rows), requires_grad=False)
        self.bias = nn.Parameter(torch.ones(rows), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.codes * self.scale[:, None]).t() + self.bias


class ClaimedBackend:
    """Serves `Claimed`, without a word about grids."""

    name = "claimed"

    def open(self, module: Any) -> Sequence[ScaleView]:
        return [TensorView("scale", "scale", module.scale.data)]

    def dequantize(self, module: Any) -> Tensor:
        weight: Tensor = module.codes * module.scale[:, None]
        return weight

    def sample_input(self, module: Any) -> Tensor:
        return torch.randn(2, COLUMNS, generator=torch.Generator().manual_seed(0))


class GriddedBackend(ClaimedBackend):
    """Says where the scales lie."""

    def __init__(self, shape: tuple[int, int] = (ROWS, 1)) -> None:
        self.shape = shape

    def grids(self, module: Any) -> Mapping[str, Grid]:
        return {"scale": Grid(self.shape, torch.arange(ROWS), torch.zeros(COLUMNS, dtype=torch.int64))}


@pytest.mark.parametrize("layer", [lambda: linear(LAYOUTS["row groups"]()), Claimed], ids=["native", "vendor"])
def test_tokens_of_a_shared_row_go_with_their_sequence(layer: Callable[[], nn.Module]) -> None:
    module, packing = layer(), pack([3, 1, 2, 1], 3)
    x, evaluations = torch.randn(4, 3, COLUMNS), [(7, 0.1), (8, -0.1)]
    tokens, used = x.view(-1, COLUMNS)[packing.source.clamp(min=0)], packing.source >= 0
    with registered(GriddedBackend(), Claimed):
        mover = moved(attached(module))
        with ProbedLayers([mover], probes_of(evaluations)) as probing:
            alone = module(x)
        probing.check(4)
        with ProbedLayers([mover], probes_of(evaluations)) as probing, sharing_rows(packing):
            together = module(tokens)
            flat = module(tokens.flatten(0, 1))
            with pytest.raises(ShapeError, match=r"expected 4 rows of a batch first"):
                module(tokens[:1])
        probing.check(4)
        assert torch.equal(flat, together.flatten(0, 1))
    assert len(tokens) < len(x)
    torch.testing.assert_close(together[used], alone.view(-1, ROWS)[packing.source[used]])
    assert not torch.allclose(together[used], module(tokens)[used], rtol=1e-3)


def test_a_vendors_layer_is_probed_through_its_own_forward() -> None:
    layer = Claimed()
    with registered(GriddedBackend(), Claimed):
        views = attach(layer)
        mover = moved(views)
        x = torch.randn(1, COLUMNS).expand(2, -1)
        with ProbedLayers([mover], probes_of([(7, 0.1), (None, 0.0)])):
            y = layer(x)
        mover.vectors[0].delta.add_(drawn(mover.vectors[0], 7), alpha=0.1)
        mover.advance([])
        views.write()
        torch.testing.assert_close(y[0], layer(x)[0])


def refused(model: nn.Module, match: str, **filters: Any) -> None:
    views = attach(model, **filters)
    with pytest.raises(UnsupportedLayoutError, match=match):
        RowsAndColumnsBuffer(views.buffers[0])


def test_refuses_what_it_cannot_scale() -> None:
    refused(
        toy_model(), r"layers.l0 \(native\): layers.l0.m is not attached, but its weights are scaled by .* together"
    )
    embedding = nn.ModuleDict({"emb": QuantEmbedding(blocks())})
    refused(embedding, r"emb \(native\): its values are no rows and columns .*exclude='emb\.\*'")
    packed = blocks()
    tied = nn.ModuleDict({"one": linear(packed), "two": linear(packed)})
    refused(tied, "one: two reads the same values", roles=("scale", "zero"))
    books = nn.ModuleDict({"v": linear(vector())})
    refused(books, "v.codebooks .*does not scale the weights", roles=("scale", "codebook"))
    with registered(ClaimedBackend(), Claimed):
        refused(nn.ModuleDict({"c": Claimed()}), r"^c: backend claimed has no grids\(\), which says how")
    with registered(GriddedBackend((3, 1)), Claimed):
        refused(
            nn.ModuleDict({"c": Claimed()}), r"c.scale \(claimed\): a grid of \[3, 1\] for values \[6\]", verify=False
        )
