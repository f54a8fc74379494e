"""Files appear whole or not at all."""

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, NoReturn

import pytest
import torch

from tests.toy import toy_model, write_toy
from zoquant import attach, export, save_delta
from zoquant.errors import CheckpointError, OutputExistsError, WriteError
from zoquant.files.atomic_files import (
    load_tensors,
    refuse_existing,
    replacing,
    replacing_folder,
    save_tensors,
    temporary_path,
    write_text,
)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei, größer")
    assert path.read_text(encoding="utf-8") == "zwei, größer"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_threads_write_one_place(tmp_path: Path) -> None:
    """Each has a file of its own until it is whole, though both are of one process."""
    path, met = tmp_path / "a.txt", Barrier(2, timeout=60)

    def write(text: str) -> None:
        with replacing(path) as temporary:
            temporary.write_text(text)
            met.wait()
            assert temporary.read_text() == text

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, ["one" * 1000, "two" * 1000]))
    assert path.read_text() in ("one" * 1000, "two" * 1000)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_kill_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """A process of the same number, as the first one of every container is, must not meet it."""
    dead = [".a.txt.1.tmp", f".a.txt.{os.getpid()}.tmp", f".folder.{os.getpid()}.tmp"]
    for name in dead:
        (tmp_path / name).mkdir()
    write_text(tmp_path / "a.txt", "text")
    with replacing_folder(tmp_path / "folder") as folder:
        write_text(folder / "b.txt", "text")
    assert sorted(os.listdir(tmp_path)) == sorted([*dead, "a.txt", "folder"])


def test_names_of_temporary_files_are_never_the_same(tmp_path: Path) -> None:
    names = {temporary_path(tmp_path / "a.txt").name for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.startswith(".a.txt.") and name.endswith(".tmp") for name in names)


def test_an_error_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("nowhere/a.txt", "No such file or directory"), ("file/a.txt", "Not a directory"), ("folder", "Is a directory")],
)
def test_places_that_cannot_be_written(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    with pytest.raises(WriteError) as caught:
        write_text(path, "text")
    assert str(caught.value) == (
        f"{path}: cannot be written: {reason}. Whatever stood there is unchanged; free some space or choose another "
        "folder."
    )
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(WriteError, match=r"pipe: is a device or a pipe, expected a place for a file\. Choose another"):
        write_text(pipe, "text")
    assert pipe.is_fifo()


def test_a_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="File name too long"):
        write_text(tmp_path / ("a" * 255), "text")


def test_a_full_disk(tiny_disk: Path) -> None:
    path = tiny_disk / "a.txt"
    write_text(path, "old")
    with pytest.raises(WriteError, match=r"a\.txt: cannot be written: No space left on device"):
        write_text(path, "new" * 100_000)
    assert path.read_text() == "old"
    assert os.listdir(tiny_disk) == ["a.txt"]


def test_a_full_disk_for_delta_and_export(tiny_disk: Path, tmp_path: Path, toy_format: object) -> None:
    big = toy_model(layers=1, rows=256)
    base, delta = write_toy(tmp_path / "base.toy", big), tmp_path / "delta.safetensors"
    views = attach(big)
    views.add(1, 0.1, "rademacher")
    save_delta(delta, views)
    for act in (
        lambda: save_delta(tiny_disk / "delta.safetensors", views),
        lambda: export(base, delta=delta, out=tiny_disk / "out.toy"),
    ):
        with pytest.raises(WriteError, match="No space left on device"):
            act()
        assert os.listdir(tiny_disk) == []


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failing_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(WriteError) as caught:
        write_text(path, "new")
    monkeypatch.undo()
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nothing_is_overwritten_by_accident(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "free")
    with pytest.raises(OutputExistsError) as caught:
        refuse_existing(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: already exists; nothing is overwritten. Choose another name or remove it."
    )


def test_tensors_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors, metadata = {"b": torch.ones(2), "a": torch.zeros(3)}, {"kind": "delta", "x": {"z": 1, "ä": [2]}}
    save_tensors(path, tensors, metadata)
    got, told = load_tensors(path, "delta")
    assert told == metadata
    assert sorted(got) == ["a", "b"]
    first = path.read_bytes()
    save_tensors(path, dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert path.read_bytes() == first


@pytest.mark.parametrize("text", ["[1]", "5", "{", '{"kind":"other"}', "{}"])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.ones(1)}, {"zoquant": text}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: "):
        load_tensors(path, "delta")
