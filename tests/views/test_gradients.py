"""Deltas as parameters: their gradients, who may move them, and what that leaves in the model and its files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoquant
from tests import broken_backends
from tests.backends.gguf.files import TinyFile
from tests.backends.gguf.models import metadata_of, tiny
from tests.toy import ToyFormat, registered, toy_batch, toy_layer, toy_loss, toy_model, write_toy
from zoquant.errors import UnsupportedLayoutError
from zoquant.native import PackedWeight, QuantEmbedding, QuantLinear
from zoquant.views.flat_buffer import SPACES, Space, compose
from zoquant.views.gradients import Gradients, slope
from zoquant.views.stored_form import StoredForm, keep_form

numbers = st.floats(-4, 4, width=32)


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, st.sampled_from(SPACES), st.booleans(), st.sampled_from([torch.float16, torch.float32]))
def test_the_slope_is_that_of_theta(delta: float, base: float, space: Space, keep_sign: bool, dtype: Any) -> None:
    step = 1e-2

    def theta(at: float) -> float:
        parts = torch.tensor([at]), torch.tensor([base])
        return float(compose(*parts, torch.empty(1), space=space, keep_sign=keep_sign, dtype=dtype))

    kink = -1.0 if space == "relative" else -base
    if keep_sign and abs(delta - kink) <= 2 * step:
        return
    found = slope(torch.tensor([delta]), torch.tensor([base]), space=space, keep_sign=keep_sign, dtype=dtype)
    assert float(found) == pytest.approx((theta(delta + step) - theta(delta - step)) / (2 * step), abs=1e-3)


def test_the_slope_is_zero_beyond_the_range_of_the_dtype() -> None:
    found = slope(
        torch.tensor([0.5, 2.0]), torch.tensor([4e4, 4e4]), space="relative", keep_sign=True, dtype=torch.float16
    )
    assert found.tolist() == [4e4, 0.0]


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen2moe"])
def test_gradients_of_a_model_are_those_of_a_dense_copy(arch: str, tmp_path: Path) -> None:
    made = tiny(arch, num_hidden_layers=1)
    path = TinyFile(arch, made, metadata_of(made), ["Q4_1", "Q8_0", "Q4_0"]).write(tmp_path / "m.gguf")
    model, _ = zoquant.load(path, compute_dtype=torch.float32)
    views = zoquant.attach(model, roles=("scale", "dense"))
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    plain = dense_copy(model)
    loss_of(plain, ids).backward()  # type: ignore[no-untyped-call]
    with Gradients(model, views) as deltas:
        loss = loss_of(model, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(loss.detach(), loss_of(plain, ids).detach(), rtol=1e-4, atol=1e-5)
        found = {name: parameter.grad for name, parameter in deltas.named_parameters()}
    shared = {keys[0]: keys for keys in views.coupled_keys()}
    by_key = {view.name: view for view in views}
    assert len(found) == len(views) - sum(len(keys) - 1 for keys in shared.values())
    for name, grad in found.items():
        expected = sum(by_value(plain, by_key[key]) * views.base(key) for key in shared.get(name, (name,)))
        assert grad is not None, name
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(grad, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()) + 1e-9)


def loss_of(model: Any, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Dense(nn.Module):
    """What a native layer computes, from its weights written out. One of a matrix that several layers share."""

    def __init__(self, layer: Any, weights: dict[int, nn.Parameter]) -> None:
        super().__init__()
        self.packed = [layer.packed]
        place = next(layer.packed.buffers()).data_ptr()
        self.weight = weights.setdefault(place, nn.Parameter(layer.packed.dequantize()))
        self.factor: float | None = getattr(layer, "scale", None)
        bias: Tensor | None = getattr(layer, "bias", None)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.lookup = isinstance(layer, QuantEmbedding)
        self.out_features, self.in_features, self.compute_dtype = *self.weight.shape, torch.float32

    def forward(self, x: Tensor) -> Tensor:
        if self.lookup:
            return self.weight[x] * (self.factor or 1.0)
        return nn.functional.linear(x, self.weight, self.bias)

    def rows(self, x: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        return x @ self.weight[rows].t()


def dense_copy(model: nn.Module) -> nn.Module:
    plain, weights = copy.deepcopy(model), dict[int, nn.Parameter]()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, QuantLinear | QuantEmbedding):
            plain.set_submodule(path, Dense(layer, weights))
    return plain.requires_grad_()


def by_value(plain: nn.Module, view: Any) -> Tensor:
    """Return the gradient by the values of a view, through the decoder where it is packed."""
    layer = plain.get_submodule(view.layer.path)
    if not isinstance(layer, Dense) or view.local == "bias":
        grad = layer.get_parameter(view.local).grad
        assert grad is not None
        return grad
    packed: PackedWeight = layer.packed[0]
    assert layer.weight.grad is not None
    found = {view.local: torch.zeros(view.shape)}
    PackedWeight.add_field_gradients(packed, slice(0, packed.rows), layer.weight.grad, found)
    return found[view.local]


def test_any_optimizer_trains_and_the_files_are_the_same(tmp_path: Path, toy_format: ToyFormat) -> None:
    path = write_toy(tmp_path / "base.toy", toy_model())
    model, _ = zoquant.load(path)
    views, batch = zoquant.attach(model, roles=("scale", "zero")), toy_batch()
    layers = list(model.layers.values())  # type: ignore[operator]
    codes = [layer.packed.codes.clone() for layer in layers]
    with zoquant.Gradients(model, views) as deltas:
        optimizer = torch.optim.AdamW(deltas.parameters(), lr=5e-2, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        losses = []
        for _ in range(40):
            loss = toy_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(deltas.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(a, layer.packed.codes) for a, layer in zip(codes, layers, strict=True))
    assert not toy_loss(model, batch).requires_grad
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    zoquant.export(path, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned.toy")
    tuned, _ = zoquant.load(tmp_path / "tuned.toy")
    assert torch.equal(toy_loss(tuned, batch), toy_loss(model, batch))
    fresh, _ = zoquant.load(path)
    zoquant.load_delta(tmp_path / "delta.safetensors", zoquant.attach(fresh, roles=("scale", "zero")))
    assert torch.equal(toy_loss(fresh, batch), toy_loss(model, batch))


def test_a_parameter_is_the_delta_itself() -> None:
    model = toy_model(layers=1)
    views = zoquant.attach(model)
    x = torch.randn(2, 8)
    before = model(x)
    with Gradients(model, views) as deltas:
        (name, parameter), *more = deltas.named_parameters()
        assert (name, more) == ("layers.l0.d", [])
        with torch.no_grad():
            parameter.fill_(0.5)
        assert torch.equal(views.delta(name), parameter)
        assert not torch.equal(model(x), before)  # the forward finds that a delta has changed
        torch.testing.assert_close(views[0].read(), views.base(name) * 1.5, rtol=1e-3, atol=0)
        parameter.data.zero_()
        deltas.write()
        assert torch.equal(model(x), before)
        model.deltas = deltas
        assert [name for name, _ in model.named_parameters()] == ["deltas.layers.l0.d"]


def test_coupled_views_share_a_parameter() -> None:
    model = toy_layer()
    views = zoquant.attach(model, roles=("scale", "zero"))
    x = torch.randn(3, 8)
    with Gradients(model, views) as deltas:
        assert [name for name, _ in deltas.named_parameters()] == ["d", "m"]
    both = [FieldAsScale(field) for field in model.packed.codec.fields]  # type: ignore[union-attr]
    model.packed.codec.fields = tuple(field.spec for field in both)  # type: ignore[union-attr]
    coupled, apart = zoquant.attach(model), zoquant.attach(model, coupled=False)
    with Gradients(model, coupled) as deltas:
        model(x).square().sum().backward()
        (shared,) = [parameter.grad for parameter in deltas.parameters()]
    with Gradients(model, apart) as deltas:
        model(x).square().sum().backward()
        d, m = [parameter.grad for parameter in deltas.parameters()]
    assert shared is not None
    assert d is not None
    assert m is not None
    torch.testing.assert_close(shared, d + m)
    with pytest.raises(ValueError, match="space is 'absolute', but d and m share their delta"):
        Gradients(model, coupled, space="absolute")


class FieldAsScale:
    """A field of the toy layout, as a scale."""

    def __init__(self, field: Any) -> None:
        self.spec = type(field)(field.name, "scale", field.dtype)


def test_a_scale_that_has_stopped_has_no_gradient() -> None:
    model = toy_model(layers=1)
    views = zoquant.attach(model)
    with Gradients(model, views) as deltas:
        parameter = deltas.get_parameter("layers.l0.d")
        with torch.no_grad():
            parameter[0] = -1.5
        toy_loss(model, toy_batch()).backward()  # type: ignore[no-untyped-call]
        assert parameter.grad is not None
        assert not parameter.grad[0].any()
        assert parameter.grad[1:].all()


def test_layers_without_a_backward_are_refused_by_name() -> None:
    with registered(broken_backends.Backend(), broken_backends.Layer):
        model = nn.ModuleDict({"up": broken_backends.Layer()})
        views = zoquant.attach(model)
        with pytest.raises(UnsupportedLayoutError) as caught:
            Gradients(model, views)
        assert str(caught.value) == (
            "up.d: its layer has no gradient by its values. Train it by forwards alone, with ZOSGD, or use "
            "zoquant.load(..., runtime='native')."
        )


class Blind(broken_backends.Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@pytest.mark.parametrize("blind", [False, True])
def test_a_vendor_layer_may_pass_a_gradient_on(blind: bool) -> None:
    cls = Blind if blind else broken_backends.Layer
    with registered(broken_backends.Backend(), cls):
        model = nn.Sequential(toy_layer(rows=24), cls(), nn.Linear(16, 1))
        views = zoquant.attach(model, include="0.*", verify=False)
        if blind:
            with pytest.raises(UnsupportedLayoutError, match=r"1 \(good\): Blind gives its input no gradient. Train"):
                Gradients(model, views)
            return
        with Gradients(model, views) as deltas:
            model(torch.randn(2, 8)).sum().backward()
            assert all(parameter.grad is not None for parameter in deltas.parameters())


def test_plain_parameters_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = dict(model.named_parameters())
    views = zoquant.attach(model, roles=("dense",))
    with Gradients(model, views, space="absolute") as deltas:
        assert not dict(model.named_parameters())
        model(torch.randn(3, 4)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in deltas.parameters())
        assert model.state_dict().keys() == before.keys()
    assert {name: id(value) for name, value in model.named_parameters()} == {
        name: id(value) for name, value in before.items()
    }


def test_plain_parameters_that_torch_writes_are_read_by_the_next_graph() -> None:
    """A compiled kernel writes theta unseen by autograd; torch's own operations, which serve without one, are seen."""
    layer, x = nn.Linear(4, 4, bias=False), torch.randn(3, 4)
    model, weight = nn.Sequential(layer), layer.weight
    with Gradients(model, zoquant.attach(model, roles=("dense",))) as deltas:
        once = model(x)
        with torch.no_grad():
            weight.mul_(2)
        twice = model(x)
        torch.testing.assert_close(twice, 2 * once)
        twice.sum().backward()
        assert all(parameter.grad is not None for parameter in deltas.parameters())


def test_streamed_views_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    views = zoquant.attach(model, roles=("dense",), streamed=True)
    with pytest.raises(UnsupportedLayoutError, match=r"0\.weight: is streamed, .* use streamed=False\."):
        Gradients(model, views)


def test_the_gradient_of_rows_in_another_order_is_in_the_order_of_the_file() -> None:
    """Rotary rows of q and k, and norms of which the file holds one more."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4, bias=False), torch.randn(5, 3)
    keep_form(model, "weight", StoredForm(torch.float32, rows=torch.tensor([2, 0, 3, 1]), added=1.0))
    views = zoquant.attach(model, roles=("dense",))

    def loss() -> Tensor:
        y: Tensor = model(x)
        return y.pow(3).sum()

    with Gradients(model, views) as deltas:
        loss().backward()  # type: ignore[no-untyped-call]
        found = next(deltas.parameters()).grad
    assert found is not None
    for place in range(12):
        sides = []
        for eps in (1e-2, -1e-2):
            delta = torch.zeros(12)
            delta[place] = eps
            views.set_delta({"weight": delta.view(4, 3)})
            sides.append(float(loss().detach()))
        assert float(found.view(-1)[place]) == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=2e-2, abs=1e-3)


def test_a_delta_is_not_taken_for_one_of_the_other_space() -> None:
    model = toy_model()
    views = zoquant.attach(model, coupled=False)
    views.set_delta({key: torch.full_like(views.delta(key), 0.25) for key in views.keys})
    before = [view.read() for view in views]
    with pytest.raises(ValueError, match="space is 'absolute', but the views hold a delta of relative space"):
        Gradients(model, views, space="absolute")
    with pytest.raises(ValueError, match="space is 'log', expected one of"):
        Gradients(model, views, space="log")  # type: ignore[arg-type]
    assert views.space == "relative"
    views.write()
    assert all(torch.equal(view.read(), old) for view, old in zip(views, before, strict=True))
    views.reset()
    views.space = "absolute"
    assert views.space == "absolute"
