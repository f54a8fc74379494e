"""What the tests of the compiled kernels share."""

import pytest

from zoquant import kernels
from zoquant.kernels.products.matmul import row_multiplier


@pytest.fixture
def compiled() -> None:
    """Skip where nothing could be compiled, and say why."""
    if kernels.library() is None:
        pytest.skip(kernels.status())


@pytest.fixture
def matrix_unit() -> None:
    """Skip where the product is not compiled, or the processor has no matrix unit."""
    if row_multiplier("Q4_0") is None:
        pytest.skip(f"no compiled product; kernels: {kernels.status()}. Without AMX torch multiplies.")
