"""Files of strangers: nothing runs, nothing elsewhere is read or copied, and nothing small takes much memory."""

import io
import json
import logging
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.folders import CONFIG, save_folder, tiny_llama
from tests.report.runs import make_run
from zoquant import Trajectory, export
from zoquant.checkpoint.folder import open_folder
from zoquant.checkpoint.folder.model import empty_model, trusted
from zoquant.checkpoint.stored_files import files_of
from zoquant.cli.show import PrintableFormatter, harmless, printable, show_error, show_pairs, show_rows
from zoquant.errors import CheckpointError, DataError, ValueRangeError
from zoquant.files.archive import read_archive
from zoquant.files.plain_json import MAX_VALUES, parse_json
from zoquant.files.safe_paths import refuse_stray
from zoquant.files.safetensors import read_safetensors
from zoquant.record.delta import read_delta
from zoquant.record.group import Group
from zoquant.record.journal import encode_header, read_journal
from zoquant.record.step import Step
from zoquant.registry import format_of
from zoquant.tasks.rows import read_rows
from zoquant.training import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_folder(tiny_llama(), tmp_path / "model")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.json"
    path.write_text('{"token": "secret"}')
    return path


def changed(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **values}))
    return folder


# Places


def test_a_link_out_of_the_folder_is_never_copied(folder: Path, secret: Path, tmp_path: Path) -> None:
    (folder / "extra.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"extra\.json: expected a file of this folder, got a link to .*secret"):
        files_of(folder, format_of(folder))
    delta = tmp_path / "delta.safetensors"
    from zoquant.record.delta import Delta

    Delta({}, {}, "relative").save(delta)
    with pytest.raises(CheckpointError, match="got a link"):
        export(folder, delta=delta, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_never_read(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="got a link to"):
        open_folder(folder)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot = save_folder(tiny_llama(), tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert open_folder(snapshot).tensors
    (tmp_path / "secret").write_text("secret")
    (blobs / "leak").symlink_to(tmp_path / "secret")
    (snapshot / "leak.txt").symlink_to("../../blobs/leak")
    with pytest.raises(CheckpointError, match="got a link"):
        files_of(snapshot, format_of(snapshot))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_pipe_does_not_hang(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="expected a file, got a folder, a pipe or a device"):
        files_of(folder, format_of(folder)) if name == "tokenizer_config.json" else open_folder(folder)


def test_links_in_a_circle_and_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("nowhere")
    for name in "abc":
        with pytest.raises(CheckpointError, match="leads nowhere"):
            refuse_stray(tmp_path, tmp_path / name)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/b.safetensors", "..", "a\x1b[31m", "x" * 300])
def test_names_of_shards_stay_in_the_folder(name: str, folder: Path, secret: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"w": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="expected the name of a file in this folder"):
        open_folder(folder)


# Sizes


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" + "[]," * (MAX_VALUES // 2) + "[]]"])
def test_json_bombs(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"too deep|values, expected at most"):
        parse_json(text)
    raw = text.encode()
    (tmp_path / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(CheckpointError, match="'header': expected a JSON object"):
        read_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 61, 1 << 61], "data_offsets": [0, 1 << 61]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [(1 << 64) - 4, 1 << 64]},
        {"dtype": "F32", "shape": [1] * 64, "data_offsets": [0, 4]},
    ],
)
def test_offsets_that_overflow(entry: dict[str, Any], tmp_path: Path) -> None:
    raw = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    with pytest.raises(CheckpointError, match="'a': expected"):
        read_safetensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "num_experts"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_config_of_a_billion_layers(name: str, nested: bool, folder: Path) -> None:
    said = {"text_config": {name: 10**9}} if nested else {name: 10**9}
    with pytest.raises(CheckpointError, match=f"'{name}': expected at most"):
        empty_model(open_folder(changed(folder, **said)))


def test_probes_without_number(tmp_path: Path) -> None:
    for header in ({"probes": 1 << 60}, {"probes": True}, {"probes": 2, "seeds": 3}, {}, {"probes": "2"}):
        (tmp_path / "t").write_bytes(encode_header(header))
        with pytest.raises(CheckpointError, match="probes"):
            read_journal(tmp_path / "t")


def test_sparse_files_of_great_length_are_not_read(tmp_path: Path) -> None:
    for name, read in (
        ("t.journal", read_journal), ("rows.jsonl", read_rows), ("calibration.json", lambda p: RunFolder(p.parent)
            .read_calibration()), ("metrics.jsonl", lambda p: RunFolder(p.parent).read_metrics()),
    ):  # fmt: skip
        path = tmp_path / name
        path.touch()
        os.truncate(path, 1 << 42)
        with pytest.raises((CheckpointError, DataError)):
            read(path)
        path.unlink()


# Code


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def archive(path: Path, payload: bytes) -> Path:
    torch.save({"a": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name, payload if name.endswith("data.pkl") else data)
    return path


def test_no_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "qmodel.pt", pickle.dumps({"a": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match="Nothing of it was run"):
        read_archive(path)
    for read in (read_delta, Trajectory.load):
        with pytest.raises(CheckpointError):
            read(path)
    assert not (tmp_path / "evil").exists()


def test_lists_that_multiply_or_hold_themselves(tmp_path: Path) -> None:
    doubled: list[Any] = []
    for _ in range(60):
        doubled = [doubled, doubled]
    circle: list[Any] = []
    circle.append(circle)
    for value in (doubled, circle, [{"a": 1}]):
        target = io.BytesIO()
        pickle.dump({"nbits": value}, target, protocol=2)
        with pytest.raises(CheckpointError, match="lists without an end, or dicts in lists"):
            read_archive(archive(tmp_path / "qmodel.pt", target.getvalue()))


def test_a_config_chooses_no_code() -> None:
    hostile = {
        "hidden_size": 8, "attn_implementation": "stranger/kernel", "_attn_implementation": "stranger/kernel",
        "auto_map": {"AutoModel": "stranger/code--m.M"}, "trust_remote_code": True, "use_kernels": True,
        "text_config": {"experts_implementation": "stranger/kernel", "num_layers": 2, "_name_or_path": "x"},
        "vision_config": {"model_type": "clip_vision_model", "auto_map": {"AutoModel": "stranger/code--m.M"}},
    }  # fmt: skip
    assert trusted(hostile) == {
        "hidden_size": 8, "text_config": {"num_layers": 2}, "vision_config": {"model_type": "clip_vision_model"},
    }  # fmt: skip


# Numbers and text


def test_a_step_longer_than_float32_holds(tmp_path: Path) -> None:
    Trajectory((Group({"a.d": "00"}),), steps=[Step((1,), (1e300,), (1e300,))]).save(tmp_path / "t.safetensors")
    with pytest.raises(ValueRangeError, match="step 0 moves by 1e\\+300 times 1e\\+300, expected at most 1e\\+12"):
        Trajectory.load(tmp_path / "t.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_in_a_journal(bad: float, tmp_path: Path) -> None:
    run = Trajectory((Group({"a.d": "00"}),), steps=[Step((1,), (bad,), (1e-3,))])
    run.journal(tmp_path / "t", 1).close()
    with pytest.raises(ValueRangeError, match=r"step 0 moves by 0\.001 times .*, expected finite numbers"):
        Trajectory.load(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "\\ud800"}\n', "line 1: holds half a character"), ("[" * 100_000, "line 1: not JSON"),
        ('{"\\udfff": 1}\n', "line 1: holds half a character"), ('{"a": 1}\n{', "line 2: not JSON"),
    ],
)  # fmt: skip
def test_rows_of_strangers(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_lines_end_where_jsonl_says(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl") == [{"a": "one\u2028two\x85three"}]


def test_a_field_of_a_table_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a\n"' + "x" * 200_000)
    with pytest.raises(DataError, match=r"rows\.csv, the row from line 2 on: unexpected end of data\. Mend its quotes"):
        read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize("line", ["7", "[]", '{"step": "1"}', '{"loss": 1}', "\x00\x00"])
def test_metrics_damaged_in_the_middle_and_at_the_end(line: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 1}\n' + line + "\n")
    assert folder.read_metrics() == [{"step": 1}]
    folder.metrics.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: is damaged"):
        folder.read_metrics()


@pytest.mark.parametrize(
    "found", [{"lr": "1", "eps": 1.0}, {"lr": 1.0, "eps": 0}, {"lr": 1.0}, {"lr": 1.0, "eps": 1.0, "clip": -1}, []]
)
def test_a_calibration_of_strangers(found: Any, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        RunFolder(tmp_path).read_calibration()


# What a person sees

EVIL = "a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egnp.exe[bold red]"


def test_names_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(EVIL)
    show_pairs(EVIL, {EVIL: EVIL})
    show_rows(EVIL, ["column"], [[EVIL]])
    seen = "".join(capsys.readouterr())
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(seen)
    assert "[bold red]" in seen.replace("\n", "")
    assert printable("zwei, größer\nline 字") == "zwei, größer\nline 字"
    assert harmless("[b]") == "\\[b]"


def test_the_log_moves_no_cursor() -> None:
    record = logging.LogRecord("zoquant", logging.INFO, "", 0, "%s", (EVIL,), None)
    assert "\x1b" not in PrintableFormatter().format(record)


def test_a_name_of_a_tensor_in_an_error_is_quoted(tmp_path: Path) -> None:
    save_file({EVIL: torch.ones(1)}, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data + b"x")
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(tmp_path / "a.safetensors")
    assert "\x1b" not in str(caught.value)


def test_found_an_interval_that_is_no_pair(tmp_path: Path) -> None:
    line = {"step": 1, "eval_primary": "a", "eval_examples": 4, "eval_a": 0.5, "eval_a_interval": ""}
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(json.dumps(line) + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1: the evaluation is damaged: string index"):
        folder.evaluations()


def changed_metrics(path: Path, line: int, changes: dict[str, Any]) -> RunFolder:
    """Return a run's folder with changes in a line of its metrics; None takes a field away."""
    folder = make_run(path, steps=4)
    lines = [json.loads(text) for text in folder.metrics.read_text().splitlines()]
    whole = lines[line - 1] | changes
    lines[line - 1] = {name: value for name, value in whole.items() if value is not None or name.endswith("interval")}
    folder.metrics.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


@pytest.mark.parametrize("value", [None, "x", math.nan, math.inf, 10**400, [1], True])
@pytest.mark.parametrize("name", ["loss", "derivative", "seconds", "overhead"])
def test_metrics_of_a_step_that_are_no_numbers(name: str, value: Any, tmp_path: Path) -> None:
    folder = changed_metrics(tmp_path / "run", 3, {name: value})
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl, line 3: {name} is .*, expected a number"):
        folder.read_metrics()


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_primary": "other"}, {"eval_primary": ["loss"]}, {"eval_examples": None}, {"eval_examples": "4"},
        {"eval_accuracy": None}, {"eval_accuracy": "0.5"}, {"eval_accuracy": math.nan}, {"eval_accuracy": 10**400},
        {"eval_loss_interval": ["a", "b"]}, {"eval_loss_interval": 3},
    ],
)  # fmt: skip
def test_metrics_of_an_evaluation_that_are_no_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = changed_metrics(tmp_path / "run", 1, changes)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1: the evaluation is damaged"):
        folder.evaluations()


def test_a_step_of_too_many_digits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 1: step is 1000.*, expected a number"):
        changed_metrics(tmp_path / "run", 1, {"step": 10**400}).read_metrics()
