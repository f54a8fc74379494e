"""Forwards at the same time, in several threads: each gives what it gives alone."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.packed import COLUMNS, MATRICES, ROWS
from tests.threads import threads
from zoquant.kernels.products.matmul import Factors
from zoquant.kernels.workspace import scratch
from zoquant.native import DenseWeight, QuantEmbedding, QuantLinear

CPU = torch.device("cpu")
WORKERS, TIMES = 4, 40


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with threads(1):
        yield
    sys.setswitchinterval(before)


def at_once(forwards: list[Callable[[], Tensor]]) -> None:
    """Compare what every forward gives beside the others, many times over, with what it gave alone."""
    alone, start = [forward() for forward in forwards], Barrier(len(forwards))

    def work(number: int) -> int:
        start.wait()
        return sum(not torch.equal(forwards[number](), alone[number]) for _ in range(TIMES))

    with ThreadPoolExecutor(len(forwards)) as pool:
        wrong = list(pool.map(work, range(len(forwards))))
    assert wrong == [0] * len(forwards), f"of {TIMES} forwards in each thread so many differ"


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
