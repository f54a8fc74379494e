"""Laws 9 and 10: bad input is refused before anything happens, and nothing is imported behind the user's back."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from torch import Tensor, nn

from zoquant import registry
from zoquant.errors import ShapeError, ValueRangeError
from zoquant.testing.case import BackendCase, LayerCase, attached, values_of
from zoquant.testing.results import ConformanceError
from zoquant.testing.tensors import same_bits

LIBRARIES = frozenset({
    "aqlm", "auto_gptq", "awq", "bitsandbytes", "compressed_tensors", "gguf", "gptqmodel", "hqq", "optimum", "torchao",
})  # fmt: skip
"""Quantization libraries that no backend may import for a model that does not use them."""


def check_bad_values_are_refused(case: BackendCase) -> None:
    """write() refuses another shape, NaN and infinity with one clear error, and nothing has changed."""
    for layer in case.layers():
        for view in layer.views:
            good = view.read().clone()
            wrong = good.new_ones((*good.shape, 2))
            _refused(layer, view.name, wrong, ShapeError)
            for bad in (float("nan"), float("inf")):
                broken = good.clone()
                broken.view(-1)[-1] = bad
                _refused(layer, view.name, broken, ValueRangeError)


def check_attach_imports_nothing(case: BackendCase) -> None:
    """Attaching imports no quantization library but those whose classes the model holds."""
    model = case.model()
    used = {type(module).__module__.partition(".")[0] for module in model.modules()}
    claimed = {name.partition(".")[0] for name in registry.list_backends()}
    forbidden = (LIBRARIES | claimed) - used - {"zoquant", "torch"}
    with _forbidden(forbidden) as imported:
        failure = _attach(model)
    if imported:
        raise ConformanceError(
            f"attach() imported {', '.join(sorted(imported))}, which the model does not use. Import a library only "
            "once a model holds one of its classes: an instance in hand proves that it is imported."
        )
    if failure is not None:
        raise failure


def _attach(model: nn.Module) -> Exception | None:
    try:
        attached(model)
    except Exception as error:
        return error
    return None


def _refused(layer: LayerCase, name: str, value: Tensor, expected: type[Exception]) -> None:
    (view,) = (view for view in layer.views if view.name == name)
    before = values_of(layer.views)
    try:
        view.write(value)
    except expected as error:
        if name not in str(error):
            raise ConformanceError(f"{layer.name(view)}: the error does not name the view: {error}") from error
    except Exception as error:
        raise ConformanceError(
            f"{layer.name(view)}: write() raised {type(error).__name__}, expected {expected.__name__}: {error}"
        ) from error
    else:
        raise ConformanceError(
            f"{layer.name(view)}: write() took a value of shape {tuple(value.shape)} with "
            f"{int((~torch.isfinite(value)).sum())} numbers that are not finite, expected {expected.__name__}. Call "
            "zoquant.views.tensor_views.check_value first."
        )
    if any(not same_bits(values, before[key]) for key, values in values_of(layer.views).items()):
        raise ConformanceError(f"{layer.name(view)}: write() raised, and changed values nevertheless.")


class _Forbidding(MetaPathFinder):
    """Notes every import of some libraries, and refuses it."""

    def __init__(self, libraries: frozenset[str] | set[str]) -> None:
        self.libraries = libraries
        self.seen: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for a library on the list, and leave all others to the next finder."""
        top = fullname.partition(".")[0]
        if top in self.libraries:
            self.seen.add(top)
            raise ImportError(f"{top} must not be imported here")
        return None


@contextmanager
def _forbidden(libraries: frozenset[str] | set[str]) -> Iterator[set[str]]:
    """Hide some libraries, loaded or not, and yield the set of those that anyone tries to import."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in libraries}
    finder = _Forbidding(libraries)
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield finder.seen
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(hidden)
