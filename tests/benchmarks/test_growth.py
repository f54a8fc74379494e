"""Growth: what is measured, that a run goes on where it stopped, and the lines through what was found."""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import zoquant
from benchmarks.bench.dense import weights_of
from benchmarks.growth import points as growth
from benchmarks.growth.lines import SWEEPS, fits, line, plot, told
from benchmarks.growth.model import random_model
from benchmarks.growth.points import WIDTHS, Point, groups, measure, points, run
from zoquant.cli.bench.measure import sample_ids, sample_loss


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(growth.WIDTHS, 1, (128, 2, 300))


def test_fewer_layers_have_fewer_values() -> None:
    found = measure([Point("views", size=1, share=share, rounds=2) for share in (1, 2, 7)])
    assert [each["share"] for each in found] == [1, 2, 7]
    weights = [each["weights"] for each in found]
    assert weights[0] == weights[1] == weights[2] > 300 * 128
    attached = [each["values"] * 16 for each in found]
    assert attached[0] == weights[0], "d and m for each 32 weights"
    assert attached[2] == 2 * 128 * 128, "the first matrix of both layers"
    assert attached[0] - 2 * 300 * 128 > attached[1] > attached[2]
    assert all(found[0][name] > 0 for name in ("step_seconds", "beside_seconds", "forward_seconds", "peak_bytes"))


def test_directions_that_share_a_forward() -> None:
    found = measure([Point("together", size=1, directions=2, rounds=2)])[0]
    assert found["step_seconds"] > 0
    assert "beside_seconds" not in found


def test_a_random_model_has_finite_losses_that_a_probe_moves() -> None:
    model = random_model(*WIDTHS[1])
    ids = sample_ids(model, 2, 4)
    views = zoquant.attach(model)
    before = sample_loss(model, ids)
    assert 0 < before < 10
    views.write(seed=0, eps=0.03)
    assert sample_loss(model, ids) != before
    matrix = model.get_submodule("model.layers.0.mlp.up_proj").packed.dequantize()  # type: ignore[operator]
    assert abs(float(matrix.mean())) < 0.01
    assert 0.01 < float(matrix.std()) < 0.04
    assert weights_of(model) > 2 * 300 * 128


def test_a_sweep_shares_a_process_and_a_size_has_its_own() -> None:
    todo = points(360)
    found = groups(todo)
    assert [point for group in found for point in group] == todo
    assert {group[0].sweep: len(group) for group in found} == {
        "size": 1, "views": 4, "batch": 5, "directions": 4, "together": 4
    }  # fmt: skip


def test_large_models_have_few_rounds() -> None:
    rounds = {each.size: each.rounds for each in points(7000) if each.sweep == "size"}
    assert rounds == {15: 11, 40: 11, 135: 11, 360: 11, 1100: 5, 3200: 5, 7000: 5}
    assert {each.rounds for each in points(7000, short=True)} == {2}
    assert max(each.size for each in points(7000, short=True)) == 40


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

    def once(group: Sequence[Point]) -> list[dict[str, Any]]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.extend(group)
        return [{**asdict(point), "weights": point.size, "step_seconds": 1.0, "peak_bytes": 1} for point in group]

    monkeypatch.setattr(growth, "measure", once)
    monkeypatch.setattr(multiprocessing, "get_context", lambda how: type("Context", (), {"Pool": Pool}))
    out, todo = tmp_path / "growth.json", points(135)
    with pytest.raises(KeyboardInterrupt):
        run(todo, out)
    assert len(json.loads(out.read_text(encoding="utf-8"))["points"]) == 2
    monkeypatch.setattr(growth, "measure", lambda group: [{**asdict(point), "weights": 1} for point in group])
    again = run(todo, out)
    assert [Point(**{name: each[name] for name in asdict(todo[0])}) for each in again["points"]] == todo
    with pytest.raises(ValueError, match="short is False, expected True"):
        run(todo, out, short=True)
    out.write_text(json.dumps({**again, "machine": {"processor": "other"}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"machine is .*other"):
        run(todo, out)


def test_lines_and_their_plot(tmp_path: Path) -> None:
    assert line([0, 1, 2], [1, 3, 5]) == pytest.approx({"fixed": 1, "each": 2, "r2": 1})
    assert line([0, 1, 2, 3], [0, 1, 0, 1])["r2"] == pytest.approx(0.2)
    own = [{"sweep": "size", "weights": n, "step_seconds": 2 * n + 1, "peak_bytes": 10 * n} for n in (1, 2, 3)]
    found = fits([*own, {"sweep": "batch", "batch": 1, "step_seconds": 1}])
    assert {name: round(each["each"], 6) for name, each in found.items()} == {"size": 2, "memory": 10}
    plot({"points": own, "machine": {"processor": "Chip"}}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_line_in_words() -> None:
    said = told("batch", {"fixed": 0.05, "each": 0.02, "r2": 0.999})
    assert said.startswith("batch, step seconds: 20 ms for each row, 50 ms at zero; a straight line, R² 0.9990. Why: ")
    assert "no straight line" in told("memory", {"fixed": 2.0**29, "each": 0.875, "r2": 0.9})
    assert "834.5 MiB for each billion weights, 512 MiB at zero" in told(
        "memory", {"fixed": 2.0**29, "each": 0.875, "r2": 0.9}
    )
    assert all(told(name, {"fixed": 1.0, "each": 1.0, "r2": 1.0}).endswith(".") for name in SWEEPS)
