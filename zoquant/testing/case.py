"""What the checks of a backend run on: fresh modules from the author's factory, their layers and views."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoquant.optim.optimizer import ZOSGD
from zoquant.protocol import ROLES, Backend, Role, ScaleView
from zoquant.testing.results import ConformanceError
from zoquant.views.attach import attach, claimed
from zoquant.views.model_views import AttachedLayer, Views

MakeModule = Callable[[], nn.Module]


@dataclass(frozen=True)
class LayerCase:
    """One claimed layer of a module, opened.

    Attributes:
        path: where it is in the module.
        module: the layer.
        backend: who claims it.
        views: its views, with their local names.
        x: the input that its backend gives for it.
    """

    path: str
    module: nn.Module
    backend: Backend
    views: Sequence[ScaleView]
    x: Tensor

    def output(self) -> Tensor:
        """Run the layer on `x`, without gradients."""
        with torch.no_grad():
            y: Tensor = self.module(self.x)
            return y.clone()

    @property
    def attached(self) -> AttachedLayer:
        """The layer as `attach` knows it."""
        return AttachedLayer(self.path, self.module, self.backend)

    def write(self, view: ScaleView, value: Tensor) -> None:
        """Write one view by itself, and refresh the layer."""
        view.write(value)
        self.attached.refresh()

    def name(self, view: ScaleView) -> str:
        """Return what messages call a view: its key and the backend."""
        return f"{self.path}.{view.name} ({self.backend.name})"


@dataclass(frozen=True)
class BackendCase:
    """A backend under test.

    Attributes:
        make_module: builds a module with at least one layer that the backend claims; the same bytes at every call.
        steps: training steps of the check that nothing drifts.
    """

    make_module: MakeModule
    steps: int

    def model(self) -> nn.Module:
        """Build a fresh module, as the child `layer` of another, the way models hold their layers."""
        return nn.ModuleDict({"layer": self.make_module()})

    def layers(self) -> list[LayerCase]:
        """Build a fresh module and open all of its layers."""
        return opened(self.model())


def opened(model: nn.Module) -> list[LayerCase]:
    """Open all claimed layers of a model.

    Raises:
        ConformanceError: no backend claims any of them.
    """
    layers = [
        LayerCase(path, module, backend, list(backend.open(module)), backend.sample_input(module))
        for path, module, backend in layers_of(model)
    ]
    if not layers:
        classes = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules()})
        raise ConformanceError(
            f"no backend claims a layer of what make_module() returned: its classes are {', '.join(classes)}. "
            "Register the backend under the dotted name of exactly that class."
        )
    return layers


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module, Backend]]:
    """Return the claimed layers of a model, or else torch's own layers with nothing but plain parameters.

    A layer of another class that no backend claims is none of them: its backend is not registered.
    """
    return list(claimed(model)) or [layer for layer in claimed(model, plain=True) if _is_torchs_own(layer[1])]


def _is_torchs_own(module: nn.Module) -> bool:
    own = [value for value in module._parameters.values() if value is not None]
    plain = bool(own) and all(type(value) is nn.Parameter for value in own)
    return plain and type(module).__module__.startswith("torch.nn.modules.")


def attached(
    model: nn.Module, include: str | None = None, roles: Sequence[Role] = ROLES, *, coupled: bool = True
) -> Views:
    """Attach a model, leaving out the check of `attach`, so that each law is judged by its own check."""
    return attach(model, roles=roles, include=include, coupled=coupled, verify=False)


def values_of(views: Sequence[ScaleView]) -> dict[str, Tensor]:
    """Read all views, by name, as copies that no layer can reach."""
    return {view.name: view.read().clone() for view in views}


def other_values(values: Tensor) -> Tensor:
    """Return values that differ from these by a quarter everywhere, and from zero by one half."""
    return torch.where(values == 0, 0.5, values * 1.25)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the warning of steps too small for their dtype: what a check trains need not get anywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def loss_of(model: nn.Module, views: Views) -> Callable[[], float]:
    """Return a closure that runs every layer and scores the values themselves.

    The score ignores what the layers computed, so that a layer that does not follow its values fails the check of that
    law alone.
    """
    layers = opened_inputs(model)
    generator = torch.Generator().manual_seed(0)
    weights = {view.name: torch.randn(view.shape, generator=generator) for view in views}

    def loss() -> float:
        for module, x in layers:
            module(x)
        return sum(
            float((values.cpu().double() * weights[name]).sum() / values.double().norm().cpu().clamp_min(1e-30))
            for name, values in values_of(views).items()
        )

    return loss


def opened_inputs(model: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """Return the claimed layers of a model, each with an input."""
    return [(module, backend.sample_input(module)) for _, module, backend in layers_of(model)]


def train(model: nn.Module, views: Views, *, steps: int = 5, lr: float = 1e-2) -> ZOSGD:
    """Train a model for some steps on `loss_of`."""
    optimizer = ZOSGD(views, lr=lr, eps=3e-2, clip=0.5, seed=1)
    loss = loss_of(model, views)
    with quietly():
        for _ in range(steps):
            optimizer.step(loss)
    return optimizer
