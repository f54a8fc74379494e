"""What zoquant refuses, each with its reason: layers by their class, and folders by their method of quantization.

Source of the methods: transformers 5.23.0, quantizers and integrations; flute 0.4.2, integrations/higgs.py; spqr_quant
0.2.0, inference.py; fp_quant 0.3.2, module/linear.py.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from zoquant.backends.plugins import BACKENDS, Refused
from zoquant.checkpoint.folder.format import quantization_of
from zoquant.errors import CheckpointError, UnsupportedLayoutError
from zoquant.protocol import ScaleView
from zoquant.registry import class_name

_INSTEAD = "Quantize the model in a format that `zoquant backends` lists."
_NO_SCALE = "its scales are powers of two or float8, behind a Hadamard turn that a GPU computes: no step is small"

METHODS: dict[str, str] = {
    "higgs": "FLUTE tunes the order of its codes for one GPU, and a Hadamard matrix turns its inputs there",
    "spqr": "its numbers are 8 bits in the middle of every 64-bit word, at no bytes of their own",
    "fp_quant": _NO_SCALE,
    "fouroversix": _NO_SCALE,
    "nvfp4": "transformers makes it while loading a plain model and cannot load it again: load the plain model",
    "gemma": "the bits of its layers follow from patterns in the config alone, and it rounds inputs and outputs",
}
"""The `quant_method` of config.json -> why its folders are not read."""


class RefusedBackend:
    """Claims the classes that `plugins` refuses, so that `attach` says why instead of finding them unclaimed."""

    name = "refused"

    def open(self, module: nn.Module) -> Sequence[ScaleView]:
        """Refuse the layer."""
        raise _refusal(module)

    def dequantize(self, module: nn.Module) -> Tensor:
        """Refuse the layer, as `open` does."""
        raise _refusal(module)

    def sample_input(self, module: nn.Module) -> Tensor:
        """Refuse the layer, as `open` does."""
        raise _refusal(module)


def reason(name: str) -> str:
    """Return why a class of this dotted name is refused and what to do instead, or nothing if it is not."""
    entry, (*_, file, last) = BACKENDS.get(name), name.split(".")
    return entry.why.format(file=file, name=last) if isinstance(entry, Refused) else ""


def explain(path: Path) -> str:
    """Return why a folder is not read and what to do, or nothing."""
    try:
        method = quantization_of(path).get("quant_method") if path.is_dir() else None
    except CheckpointError:
        return ""
    if not isinstance(method, str):
        return ""
    why = METHODS.get(method, "no format claims it")
    return f"quantized by the method {method[:40]!r}, which zoquant does not read: {why}. {_INSTEAD}"


def _refusal(module: nn.Module) -> UnsupportedLayoutError:
    return UnsupportedLayoutError(reason(class_name(type(module))))
