"""The ready-made views: what they store, what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoquant.errors import ShapeError, ValueRangeError
from zoquant.protocol import ScaleView
from zoquant.testing.tensors import same_bits
from zoquant.views.tensor_views import BytesView, MemberView, TensorView, bytes_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Make = Callable[[Tensor], ScaleView]


def of_tensor(values: Tensor) -> ScaleView:
    return TensorView("d", "scale", values.clone())


def of_wide_tensor(values: Tensor) -> ScaleView:
    return TensorView("d", "scale", values.to(torch.float32, copy=True), dtype=values.dtype)


def of_member(values: Tensor) -> ScaleView:
    return MemberView("d", "scale", {"d": values.clone()}, "d")


def of_bytes(values: Tensor) -> ScaleView:
    """Values strewn through bytes, each of them at an odd address."""
    size = values.dtype.itemsize
    packed = torch.full((1 + values.numel() * (size + 4),), 170, dtype=torch.uint8)
    strides = tuple(stride * (size + 4) for stride in values.contiguous().stride())
    view = BytesView("d", "scale", packed, offset=1, shape=values.shape, strides=strides, dtype=values.dtype)
    view.write(values.float())
    return view


def of_dense_bytes(values: Tensor) -> ScaleView:
    """Values side by side, from an odd address on."""
    size = values.dtype.itemsize
    strides = tuple(stride * size for stride in values.contiguous().stride())
    packed = torch.zeros(1 + values.numel() * size, dtype=torch.uint8)
    view = BytesView("d", "scale", packed, offset=1, shape=values.shape, strides=strides, dtype=values.dtype)
    view.write(values.float())
    return view


MAKERS = (of_tensor, of_wide_tensor, of_member, of_bytes, of_dense_bytes)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_write_then_read(make: Make, dtype: torch.dtype) -> None:
    view = make(torch.zeros(3, 5, dtype=dtype))
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    view.write(value)
    assert (view.name, view.role, view.shape, view.dtype) == ("d", "scale", (3, 5), dtype)
    assert same_bits(view.read(), value.to(dtype).float())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 3, 4)])
def test_every_shape(make: Make, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    view = make(value)
    assert same_bits(view.read(), value)
    view.write(value * 2)
    assert same_bits(view.read(), value * 2)


@pytest.mark.parametrize("make", MAKERS)
@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=20))
def test_what_was_read_can_be_written_back_to_the_bit(make: Make, bits: list[int]) -> None:
    stored = torch.tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.float16)
    stored = torch.where(torch.isfinite(stored), stored, torch.zeros_like(stored))
    view = make(stored)
    old = view.read()
    assert same_bits(old.half(), stored)
    view.write(old * 1.5)
    view.write(old)
    assert same_bits(view.read().half(), stored)


@pytest.mark.parametrize("make", MAKERS)
def test_read_is_a_copy(make: Make) -> None:
    view = make(torch.ones(4))
    view.read().zero_()
    assert view.read().tolist() == [1.0] * 4


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 65504.0), (torch.bfloat16, 3.3895313892515355e38)])
def test_overflow_stops_at_the_largest_number(make: Make, dtype: torch.dtype, limit: float) -> None:
    view = make(torch.zeros(2, dtype=dtype))
    view.write(torch.tensor([3.4e38, -3.4e38]))
    assert view.read().tolist() == [limit, -limit]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (
            torch.ones(3, 2), ShapeError,
            "d: write() got (3, 2), expected (2, 3). Write a tensor of the shape that read() returned.",
        ),
        (
            torch.full((2, 3), float("nan")), ValueRangeError,
            "d: write() got NaN or infinity, expected finite numbers. Nothing was written.",
        ),
        (
            torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("-inf")]]), ValueRangeError,
            "d: write() got NaN or infinity, expected finite numbers. Nothing was written.",
        ),
    ],
)  # fmt: skip
def test_bad_values_change_nothing(make: Make, value: Tensor, error: type[Exception], text: str) -> None:
    view = make(torch.ones(2, 3, dtype=torch.float16))
    with pytest.raises(error) as caught:
        view.write(value)
    assert str(caught.value) == text
    assert view.read().tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("make", [of_tensor, of_wide_tensor, of_member, of_bytes])
def test_inference_tensors_are_written_once(make: Make) -> None:
    with torch.inference_mode():
        view = make(torch.ones(3))
    view.write(torch.full((3,), 2.0))
    assert view.read().tolist() == [2.0] * 3
    with torch.inference_mode():
        view.write(torch.full((3,), 3.0))
    assert view.read().tolist() == [3.0] * 3


def test_live_is_there_only_where_a_copy_suffices() -> None:
    values = torch.ones(3, dtype=torch.float16)
    live = TensorView("d", "scale", values).live
    assert live is not None
    assert live.data_ptr() == values.data_ptr()
    assert of_wide_tensor(values).live is None
    assert of_member(values).live is None
    assert of_bytes(values).live is None


def test_wide_storage_holds_what_the_file_will_hold() -> None:
    storage = torch.zeros(1)
    TensorView("d", "scale", storage, dtype=torch.float16).write(torch.tensor([0.1]))
    assert storage.item() == torch.tensor(0.1).half().item()


def test_a_member_that_is_replaced_is_followed() -> None:
    members: dict[str, Any] = {"scale": torch.ones(2)}
    view = MemberView("scale", "scale", members, "scale")
    members["scale"] = torch.zeros(2)
    view.write(torch.full((2,), 5.0))
    assert members["scale"].tolist() == [5.0, 5.0]


def test_bytes_beside_the_values_stay() -> None:
    packed = torch.arange(24, dtype=torch.uint8)
    view = BytesView("d", "scale", packed, offset=2, shape=(3,), strides=(8,), dtype=torch.float16)
    view.write(torch.zeros(3))
    assert packed.tolist() == [0 if n % 8 in (2, 3) else n for n in range(24)]
    assert view.bytes.shape == (3, 2)


@pytest.mark.parametrize("offset", [-1, 7])
def test_bytes_outside_of_the_file(offset: int) -> None:
    with pytest.raises(ShapeError, match=r"expected at most 24\. The file is shorter than its header says"):
        bytes_of(torch.zeros(24, dtype=torch.uint8), offset, (3,), (8,), torch.float16)
