"""When a run is evaluated if nothing is said."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant.training import Config, RunFolder, finetune


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("curve")
    rows = str(write_rows(folder / "rows.jsonl"))
    return {
        "model": str(write_checkpoint(folder / "base.gguf")), "data": rows, "eval_data": rows, "template": TEMPLATE,
        "labels": LABELS, "batch_size": 4, "lr": 1e-3, "eps": 1e-2, "subspace": "values",
        "compute_dtype": "float32", "device": "cpu",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 30}, list(range(0, 31, 3))),  # a tenth
        ({"steps": 6}, [0, 3, 6]),  # 48 examples seen, twice 12 evaluated
        ({"steps": 2}, [0, 2]),
        ({"steps": 6, "eval_every": 0}, [0, 6]),
        ({"steps": 6, "eval_every": 5}, [0, 5, 6]),
    ],
)
def test_a_tenth_of_a_run_or_less_often(
    asked: dict[str, Any], changes: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    assert len(ROWS) == 12
    finetune(Config.of(asked | changes), tmp_path / "run")
    assert [step for step, _ in RunFolder(tmp_path / "run").evaluations()] == expected


def test_evaluations_leave_the_bytes_as_they_are(asked: dict[str, Any], tmp_path: Path) -> None:
    for name, every in (("often", None), ("never", 0)):
        finetune(Config.of(asked | {"steps": 6, "eval_every": every}), tmp_path / name)
    often, never = (RunFolder(tmp_path / name) for name in ("often", "never"))
    assert often.delta.read_bytes() == never.delta.read_bytes()
    assert often.trajectory.read_bytes() == never.trajectory.read_bytes()
