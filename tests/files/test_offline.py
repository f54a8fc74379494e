"""With local files nothing asks for a connection: from the first measurement to the exported checkpoint."""

import socket
from pathlib import Path
from typing import Any

import pytest

import zoquant
from tests.cli.test_cli import Shell, folder, shell
from tests.folders import save_folder, tiny_llama
from tests.tiny import LABELS, TEMPLATE

__all__ = ["folder", "shell"]  # fixtures

TASK = ("--data", "rows.jsonl", "--template", TEMPLATE, "--labels", LABELS)
STEPS = ("--steps", "2", "--batch-size", "4", "--lr", "0.01", "--eps", "0.03")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the network, which is out of reach."""
    seen: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        seen.append(arguments)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return seen


def test_the_whole_way(shell: Shell, folder: Path, asked: list[Any]) -> None:
    shell.json("eval", "base.gguf", *TASK)
    shell.json("train", "base.gguf", *TASK, "--eval-data", "rows.jsonl", *STEPS, "--out", "run")
    shell.text("report", "run")
    shell.text("replay", "base.gguf", "run/trajectory.safetensors", "--out", "again.safetensors")
    shell.text("export", "base.gguf", "--delta", "run", "--out", "tuned.gguf")
    shell.json("train", "--config", "run/config.toml", "--out", "again")
    zoquant.load("tuned.gguf")
    zoquant.load("base.gguf", delta="run")
    assert asked == []


def test_a_folder_of_safetensors(tmp_path: Path, asked: list[Any]) -> None:
    path = save_folder(tiny_llama(), tmp_path / "llama")
    model, _ = zoquant.load(path)
    zoquant.save_delta(tmp_path / "delta.safetensors", zoquant.attach(model, roles=("dense",)))
    zoquant.export(path, delta=tmp_path / "delta.safetensors", out=tmp_path / "tuned")
    assert asked == []


def test_the_hub_is_asked_for_what_is_named_on_it(shell: Shell, folder: Path, asked: list[Any]) -> None:
    """A name that is no path here is looked for there: the guard of the other tests sees that."""
    assert "who/what: no such path here" in shell.error("eval", "who/what", *TASK)
    assert asked
