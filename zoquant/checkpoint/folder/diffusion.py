"""A model folder of diffusers, such as the transformer of a pipeline: its config.json names a class of diffusers."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from zoquant.checkpoint.folder.libraries import refusing
from zoquant.checkpoint.folder.reading import Folder
from zoquant.errors import UnsupportedLayoutError, shown
from zoquant.native.meta import WithoutWeights

_CLASS = "_class_name"
_ADVICE = "Update diffusers, or get the checkpoint again."


def is_diffusion(folder: Folder) -> bool:
    """Tell whether diffusers wrote the folder."""
    return _CLASS in folder.config and "_diffusers_version" in folder.config


def empty_diffusion_model(folder: Folder) -> nn.Module:
    """Return the model that config.json describes, without memory for its weights.

    Raises:
        UnsupportedLayoutError: diffusers is not installed.
        CheckpointError: diffusers does not know the class, or refuses its config.
    """
    found = _class_of(folder)
    settings = {name: value for name, value in folder.config.items() if name != "quantization_config"}
    with refusing(folder.path, "diffusers cannot build the model", _ADVICE), WithoutWeights(), torch.device("cpu"):
        model: nn.Module = found.from_config(settings)
    return model


def load_with_diffusers(folder: Folder, *, compute_dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the model as diffusers loads it, on the layers of the format's library.

    Raises:
        UnsupportedLayoutError: diffusers is not installed.
        CheckpointError: diffusers refuses the checkpoint.
    """
    with refusing(folder.path, "diffusers cannot load it", _ADVICE):
        model: nn.Module = _class_of(folder).from_pretrained(
            folder.path, local_files_only=True, torch_dtype=compute_dtype, device_map={"": device}
        )
    return model.eval().requires_grad_(False)


def _class_of(folder: Folder) -> Any:
    if find_spec("diffusers") is None:
        raise UnsupportedLayoutError(f"{folder.path}: diffusers wrote it and is not installed: pip install diffusers.")
    import diffusers

    name = folder.config[_CLASS]
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise folder.error(_CLASS, "a model class of diffusers in config.json", shown(name))
    return found
