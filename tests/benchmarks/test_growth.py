"""Growth: what is measured, that a run goes on where it stopped, and the lines through what was found."""

import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth
from benchmarks.growth import Point, fits, line, measure, plot, points, run


def test_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(growth.WIDTHS, 1, (128, 2, 300))
    found = [measure(Point("views", size=1, share=share, rounds=2)) for share in (1, 2)]
    assert found[0]["values"] == found[1]["values"] * 2 > 0
    assert found[0]["weights"] == found[1]["weights"] > 300 * 128
    assert all(found[0][name] > 0 for name in ("step_seconds", "beside_seconds", "forward_seconds", "peak_bytes"))


class Pool:
    """A pool that stays in this process."""

    def __init__(self, count: int) -> None:
        assert count == 1

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def apply(self, function: Any, given: tuple[Any, ...]) -> Any:
        return function(*given)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Point] = []

    def once(point: Point) -> dict[str, Any]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point)
        return {**asdict(point), "weights": point.size, "step_seconds": 1.0, "peak_bytes": 1}

    monkeypatch.setattr(growth, "measure", once)
    monkeypatch.setattr(multiprocessing, "get_context", lambda how: type("Context", (), {"Pool": Pool}))
    out, todo = tmp_path / "growth.json", points(135)
    with pytest.raises(KeyboardInterrupt):
        run(todo, out)
    assert len(json.loads(out.read_text(encoding="utf-8"))["points"]) == 2
    monkeypatch.setattr(growth, "measure", lambda point: {**asdict(point), "weights": 1})
    again = run(todo, out)
    assert len(again["points"]) == len(todo)
    assert [each["size"] for each in again["points"][:2]] == [point.size for point in measured]


def test_lines_and_their_plot(tmp_path: Path) -> None:
    assert line([0, 1, 2], [1, 3, 5]) == pytest.approx({"fixed": 1, "each": 2, "r2": 1})
    assert line([0, 1, 2, 3], [0, 1, 0, 1])["r2"] == pytest.approx(0.2)
    own = [{"sweep": "size", "weights": n, "step_seconds": 2 * n + 1, "peak_bytes": 10 * n} for n in (1, 2, 3)]
    found = fits([*own, {"sweep": "batch", "batch": 1, "step_seconds": 1}])
    assert {name: round(each["each"], 6) for name, each in found.items()} == {"size": 2, "memory": 10}
    plot({"points": own}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
