"""`zoquant train` under torchrun: the bytes of one process, also after kills; and the small pieces that make it so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoquant
from tests.distributed.processes import on_ranks
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint, write_rows
from zoquant.distributed import launch
from zoquant.tasks import Classification, TaskSettings, Template
from zoquant.tasks.template import parse_words
from zoquant.training import Config, Job, RunFolder, Settings, finetune, run

SETTINGS = Settings(steps=6, batch_size=4, micro_batches=2, eps=1e-2)  # lr and clip are calibrated
SECONDS = 900

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    write_checkpoint(folder / "model.gguf")
    write_rows(folder / "rows.jsonl")
    task, rows = TaskSettings(template=TEMPLATE, labels=parse_words(LABELS)), str(folder / "rows.jsonl")
    config = Config(
        str(folder / "model.gguf"), rows, task, rows, compute_dtype="float32", device="cpu", settings=SETTINGS
    )
    finetune(config, folder / "alone")
    return folder


def torchrun(folder: Path, out: Path, ranks: int, restarts: int, **environment: str) -> Done:
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node={ranks} --max-restarts={restarts}".split()
    options = {
        "--data": folder / "rows.jsonl", "--eval-data": folder / "rows.jsonl", "--template": TEMPLATE,
        "--labels": LABELS, "--out": out, "--steps": SETTINGS.steps, "--batch-size": SETTINGS.batch_size,
        "--eps": SETTINGS.eps, "--micro-batches": SETTINGS.micro_batches, "--compute-dtype": "float32",
        "--device": "cpu",
    }  # fmt: skip
    command = ["-m", "tests.distributed.command", "train", str(folder / "model.gguf")]
    chosen = [str(part) for pair in options.items() for part in pair]
    return subprocess.run(
        [sys.executable, *launcher, *command, *chosen], capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def files(folder: Path) -> tuple[bytes, ...]:
    return tuple((folder / f"{name}.safetensors").read_bytes() for name in ("delta", "trajectory"))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "killed"), [(2, None), (4, None), (2, 1), (2, 0), (4, 3)])
def test_a_run_under_torchrun_has_the_bytes_of_one_process(
    folder: Path, ranks: int, killed: int | None, tmp_path: Path
) -> None:
    alone, out = folder / "alone", tmp_path / "run"
    environment, expected = {}, json.loads((alone / "summary.json").read_text())
    if killed is not None:  # in the third step; rank 0 alone calibrates, and all audit the first step
        call = {2: 6, 4: 4}[ranks] if killed else expected["calibration"]["forwards"] + 5
        environment = {"ZOQUANT_DIE": f"{killed}:{call}"}
    done = torchrun(folder, out, ranks, restarts=len(environment), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ("exitcode: -9" in done.stderr) == (killed is not None), done.stderr[-3000:]
    assert files(out) == files(alone)
    found = json.loads((out / "summary.json").read_text())
    for name in ("eval_before", "eval_after", "calibration", "steps"):
        assert found[name] == expected[name]
    assert done.stdout.count("held-out after") == 1
    assert not (out / "trajectory.journal").exists()


@pytest.mark.slow
def test_a_taken_folder_is_refused_under_torchrun(folder: Path) -> None:
    before = files(folder / "alone")
    done = torchrun(folder, folder / "alone", 2, restarts=0)
    assert done.returncode != 0
    assert "already exists" in done.stderr + done.stdout
    assert files(folder / "alone") == before


def run_on_rank(rank: int, checkpoint: str, out: str) -> bool:
    names = {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    os.environ.update(names)
    return run(job_of(checkpoint, launch.folder_of_rank(out))).finished


def job_of(checkpoint: str, out: Path) -> Job:
    model, tokenizer = zoquant.load(checkpoint, compute_dtype=torch.float32)
    examples = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
    settings = Settings(steps=3, batch_size=4, eps=1e-2)  # two losses a step
    return Job(model, examples, examples if launch.is_first() else None, settings, RunFolder(out), {})


def test_the_loop_of_three_ranks_of_which_one_is_idle_has_the_bytes_of_one(tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "model.gguf"))
    run(job_of(checkpoint, tmp_path / "alone"))
    assert on_ranks(3, run_on_rank, checkpoint, str(tmp_path / "ranks")) == [True] * 3
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["alone", "model.gguf", "ranks"]


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of rank 0 of two."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    return monkeypatch


def test_without_a_launcher_nothing_is_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launch.is_first()
    assert launch.folder_of_rank(tmp_path) == tmp_path
    assert launch.goes_on(True, tmp_path / "missing")
    assert not launch.goes_on(False, tmp_path)
    assert launch.from_first({"a": 1}) == {"a": 1}


def test_rank_0_writes_to_the_folder_and_the_others_elsewhere(tmp_path: Path, ranked: pytest.MonkeyPatch) -> None:
    assert launch.is_first()
    assert launch.folder_of_rank(tmp_path / "run") == tmp_path / "run"
    ranked.setenv("RANK", "1")
    assert not launch.is_first()
    other = launch.folder_of_rank(tmp_path / "run")
    assert not other.exists()
    assert tmp_path not in other.parents


def test_a_restarted_run_goes_on_with_what_is_there(tmp_path: Path, ranked: pytest.MonkeyPatch) -> None:
    assert not launch.goes_on(False, tmp_path)
    assert launch.goes_on(True, tmp_path)
    assert not launch.goes_on(True, tmp_path / "missing")
    ranked.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch.goes_on(False, tmp_path)
    assert not launch.goes_on(False, tmp_path / "missing")
    ranked.setenv("RANK", "1")
    assert not launch.goes_on(True, tmp_path)
