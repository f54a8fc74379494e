"""Disks and folders that refuse: one clear error, what was saved stays, and the run goes on once there is room."""

import ast
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zoquant
from tests.faults.runs import files, job
from tests.folders import save_folder, tiny_llama
from tests.tiny import write_checkpoint
from zoquant import Trajectory, attach, load, save_delta
from zoquant.errors import WriteError
from zoquant.record.delta import read_delta
from zoquant.training import Progress, run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_full_disk_ends_the_run_and_it_goes_on_with_room(step: int, small_disk: Path, tmp_path: Path) -> None:
    run(job(tmp_path / "whole"))

    def fill(progress: Progress) -> None:
        if progress.step == step and progress.result is not None:
            with (small_disk / "filler").open("wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(bytes(4096))
                except OSError:
                    pass

    with pytest.raises(WriteError, match="No space left on device"):
        run(job(small_disk / "run"), on_progress=fill)
    assert len(Trajectory.load(small_disk / "run" / "trajectory.journal").steps) >= step
    assert not list((small_disk / "run").glob(".*.tmp"))
    (small_disk / "filler").unlink()
    run(job(small_disk / "run"), resume=True)
    assert files(small_disk / "run") == files(tmp_path / "whole")


def test_a_read_only_place_is_refused_at_once(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(WriteError, match="run: cannot be written: Read-only file system"):
        run(job(small_disk / "run"))


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    run(job(tmp_path / "run"))
    (tmp_path / "run" / ".delta.safetensors.12345.tmp").write_bytes(b"half")
    run(job(tmp_path / "run"), resume=True)
    assert not list((tmp_path / "run").glob(".*"))


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize("kind", ["gguf", "folder"])
@pytest.mark.parametrize("how", ["truncated", "rewritten"])
def test_a_checkpoint_that_changes_while_training_changes_nothing(kind: str, how: str, tmp_path: Path) -> None:
    """Nothing of the file is mapped once it is loaded, so that it may be cut to nothing."""
    path = write_checkpoint(tmp_path / "a.gguf") if kind == "gguf" else save_folder(tiny_llama(), tmp_path / "model")
    file = path if kind == "gguf" else path / "model.safetensors"
    model, _ = load(path, compute_dtype=torch.float32, device="cpu")
    assert str(file) not in mapped_files()
    ids = torch.arange(8).view(1, 8)
    views = attach(model, roles=("scale",) if kind == "gguf" else ("dense",), coupled=False)
    before = model(input_ids=ids).logits
    if how == "truncated":
        os.truncate(file, 0)
    else:
        file.write_bytes(os.urandom(file.stat().st_size))
    assert torch.equal(model(input_ids=ids).logits, before)
    optimizer = zoquant.ZOSGD(views, lr=1e-3)
    optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_a_delta_is_not_mapped_once_it_is_read(tmp_path: Path, model: torch.nn.Module) -> None:
    path = tmp_path / "delta.safetensors"
    save_delta(path, attach(model))
    found = read_delta(path)
    assert str(path) not in mapped_files()
    os.truncate(path, 0)
    assert all(bool(torch.isfinite(value).all()) for value in found.values.values())


def test_clock_jumps_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job(tmp_path / "steady"))
    jumps = iter([4e9, 0.0, 1.0, -5.0] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps) * 1e9))
    run(job(tmp_path / "jumping"))
    assert files(tmp_path / "steady") == files(tmp_path / "jumping")


def test_nothing_asks_for_the_time_of_day() -> None:
    """Durations are of the clock that only goes forward; the lock's date is for people."""
    asked: dict[str, list[str]] = {}
    for path in sorted(Path(zoquant.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns", "now", "utcnow", "st_mtime"):
                asked.setdefault(path.name, []).append(node.attr)
    assert asked == {"lock.py": ["now"]}


def test_a_folder_never_stands_without_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two would leave a folder that can neither be begun nor resumed."""

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoquant.training.run_folder.write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        run(job(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert os.listdir(tmp_path) == []
