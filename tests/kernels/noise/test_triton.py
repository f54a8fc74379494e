"""The Triton kernels give the bits of their definition: in Triton's interpreter, and on a GPU where there is one.

The interpreter is chosen when triton is imported: `make test-triton` sets TRITON_INTERPRET=1. It shows what the kernels
compute, and nothing of their speed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoquant.kernels.noise.source
import zoquant.views.fused_write
from tests.kernels.noise.test_definition import GOLDEN_GAUSSIAN, GOLDEN_RADEMACHER
from tests.views.test_buffer import layouts
from zoquant.errors import ShapeError
from zoquant.kernels import gpu
from zoquant.kernels.noise.definition import BLOCK, Kind, reference
from zoquant.kernels.noise.source import NoiseSource
from zoquant.protocol import ScaleView
from zoquant.testing.tensors import same_bits
from zoquant.views.flat_buffer import SPACES, FlatBuffer, Space
from zoquant.views.tensor_views import TensorView

pytest.importorskip("triton", reason="triton is not installed: make test-triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("rademacher", "gaussian")
kinds, spaces = st.sampled_from(KINDS), st.sampled_from(SPACES)
seeds = st.sampled_from((0, 1, 16, 2**31, 2**40 + 3, 2**63 - 1, 2**63 + 5, 2**64 - 1))
few = settings(max_examples=6)

COMPILED = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zoquant.kernels.noise import triton as noise
from zoquant.kernels.write import triton as write
POINTERS = {"delta": "*fp32", "out": "*fp32", "table": "*fp32", "amounts": "*fp32", "eps": "fp32", "limit": "fp32",
            "counters": "*i64", "seeds": "*i64", "places": "*i64", "seed": "i64"}
FIXED = {"KIND": 1, "BITS": 16, "PROBE": True, "ROWS": 16, "RELATIVE": True, "KEEP_SIGN": True,
         "DTYPE": triton.language.float16, "ALIGNED": True}
for kernel in (noise._draw, noise._accumulate, write._write):
    fixed = {name: FIXED[name] for name in kernel.arg_names if name in FIXED}
    types = {name: "constexpr" if name in fixed else POINTERS.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=fixed)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    print(len(made.asm["cubin"]) > 0, len(re.findall(r"\\\\bfma\\\\.", made.asm["ptx"])))
""".replace("\\\\", "\\")


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device whose noise and writes are those of the Triton kernels."""
    if request.param == "cuda":
        assert gpu.status(torch.device("cuda")).startswith("triton ")
        yield torch.device("cuda")
        return
    if not INTERPRETED:
        pytest.skip("not in Triton's interpreter: make test-triton")
    from zoquant.kernels.noise import triton as triton_noise
    from zoquant.kernels.write import triton as triton_write

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoquant.kernels.noise.source, "noise_kernels", lambda device: triton_noise)
        patch.setattr(zoquant.views.fused_write, "write_kernels", lambda device: triton_write)
        yield CPU


def sources(counts: list[int], kind: Kind, device: torch.device) -> tuple[NoiseSource, NoiseSource, int]:
    """Return a source of the kernels, one of torch, and the size of their layout."""
    keys = [f"layers.{number}.d" for number in range(len(counts))]
    fast, slow = NoiseSource(keys, counts, kind, device), NoiseSource(keys, counts, kind, CPU)
    assert fast.kernels is not None
    slow.kernels = None
    return fast, slow, sum(-(-count // BLOCK) for count in counts) * BLOCK


def random(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)) * 0.1


def test_golden_values(device: torch.device) -> None:
    for kind, seed, golden in (("rademacher", 0, GOLDEN_RADEMACHER), ("gaussian", 2**63 - 1, GOLDEN_GAUSSIAN)):
        source, _, size = sources([300], kind, device)  # type: ignore[arg-type]
        assert source.draw(seed, 0, torch.empty(size, device=device))[: len(golden)].tolist() == golden


@few
@given(st.lists(st.integers(1, 20 * BLOCK), min_size=1, max_size=3), seeds, kinds, st.floats(-1, 1, width=32))
def test_noise_and_probes(device: torch.device, counts: list[int], seed: int, kind: Kind, eps: float) -> None:
    fast, slow, size = sources(counts, kind, device)
    z = fast.draw(seed, 0, torch.empty(size, device=device)).cpu()
    assert torch.equal(z, slow.draw(seed, 0, torch.empty(size)))
    assert torch.equal(z[: counts[0]], torch.from_numpy(reference(seed, "layers.0.d", counts[0], kind)))
    delta, start = random(size), size // BLOCK // 2 * BLOCK
    expected = slow.probe(seed, start, delta[start:], eps, torch.empty(size - start))
    found = fast.probe(seed, start, delta[start:].to(device), eps, torch.empty(size - start, device=device))
    assert same_bits(found.cpu(), expected)


@few
@given(st.integers(1, 40 * BLOCK), st.lists(st.tuples(seeds, st.floats(-2, 2, width=32)), max_size=5), kinds)
def test_accumulate(device: torch.device, count: int, steps: list[tuple[int, float]], kind: Kind) -> None:
    fast, slow, size = sources([count], kind, device)
    found, expected = random(size).to(device), random(size)
    fast.accumulate(found, 0, [seed for seed, _ in steps], [amount for _, amount in steps])
    for seed, amount in steps:
        slow.accumulate(expected, 0, [seed], [amount])
    assert same_bits(found.cpu(), expected)


@settings(max_examples=12)
@given(layouts(), seeds, kinds, spaces, st.booleans())
def test_writes_are_those_of_torch(
    device: torch.device, views: list[ScaleView], seed: int, kind: Kind, space: Space, probe: bool
) -> None:
    fast, slow = FlatBuffer(views, device), FlatBuffer(views, device)
    assert fast._fused is not None
    slow._fused = None
    found = []
    for buffer in (fast, slow):
        buffer.space = space
        buffer.delta.copy_(random(buffer.delta.numel()) * 20)
        buffer.write(seed=seed if probe else None, eps=0.03, noise=kind)
        found.append([view.read().clone() for view in views])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))
    fast.delta.zero_()
    fast.write()
    assert all(torch.equal(view.read(), fast.base(number)) for number, view in enumerate(views))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_ends_of_a_dtype(device: torch.device, dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype)
    values = torch.tensor([limit.max, -limit.max, limit.tiny, limit.smallest_normal, 0.0, -0.0, 1.0, -1.0] * 17)
    for space in SPACES:
        written = []
        for on_gpu in (True, False):
            tensor = values.to(dtype).to(device)
            buffer = FlatBuffer([TensorView("a.d", "scale", tensor)], device)
            buffer._fused = buffer._fused if on_gpu else None
            buffer.space = space
            buffer.delta.copy_(torch.linspace(-3, 3, buffer.delta.numel()))
            buffer.write(seed=5, eps=0.5, noise="gaussian")
            written.append(tensor.cpu())
        assert same_bits(*written)
        assert written[0].isfinite().all()


def test_launches_do_not_depend_on_layers(device: torch.device) -> None:
    def launches(layers: int) -> int:
        views = [TensorView(f"layers.{n}.d", "scale", torch.ones(200, device=device).half()) for n in range(layers)]
        fused = FlatBuffer(views, device)._fused
        assert fused is not None
        return len(fused._tables)

    assert [launches(layers) for layers in (1, 7, 40)] == [1, 1, 1]


def test_sphere_and_sparse_noise_stay_with_torch(device: torch.device) -> None:
    views = [TensorView("a.d", "scale", torch.ones(200, device=device).half())]
    buffer = FlatBuffer(views, device)
    buffer.write(seed=1, eps=0.5, noise="sphere")
    assert buffer.source_of("sphere").kernels is None
    assert not torch.equal(views[0].read(), torch.ones(200, device=device))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    source, _, _ = sources([200], "rademacher", device)
    with pytest.raises(ShapeError, match="expected a stretch of whole blocks of 128 elements within 256"):
        source.draw(1, BLOCK, torch.empty(256, device=device))
    with pytest.raises(ShapeError, match=r"expected a contiguous torch\.float32 tensor"):
        source.draw(1, 0, torch.empty(256, dtype=torch.float64, device=device))


def test_kernels_compile_for_a_gpu_without_fused_arithmetic() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "0"] * 3, done.stderr
