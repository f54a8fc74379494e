"""Doing a run again from its trajectory."""

from collections.abc import Sequence
from pathlib import Path

from zoquant.record.mover import Mover
from zoquant.record.step import Step
from zoquant.record.trajectory import Trajectory, groups_of
from zoquant.views.model_views import Views


def replay(
    trajectory: str | Path | Trajectory, views: Views | Sequence[Views], *, steps: int | None = None
) -> Sequence[Step]:
    """Do a run again from its trajectory: afterwards every byte is what the run left.

    Args:
        trajectory: the trajectory, its file or its journal.
        views: views of the same base, in any order; of a run of several groups, the views of each group.
        steps: stop after so many steps; None does all.

    Returns:
        The steps that were done.

    Raises:
        BaseMismatchError: the trajectory was made on another base, or on other views.
        CheckpointError, ValueRangeError: the file is damaged. Nothing has changed.
        ValueError: the number of steps is negative.
    """
    if steps is not None and steps < 0:
        raise ValueError(f"steps is {steps}, expected 0 or more.")
    what = "trajectory" if isinstance(trajectory, Trajectory) else str(trajectory)
    run = trajectory if isinstance(trajectory, Trajectory) else Trajectory.load(trajectory)
    run.check(views, what)
    done, each = run.steps[:steps], groups_of(views)
    redo(run, each, done)
    return done


def redo(run: Trajectory, views: Sequence[Views], steps: Sequence[Step]) -> list[Mover]:
    """Let the views of each group hold what steps of a run leave, and return what moves them, to go on with."""
    movers = run.movers(views)
    for number, (mover, here, group) in enumerate(zip(movers, views, run.groups, strict=True)):
        mover.reset()  # the space changes only while the delta is zero
        here.space = group.space
        mover.advance([step.of(number) for step in steps])
        here.write()
    return movers
