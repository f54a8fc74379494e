"""One deliberately broken backend for each check of `check_backend`. Each fails that check and no other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.protocol import Grid, Role, ScaleView
from zoquant.views.tensor_views import TensorView, check_value


class Layer(nn.Module):
    """`w = d * code + m`, one group a row, in float32."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("codes", torch.randint(-8, 8, (16, 24), generator=generator, dtype=torch.int8))
        self.register_buffer("d", torch.rand(16, 1, generator=generator) + 0.5)
        self.register_buffer("m", torch.randn(16, 1, generator=generator) + 3.0)

    codes: Tensor
    d: Tensor
    m: Tensor

    def weight(self) -> Tensor:
        return self.d * self.codes.float() + self.m

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight().t()


class Backend:
    """Serves `Layer` as it should be; what follows breaks one thing each."""

    name = "good"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [View("d", "scale", module.d), View("m", "zero", module.m)]

    def dequantize(self, module: nn.Module) -> Tensor:
        assert isinstance(module, Layer)
        return module.weight()

    def sample_input(self, module: nn.Module) -> Tensor:
        return torch.randn(2, 24, generator=torch.Generator().manual_seed(0))


class View(TensorView):
    """A view whose every write goes through write()."""

    def __init__(self, name: str, role: Role, tensor: Tensor) -> None:
        super().__init__(name, role, tensor)
        self.live = None


class WrongRole(Backend):
    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        d, m = super().open(module)
        m.role = "offset"  # type: ignore[misc, assignment]
        return [d, m]


class ReadIsAlias(Backend):
    class View(View):
        def read(self) -> Tensor:
            return self._tensor

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [self.View("d", "scale", module.d), View("m", "zero", module.m)]


class WriteSpills(Backend):
    """A write to `d` overwrites an element of `m`, as an off-by-one in a packed bank does."""

    class View(View):
        spill: Tensor

        def write(self, value: Tensor) -> None:
            super().write(value)
            self.spill[0] = value[0]

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        d = self.View("d", "scale", module.d)
        d.spill = module.m
        return [d, View("m", "zero", module.m)]


class WrongDequantize(Backend):
    def dequantize(self, module: nn.Module) -> Tensor:
        return super().dequantize(module) + 1.0


class Scaled(Backend):
    def dequantize(self, module: nn.Module) -> Tensor:
        return super().dequantize(module) * 0.999


class CachingLayer(Layer):
    """Dequantizes once, as a fast kernel may."""

    def __init__(self) -> None:
        super().__init__()
        self.cached = self.weight()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.cached.t()


class DetachingLayer(Layer):
    """Hides a value from autograd, as a kernel without a backward does."""

    def weight(self) -> Tensor:
        return self.d * self.codes.float() + self.m.detach()


class Plain(Backend):
    """Calls a value plain that is none."""

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [View("m", "dense", module.m)]


class CountingLayer(Layer):
    """Rearranges an integer tensor at its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.extras = {"order": torch.arange(16)}

    def forward(self, x: Tensor) -> Tensor:
        self.extras["order"].copy_(torch.arange(16).flip(0))
        return super().forward(x)


class Drifting(Backend):
    """Nudges a value at every hundredth write, as adding and subtracting in the storage dtype does."""

    class View(View):
        writes = 0

        def write(self, value: Tensor) -> None:
            self.writes += 1
            super().write(value * (1 + 1e-6) if self.writes % 100 == 0 else value)

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [self.View("d", "scale", module.d), View("m", "zero", module.m)]


class FlaggedLayer(Layer):
    """Takes one write between two forwards, as a kernel with a dirty flag does."""

    dirty = False

    def forward(self, x: Tensor) -> Tensor:
        self.dirty = False
        return super().forward(x)


class OneWritePerForward(Backend):
    class View(View):
        layer: FlaggedLayer

        def write(self, value: Tensor) -> None:
            check_value(self.name, self.shape, value)
            if not self.layer.dirty:
                super().write(value)
            self.layer.dirty = True

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, FlaggedLayer)
        d = self.View("d", "scale", module.d)
        d.layer = module
        return [d]


class PermutingLayer(Layer):
    """Permutes its scales at the first forward and computes in that order from then on."""

    permuted = False

    def weight(self) -> Tensor:
        return (self.d.flip(0) if self.permuted else self.d) * self.codes.float() + self.m

    def forward(self, x: Tensor) -> Tensor:
        if not self.permuted:
            self.d.copy_(self.d.flip(0))
            self.permuted = True
        return super().forward(x)


class SharedView(Backend):
    """Keeps one view for all layers and points it at the last one that was opened."""

    class View(View):
        def read(self) -> Tensor:
            return self._tensor.clone()

    def __init__(self) -> None:
        self.view: Any = None

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        if self.view is None:
            self.view = self.View("d", "scale", module.d)
        self.view._held = module.d
        return [self.view]


class Sticky(Backend):
    """Ignores a change of less than three percent, unless it leads back to the base."""

    class View(View):
        def __init__(self, name: str, tensor: Tensor) -> None:
            super().__init__(name, "scale", tensor)
            self.base = tensor.clone()

        def write(self, value: Tensor) -> None:
            check_value(self.name, self.shape, value)
            small = (value - self._tensor).abs() < 0.03 * self.base.abs()
            super().write(torch.where(small & (value != self.base), self._tensor, value))

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [self.View("d", module.d), View("m", "zero", module.m)]


class Resetting(Backend):
    """Puts a layer back to its first values whenever it is opened."""

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        first = module.__dict__.setdefault("first", module.d.clone())
        module.d.copy_(first)
        return super().open(module)


class Unchecked(Backend):
    class View(View):
        def write(self, value: Tensor) -> None:
            self._tensor.copy_(value[..., 0] if value.dim() > self._tensor.dim() else value)

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [self.View("d", "scale", module.d), View("m", "zero", module.m)]


class Importing(Backend):
    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        import gguf  # noqa: F401

        return super().open(module)


class SameNames(Backend):
    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [View("d", "scale", module.d), View("d", "zero", module.m)]


class TransposedRead(Backend):
    class View(View):
        def read(self) -> Tensor:
            return super().read().t().clone()

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        return [self.View("d", "scale", module.d)]


class RefreshesInWrite(Backend):
    """Refreshes a cache in `write`, and keeps the `live` that it inherits: training writes past the refresh."""

    class View(TensorView):
        layer: CachingLayer

        def write(self, value: Tensor) -> None:
            super().write(value)
            self.layer.cached = self.layer.weight()

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, CachingLayer)
        views = [self.View("d", "scale", module.d), self.View("m", "zero", module.m)]
        for view in views:
            view.layer = module
        return views


class XorsCodes(Backend):
    """Marks its codes at every write."""

    class View(View):
        codes: Tensor

        def write(self, value: Tensor) -> None:
            super().write(value)
            self.codes ^= 1

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        views = [self.View("d", "scale", module.d), self.View("m", "zero", module.m)]
        for view in views:
            view.codes = module.codes
        return views


class Requantizes(Backend):
    """Turns codes and scales around at every write: the weights are the same, the codes are not."""

    class View(View):
        layer: Layer

        def read(self) -> Tensor:
            return super().read().abs()

        def write(self, value: Tensor) -> None:
            check_value(self.name, self.shape, value)
            turn = -1.0 if bool((self._tensor > 0).all()) else 1.0
            if bool((self.layer.codes > -128).all()):
                self.layer.codes.mul_(-1)
            super().write(turn * value)

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        assert isinstance(module, Layer)
        d = self.View("d", "scale", module.d)
        d.layer = module
        return [d]


class GroupedLayer(Layer):
    """`w = d * code + m` with `d` and `m` stored `[columns, rows]` of a grid, each over two rows and two columns."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(-8, 8, (24, 24), generator=generator, dtype=torch.int8)
        self.d = torch.rand(12, 12, generator=generator) + 0.5
        self.m = torch.randn(12, 12, generator=generator) + 3.0
        self.rows, self.columns = torch.arange(24) // 2, torch.arange(24) * 5 % 24 // 2

    def weight(self) -> Tensor:
        d, m = (values.t()[self.rows][:, self.columns] for values in (self.d, self.m))
        return d * self.codes.float() + m


class Grids(Backend):
    """Says how the values of `GroupedLayer` lie, and as one other thing each."""

    def __init__(self, names: Sequence[str] = ("d", "m"), **wrong: Any) -> None:
        self.names, self.wrong = names, wrong

    def grids(self, module: nn.Module) -> Mapping[str, Grid]:
        assert isinstance(module, GroupedLayer)
        right = Grid((12, 12), module.rows, module.columns, transposed=True)
        return dict.fromkeys(self.names, replace(right, **self.wrong))


_HALF = torch.arange(24) // 2

GRIDS = [
    (Grids(transposed=False), r"^a \(good\): grids\(\) does not say .*: transposed is False, expected True"),
    (Grids(rows=torch.arange(24) * 5 % 24 // 2, columns=_HALF), "every output its row"),
    (Grids(columns=_HALF), "columns does not give every input its column"),
    (Grids(rows=_HALF.flip(0)), "rows does not give every output its row"),
    (Grids(names=("d",)), "'m' scales them, too, and is not named"),
    (Grids(shape=(12, 6)), r"a grid of \[12, 6\] for the 144 values of 'd'"),
    (Grids(columns=torch.arange(24)), "columns has .24. numbers from 0 to 23, expected 24 from 0 to 11"),
    (Grids(names=("d", "s")), "it names 's', and the views are d, m"),
]
"""Grids that are wrong in one way each, and what is said of them."""

BROKEN: dict[str, tuple[Backend, type[Layer]]] = {
    "check_views_are_well_formed": (WrongRole(), Layer),
    "check_read_returns_what_was_written": (ReadIsAlias(), Layer),
    "check_views_are_independent": (WriteSpills(), Layer),
    "check_forward_agrees_with_dequantize": (WrongDequantize(), Layer),
    "check_write_reaches_forward": (Backend(), CachingLayer),
    "check_training_reaches_forward": (RefreshesInWrite(), CachingLayer),
    "check_grids_scale_the_weights": (Grids(transposed=False), GroupedLayer),
    "check_gradient_is_that_of_the_forward": (Plain(), DetachingLayer),
    "check_codes_never_change": (Backend(), CountingLayer),
    "check_nothing_drifts": (Drifting(), Layer),
    "check_raising_loss_leaves_no_trace": (OneWritePerForward(), FlaggedLayer),
    "check_forward_keeps_order": (Backend(), PermutingLayer),
    "check_noise_is_pure": (SharedView(), Layer),
    "check_trajectory_replays": (Sticky(), Layer),
    "check_delta_meets_only_its_base": (Resetting(), Layer),
    "check_bad_values_are_refused": (Unchecked(), Layer),
    "check_attach_imports_nothing": (Importing(), Layer),
}
"""For each check the backend and the layer that break it."""

ALSO: dict[str, tuple[str, Backend, type[Layer], str]] = {
    "two views with one name": ("check_views_are_well_formed", SameNames(), Layer, "views called ['d', 'd']"),
    "read() transposed": ("check_views_are_well_formed", TransposedRead(), Layer, "layer.d (good): read() returned"),
    "codes changed by XOR": ("check_codes_never_change", XorsCodes(), Layer, "that a write to layer.d (good) changed"),
    "requantized": ("check_codes_never_change", Requantizes(), Layer, "that a write to layer.d (good) changed"),
    "dequantize of another size": (
        "check_forward_agrees_with_dequantize",
        Scaled(),
        Layer,
        "the output is 1.001 times",
    ),
} | {
    f"grids, {text}": ("check_grids_scale_the_weights", backend, GroupedLayer, "grids() does not say")
    for backend, text in GRIDS
}
"""More of them, by what is wrong: the check that each fails, and a part of what it says."""
