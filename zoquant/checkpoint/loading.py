"""From a path or a name on the Hugging Face Hub to a model that can be trained."""

import glob
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zoquant.checkpoint.runtime_choice import Comparison, faster
from zoquant.errors import BaseMismatchError, NoViewsError, UnsupportedLayoutError, one_line
from zoquant.files.hub import delta_path, local_path
from zoquant.kernels.out_of_memory import release_memory
from zoquant.native.activations import pass_activations
from zoquant.protocol import ROLES, Format, Vendor
from zoquant.record.delta import load_delta, read_delta
from zoquant.registry import format_of
from zoquant.views.attach import attach

Runtime = Literal["auto", "native", "vendor"]
Loaded = tuple[nn.Module, Any]

log = logging.getLogger("zoquant")


def load(
    path_or_repo: str | Path,
    *,
    runtime: Runtime = "auto",
    compute_dtype: torch.dtype | None = None,
    activation_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    delta: str | Path | None = None,
) -> Loaded:
    """Load a quantized checkpoint with its codes and scales as the file has them.

    Which runtime was taken, and why, is logged in one line: logger `zoquant`, level INFO.

    Args:
        path_or_repo: a file or folder, or `owner/name` or `owner/name/file` on the Hub.
        runtime: who computes the forward: `"native"`, zoquant's own layers; `"vendor"`, the format's own library;
            `"auto"` is native, unless on a GPU the vendor's kernels are installed, follow what is written to them, and
            are the faster ones, and no activation_dtype is given.
        compute_dtype: dtype of the matrix products; None takes bfloat16 where the hardware multiplies it, else float32.
        activation_dtype: dtype of what passes between native layers; None takes float32. A vendor's runtime has
            `compute_dtype` throughout.
        device: where to put the model; None takes a GPU if there is one.
        delta: what training made of it: a delta file, the folder of a run, or `owner/name[/file]` on the Hub.

    Returns:
        The model, in eval mode and without gradients, and its tokenizer (None if the checkpoint has none).

    Raises:
        CheckpointError: not a checkpoint that zoquant knows, damaged, or of an unknown architecture.
        BaseMismatchError: the delta was made on another checkpoint; the first key that differs is named.
        UnsupportedLayoutError: the format has no vendor runtime.
        ValueError: the runtime is none of the three, a dtype is no floating one of 16 bits or more, or activation_dtype
            is given for the vendor's.
    """
    if runtime not in ("auto", "native", "vendor"):
        raise ValueError(f"load: runtime is {runtime!r}, expected 'auto', 'native' or 'vendor'.")
    if runtime == "vendor" and activation_dtype is not None:
        raise ValueError(
            f"load: activation_dtype is {activation_dtype}, but a vendor's layers keep everything in compute_dtype. "
            "Leave it out, or take runtime='native'."
        )
    for name, given in (("compute_dtype", compute_dtype), ("activation_dtype", activation_dtype)):
        if given is not None and not _computes(given):
            raise ValueError(f"load: {name} is {given!r}, expected torch.float32, torch.bfloat16 or torch.float16.")
    path = local_path(path_or_repo)
    found = format_of(path)
    place = torch.device(device) if device is not None else default_device()
    dtype = compute_dtype or default_compute_dtype(place)
    if runtime == "vendor":
        loaded, why = _open_vendor(found, path, dtype, place), "its library's layers, as asked for"
    else:
        loaded, why = found.open_native(path, compute_dtype=dtype, device=place), "zoquant's own layers, as asked for"
        if activation_dtype not in (None, torch.float32):
            pass_activations(loaded[0], activation_dtype)
        if runtime == "auto" and activation_dtype is not None and place.type != "cpu":
            why = "zoquant's own layers: activation_dtype is given, and a library's layers have none"
        elif runtime == "auto":
            loaded, why = _choose(found, path, dtype, place, loaded)
    log.info("%s: %s, computed by %s", path, found.name, why)
    if delta is not None:
        _put_on(delta_path(delta), loaded[0])
    return loaded


def _computes(dtype: object) -> bool:
    """Whether products can be taken in a dtype."""
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def _put_on(path: str | Path, model: nn.Module) -> None:
    """Put a delta on a model of its base, opening only the views that it moves."""
    moved = list(read_delta(path).values)
    if not moved:
        return
    try:
        views = attach(model, roles=ROLES, include=[glob.escape(key) for key in moved], coupled=False)
    except NoViewsError as error:
        raise BaseMismatchError(
            f"{path}: made on another model: it moves {moved[0]}, and none of its keys exists here. Use the "
            "checkpoint that the training started from."
        ) from error
    load_delta(path, views)


def _choose(found: Format, path: Path, dtype: torch.dtype, place: torch.device, native: Loaded) -> tuple[Loaded, str]:
    """Return the runtime that `auto` stands for, and why."""
    if place.type == "cpu":
        return native, "zoquant's own layers, the default on a CPU"
    try:
        vendor, comparison = _measured(found, path, dtype, place, native)
    except Exception as error:  # whatever stops a library, such as memory that ran out: the native model is there
        why = one_line(error)
    else:
        return (vendor if comparison.vendor_wins else native), comparison.why
    release_memory()
    return native, f"zoquant's own layers: {why}"


def _measured(
    found: Format, path: Path, dtype: torch.dtype, place: torch.device, native: Loaded
) -> tuple[Loaded, Comparison]:
    """Open the vendor's model and time it; where that fails, nobody holds it any more."""
    vendor = _open_vendor(found, path, dtype, place)
    return vendor, faster(native[0], vendor[0])


def _open_vendor(found: Format, path: Path, dtype: torch.dtype, place: torch.device) -> Loaded:
    if not isinstance(found, Vendor):
        raise UnsupportedLayoutError(
            f"{path}: the format {found.name} has no vendor runtime here. Load the model with its own library and call "
            "zoquant.attach, or use runtime='native'."
        )
    return found.open_vendor(path, compute_dtype=dtype, device=place)


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
