"""Forwards at the same time, in several threads: each gives what it gives alone."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from tests.kernels.packed import COLUMNS, MATRICES, ROWS
from tests.threads import at_once
from zoquant.kernels.products.matmul import Factors
from zoquant.kernels.workspace import scratch
from zoquant.native import DenseWeight, QuantEmbedding, QuantLinear

CPU = torch.device("cpu")
WORKERS = 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*MATRICES, "dense"])
def test_forwards_of_different_matrices(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = [DenseWeight(torch.randn(ROWS, COLUMNS)) if name == "dense" else MATRICES[name]() for _ in range(WORKERS)]
    layers = [QuantLinear(packed, compute_dtype=dtype) for packed in made]
    at_once([partial(layer, torch.randn(3, COLUMNS)) for layer in layers])


def test_one_model_in_all_threads() -> None:
    torch.manual_seed(0)
    packed = MATRICES["gptq g64"]()
    model = nn.Sequential(QuantEmbedding(packed), QuantLinear(packed, torch.randn(ROWS), compute_dtype=torch.float32))
    at_once([partial(model, torch.randint(0, ROWS, (2, 5))) for _ in range(WORKERS)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_factors_belong_to_their_forward(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = QuantLinear(MATRICES["gptq g64"](), compute_dtype=dtype)
    every = [Factors(torch.rand(2, 3), torch.rand(2, ROWS)) for _ in range(WORKERS - 1)]
    at_once([partial(layer, torch.randn(4, COLUMNS), factors=factors) for factors in (None, *every)])


def test_a_thread_keeps_its_scratch_memory() -> None:
    first = scratch((8,), torch.float32, CPU, "threads").data_ptr()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: [scratch((size,), torch.float32, CPU, "threads").data_ptr() for size in (8, 4)])
        found = other.result()
    assert found[0] == found[1] != first
    assert scratch((4,), torch.float32, CPU, "threads").data_ptr() == first


@pytest.mark.gpu
def test_a_stream_keeps_its_scratch_memory() -> None:
    device = torch.device("cuda")
    first = scratch((8,), torch.float32, device, "threads").data_ptr()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        assert scratch((8,), torch.float32, device, "threads").data_ptr() != first
    assert scratch((8,), torch.float32, device, "threads").data_ptr() == first
