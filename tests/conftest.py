"""Fixtures: one thread, and the toy format where a test asks for it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import zoquant
from tests.toy import ToyFormat, ToyModel, toy_model, write_toy

torch.set_num_threads(int(os.environ.get("ZOQUANT_TEST_THREADS", "1")))  # small layers: a second thread costs more
# What torch compiled for one instruction set it takes from its cache for another, and that computes nonsense.
if held := os.environ.get("ATEN_CPU_CAPABILITY"):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-{held}")
hypothesis.settings.register_profile("zoquant", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("zoquant")


@pytest.fixture
def model() -> ToyModel:
    return toy_model()


@pytest.fixture
def toy_format() -> Iterator[ToyFormat]:
    """The toy format, registered."""
    form = ToyFormat()
    zoquant.register(format=form)
    yield form
    zoquant.unregister("toy")


@pytest.fixture
def toy_file(tmp_path: Path, toy_format: ToyFormat) -> Path:
    """A checkpoint of the toy format."""
    return write_toy(tmp_path / "base.toy", toy_model())
