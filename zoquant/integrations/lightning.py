"""Lightning, driven by forward passes alone: a module whose training step is a zeroth-order step.

Written against lightning 2.6 (`lightning.pytorch`), with its manual optimization.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoquant.errors import CheckpointError
from zoquant.integrations.random_state import RandomState
from zoquant.integrations.refused_settings import check_subspace, refuse_settings
from zoquant.optim.calibration import Calibration
from zoquant.optim.measuring import StepResult
from zoquant.optim.optimizer import ZOSGD
from zoquant.record.delta import Delta
from zoquant.training import Settings
from zoquant.views.model_views import Views

__all__ = ["Settings", "ZOModule"]

_CALIBRATION_BATCHES = 2
_DELTA = "zoquant_delta"
_ELSEWHERE = {
    "steps": "Set max_steps or max_epochs of the Trainer",
    "batch_size": "Set the batch size in the loader",
    "micro_batches": "Set the batch size in the loader",
}


class ZOModule(pl.LightningModule):  # type: ignore[misc]
    """A `LightningModule` around a quantized model. A subclass says what its `loss` is, and how it evaluates.

        class Mine(ZOModule):
            def loss(self, batch):
                return self.model(**batch).loss

    Everything else is Lightning's: loaders, callbacks, loggers, `ModelCheckpoint`, `ckpt_path`. Checkpoints hold a
    delta in place of the weights. The model stays in eval mode.

    Attributes:
        model: the model.
        settings: settings of the optimizer; steps and batches are up to the trainer and the loader.
        views: what the optimizer moves, once training or the loading of a checkpoint has begun.
        calibration: what was chosen before the first step, and why.

    Args:
        model: any model with layers that zoquant knows.
        settings: settings of the optimizer; None takes the usual ones.

    Raises:
        ValueError: a setting that is up to the trainer or the loader is given.
    """

    strict_loading = False  # a checkpoint has no weights

    def __init__(self, model: nn.Module, settings: Settings | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.settings = Settings() if settings is None else settings
        refuse_settings("ZOModule", self.settings, _ELSEWHERE)
        check_subspace(self.settings)
        self.views: Views | None = None
        self.calibration: Calibration | None = None

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch: one number."""
        raise NotImplementedError(f"{type(self).__name__}: define loss(self, batch), which returns one number.")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step and log `train_loss`, `derivative` and `lr`."""
        result: StepResult = self.optimizers().step(self._closure(batch))
        self.lr_schedulers().step()
        self.log_dict({"train_loss": result.loss, "derivative": result.derivative, "lr": result.lr}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Attach, choose the numbers that were not given, and return the optimizer and its schedule.

        Raises:
            ValueError: the trainer scales gradients, has several processes or no end.
        """
        _check(self.trainer)
        steps = int(self.trainer.estimated_stepping_batches)
        chosen = replace(self.settings, steps=steps)
        optimizer = chosen.optimizer(self._attach())
        if chosen.missing and self.trainer.ckpt_path is None:
            self._calibrate(optimizer, chosen)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: chosen.rate_at(min(step, steps)))
        return [optimizer], [schedule]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the delta in the place of the weights."""
        checkpoint["state_dict"] = {}
        if self.views is not None:
            delta = Delta.of(self.views)
            checkpoint[_DELTA] = {"values": dict(delta.values), "base": dict(delta.base), "space": delta.space}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the delta of a checkpoint on the model.

        Raises:
            CheckpointError: it holds no delta.
            BaseMismatchError, ShapeError, ValueRangeError: see `Delta.put`.
        """
        if _DELTA not in checkpoint:
            raise CheckpointError("the checkpoint holds no delta. Load one that a ZOModule has saved.")
        Delta(**checkpoint[_DELTA]).put(self._attach(), "the checkpoint")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Leave train mode, which Lightning enters: dropout would be other noise at either end of a probe."""
        self.model.eval()

    def _attach(self) -> Views:
        """Attach to the model where it is now, at its base."""
        if self.views is not None:
            self.views.reset()
        self.views = self.settings.attach(self.model)
        return self.views

    def _closure(self, batch: Any) -> Callable[[], Tensor]:
        before = RandomState(self.device)

        def loss() -> Tensor:
            before.rewind()
            return self.loss(batch)

        return loss

    def _calibrate(self, optimizer: ZOSGD, chosen: Settings) -> None:
        self.model.eval()
        self.trainer.fit_loop.setup_data()
        before = RandomState(self.device)
        batches = [batch for batch, _ in zip(self.trainer.train_dataloader, range(_CALIBRATION_BATCHES), strict=False)]
        closures = [self._closure(self.trainer.strategy.batch_to_device(batch)) for batch in batches]
        rates = [chosen.rate_at(step) for step in range(chosen.steps)]
        self.calibration = optimizer.calibrate(closures, choose=chosen.missing, schedule=rates)
        before.rewind()


def _check(trainer: Any) -> None:
    if trainer.world_size > 1:
        raise ValueError(f"ZOModule: the trainer has {trainer.world_size} processes, expected 1. Set devices=1.")
    if math.isinf(trainer.estimated_stepping_batches):
        raise ValueError("ZOModule: the trainer has no end, expected a number of steps. Set max_steps or max_epochs.")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ValueError(
            f"ZOModule: precision {trainer.precision!r} scales gradients. Load the model with "
            "compute_dtype=torch.float16, and leave precision out."
        )
