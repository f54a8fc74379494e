"""The command line, in process: what it prints, what it writes, what it refuses."""

import json
import logging
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import zoquant
from tests.folders import save_folder, tiny_llama
from tests.tiny import LABELS, TEMPLATE, write_checkpoint, write_rows
from zoquant.cli.app import COMMANDS, main
from zoquant.cli.flags import MOST, PANELS
from zoquant.optim.measuring import StepResult
from zoquant.training import Config
from zoquant.training.config import keys
from zoquant.training.steps import Steps


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_checkpoint(tmp_path / "base.gguf")
    write_rows(tmp_path / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["zoquant", *words])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), out, err


class Shell:
    """Calls the command line and expects it to end well."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.tools = (capsys, monkeypatch)

    def text(self, *words: str) -> str:
        code, out, err = call(*self.tools, *words)
        assert code == 0, err
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self.text(*words, "--json"))

    def error(self, *words: str) -> str:
        code, out, err = call(*self.tools, *words)
        assert code == 2, out
        return " ".join(err.split())


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


TASK = ("--data", "rows.jsonl", "--template", TEMPLATE, "--labels", LABELS)
FREE = ("train", "base.gguf", *TASK, "--steps", "4", "--batch-size", "4")
TRAIN = (*FREE, "--lr", "0.01", "--eps", "0.03")


def test_the_whole_way(shell: Shell, folder: Path) -> None:
    summary = shell.json(*TRAIN, "--eval-data", "rows.jsonl", "--out", "run")
    assert summary["steps"] == 4
    assert summary["format"] == "gguf"
    assert summary == json.loads((folder / "run" / "summary.json").read_text())
    assert {path.name for path in (folder / "run").iterdir()} == {
        "README.md", "report.html", "config.toml", "delta.safetensors", "metrics.jsonl", "samples.jsonl",
        "settings.json", "summary.json", "trajectory.safetensors",
    }  # fmt: skip

    exported = shell.json("export", "base.gguf", "--delta", "run/delta.safetensors", "--out", "tuned.gguf")
    assert exported["bytes"] == (folder / "base.gguf").stat().st_size
    before = shell.json("eval", "base.gguf", *TASK)
    tuned = shell.json("eval", "tuned.gguf", *TASK)
    with_delta = shell.json("eval", "base.gguf", *TASK, "--delta", "run/delta.safetensors")
    assert tuned == with_delta == summary["eval_after"]
    assert shell.json("eval", "base.gguf", *TASK, "--delta", "run") == tuned
    shell.json("export", "base.gguf", "--delta", "run", "--out", "same.gguf")
    assert (folder / "same.gguf").read_bytes() == (folder / "tuned.gguf").read_bytes()
    assert before == summary["eval_before"]
    assert tuned["loss"] != before["loss"]

    replayed = shell.json("replay", "base.gguf", "run/trajectory.safetensors", "--out", "again.safetensors")
    assert replayed["steps"] == 4
    assert (folder / "again.safetensors").read_bytes() == (folder / "run" / "delta.safetensors").read_bytes()


def test_numbers_that_are_not_given_are_calibrated(shell: Shell, folder: Path) -> None:
    text = " ".join(shell.text(*FREE, "--out", "run", "--rule", "momentum").split())
    found = json.loads((folder / "run" / "calibration.json").read_text())
    assert f"calibrated with {found['forwards']} forwards:" in text
    assert all(reason in text for reason in found["reasons"])
    assert shell.json(*FREE, "--out", "again", "--rule", "momentum")["calibration"] == found


def test_with_no_number_given_rows_and_columns_move(shell: Shell, folder: Path) -> None:
    text = " ".join(shell.text(*FREE, "--eval-data", "rows.jsonl", "--out", "run").split())
    found = json.loads((folder / "run" / "calibration.json").read_text())
    assert "chosen without a forward: Training the 7 matrices of layer 1, their rows and columns" in text
    assert all(" ".join(reason.split()) in text for reason in found["reasons"])
    after = json.loads((folder / "run" / "summary.json").read_text())["eval_after"]
    shell.json("replay", "base.gguf", "run/trajectory.safetensors", "--out", "again.safetensors")
    assert (folder / "again.safetensors").read_bytes() == (folder / "run" / "delta.safetensors").read_bytes()
    shell.json("export", "base.gguf", "--delta", "again.safetensors", "--out", "tuned.gguf")
    assert shell.json("eval", "tuned.gguf", *TASK) == after
    assert "calibrated with" in shell.text(*FREE, "--out", "values", "--subspace", "values")
    assert "(subspace values), since lr is 0.01." in " ".join(shell.text(*TRAIN, "--out", "given").split())
    assert "expected one of auto, values, rows-columns" in shell.error(*FREE, "--out", "bad", "--subspace", "rows")


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
def test_an_interrupted_run_ends_with_130(shell: Shell, folder: Path, more: tuple[str, ...]) -> None:
    """So `train ... && export ...` exports no part of a run."""
    capsys, monkeypatch = shell.tools
    with monkeypatch.context() as patch:
        steps = iter(range(3))
        step = Steps.step

        def interrupted(self: Steps) -> StepResult:
            if next(steps) == 2:
                raise KeyboardInterrupt
            return step(self)

        patch.setattr(Steps, "step", interrupted)
        code, out, _ = call(capsys, patch, *TRAIN, "--out", "run", *more)
    assert code == 130
    assert more or "Interrupted after 2 steps; all is saved. The same command with --resume goes on." in out
    assert "Next: zoquant export" not in out
    assert "Next: zoquant export" in shell.text(*TRAIN, "--out", "run", "--resume")
    shell.text(*TRAIN, "--out", "whole")
    assert (folder / "run" / "delta.safetensors").read_bytes() == (folder / "whole" / "delta.safetensors").read_bytes()


def test_resume_on_the_command_line(shell: Shell, folder: Path) -> None:
    shell.text(*TRAIN, "--out", "run")
    assert "run: already exists and holds a run; nothing is overwritten. Go on with it by --resume" in shell.error(
        *TRAIN, "--out", "run"
    )
    once = json.loads(Path("run/summary.json").read_text())
    assert "run: this run is finished, all of its 4 steps are done." in shell.text(*TRAIN, "--out", "run", "--resume")
    again = shell.json(*TRAIN, "--out", "run", "--resume")
    assert again["steps"] == 4
    for name in ("step_seconds", "forward_seconds", "overhead"):
        assert again[name] == once[name]
        assert once[name] > 0


def test_a_run_stopped_before_its_first_step_has_no_times(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoquant.optim.optimizer.ZOSGD.step", stop)
    code, out, _ = call(*shell.tools, *TRAIN, "--out", "run")
    assert code == 130
    assert "none was done" in out
    assert "| step | none was done |" in Path("run/README.md").read_text()
    found = json.loads(Path("run/summary.json").read_text(), parse_constant=pytest.fail)
    assert found["steps"] == 0
    assert found["step_seconds"] is None
    shell.text("report", "run", "run", "--out", "page.html")


def test_resume_refuses_another_way_to_compute(shell: Shell, folder: Path) -> None:
    shell.text(*TRAIN, "--out", "run")
    other = "begun with activation_dtype float32, now it is bfloat16"
    assert other in shell.error(*TRAIN, "--out", "run", "--resume", "--activation-dtype", "bfloat16")
    settings = json.loads(Path("run/settings.json").read_text())
    assert [settings[name] for name in ("runtime", "activation_dtype")] == ["native", "float32"]
    chosen = ("--runtime", "native", "--activation-dtype", "float32")
    assert shell.json(*TRAIN, "--out", "run", "--resume", *chosen)["steps"] == 4
    Path("run/settings.json").write_text(json.dumps(settings | {"runtime": "vendor"}))
    assert "begun with runtime vendor, now it is native" in shell.error(*TRAIN, "--out", "run", "--resume")


def test_tables_for_people(shell: Shell, folder: Path) -> None:
    assert "HQQLinear" in shell.text("backends")
    seen = shell.text("inspect", "base.gguf")
    assert "llama" in seen
    assert "Q4_1" in seen
    trained = shell.text(*TRAIN, "--out", "run")
    assert "Next: zoquant export base.gguf" in trained
    assert "accuracy" in shell.text("eval", "base.gguf", *TASK)
    assert "Exported" in shell.text("export", "base.gguf", "--delta", "run/delta.safetensors", "--out", "tuned.gguf")
    assert "Replayed" in shell.text(
        "replay", "base.gguf", "run/trajectory.safetensors", "--out", "d.safetensors", "--steps", "2"
    )


def test_inspect_counts_without_loading(shell: Shell, folder: Path) -> None:
    found = shell.json("inspect", "base.gguf")
    assert found["format"] == "gguf"
    assert found["bytes"] == (folder / "base.gguf").stat().st_size
    assert found["trainable"] == found["views"]["scale float16"]["values"]
    assert found["views"]["scale float16"]["views"] == 2 * found["layers"]
    assert 0 < found["trainable_share"] < 0.1
    assert set(found["runtimes"]) == {"native", "vendor"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(shell: Shell, command: str) -> None:
    text = shell.text(command, "--help")
    assert "--json" in text
    assert len(text) > 300


def test_the_package_is_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zoquant", "backends", "--json"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("zoquant", run_name="__main__")
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["formats"]


def test_errors_are_one_line_and_json_when_asked(
    shell: Shell, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "no.gguf").write_bytes(b"hello")
    assert shell.error("inspect", "no.gguf").startswith("error: no.gguf: not a checkpoint that zoquant knows")
    assert "no such file" in shell.error("inspect", "missing.gguf")
    _, out, _ = call(capsys, monkeypatch, "inspect", "no.gguf", "--json")
    assert json.loads(out)["error"] == "CheckpointError"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--lr", "-1"), "lr is -1.0, expected at least 0"),
        (("--eps", "0"), "eps is 0.0, expected above 0"),
        (("--schedule", "wild"), "schedule is 'wild', expected one of constant, linear, cosine"),
        (("--role", "bias"), "roles is 'bias', expected one of scale, zero, codebook, dense, adapter"),
        (("--lr", "fast"), "lr is 'fast', expected a number"),
        (("--include", "nothing*"), "leave nothing of them. Keys are such as "),
        (("--compute-dtype", "int3"), "compute_dtype is 'int3', expected one of auto, float32, bfloat16, float16."),
        (("--runtime", "fast"), "runtime is 'fast', expected one of auto, native, vendor"),
        (("--data", "gone.csv"), "gone.csv: no such file or folder. Check the path."),
    ],
)
def test_bad_options_leave_no_folder(shell: Shell, folder: Path, change: tuple[str, str], message: str) -> None:
    assert message in shell.error(*TRAIN, "--out", "run", *change)
    assert not (folder / "run").exists()


def test_a_call_leaves_the_log_as_it_was(shell: Shell, folder: Path) -> None:
    """Two calls in one process, one of them an error, print each line once."""
    before = list(logging.getLogger("zoquant").handlers)
    shell.text("backends")
    shell.error("inspect", "nowhere.gguf")
    assert logging.getLogger("zoquant").handlers == before


def test_a_calibrated_run_takes_no_number(shell: Shell, folder: Path) -> None:
    shell.json(*FREE, "--out", "run")
    assert "was begun with lr not given, if_loss_rises halve, now it is lr 0.5, if_loss_rises keep" in shell.error(
        *FREE, "--out", "run", "--resume", "--lr", "0.5"
    )


def test_what_is_given_for_something_else_is_named(shell: Shell, folder: Path) -> None:
    shell.json(*TRAIN, "--out", "run")
    assert "run: is the folder of a run, and no checkpoint" in shell.error("inspect", "run")
    export = ("export", "base.gguf", "--out", "tuned.gguf", "--delta")
    assert "run/config.toml: is a .toml file, and no delta" in shell.error(*export, "run/config.toml")
    assert "expected a zoquant delta, got a trajectory" in shell.error(*export, "run/trajectory.safetensors")
    said = shell.error("export", "base.gguf", "--delta", "run", "--out", "nowhere/tuned.gguf")
    assert "the folder nowhere does not exist" in said


@pytest.mark.parametrize("more", [(), ("--rule", "momentum")], ids=["rows and columns", "calibrated"])
def test_the_config_of_a_run_says_what_it_chose(shell: Shell, folder: Path, more: tuple[str, ...]) -> None:
    """A rerun takes the numbers as they stand, and comes to the same bytes; the run itself may go on with them."""
    shell.json(*FREE, *more, "--out", "run")
    found = json.loads((folder / "run" / "calibration.json").read_text())
    chosen = Config.read(folder / "run" / "config.toml").settings
    assert (chosen.lr, chosen.eps, chosen.clip) == (found["lr"], found["eps"], found["clip"])
    expected = ("values", "two-point") if more else ("rows-columns", "group-relative")
    assert (chosen.subspace, chosen.estimator) == expected
    shell.json("train", "--config", "run/config.toml", "--out", "again")
    for name in ("delta.safetensors", "trajectory.safetensors", "config.toml"):
        assert (folder / "again" / name).read_bytes() == (folder / "run" / name).read_bytes()
    assert not (folder / "again" / "calibration.json").exists()
    assert shell.json("train", "--config", "run/config.toml", "--out", "run", "--resume")["steps"] == 4
    assert "was begun with lr not given, now it is 0.5" in shell.error(
        "train", "--config", "run/config.toml", "--lr", "0.5", "--out", "run", "--resume"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--lr", "-1"), "error: lr is -1.0, expected at least 0."),
        (("--decay", "400", "--lr", "0.1"), "lr is 0.1, expected at most 1 / decay = 0.0025"),
        (("--probes", "0"), "probes is 0, expected at least 1"),
        (("--estimator", "group-relative"), "probes is 1, expected at least 2"),
        (("--density", "2"), "density of the noise is 2.0"),
        (("--objective", "speed"), "objective is 'speed', expected one of loss, accuracy"),
        (("--objective", "f1"), "objective f1 scores generated texts"),
        (("--objective", "accuracy", "--gradient", "backward"), "gradient is backward, but the objective is a number"),
        (("--objective", "accuracy", "--subspace", "rows-columns"), "with objective accuracy does not tell the loss"),
        (("--reward", "echo 1", "--reward-timeout", "-1", "--objective", "reward"), "reward_timeout is -1.0"),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("zoquant.training.source.load", pytest.fail)
    assert said in shell.error(*FREE, "--out", "run", *more)
    assert not (folder / "run").exists()


def test_a_run_is_compared_before_the_model_is_loaded(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.json(*FREE, "--out", "run")
    monkeypatch.setattr("zoquant.training.source.load", pytest.fail)
    assert "was begun with batch_size 4, now it is 2" in shell.error(
        *FREE, "--batch-size", "2", "--out", "run", "--resume"
    )
    message = shell.error(*FREE, "--batch-size", "2", "--lr", "0.5", "--out", "run", "--resume")
    assert "was begun with batch_size 4, lr not given, if_loss_rises halve, now it is batch_size 2" in message
    assert ", lr 0.5, if_loss_rises keep" in message
    with (folder / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "eval_primary": "accuracy"}\n')
    assert "line 5: the evaluation is damaged: no metric stands there by the name of its primary, 'accuracy'" in (
        shell.error(*FREE, "--out", "run", "--resume")
    )
    assert "rows.jsonl/a/run: rows.jsonl is a file, so no folder can lie in it" in shell.error(
        *FREE, "--out", "rows.jsonl/a/run"
    )
    assert "gone: holds no run to resume" in shell.error(*FREE, "--out", "gone", "--resume")


def test_the_next_command_can_be_pasted(shell: Shell, folder: Path) -> None:
    (folder / "base.gguf").rename(folder / "my base.gguf")
    said = shell.text("train", "my base.gguf", *TRAIN[2:], "--out", "my run")
    assert "Next: zoquant export 'my base.gguf' --delta 'my run/delta.safetensors' --out tuned.gguf" in said


def test_a_pattern_that_matches_nothing_is_named(shell: Shell, folder: Path) -> None:
    patterns = ("--include", "model.layers.0.*", "--include", "model.layer.1.*", "--exclude", "*.up_project.*")
    _, _, err = call(*shell.tools, *TRAIN, "--out", "run", *patterns)
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2
    assert warned[0].startswith("warning: include model.layer.1.* matches no key of base.gguf, where keys are such as ")
    assert warned[1].startswith("warning: exclude *.up_project.* matches no key of base.gguf")


def test_the_help_of_train_has_parts(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 300)
    parts = shell.text("train", "--help").split("\n╭─ ")[1:]
    flags = {part.split(" ─")[0]: re.findall(r"^│ *(--[a-z-]+)", part, re.MULTILINE) for part in parts}
    assert list(flags)[2:] == list(PANELS)
    assert flags[MOST] == [
        "--data", "--eval-data", "--template", "--labels", "--steps", "--batch-size", "--lr", "--out", "--config",
        "--resume",
    ]  # fmt: skip
    assert max(map(len, flags.values())) <= 12
    assert {f"--{key.replace('_', '-')}" for key in keys()} - {"--model", "--roles"} <= set().union(*flags.values())


def test_a_warning_is_a_line_of_plain_words(shell: Shell, folder: Path) -> None:
    """Without the path, the class and the line of source that Python shows of one."""
    shell.json(*FREE, "--lr", "1e-9", "--eps", "0.03", "--out", "run")
    code, _, err = call(*shell.tools, "export", "base.gguf", "--delta", "run", "--out", "tuned.gguf", "--json")
    assert code == 0
    assert err.startswith("warning: tuned.gguf: no value differs from the base: all ")
    assert err.count("\n") == 1


def test_all_that_a_command_lacks_is_told_at_once(shell: Shell, folder: Path) -> None:
    assert shell.error("export") == "error: not given: base, --delta, --out. See `zoquant export --help`."
    assert shell.error("export", "base.gguf", "--delta", "run").startswith("error: not given: --out.")
    assert shell.error("report").startswith("error: not given: runs.")
    assert shell.error("bench") == "error: not given: model. Write e.g. model.gguf"
    assert shell.error("eval", "base.gguf").startswith("error: not given: data, template, labels. Write e.g. --data")
    assert "not given: model, data, template, labels, out. Write e.g. model.gguf --data" in shell.error("train")
    assert "No such option: --sead" in shell.error("inspect", "base.gguf", "--sead")
    assert "No such command 'trian'. Did you mean 'train'? See `zoquant --help`." in shell.error("trian")
    _, out, _ = call(*shell.tools, "export", "--json")
    assert json.loads(out)["message"].startswith("not given: base, --delta, --out.")


def test_replay_takes_the_folder_of_a_run_and_no_step_that_was_not_done(shell: Shell, folder: Path) -> None:
    shell.json(*TRAIN, "--out", "run")
    assert shell.json("replay", "base.gguf", "run", "--out", "again.safetensors")["steps"] == 4
    assert (folder / "again.safetensors").read_bytes() == (folder / "run" / "delta.safetensors").read_bytes()
    said = shell.error("replay", "base.gguf", "run", "--out", "more.safetensors", "--steps", "50")
    assert "--steps is 50, but run holds 4" in said
    said = shell.error("replay", "base.gguf", "rows.jsonl", "--out", "more.safetensors")
    assert "rows.jsonl: is a .jsonl file, and no trajectory: expected one such as trajectory.safetensors." in said
    assert not (folder / "more.safetensors").exists()


def test_inspect_lists_keys(shell: Shell, folder: Path) -> None:
    found = shell.json("inspect", "base.gguf", "--keys")["keys"]
    views = shell.json("inspect", "base.gguf")["views"]
    assert len(found) == sum(each["views"] for each in views.values())
    text = shell.text("inspect", "base.gguf", "--keys")
    assert all(f"{each['key']}  {each['role']} {each['dtype']}" in text for each in found)


def test_rows_are_checked_before_the_model_is_loaded(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoquant.training.source.load", pytest.fail)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    named = [{"sentence": row["sentence"], "verdict": row["label"]} for row in rows]
    Path("named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    asked = ("--template", TEMPLATE, "--labels", LABELS)
    for command in (("train", "base.gguf", "--out", "run"), ("eval", "base.gguf")):
        assert "--label-column" in shell.error(*command, "--data", "named.jsonl", *asked)


def test_doctor(shell: Shell) -> None:
    text = shell.text("doctor")
    assert "Checkpoint files" in text
    assert all(name in text for name in ("gguf", "transformers", "Libraries"))


def test_report(shell: Shell, folder: Path) -> None:
    shell.json(*TRAIN, "--eval-data", "rows.jsonl", "--out", "run")
    assert "Answers before and after" in (folder / "run" / "report.html").read_text(encoding="utf-8")
    found = shell.json("report", "run")
    assert found == {"report": "run/report.html", "bytes": (folder / "run" / "report.html").stat().st_size}
    assert "both.html" in shell.text("report", "run", "run", "--out", "both.html")
    assert "already exists" in shell.error("report", "run", "--out", "both.html")
    assert "holds no run" in shell.error("report", ".")
    assert "2 runs on one page need a name for it" in shell.error("report", "run", "run")


def test_the_size_of_an_exported_folder_is_that_of_its_files(shell: Shell, folder: Path) -> None:
    model = tiny_llama()
    save_folder(model, folder / "base", shards=2)
    zoquant.save_delta(folder / "zero.safetensors", zoquant.attach(model, roles=("dense",)))
    exported = shell.json("export", "base", "--delta", "zero.safetensors", "--out", "tuned")
    assert exported["bytes"] == sum(file.stat().st_size for file in (folder / "base").iterdir())
