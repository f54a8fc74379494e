"""Puts the tensors of a folder into an empty model, and remembers what the folder calls them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zoquant.checkpoint.folder.experts import list_experts
from zoquant.checkpoint.folder.matrix import DENSE, StoredMatrix
from zoquant.checkpoint.folder.model_names import ModelNames, named_tensors
from zoquant.checkpoint.folder.reading import Folder
from zoquant.native import DenseWeight, PackedWeight, QuantEmbedding, QuantLinear
from zoquant.native.meta import ModuleSlots, tied
from zoquant.views.checkpoint_names import keep_names
from zoquant.views.stored_form import StoredForm, keep_form


class Filler:
    """Puts the tensors of a folder into an empty model. Fused experts that the folder has one by one become a list."""

    def __init__(
        self, folder: Folder, model: nn.Module, layers: Mapping[str, StoredMatrix], compute_dtype: torch.dtype
    ) -> None:
        self.folder = folder
        self.model = model
        self.compute_dtype = compute_dtype
        self.names = ModelNames(folder, model)
        if list_experts(model, {self.names.path_of(path) for path in layers} | self.names.paths):
            self.names = ModelNames(folder, model)
        self.layers = {self.names.path_of(path): layer for path, layer in layers.items()}
        self.source = self.names.source
        self.replaced: set[str] = set()
        self.places = ModuleSlots(model)
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
        tensors = dict(named_tensors(self.model))
        dtypes = {
            id(tensors[name]): self.folder.tensors[source].dtype
            for name, source in self.source.items()
            if name in tensors
        }
        for name, tensor in tensors.items():
            if id(tensor) in dtypes:
                path, _, field = name.rpartition(".")
                keep_form(self.model.get_submodule(path), field, StoredForm(dtypes[id(tensor)]))
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
            raise self.folder.error(source, wanted, f"{tensor.described}, which no format claims")
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
