"""ZOModule: Lightning's own loop over forward passes alone."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import zoquant
from tests.integrations.tasks import ROWS, same, tiny, values_of
from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.training import Settings

pl = pytest.importorskip("lightning.pytorch")

from zoquant.integrations.lightning import ZOModule  # noqa: E402

FIXED = Settings(lr=5e-3, eps=3e-2, schedule="cosine")


class Tiny(ZOModule):
    def loss(self, batch: Any) -> Any:
        assert not self.model.training
        self.seen = torch.rand(())
        return self.model(**batch).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)


def loss_of(model: Any, batch: Any) -> Any:
    return model(**batch).loss


def loader(shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(ROWS[:12], batch_size=4, shuffle=shuffle)  # type: ignore[arg-type]


def trainer(folder: Path, steps: int = 6, callbacks: Any = (), **changes: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks),
        **quiet, **changes,
    )  # fmt: skip


def checkpoints(folder: Path, every: int) -> Any:
    return pl.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=every, save_top_k=-1, save_on_train_epoch_end=False
    )


def test_the_loop_is_that_of_zosgd(tmp_path: Path) -> None:
    module = Tiny(tiny(tmp_path), FIXED)
    run = trainer(tmp_path)
    run.fit(module, loader())
    assert run.global_step == 6
    model = tiny(tmp_path)
    optimizer = FIXED.optimizer(zoquant.attach(model))
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 + math.cos(math.pi * step / 6)) / 2
        batch = list(loader())[step % 3]
        optimizer.step(partial(loss_of, model, batch))
    assert same(values_of(model), values_of(module.model))
    assert run.callback_metrics["derivative"] == pytest.approx(optimizer.trajectory.steps[-1].derivatives[0])


def test_resume_ends_at_the_same_bytes(tmp_path: Path) -> None:
    """At the end of an epoch: within one, Lightning starts a plain loader again from its first batch."""
    chosen = Settings(rule="momentum")
    whole = Tiny(tiny(tmp_path), chosen)
    trainer(tmp_path, callbacks=[checkpoints(tmp_path, 3)], enable_checkpointing=True).fit(whole, loader())
    rest = Tiny(tiny(tmp_path), chosen)
    run = trainer(tmp_path)
    run.fit(rest, loader(), ckpt_path=str(tmp_path / "step=3.ckpt"))
    assert run.global_step == 6
    assert whole.calibration is not None
    assert rest.calibration is None
    assert rest.optimizers().trajectory == whole.optimizers().trajectory
    assert same(values_of(rest.model), values_of(whole.model))


def test_a_checkpoint_is_a_delta(tmp_path: Path) -> None:
    module = Tiny(tiny(tmp_path), FIXED)
    run = trainer(tmp_path)
    run.fit(module, loader())
    path = tmp_path / "end.ckpt"
    run.save_checkpoint(path)
    held = torch.load(path, weights_only=True)
    assert held["state_dict"] == {}
    assert held["zoquant_delta"]["values"]
    other = Tiny(tiny(tmp_path), FIXED)
    found = trainer(tmp_path).validate(other, loader(), ckpt_path=str(path), verbose=False)
    assert same(values_of(other.model), values_of(module.model))
    assert found[0]["val_loss"] == pytest.approx(float(run.validate(module, loader(), verbose=False)[0]["val_loss"]))
    moved = Tiny(module.model, FIXED)
    with pytest.raises(BaseMismatchError):
        trainer(tmp_path).validate(moved, loader(), ckpt_path=str(path), verbose=False)
    del held["zoquant_delta"]
    with pytest.raises(CheckpointError, match="no delta"):
        other.on_load_checkpoint(held)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="define loss"):
        trainer(tmp_path).fit(ZOModule(tiny(tmp_path), FIXED), loader())
    with pytest.raises(ValueError, match="max_epochs"):
        Tiny(tiny(tmp_path), Settings(steps=7))
    run = trainer(tmp_path)
    run.precision_plugin.scaler = object()
    with pytest.raises(ValueError, match="scales gradients"):
        run.fit(Tiny(tiny(tmp_path), FIXED), loader())
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, steps=-1).fit(Tiny(tiny(tmp_path), FIXED), loader())
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="manual optimization"):
        trainer(tmp_path, gradient_clip_val=1.0).fit(Tiny(tiny(tmp_path), FIXED), loader())
