"""Laws 2, 3 and 7: training moves no code, leaves no trace that it should not, and replays."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from zoquant.optim.optimizer import ZOSGD
from zoquant.record.delta import load_delta, save_delta
from zoquant.record.replay import replay
from zoquant.testing.case import (
    BackendCase,
    attached,
    loss_of,
    opened,
    opened_inputs,
    other_values,
    quietly,
    train,
    values_of,
)
from zoquant.testing.results import ConformanceError
from zoquant.testing.tensors import codes_of, same_bits
from zoquant.views.model_views import Views


def check_codes_never_change(case: BackendCase) -> None:
    """Every integer tensor that hangs on the module holds the same bytes after each write, and after training."""
    model = case.model()
    layers = opened(model)
    raw = [view for layer in layers for view in layer.views]
    before = codes_of(model, raw)
    for layer in layers:
        for view in layer.views:
            layer.write(view, other_values(view.read().clone()))
            _same_codes(before, codes_of(model, raw), f"a write to {layer.name(view)}")
    train(model, attached(model))
    _same_codes(before, codes_of(model, raw), "training")


def _same_codes(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> None:
    for path in before.keys() | after.keys():
        if path not in before or path not in after or not torch.equal(before[path], after[path]):
            raise ConformanceError(
                f"{path}: an integer tensor that {what} changed, made or removed. Codes never change: keep what the "
                "kernel rearranges in a copy of its own."
            )


def check_nothing_drifts(case: BackendCase) -> None:
    """Many steps at lr = 0 leave every value and every output as they were, to the bit."""
    model = case.model()
    outputs, views = _outputs(model), attached(model)
    before = values_of(views)
    train(model, views, steps=case.steps, lr=0.0)
    _same(f"after {case.steps} steps at lr=0", views, before, model, outputs)


def check_raising_loss_leaves_no_trace(case: BackendCase) -> None:
    """A loss that raises, in either evaluation, before or after the forward, leaves everything as it was."""
    for evaluation in (1, 2):
        for late in (False, True):
            model = case.model()
            outputs, views = _outputs(model), attached(model)
            before = values_of(views)
            loss = _raising(loss_of(model, views), evaluation, late)
            optimizer = ZOSGD(views, lr=1e-2, eps=3e-2)
            try:
                with quietly():
                    optimizer.step(loss)
            except _Interrupt:
                pass
            else:
                raise ConformanceError("a step whose loss raised came to its end.")
            _same(f"after a loss that raised in evaluation {evaluation}", views, before, model, outputs)


def check_trajectory_replays(case: BackendCase) -> None:
    """A trajectory replayed, and a delta loaded, give the very bytes that the run left."""
    with TemporaryDirectory() as folder:
        path, delta = Path(folder, "trajectory.safetensors"), Path(folder, "delta.safetensors")
        model = case.model()
        views = attached(model)
        train(model, views).trajectory.save(path)
        save_delta(delta, views)
        expected = values_of(views)
        for how, follow in (("replay", replay), ("load_delta", load_delta)):
            follower = attached(case.model())
            follow(path if how == "replay" else delta, follower)
            _same(f"after {how} on a fresh module", follower, expected)


class _Interrupt(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def _raising(loss: Callable[[], float], evaluation: int, late: bool) -> Callable[[], float]:
    calls = 0

    def closure() -> float:
        nonlocal calls
        calls += 1
        if calls == evaluation and not late:
            raise _Interrupt
        value = loss()
        if calls == evaluation:
            raise _Interrupt
        return value

    return closure


def _outputs(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [module(x).clone() for module, x in opened_inputs(model)]


def _same(
    when: str,
    views: Views,
    expected: dict[str, Tensor],
    model: nn.Module | None = None,
    outputs: list[Tensor] | None = None,
) -> None:
    got = values_of(views)
    for name in expected.keys() | got.keys():
        if name not in got or name not in expected:
            raise ConformanceError(f"{name}: {when}: the keys are {sorted(got)}, expected {sorted(expected)}.")
        if not same_bits(got[name], expected[name]):
            count = int((got[name] != expected[name]).sum())
            raise ConformanceError(
                f"{name}: {when}: {count} of {got[name].numel()} values differ. write() must store exactly the cast of "
                "its argument, whatever was stored before."
            )
    if model is not None and outputs is not None:
        for (module, x), before in zip(opened_inputs(model), outputs, strict=True):
            with torch.no_grad():
                after = module(x)
            if not same_bits(after, before):
                raise ConformanceError(f"{type(module).__name__}: {when}: the values are the same, the output is not.")
