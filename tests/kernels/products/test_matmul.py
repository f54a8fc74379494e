"""The compiled product is the product of the rounded operands, in an order that nothing but the columns decides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from tests.backends.gguf.files import random_blocks
from tests.threads import threads
from zoquant.backends.gguf.blocks import CODECS, BlockCodec
from zoquant.errors import ShapeError
from zoquant.kernels.products.decode import LAYOUTS
from zoquant.kernels.products.matmul import Factors, multiplies, multiply_plain, row_multiplier, spread
from zoquant.native import DenseWeight, QuantLinear, QuantWeight, packed
from zoquant.native.scaling import scale_output, scaled_input

ROWS, GROUPS = 37, 3
pytestmark = pytest.mark.usefixtures("matrix_unit")
layouts = pytest.mark.parametrize("name", LAYOUTS)
dtypes = st.sampled_from((torch.float32, torch.bfloat16))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(name: str, row_order: Tensor | None = None) -> QuantWeight:
    codec = CODECS[name]
    codes, values = codec.split(torch.from_numpy(random_blocks(codec, ROWS, GROUPS)))
    return QuantWeight(codec, codes, values, row_order)


def linear(weight: packed.PackedWeight, bias: Tensor | None = None) -> QuantLinear:
    return QuantLinear(weight, bias, compute_dtype=torch.bfloat16)


def exact(x: Tensor, weight: Tensor) -> Tensor:
    """Return the product of the rounded operands in float64."""
    return x.bfloat16().double() @ weight.bfloat16().double().t()


def distance(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@layouts
@pytest.mark.parametrize("tokens", [1, 3, 17, 40])
def test_every_layout(name: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(name)
    x = random(tokens, weight.columns)
    expected = exact(x, weight.dequantize())
    y = linear(weight)(x)
    assert y.dtype == torch.float32
    assert distance(y, expected) < 1e-6
    half = linear(weight)(x.bfloat16())
    assert torch.equal(half, y.bfloat16())
    monkeypatch.setattr(packed, "multiplies", lambda *_: False)
    monkeypatch.setattr(BlockCodec, "multiply_rows", None)
    torch_y = linear(weight)(x)
    assert not torch.equal(torch_y, y)
    assert distance(torch_y, expected) < 4e-3


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 5), dtypes, st.integers(1, 3))
def test_a_row_of_the_product_is_its_own(tokens: int, rows: int, steps: int, dtype: torch.dtype, workers: int) -> None:
    x, weight = random(tokens, 32 * steps).to(dtype), random(rows, 32 * steps, seed=1).bfloat16()
    y = multiply_plain(x, weight)
    assert (y.shape, y.dtype) == ((tokens, rows), dtype)
    assert distance(y, exact(x, weight)) < (1e-6 if dtype == torch.float32 else 4e-3)
    with threads(workers):
        assert torch.equal(multiply_plain(x, weight), y)
        assert torch.equal(multiply_plain(x[-1:], weight[-1:]), y[-1:, -1:])


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 70), st.integers(1, 5), dtypes, st.integers(1, 3))
def test_factors_are_those_of_each_block(
    blocks: int, tokens: int, rows: int, steps: int, dtype: torch.dtype, workers: int
) -> None:
    x, weight = random(blocks * tokens, 32 * steps).to(dtype), random(rows, 32 * steps, seed=1).bfloat16()
    into, out = random(blocks, 32 * steps, seed=2), random(blocks, rows, seed=3)
    expected = scale_output(multiply_plain(scaled_input(x, into).float(), weight), out).to(dtype)
    with threads(workers):
        assert torch.equal(multiply_plain(x, weight, Factors(into, out)), expected)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=70), st.integers(1, 70), dtypes, st.integers(1, 3))
def test_rows_may_say_which_block_they_are_in(places: list[int], rows: int, dtype: torch.dtype, workers: int) -> None:
    x, weight = random(len(places), 96).to(dtype), random(rows, 96, seed=1).bfloat16()
    into, out, block = random(4, 3, seed=2), random(4, rows, seed=3), torch.tensor(places, dtype=torch.int32)
    y = multiply_plain(scaled_input(x, into, block).float(), weight)
    expected = scale_output(y, out, block).to(dtype)
    with threads(workers):
        assert torch.equal(multiply_plain(x, weight, Factors(into, out, block)), expected)
        own = Factors(spread(into, 96)[block], out[block])
        assert torch.equal(multiply_plain(x, weight, own), expected)


@pytest.mark.parametrize("width", [8, 16, 32, 48, 96])
@pytest.mark.parametrize("share", [1, 5])
def test_neighbours_share_a_factor(width: int, share: int) -> None:
    x, weight = random(6, 4128), random(35, 4128, seed=1).bfloat16()
    into, out = random(3, 9 + 4128 // width, seed=2)[:, 9:], random(3, 9 + 35 // share, seed=3)[:, 9:]
    expected = multiply_plain(x, weight, Factors(spread(into, 4128), spread(out, 35)))
    assert torch.equal(spread(into, 4128)[:, ::width], into)
    assert torch.equal(multiply_plain(x, weight, Factors(into, out)), expected)
    assert torch.equal(scale_output(multiply_plain(scaled_input(x, into), weight), out), expected)


@layouts
@pytest.mark.parametrize("block", [None, torch.tensor([2, 0, 0, 1, 2, 1], dtype=torch.int32)], ids=["equal", "named"])
def test_every_layout_takes_factors(name: str, block: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of(name, torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)))
    x, into, out = random(6, weight.columns), random(3, weight.columns, seed=1), random(3, ROWS, seed=2)
    factors = Factors(into, out, block)
    y = weight.product(x, torch.bfloat16, factors)
    plain = weight.product(scaled_input(x, into, block), torch.bfloat16)
    assert torch.equal(y, scale_output(plain, out, block))
    monkeypatch.setattr(packed, "multiplies", lambda *_: False)
    monkeypatch.setattr(BlockCodec, "multiply_rows", None)
    assert distance(weight.product(x, torch.bfloat16, factors), y) < 4e-3


def test_factors_that_do_not_fit_are_refused() -> None:
    x, weight = random(6, 32), random(8, 32).bfloat16()
    for into, out in (((4, 32), (4, 8)), ((3, 32), (2, 8)), ((3, 32), (3, 32)), ((3, 5), (3, 8)), ((0, 32), (0, 8))):
        with pytest.raises(ShapeError, match="factors: expected float32"):
            multiply_plain(x, weight, Factors(torch.ones(into), torch.ones(out)))
    both = torch.ones(3, 32), torch.ones(3, 8)
    for block in ([0, 1, 2, 3, 0, 1], [-1, 0, 0, 0, 0, 0], [0, 1, 2]):
        with pytest.raises(ShapeError, match="an int32 block below their number for each"):
            multiply_plain(x, weight, Factors(*both, torch.tensor(block, dtype=torch.int32)))
    with pytest.raises(ShapeError, match="factors: expected float32"):
        multiply_plain(x, weight, Factors(*both, torch.zeros(6, dtype=torch.int64)))


@pytest.mark.parametrize(("tokens", "rows", "columns"), [(70, 45, 4128), (3, 1100, 2048), (33, 545, 2080)])
def test_more_than_a_panel(tokens: int, rows: int, columns: int) -> None:
    x, weight = random(tokens, columns), random(rows, columns, seed=1).bfloat16()
    y = multiply_plain(x, weight)
    assert distance(y, exact(x, weight)) < 1e-6
    assert torch.equal(multiply_plain(x.bfloat16(), weight), y.bfloat16())
    with threads(2):
        assert torch.equal(multiply_plain(x, weight), y)
    assert torch.equal(multiply_plain(x[1:2], weight), y[1:2])


def test_rows_in_another_order() -> None:
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    x, bias = random(2, 5, 96), random(ROWS, seed=2)
    layer, plain = linear(weight_of("Q4_1", order), bias), linear(weight_of("Q4_1"))
    y = plain(x)[..., order] + bias
    assert torch.equal(layer(x), y)
    weight = weight_of("Q4_1")
    multiply = row_multiplier("Q4_1")
    assert multiply is not None
    values = [weight.value("d"), weight.value("m")]
    some = torch.tensor([36, 0, 5, 5, -1])
    assert torch.equal(multiply(x[0], weight.codes, values, some, None), plain(x)[0][:, some])
    with pytest.raises(IndexError, match=f"expected rows from -{ROWS} to {ROWS - 1}, got 37 to 37"):
        multiply(x[0], weight.codes, values, torch.tensor([37]), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_that_is_not_contiguous(dtype: torch.dtype) -> None:
    layer = linear(weight_of("Q8_0"))
    wide = random(6, 4 * 96).to(dtype)
    for x in (
        wide[:, 96:192],
        wide[::2, :96],
        wide[:, ::4],
        wide.view(4, 6, 96).transpose(0, 1),
        wide[:1, :96].expand(9, 96),
    ):
        assert torch.equal(layer(x), layer(x.contiguous()))


def test_nothing_to_multiply() -> None:
    layer = linear(weight_of("Q4_0"), random(ROWS))
    assert layer(torch.empty(0, 96)).shape == (0, ROWS)
    assert layer(torch.empty(2, 0, 96)).shape == (2, 0, ROWS)
    assert multiply_plain(random(3, 96), torch.empty(0, 96, dtype=torch.bfloat16)).shape == (3, 0)
    assert multiply_plain(torch.empty(3, 0), torch.empty(2, 0, dtype=torch.bfloat16)).eq(0).all()


def test_not_a_number_stays_in_its_row() -> None:
    layer, x = linear(weight_of("Q4_0")), random(20, 96)
    y = layer(x)
    x[3, 40], x[17, 0] = float("nan"), float("inf")
    found = layer(x)
    assert found[3].isnan().all()
    assert not found[17].isfinite().any()
    others = torch.ones(20, dtype=torch.bool)
    others[[3, 17]] = False
    assert torch.equal(found[others], y[others])


def test_torch_multiplies_where_compiled_code_cannot() -> None:
    assert multiplies(random(1, 32), torch.bfloat16)
    for x in (random(1, 32).double(), random(1, 32).half(), random(1, 32).to("meta"), random(1, 32).requires_grad_()):
        assert not multiplies(x, torch.bfloat16)
    assert not multiplies(random(1, 32), torch.float32)
    weight = packed.product(random(3, 40), random(5, 40, seed=1).bfloat16())
    assert distance(weight, exact(random(3, 40), random(5, 40, seed=1))) < 4e-3
    layer, x = linear(weight_of("Q4_1")), random(4, 96)
    assert torch.equal(layer(x.half()), (x.half().bfloat16() @ layer.packed.dequantize().bfloat16().t()).half())
    layer.double()
    assert distance(layer(x), exact(x, layer.packed.dequantize())) < 4e-3


def test_decoded_weights_are_multiplied_where_rows_are_many() -> None:
    layer, x = linear(DenseWeight(random(45, 96, seed=1))), random(packed.MANY, 96)
    weight = layer.packed.dequantize().bfloat16()
    assert torch.equal(layer(x), multiply_plain(x, weight))
    assert torch.equal(layer(x[1:]), (x[1:].bfloat16() @ weight.t()).float())
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad is not None
    assert distance(leaf.grad[0], weight.double().sum(0)) < 1e-2


def test_derivatives_still_flow() -> None:
    layer, x, tangent = linear(weight_of("Q4_1")), random(4, 96).requires_grad_(), random(4, 96, seed=1)
    weight = layer.packed.dequantize()
    (layer(x) * random(4, ROWS)).sum().backward()
    assert x.grad is not None
    assert distance(x.grad, (random(4, ROWS).double() @ weight.double())) < 1e-2
    with forward_ad.dual_level():
        moved = forward_ad.unpack_dual(layer(forward_ad.make_dual(x.detach(), tangent))).tangent  # type: ignore[no-untyped-call]
    assert moved is not None
    assert distance(moved, exact(tangent, weight)) < 1e-2
    each = torch.func.vmap(layer)(x.detach())
    assert distance(each, exact(x.detach(), weight)) < 1e-2
    with torch.no_grad():
        assert distance(layer(x), exact(x, weight)) < 1e-6


def test_other_shapes_are_refused() -> None:
    weight = weight_of("Q4_0")
    multiply = row_multiplier("Q4_1")
    assert multiply is not None
    with pytest.raises(ShapeError, match=r"Q4_1: expected packed words \[rows, groups, 16\], 2 fields"):
        multiply(random(1, 96), weight.codes, [weight.value("d")], None, None)
    with pytest.raises(ShapeError, match=r"x \[tokens, 32 \* groups\], got .* and \(1, 64\)"):
        multiply(random(1, 64), weight.codes, [weight.value("d")] * 2, None, None)
    with pytest.raises(
        ShapeError, match="expected a contiguous bfloat16 matrix on the CPU of a multiple of 32 columns"
    ):
        multiply_plain(random(1, 40), random(2, 40).bfloat16())
    assert row_multiplier("IQ1_S") is None
