"""Which of two models of one checkpoint is the faster: on zoquant's layers, or on those of the format's library."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from zoquant.errors import UnsupportedLayoutError
from zoquant.views.attach import attach, claimed

_ROUNDS = 15
_ROWS = 32


@dataclass(frozen=True)
class Comparison:
    """Median seconds of one forward of the same layer in both runtimes."""

    layer: str
    native: float
    vendor: float

    @property
    def vendor_wins(self) -> bool:
        return self.vendor < self.native

    @property
    def why(self) -> str:
        """One line: which runtime to take, and the figures."""
        winner = "its library's layers" if self.vendor_wins else "zoquant's own layers"
        times = f"{self.vendor * 1e3:.2f} ms in the library's layer, {self.native * 1e3:.2f} ms in zoquant's"
        return f"{winner}: {self.layer} took {times}"


def faster(native: nn.Module, vendor: nn.Module) -> Comparison:
    """Time the first quantized layer that both models have, taking turns, after the check of `attach`.

    Raises:
        UnsupportedLayoutError: the vendor's layers hide their values, or the models share no quantized layer.
    """
    ours = {path: (module, backend) for path, module, backend in claimed(native)}
    for path, theirs, vendors in claimed(vendor):
        if path in ours:
            attach(theirs)
            own, backend = ours[path]
            x, y = _batch(backend.sample_input(own)), _batch(vendors.sample_input(theirs))
            times = [(_seconds(own, x), _seconds(theirs, y)) for _ in range(_ROUNDS)]
            return Comparison(path, median(a for a, _ in times), median(b for _, b in times))
    raise UnsupportedLayoutError("no quantized layer is there in both runtimes. Use runtime='native'.")


def _batch(x: Tensor) -> Tensor:
    return x.repeat(_ROWS, *[1] * (x.dim() - 1))


def _seconds(module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        module(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start
