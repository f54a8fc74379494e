"""What a model calls otherwise than its checkpoint does. Keys are names of the checkpoint: export finds them there."""

from collections.abc import Mapping

from torch import nn


def keep_names(model: nn.Module, names: Mapping[str, str]) -> None:
    """Remember, by the name of a tensor or the path of a layer in a model, another one that its checkpoint has."""
    model._names_in_checkpoint = dict(names)  # type: ignore[assignment]


def kept_names(model: nn.Module) -> Mapping[str, str]:
    """Return what `keep_names` said of a model, or nothing."""
    names: Mapping[str, str] = getattr(model, "_names_in_checkpoint", {})
    return names
