"""Descent along the gradient: a backward a micro-batch, then one move of every delta by a rule of update."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from zoquant.errors import FLOAT16_OVERFLOWS, CheckpointError, LossError
from zoquant.optim.backward.layer_checkpoints import checkpointed
from zoquant.optim.closures import Closure, shares_of
from zoquant.optim.measuring import StepResult
from zoquant.record.rules import Adam, Rule
from zoquant.views.flat_buffer import Space
from zoquant.views.gradients import Gradients
from zoquant.views.model_views import Views

Reduce = Callable[[list[Tensor], Exception | None], None]
"""Adds up tensors over all processes, in place; raises if one of them could not compute its own."""


class GradientDescent:
    """Moves the deltas of views along their gradient; a context, at whose end the model asks for no gradient any more.

        g = Σ w_i · ∇L_i / Σ w_i, cut to the norm `clip`,    delta ← (1 − lr · decay) · delta − lr · rule(g)

    Args:
        model: the model that the views belong to.
        views: what `attach` returned for it.
        lr: learning rate; may be set anew before each step.
        rule: how g moves delta.
        clip: bound on the norm of g; None for none.
        decay: pull back to the base, per unit of lr.
        space: `"relative"`: theta = base · (1 + delta); `"absolute"`: theta = base + delta.
        checkpoint: keep of each layer of the model its input alone, and run it again in the backward.
        reduce: adds up over all processes, where several share a step: each gives the micro-batches that are its own.

    Raises:
        UnsupportedLayoutError: a layer has no backward, or there is no list of layers to checkpoint.
        ValueError: a number is out of its range, or coupled views shall move in absolute space.
    """

    def __init__(
        self,
        model: nn.Module,
        views: Views,
        *,
        lr: float = 2e-3,
        rule: Rule | None = None,
        clip: float | None = None,
        decay: float = 0.0,
        space: Space = "relative",
        checkpoint: bool = False,
        reduce: Reduce | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("decay", decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"GradientDescent: {name} is {value!r}, expected a finite number of at least 0.")
        if lr * decay > 1:
            raise ValueError(
                f"GradientDescent: lr is {lr!r}, expected at most 1 / decay = {1 / decay:g}: more leaps over the base."
            )
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"GradientDescent: clip is {clip!r}, expected a finite number above 0, or None.")
        self.views, self.lr, self.clip, self.decay = views, lr, clip, decay
        self.rule: Rule = Adam() if rule is None else rule
        self.steps = 0
        self.moves = 0
        self._reduce = reduce
        self._stack = ExitStack()
        with self._stack:
            if checkpoint:
                self._stack.enter_context(checkpointed(model))
            self._deltas = self._stack.enter_context(Gradients(model, views, space=space))
            self._stack = self._stack.pop_all()
        self._parameters = dict(self._deltas.named_parameters())
        with torch.inference_mode(False):
            self._states = {
                name: [torch.zeros_like(parameter, requires_grad=False) for _ in range(self.rule.states)]
                for name, parameter in self._parameters.items()
            }

    def __enter__(self) -> "GradientDescent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write theta, and let the model be as it was before."""
        self._deltas.zero_grad()
        self._stack.close()

    def step(
        self,
        closure: Closure | Sequence[Closure],
        weights: Sequence[float] | None = None,
        *,
        total: float | None = None,
    ) -> StepResult:
        """Do one step.

        Args:
            closure: returns the loss of a batch, a tensor with a gradient. Several closures are micro-batches: the loss
                is their weighted mean, and each has its backward before the next has its forward.
            weights: weight of each micro-batch, such as its number of examples; None weighs all the same.
            total: sum of the weights of all processes; None for the sum of these.

        Returns:
            What the step saw; its derivative is that along g itself: the norm of g, before it was cut.

        Raises:
            ValueError: the weights are not as many finite numbers above 0. Nothing has changed.
            LossError: a loss has no gradient, or a loss or a gradient is NaN or infinite. Nothing moved; the step
                counts.
            Exception: whatever a closure raises; nothing moved, and the step does not count.
        """
        closures = [closure] if callable(closure) else list(closure)
        shares = shares_of(closures, weights) if closures or total is None else []
        whole = sum(shares) if total is None else total
        try:
            loss, norm = self._gradient(closures, [share / whole for share in shares])
            if math.isfinite(loss) and math.isfinite(norm):
                self._move(norm)
        finally:
            self._deltas.zero_grad()
        self.steps += 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of the gradient is {norm}"
            raise LossError(
                f"step {self.steps - 1}: the {what}, expected a finite number. The step was undone; lower lr, set "
                f"clip, or look at the batch. {FLOAT16_OVERFLOWS}"
            )
        return StepResult(
            loss=loss, derivative=norm, clipped=self.clip is not None and norm > self.clip, moved=1.0, lr=self.lr,
            step=self.steps - 1,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Return what it takes to go on from here, by name: deltas, what the rule remembers, and two counts."""
        found = {f"delta.{name}": parameter.detach() for name, parameter in self._parameters.items()}
        for name, states in self._states.items():
            found |= {f"state{number}.{name}": state for number, state in enumerate(states)}
        return {**found, "counts": torch.tensor([self.steps, self.moves])}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises:
            CheckpointError: a tensor is missing, has another shape or dtype, or is not finite. Nothing has changed.
        """
        own = self.state()
        for name in own.keys() | state.keys():
            given, expected = state.get(name), own.get(name)
            if given is None or expected is None or (given.shape, given.dtype) != (expected.shape, expected.dtype):
                raise CheckpointError(
                    f"{name}: the state of a descent has {_told(given)}, expected {_told(expected)}. Go on with the "
                    "views and the rule of the run."
                )
            if not torch.isfinite(given).all():
                raise CheckpointError(f"{name}: the state of a descent holds NaN or infinity. Begin the run again.")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        self.steps, self.moves = map(int, state["counts"].tolist())
        self._deltas.write()

    def _gradient(self, closures: Sequence[Closure], shares: Sequence[float]) -> tuple[float, float]:
        """Add up the gradient, and return the loss and its norm."""
        total, failure = torch.zeros((), dtype=torch.float64), None
        try:
            for closure, share in zip(closures, shares, strict=True):
                total += self._backward(closure, share)
            for parameter in self._parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        except Exception as error:
            if self._reduce is None:
                raise
            failure = error
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        if self._reduce is not None:
            self._reduce([total, *gradients], failure)
        squares = [gradient.double().square().sum().cpu() for gradient in gradients]
        return float(total), float(torch.stack(squares).sum().sqrt())

    def _backward(self, closure: Closure, share: float) -> Tensor:
        """Add the gradient of a micro-batch, and return its part of the loss."""
        with torch.enable_grad():
            loss = closure()
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise LossError(
                    f"step {self.steps}: the closure returned {type(loss).__name__} without a gradient, expected a "
                    "tensor that depends on the views. Train by forwards alone, with ZOSGD."
                )
            part = loss * share
        part.backward()  # type: ignore[no-untyped-call]
        return part.detach().double().cpu()

    @torch.no_grad()
    def _move(self, norm: float) -> None:
        """Move every delta by what the rule makes of its gradient, and write theta."""
        sizes: dict[torch.device, int] = {}
        for parameter in self._parameters.values():
            sizes[parameter.device] = max(sizes.get(parameter.device, 0), parameter.numel())
        scratch = {device: torch.empty(size, device=device) for device, size in sizes.items()}
        self.moves += 1  # from here on nothing asks for memory
        cut = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        for name, parameter in self._parameters.items():
            gradient = cast(Tensor, parameter.grad)
            free = scratch[parameter.device].view(-1)[: parameter.numel()].view(parameter.shape)
            move = self.rule.transform(gradient.mul_(cut), self._states[name], self.moves, free)
            if self.decay:
                parameter.mul_(1 - self.lr * self.decay)
            parameter.add_(move.mul_(-self.lr))
            parameter.grad = None
        self._deltas.write()


def _told(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
