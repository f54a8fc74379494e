"""A checkpoint folder as a model of transformers on zoquant's native layers.

The model is built without memory for its weights. Quantized matrices become native layers over the file's words, plain
matrices native layers in the dtype of the file, and everything else float32 parameters. Every tensor is used and every
parameter filled, or the checkpoint is refused.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import CheckpointError
from zoquant.folder.checkpoint import Folder, open_folder
from zoquant.folder.diffusion import empty_diffusion_model, is_diffusion, load_with_diffusers
from zoquant.folder.experts import list_experts
from zoquant.folder.format import DENSE, Layer
from zoquant.folder.names import Names
from zoquant.names import keep_names
from zoquant.native import DenseWeight, PackedWeight, QuantEmbedding, QuantLinear
from zoquant.native.meta import Places, WithoutWeights, forget_weights, tied, unfilled
from zoquant.views import keep_dtype

_CODE = ("attn_implementation", "experts_implementation", "use_kernels", "trust_remote_code", "custom_pipelines")
"""What would make transformers look for code."""
_LAYERS = re.compile(r"(layers|^n_layer|^depth|blocks)$")
_EXPERTS = re.compile(r"experts$")
_MAX_EXPERTS = 1 << 14
_MAX_DEPTH = 4
_NOT_OF_THE_MODEL = ("quantization_config", "torch_dtype", "dtype", "auto_map", "architectures", "model_type")


def build_model(
    folder: Folder,
    layers: Mapping[str, Layer],
    *,
    compute_dtype: torch.dtype,
    device: torch.device,
    prepare: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Return the model of a folder, in eval mode and without gradients.

    Args:
        folder: the checkpoint.
        layers: its quantized matrices.
        compute_dtype: dtype of the matrix products.
        device: where the packed words and the values go.
        prepare: changes the empty model so that it has a Linear or an Embedding for every layer.

    Raises:
        CheckpointError: a tensor is missing, or one is there that the model has no place for.
    """
    model = empty_model(folder)
    if prepare is not None:
        prepare(model)
    forget_weights(model)
    filler = _Filler(folder, model, layers, compute_dtype)
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
        raise folder.error("model_type", "a string in config.json", repr(kind)[:80])
    _check_counts(folder, folder.config)
    settings = trusted(folder.config)
    try:
        config = transformers.AutoConfig.for_model(kind, **settings)
        with WithoutWeights(), torch.device("cpu"):
            model: nn.Module = _class_of(folder)(config)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder.path}: transformers cannot build a {kind!r} model from config.json: "
            f"{' '.join(str(error).split())[:300]} Update transformers, or get the checkpoint again."
        ) from error
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
            raise folder.error(name, f"at most {most}", f"{value!r:.40}")


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
    try:
        model: nn.Module = _class_of(folder).from_pretrained(
            path, local_files_only=True, device_map={"": device}, **{known: compute_dtype}
        )
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: transformers cannot load it: {' '.join(str(error).split())[:300]} Use runtime='native'."
        ) from error
    keep_names(model, Names(folder, model).in_checkpoint())
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
    raise folder.error("architectures", "a model class of transformers in config.json", repr(names)[:80])


class _Filler:
    """Puts the tensors of a folder into an empty model.

    Args:
        folder: the checkpoint.
        model: the empty model. Experts that it fuses and the folder holds one by one become a list.
        layers: the quantized matrices by their paths in the folder.
        compute_dtype: dtype of the matrix products.
    """

    def __init__(
        self, folder: Folder, model: nn.Module, layers: Mapping[str, Layer], compute_dtype: torch.dtype
    ) -> None:
        self.folder = folder
        self.model = model
        self.compute_dtype = compute_dtype
        self.names = Names(folder, model)
        if list_experts(model, {self.names.path_of(path) for path in layers} | self.names.paths):
            self.names = Names(folder, model)
        self.layers = {self.names.path_of(path): layer for path, layer in layers.items()}
        self.source = self.names.source
        self.replaced: set[str] = set()
        self.places = Places(model)
        self.tied = [*tied(model), *self._tied_in_file()]

    def fill(self) -> None:
        """Put every tensor into its place.

        Raises:
            CheckpointError: there is no place for one.
        """
        used = {name for layer in self.layers.values() for name in layer.tensors}
        for path, layer in self.layers.items():
            used.add(self.source.get(f"{path}.bias", ""))
            if self._module(path, f"{path}.weight") is not None:
                self._replace(path, layer.packed(self.folder))
        for name, source in (*self.source.items(), *self._shared_buffers()):
            if source not in used:
                self._fill_dense(name, source)
        self._tie(group for group in self.tied if not _is_bias(group))
        self._tie(group for group in self.tied if _is_bias(group))  # last: a matrix that is shared makes a new layer

    def remember(self) -> None:
        """Keep for the views what the checkpoint calls the tensors, and the dtypes that it stores them in."""
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if name in self.source:
                keep_dtype(tensor, self.folder.tensors[self.source[name]].dtype)
        keep_names(self.model, self.names.in_checkpoint() | self._tied_names())

    def _tied_in_file(self) -> list[list[str]]:
        """Return the names of parameters that a file holds once, a list for each, tied in the model or not."""
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        groups: dict[str, list[str]] = {}
        for name, kept in self.names.aliases.items():
            groups.setdefault(kept, [self.names.of(kept)]).append(name)
        return [[name for name in group if name in known] for group in groups.values() if known & {*group}]

    def _shared_buffers(self) -> list[tuple[str, str]]:
        """Return the buffers that lie in a file under another name, and that name."""
        known = {name for name, _ in self.model.named_buffers(remove_duplicate=False)}
        return [(name, kept) for name, kept in self.names.aliases.items() if name in known]

    def _tied_names(self) -> dict[str, str]:
        """Return what the folder calls the parameters that it holds under one name of several."""
        found: dict[str, str] = {}
        for group in self.tied:
            source = next((self.source[name] for name in group if name in self.source), None)
            layer = next((self.layers[path] for path in map(_path, group) if path in self.layers), None)
            for name in group:
                if source is not None:
                    found[name] = self.source.get(name, source)
                elif layer is not None:
                    found[_path(name)] = self.layers.get(_path(name), layer).path
        return found

    def _fill_dense(self, name: str, source: str) -> None:
        path, _, field = name.rpartition(".")
        tensor = self.folder.tensors[source]
        module = self._module(path, name)
        if module is None or self.names.left_out(name):
            return
        expected = getattr(module, field, None)
        if isinstance(module, QuantLinear) and field == "bias":
            return
        if not isinstance(expected, Tensor) or tuple(expected.shape) != tensor.shape or tensor.dtype not in DENSE:
            wanted = f"{list(expected.shape)}" if isinstance(expected, Tensor) else "no such tensor"
            raise self.folder.error(source, wanted, f"{list(tensor.shape)} of {tensor.dtype}, which no format claims")
        if type(module) in (nn.Linear, nn.Embedding) and field == "weight":
            self._replace(path, DenseWeight(tensor.read()))
        elif isinstance(expected, nn.Parameter):
            module.register_parameter(field, nn.Parameter(tensor.read().float(), requires_grad=False))
        else:
            module.register_buffer(field, tensor.read().to(expected.dtype))

    def _module(self, path: str, name: str) -> nn.Module | None:
        """Return a module, or None for a tensor that transformers, too, leaves out."""
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            if self.names.left_out(name):
                return None
            raise self.folder.error(
                self.source.get(name, name), "a tensor of the model", f"{path!r}, which it has not"
            ) from error

    def _replace(self, path: str, packed: PackedWeight) -> None:
        module = self._module(path, f"{path}.weight")
        if isinstance(module, nn.Linear):
            self._check_shape(path, packed, (module.out_features, module.in_features))
            native: nn.Module = QuantLinear(packed, self._bias(path, module), compute_dtype=self.compute_dtype)
        elif isinstance(module, nn.Embedding):
            self._check_shape(path, packed, (module.num_embeddings, module.embedding_dim))
            scale = getattr(module, "embed_scale", None)
            native = QuantEmbedding(packed, scale=None if scale is None else float(scale))
        else:
            raise self.folder.error(path, "a Linear or Embedding in the model", type(module).__name__)
        self.places.replace(path, native)
        self.replaced.add(f"{path}.weight")

    def _check_shape(self, path: str, packed: PackedWeight, expected: tuple[int, int]) -> None:
        if (packed.rows, packed.columns) != expected:
            raise self.folder.error(path, f"a matrix of {list(expected)}", f"{[packed.rows, packed.columns]}")

    def _bias(self, path: str, module: nn.Linear) -> Tensor | None:
        name = f"{path}.bias"
        if name not in self.source:
            others = [other for group in self.tied if name in group for other in group]
            if module.bias is not None and not any(other in self.source for other in others):
                raise self.folder.error(name, "a tensor", "none")
            return None  # `_tie` sets one that has another name in the folder, as BERT's output layer does
        return self.folder.expect(self.source[name], (module.out_features,), DENSE).read().float()

    def _held(self, group: Sequence[str]) -> str | None:
        """Return the name of several for one parameter that the folder has."""
        return next((name for name in group if name in self.source or name in self.replaced), None)

    def _tie(self, groups: Iterable[Sequence[str]]) -> None:
        """Let parameters that the model ties share the one tensor that the folder has of them."""
        for group in groups:
            filled = self._held(group)
            for name in group:
                if filled is not None and name not in (filled, *self.source, *self.replaced):
                    self._share(filled, name)

    def _share(self, filled: str, name: str) -> None:
        path, _, field = name.rpartition(".")
        owner, module = self.model.get_submodule(filled.rpartition(".")[0]), self.model.get_submodule(path)
        if isinstance(owner, QuantEmbedding | QuantLinear) and field == "weight":
            self._replace(path, owner.packed)
        elif not isinstance(module, QuantEmbedding | QuantLinear):
            module.register_parameter(field, _parameter(owner, filled))
        elif field == "bias":
            module.bias = _parameter(owner, filled)


def _parameter(owner: nn.Module, name: str) -> nn.Parameter:
    """Return a tensor of a layer as a parameter over the same memory: the bias of a native layer is a buffer."""
    tensor: Tensor = getattr(owner, name.rpartition(".")[2])
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _path(name: str) -> str:
    """Return the path of the layer that has the weight of this name."""
    return name.removesuffix(".weight")


def _is_bias(group: Sequence[str]) -> bool:
    """Whether names of one parameter are those of a bias."""
    return group[0].rpartition(".")[2] == "bias"
