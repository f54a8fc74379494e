"""The outermost lists of layers of a model, such as `model.layers`, and calls that go elsewhere than to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


def layer_stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield path and layers of the outermost lists."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in path.split(".")):
            yield path, module


@contextmanager
def called_instead(layers: Sequence[nn.Module], made: Callable[[int, Forward], Forward]) -> Iterator[None]:
    """Let calls of layers go within a `with` to what is made of their number and their forward."""
    with ExitStack() as undo:
        for number, layer in enumerate(layers):
            undo.callback(_put_back, layer, layer.__dict__.get("forward"))
            layer.forward = made(number, layer.forward)
        yield


def _put_back(layer: nn.Module, forward: Forward | None) -> None:
    layer.__dict__.pop("forward", None)
    if forward is not None:
        layer.__dict__["forward"] = forward
