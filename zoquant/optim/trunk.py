"""The layers below the first one that moves compute the same in every evaluation of a step, so they run once.

All evaluations of a step see one batch, so the layers of `model.layers` below the first one with a view have the same
input, weights and output. Within `Trunk.shared`

- a forward whose input of the stack is that of the forward before takes over what the layers gave then;
- a batch that is repeated goes through them once, and their output is repeated.

With the upper half of the layers moving, the second forward of a step costs half of one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.optim.calls import Call, Fold, OpaqueError
from zoquant.optim.layer_stacks import Forward, called_instead, layer_stacks
from zoquant.record.trajectory import groups_of
from zoquant.views.dry_run import trying
from zoquant.views.model_views import Views

Way = Callable[[bool, Forward, tuple[Any, ...], dict[str, Any]], Any]
"""Returns what a layer returns for these arguments, or what stands for it; True is the last one that does not move."""


class Trunk:
    """The layers of a model below its views.

    The first forward within `shared` runs as ever and finds out which of these layers hand on to the next what they
    return; no others are left out later. Nothing is shared in training mode, where layers may be random, with gradients
    enabled, or where a layer gets what cannot be compared, such as a cache of keys and values.

    Args:
        model: the model.
        views: what moves in it: the views, or those of every group, `optimizer.all_views`.
    """

    def __init__(self, model: nn.Module, views: Views | Sequence[Views]) -> None:
        self._stacks = [_Stack(path, layers) for path, layers in _still(model, views)]

    @contextmanager
    def shared(self, repeat: int = 1) -> Iterator[None]:
        """Share what the layers compute, between the forwards within and between the repetitions of a batch.

        In a forward that leaves layers out, what they pass to each other is a tensor on the device `meta`, which has a
        shape and no values: a loss of hidden states below the views raises an error of torch.

        Raises:
            UnsupportedLayoutError: the model calls its layers in another way than in the first forward.
        """
        with ExitStack() as sharing:
            for stack in self._stacks:
                sharing.enter_context(stack.shared(repeat))
            yield


def _still(model: nn.Module, groups: Views | Sequence[Views]) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield the outermost lists of layers, each with its layers below the first one that moves."""
    layers = [view.layer for views in groups_of(groups) for view in views]
    if None not in layers:
        moving = {each.module for layer in layers if layer is not None for each in (layer, *layer.tied)}
        for path, stack in layer_stacks(model):
            yield path, list(takewhile(lambda layer: moving.isdisjoint(layer.modules()), stack))


class _Stack:
    """The layers of one list that do not move, from the lowest up.

    Args:
        path: of the list in its model.
        layers: the layers.
    """

    def __init__(self, path: str, layers: Sequence[nn.Module]) -> None:
        self.path, self.layers = path, list(layers)
        self._tried = False
        self._memory: _Remember | None = None

    @contextmanager
    def shared(self, repeat: int) -> Iterator[None]:
        """Stand between the layers and those who call them; at the end forget what they gave."""
        self._repeat = repeat
        try:
            with called_instead(self.layers, lambda number, forward: partial(self._call, number, forward)):
                yield
        finally:
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
            output = self._way(number + 1 == len(self.layers), forward, args, kwargs)
        except OpaqueError:
            raise self._otherwise(number) from None
        self._next, self._handed = number + 1, _hidden(output)
        if self._handed is None:
            self._break(number)
        self._tried = self._tried or self._next == len(self.layers)
        return output

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Way | None:
        """Return how the layers run in the forward that begins; None for as ever."""
        alone = trying() or torch.compiler.is_compiling() or torch.is_grad_enabled()
        if alone or any(layer.training for layer in self.layers):
            return None
        if not self._tried:
            return _as_ever
        try:
            if self._repeat > 1:
                return partial(_once, Fold(self._repeat, (args, kwargs)))
            call = Call.of(args, kwargs)
        except OpaqueError:
            return None
        if self._memory is not None and self._memory.holds(call):
            return partial(_recalled, self._memory.output, iter(self._memory.beside))
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


def _as_ever(last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return forward(*args, **kwargs)


class _Remember:
    """Runs each layer as ever, and keeps what the last one returns.

    Args:
        call: what the first layer gets.

    Attributes:
        output: what the last layer returned.
        beside: what each layer gets beside the output of the one below, such as a mask of its own.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._result: Call | None = None
        self._opaque = False
        self.output: Any = None
        self.beside: list[Call] = []

    def __call__(self, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            self.beside.append(Call.of(args[1:], kwargs))
        except OpaqueError:
            self._opaque = True  # what cannot be compared: nothing is kept
        output = forward(*args, **kwargs)
        if last and not self._opaque and _hidden(output) is not None:
            self._result, self.output = Call.of(output), output
        return output

    def holds(self, call: Call) -> bool:
        """Whether the output for these arguments is here as it was returned."""
        known = self._result is not None and self._result.untouched and self._call.untouched
        return known and self._call.same(call)


def _recalled(
    kept: Any, beside: Iterator[Call], last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run no layer; the last one returns what was kept."""
    if not next(beside).same(Call.of(args[1:], kwargs)):
        raise OpaqueError
    return kept if last else _like(kept, torch.empty_like(args[0], device="meta"))


def _once(fold: Fold, last: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a layer on the first repetition of the batch; what the last one returns is repeated."""
    args, kwargs = fold((args, kwargs))
    output = forward(*args, **kwargs)
    hidden = _hidden(output)
    return output if hidden is None or not last else _like(output, fold.repeated(hidden))


def _hidden(output: Any) -> Tensor | None:
    """Return the one tensor that a layer returned, bare or in a tuple of its own."""
    if isinstance(output, tuple) and len(output) == 1:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _like(output: Any, hidden: Tensor) -> Any:
    """Return a tensor in the form in which a layer returns its own."""
    return (hidden,) if isinstance(output, tuple) else hidden
