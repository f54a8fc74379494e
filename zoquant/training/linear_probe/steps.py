"""A linear probe: the norm in front of the head is fitted to the last hidden states, before anything below it moves.

What the norm multiplies goes straight into the head, so the scores of the label words are linear in its values, and
their cross-entropy is convex: one forward of each row says all that there is to know, and the rest is a logistic
regression of some hundreds of numbers. No layer needs a backward for it.

Source: linear probing before fine-tuning, Kumar et al. (arXiv 2202.10054); the readout here is the checkpoint's own.
"""

import random
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from zoquant.errors import CheckpointError, DataError, LossError
from zoquant.optim.measuring import StepResult
from zoquant.tasks.final_norm import final_norm, left_out
from zoquant.tasks.kinds.classification import Classification
from zoquant.training.linear_probe.fit import Fit
from zoquant.training.settings import Settings
from zoquant.training.stopwatch import Stopwatch
from zoquant.views.attach import attach
from zoquant.views.checkpoint_names import kept_names
from zoquant.views.gradients import Gradients
from zoquant.views.model_views import Views


class LinearProbe:
    """The one step of a linear probe: what `zoquant.training.steps.Steps` is for a run by forwards.

    Attributes:
        views: of the norm.
        steps: how many were done: none, or one.
        forwards: how many forwards of the batch the step takes.
        watch: the time of the forwards.
        slower: what the learning rate is multiplied by; there is none.
        shared: how processes share a step; they do not.
        notices: what people should know before the step.

    Args:
        model: the model.
        train: the examples to learn from.
        settings: of the run.

    Raises:
        DataError: the label words are no single tokens.
        UnsupportedLayoutError: the model has no such norm, or its head has no gradient by its input.
    """

    shared = None
    slower = 1.0

    def __init__(self, model: nn.Module, train: Classification, settings: Settings) -> None:
        if not train.single:
            raise DataError(
                "gradient is linear-probe, which fits the scores of label words of one token each, and one of these "
                "has several. Choose other words, or take gradient forward."
            )
        self._model, self._train = model, train
        self._rows = list(range(len(train)))
        random.Random(settings.seed).shuffle(self._rows)
        self._rows = self._rows[: settings.steps * settings.batch_size]
        path = final_norm(model)
        name = kept_names(model).get(path, path)
        self._norm = model.get_submodule(path)
        self.parts = nn.ModuleList([self._norm, model.get_output_embeddings()])  # type: ignore[operator]
        self.views: Views = attach(model, roles=("dense",), include=(f"{name}.*",), streamed=False)
        Gradients(self.parts, self.views).close()  # raises where the head has no gradient
        self.forwards = -(-len(self._rows) // settings.batch_size)
        self.steps, self.watch = 0, Stopwatch()
        self.notices = [
            f"Fitting {name}, the norm in front of the head, to {len(self._rows):,} rows, one forward of each: as much "
            f"as {self.forwards:,} forwards of a batch."
        ]

    @property
    def done(self) -> int:
        """The number of steps so far."""
        return self.steps

    def begin(self, numbers: Mapping[str, Any] | None) -> None:
        """Do nothing: there are no numbers."""

    def measure(self) -> NoReturn:
        """Raise: a linear probe has no number to be measured."""
        raise ValueError("a linear probe has no numbers to calibrate.")

    def check(self) -> None:
        """Do nothing: no process shares the step."""

    def close(self) -> None:
        """Do nothing: the fit leaves the model as it was but for the norm."""

    def step(self) -> StepResult:
        """Fit the norm; where rows that the fit has not seen would not gain by it, it stays as it is."""
        with left_out(self._norm):
            states = self.watch.forward(lambda: self._train.last_states(self._model, self._rows))
        if not torch.isfinite(states).all():
            raise LossError("linear probe: a hidden state is NaN or infinite. Take compute_dtype float32.")
        labels = torch.tensor([self._train.labels[row] for row in self._rows], device=states.device)
        with Gradients(self.parts, self.views) as deltas:
            fit = Fit(lambda x: self._train.word_scores(self._model, self._norm(x)), states, labels, deltas)
            loss, norm = fit.start()
            penalty = fit.best_penalty()
            if penalty is not None:
                fit.fit(penalty, fit.all)
        self.steps = 1
        return StepResult(loss=loss, derivative=norm, clipped=False, moved=1.0, lr=0.0, step=0)

    def state(self) -> dict[str, Tensor]:
        """Return what it takes to go on from here, by name."""
        found = {f"delta.{key}": self.views.delta(key) for key in self.views.keys}
        return {**found, "counts": torch.tensor([self.steps])}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises:
            CheckpointError: it is of another model. Nothing has changed.
        """
        own = self.state()
        if {name: tensor.shape for name, tensor in own.items()} != {name: each.shape for name, each in state.items()}:
            raise CheckpointError("the state is not that of this norm. Begin the run again.")
        self.views.set_delta({key: state[f"delta.{key}"] for key in self.views.keys})
        self.steps = int(state["counts"])
