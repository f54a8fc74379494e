"""Names on the Hub, with a hub that lies in a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from zoquant.errors import CheckpointError
from zoquant.files.hub import delta_path, local_path


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


def test_an_adapter_is_a_folder(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    holds(monkeypatch, "README.md", "adapter_config.json", "adapter_model.safetensors")
    assert local_path("who/adapter") == Path("/cache/who/adapter")
    assert "*.safetensors" in asked[0]


def test_files_in_folders_of_a_repository(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    shards = ["Q6_K/m-00001-of-00002.gguf", "Q6_K/m-00002-of-00002.gguf"]
    holds(monkeypatch, "Q4_0/m.gguf", *shards)
    assert local_path(f"who/what/{shards[0]}") == Path("/cache/who/what") / shards[0]
    assert delta_path("who/what/run/1/delta.safetensors") == Path("/cache/who/what/run/1/delta.safetensors")
    assert asked == [*shards, "run/1/delta.safetensors"]
    assert local_path("who/../what/m.gguf") == Path("who/../what/m.gguf")


@pytest.mark.parametrize("files", [["config.json", "model.safetensors"], ["sub/m.gguf"]], ids=["folder", "file"])
def test_what_is_cached_loads_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Sequence[str]
) -> None:
    """A cache as the Hub's library lays it out; there is no Hub."""
    snapshot = tmp_path / "models--who--what" / "snapshots" / ("0" * 40)
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"")
    (tmp_path / "models--who--what" / "refs").mkdir()
    (tmp_path / "models--who--what" / "refs" / "main").write_text("0" * 40)

    def refuse(repo: str) -> list[str]:
        raise OSError("offline")

    def cached(call: Callable[..., str]) -> Callable[..., str]:
        return lambda *what, **how: call(*what, **{**how, "cache_dir": tmp_path, "local_files_only": True})

    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, cached(getattr(huggingface_hub, name)))
    assert local_path("who/what") == (snapshot if len(files) > 1 else snapshot / files[0])
    with pytest.raises(CheckpointError, match=r"who/other: no such path here, .* offline"):
        local_path("who/other")


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
