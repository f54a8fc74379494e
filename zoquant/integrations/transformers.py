"""transformers' `Trainer`, driven by forward passes alone: its loop, callbacks and logs, and none of its gradients.

Written against transformers 4.48 and 5.23 (`src/transformers/trainer.py`). The loop calls `training_step` for each
micro-batch, then `optimizer.step()`. Here the first evaluates the losses of a zeroth-order step, and the second applies
them.
"""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from zoquant.errors import CheckpointError
from zoquant.integrations.deferred_step import DeferredStep
from zoquant.integrations.random_state import RandomState
from zoquant.integrations.refused_settings import check_subspace, refuse_settings
from zoquant.integrations.training_arguments import check_arguments
from zoquant.optim.calibration import Calibration
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.delta import save_delta
from zoquant.record.trajectory import Trajectory
from zoquant.training import Settings
from zoquant.views.model_views import Views

__all__ = ["Settings", "ZOTrainer"]

DELTA = "delta.safetensors"
TRAJECTORY = "trajectory.safetensors"

log = logging.getLogger("zoquant")

_ELSEWHERE = {
    "steps": "Set max_steps or num_train_epochs in args",
    "batch_size": "Set per_device_train_batch_size in args",
    "micro_batches": "Set gradient_accumulation_steps in args",
    "schedule": "Set lr_scheduler_type in args",
}
_CALIBRATION_BATCHES = 2


class ZOTrainer(Trainer):  # type: ignore[misc]
    """A `transformers.Trainer` that moves the continuous values of a quantized model and never computes a gradient.

    Everything that `Trainer` takes and does stays, with these differences:

    - The model stays in eval mode: dropout would be other noise at either end of a probe.
    - Learning rate, clip and decay come from `zo`, the schedule from `args`. What is not given is calibrated on the
      first batches.
    - A checkpoint holds `delta.safetensors` and `trajectory.safetensors` in place of the model.
    - Logs name the `derivative` in place of a gradient's norm.

    Attributes:
        zo: the optimizer.
        views: what it moves.
        calibration: what was chosen before the first step, and why; None before, or if nothing was missing.

    Args:
        model: any model with layers that zoquant knows, purely quantized ones included.
        args: as for `Trainer`.
        rest: the further arguments of `Trainer`, in its order.
        zo: settings of the optimizer; steps, batches and schedule are those of `args`. To use an optimizer of
            your own, pass `optimizers=(zosgd, scheduler or None)`.
        others: the further arguments of `Trainer`, by name.

    Raises:
        ValueError: an argument makes no sense without gradients or in one process; the message says what to do.
        NoViewsError, UnsupportedLayoutError, ValueRangeError: see `attach`.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *rest: Any,
        zo: Settings | None = None,
        **others: Any,
    ) -> None:
        args = TrainingArguments(output_dir="tmp_trainer") if args is None else args
        check_arguments(args)
        super().__init__(_not_refused(model), args, *rest, **others)
        if self.model_init is not None:
            raise ValueError("ZOTrainer: got model_init, but the views are those of one model. Pass model.")
        ready: Any = self.optimizer
        _check_optimizer(ready, self.lr_scheduler, zo)
        settings = Settings() if zo is None else zo
        check_subspace(settings)
        self.model = self.model_wrapped = self.callback_handler.model = model
        self.views: Views = settings.attach(model) if ready is None else ready.views
        self.zo: ZOSGD = settings.optimizer(self.views) if ready is None else ready
        self.calibration: Calibration | None = None
        self._missing = settings.missing if ready is None else ()
        self._deferred = DeferredStep(self.zo)
        self.optimizer: Any = self._deferred
        self.callback_handler.optimizer = self._deferred

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Evaluate a micro-batch at every point of the next step; return its mean loss."""
        loss = self._deferred.evaluate(self._closure(model, inputs, num_items_in_batch))
        return torch.tensor(loss, device=self.args.device)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Choose the numbers that were not given, then make the scheduler, which remembers the learning rate."""
        self._deferred.forget()
        if self._missing:
            self._calibrate(self._rates(num_training_steps))
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], *rest: Any, **others: Any) -> None:
        """Log what the last step saw in place of a gradient's norm."""
        if "loss" in logs and self._deferred.result is not None:
            logs.pop("grad_norm", None)
            logs["derivative"] = self._deferred.result.derivative
        super().log(logs, *rest, **others)

    def _closure(self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int | None) -> Callable[[], Tensor]:
        """Return what computes the loss of a micro-batch, as its share of the loss of the whole batch."""
        model.eval()
        prepared = self._prepare_inputs(inputs)
        before = RandomState(self.args.device)

        def loss() -> Tensor:
            before.rewind()
            with self.compute_loss_context_manager():
                found: Tensor = self.compute_loss(model, copy.copy(prepared), num_items_in_batch=items)
            return found if self._is_share(items) else found / self._micro_batches

        return loss

    def _is_share(self, items: Tensor | int | None) -> bool:
        """Whether `compute_loss` divides by the items of all micro-batches, not by those of one.

        Source: transformers 5.23, `Trainer.training_step`.
        """
        said: bool | None = getattr(self, "loss_is_scaled_for_ga", None)
        divided = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        return divided if said is None else said

    @property
    def _micro_batches(self) -> int:
        """The number of micro-batches of this step; transformers 4.48 does not say when the last has fewer."""
        return int(getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps))

    def _rates(self, steps: int) -> list[float]:
        """Return the learning rate of every step to come, relative to the one that is chosen."""
        dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = super().create_scheduler(steps, dummy)
        self.lr_scheduler, self._created_lr_scheduler = None, False
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            return [1.0] * steps  # it goes by the evaluations, which nobody knows yet
        rates = []
        for _ in range(steps):
            rates.append(float(dummy.param_groups[0]["lr"]))
            dummy.step()
            scheduler.step()
        return rates

    def _calibrate(self, rates: list[float]) -> None:
        before = RandomState(self.args.device)
        closures = [self._batch_closure(batch, items) for batch, items in self._first_batches()]
        self.calibration = self.zo.calibrate(closures, choose=self._missing, schedule=rates)
        self._missing = ()
        before.rewind()
        log.info("calibrated: %s", " ".join(self.calibration.reasons))

    def _first_batches(self) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """Yield the micro-batches of the first steps, and their number of items."""
        loader = self.get_train_dataloader()
        device = (self.args.device,) if "device" in inspect.signature(self.get_batch_samples).parameters else ()
        batches = iter(loader)
        for _ in range(_CALIBRATION_BATCHES):
            samples, items = self.get_batch_samples(batches, self.args.gradient_accumulation_steps, *device)
            if samples:
                yield samples, items
        if hasattr(loader, "end"):
            loader.end()  # accelerate counts loaders that were not read to their end

    def _batch_closure(self, samples: list[dict[str, Any]], items: Any) -> Callable[[], float]:
        self.current_gradient_accumulation_steps = len(samples)
        parts = [self._closure(self.model, sample, items) for sample in samples]
        return lambda: sum(float(part()) for part in parts)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write delta and trajectory: the codes are those of the base."""
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_delta(folder / DELTA, self.views)
        self.zo.trajectory.save(folder / TRAJECTORY)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Check that the checkpoint continues this run; the optimizer's state, which is loaded later, brings it back.

        Raises:
            CheckpointError: a file is missing.
            BaseMismatchError, ValueError: the checkpoint is of another base, or of other settings.
        """
        folder = Path(resume_from_checkpoint)
        missing = [name for name in (TRAJECTORY, "optimizer.pt", "scheduler.pt") if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: has no {' and no '.join(missing)}, so the run cannot go on where it stood. Resume from a "
                "checkpoint that ZOTrainer wrote without save_only_model."
            )
        self.zo.resume(Trajectory.load(folder / TRAJECTORY).prefix(0))
        self._missing = ()

    def _load_best_model(self) -> None:
        """Go back to the step of the best checkpoint, trajectory included."""
        self.zo.resume(Trajectory.load(Path(self.state.best_model_checkpoint) / TRAJECTORY))


def _not_refused(model: Any) -> Any:
    """Return the model, or a shallow copy that does not say that it is quantized: `Trainer` takes no such model.

    The copy has the same modules and parameters, and is gone once `Trainer.__init__` is over.
    """
    if not getattr(model, "is_quantized", False):
        return model
    stand_in = copy.copy(model)
    stand_in.is_quantized = False
    return stand_in


def _check_optimizer(ready: object, scheduler: object, zo: Settings | None) -> None:
    if ready is None and scheduler is not None:
        raise ValueError("ZOTrainer: a scheduler needs its optimizer. Pass optimizers=(zosgd, scheduler).")
    if ready is not None and (not isinstance(ready, ZOSGD) or ready.together):
        got = "a ZOSGD of rows and columns" if isinstance(ready, ZOSGD) else f"a {type(ready).__name__}"
        raise ValueError(f"ZOTrainer: optimizers holds {got}, expected a zoquant.ZOSGD of values or None.")
    if ready is not None and zo is not None:
        raise ValueError("ZOTrainer: got zo and an optimizer, expected one of them.")
    if zo is not None:
        refuse_settings("ZOTrainer", zo, _ELSEWHERE)
