"""What a way to do the steps of a run takes of memory.

A step is measured on the longest example that is found, twice and three times, from which activations of any number
follow.
What the process holds already, gradients and what a rule remembers are added, and a share for what cannot be seen, such
as the allocator's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.native.packed import PackedWeight
from zoquant.optim.backward import footprint
from zoquant.record.rules import RULES
from zoquant.tasks import Task
from zoquant.training.backward.allocation import give_back_free_memory, give_back_large_blocks
from zoquant.training.memory.resident import free_bytes, held_bytes
from zoquant.training.settings import Settings
from zoquant.views.attach import claimed

_LOOKED_AT = 1000
"""Examples among which the longest is found."""
_UNSEEN, _LATER = 1.15, 32 << 20
"""What operations take for themselves, as a share; and what Python and its libraries take in the course of a run."""
_EVALUATED = 32
"""Examples that go through together in an evaluation."""


Traces = tuple[list[int], list[int] | None]
"""Bytes alive after each operation, with two examples and with three."""


@dataclass(frozen=True)
class Way:
    """A way to do the steps of a run.

    Attributes:
        settings: of a run that takes it.
        bytes: the most that the process, or on a GPU its tensors, will hold: an estimate that errs on the safe side.
    """

    settings: Settings
    bytes: int

    def __str__(self) -> str:
        chosen, how = self.settings, "forwards alone"
        if chosen.gradient == "backward":
            how = f"--gradient backward --rule {chosen.rule or 'adam'}" + (" --checkpoint" if chosen.checkpoint else "")
        parts = f" --micro-batches {chosen.micro_batches}" if chosen.micro_batches > 1 else ""
        return f"{mib(self.bytes)} by {how}{parts}"


class Footprint:
    """What steps of a run take, measured on one of its examples. The model stays as it was.

    Attributes:
        available: bytes that the run may hold on this machine as it is now.

    Args:
        model: the model, before its views are attached.
        train: the examples to learn from.
        settings: of the run.
        device: where the model computes.
    """

    def __init__(self, model: nn.Module, train: Task[Any], settings: Settings, device: torch.device) -> None:
        self._model, self._train, self._roles = model, train, settings.roles
        longest = _longest(train, settings.seed)
        self._batches = [longest.repeat(2), longest.repeat(3)] if hasattr(longest, "repeat") else [longest]
        self._values = sum(packed.value(name).numel() for packed, name in footprint.fields_of(model, settings.roles))
        if settings.gradient == "backward":
            give_back_large_blocks()
        self._traces(footprint.of_forward)  # from now on, memory that layers keep for good is there
        self._held = held_bytes(device)
        self.available = self._held + free_bytes(device)
        self._forward = self._traces(footprint.of_forward)
        self._backward: dict[bool, Traces] = {}

    def way(self, settings: Settings) -> Way:
        """Return what a way takes.

        Raises:
            UnsupportedLayoutError: a layer has no backward, or there is no list of layers to checkpoint.
        """
        examples, values = -(-settings.batch_size // settings.micro_batches), 4 * self._values
        if settings.gradient == "backward":
            kept = RULES[settings.rule or "adam"].states * values
            step = (
                _UNSEEN * footprint.of_examples(examples, *self._of_backward(settings.checkpoint)) + 2 * values
            )  # gradients, and a move
            saving = 2 * values + kept  # deltas once more, and the bytes of the file
        else:
            kept, saving = 0, values
            step = _UNSEEN * footprint.of_examples(2 * examples, *self._forward)  # two probes may go through together
        evaluating = _UNSEEN * footprint.of_examples(_EVALUATED, *self._forward)
        base_and_delta = 2 * values
        return Way(settings, int(self._held + _LATER + base_and_delta + kept + max(step, evaluating, saving)))

    def _of_backward(self, checkpoint: bool) -> Traces:
        if checkpoint not in self._backward:
            _refuse_vendors(self._model)
            with torch.random.fork_rng():  # a model that drops out draws
                measured = partial(footprint.of_backward, self._model, roles=self._roles, checkpoint=checkpoint)
                self._backward[checkpoint] = self._traces(measured)
            give_back_free_memory()
        return self._backward[checkpoint]

    def _traces(self, measured: Callable[[Callable[[], Any]], list[int]]) -> Traces:
        """Return what is measured on two and on three times the example; one that cannot be repeated counts twice."""
        two, *more = (measured(partial(self._train.loss, self._model, batch)) for batch in self._batches)
        return (two, more[0]) if more else ([2 * size for size in two], None)


def _longest(train: Task[Any], seed: int) -> Any:
    """Return the longest of some examples, as a batch of one."""
    batches = (train.batch_of_step(seed, step, 1) for step in range(min(len(train), _LOOKED_AT)))
    return max(batches, key=_size)


def _size(batch: Any) -> int:
    return max((each.numel() for each in vars(batch).values() if isinstance(each, Tensor)), default=0)


def _refuse_vendors(model: nn.Module) -> None:
    for path, module, backend in claimed(model):
        if not isinstance(getattr(module, "packed", None), PackedWeight):
            raise UnsupportedLayoutError(
                f"{path} ({backend.name}): what its backward takes of memory cannot be told. Leave memory out, or load "
                "the model with runtime native."
            )


def mib(count: int) -> str:
    """Return bytes as people read them."""
    return f"{count / 2**20:,.0f} MiB"
