"""Where the model of a run comes from, and how its forward is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.checkpoint.loading import Runtime, default_compute_dtype, default_device, load
from zoquant.errors import CheckpointError, one_of

Opened = tuple[nn.Module, Any, torch.device]
"""A model, its tokenizer and its device."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """A model and how its forward is computed.

    Attributes:
        model: path or name of the checkpoint.
        runtime: who computes the forward.
        compute_dtype: `"auto"`, or the dtype of the matrix products.
        activation_dtype: dtype of what passes between native layers; `"auto"` is float32.
        device: `"auto"`, or where the model goes.
    """

    model: str
    runtime: Runtime = "auto"
    compute_dtype: str = "auto"
    activation_dtype: str = "auto"
    device: str = "auto"

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the dtype that `"auto"` means here.

        Raises:
            ValueError: the dtype is unknown, or the device is none of this machine.
        """
        device = default_device() if self.device == "auto" else _device(self.device)
        return device, _dtype("compute_dtype", self.compute_dtype) or default_compute_dtype(device)

    def resolve_runtime(self) -> Runtime:
        """Return the runtime that `"auto"` means here; on a GPU it is measured at each load and stays `"auto"`.

        Raises:
            ValueError: the dtype is unknown, or the device is none of this machine.
        """
        return "native" if self.runtime == "auto" and self.resolve()[0].type == "cpu" else self.runtime

    def open(self, delta: str | Path | None = None) -> Opened:
        """Load model and tokenizer, with a delta on it if one is given; return them with their device.

        Raises:
            CheckpointError: not a checkpoint, damaged, or without a tokenizer.
            BaseMismatchError: the delta was made on another base.
            ValueError: a dtype is unknown, or one of activations is asked of a vendor's runtime.
        """
        device, dtype = self.resolve()
        activations = _dtype("activation_dtype", self.activation_dtype)
        model, tokenizer = load(
            self.model, runtime=self.runtime, compute_dtype=dtype, activation_dtype=activations, device=device,
            delta=delta,
        )  # fmt: skip
        if tokenizer is None:
            raise CheckpointError(
                f"{self.model}: opened without a tokenizer, so text cannot be fed to it. Either the checkpoint carries "
                "none, or a plugin returned None as the second of open_native() or open_vendor()."
            )
        return model, tokenizer, device


@dataclass(frozen=True)
class OpenedSource:
    """A model that is loaded already, in the place of a `Source`."""

    opened: Opened

    def open(self, delta: str | Path | None = None) -> Opened:
        """Return it.

        Raises:
            CheckpointError: there is a delta, which goes on a checkpoint as it is loaded.
        """
        if delta is not None:
            raise CheckpointError(
                f"{delta}: goes on a model as it is loaded. Load it with zoquant.load(..., delta=...), or call "
                "zoquant.load_delta."
            )
        return self.opened


def _device(said: str) -> torch.device:
    """Return the device that somebody named."""
    try:
        device = torch.device(said)
    except RuntimeError as error:
        raise ValueError(f"device is {said!r}, expected auto, cpu, or cuda for a GPU.") from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(f"device is {said!r}, but torch finds {found} GPUs of that kind here. Take auto or cpu.")
    return device


def _dtype(name: str, said: str) -> torch.dtype | None:
    """Return the dtype that somebody named; None for `"auto"`."""
    if said not in ("auto", *_DTYPES):
        raise ValueError(f"{name} is {said!r}, expected {one_of(('auto', *_DTYPES), said)}")
    return _DTYPES.get(said)
