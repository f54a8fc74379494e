"""CUDA graphs: a function of tensors is recorded once for each shape of its inputs and replayed without Python.

A graph holds addresses, not values: what is written in place into the values of a model, as `Views.write` does, reaches
every replay. It holds nothing else that Python decides: a function that looks at a number, at the clock or at other
tensors than its inputs does at a replay what it did when it was recorded.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoquant.errors import UnsupportedLayoutError
from zoquant.kernels import workspace

Shape = tuple[tuple[torch.Size, torch.dtype], ...]
"""Shape and dtype of each input."""

_WARM_UP = 3


class Graphed:
    """A function that is recorded at the first call with inputs of a shape, and replayed from then on.

    It runs without gradients. The model behind it must keep its tensors where they are: after `model.to(...)` make a
    new one. Memory of the largest recording stays taken.

    Args:
        function: takes tensors of one GPU and returns a tensor there, without waiting for the GPU: no `float(loss)`
            within it.

    Attributes:
        shapes: how many shapes were recorded.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._recorded: dict[Shape, _Recording] = {}

    @property
    def shapes(self) -> int:
        return len(self._recorded)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the function returns, in memory of its own.

        Raises:
            UnsupportedLayoutError: an input does not lie on a GPU, or the function cannot be recorded.
        """
        if not inputs or not all(each.is_cuda for each in inputs):
            devices = ", ".join(str(each.device) for each in inputs) or "none"
            raise UnsupportedLayoutError(
                f"Graphed: expected inputs on one CUDA device, got {devices}. Call the function itself there."
            )
        shape = tuple((each.shape, each.dtype) for each in inputs)
        if shape not in self._recorded:
            self._recorded[shape] = _Recording(self._function, inputs)
        return self._recorded[shape].replay(inputs)


class _Recording:
    """A graph, with the memory that it reads and writes."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        device = inputs[0].device
        self._inputs = [each.clone() for each in inputs]
        with torch.no_grad(), torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are compiled and scratch memory grows before the recording
                for _ in range(_WARM_UP):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._scratch = held()
            self._graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._graph, stream=stream):
                    self._output = function(*self._inputs)
            except RuntimeError as error:
                raise UnsupportedLayoutError(
                    f"Graphed: the function cannot be recorded: {' '.join(str(error).split())[:300]} It must not wait "
                    "for the GPU (.item(), float(), .cpu(), a condition on a tensor). Call it without a graph."
                ) from error

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output.clone()


def held() -> list[Tensor]:
    """Return the scratch memory of this thread as it is now: a recording goes on using what has been outgrown since."""
    return list(workspace._own.buffers.values())
