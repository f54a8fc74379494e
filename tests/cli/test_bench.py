"""What `zoquant bench` measures of a user's model, and how times are taken. Nothing is timed here."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import zoquant
from tests.tiny import write_checkpoint
from zoquant.cli.app import app
from zoquant.cli.bench.measure import WAYS, measure
from zoquant.cli.bench.timing import in_turn, ratio, spread
from zoquant.cli.show import console
from zoquant.errors import ConfigError, UnsupportedLayoutError
from zoquant.training import Source


def test_what_is_measured(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "base.gguf")
    said = CliRunner().invoke(
        app, ["bench", str(path), "--batch-size", "2", "--length", "3", "--rounds", "3", "--json"]
    )
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert 0 < found["rss_loaded_bytes"] <= found["rss_peak_bytes"]
    assert found["gpu_peak_bytes"] is None
    assert list(found["ways"]) == ["rows-columns", "values"]
    views = zoquant.attach(zoquant.load(path)[0])
    assert (found["ways"]["values"]["views"], found["ways"]["values"]["trainable"]) == (len(views), views.trainable)
    for each in found["ways"].values():
        assert each["rows"] == 4, "two signs of two examples"
        assert each["tokens_a_second"]["median"] == pytest.approx(12 / each["step_seconds"]["median"])
        assert each["overhead"]["median"] > 0


def test_the_tables_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)
    path = write_checkpoint(tmp_path / "base.gguf")
    options = ["--batch-size", "2", "--length", "3", "--rounds", "2"]
    said = CliRunner().invoke(app, ["bench", str(path), *options])
    assert said.exit_code == 0, said.output
    assert all(text in said.stdout for text in ("when loaded", "rows-columns", "tokens a second", "2 x 3 tokens"))


def test_measuring_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "base.gguf")
    opened = Source(str(path)).open()
    before = zoquant.attach(opened[0]).fingerprints()
    monkeypatch.setattr(Source, "open", lambda self: opened)
    measure(Source(str(path)), 2, 3, 2)
    assert zoquant.attach(opened[0]).fingerprints() == before


def test_a_way_that_a_model_cannot_go_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedLayoutError("a: has no rows and columns")

    monkeypatch.setitem(WAYS, "rows-columns", refuse)
    monkeypatch.setattr(console, "width", 200)
    path = write_checkpoint(tmp_path / "base.gguf")
    assert measure(Source(str(path)), 2, 3, 2)["ways"]["rows-columns"] == {"skipped": "a: has no rows and columns"}
    options = ["--batch-size", "2", "--length", "3", "--rounds", "2"]
    said = CliRunner().invoke(app, ["bench", str(path), *options])
    assert "a: has no rows and columns" in said.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--batch-size", "0"), "--batch-size is 0, expected at least 1"),
        (("--rounds", "1"), "--rounds is 1, expected at least 2"),
        (("--runtime", "fast"), "runtime is 'fast', expected one of auto, native, vendor"),
    ],
)
def test_options_out_of_range(option: tuple[str, str], message: str) -> None:
    said = CliRunner().invoke(app, ["bench", "model.gguf", *option])
    assert isinstance(said.exception, ValueError | ConfigError)
    assert message in str(said.exception)


def test_times_are_taken_in_turn() -> None:
    order: list[str] = []
    times = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 5
    assert [len(found) for found in times.values()] == [3, 3]


def test_medians_with_quartiles() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert ratio([2.0, 30.0, 6.0], [1.0, 10.0, 2.0])["median"] == 3.0
