"""From a path or a name on the Hugging Face Hub to a model that can be trained."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.registry import format_of

Runtime = Literal["auto", "native", "vendor"]


def load(
    path_or_repo: str | Path,
    *,
    runtime: Runtime = "auto",
    compute_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[nn.Module, Any]:
    """Load a quantized checkpoint with its codes and scales as the file has them.

    Args:
        path_or_repo: a file or folder, or `owner/name` or `owner/name/file` on the Hub.
        runtime: who computes the forward: `"native"`, zoquant's own layers; `"vendor"`, the format's own library;
            `"auto"` is native.
        compute_dtype: dtype of the matrix products; None takes bfloat16 where the hardware multiplies it, else float32.
        device: where to put the model; None takes a GPU if there is one.

    Returns:
        The model, in eval mode and without gradients, and its tokenizer (None if the checkpoint has none).

    Raises:
        CheckpointError: not a checkpoint that zoquant knows, damaged, or of an unknown architecture.
        UnsupportedLayoutError: the format has no vendor runtime.
    """
    path = local_path(path_or_repo)
    found = format_of(path)
    if runtime == "vendor":
        raise UnsupportedLayoutError(
            f"{path}: the format {found.name} has no vendor runtime here. Load the model with its own library and call "
            "zoquant.attach, or use runtime='native'."
        )
    place = torch.device(device) if device is not None else default_device()
    dtype = compute_dtype or default_compute_dtype(place)
    return found.open_native(path, compute_dtype=dtype, device=place)


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = any(getattr(torch.cpu, probe)() for probe in probes if hasattr(torch.cpu, probe))
    return torch.bfloat16 if fast else torch.float32


def local_path(path_or_repo: str | Path) -> Path:
    """Return a path on this machine, downloading from the Hub what does not exist here.

    Raises:
        CheckpointError: neither a path nor a name on the Hub, or the repository holds several checkpoints.
    """
    path = Path(path_or_repo).expanduser()
    parts = str(path_or_repo).split("/")
    if path.exists() or not 2 <= len(parts) <= 3 or not all(parts) or parts[0] in (".", "..", "~"):
        return path
    return _download("/".join(parts[:2]), parts[2] if len(parts) == 3 else None)


def _download(repo: str, file: str | None) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    try:
        names = [file] if file else [name for name in list_repo_files(repo) if name.endswith(".gguf")]
        if len(names) != 1:
            raise CheckpointError(
                f"{repo}: expected one checkpoint, the repository holds {len(names)}: {', '.join(names) or 'none'}. "
                f"Name one: {repo}/<file>."
            )
        return Path(hf_hub_download(repo, names[0]))
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo}: no such path here, and not to be had from the Hugging Face Hub: {error}. Check the name."
        ) from error
