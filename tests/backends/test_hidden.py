"""Kernels that hide their scales: each is claimed, and refused with what to do instead."""

from importlib import import_module
from typing import Any

import pytest
from torch import nn

import zoquant
from zoquant.backends.hidden import INSTEAD
from zoquant.errors import UnsupportedLayoutError


def test_the_table_is_what_is_registered() -> None:
    claimed = {
        name for name, claim in zoquant.list_backends().items() if claim.target.startswith("zoquant.backends.hidden:")
    }
    assert claimed == set(INSTEAD)


@pytest.mark.parametrize("name", INSTEAD)
def test_attach_names_the_kernel_to_use(name: str) -> None:
    module, _, cls = name.rpartition(".")
    layer: Any = type(cls, (nn.Module,), {"__module__": module})()
    with pytest.raises(UnsupportedLayoutError, match=cls) as caught:
        zoquant.attach(nn.ModuleDict({"proj": layer}))
    assert str(caught.value).startswith("proj: ")
    assert INSTEAD[name] in str(caught.value)


@pytest.mark.parametrize("name", INSTEAD)
def test_the_library_has_a_class_of_this_name(name: str) -> None:
    module, _, cls = name.rpartition(".")
    pytest.importorskip(module.partition(".")[0])
    try:
        found = import_module(module)
    except ImportError as error:
        pytest.skip(f"its module needs more: {error}")
    assert isinstance(getattr(found, cls), type)
