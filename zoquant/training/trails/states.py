"""The trail of a run by backwards: deltas and what the rule remembers, every few steps."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from zoquant.errors import CheckpointError
from zoquant.files.atomic_files import load_tensors, save_tensors
from zoquant.record.delta import Delta, read_delta, save_delta
from zoquant.training.run_folder import RunFolder
from zoquant.views.model_views import Views

_VERSION = 1
_EVERY = 10
"""Steps between two states: what a kill may cost."""


class Descent(Protocol):
    """What makes steps and can say where it stands: a descent along the gradient, or a linear probe."""

    steps: int
    views: Views

    def state(self) -> dict[str, Tensor]:
        """Return what it takes to go on from here, by name."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""


class States:
    """The trail of a run by backwards: deltas and what the rule remembers, every few steps.

    A run that is killed goes on from the last state and does the steps since again, to the same bytes.

    Args:
        folder: of the run.
        descent: what makes the steps.
    """

    def __init__(self, folder: RunFolder, descent: Descent) -> None:
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
        tensors = {name: _alone(tensor.cpu()) for name, tensor in self.descent.state().items()}
        save_tensors(self.folder.state, tensors, {"kind": "descent", "version": _VERSION})


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor that shares its memory with no other, as a file wants it: itself where it does not."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def go_on(folder: RunFolder, settings: dict[str, Any], descent: Descent) -> None:
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
