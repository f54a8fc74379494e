"""Layers that are refused by name: every one is claimed, and says what to do instead."""

from typing import Any

import pytest
from torch import nn

import zoquant
from zoquant.backends.gpu_only import WHY, GPUOnlyBackend
from zoquant.errors import UnsupportedLayoutError
from zoquant.registry import backend_of


def test_all_are_claimed() -> None:
    claims = {
        name for name, claim in zoquant.list_backends().items() if claim.target.startswith("zoquant.backends.gpu_only:")
    }
    assert claims == set(WHY)


@pytest.mark.parametrize("name", WHY)
def test_refusal(name: str) -> None:
    module, _, qualname = name.rpartition(".")
    layer: Any = type(qualname, (nn.Module,), {"__module__": module, "__qualname__": qualname})()
    assert isinstance(backend_of(layer), GPUOnlyBackend)
    with pytest.raises(UnsupportedLayoutError) as caught:
        zoquant.attach(nn.ModuleDict({"q": layer}))
    why, instead = WHY[name]
    assert str(caught.value) == f"q: a {qualname} {why}. {instead}."
    for method in (GPUOnlyBackend().dequantize, GPUOnlyBackend().sample_input):
        with pytest.raises(UnsupportedLayoutError):
            method(layer)


@pytest.mark.parametrize("name", [name for name in WHY if name.startswith("transformers.")])
def test_the_names_are_right(name: str) -> None:
    """The classes of transformers can be imported here, and are called so."""
    from importlib import import_module

    module, _, qualname = name.rpartition(".")
    assert issubclass(getattr(import_module(module), qualname), nn.Module)
