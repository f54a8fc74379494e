"""What is refused says why: every layer of a refused class, and every folder of a method that nobody reads."""

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoquant
from tests.folders import CONFIG, write_folder
from zoquant.backends.plugins import BACKENDS, Refused
from zoquant.backends.refused import METHODS, RefusedBackend, reason
from zoquant.errors import UnsupportedLayoutError
from zoquant.registry import all_formats, backend_of

CLASSES = [name for name, plugin in BACKENDS.items() if isinstance(plugin, Refused)]
LIBRARIES = sorted({name.partition(".")[0] for name in CLASSES})


def layer_of(name: str) -> Any:
    """Return a module of a class with this dotted name."""
    module, _, qualname = name.rpartition(".")
    return type(qualname, (nn.Module,), {"__module__": module, "__qualname__": qualname})()


@pytest.mark.parametrize("name", CLASSES)
def test_attach_and_every_method_say_why(name: str) -> None:
    layer = layer_of(name)
    backend = backend_of(layer)
    assert isinstance(backend, RefusedBackend)
    with pytest.raises(UnsupportedLayoutError) as caught:
        zoquant.attach(nn.ModuleDict({"q": layer}))
    assert str(caught.value) == f"q (refused): {reason(name)}"
    assert type(layer).__name__ in reason(name)
    assert "{" not in reason(name)
    for method in (backend.dequantize, backend.sample_input):
        with pytest.raises(UnsupportedLayoutError) as caught:
            method(layer)
        assert str(caught.value) == reason(name)


def test_texts() -> None:
    assert reason("gptqmodel.nn_modules.qlinear.marlin.MarlinLinear") == (
        "the kernel marlin.MarlinLinear keeps its scales in an order of its own, expected one that reads them as the "
        "file has them. Load the model with GPTQModel.load(..., backend=BACKEND.GPTQ_TORCH), or GPTQConfig(bits=..., "
        "backend='gptq_torch') in transformers, or with zoquant.load(..., runtime='native')."
    )
    assert reason("transformers.integrations.finegrained_fp8.FP8Linear") == (
        "a FP8Linear multiplies float8 on a GPU alone. Load the checkpoint with zoquant.load(..., runtime='native')."
    )
    assert not reason("torch.nn.Module")


@pytest.mark.parametrize("library", [name for name in LIBRARIES if find_spec(name)])
def test_a_library_has_the_classes_of_these_names(library: str) -> None:
    for name in CLASSES:
        if name.startswith(f"{library}."):
            module, _, qualname = name.rpartition(".")
            assert find_spec(module) is not None, name
            with suppress(ImportError):  # a kernel that needs more than its library
                assert issubclass(getattr(import_module(module), qualname), nn.Module), name


@pytest.mark.parametrize("method", [*METHODS, "made-up"])
def test_the_reason_of_a_folder_is_named(tmp_path: Path, method: str) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": method}}
    path = write_folder(tmp_path / "a", {"x": torch.ones(2)}, config=config)
    assert not [each.name for each in all_formats() if each.sniff(path)]
    why = METHODS.get(method, "no format claims it")
    with pytest.raises(UnsupportedLayoutError) as caught:
        zoquant.load(path)
    assert f"quantized by the method {method!r}, which zoquant does not read: {why}." in str(caught.value)
    assert str(caught.value).endswith("Quantize the model in a format that `zoquant backends` lists.")
