"""Small quanto layers and checkpoints, the same bytes every time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.backends.quanto.reference import random_layer
from tests.checkpoint.folder.llama import write_llama

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "q_proj": ("qfloat8", {}),
    "k_proj": ("qint4", {"size": 32}),
    "v_proj": ("qint4", {"size": 32, "shift": torch.int8}),
    "o_proj": ("qint2", {"size": 64}),
    "gate_proj": ("qint2", {"size": 32, "dtype": torch.bfloat16}),
    "down_proj": ("qint4", {"size": 128}),
}
"""Type, and what else is special about some layers of the sample; all others are qint8."""


def quanto_folder(folder: Path, **changes: Any) -> Path:
    """Write a llama of one layer, nearly every matrix of another kind."""
    qmap: dict[str, Any] = {}

    def quantize(path: str, weight: Tensor) -> dict[str, Tensor]:
        kind, options = KINDS.get(path.rpartition(".")[2], ("qint8", {}))
        qmap[path] = {"weights": kind, "activations": "none"}
        rows, columns = weight.shape
        return random_layer(path, rows, columns, kind, **options, seed=len(path))

    path = write_llama(folder / "quanto", quantize, None, **changes)
    (path / "quanto_qmap.json").write_text(json.dumps(qmap), encoding="utf-8")
    return path


def qlinear(
    kind: str = "qint8", *, columns: int = 256, dtype: torch.dtype = torch.float32, **options: Any
) -> nn.Module:
    """Return a frozen QLinear [columns -> 96]."""
    from optimum.quanto import freeze, quantize

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(columns, 96, dtype=dtype)).eval()
    quantize(model, weights=kind, **options)
    freeze(model)
    return model[0]


BACKEND_SAMPLES: dict[str, Callable[[], nn.Module]] = {"optimum.quanto.nn.qlinear.QLinear": qlinear}
FORMAT_SAMPLES: dict[str, Callable[[Path], Path]] = {"quanto": quanto_folder}
