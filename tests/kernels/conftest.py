"""What the tests of the compiled kernels share."""

import pytest

from zoquant import kernels


@pytest.fixture
def compiled() -> None:
    """Skip where nothing could be compiled, and say why."""
    if kernels.library() is None:
        pytest.skip(kernels.status())
