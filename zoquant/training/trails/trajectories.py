"""The trail of a run by forwards: a seed and a derivative a step, from which any of its deltas is replayed."""

from zoquant.optim.optimizer import ZOSGD
from zoquant.record.delta import Delta
from zoquant.record.journal import Journal
from zoquant.training.run_folder import RunFolder


class Trajectories:
    """The trail of a run by forwards: a seed and a derivative a step, from which any of its deltas is replayed.

    Args:
        folder: of the run.
        optimizer: what makes the steps.
    """

    def __init__(self, folder: RunFolder, optimizer: ZOSGD) -> None:
        self.folder, self.optimizer = folder, optimizer
        self.journal: Journal | None = None

    def begin(self) -> None:
        """Open the journal, for this life of the run."""
        self.journal = self.optimizer.trajectory.journal(self.folder.journal, self.optimizer.probes)

    def record(self) -> None:
        """Append what the journal does not hold yet."""
        if self.journal is not None:
            for step in self.optimizer.trajectory.steps[self.journal.count :]:
                self.journal.append(step)

    def evaluated(self, *, best: bool) -> None:
        """Do nothing: the journal holds every step."""

    def best(self, step: int) -> Delta:
        """Replay the delta of a step."""
        return self.optimizer.trajectory.prefix(step).delta(self.optimizer.views)

    def save(self) -> None:
        """Close the journal, and write the trajectory."""
        self.record()
        if self.journal is not None:
            self.journal.close()
        self.optimizer.trajectory.save(self.folder.trajectory)

    def finish(self) -> None:
        """Take the journal away."""
        self.folder.journal.unlink(missing_ok=True)
