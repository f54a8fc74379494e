"""Ten kills of five hundred: `python -m benchmarks.soak` does them all."""

import json
from pathlib import Path

import pytest

from benchmarks.soak import Soak

RESULT = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak.json"


@pytest.mark.slow
def test_ten_kills_and_the_same_bytes(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=1)
    soak.forks(9)
    soak.processes(1)
    assert soak.found.kills == 10
    assert soak.found.fresh == 1
    assert soak.found.runs >= 2
    assert soak.found.steps_lost == soak.found.files_damaged == 0


def test_the_long_run_lost_nothing() -> None:
    found = json.loads(RESULT.read_text())
    assert found["kills"] >= 500
    assert found["steps_lost"] == found["files_damaged"] == 0
    assert found["runs"] > 0
