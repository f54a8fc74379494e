"""The norm that a causal language model ends with: what goes into it, and what the head makes of it."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zoquant.errors import UnsupportedLayoutError
from zoquant.tasks.scoring import hidden_states
from zoquant.views.dry_run import ordinary_ids, trial


def final_norm(model: nn.Module) -> str:
    """Return the path of the norm of a causal language model of transformers whose output is the last hidden state.

    Raises:
        UnsupportedLayoutError: there is none, or a task cannot score tokens by the model's hidden states.
    """
    ids = ordinary_ids(model, 4)[None]
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks, trial():
        hidden_states(model, ids)  # checks the model before a hook changes what it gives
        for path, module in model.named_modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 1:
                hooks.enter_context(_noting(path, module, outputs))
        last = hidden_states(model, ids)
    found = [path for path, output in outputs.items() if output.shape == last.shape and torch.equal(output, last)]
    if not found:
        raise UnsupportedLayoutError(
            f"{type(model).__name__}: no norm gives the last hidden state, so there is nothing to fit in front of the "
            "head. Take gradient forward."
        )
    return found[-1]


def left_out(norm: nn.Module) -> RemovableHandle:
    """Let a norm give back what goes into it, within a `with`."""
    return norm.register_forward_hook(lambda module, inputs, output: inputs[0])


def _noting(path: str, module: nn.Module, outputs: dict[str, Tensor]) -> RemovableHandle:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[path] = output

    return module.register_forward_hook(note)
