"""The state of an optimizer as plain data, and what is refused of a state that was read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zoquant.errors import CheckpointError
from zoquant.optim.estimators import ESTIMATORS, Estimator, RobustClip
from zoquant.optim.parameter_groups import check, check_run, rates_of
from zoquant.record.trajectory import Trajectory

_AS = "as in the trajectory"


@dataclass(frozen=True)
class State:
    """What a state dict says, checked.

    Attributes:
        groups: what torch keeps of each parameter group, without its tensors.
        moved: share of the stored values that the first probe changed, of each group; None before the first step.
        seed, probes, split, estimator, trajectory: of the run.
    """

    groups: list[dict[str, Any]]
    seed: int
    probes: int
    split: bool
    moved: list[float] | None
    estimator: Estimator
    trajectory: Trajectory


def state_dict(
    groups: Sequence[Mapping[str, Any]], seed: int, probes: int, split: bool, moved: Sequence[float] | None,
    trajectory: Trajectory,
) -> dict[str, Any]:  # fmt: skip
    """Return numbers, strings and tensors alone, so that `torch.load(weights_only=True)` reads them."""
    plain = [
        {name: asdict(v) if isinstance(v, RobustClip) else v for name, v in group.items() if name != "params"}
        for group in groups
    ]
    one = None if moved is None else moved[0] if len(moved) == 1 else list(moved)
    rows = {"split": split} if trajectory.subspace == "rows-columns" else {}
    return {
        "state": {}, "param_groups": plain, "seed": seed, "probes": probes, "moved": one,
        "trajectory": trajectory.to_dict(), **rows,
    }  # fmt: skip


def read_state(state: Mapping[str, Any]) -> State:
    """Read what `state_dict` returned.

    Raises:
        CheckpointError: a part is missing or is no such thing; it is named.
        ValueError: a rate is out of its range, or settings do not fit together.
    """
    trajectory = Trajectory.from_dict(_part(state, "trajectory", Mapping), "state_dict")
    count = len(trajectory.groups)
    seed, probes = _part(state, "seed", int), _part(state, "probes", int)
    moved, groups = _part(state, "moved", float | list | None), _part(state, "param_groups", list)
    split = _part(state, "split", bool) if trajectory.subspace == "rows-columns" else False
    if trajectory.estimator not in ESTIMATORS:
        check("estimator", trajectory.estimator, False, f"one of {', '.join(ESTIMATORS)}")
    each = moved if isinstance(moved, list) or moved is None else [moved]
    if len(groups) != count or (each is not None and len(each) != count):
        raise CheckpointError(
            f"state_dict: has {len(groups)} param_groups and moved {moved!r}, but the trajectory is of {count}. Is the "
            "file whole?"
        )
    if probes < 1 or trajectory.probes not in (0, probes):
        raise CheckpointError(
            f"state_dict: probes is {probes}, but the trajectory has {trajectory.probes}. Is the file whole?"
        )
    estimator = ESTIMATORS[trajectory.estimator]()
    check_run(estimator, probes, trajectory.subspace, split if trajectory.subspace == "rows-columns" else None)
    read = [_read_group(group, at, trajectory) for at, group in enumerate(groups)]
    return State(read, seed, probes, split, each, estimator, trajectory)


def check_same(mine: Trajectory, probes: int, other: Trajectory) -> None:
    """Refuse to go on from a trajectory with other settings than those of a run, so far `mine`.

    Raises:
        ValueError: a setting differs; the first one is named.
    """
    check("probes", probes, probes == (other.probes or probes), f"{other.probes!r}, {_AS}")
    _check_alike(mine, other, ("subspace", "estimator"))
    for one, two in zip(mine.groups, other.groups, strict=False):  # fewer or more are refused with their views
        _check_alike(one, two, ("noise", "space", "rule", "decay"))


def check_subspace(mine: Trajectory, other: Trajectory) -> None:
    """Refuse a trajectory that moved something else with a ValueError."""
    _check_alike(mine, other, ("subspace",))


def _check_alike(mine: object, other: object, names: Sequence[str]) -> None:
    for name in names:
        got, expected = getattr(mine, name), getattr(other, name)
        check(name, got, got == expected, f"{expected!r}, {_AS}")


def _part(state: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return a part of a state, or of one of its groups."""
    if name not in state:
        raise CheckpointError(f"state_dict: has no {name!r}. Is the file whole?")
    value = state[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f"state_dict: {name!r} is {value!r:.60}, which no state has. Is the file whole?")
    return value


def _read_group(group: Any, number: int, trajectory: Trajectory) -> dict[str, Any]:
    if not isinstance(group, Mapping):
        raise CheckpointError(f"state_dict: 'param_groups' holds {group!r:.60}, which no state has. Is the file whole?")
    for name in ("lr", "eps"):
        _part(group, name, float | int)
    found = {name: value for name, value in group.items() if name != "params"}
    clip = _part(group, "clip", float | int | dict | None)
    if isinstance(clip, dict):
        try:
            found["clip"] = RobustClip(**clip)
        except TypeError as error:
            raise CheckpointError(f"state_dict: 'clip' is {clip!r:.60}, which no state has.") from error
    rates_of(found, trajectory.groups[number].decay)
    return found
