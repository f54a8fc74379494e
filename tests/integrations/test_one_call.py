"""One call of Python does what the command line does, to the same bytes, and takes what a program holds."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant.cli.app import app
from zoquant.errors import CheckpointError, ConfigError, DataError
from zoquant.integrations.one_call import reward_of
from zoquant.tasks.rewards import Generated

TASK: dict[str, Any] = {"template": TEMPLATE, "labels": LABELS, "compute_dtype": "float32"}
ASKED: dict[str, Any] = {**TASK, "steps": 2, "batch_size": 4}
FLAGS = [word for name, value in ASKED.items() for word in (f"--{name.replace('_', '-')}", str(value))]
BACKWARD: dict[str, Any] = {"gradient": "backward", "lr": 1e-2}
FORWARD: dict[str, Any] = {"lr": 1e-2, "eps": 3e-2, "subspace": "values"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_checkpoint(tmp_path / "model.gguf")
    write_rows(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded() -> tuple[Any, Any]:
    return zoquant.load("model.gguf", compute_dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("way", [{}, FORWARD, BACKWARD], ids=["default", "values", "backward"])
def test_the_delta_is_that_of_the_command_line(folder: Path, way: dict[str, Any]) -> None:
    more = [word for name, value in way.items() for word in (f"--{name}", str(value))]
    app(
        ["train", "model.gguf", "--data", "rows.jsonl", *FLAGS, *more, "--out", "typed", "--json"],
        standalone_mode=False,
    )
    by_path = zoquant.finetune("model.gguf", data="rows.jsonl", out="path", **ASKED, **way)
    model, tokenizer = loaded()
    in_memory = zoquant.finetune(model, tokenizer=tokenizer, data=ROWS, out="memory", **ASKED, **way)
    expected = (folder / "typed" / "delta.safetensors").read_bytes()
    assert by_path.delta.read_bytes() == in_memory.delta.read_bytes() == expected
    assert (folder / "path" / "config.toml").read_text() == (folder / "typed" / "config.toml").read_text()
    assert json.loads((folder / "path" / "summary.json").read_text())["format"] == "gguf"
    assert not (folder / "memory" / "config.toml").exists()
    assert in_memory.model is model


def test_a_run_measures_exports_and_reports(folder: Path) -> None:
    run = zoquant.finetune("model.gguf", data=ROWS, eval_data=ROWS, out="run", **ASKED, **BACKWARD)
    assert "<svg" in Path("run/report.html").read_text(encoding="utf-8")
    assert run.before is not None
    assert run.evaluation is not None
    assert run.before.loss != run.evaluation.loss
    tuned = run.export("tuned.gguf")
    assert zoquant.evaluate(tuned, data="rows.jsonl", **TASK) == run.evaluation
    assert zoquant.evaluate("model.gguf", data=ROWS, delta=run.folder, **TASK) == run.evaluation
    tokenizer = loaded()[1]
    assert zoquant.evaluate(run.model, tokenizer=tokenizer, data=ROWS, **TASK) == run.evaluation
    assert run.report() == Path("run/report.html")
    assert "<svg" in run.report().read_text(encoding="utf-8")


def test_a_loaded_model_exports_to_the_base_that_is_named(folder: Path) -> None:
    model, tokenizer = loaded()
    run = zoquant.finetune(model, tokenizer=tokenizer, data="rows.jsonl", out="run", **ASKED, **FORWARD)
    with pytest.raises(
        CheckpointError, match=re.escape("the model was passed loaded, so its files are not known. Give base=.")
    ):
        run.export("tuned.gguf")
    assert run.export("tuned.gguf", base="model.gguf").stat().st_size == (folder / "model.gguf").stat().st_size
    assert json.loads((folder / "run" / "summary.json").read_text())["format"] == "in memory"


def test_rows_of_other_libraries_are_the_rows_of_a_file(folder: Path) -> None:
    class Table:
        """Gives rows as `datasets.Dataset` does: an iterable of dicts that is no list."""

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter([row | {"label": int(row["label"])} for row in ROWS])

    first = zoquant.finetune("model.gguf", data=Table(), out="first", **ASKED, **FORWARD)
    second = zoquant.finetune("model.gguf", data=ROWS, out="second", **ASKED, **FORWARD)
    assert first.delta.read_bytes() == second.delta.read_bytes()


def test_a_frame_of_pandas_is_the_rows_of_its_csv(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([*ROWS, {"sentence": "so", "label": "1", "more": None}])
    frame.to_csv("rows.csv", index=False)
    first = zoquant.finetune("model.gguf", data=frame, out="first", **ASKED, **FORWARD)
    second = zoquant.finetune("model.gguf", data="rows.csv", out="second", **ASKED, **FORWARD)
    assert first.delta.read_bytes() == second.delta.read_bytes()


def short(generations: Any) -> float:
    return sum(1 / (1 + len(each.text)) for each in generations) / len(generations)


def short_as_in_trl(prompts: list[str], completions: list[str], label: list[str], **_: Any) -> list[float]:
    assert len(prompts) == len(completions) == len(label)
    return [1 / (1 + len(text)) for text in completions]


def test_a_function_is_the_reward(folder: Path) -> None:
    asked = ASKED | FORWARD | {"task": "generation", "labels": None, "max_new_tokens": 3}
    found = []
    rewards: list[Callable[..., Any]] = [short, short_as_in_trl]
    for number, given in enumerate(rewards):
        run = zoquant.finetune("model.gguf", data=ROWS, out=f"run-{number}", reward=given, **asked)
        found.append(run.delta.read_bytes())
        settings = json.loads((run.folder / "settings.json").read_text())
        assert (settings["objective"], settings["reward"]) == ("reward", given.__name__)
    assert found[0] == found[1]


def test_the_mean_of_rewards_as_in_trl() -> None:
    written = [Generated("p", text, ("a",), {"label": "a"}) for text in ("", "abc")]
    assert reward_of(short_as_in_trl)(written) == (1 + 1 / 4) / 2
    assert reward_of(short) is short


def test_a_function_is_the_objective(folder: Path) -> None:
    model, tokenizer = loaded()
    calls = []

    def counted(model: Any, batch: Any) -> float:
        calls.append(len(batch.labels))
        return float(len(calls))

    zoquant.finetune(model, tokenizer=tokenizer, data=ROWS, out="run", objective=counted, **ASKED, **FORWARD)
    assert calls == [4] * 4


def test_a_bar_shows_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoquant.finetune("model.gguf", data=ROWS, eval_data=ROWS, out="run", **ASKED, **FORWARD)
    out, shown = capsys.readouterr()
    assert re.findall(r"step (\d): held-out accuracy ", out) == ["0", "2"]
    assert "2/2" in shown
    assert "loss " in shown
    zoquant.finetune("model.gguf", data=ROWS, out="quiet", on_progress=lambda _: None, **ASKED, **FORWARD)
    assert capsys.readouterr() == ("", "")


def test_it_goes_on(folder: Path) -> None:
    whole = zoquant.finetune("model.gguf", data=ROWS, out="whole", **ASKED, **FORWARD)

    def stop(progress: Any) -> None:
        if progress.result is not None:
            raise KeyboardInterrupt

    part = zoquant.finetune("model.gguf", data=ROWS, out="part", on_progress=stop, **ASKED, **FORWARD)
    assert part.summary["finished"] is False
    done = zoquant.finetune("model.gguf", data=ROWS, out="part", resume=True, **ASKED, **FORWARD)
    assert done.delta.read_bytes() == whole.delta.read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"stepps": 3}, ConfigError, "'stepps' is no key: did you mean 'steps'?"),
        ({"data": 3}, DataError, "data is a int, expected a path, a list of dicts, one table of datasets"),
        ({"data": {"train": ROWS}}, DataError, "data is a dict, expected a path, a list of dicts"),
        ({"data": ["a"]}, DataError, "row 1 is a str, expected a dict of columns and values."),
        ({"data": []}, DataError, "the data hold no row, expected at least one."),
        ({"eval_data": [{"sentence": "a"}]}, DataError, "rows in memory: row 1"),
    ],
)
def test_what_is_refused(folder: Path, changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        zoquant.finetune(**{"model": "model.gguf", "data": ROWS, "out": "run", **ASKED, **FORWARD, **changes})
    assert not (folder / "run").exists()


def test_a_loaded_model_comes_with_its_tokenizer(folder: Path) -> None:
    model, tokenizer = loaded()
    with pytest.raises(CheckpointError, match=re.escape("a loaded model needs its tokenizer")):
        zoquant.finetune(model, data=ROWS, out="run", **ASKED)
    (folder / "delta.safetensors").touch()
    with pytest.raises(CheckpointError, match=re.escape("delta.safetensors: goes on a model as it is loaded.")):
        zoquant.evaluate(model, tokenizer=tokenizer, data=ROWS, delta="delta.safetensors", **TASK)
