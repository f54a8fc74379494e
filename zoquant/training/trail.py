"""What a run leaves in its folder as it goes, so that it can go on to the same bytes: its steps, or where it stands."""

from typing import Any, Protocol

from zoquant.errors import CheckpointError
from zoquant.files.atomic_files import load_tensors, save_tensors
from zoquant.optim.backward.descent import GradientDescent
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.delta import Delta, read_delta, save_delta
from zoquant.record.journal import Journal
from zoquant.training.run_folder import RunFolder

_VERSION = 1
_EVERY = 10
"""Steps between two states of a run by backwards: what a kill may cost."""


class Trail(Protocol):
    """What the loop asks of it."""

    def begin(self) -> None:
        """Get ready for the first step of this life of the run."""

    def record(self) -> None:
        """Keep the steps so far, or part of them."""

    def evaluated(self, *, best: bool) -> None:
        """Keep where the run stands; `best` if it never stood better."""

    def best(self, step: int) -> Delta:
        """Return the delta of the step that did best."""

    def save(self) -> None:
        """Keep all there is, at the end of this life of the run."""

    def finish(self) -> None:
        """Leave out what only a run needs that is to go on."""


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
        """Open the journal."""
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


class States:
    """The trail of a run by backwards: deltas and what the rule remembers, every few steps.

    A run that is killed goes on from the last state and does the steps since again, to the same bytes.

    Args:
        folder: of the run.
        descent: what makes the steps.
    """

    def __init__(self, folder: RunFolder, descent: GradientDescent) -> None:
        self.folder, self.descent = folder, descent

    def begin(self) -> None:
        """Do nothing: there is no journal."""

    def record(self) -> None:
        """Keep where the run stands, now and then."""
        if self.descent.steps % _EVERY == 0:
            self._keep()

    def evaluated(self, *, best: bool) -> None:
        """Keep where the run stands, and the delta of the best step."""
        self._keep()
        if best:
            save_delta(self.folder.best, self.descent.views)

    def best(self, step: int) -> Delta:
        """Return the delta of the step that did best."""
        return read_delta(self.folder.best)

    def save(self) -> None:
        """Keep where the run stands."""
        self._keep()

    def finish(self) -> None:
        """Leave the state: from it alone more steps could follow."""

    def _keep(self) -> None:
        tensors = {name: tensor.cpu().clone() for name, tensor in self.descent.state().items()}
        save_tensors(self.folder.state, tensors, {"kind": "descent", "version": _VERSION})


def go_on(folder: RunFolder, settings: dict[str, Any], descent: GradientDescent) -> None:
    """Take over the state of an earlier life of a run, if there is one, and forget what it told of later steps.

    Raises:
        CheckpointError, FolderInUseError: see `RunFolder.resume`; or the state is damaged.
    """
    folder.take(settings)
    if folder.state.exists():
        tensors, said = load_tensors(folder.state, "descent")
        if said.get("version") != _VERSION:
            raise CheckpointError(
                f"{folder.state}: a state of version {said.get('version')}, expected {_VERSION}. Begin a new run."
            )
        descent.load_state(tensors)
    folder.forget_after(descent.steps)
