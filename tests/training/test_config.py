"""Config files: what they say, what a run writes, that it reruns to the same bytes, and what a bad one is told."""

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.test_cli import Shell, folder, shell
from tests.tiny import LABELS, TEMPLATE, write_checkpoint
from zoquant.checkpoint.sha256 import checkpoint_sha256
from zoquant.errors import ConfigError, DataError
from zoquant.kernels.noise.definition import KINDS
from zoquant.tasks import TaskSettings
from zoquant.training import Config, RunFolder, Settings
from zoquant.training.config import ConfigFile, key_of, keys

__all__ = ["folder", "shell"]  # fixtures

ASKED = TaskSettings(template=TEMPLATE, labels={"0": "bad", "1": "good"})
LEAST = {"model": "m.gguf", "data": "d.jsonl", "template": TEMPLATE, "labels": {"0": "bad", "1": "good"}}
TEXT = st.text(st.characters(codec="utf-8"))
NUMBERS = st.floats(0, exclude_min=True, allow_infinity=False)
CONFIGS = st.builds(
    Config,
    model=TEXT,
    data=TEXT,
    asked=st.builds(
        TaskSettings,
        task=st.just("generation"),
        template=TEXT.map(lambda text: text.replace("{", "").replace("}", "") + "{label}"),
        labels=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
        label_column=st.none() | TEXT.map(lambda text: f"x{text}"),
        stop=TEXT,
        options=st.lists(TEXT, max_size=3).map(tuple),
    ),
    protocol=st.none() | st.just("mezo"),
    reward=st.none() | TEXT,
    eval_data=st.none() | TEXT,
    eval_every=st.none() | st.integers(0, 9),
    settings=st.builds(
        Settings,
        steps=st.integers(1, 10**9),
        lr=st.none() | NUMBERS,
        clip=st.none() | st.just(math.inf) | NUMBERS,
        noise=st.sampled_from(KINDS),
        coupled=st.booleans(),
        roles=st.just(("scale", "zero")),
        include=st.none() | st.lists(TEXT, max_size=2).map(tuple),
    ),
    sha256=st.dictionaries(st.sampled_from(["model", "data"]), TEXT),
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@given(CONFIGS)
def test_what_is_written_is_read_again(config: Config) -> None:
    with TemporaryDirectory() as home:
        said = {} if config.reward is None else {"reward": config.reward}
        assert Config.read(write(Path(home) / "config.toml", config.to_toml()), said) == config


def test_a_run_without_a_reward_says_nothing_of_one() -> None:
    assert "reward" not in Config.of(LEAST).to_toml().partition("\nmodel = ")[0]
    assert "reward" in Config.of({**LEAST, "reward": "echo 1"}).to_toml().partition("\nmodel = ")[0]


def test_every_setting_is_a_key_with_a_help_text() -> None:
    settings = [field.name for owner in (TaskSettings, Settings) for field in fields(owner)]
    assert set(settings) < set(keys())
    assert len(settings) == len(set(settings))
    assert all(key.help.endswith((".", "'")) for key in keys().values())


def test_every_key_is_a_flag(shell: Shell) -> None:
    text = shell.text("train", "--help")
    assert [name for name in keys() if f"--{name.replace('_', '-')}" not in text] == ["model", "roles"]
    assert "--role " in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", f'steps = 4\nlr = 1e-3\nclip = inf\nroles = ["scale", "zero"]\ndata = "d.csv"\nmodel = "m"\n'
                     f'template = {json.dumps(TEMPLATE)}\nlabels = {{ 0 = "bad", 1 = "good" }}\n'),
        ("run.yaml", f"steps: 4\nlr: 1e-3\nclip: .inf\nroles: [scale, zero]\ndata: d.csv\nmodel: m\n"
                     f"template: {json.dumps(TEMPLATE)}\nlabels: {{0: bad, 1: good}}\n"),
        ("run.yml", f"steps: 4\nlr: '1e-3'\nclip: inf\nroles:\n- scale\n- zero\ndata: d.csv\nmodel: m\n"
                    f"template: {json.dumps(TEMPLATE)}\nlabels: {json.dumps(LABELS)}\n"),
    ],
)  # fmt: skip
def test_toml_and_yaml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert Config.read(write(tmp_path / name, text)) == Config(
        model="m", data="d.csv", asked=ASKED,
        settings=Settings(steps=4, lr=1e-3, clip=math.inf, roles=("scale", "zero")),
    )  # fmt: skip


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "run.toml", Config.of({**LEAST, "lr": 0.5}, {"model": "a", "data": "b"}).to_toml())
    found = Config.read(file, {"lr": "auto", "data": "other.jsonl", "steps": 7})
    assert found.settings == Settings(steps=7)
    assert (found.data, found.sha256) == ("other.jsonl", {"model": "a"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "m"\n\nstepps = 3\n', "run.toml, line 3: 'stepps' is no key: did you mean 'steps'?"),
        ("zzzz = 3\n", "run.toml, line 1: 'zzzz' is no key: expected one of model, data"),
        ("steps = 4\nsteps = 5\n", "run.toml: not TOML: .*line 2"),
        ('lr = 0.1\nsteps = "many"\n', "run.toml, line 2: steps is 'many', expected a whole number"),
        ("steps = true\n", "line 1: steps is true, expected a whole number"),
        ('lr = "fast"\n', "line 1: lr is 'fast', expected a number"),
        ('coupled = "yes"\n', "line 1: coupled is 'yes', expected true or false"),
        ('noise = "gausian"\n', r"line 1: noise is 'gausian', expected one of .* Did you mean 'gaussian'\?"),
        ("roles = 1\n", "line 1: roles is 1, expected a list"),
        ('roles = "scale,zeros"\n', r"line 1: roles is 'zeros', expected one of .* Did you mean 'zero'\?"),
        ('protocol = "mezzo"\n', r"line 1: protocol is 'mezzo', expected one of mezo\. Did you mean 'mezo'\?"),
        ('roles = ["scales"]\n', r"line 1: roles is 'scales', expected one of .* Did you mean 'scale'\?"),
        ('labels = ["a"]\n', "line 1: labels is .*, expected a table"),
        ("labels = { 0 = 1, 1 = 2 }\n", "line 1: labels.0 is 1, expected text. Put it in quotes"),
        ('sha256 = "abc"\n', "line 1: sha256 is 'abc', expected a table"),
        ('[sha256]\nmodell = "abc"\n', "line 2: sha256.modell is no file of a run"),
        ('model = "m"\n', "not given: data, template, labels. Write e.g. --data rows.jsonl --template"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.read(write(tmp_path / "run.toml", text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "a: [1\nb: 2\n", "run.yaml: not YAML: .*line 2"),
        ("run.yaml", "- 1\n", "run.yaml: expected keys with values, got list"),
        ("run.yaml", "labels: {0: no, 1: yes}\n", "run.yaml, line 1: labels.0 is false, expected text"),
        ("run.yaml", "a: !!python/object/apply:os.system ['true']\n", "run.yaml: not YAML: could not determine a cons"),
        ("run.json", "{}", "run.json: expected a name that ends in .toml, .yaml or .yml"),
        ("gone.toml", None, "gone.toml: cannot be read"),
    ],
)
def test_a_bad_kind_of_file(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=message):
        Config.read(tmp_path / name)


def test_settings_check_their_ranges(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        Config.of({**LEAST, "steps": 0})
    with pytest.raises(ConfigError, match="did you mean 'eps'"):
        key_of("epss")


def test_text_that_no_file_can_hold() -> None:
    with pytest.raises(ConfigError, match="not valid text"):
        Config.of({**LEAST, "data": "\udc80.jsonl"}).to_toml()


def test_lines_are_found_however_keys_are_written(tmp_path: Path) -> None:
    text = 'a = 1\n"b c" = 2\ng = [\n  1,\n]\nt = """\nh = 3\n"""\nh = {i = 4}\n[ d ]\n# no\n  e= 3\n[d.a]\n1 = 5\n'
    file = ConfigFile.read(write(tmp_path / "a.toml", text))
    lines = {"a": 1, "b c": 2, "g": 3, "t": 6, "h": 9, "h.i": 9, "d": 10, "d.e": 12, "d.a": 13, "d.a.1": 14, "e": None}
    assert {key: file.line_of(key) for key in lines} == lines
    file = ConfigFile.read(
        write(
            tmp_path / "a.yaml", "a: {b: 1}\nlabels:\n  1: no\n  '2': yes\n1: x\n'b c': |\n  b: 1\nb: 2\n<<: {m: 1}\n"
        )
    )
    lines = {"a": 1, "a.b": 1, "labels": 2, "labels.1": 3, "labels.2": 4, "1": 5, "b c": 6, "b": 8, "m": 9, "c": None}
    assert {key: file.line_of(key) for key in lines} == lines


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("run.yaml", "labels:\n  7: bad\n  1: good\n7: x\n", 4),
        ("run.toml", 'template = """\n7 = {label}\n"""\n7 = "x"\n', 4),
        ("run.toml", 'model = "a"\n[sha256]\nmodel = "00"\n7 = "00"\n', 4),
    ],
)
def test_the_key_at_fault_is_the_one_on_the_line(tmp_path: Path, name: str, text: str, line: int) -> None:
    """Not one of the same name in a table or in a text."""
    with pytest.raises(ConfigError, match=rf"{name}, line {line}: .*7.* is no "):
        Config.read(write(tmp_path / name, text))


RUN = (
    "train", "base.gguf", "--data", "rows.jsonl", "--eval-data", "rows.jsonl", "--template", TEMPLATE,
    "--labels", LABELS, "--batch-size", "4", "--steps", "3", "--rule", "momentum", "--exclude", "*embed*",
)  # fmt: skip


@pytest.mark.parametrize("chosen", [(), ("--lr", "0.01", "--eps", "0.03", "--clip", "inf", "--probes", "2")])
def test_the_config_of_a_run_reruns_it_to_the_same_bytes(shell: Shell, folder: Path, chosen: tuple[str, ...]) -> None:
    shell.json(*RUN, *chosen, "--out", "run")
    shell.json("train", "--config", "run/config.toml", "--out", "again")
    for name in ("delta.safetensors", "trajectory.safetensors", "config.toml"):
        assert (folder / "run" / name).read_bytes() == (folder / "again" / name).read_bytes(), name
    first, again = RunFolder("run"), RunFolder("again")
    found = {name: value for name, value in (first.read_calibration() or {}).items() if name in ("lr", "eps", "clip")}
    assert first.read_settings() | found == again.read_settings()
    written = Config.read(folder / "run" / "config.toml")
    assert (written.device, written.runtime) == ("cpu", "native")
    assert written.compute_dtype in ("float32", "bfloat16")
    assert written.activation_dtype == "float32"
    assert written.sha256 == {
        "model": checkpoint_sha256(folder / "base.gguf"),
        "data": checkpoint_sha256(folder / "rows.jsonl"),
        "eval_data": checkpoint_sha256(folder / "rows.jsonl"),
    }
    assert shell.json("train", "--config", "run/config.toml", "--out", "run", "--resume")["steps"] == 3


def test_a_rerun_on_another_file_is_refused(shell: Shell, folder: Path) -> None:
    shell.json(*RUN, "--lr", "0.01", "--eps", "0.03", "--out", "run")
    shutil.copy(folder / "rows.jsonl", folder / "kept.jsonl")
    write(folder / "rows.jsonl", (folder / "rows.jsonl").read_text() + '{"sentence": "more", "label": "0"}\n')
    assert "data: rows.jsonl has sha256" in shell.error("train", "--config", "run/config.toml", "--out", "again")
    assert not (folder / "again").exists()
    given: dict[str, Any] = shell.json(
        "train", "--config", "run/config.toml", "--out", "again", "--data", "rows.jsonl", "--eval-data", "kept.jsonl"
    )
    assert given["steps"] == 3


@pytest.mark.parametrize("part", ["data", "eval_data"])
def test_a_run_does_not_go_on_with_other_rows(shell: Shell, folder: Path, part: str) -> None:
    for name in ("data", "eval_data"):
        shutil.copy(folder / "rows.jsonl", folder / f"{name}.jsonl")
    files = ("--data", "data.jsonl", "--eval-data", "eval_data.jsonl")
    run = (*RUN[:2], *files, *RUN[6:], "--lr", "0.01", "--eps", "0.03", "--out", "run")
    shell.json(*run)
    trained = (folder / "run" / "delta.safetensors").read_bytes()
    lines = (folder / f"{part}.jsonl").read_text().splitlines()
    write(folder / f"{part}.jsonl", "\n".join([*lines[1:], lines[0]]))
    said = shell.error(*run, "--resume")
    assert f"run: was begun with other rows: those of {part} had sha256 " in said
    assert f"Has {part}.jsonl changed? Bring the rows of the run back" in said
    assert (folder / "run" / "delta.safetensors").read_bytes() == trained
    write(folder / f"{part}.jsonl", "\n\n".join(lines))
    assert shell.json(*run, "--resume")["steps"] == 3


def test_a_config_file_on_the_command_line(shell: Shell, folder: Path) -> None:
    write(folder / "run.yaml", "model: base.gguf\ndata: rows.jsonl\nstep: 3\n")
    assert "run.yaml, line 3: 'step' is no key: did you mean 'steps'?" in shell.error(
        "train", "--config", "run.yaml", "--out", "run"
    )
    said = shell.error("train", "base.gguf", "--data", "rows.jsonl")
    assert "not given: template, labels, out. Write e.g. --template" in said
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: &a [x]\nb: *a\n", r"a\.yaml: not YAML: \*a is an alias; write the value out"),
        ("a.yaml", "a: " + "[" * 60_000, "nested too deep, expected at most 8"),
        ("a.toml", "a = " + "[" * 20_000 + "]" * 20_000, "nested too deep, expected at most 8"),
        ("a.toml", ".".join("a" * 9) + " = 1", "nested too deep, expected at most 8"),
        ("a.toml", "#" * (1 << 16) + "\n", "expected at most 65536 bytes"),
        ("a.toml", f"lr = {'1' * 5000}", "not TOML: .*digits"),
        ("a.toml", f"lr = {'1' * 4000}", "line 1: lr is 111.*, expected a number"),
        ("a.yaml", "lr: !!bool x", "not YAML: 'x'"),
        ("a.yaml", "lr: !!int ''", "not YAML: string index out of range"),
        ("a.yaml", "lr: !!timestamp x", "not YAML: .*group"),
        ("a.yaml", "lr: !!python/object/apply:os.system [id]", "not YAML: could not determine a constructor"),
        ("a.toml", 'reward = "touch evil"', "line 1: reward is 'touch evil': a file alone runs no command"),
    ],
)
def test_a_file_of_a_stranger_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.read(write(tmp_path / name, text))


def test_every_kind_of_task_is_in_the_config(shell: Shell, folder: Path) -> None:
    """A task that generates, with a reward from outside, reruns from its folder."""
    shell.json(
        "train", "base.gguf", "--data", "rows.jsonl", "--task", "generation", "--template", "{sentence}\\n{label}",
        "--max-new-tokens", "3", "--stop", "", "--objective", "reward", "--reward", "echo 0.5",
        "--eval-data", "rows.jsonl", "--steps", "2", "--batch-size", "2", "--lr", "0.1", "--eps", "0.1", "--out", "run",
    )  # fmt: skip
    written = Config.read(folder / "run" / "config.toml", {"reward": "echo 0.5"})
    assert written.asked == TaskSettings(task="generation", template="{sentence}\n{label}", max_new_tokens=3, stop="")
    assert (written.objective, written.reward, written.reward_timeout) == ("reward", "echo 0.5", 30.0)
    head = (folder / "run" / "config.toml").read_text(encoding="utf-8").splitlines()[2]
    assert head == "# Give its reward again, by --reward: a file alone runs no command, and sends nothing to a URL."
    assert "--out again`, and its reward again, by `--reward`" in (folder / "run" / "README.md").read_text("utf-8")
    refused = shell.error("train", "--config", "run/config.toml", "--out", "again")
    assert "reward is 'echo 0.5': a file alone runs no command" in refused
    assert not (folder / "again").exists()
    shell.json("train", "--config", "run/config.toml", "--reward", "echo 0.5", "--out", "again")
    for name in ("delta.safetensors", "settings.json", "samples.jsonl"):
        assert (folder / "run" / name).read_bytes() == (folder / "again" / name).read_bytes(), name
    shell.text("report", "run", "again", "--out", "report.html")
    assert "Samples before and after" in (folder / "report.html").read_text(encoding="utf-8")
    assert "samples.jsonl" in (folder / "run" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "batches"),
    [({}, "balanced"), ({"task": "sst2", "protocol": "mezo"}, "shuffled"), ({"batches": "shuffled"}, "shuffled"),
     ({"task": "sst2", "protocol": "mezo", "batches": "balanced"}, "balanced"),
     ({"task": "text", "template": None}, "shuffled")],
)  # fmt: skip
def test_which_batches_are_drawn(tmp_path: Path, given: dict[str, Any], batches: str) -> None:
    model = write_checkpoint(tmp_path / "tiny.gguf")
    config = Config.of({**LEAST, "model": str(model), **given})
    assert config.resolved().batches == batches
    assert f'batches = "{batches}"' in config.resolved().to_toml()


def test_batches_of_what_has_no_labels_are_not_balanced() -> None:
    with pytest.raises(DataError, match=r"batches is 'balanced', but task text has no labels\. Take shuffled"):
        Config.of({"model": "m", "data": "d", "task": "text", "batches": "balanced"})


def test_a_run_says_what_its_batches_are_drawn_of(shell: Shell, folder: Path) -> None:
    rows = "".join(f'{{"sentence": "s{n}", "label": "{int(n % 20 == 0)}"}}\n' for n in range(40))
    write(folder / "rows.jsonl", rows)
    said = " ".join(shell.text(*RUN, "--lr", "0.01", "--eps", "0.03", "--out", "run").split())
    assert "batches: balanced, an equal share of each label, whatever the rows hold (0 95.0%, 1 5.0%)." in said
    assert "| batches | balanced |" in (folder / "run" / "README.md").read_text("utf-8")
    said = shell.text(*RUN, "--lr", "0.01", "--eps", "0.03", "--out", "other", "--batches", "shuffled")
    assert "batches: shuffled rows as they are (0 95.0%, 1 5.0%)." in " ".join(said.split())
    assert json.loads((folder / "other" / "settings.json").read_text())["batches"] == "shuffled"
    assert (folder / "run" / "trajectory.safetensors").read_bytes() != (
        folder / "other" / "trajectory.safetensors"
    ).read_bytes()
