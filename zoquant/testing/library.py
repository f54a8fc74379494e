"""Law 4: a format's model is that of its own library, and of a reference that the author hands in."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.checkpoint.stored_values import read_base
from zoquant.errors import ZoquantError
from zoquant.protocol import Vendor
from zoquant.testing.case import attached, layers_of
from zoquant.testing.format_case import FormatCase
from zoquant.testing.results import ConformanceError, NotHere
from zoquant.testing.tensors import same_bits
from zoquant.views.attach import attach
from zoquant.views.checkpoint_names import kept_names
from zoquant.views.dry_run import ordinary_ids
from zoquant.views.model_views import Views
from zoquant.views.trial.agreement import COARSEST, TOLERANCE, disagreement

_WEIGHTS, _COARSE_WEIGHTS = 6e-4, 6e-3
"""How far weights may be away: by a rounding to float16, or to bfloat16, which libraries dequantize in."""

_LOGITS = 2e-2
"""How far logits may be away once weights agree: by what a library rounds between layers, as BitNet does to 8 bits."""

_TEXT = "The quick brown fox jumps over the lazy dog."
_TOKENS = 8


def check_vendor_opens(case: FormatCase) -> None:
    """Where the summary says that the library is here, open_vendor opens what attach takes, with the same tokenizer."""
    model, tokenizer = _vendor(case)
    try:
        attach(model, roles=case.roles())
    except ZoquantError as error:
        raise ConformanceError(f"{case.path}: attach() refuses what open_vendor() returned: {error}") from error
    _, own = case.format.open_native(case.path, compute_dtype=case.compute_dtype, device=torch.device("cpu"))
    if (own is None) != (tokenizer is None):
        without, other = ("open_native", "open_vendor") if own is None else ("open_vendor", "open_native")
        raise ConformanceError(f"{case.path}: {without}() returned no tokenizer, and {other}() returned one.")
    if own is not None and _ids(own) != _ids(tokenizer):
        raise ConformanceError(f"{case.path}: open_native() and open_vendor() return tokenizers of different ids.")


def check_vendor_holds_the_values(case: FormatCase) -> None:
    """The views of the library's model have the keys, roles, shapes and values that the index names, in its order."""
    model, _ = _vendor(case)
    index, views = case.format.index(case.path), attached(model, roles=case.roles())
    own = case.open()[1]
    if differing := sorted(set(views.keys) ^ set(own.keys)):
        where = "the library's layers" if differing[0] in own.keys else "zoquant's"
        raise ConformanceError(f"{differing[0]}: is no key of {where}, but of the others. Name views as the file does.")
    for view in views:
        span = index[view.name]
        got, expected = (view.role, tuple(view.shape)), (span.role, span.shape)
        if got != expected:
            raise ConformanceError(f"{view.name}: the library's layer says {got}, the index {expected}.")
        if not same_bits(view.read(), read_base(case.path, span).to(view.device)):
            raise ConformanceError(
                f"{view.name} ({view.backend}): read() of the library's layer is not what the file holds, in its order."
            )


def check_native_agrees_with_vendor(case: FormatCase) -> None:
    """Both models multiply with the same weights, layer by layer, and give the same logits."""
    theirs, _ = _vendor(case)
    ours, views = case.open()
    _same_weights(case, views, ours, weights_of(theirs), "the library's")
    x = _input(ours)
    if x is None:
        return
    with torch.no_grad():
        mine, other = (_output(model(x)) for model in (ours, theirs))
    if how := disagreement(mine, other, max(_LOGITS, TOLERANCE.get(other.dtype, COARSEST))):
        raise ConformanceError(
            f"{case.path}: all weights agree, and the logits of open_native() are {how} the library's."
        )


def check_native_agrees_with_reference(case: FormatCase) -> None:
    """Every matrix that the author's reference returns is that of the native layer."""
    if case.reference is None:
        raise NotHere("no reference was given: check_format(path, reference=...)")
    model, views = case.open()
    _same_weights(case, views, model, case.reference(case.path), "the reference's")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the dequantized weights of all layers that hold values, by their paths in the checkpoint."""
    names = kept_names(model)
    return {
        names.get(path, path): backend.dequantize(module).cpu()
        for path, module, backend in layers_of(model)
        if list(backend.open(module))
    }


def _same_weights(case: FormatCase, views: Views, model: nn.Module, others: Mapping[str, Tensor], whose: str) -> None:
    weights = weights_of(model)
    coarse = {view.layer.path for view in views if view.layer is not None and view.dtype == torch.bfloat16}
    for path, expected in others.items():
        if path not in weights:
            raise ConformanceError(f"{path}: is no layer of open_native(); layers are {', '.join(weights)}.")
        got, bound = weights[path], _COARSE_WEIGHTS if path in coarse else _WEIGHTS
        if got.shape != expected.shape:
            raise ConformanceError(f"{path}: the weight is {list(got.shape)}, and {whose} {list(expected.shape)}.")
        if how := disagreement(got, expected.cpu(), bound):
            raise ConformanceError(
                f"{path}: the native weight is {how} {whose}, expected within {bound:g}. open_native() reads "
                f"{case.path.name} in another way, and dequantize() of its layers with it."
            )


def _vendor(case: FormatCase) -> tuple[nn.Module, Any]:
    """Open the library's model, where the summary says that there is one."""
    said = case.format.summarize(case.path).runtimes.get("vendor", "no: the summary names no vendor runtime")
    if not isinstance(case.format, Vendor) or not said.startswith("yes"):
        raise NotHere(f"no vendor runtime here: {said}")
    try:
        return case.format.open_vendor(case.path, compute_dtype=case.compute_dtype, device=torch.device("cpu"))
    except Exception as error:
        raise ConformanceError(
            f"{case.path}: open_vendor() raised {type(error).__name__}, and the summary says {said!r}: {error}"
        ) from error


def _ids(tokenizer: Any) -> list[int]:
    return list(tokenizer(_TEXT)["input_ids"])


def _input(model: nn.Module) -> Tensor | None:
    """Return an input for a whole model: tokens of a language model, or what the first of a row of layers takes."""
    if hasattr(model, "get_input_embeddings"):
        return ordinary_ids(model, _TOKENS)[None]
    if isinstance(model, nn.Sequential):
        return next((backend.sample_input(module) for _, module, backend in layers_of(model)), None)
    return None


def _output(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found
