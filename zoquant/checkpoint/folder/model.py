"""A checkpoint folder as a model of transformers on zoquant's native layers.

The model is built without memory for its weights. Quantized matrices become native layers over the file's words, plain
matrices native layers in the dtype of the file, and everything else float32 parameters. Every tensor is used and every
parameter filled, or the checkpoint is refused.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoquant.checkpoint.folder.diffusion import empty_diffusion_model, is_diffusion, load_with_diffusers
from zoquant.checkpoint.folder.filler import Filler
from zoquant.checkpoint.folder.libraries import refusing
from zoquant.checkpoint.folder.matrix import StoredMatrix
from zoquant.checkpoint.folder.model_names import ModelNames
from zoquant.checkpoint.folder.reading import Folder, open_folder
from zoquant.errors import shown
from zoquant.native.meta import WithoutWeights, forget_weights, unfilled
from zoquant.views.checkpoint_names import keep_names

_CODE = ("attn_implementation", "experts_implementation", "use_kernels", "trust_remote_code", "custom_pipelines")
"""What would make transformers look for code."""
_LAYERS = re.compile(r"(layers|^n_layer|^depth|blocks)$")
_EXPERTS = re.compile(r"experts$")
_MAX_EXPERTS = 1 << 14
_MAX_DEPTH = 4
_NOT_OF_THE_MODEL = ("quantization_config", "torch_dtype", "dtype", "auto_map", "architectures", "model_type")


def build_model(
    folder: Folder,
    layers: Mapping[str, StoredMatrix],
    *,
    compute_dtype: torch.dtype,
    device: torch.device,
    prepare: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Return the model of a folder, in eval mode and without gradients.

    `prepare` changes the empty model so that it has a Linear or an Embedding for every layer.

    Raises:
        CheckpointError: a tensor is missing, or one is there that the model has no place for.
    """
    model = empty_model(folder)
    if prepare is not None:
        prepare(model)
    forget_weights(model)
    filler = Filler(folder, model, layers, compute_dtype)
    filler.fill()
    missing = unfilled(model)
    if missing:
        raise folder.error(missing[0], "a tensor", f"none, and none for {len(missing) - 1} others")
    model = model.to(device).eval().requires_grad_(False)
    filler.remember()
    return model


def empty_model(folder: Folder) -> nn.Module:
    """Return the model that config.json describes, without memory for its weights. Never runs code of the checkpoint.

    Raises:
        CheckpointError: transformers or diffusers does not know the kind of model, or refuses its config.
    """
    if is_diffusion(folder):
        return empty_diffusion_model(folder)
    import transformers

    kind = folder.config.get("model_type")
    if not isinstance(kind, str):
        raise folder.error("model_type", "a string in config.json", shown(kind))
    _check_counts(folder, folder.config)
    settings = trusted(folder.config)
    what = f"transformers cannot build a {kind!r} model from config.json"
    with refusing(folder.path, what, "Update transformers, or get the checkpoint again."):
        config = transformers.AutoConfig.for_model(kind, **settings)
        with WithoutWeights(), torch.device("cpu"):
            model: nn.Module = _class_of(folder)(config)
    return model


def trusted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the model alone, at every depth.

    A choice of kernels is left out: transformers can fetch code for it from the Hub. So are private names. What kind of
    model a part is stays: transformers takes another kind where a config does not say.
    """
    return {
        name: _part(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in (*_NOT_OF_THE_MODEL, *_CODE) and not name.startswith("_")
    }


def _part(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("model_type")
    return trusted(config) | ({"model_type": kind} if isinstance(kind, str) else {})


def _check_counts(folder: Folder, config: Mapping[str, Any], depth: int = 0) -> None:
    """Refuse more layers or experts than could have a tensor, before transformers makes an object for each."""
    for name, value in config.items():
        if isinstance(value, dict) and depth < _MAX_DEPTH:
            _check_counts(folder, value, depth + 1)
        most = len(folder.tensors) if _LAYERS.search(name) else _MAX_EXPERTS if _EXPERTS.search(name) else None
        if most is not None and isinstance(value, int | float) and value > most:
            raise folder.error(name, f"at most {most}", shown(value))


def load_with_transformers(path: Path, *, compute_dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the model as transformers or diffusers loads it, on the layers of the format's library.

    Raises:
        CheckpointError: the library refuses the checkpoint.
    """
    import transformers

    folder = open_folder(path)
    if is_diffusion(folder):
        return load_with_diffusers(folder, compute_dtype=compute_dtype, device=device)
    known = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
    with refusing(path, "transformers cannot load it", "Use runtime='native'."):
        model: nn.Module = _class_of(folder).from_pretrained(
            path, local_files_only=True, device_map={"": device}, **{known: compute_dtype}
        )
    keep_names(model, ModelNames(folder, model).in_checkpoint())
    return model.eval().requires_grad_(False)


def _class_of(folder: Folder) -> Any:
    """Return the class that config.json names, if it is a model of transformers; else the causal one of its kind."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    names = folder.config.get("architectures") or [CAUSAL.get(str(folder.config.get("model_type")))]
    for name in names if isinstance(names, list) else []:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    raise folder.error("architectures", "a model class of transformers in config.json", shown(names))
