"""From a model to its views, and what is refused on the way."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests import broken_backends
from tests.toy import ToyModel, registered, stored, toy_batch, toy_layer, toy_loss, toy_model
from zoquant import MemberView, ScaleView, TensorView, attach
from zoquant.errors import NoViewsError, ShapeError, UnsupportedLayoutError, ValueRangeError
from zoquant.native import QuantEmbedding


class Dict(nn.Module):
    """Keeps its values in a dict, as HQQ does."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.meta: dict[str, Tensor] = {"scale": torch.ones(3, 1, dtype=dtype), "zero": torch.ones(3, 1, dtype=dtype)}

    def weight(self) -> Tensor:
        return (self.meta["scale"] * (torch.arange(12).view(3, 4) - self.meta["zero"])).float()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight().t()


class DictBackend:
    name = "dict"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Dict)
        return [MemberView("scale", "scale", module.meta, "scale"), MemberView("zero", "zero", module.meta, "zero")]

    def dequantize(self, module: nn.Module) -> Tensor:
        assert isinstance(module, Dict)
        return module.weight()

    def sample_input(self, module: nn.Module) -> Tensor:
        return torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dict_backend() -> Iterator[None]:
    zoquant.register(backend=DictBackend(), claims=Dict)
    yield
    zoquant.unregister("tests.views.test_attach.Dict")


def test_views_of_a_model(model: ToyModel) -> None:
    views = attach(model)
    assert views.keys == ("layers.l0.d", "layers.l1.d", "layers.l2.d")
    assert len(views) == 3
    assert views.trainable == 3 * 16
    assert repr(views[0]) == "<layers.l0.d scale [8, 2] float16 native>"
    assert [view.name for view in views[1:]] == ["layers.l1.d", "layers.l2.d"]
    view = views[0]
    assert (view.role, view.shape, view.dtype, view.device.type) == ("scale", (8, 2), torch.float16, "cpu")
    assert torch.equal(view.read(), views.base(view.name))


def test_roles_include_and_exclude(model: ToyModel) -> None:
    both = attach(model, roles=("scale", "zero"))
    assert both.keys[:2] == ("layers.l0.d", "layers.l0.m")
    assert attach(model, roles=("zero",), exclude="*.l1.*").keys == ("layers.l0.m", "layers.l2.m")
    assert attach(model, include=["*.l2.*", "*.l0.*"], exclude=["*.l0.d"]).keys == ("layers.l2.d",)


def test_a_layer_alone_has_keys_without_a_path() -> None:
    assert attach(toy_layer()).keys == ("d",)


def test_unknown_role(model: ToyModel) -> None:
    with pytest.raises(
        ValueError, match=r"unknown role 'bias', expected some of scale, zero, codebook, dense, adapter"
    ):
        attach(model, roles=("bias",))  # type: ignore[arg-type]


def test_nothing_left_by_the_filters(model: ToyModel) -> None:
    with pytest.raises(NoViewsError) as caught:
        attach(model, include="*.mlp.*")
    assert str(caught.value) == (
        "3 quantized layers were found, but include *.mlp.* and exclude (none) leave nothing of them. Keys are such "
        "as layers.l0.d; `zoquant inspect --keys` lists all."
    )


def test_no_quantized_layer() -> None:
    with pytest.raises(NoViewsError) as caught:
        attach(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    text = str(caught.value)
    assert "no layer of Sequential belongs to a known backend" in text
    assert "torch.nn.modules.activation.ReLU, torch.nn.modules.linear.Linear" in text
    assert "zoquant.native.layers.QuantLinear" in text


def test_unknown_key_names_its_neighbours(model: ToyModel) -> None:
    views = attach(model)
    for look in (views.base, views.delta, views.theta):
        with pytest.raises(NoViewsError, match=r"no view is called 'layers\.l0\.s'; the nearest are layers\.l0\.d"):
            look("layers.l0.s")


def test_writes_name_the_key_and_the_backend(model: ToyModel) -> None:
    view = attach(model)[0]
    with pytest.raises(ShapeError) as shape:
        view.write(torch.ones(2, 8))
    assert str(shape.value) == (
        "layers.l0.d (native): write() got (2, 8), expected (8, 2). Write a tensor of the shape that read() returned."
    )
    with pytest.raises(ValueRangeError, match=r"^layers\.l0\.d \(native\): write\(\) got NaN or infinity"):
        view.write(torch.full((8, 2), float("nan")))
    assert torch.equal(view.read(), toy_layer().packed.value("d").float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_base_is_refused(model: ToyModel, bad: float) -> None:
    stored(model, "l1", "d")[0, 0] = bad
    with pytest.raises(ValueRangeError) as caught:
        attach(model)
    assert str(caught.value) == (
        "layers.l1.d (native): holds NaN or infinity, expected finite numbers. Get an undamaged checkpoint, or leave "
        "the view out with exclude='layers.l1.d'."
    )
    assert attach(model, exclude="layers.l1.d").keys == ("layers.l0.d", "layers.l2.d")


def test_values_wider_than_float32_are_refused(dict_backend: None) -> None:
    with pytest.raises(
        UnsupportedLayoutError, match=r"^a\.scale \(dict\): stored as torch\.float64, expected floating"
    ):
        attach(nn.ModuleDict({"a": Dict(torch.float64)}))


def test_many_layers_without_live_storage_are_all_found(dict_backend: None) -> None:
    """Views that were dropped must not lend their identity to those that come after them."""
    model = nn.ModuleDict({f"l{n:02}": Dict() for n in range(50)})
    assert len(attach(model)) == 50
    assert len(attach(model, roles=("scale", "zero"))) == 100


def test_tied_layers_are_one_view() -> None:
    one, two = toy_layer(), toy_layer()
    table = QuantEmbedding(one.packed)
    tied = nn.ModuleDict({"embed": table, "head": one, "other": two})
    assert attach(tied).keys == ("embed.d", "other.d")


def test_a_layer_that_ignores_writes_is_refused() -> None:
    layer = broken_backends.CachingLayer()
    with registered(broken_backends.Backend(), broken_backends.CachingLayer):
        before = layer.d.clone()
        with pytest.raises(UnsupportedLayoutError) as caught:
            attach(nn.ModuleDict({"a": layer}))
        assert torch.equal(layer.d, before)
        assert "a (good): after a write to 'd' the output of CachingLayer is" in str(caught.value)
        assert "runtime='native'" in str(caught.value)
        assert attach(nn.ModuleDict({"a": layer}), verify=False).keys == ("a.d",)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    with registered(broken_backends.WrongDequantize(), broken_backends.Layer):
        layer = broken_backends.Layer()
        with pytest.raises(
            UnsupportedLayoutError, match=r"a \(good\): before any write the output of Layer is 0\.12 away"
        ):
            attach(nn.ModuleDict({"a": layer}))


def test_a_cache_in_dequantize_and_forward_is_refused() -> None:
    class Blind(broken_backends.Backend):
        def dequantize(self, module: nn.Module) -> Tensor:
            assert isinstance(module, broken_backends.CachingLayer)
            return module.cached

    with registered(Blind(), broken_backends.CachingLayer):
        layer = broken_backends.CachingLayer()
        with pytest.raises(UnsupportedLayoutError, match=r"a\.d \(good\): the output did not change when the values"):
            attach(nn.ModuleDict({"a": layer}))


def test_a_backend_that_caches_nothing_is_believed() -> None:
    class Uncached(broken_backends.WrongDequantize):
        cached = False

    with registered(Uncached(), broken_backends.Layer):
        assert attach(nn.ModuleDict({"a": broken_backends.Layer()})).keys == ("a.d",)


def test_values_within_the_memory_of_others_are_refused() -> None:
    class Overlapping(broken_backends.Backend):
        def open(self, module: nn.Module) -> Sequence[ScaleView]:
            assert isinstance(module, broken_backends.Layer)
            return [TensorView("d", "scale", module.d), TensorView("m", "scale", module.d.flatten()[1:])]

    model = nn.ModuleDict({"a": broken_backends.Layer()})
    text = r"a\.d \(good\) and a\.m \(good\) lie in the same memory.* Leave one out, e\.g\. with exclude='a\.m'"
    with registered(Overlapping(), broken_backends.Layer):
        with pytest.raises(UnsupportedLayoutError, match=text):
            attach(model, verify=False)
        assert attach(model, exclude="a.m", verify=False).keys == ("a.d",)


def test_a_layer_of_zeros_is_accepted(dict_backend: None) -> None:
    layer = Dict()
    layer.meta["scale"].zero_()
    layer.meta["zero"].zero_()
    assert len(attach(nn.ModuleDict({"a": layer}), roles=("scale", "zero"))) == 2
    assert not layer.meta["scale"].any()
    assert not layer.meta["zero"].any()


@pytest.mark.parametrize("said", ["scales are packed. Use the torch kernel.", "a forward packed it. Load it again."])
def test_a_refusal_of_open_names_the_layer(said: str) -> None:
    """Also where what is said begins with the letters of the layer's path."""

    class Refusing(broken_backends.Backend):
        def open(self, module: nn.Module) -> Sequence[ScaleView]:
            raise UnsupportedLayoutError(said)

    text = rf"^a \(good\): {re.escape(said)}$"
    with registered(Refusing(), broken_backends.Layer), pytest.raises(UnsupportedLayoutError, match=text):
        attach(nn.ModuleDict({"a": broken_backends.Layer()}))


def test_attached_under_inference_mode_trained_outside(model: ToyModel) -> None:
    batch = toy_batch()
    reference = zoquant.ZOSGD(attach(model), seed=4)
    expected = [reference.step(lambda: toy_loss(model, batch)).derivative for _ in range(3)]
    other = toy_model()
    with torch.inference_mode():
        optimizer = zoquant.ZOSGD(attach(other), seed=4)
        got = [optimizer.step(lambda: toy_loss(other, batch)).derivative]
    got += [optimizer.step(lambda: toy_loss(other, batch)).derivative for _ in range(2)]
    assert got == expected


def test_a_model_cast_to_float32_rounds_as_the_file_does(model: ToyModel) -> None:
    views, wide = attach(model), attach(toy_model().float())
    for each in (views, wide):
        each.add(3, 0.01, "gaussian")
        each.write()
    assert [view.dtype for view in wide] == [torch.float16] * 3
    for view, other in zip(views, wide, strict=True):
        assert torch.equal(view.read(), other.read())


def test_set_delta_reset_and_theta(model: ToyModel) -> None:
    views = attach(model)
    key, base = views.keys[1], views[1].read()
    views.set_delta({key: torch.full((8, 2), 0.5)})
    assert torch.equal(views[1].read(), (base * 1.5).half().float())
    assert torch.equal(views.theta(key), base * 1.5)
    assert torch.equal(views.delta(key), torch.full((8, 2), 0.5))
    assert not views.delta(views.keys[0]).any()
    views.reset()
    assert torch.equal(views[1].read(), base)
    assert not views.delta(key).any()


def test_a_plain_tensor_view_is_a_scale_view() -> None:
    assert isinstance(TensorView("d", "scale", torch.ones(1)), ScaleView)


def test_layers_that_nobody_claims_are_named() -> None:
    class Stranger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))

    model = toy_model()
    model.add_module("stranger", Stranger())
    with pytest.warns(
        UserWarning, match=r"no backend claims stranger \(tests\.views\.test_attach\..*Stranger\), which hold"
    ):
        attach(model)
    del model.stranger
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(model)


class KeptProduct(broken_backends.Layer):
    """Keeps its dequantized weight, and counts how often it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.dequantize()

    def dequantize(self) -> None:
        self.kept, self.made = self.weight(), self.made + 1

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kept.t()


class Refreshing(broken_backends.Backend):
    name = "refreshing"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, KeptProduct)
        return [TensorView("d", "scale", module.d), TensorView("m", "zero", module.m)]

    def refresh(self, module: nn.Module) -> None:
        assert isinstance(module, KeptProduct)
        module.dequantize()


@pytest.fixture
def refreshing() -> Iterator[None]:
    zoquant.register(backend=Refreshing(), claims=KeptProduct)
    yield
    zoquant.unregister("tests.views.test_attach.KeptProduct")


def follows(layer: KeptProduct) -> bool:
    return torch.equal(layer.kept, layer.weight())


def test_every_way_of_writing_refreshes_a_layer_once(refreshing: None, tmp_path: Path) -> None:
    layer = KeptProduct()
    model = nn.ModuleDict({"a": layer})
    views = attach(model, roles=("scale", "zero"))
    optimizer, x = zoquant.ZOSGD(views, lr=1e-3, seed=3), torch.ones(1, 24)

    def counted(act: Callable[[], object]) -> int:
        before = layer.made
        act()
        assert follows(layer)
        return layer.made - before

    assert counted(lambda: optimizer.step(lambda: layer(x).square().mean())) == 3  # two probes, and theta
    assert counted(optimizer.restore) == 1
    assert counted(lambda: views.set_delta({"a.d": torch.full((16, 1), 0.5)})) == 1
    assert counted(lambda: views[0].write(torch.ones(16, 1))) == 1
    assert counted(views.reset) == 1
    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    assert follows(layer)
    zoquant.save_delta(tmp_path / "delta.safetensors", views)
    optimizer.trajectory.save(tmp_path / "trajectory.safetensors")
    for follow, name in ((zoquant.load_delta, "delta"), (zoquant.replay, "trajectory")):
        other = KeptProduct()
        follow(tmp_path / f"{name}.safetensors", attach(nn.ModuleDict({"a": other}), roles=("scale", "zero")))
        assert follows(other)


def test_tied_layers_are_refreshed_together(refreshing: None) -> None:
    one, two = KeptProduct(), KeptProduct()
    two.d = one.d
    views = attach(nn.ModuleDict({"one": one, "two": two}))
    views.set_delta({"one.d": torch.full((16, 1), 0.5)})
    assert follows(one)
    assert follows(two)


def test_a_live_view_that_refreshes_in_write_is_refused() -> None:
    with registered(broken_backends.RefreshesInWrite(), broken_backends.CachingLayer):
        text = r"^a\.d \(good\): live is the storage, so training writes there and never calls write\(\) of View"
        with pytest.raises(UnsupportedLayoutError, match=text):
            attach(nn.ModuleDict({"a": broken_backends.CachingLayer()}))


def test_two_views_with_one_name_are_refused() -> None:
    text = r"^a \(good\): open\(\) returned several views called 'd'"
    with (
        registered(broken_backends.SameNames(), broken_backends.Layer),
        pytest.raises(UnsupportedLayoutError, match=text),
    ):
        attach(nn.ModuleDict({"a": broken_backends.Layer()}))


def test_a_shape_that_read_does_not_have_is_refused() -> None:
    text = r"^a\.d \(good\): read\(\) returned \(1, 16\), and shape says \(16"
    with (
        registered(broken_backends.TransposedRead(), broken_backends.Layer),
        pytest.raises(UnsupportedLayoutError, match=text),
    ):
        attach(nn.ModuleDict({"a": broken_backends.Layer()}))


def test_what_a_backend_raises_names_module_and_backend() -> None:
    class Raising(broken_backends.Backend):
        def sample_input(self, module: nn.Module) -> Tensor:
            return torch.randn(2, 23)

    text = r"^a \(good\): raised RuntimeError: mat1 and mat2"
    with registered(Raising(), broken_backends.Layer), pytest.raises(UnsupportedLayoutError, match=text):
        attach(nn.ModuleDict({"a": broken_backends.Layer()}))


@pytest.mark.parametrize(("backend", "text"), broken_backends.GRIDS)
def test_wrong_grids_are_refused(backend: broken_backends.Backend, text: str) -> None:
    with registered(backend, broken_backends.GroupedLayer):
        layer = broken_backends.GroupedLayer()
        before = layer.d.clone()
        with pytest.raises(UnsupportedLayoutError, match=text):
            attach(nn.ModuleDict({"a": layer}))
        assert torch.equal(layer.d, before)


@pytest.mark.parametrize("backend", [broken_backends.XorsCodes(), broken_backends.Requantizes()])
def test_a_write_that_changes_codes_is_refused(backend: broken_backends.Backend) -> None:
    text = r"^a\.d \(good\): a write changed the codes in 'codes', and codes never change"
    with registered(backend, broken_backends.Layer), pytest.raises(UnsupportedLayoutError, match=text):
        attach(nn.ModuleDict({"a": broken_backends.Layer()}))


def test_values_of_a_layer_that_is_refreshed_are_not_streamed(refreshing: None) -> None:
    layer = KeptProduct()
    layer.bias = nn.Parameter(torch.zeros(16))
    model = nn.ModuleDict({"a": layer, "plain": nn.Linear(4, 4)})
    views = attach(model, roles=("dense",), streamed=True)
    kinds = {view.name: type(buffer) for buffer in views.buffers for view in buffer.views}
    assert {key: kind.__name__ for key, kind in kinds.items()} == {
        "a.bias": "FlatBuffer",
        "plain.weight": "StreamedBuffer",
        "plain.bias": "StreamedBuffer",
    }
    views.set_delta({"a.bias": torch.ones(16)})
    assert layer.made == 2
