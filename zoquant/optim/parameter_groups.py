"""The parameter groups of an optimizer: what a caller may say of one, and what is refused."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch

from zoquant.errors import BaseMismatchError
from zoquant.kernels.noise.definition import as_noise
from zoquant.optim.estimators import ESTIMATORS, Clip, Estimator, RobustClip
from zoquant.protocol import PLAIN_ROLES
from zoquant.record.group import SUBSPACES, Group, Subspace
from zoquant.record.trajectory import Trajectory
from zoquant.views.flat_buffer import SPACES
from zoquant.views.model_views import Views


class Rates(NamedTuple):
    """What a scheduler may change from step to step."""

    lr: float
    eps: float
    clip: Clip


def described(views: Views | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups that a caller gave: one of views, or several of views and settings, at least one."""
    found = [{"views": views}] if isinstance(views, Views) else [dict(group) for group in views]
    if not found:
        raise ValueError("ZOSGD: got no group, expected views or at least one group with views.")
    return found


def opened(given: Mapping[str, Any], defaults: Mapping[str, Any], run: Trajectory) -> tuple[Views, Group, Rates]:
    """Return the views of a group that a caller adds to a run, what a trajectory keeps of it, and its rates.

    Raises:
        ValueError: it has no views or those of another group, says something that no group has, a number is out of its
            range, or these views cannot move in this space.
        BaseMismatchError: the views hold a delta already.
    """
    unknown = given.keys() - {"views", *defaults}
    if unknown or not isinstance(given.get("views"), Views):
        got = f"has {min(unknown)!r}" if unknown else f"has views {type(given.get('views')).__name__}"
        expected = f"views that attach returned, and any of {', '.join(defaults)}"
        raise ValueError(f"ZOSGD: a group {got}, expected {expected}.")
    group = {**defaults, **given}
    views, space, decay, subspace = group["views"], group["space"], group["decay"], run.subspace
    twice = run.base.keys() & set(views.keys)
    if twice:
        raise ValueError(f"ZOSGD: {min(twice)} is in two groups. Attach each role once, or use include.")
    check("decay", decay, decay >= 0, "at least 0")
    rates = rates_of(group, decay)
    check("space", space, space in SPACES, f"one of {', '.join(SPACES)}")
    views.check_space(space)
    if space == "absolute" and subspace != "values":
        raise ValueError("ZOSGD: space is 'absolute', expected 'relative': rows and columns scale the values.")
    if space == "relative":
        _warn_of_zeros(views)
    if any(bool(buffer.delta.any()) for buffer in views.buffers):
        raise BaseMismatchError(
            "ZOSGD: the views hold a delta, expected their base: a trajectory replays from the base alone. Call "
            "views.reset() first, or go on with the run's trajectory: ZOSGD(...).resume(trajectory)."
        )
    kept = Group(views.fingerprints(), space, as_noise(group["noise"]), views.coupled, group["rule"], float(decay))
    kept.to_dict()  # refuses a rule that no file could name
    return views, kept, rates


def rates_of(group: Mapping[str, Any], decay: float) -> Rates:
    """Return the rates of a group; a ValueError if one is out of its range."""
    lr, eps, clip = float(group["lr"]), float(group["eps"]), cast(Clip, group["clip"])
    check("lr", lr, lr >= 0, "at least 0")
    most = 1 / decay if decay else math.inf
    check("lr", lr, lr * decay <= 1, f"at most 1 / decay = {most:g}: more leaps over the base")
    check("eps", eps, eps > 0, "above 0")
    check("clip", clip, clip is None or isinstance(clip, RobustClip) or clip > 0, "above 0, or None")
    return Rates(lr, eps, clip)


def check_run(estimator: Estimator, probes: int, subspace: Subspace, split: bool | None) -> None:
    """Refuse settings of a run that are out of their range, or do not fit together, with a ValueError."""
    check("estimator", estimator, type(estimator) in ESTIMATORS.values(), f"one of {', '.join(ESTIMATORS)}")
    check("probes", probes, probes >= estimator.least_probes, f"at least {estimator.least_probes}")
    check("subspace", subspace, subspace in SUBSPACES, f"one of {', '.join(SUBSPACES)}")
    check("split", split, split is None or subspace == "rows-columns", "None: values are no rows of a batch")
    one_sided = any(point.probe is None for point in estimator.points(max(probes, 2)))
    if subspace == "rows-columns" and split is not False and one_sided:
        raise ValueError(
            f"ZOSGD: estimator is {estimator.name!r}, which compares all directions with one loss at theta, but with "
            "split=True each has other examples. Take TwoPoint() or GroupRelative(), or split=False."
        )


def check_choice(choose: Sequence[str], split: bool) -> None:
    """Refuse with a ValueError what is no number of a run, and where directions share the examples all but eps."""
    for name in choose:
        check("choose", name, name in ("lr", "eps", "clip"), "some of lr, eps and clip")
    if split and set(choose) - {"eps"}:
        raise ValueError(
            f"ZOSGD: choose is {tuple(choose)!r}, expected ('eps',): with split=True a direction sees few examples, "
            "and calibration measures whole batches. Set lr and clip by hand, or take split=False."
        )


def unit_of(views: Views) -> float:
    """Return the eps that would move a value by itself: 1, or the median absolute value in absolute space."""
    if views.space == "relative":
        return 1.0
    values = torch.cat([views.base(key).abs().view(-1).cpu() for key in views.keys])
    return float(values[values > 0].median()) if bool(values.any()) else 1.0


def check(name: str, value: object, good: bool, expected: str) -> None:
    """Refuse a setting that is not good, or no finite number, with a ValueError."""
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"ZOSGD: {name} is {value!r}, expected {expected}.")


def _warn_of_zeros(views: Views) -> None:
    """Say which plain weights cannot move: relative to zero every step is zero."""
    still = [view.name for view in views if view.role in PLAIN_ROLES and not views.base(view.name).any()]
    if still:
        warnings.warn(
            f"{len(still)} of the views, such as {still[0]}, are zero everywhere and cannot move in relative space. "
            "Set space='absolute'.",
            stacklevel=5,
        )
