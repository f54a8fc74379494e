"""Checkpoints by name from the Hugging Face Hub: only files that hold tensors or text, never code."""

import re
from pathlib import Path

from zoquant.errors import CheckpointError

_FOLDER = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "qmodel.pt")
_TENSORS = (".safetensors", ".bin", ".pt")
_PICKLED = ("*.bin",)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def local_path(path_or_repo: str | Path) -> Path:
    """Return a path on this machine, downloading from the Hub what does not exist here.

    Args:
        path_or_repo: a path, `owner/name`, or `owner/name/file`.

    Raises:
        CheckpointError: neither a path nor a name on the Hub, or the repository holds several checkpoints.
    """
    path = Path(path_or_repo).expanduser()
    parts = str(path_or_repo).split("/")
    if path.exists() or not 2 <= len(parts) <= 3 or not all(parts) or parts[0] in (".", "..", "~"):
        return path
    return _download("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)


def _download(repo: str, file: str | None) -> Path:
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    try:
        names = list_repo_files(repo)
        if file is None and "config.json" in names and any(name.endswith(_TENSORS) for name in names):
            return _folder(repo, names)
        return _gguf(repo, names, file)
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo}: no such path here, and not to be had from the Hugging Face Hub: {error}. Check the name."
        ) from error


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
