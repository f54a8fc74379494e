"""The deltas as parameters of a model, for whoever asks a model for its parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import zoquant
from tests.distributed.processes import on_ranks
from tests.tiny import write_checkpoint
from tests.toy import toy_batch, toy_loss, toy_model


def ddp_on_rank(rank: int) -> list[float]:
    model: Any = toy_model()
    views = zoquant.attach(model, roles=("scale", "zero"))
    with zoquant.Gradients(model, views) as deltas:
        model.deltas = deltas
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.SGD(deltas.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            toy_loss(wrapped, toy_batch(seed=10 * step + rank)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return [float(views.delta(key).double().abs().sum()) for key in views.keys]


def test_distributed_data_parallel() -> None:
    model = toy_model()
    views = zoquant.attach(model, roles=("scale", "zero"))
    with zoquant.Gradients(model, views) as deltas:
        optimizer = torch.optim.SGD(deltas.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            for rank in range(2):
                (toy_loss(model, toy_batch(seed=10 * step + rank)) / 2).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    expected = [float(views.delta(key).double().abs().sum()) for key in views.keys]
    first, second = on_ranks(2, ddp_on_rank)
    assert first == second
    assert first == pytest.approx(expected, rel=1e-3)
    assert all(expected)


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model: Any
    model, _ = zoquant.load(write_checkpoint(tmp_path / "model.gguf"), compute_dtype=torch.float32)
    views = zoquant.attach(model)
    ids = torch.arange(40, 52)
    rows: list[dict[str, Tensor]] = [{"input_ids": ids, "labels": ids} for _ in range(8)]
    losses: list[float] = []
    with zoquant.Gradients(model, views) as deltas:
        model.deltas = deltas
        arguments = TrainingArguments(
            str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=6, learning_rate=2e-2,
            save_strategy="no", report_to=[], logging_steps=1, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        del model.deltas
    assert losses[-1] < 0.8 * losses[0]
    assert sum(bool(views.delta(key).any()) for key in views.keys) == len(views)
