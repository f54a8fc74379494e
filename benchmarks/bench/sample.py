"""Which layers are measured."""

from typing import Any

from torch import nn

from zoquant.views.attach import attach
from zoquant.views.model_views import Views


def ends(model: nn.Module) -> list[str]:
    """Return patterns of the lookup table and the head: one multiplies no input, the other may share its values."""
    whole: Any = model
    ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
    return [f"{path}.*" for path, module in model.named_modules() if any(module is end for end in ends)]


def every_layer(model: nn.Module, share: int) -> Views:
    """Attach to every so-many-th layer, and to all if that is 1.

    Whole layers, since the views of one share their noise; the lookup table and the head, which are many times as large
    as a layer, only where all are taken.
    """
    if share == 1:
        return attach(model)
    layers = dict.fromkeys(key.rpartition(".")[0] for key in attach(model, exclude=ends(model)).keys)
    return attach(model, include=[f"{path}.*" for path in list(layers)[::share]])
