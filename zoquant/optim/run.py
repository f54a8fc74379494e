"""The run of an optimizer: the views of all groups, the steps that they have done, and what does the next ones."""

from collections.abc import Sequence
from typing import cast

from zoquant.kernels.noise.definition import step_seed
from zoquant.optim.probes import ForwardProbes, Prober, WrittenProbes
from zoquant.record.group import Group, Subspace
from zoquant.record.mover import Mover
from zoquant.record.replay import redo
from zoquant.record.rows_and_columns import RowsAndColumnsMover
from zoquant.record.step import Step
from zoquant.record.trajectory import Trajectory
from zoquant.views.model_views import Views


class Run:
    """What has moved so far.

    Attributes:
        views: the views of each group.
        trajectory: the steps.
        movers: what moves the deltas of each group.
    """

    def __init__(self, estimator: str, subspace: Subspace) -> None:
        self.views: list[Views] = []
        self.trajectory = Trajectory((), estimator, subspace)
        self.movers: list[Mover] = []

    def add(self, views: Views, group: Group, mover: Mover) -> None:
        """Add a group, before the first step."""
        self.views.append(views)
        self.movers.append(mover)
        self.trajectory.groups += (group,)

    def settle(self) -> None:
        """Let the views of each group know their space."""
        for views, group in zip(self.views, self.trajectory.groups, strict=True):
            views.space = group.space

    def restore(self) -> None:
        """Write theta into the model, whatever probe it holds."""
        for views in self.views:
            views.write()

    def extend(self, steps: Sequence[Step]) -> None:
        """Do steps: deltas, model and trajectory follow, or after an error none of them."""
        try:
            for number, mover in enumerate(self.movers):
                mover.advance([step.of(number) for step in steps])
            self.restore()
            self.trajectory.steps.extend(steps)
        except BaseException:
            self.follow(self.trajectory)
            raise

    def follow(self, trajectory: Trajectory) -> None:
        """Take over a trajectory: deltas, model, and what the rule remembers, become what its steps leave."""
        self.movers = redo(trajectory, self.views, trajectory.steps)
        self.trajectory = trajectory

    def seeds(self, seed: int, probes: int) -> tuple[int, ...]:
        """Return the seeds of the next step."""
        steps = len(self.trajectory.steps)
        return tuple(step_seed(seed, steps, number) for number in range(self.trajectory.seeds(probes)))

    def prober(self, probes: int, points: int, split: bool) -> Prober:
        """Return what evaluates the losses of so many directions and evaluations a step."""
        if self.trajectory.subspace == "values":
            return WrittenProbes(self.views, [mover.noise for mover in self.movers], points)
        return ForwardProbes(cast(list[RowsAndColumnsMover], self.movers), probes, points, split)
