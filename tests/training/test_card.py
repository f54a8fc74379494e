"""The folder of a run as it is uploaded: what its card says, and that the card's own code loads it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import zoquant
from tests.report.runs import HOSTILE, make_run
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.training import Config, RunFolder, finetune
from zoquant.training.card import write_card


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and a run on it."""
    home = tmp_path_factory.mktemp("card")
    write_checkpoint(home / "base.gguf")
    write_rows(home / "rows.jsonl")
    config = Config.of({
        "model": str(home / "base.gguf"), "data": str(home / "rows.jsonl"), "eval_data": str(home / "rows.jsonl"),
        "template": TEMPLATE, "labels": LABELS, "steps": 3, "batch_size": 4, "lr": 0.05, "eps": 0.03,
        "compute_dtype": "float32",
    })  # fmt: skip
    finetune(config, home / "run")
    return home


def test_the_card_says_what_was_measured(trained: Path) -> None:
    folder = RunFolder(trained / "run")
    text, summary = folder.card.read_text(encoding="utf-8"), folder.read_summary()
    for when in ("before", "after"):
        found = summary[f"eval_{when}"]
        (low, high), ends = found["accuracy_interval"], found["loss_interval"]
        assert (
            f"| held-out {when} | {found['accuracy']:.4f} [{low:.4f}, {high:.4f}] | {found['loss']:.4f} "
            f"[{ends[0]:.4f}, {ends[1]:.4f}] | {len(ROWS)} |"
        ) in text
    assert "base.gguf" in text
    assert "rows.jsonl" in text
    assert "| task | classification |" in text
    assert "| objective | loss |" in text
    assert str(trained) not in text
    listed = set(re.findall(r"^\| `(.+?)` \|", text, flags=re.MULTILINE))
    assert listed == {path.name for path in folder.path.iterdir()} - {"README.md"}


def test_data_of_the_hub_are_named_as_on_the_hub(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    said = folder.read_settings() | {"data": "hub:stanfordnlp/sst2", "eval_data": "rows/held-out.jsonl"}
    folder.settings.write_text(json.dumps(said))
    text = write_card(folder).read_text(encoding="utf-8")
    assert "| data | hub:stanfordnlp/sst2 |" in text
    assert "| held-out data | held-out.jsonl |" in text


def test_the_code_of_the_card_runs(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    code = re.findall(
        r"```python\n(.*?)```", (trained / "run" / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    session: dict[str, Any] = {}
    exec(code[0], session)
    tuned = zoquant.attach(zoquant.load("tuned")[0], coupled=False)
    base = zoquant.attach(zoquant.load("base.gguf")[0], coupled=False)
    loaded = zoquant.attach(session["model"], coupled=False)
    assert all(torch.equal(loaded.base(key), tuned.base(key)) for key in tuned.keys)
    assert not all(torch.equal(loaded.base(key), base.base(key)) for key in tuned.keys)


def test_a_delta_of_another_base_is_refused(trained: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other.gguf", types="Q8_0")
    with pytest.raises(BaseMismatchError, match=r"delta\.safetensors: made "):
        zoquant.load(other, delta=trained / "run")
    with pytest.raises(CheckpointError, match="no such delta"):
        zoquant.load(trained / "base.gguf", delta=trained)


def test_a_delta_of_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    views = {"nothing.here.d": torch.zeros(3)}
    zoquant.Delta(views, {"nothing.here.d": "0"}, "relative").save(tmp_path / "delta.safetensors")
    with pytest.raises(BaseMismatchError, match=r"it moves nothing\.here\.d, and none of its keys exists here"):
        zoquant.load(trained / "base.gguf", delta=tmp_path)


def test_an_empty_delta_changes_nothing(trained: Path, tmp_path: Path) -> None:
    zoquant.Delta({}, {}, "relative").save(tmp_path / "delta.safetensors")
    views = zoquant.attach(zoquant.load(trained / "base.gguf", delta=tmp_path)[0])
    assert views.fingerprints() == zoquant.attach(zoquant.load(trained / "base.gguf")[0]).fingerprints()


def head_of(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(write_card(folder).read_text(encoding="utf-8").split("---\n")[1])
    return found


@pytest.mark.parametrize(
    ("model", "base"),
    [("who/what", "who/what"), ("who/what/file.gguf", "who/what"), ("model.gguf", None), ("/a/b/c.gguf", None)],
)
def test_the_head_names_a_base_on_the_hub(tmp_path: Path, model: str, base: str | None) -> None:
    folder = make_run(tmp_path / "run")
    folder.settings.write_text(folder.settings.read_text().replace('"model": "plain"', f'"model": "{model}"'))
    found = head_of(folder)
    assert found.get("base_model") == base
    assert found["library_name"] == "zoquant"


def test_nothing_of_a_run_is_taken_for_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", text="| a\n# <b>x</b> `c` [d](e) " + HOSTILE)
    text = write_card(folder).read_text(encoding="utf-8")
    prose = text.partition("## Load it")[0]
    assert "<b>" not in prose
    assert "<script" not in prose
    assert "[d](" not in prose
    assert (
        len([line for line in text.splitlines() if line.startswith("# ")]) == 2
    )  # the title, and a remark in the code
    rows = [line for line in prose.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 6}


def test_a_run_without_a_summary_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"summary\.json: cannot be read"):
        write_card(make_run(tmp_path / "run", finished=False))
