"""The layers below the first one that moves compute the same in every evaluation of a step, so they run once.

All evaluations of a step see one batch. Of a stack of layers, such as `model.layers`, those below the first layer with
a view get the same input and have the same weights, so their output is the same. Within `Trunk.shared`

- a forward whose input of the stack is that of the forward before takes over what the layers gave then;
- a batch that is repeated goes through them once, and their output is repeated.

With the upper half of the layers moving, the second forward of a step costs half of one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.optim.calls import Call, Fold, OpaqueError
from zoquant.views.dry_run import trying
from zoquant.views.model_views import Views

Forward = Callable[..., Any]


class Trunk:
    """The layers of a model below its views.

    The first forward within `shared` runs as ever and finds out which of these layers hand on to the next what they
    return; no others are left out later. Nothing is shared in training mode, where layers may be random, with gradients
    enabled, or where a layer gets what cannot be compared, such as a cache of keys and values.

    Args:
        model: the model.
        views: what moves in it.
    """

    def __init__(self, model: nn.Module, views: Views) -> None:
        self._stacks = [_Stack(path, layers) for path, layers in _still(model, views)]

    @contextmanager
    def shared(self, repeat: int = 1) -> Iterator[None]:
        """Share what the layers compute, between the forwards within and between the repetitions of a batch.

        In a forward that leaves layers out, what they pass to each other is a tensor on the device `meta`, which has a
        shape and no values: a loss of hidden states below the views raises an error of torch.

        Args:
            repeat: how often the batch of each forward stands one below the other.

        Raises:
            UnsupportedLayoutError: the model calls its layers in another way than in the first forward.
        """
        try:
            for stack in self._stacks:
                stack.begin(repeat)
            yield
        finally:
            for stack in self._stacks:
                stack.end()


def _still(model: nn.Module, views: Views) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield the outermost lists of layers, each with its layers below the first one that moves."""
    if any(view.layer is None for view in views):
        return
    layers = {view.layer for view in views if view.layer is not None}
    moving = {layer.module for layer in layers} | {other.module for layer in layers for other in layer.tied}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in path.split(".")):
            yield path, list(takewhile(lambda layer: moving.isdisjoint(layer.modules()), module))


class _Way(Protocol):
    """How the layers run in one forward."""

    def run(self, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a layer returns, or what stands for it; `last` is the one below those that move."""


class _Stack:
    """The layers of one list that do not move, from the lowest up.

    Args:
        path: of the list in its model.
        layers: the layers.
    """

    def __init__(self, path: str, layers: Sequence[nn.Module]) -> None:
        self.path, self.layers = path, list(layers)
        self._tried = False
        self._before: list[tuple[nn.Module, Forward | None]] = []
        self._memory: _Remember | None = None

    def begin(self, repeat: int) -> None:
        """Stand between the layers and those who call them."""
        self._repeat = repeat
        for number, layer in enumerate(self.layers):
            self._before.append((layer, layer.__dict__.get("forward")))
            layer.forward = partial(self._call, number, layer.forward)

    def end(self) -> None:
        """Leave the layers as they were, and forget what they gave."""
        while self._before:
            layer, forward = self._before.pop()
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward
        self._memory = None

    def _call(self, number: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if number == 0:
            self._way, self._next, self._handed = self._choose(args, kwargs), 0, args[0] if args else None
        if self._way is None or number >= len(self.layers):
            return forward(*args, **kwargs)
        if number != self._next or not args or args[0] is not self._handed:
            self._break(number)
            return forward(*args, **kwargs)
        try:
            output = self._way.run(number + 1 == len(self.layers), forward, args, kwargs)
        except OpaqueError:
            raise self._otherwise(number) from None
        self._next, self._handed = number + 1, _hidden(output)
        if self._handed is None:
            self._break(number)
        self._tried = self._tried or self._next == len(self.layers)
        return output

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Way | None:
        """Return how the layers run in the forward that begins; None for as ever."""
        alone = trying() or torch.compiler.is_compiling() or torch.is_grad_enabled()
        if alone or any(layer.training for layer in self.layers):
            return None
        if not self._tried:
            return _Try()
        try:
            if self._repeat > 1:
                return _Once(Fold(self._repeat, (args, kwargs)))
            call = Call.of(args, kwargs)
        except OpaqueError:
            return None
        if self._memory is not None and self._memory.holds(call):
            return _Recall(self._memory.output, list(self._memory.beside))
        self._memory = _Remember(call)
        return self._memory

    def _break(self, number: int) -> None:
        """End the stack below a layer that takes or returns something else, if this is the first forward."""
        if self._tried:
            raise self._otherwise(number)
        self.layers, self._tried = self.layers[:number], True

    def _otherwise(self, number: int) -> UnsupportedLayoutError:
        return UnsupportedLayoutError(
            f"{self.path}.{number}: expected to get what the layer below returned and to return one tensor, as in "
            "the first forward, and otherwise the arguments of the forward before, but it was different. Leave out "
            "Trunk.shared, or call the model in the same way."
        )


class _Try:
    """Run each layer as ever."""

    def run(self, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs)


@dataclass
class _Remember:
    """Run each layer as ever, and keep what the last one returns."""

    call: Call
    result: Call | None = None
    output: Any = None
    beside: list[Call] = field(default_factory=list)
    """What each layer gets beside the output of the one below, such as a mask of its own."""
    opaque: bool = False
    """Whether a layer got what cannot be compared, so that nothing is kept."""

    def run(self, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            self.beside.append(Call.of(args[1:], kwargs))
        except OpaqueError:
            self.opaque = True
        output = forward(*args, **kwargs)
        if last and not self.opaque and _hidden(output) is not None:
            self.result, self.output = Call.of(output), output
        return output

    def holds(self, call: Call) -> bool:
        """Whether the output for these arguments is here as it was returned."""
        known = self.result is not None and self.result.untouched and self.call.untouched
        return known and self.call.same(call)


@dataclass
class _Recall:
    """Run no layer; the last one returns what was kept.

    Raises:
        OpaqueError: a layer gets something else than in the forward whose output was kept.
    """

    output: Any
    beside: list[Call]

    def run(self, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.beside.pop(0).same(Call.of(args[1:], kwargs)):
            raise OpaqueError
        return self.output if last else _like(self.output, torch.empty_like(args[0], device="meta"))


@dataclass
class _Once:
    """Run each layer on the first repetition of the batch; what the last one returns is repeated."""

    fold: Fold

    def run(self, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = self.fold((args, kwargs))
        output = forward(*args, **kwargs)
        hidden = _hidden(output)
        return output if hidden is None or not last else _like(output, self.fold.repeated(hidden))


def _hidden(output: Any) -> Tensor | None:
    """Return the one tensor that a layer returned, bare or in a tuple of its own."""
    if isinstance(output, tuple) and len(output) == 1:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _like(output: Any, hidden: Tensor) -> Any:
    """Return a tensor in the form in which a layer returns its own."""
    return (hidden,) if isinstance(output, tuple) else hidden
