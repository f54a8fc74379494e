"""What the tensors of a folder are called in a model of transformers, which renames some when it loads them."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from torch import nn

from zoquant.checkpoint.folder.reading import Folder

Renaming = Callable[[str], str]

_LAYER_NORM = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
_LEFT_OUT = (r"(^|\.)inv_freq$", r"(^|\.)masked_bias$", r"(^|\.)position_ids$")
"""What models of long ago saved, and no model reads."""


class ModelNames:
    """The names of a folder's tensors in a model.

    Args:
        folder: the checkpoint.
        model: the empty model that its config describes.

    Attributes:
        source: name in the model -> name in the folder, of every tensor of the folder.
        aliases: the same of other names that the folder has for a tensor.

    Raises:
        CheckpointError: two tensors have one name in the model.

    Source: transformers 5.23, `conversion_mapping` and `core_model_loading.rename_source_key`; before version 5
    `PreTrainedModel._checkpoint_conversion_mapping`.
    """

    def __init__(self, folder: Folder, model: nn.Module) -> None:
        self._model = model
        self._renamings = _renamings(model)
        self._modules = {path for path, _ in model.named_modules() if path}
        self._tensors = {name for name, _ in named_tensors(model)}
        self.source: dict[str, str] = {}
        self.aliases = {self.of(name): kept for name, kept in folder.aliases.items()}
        for name in folder.tensors:
            other = self.source.setdefault(self.of(name), name)
            if other != name:
                raise folder.error(name, "a name of its own in the model", f"{self.of(name)!r}, as of {other!r}")

    @property
    def paths(self) -> set[str]:
        """The paths in the model of all that the folder holds."""
        return {name.rpartition(".")[0] for name in self.source}

    def of(self, name: str) -> str:
        """Return the name in the model of a tensor of the folder."""
        renamed = reduce(lambda found, renaming: renaming(found), self._renamings, name)
        base = f"{getattr(self._model, 'base_model_prefix', '')}."
        for found in (renamed, f"{base}{renamed}", renamed.removeprefix(base)):
            if found in self._tensors or found.rpartition(".")[0] in self._modules:
                return found
        return renamed

    def path_of(self, path: str) -> str:
        """Return the path in the model of a layer of the folder."""
        return self.of(f"{path}.weight").removesuffix(".weight")

    def left_out(self, name: str) -> bool:
        """Whether transformers, too, reads nothing from a tensor, by its name in the model."""
        path, _, field = name.rpartition(".")
        if name in self._tensors:
            return field in self._model.get_submodule(path)._non_persistent_buffers_set
        ignored = getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ()
        return any(re.search(pattern, name) for pattern in (*ignored, *_LEFT_OUT))

    def in_checkpoint(self) -> dict[str, str]:
        """Return, of the tensors and layers whose names differ, name in the model -> name in the folder."""
        found: dict[str, str] = {}
        for name, source in self.source.items():
            path, _, field = name.rpartition(".")
            source_path, _, source_field = source.rpartition(".")
            if field != source_field:
                found[name] = source
            elif path != source_path:
                found[path] = source_path
        return found


def named_tensors(model: nn.Module) -> Iterable[tuple[str, Any]]:
    """Yield parameters and buffers by all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _renamings(model: nn.Module) -> list[Renaming]:
    """Return what transformers does to the names of a checkpoint, in its order."""
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        return []
    if int(transformers.__version__.partition(".")[0]) < 5:
        return [_first_of(getattr(model, "_checkpoint_conversion_mapping", {})), _first_of(_LAYER_NORM)]
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    return [_renaming(each) for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]


def _renaming(transform: Any) -> Renaming:
    return lambda name: str(transform.rename_source_key(name)[0])


def _first_of(patterns: Mapping[str, str]) -> Renaming:
    """Return what replaces the first pattern that a name holds."""

    def renamed(name: str) -> str:
        for pattern, replacement in patterns.items():
            found, count = re.subn(pattern, replacement, name)
            if count:
                return found
        return name

    return renamed
