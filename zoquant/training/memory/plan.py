"""How a run does its steps, and the fastest way of those that stay below a bound on memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zoquant.distributed.launch import from_first
from zoquant.errors import ConfigError, DoesNotFitError, UnsupportedLayoutError
from zoquant.tasks import Task
from zoquant.tasks.objective import WithObjective
from zoquant.training.config.value import parse_size
from zoquant.training.memory.ways import Footprint, Way, mib
from zoquant.training.settings import Settings

BOUNDED = ("micro_batches", "checkpoint", "rule")
"""The settings that a bound on memory decides."""


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
        if settings.gradient == "linear-probe":
            return cls(settings)
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
                settings = replace(settings, **{name: begun[name] for name in BOUNDED if name in begun})
            elif bound is not None:
                chosen = _first_below(found, settings, bound).settings
                settings = replace(settings, **from_first({name: getattr(chosen, name) for name in BOUNDED}))
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
        f"memory is {mib(bound)}, but of all ways the least takes about {least}. Nothing was begun: give at least "
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
    return f"{told} The gradient would work here and fit: about {backward}."
