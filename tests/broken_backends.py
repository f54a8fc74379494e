"""One deliberately broken backend for each check of `check_backend`. Each fails that check and no other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.protocol import Role, ScaleView
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
        self.view._tensor = module.d
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


BROKEN: dict[str, tuple[Backend, type[Layer]]] = {
    "check_views_are_well_formed": (WrongRole(), Layer),
    "check_read_returns_what_was_written": (ReadIsAlias(), Layer),
    "check_views_are_independent": (WriteSpills(), Layer),
    "check_forward_agrees_with_dequantize": (WrongDequantize(), Layer),
    "check_write_reaches_forward": (Backend(), CachingLayer),
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
