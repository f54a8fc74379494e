"""Names on the Hub, with a hub that lies in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from zoquant.errors import CheckpointError
from zoquant.hub import delta_path, local_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record what is downloaded; the repository holds what `names` says."""
    calls: list[Any] = []

    def whole(repo: str, allow_patterns: Sequence[str]) -> str:
        calls.append(tuple(allow_patterns))
        return f"/cache/{repo}"

    def one(repo: str, name: str) -> str:
        calls.append(name)
        return f"/cache/{repo}/{name}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    return calls


def holds(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: list(names))


def test_paths_are_left_alone(tmp_path: Path) -> None:
    assert local_path(tmp_path) == tmp_path
    assert local_path("./a/b") == Path("a/b")
    assert local_path("a.gguf") == Path("a.gguf")


def test_a_folder_comes_without_code_and_without_pickles(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    holds(monkeypatch, "config.json", "model.safetensors", "pytorch_model.bin", "modeling_evil.py")
    assert local_path("who/what") == Path("/cache/who/what")
    assert "*.safetensors" in asked[0]
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked[0])


def test_pickles_only_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    holds(monkeypatch, "config.json", "pytorch_model.bin")
    local_path("who/what")
    assert "*.bin" in asked[0]


def test_all_shards_of_a_gguf_file(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    holds(monkeypatch, "m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "README.md")
    assert local_path("who/what").name == "m-00001-of-00002.gguf"
    assert asked == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


def test_several_checkpoints(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    holds(monkeypatch, "a.gguf", "b.gguf")
    with pytest.raises(CheckpointError, match=r"holds 2: a\.gguf, b\.gguf\. Name one: who/what/<file>"):
        local_path("who/what")
    assert local_path("who/what/b.gguf") == Path("/cache/who/what/b.gguf")
    assert asked == ["b.gguf"]


def test_a_delta_is_a_file_a_folder_or_a_name(tmp_path: Path, asked: list[Any]) -> None:
    """Of a repository that one file is downloaded, and nothing else."""
    file = tmp_path / "delta.safetensors"
    file.write_bytes(b"")
    assert delta_path(file) == delta_path(tmp_path) == file
    assert asked == []
    assert delta_path("who/what") == Path("/cache/who/what/delta.safetensors")
    assert delta_path("who/what/other.safetensors") == Path("/cache/who/what/other.safetensors")
    assert asked == ["delta.safetensors", "other.safetensors"]


@pytest.mark.parametrize("name", ["gone", "run/gone.safetensors", "./who/what", "/no/such/delta"])
def test_a_path_without_a_delta_asks_nobody(name: str, asked: list[Any]) -> None:
    with pytest.raises(CheckpointError, match="no such delta"):
        delta_path(name)
    assert asked == []


def test_a_repository_that_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, name: str) -> str:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=r"who/what: no such path here, and not to be had .* offline"):
        delta_path("who/what")
