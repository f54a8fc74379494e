"""How a rank that comes late, or comes back, gets the steps it has missed: from a rank that has them."""

import json
from collections.abc import Mapping
from typing import Any

from zoquant.distributed.agreement import Agreement, digest
from zoquant.distributed.exchange import broadcast, gathered
from zoquant.errors import RankError
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.step import Step
from zoquant.record.trajectory import Trajectory


def join(optimizer: ZOSGD, agreement: Agreement, rank: int) -> None:
    """Bring all ranks to the steps of the one that is furthest. All ranks call it.

    Raises:
        RankError: a rank has another base, other settings or other steps; it is named. No rank has changed.
    """
    counts = [count for (count,) in gathered([optimizer.steps])]
    source, least = counts.index(max(counts)), min(counts)
    run = optimizer.trajectory
    sent = broadcast({"header": run.header(), "steps": [_plain(step) for step in run.steps[least:]]}, source)
    missed = [Step(*map(tuple, parts)) for parts in sent["steps"]]
    mine, theirs = json.loads(json.dumps(run.header())), sent["header"]
    if agreement.parts[rank] != agreement.parts[source]:  # another part of the model has another base
        mine, theirs = _without_base(mine), _without_base(theirs)
    why = _difference(run, mine, theirs, missed, least)
    refused = [other for other, (bad,) in enumerate(gathered([int(bool(why))])) if bad]
    if refused:
        raise RankError(
            f"rank {refused[0]} cannot join rank {source}, which has done {max(counts)} steps. "
            f"{why or 'Its own log says why.'} Nothing was changed; start all with one model and one set of settings."
        )
    own = digest([optimizer.seed, optimizer.probes], run.steps[:least])
    agreement.compare([other for (other,) in gathered([own])], "seed, probes and steps")
    optimizer.extend(missed[optimizer.steps - least :])


def _without_base(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header without the fingerprints of its groups."""
    kept = {name: value for name, value in header.items() if name != "base"}
    return {**kept, "groups": [_without_base(group) for group in kept["groups"]]} if "groups" in kept else kept


def _difference(
    run: Trajectory, mine: dict[str, Any], theirs: dict[str, Any], missed: list[Step], least: int
) -> str:  # fmt: skip
    """Say in what the run of this rank is no beginning of the one that was sent; nothing where it is."""
    for name in {**mine, **theirs}:
        if mine.get(name) != theirs.get(name):
            return f"Its {name} differs: the one has {_short(mine.get(name))}, the other {_short(theirs.get(name))}."
    for number, step in enumerate(missed, least):
        if fault := run.fault_of(step):
            return f"Step {number} {fault}."
    own = run.steps[least:]
    return "" if own == missed[: len(own)] else f"They have done other steps from step {least} on."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _plain(step: Step) -> list[Any]:
    return [step.seeds, step.derivatives, step.rates]
