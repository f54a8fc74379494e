"""Checkpoints and deltas by name from the Hugging Face Hub: only files that hold tensors or text, never code."""

import re
from pathlib import Path

from zoquant.errors import CheckpointError

_FOLDER = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "qmodel.pt")
_CONFIGS = frozenset({"config.json", "adapter_config.json"})
_TENSORS = (".safetensors", ".bin", ".pt")
_PICKLED = ("*.bin",)
_DELTA = "delta.safetensors"
_TEXTS = (".toml", ".yaml", ".yml", ".json", ".jsonl", ".csv", ".md")
"""Endings of files that are no delta, whatever they hold."""
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def local_path(path_or_repo: str | Path) -> Path:
    """Return a path on this machine, downloading from the Hub what does not exist here.

    Args:
        path_or_repo: a path, `owner/name`, or `owner/name/file`, where the file may lie in a folder.

    Raises:
        CheckpointError: neither a path nor a name on the Hub, or the repository holds several checkpoints.
    """
    path = Path(path_or_repo).expanduser()
    repo, file = _split(path_or_repo)
    return path if path.exists() or repo is None else _download(repo, file)


def delta_path(path_or_repo: str | Path) -> Path:
    """Return the path of a delta file on this machine, downloading that one file from the Hub if need be.

    Args:
        path_or_repo: the file, the folder of a run that holds one, `owner/name`, or `owner/name/file`.

    Raises:
        CheckpointError: neither a path nor a name on the Hub, or no delta lies there.
    """
    path = Path(path_or_repo).expanduser()
    repo, file = _split(path_or_repo)
    if not path.exists() and repo is not None and (file is not None or path.suffix != ".safetensors"):
        return _delta_from(repo, file or _DELTA)
    found = path / _DELTA if path.is_dir() else path
    if not found.is_file():
        raise CheckpointError(f"{found}: no such delta. Pass a delta file, the folder of a run, or owner/name.")
    refuse_text(found, "delta", _DELTA)
    return found


def refuse_text(path: Path, what: str, such_as: str) -> None:
    """Refuse a file whose name says that it is text, where one of tensors is expected.

    Raises:
        CheckpointError: the name ends so.
    """
    if path.suffix in _TEXTS:
        raise CheckpointError(f"{path}: is a {path.suffix} file, and no {what}: expected one such as {such_as}.")


def _delta_from(repo: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # of its HTTP library too, which is another one from version to version
        raise _not_there(repo, error) from error


def _split(path_or_repo: str | Path) -> tuple[str | None, str | None]:
    """Return repository and file that a name stands for on the Hub, None where it can only be a path."""
    parts = str(path_or_repo).split("/")
    if len(parts) < 2 or not all(parts) or {".", "..", "~"} & {*parts}:
        return None, None
    return "/".join(parts[:2]), "/".join(parts[2:]) or None


def _not_there(repo: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{repo}: no such path here, and not to be had from the Hugging Face Hub: {error}. Check the name."
    )


def _download(repo: str, file: str | None) -> Path:
    try:
        names = _names(repo)
        if file is None and not _CONFIGS.isdisjoint(names) and any(name.endswith(_TENSORS) for name in names):
            return _folder(repo, names)
        return _gguf(repo, names, file)
    except CheckpointError:
        raise
    except Exception as error:
        raise _not_there(repo, error) from error


def _names(repo: str) -> list[str]:
    """Return the files of a repository; those that lie in the cache where the Hub cannot be asked."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list(list_repo_files(repo))
    except Exception:
        try:
            cached = Path(snapshot_download(repo, local_files_only=True))
        except Exception:
            cached = None  # why there is no listing says more than that nothing is cached
        if cached is None:
            raise
        return sorted(file.relative_to(cached).as_posix() for file in cached.rglob("*") if file.is_file())


def _folder(repo: str, names: list[str]) -> Path:
    """Download a folder: safetensors where there are any, else the files of torch.save."""
    from huggingface_hub import snapshot_download

    pickled = () if any(name.endswith(".safetensors") for name in names) else _PICKLED
    return Path(snapshot_download(repo, allow_patterns=[*_FOLDER, *pickled]))


def _gguf(repo: str, names: list[str], file: str | None) -> Path:
    """Download one GGUF file, with its other shards."""
    from huggingface_hub import hf_hub_download

    chosen = [file] if file else [name for name in names if name.endswith(".gguf")]
    wholes = {_SHARD.sub("", name) for name in chosen}
    if len(wholes) != 1:
        raise CheckpointError(
            f"{repo}: expected one checkpoint, the repository holds {len(wholes)}: {', '.join(chosen) or 'none'}. "
            f"Name one: {repo}/<file>."
        )
    whole = wholes.pop()
    shards = sorted(name for name in names if _SHARD.sub("", name) == whole) if _SHARD.search(chosen[0]) else chosen
    paths = [Path(hf_hub_download(repo, name)) for name in shards]
    return paths[0]
