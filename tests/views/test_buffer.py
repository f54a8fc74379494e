"""The flat buffer: theta from base and delta, whatever the layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoquant import ZOSGD, attach, load_delta, save_delta
from zoquant.kernels.noise.definition import KINDS, Kind, reference
from zoquant.protocol import Role, ScaleView
from zoquant.testing.tensors import same_bits
from zoquant.views import flat_buffer as buffer
from zoquant.views.flat_buffer import SPACES, FlatBuffer, Space, compose
from zoquant.views.tensor_views import BytesView, TensorView

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

dtypes, spaces, kinds = st.sampled_from(DTYPES), st.sampled_from(SPACES), st.sampled_from(KINDS)
seeds = st.integers(0, 2**63 - 1)


def strewn(name: str, role: Role, values: Tensor) -> BytesView:
    packed = torch.zeros(values.numel() * 8, dtype=torch.uint8)
    view = BytesView(name, role, packed, offset=1, shape=(values.numel(),), strides=(8,), dtype=values.dtype)
    view.write(values.float())
    return view


@st.composite
def layouts(draw: st.DrawFn) -> list[ScaleView]:
    """Some views of every kind, role and dtype."""
    views: list[ScaleView] = []
    for index in range(draw(st.integers(1, 5))):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        values = (torch.randn(draw(st.integers(1, 300)), generator=generator) * 0.1).to(draw(dtypes))
        values[:: draw(st.integers(2, 9))] = -0.0
        role: Role = draw(st.sampled_from(("scale", "zero")))
        name = f"l{index}.{role}"
        views.append(strewn(name, role, values) if draw(st.booleans()) else TensorView(name, role, values))
    return views


def bits(views: Sequence[ScaleView]) -> dict[str, Tensor]:
    return {view.name: view.read() for view in views}


@given(layouts(), spaces, kinds, st.lists(st.tuples(seeds, st.floats(-2, 2)), min_size=1, max_size=4))
def test_probes_leave_no_trace(
    views: list[ScaleView], space: Space, kind: Kind, probes: list[tuple[int, float]]
) -> None:
    before = bits(views)
    flat = FlatBuffer(views, CPU)
    flat.space = space
    flat.write()
    assert all(same_bits(view.read(), before[view.name]) for view in views)
    for seed, eps in probes:
        flat.write(seed=seed, eps=eps, noise=kind)
    flat.write()
    assert all(same_bits(view.read(), before[view.name]) for view in views)


@given(layouts(), spaces, kinds, seeds, st.floats(-0.5, 0.5))
def test_a_probe_is_what_its_formula_says(
    views: list[ScaleView], space: Space, kind: Kind, seed: int, eps: float
) -> None:
    before = bits(views)
    flat = FlatBuffer(views, CPU)
    flat.space = space
    flat.write(seed=seed, eps=eps, noise=kind)
    for view in views:
        base = before[view.name].double()
        z = torch.from_numpy(reference(seed, view.name, base.numel(), kind)).double()
        theta = base * (1 + eps * z) if space == "relative" else base + eps * z
        if view.role == "scale":
            theta = torch.where(theta.sign() * base.sign() > 0, theta, 0.0)
        tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}[view.dtype]
        torch.testing.assert_close(view.read().double(), theta, rtol=tolerance, atol=1e-6)


@given(layouts(), spaces, kinds, seeds)
def test_the_layout_does_not_matter(views: list[ScaleView], space: Space, kind: Kind, seed: int) -> None:
    before = bits(views)
    flat = FlatBuffer(views, CPU)
    flat.space = space
    flat.add(seed, 0.25, kind)
    flat.write()
    expected = bits(views)
    deltas = {view.name: flat.delta[flat.slice_of(index)].clone() for index, view in enumerate(views)}
    for view in views:
        view.write(before[view.name])
    for order, limit in ((views[::-1], 128), (views[1:] + views[:1], 1 << 18)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(buffer._CHUNK, "cpu", limit)
            other = FlatBuffer(order, CPU)
        other.space = space
        other.add(seed, 0.25, kind)
        other.write()
        for index, view in enumerate(order):
            assert same_bits(view.read(), expected[view.name])
            assert same_bits(other.delta[other.slice_of(index)], deltas[view.name])
            assert same_bits(other.theta(index).to(view.dtype).float(), expected[view.name])
            view.write(before[view.name])


@given(spaces, kinds, seeds, seeds)
def test_updates_add_up(space: Space, kind: Kind, one: int, two: int) -> None:
    """Rademacher updates by powers of two are exact, so that their order cannot show."""
    views = [TensorView("d", "zero", torch.randn(200))]
    forth, back = FlatBuffer(views, CPU), FlatBuffer(views, CPU)
    for flat, order in ((forth, (one, two, one)), (back, (two, one, one))):
        for seed in order:
            flat.add(seed, 2.0**-6, kind)
    exact = 0.0 if kind == "rademacher" else 1e-7
    torch.testing.assert_close(forth.delta, back.delta, rtol=0, atol=exact)
    forth.add(two, -(2.0**-6), kind)
    forth.add(one, -(2.0**-5), kind)
    torch.testing.assert_close(forth.delta, torch.zeros_like(forth.delta), rtol=0, atol=exact)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_and_range_are_kept(space: Space, dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype).max
    base = torch.tensor([1.0, -1.0, 0.0, -0.0, limit, -limit])
    for push in (-1e30, -3.0, 3.0, 1e30):
        theta = compose(torch.full((6,), push), base, torch.empty(6), space=space, keep_sign=True, dtype=dtype)
        assert torch.isfinite(theta.to(dtype)).all()
        assert ((theta == 0) | (theta.sign() == base.sign())).all()
        free = compose(torch.full((6,), push), base, torch.empty(6), space=space, keep_sign=False, dtype=dtype)
        assert torch.isfinite(free.to(dtype)).all()
    crossed = compose(torch.full((6,), -3.0), base, torch.empty(6), space=space, keep_sign=False, dtype=dtype)
    assert crossed[0] < 0


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("keep_sign", [True, False])
def test_a_delta_of_zero_moves_no_bit(space: Space, keep_sign: bool) -> None:
    base = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, -3.0, 3.4e38, -3.4e38])
    theta = compose(
        torch.zeros_like(base), base, torch.empty_like(base), space=space, keep_sign=keep_sign, dtype=torch.float32
    )
    assert same_bits(theta, base)


def test_the_share_that_moves_is_counted() -> None:
    views: list[ScaleView] = [TensorView("a", "scale", torch.ones(100, dtype=torch.float16))]
    views += [TensorView("b", "scale", torch.ones(50))]
    flat = FlatBuffer(views, CPU)
    assert flat.count_moved(1, 1e-5, "rademacher") == 50
    assert flat.count_moved(1, 1e-2, "rademacher") == 150
    assert flat.count_moved(1, 0.0, "rademacher") == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("space", ["relative", "absolute"])
def test_gaps_between_views_do_not_count_as_moved(space: Any, streamed: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1)).half()
    for parameter in model.parameters():
        parameter.data.fill_(1000.0)
    views = attach(model, roles=("dense",), coupled=False, streamed=streamed)
    views.space = space
    moved = views.share_moved(1, 100.0 if space == "absolute" else 0.1, "rademacher")
    assert moved == 1
    assert views.share_moved(1, 1e-5, "rademacher") == 0


def test_both_noises_in_turn() -> None:
    view = TensorView("a", "zero", torch.ones(10))
    flat = FlatBuffer([view], CPU)
    for kind in (*KINDS, *KINDS):
        flat.write(seed=1, eps=0.5, noise=kind)
        z = torch.from_numpy(reference(1, "a", 10, kind))
        torch.testing.assert_close(view.read(), 1 + 0.5 * z)


def test_inference_mode_may_come_and_go() -> None:
    with torch.inference_mode():
        view = TensorView("a", "scale", torch.ones(10))
        flat = FlatBuffer([view], CPU)
        flat.write(seed=1, eps=0.5)
    flat.add(1, 0.25, "rademacher")
    flat.write()
    expected = view.read()
    with torch.inference_mode():
        flat.write(seed=2, eps=0.5)
        flat.add(3, 0.0, "gaussian")
        flat.write()
    flat.write()
    assert same_bits(view.read(), expected)
    assert not same_bits(expected, torch.ones(10))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("noise", KINDS)
def test_views_of_no_and_of_one_value(noise: Kind, streamed: bool, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.register_parameter("none", nn.Parameter(torch.empty(0, 4)))
    model.register_parameter("one", nn.Parameter(torch.tensor(2.0)))
    views = attach(model, roles=("dense",), streamed=streamed)
    optimizer = ZOSGD(views, noise=noise)
    optimizer.step(lambda: (model(torch.ones(1, 3)).sum() * model.one).detach())
    assert views.delta("none").shape == views.theta("none").shape == (0, 4)
    assert float(views.delta("weight").abs().max()) > 0
    save_delta(tmp_path / "delta", views)
    expected = {key: views.delta(key) for key in views.keys}
    views.reset()
    load_delta(tmp_path / "delta", views)
    assert all(torch.equal(views.delta(key), value) for key, value in expected.items())


def test_no_value_at_all_has_not_moved() -> None:
    model = nn.Module()
    model.register_parameter("none", nn.Parameter(torch.empty(0, 4)))
    views = attach(model, roles=("dense",))
    assert (views.share_moved(1, 0.1, "rademacher"), views.share_changed()) == (0, 0)
