"""Memory stays flat: what a step adds is its line in the trajectory."""

from pathlib import Path

import pytest

from tests.faults.runs import job
from zoquant.training import Progress, Settings, run
from zoquant.training.memory.resident import rss_bytes

ALLOWED = 8 << 20
"""Bytes over 9,000 steps: trajectory and times are kept in memory, some hundred bytes a step."""


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[int, int] = {}

    def note(progress: Progress) -> None:
        if progress.step in (1000, 10_000):
            seen[progress.step] = rss_bytes()

    run(job(tmp_path / "run", settings=Settings(steps=10_000, batch_size=2, lr=1e-6, eps=1e-2)), on_progress=note)
    growth = seen[10_000] - seen[1000]
    with capsys.disabled():
        print(f"\nresident memory grew by {growth} bytes from step 1,000 to 10,000")
    assert growth < ALLOWED
