"""Rank 0 evaluates alone, and the others wait however long that takes."""

import os
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from tests.distributed.processes import spread
from tests.faults.runs import Numbers, files, job
from zoquant.distributed import launch
from zoquant.tasks import Evaluation, Metric
from zoquant.training import Settings, run

SETTINGS = Settings(steps=4, batch_size=4, lr=1e-3, eps=1e-2)
TIMEOUT = 4.0
"""Seconds after which the process group gives up."""


@dataclass
class Slow(Numbers):
    """A task whose second evaluation takes longer than a process group waits."""

    def __post_init__(self) -> None:
        self.seconds = [0.0, TIMEOUT + 2, 0.0]  # the last one first

    def evaluate(self, model: nn.Module) -> Evaluation:
        time.sleep(self.seconds.pop())
        return Evaluation("loss", {"loss": Metric(float(len(self.seen)), None)}, 1)


def on_rank(rank: int, out: str, folder: str) -> bool:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    slow: Any = Slow()
    work = job(launch.folder_of_rank(out), slow, SETTINGS)
    return run(replace(work, held_out=slow if rank == 0 else None, eval_every=2)).finished


def test_an_evaluation_may_last_longer_than_the_time_out_of_the_group(tmp_path: Path) -> None:
    assert spread(2, on_rank, str(tmp_path / "ranks")) == [True, True]
    run(job(tmp_path / "alone", Numbers(), SETTINGS))
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")


def test_a_rank_by_itself_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "new_group", pytest.fail)
    launch.waiting()()
