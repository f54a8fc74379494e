"""What each way of a step will take of memory, and which of them stays below a bound.

A step is measured on one example, the longest that is found: the activations of k examples are at most k times as
many. What the process holds already, gradients and what a rule remembers are added, and a share for what cannot be
seen, such as the allocator's own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.distributed.launch import from_first
from zoquant.errors import ConfigError, DoesNotFitError, UnsupportedLayoutError
from zoquant.native.packed import PackedWeight
from zoquant.optim.backward import footprint
from zoquant.record.rules import RULES
from zoquant.tasks import Task
from zoquant.tasks.objective import WithObjective
from zoquant.training.config.value import parse_size
from zoquant.training.resident_memory import free_bytes, held_bytes
from zoquant.training.settings import Settings
from zoquant.views.attach import claimed

_LOOKED_AT = 1000
"""Examples among which the longest is found."""
_UNSEEN = 1.15
_EVALUATED = 32
"""Examples that go through together in an evaluation."""
CHOSEN = ("micro_batches", "checkpoint", "rule")
"""The settings that a bound on memory decides."""


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
            how = f"backward, rule {chosen.rule or 'adam'}" + (", checkpoint" if chosen.checkpoint else "")
        parts = f", {chosen.micro_batches} micro-batches" if chosen.micro_batches > 1 else ""
        return f"{how}{parts}: {_mib(self.bytes)}"


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
        self._example = _longest(train, settings.seed)
        self._values = sum(packed.value(name).numel() for packed, name in footprint.fields_of(model, settings.roles))
        footprint.of_forward(self._loss)  # from now on, memory that layers keep for good is there
        self._held = held_bytes(device)
        self.available = self._held + free_bytes(device)
        self._forward = footprint.of_forward(self._loss)
        self._backward: dict[bool, int] = {}

    def way(self, settings: Settings) -> Way:
        """Return what a way takes.

        Raises:
            UnsupportedLayoutError: a layer has no backward, or there is no list of layers to checkpoint.
        """
        examples, values = -(-settings.batch_size // settings.micro_batches), 4 * self._values
        if settings.gradient == "backward":
            kept = RULES[settings.rule or "adam"].states * values
            step = _UNSEEN * self._of_backward(settings.checkpoint) * examples + 2 * values  # gradients, and a move
            saving = 2 * values + kept  # deltas once more, and the bytes of the file
        else:
            kept, saving = 0, values
            step = _UNSEEN * 2 * self._forward * examples  # two probes may go through together
        evaluating = _UNSEEN * self._forward * _EVALUATED
        base_and_delta = 2 * values
        return Way(settings, int(self._held + base_and_delta + kept + max(step, evaluating, saving)))

    def _of_backward(self, checkpoint: bool) -> int:
        if checkpoint not in self._backward:
            _refuse_vendors(self._model)
            with torch.random.fork_rng():  # a model that drops out draws
                self._backward[checkpoint] = footprint.of_backward(
                    self._model, self._loss, roles=self._roles, checkpoint=checkpoint
                )
        return self._backward[checkpoint]

    def _loss(self) -> Tensor:
        loss: Any = self._train.loss(self._model, self._example)
        return loss  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Plan:
    """How a run does its steps.

    Attributes:
        settings: of the run.
        way: what they will take; None where that cannot be told.
        notices: what it takes, and what else could be done, for people.
    """

    settings: Settings
    way: Way | None = None
    notices: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        model: nn.Module,
        train: Task[Any],
        settings: Settings,
        device: torch.device,
        memory: str | None,
        begun: Mapping[str, Any] | None,
    ) -> "Plan":
        """Return the plan of a run.

        Args:
            model: the model, before its views are attached.
            train: the examples to learn from.
            settings: of the run. A bound only adds to them: more micro-batches, a checkpoint, a rule if none is given.
            device: where the model computes.
            memory: a bound on what the process holds; None for none.
            begun: the settings of the run as it began; None for a new one.

        Raises:
            ConfigError: the bound is no size.
            DoesNotFitError: nothing stays below it.
        """
        bound = None if memory is None else parse_size(memory)
        if isinstance(train, WithObjective):
            if bound is not None:
                raise ConfigError(
                    "memory is given, but what an objective takes cannot be told. Leave memory out, or take objective "
                    "loss.",
                    "memory",
                )
            return cls(settings)
        try:
            found = Footprint(model, train, settings, device)
            if begun is not None and bound is not None:
                settings = replace(settings, **{name: begun[name] for name in CHOSEN if name in begun})
            elif bound is not None:
                chosen = _first_below(found, settings, bound).settings
                settings = replace(settings, **from_first({name: getattr(chosen, name) for name in CHOSEN}))
            way = found.way(settings)
            told = _others(found, way) if settings.gradient == "backward" else _instead(found, way, bound)
        except UnsupportedLayoutError:
            if bound is not None:
                raise
            return cls(settings)  # whoever makes the steps says so, if it is not theirs to do
        return cls(settings, way, (told,))


def _first_below(found: Footprint, settings: Settings, bound: int) -> Way:
    """Return the fastest way that stays below a bound."""
    least = None
    for each in _ways(settings):
        way = found.way(each)
        if way.bytes <= bound:
            return way
        least = way if least is None or way.bytes < least.bytes else least
    raise DoesNotFitError(
        f"memory is {_mib(bound)}, but of all ways the least takes about {least}. Nothing was begun: give at least "
        f"that much, shorten the examples, or take a smaller model."
    )


def _ways(settings: Settings) -> Iterator[Settings]:
    """Yield the ways of some settings, the fastest first: a checkpoint costs a forward, small parts cost time, too."""
    parts = [settings.micro_batches << n for n in range(settings.batch_size.bit_length())]
    parts = [count for count in parts if count <= settings.batch_size]
    if settings.gradient == "forward":
        yield from (replace(settings, micro_batches=count) for count in parts)
        return
    for rule in [settings.rule] if settings.rule else ["adam", "sign"]:
        plain = [] if settings.checkpoint else parts[:2]
        for checkpoint, counts in ((False, plain), (True, parts)):
            for count in counts:
                yield replace(settings, micro_batches=count, checkpoint=checkpoint, rule=rule)


def _others(found: Footprint, way: Way) -> str:
    """Return what other ways would take."""
    settings, size = way.settings, way.settings.batch_size
    small = [size >> n for n in (1, 0) if size >> n and (size >> n).bit_count() == 1]
    ways = [(False, settings.micro_batches), (True, settings.micro_batches), *((True, count) for count in small)]
    others = [found.way(replace(settings, checkpoint=checkpoint, micro_batches=count)) for checkpoint, count in ways]
    forward = Settings(batch_size=size, roles=settings.roles, seed=settings.seed)
    told = "; ".join(str(each) for each in [found.way(forward), *others] if each.settings != settings)
    return f"memory: about {way}. Others: {told}."


def _instead(found: Footprint, way: Way, bound: int | None) -> str:
    """Return what a run by forwards takes, and whether a backward would work and fit."""
    told, chosen = f"memory: about {way}.", way.settings
    limit = found.available if bound is None else bound
    asked = Settings(batch_size=chosen.batch_size, gradient="backward", checkpoint=True, roles=chosen.roles)
    try:
        backward = _first_below(found, asked, limit)
    except (DoesNotFitError, UnsupportedLayoutError):
        return told
    return f"{told} The gradient would work here and fit, --gradient {backward}."


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


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
