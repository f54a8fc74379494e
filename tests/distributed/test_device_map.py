"""A model that accelerate has split over devices is one rank like any other."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model

import zoquant
from tests.distributed.processes import held, on_ranks
from tests.tiny import write_checkpoint
from zoquant.distributed import DistributedZO

PLACES = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu", "model.norm": "cpu"}


def split(path: str) -> Any:
    """Return the model with accelerate's hooks on each part; all parts lie on the one device that there is here."""
    model: Any = zoquant.load(path, compute_dtype=torch.float32, device="cpu")[0]
    rest = {name: "cpu" for name, _ in model.named_children() if name != "model"}
    inner = {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "layers"}
    return dispatch_model(model, PLACES | inner | rest, main_device="cpu", force_hooks=True)


def loss_of(model: Any, step: int, part: int) -> torch.Tensor:
    ids = torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(10 * step + part))
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def trained(model: Any, *, ranks: bool) -> dict[str, Any]:
    optimizer = zoquant.ZOSGD(zoquant.attach(model), lr=1e-3, eps=1e-2)
    stepper = DistributedZO(optimizer, audit_every=1) if ranks else optimizer
    for step in range(3):
        stepper.step([partial(loss_of, model, step, part) for part in range(2)], [2, 1])
    return held(optimizer)


def on_rank(rank: int, path: str) -> tuple[dict[str, Any], int]:
    model = split(path)
    hooked = sum(hasattr(module, "_hf_hook") for module in model.modules())
    return trained(model, ranks=True), hooked


def test_a_split_model_is_one_rank(tmp_path: Path) -> None:
    path = str(write_checkpoint(tmp_path / "model.gguf"))
    model, _ = zoquant.load(path, compute_dtype=torch.float32, device="cpu")
    expected = trained(model, ranks=False)
    for found, hooked in on_ranks(2, on_rank, path):
        assert hooked > len(PLACES)
        assert found == expected
