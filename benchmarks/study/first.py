"""The first-order upper bound: Adam on the relative scales, by autograd through the weights that the layers decode."""

import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import reduce

import torch
from torch import Tensor, nn

from benchmarks.study.examples import Examples
from benchmarks.study.record import Draft, Result, TimeUpError, point
from benchmarks.study.zeroth import BATCH
from zoquant.errors import UnsupportedLayoutError
from zoquant.files.atomic_files import replacing
from zoquant.native import QuantEmbedding, QuantLinear
from zoquant.native.layers import QuantWeight

LR = 2e-3
EVERY = 25
"""Steps between evaluations; the best of them on the 256 examples of dev is the one that is reported."""


class Rescaled(nn.Module):
    """A matrix whose blocks are rescaled as a whole: W ⊙ (1 + delta), which is what coupled scales do.

    Args:
        packed: the matrix, all of whose fields have one number a block.
        factored: let 1 + delta be (1 + u)(1 + v), as rows and columns do.

    Attributes:
        parts: delta, float32 `[rows, blocks]`, or u, `[rows, 1]`, and v, `[1, blocks]`.
    """

    def __init__(self, packed: QuantWeight, factored: bool) -> None:
        super().__init__()
        shapes = {tuple(packed.value(spec.name).shape) for spec in packed.fields}
        if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
            raise UnsupportedLayoutError(
                f"{packed.layout}: fields of shapes {shapes}, expected one number a block each."
            )
        rows, blocks = shapes.pop()
        self.register_buffer("base", packed.dequantize().view(rows, blocks, -1))
        sizes = [(rows, 1), (1, blocks)] if factored else [(rows, blocks)]
        self.parts = nn.ParameterList(torch.zeros(size) for size in sizes)

    def at(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Return some rows, float32 `[n, columns]`."""
        base: Tensor = self.base  # type: ignore[assignment]
        factors = [1 + (part if len(part) == 1 else part[rows]) for part in self.parts]
        scaled: Tensor = base[rows] * reduce(torch.mul, factors).unsqueeze(-1)
        return scaled.flatten(1)


class RescaledLinear(nn.Module):
    """`y = x Wᵀ + b` over a rescaled matrix."""

    def __init__(self, matrix: Rescaled, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    @property
    def weight(self) -> Tensor:
        """The whole matrix."""
        return self.matrix.at()

    def forward(self, x: Tensor) -> Tensor:
        """Return `x Wᵀ + b`."""
        return nn.functional.linear(x, self.weight, self.bias)


class RescaledEmbedding(nn.Module):
    """Looks rows up in a rescaled matrix."""

    def __init__(self, matrix: Rescaled, scale: float | None) -> None:
        super().__init__()
        self.matrix, self.scale = matrix, scale

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of `ids`, `[..., columns]`."""
        rows = self.matrix.at(ids.reshape(-1)).view(*ids.shape, -1)
        return rows if self.scale is None else rows * self.scale


def rescale(model: nn.Module, include: Sequence[str] = ("*",), *, factored: bool = False) -> list[nn.Parameter]:
    """Replace the native layers of a model by differentiable ones, and return their deltas. Tied layers share one.

    Args:
        model: native, in float32.
        include: shell patterns on paths of layers; the deltas of others stay 0.
        factored: as `Rescaled` takes it.
    """
    found: dict[int, Rescaled] = {}
    moving: set[int] = set()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, QuantLinear | QuantEmbedding) and isinstance(layer.packed, QuantWeight):
            key = layer.packed.codes.data_ptr()
            matrix = found[key] = found.get(key) or Rescaled(layer.packed, factored)
            moving |= {key} if any(fnmatchcase(path, pattern) for pattern in include) else set()
            model.set_submodule(
                path,
                RescaledLinear(matrix, layer.bias)
                if isinstance(layer, QuantLinear)
                else RescaledEmbedding(matrix, layer.scale),
            )
    for key, matrix in found.items():
        matrix.parts.requires_grad_(key in moving)
    return [part for key, matrix in found.items() if key in moving for part in matrix.parts]


def train(
    model: nn.Module,
    data: Examples,
    seed: int,
    steps: int,
    draft: Draft,
    check: Callable[[], None],
    include: Sequence[str] = ("*",),
    factored: bool = False,
) -> Result:
    """Train, and report the best of the evaluations. The layers of the model are replaced for good.

    Args:
        model: native, in float32.
        data: the examples.
        seed: of the batches.
        steps: forwards, each with a backward.
        draft: what is kept of the run.
        check: called before every step; raises TimeUpError to end the slice.
        include: which layers move, as `rescale` takes it.
        factored: whether they move by rows and columns, as `rescale` takes it.
    """
    deltas = rescale(model, include, factored=factored)
    adam = torch.optim.Adam(deltas, lr=LR)
    state, best = _resume(draft, deltas, adam)
    for step in range(state["step"], steps + 1):
        state["step"] = step
        if step % EVERY == 0 or step == steps:
            best = _measure(model, data, step, deltas, state, best)
            _save(draft, state, deltas, best, adam)
        if step < steps:
            try:
                check()
            except TimeUpError:
                _save(draft, state, deltas, best, adam)
                raise
            start = time.perf_counter()
            adam.zero_grad()
            data.train.loss(model, data.train.batch_of_step(seed, step, BATCH)).backward()  # type: ignore[no-untyped-call]
            adam.step()
            state["seconds"] += time.perf_counter() - start
    _set(deltas, best)
    ends = {part: point(steps, getattr(data, part).evaluate(model)) for part in ("dev", "test")}
    return {"forwards": float(steps), "backwards": steps, "numbers": {"lr": LR}, **state, **ends}


def _save(draft: Draft, state: Result, deltas: list[nn.Parameter], best: list[Tensor], adam: torch.optim.Adam) -> None:
    with replacing(draft.tensors) as temporary:
        torch.save([state, [delta.data for delta in deltas], best, adam.state_dict()], temporary)


def _resume(draft: Draft, deltas: list[nn.Parameter], adam: torch.optim.Adam) -> tuple[Result, list[Tensor]]:
    """Return the state of a run and the deltas of its best evaluation, and set the present ones."""
    if not draft.tensors.exists():
        return {"curve": [], "seconds": 0.0, "step": 0}, []
    state, values, best, moments = torch.load(draft.tensors)
    _set(deltas, values)
    adam.load_state_dict(moments)
    return state, best


def _measure(
    model: nn.Module, data: Examples, step: int, deltas: list[nn.Parameter], state: Result, best: list[Tensor]
) -> list[Tensor]:
    """Evaluate, unless that was done before an interruption, and return the deltas of the best evaluation so far."""
    if not state["curve"] or state["curve"][-1]["step"] < step:
        found = {"step": step, **point(step, data.choice.evaluate(model))}
        print(f"first-order: {found}", flush=True)
        if all(found["accuracy"] > each["accuracy"] for each in state["curve"]):
            best = [delta.detach().clone() for delta in deltas]
        state["curve"].append(found)
    return best


def _set(deltas: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for delta, value in zip(deltas, values, strict=True):
            delta.copy_(value)
