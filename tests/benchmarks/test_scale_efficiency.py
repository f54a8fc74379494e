"""Two ranks beside one: what is measured, and what is made of it."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale_efficiency import measure, order, summary
from tests.tiny import write_checkpoint


def rank(number: int, checksum: int = 5) -> dict[str, Any]:
    """Return what a rank saw whose evaluations take 1 s, the other one's 3 s, and whose exchange takes 0.25 s."""
    alone = {"wall": 4.0 + 2 * number, "processor": 4.0, "wait": 0.0}
    found = {
        ("first", "second")[number]: alone,
        "apart": {"wall": 6.0, "processor": 4.0, "wait": 0.0},
        "together": {"wall": 3.25, "processor": 1.0 + 2 * number, "wait": 2.25 - 2 * number},
    }
    return {"cycles": [found] * 3, "forward": 2.0, "direction": 0.5, "bytes": 32, "checksum": checksum}


def test_figures() -> None:
    found = summary([rank(0), rank(1)])
    assert (found["step_seconds_1"], found["step_seconds_2"], found["step_seconds_apart"]) == (5.0, 3.25, 6.0)
    assert found["efficiency"] == 5 / 6.5
    assert found["efficiency_by_cycle"] == [5 / 6.5] * 3
    assert found["ceiling"] == 5 / 6
    assert found["efficiency_by_processor_time"] == 1.0
    assert (found["exchange_seconds"], found["idle_seconds"], found["bytes_a_step"]) == (0.25, 2.0, 32)


def test_other_bytes_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="the bytes differ"):
        summary([rank(0), rank(1, checksum=6)])


def test_every_kind_comes_first_and_ranks_stay_in_step() -> None:
    orders = [order(cycle) for cycle in range(6)]
    assert {each[0] for each in orders} == {"first", "second", "apart", "together"}
    for each in orders:
        assert sorted(each) == ["apart", "first", "second", "together"]
        assert abs(each.index("first") - each.index("second")) == 1  # so that both have done the same steps after it


@pytest.mark.slow
def test_a_small_measurement(tmp_path: Path) -> None:
    found = measure(str(write_checkpoint(tmp_path / "model.gguf")), cycles=2)
    for number, each in enumerate(found):
        assert [sorted(cycle) for cycle in each["cycles"]] == [
            sorted(["apart", "together", ("first", "second")[number]])
        ] * 2
        assert all(cycle["together"]["wait"] > 0 == cycle["apart"]["wait"] for cycle in each["cycles"])
        assert all(times["wall"] > 0 for cycle in each["cycles"] for times in cycle.values())
    assert summary(found)["bytes_a_step"] == 32
