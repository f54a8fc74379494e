"""Greedy decoding: the likeliest token, whatever a checkpoint advises for chats."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def write_greedily(
    model: nn.Module, ids: Tensor, seen: Tensor, *, most: int, ends: Sequence[int], fill: int, stopping: Any
) -> Tensor:
    """Return prompts with what a model writes after them, int64 `[rows, length]`.

    The prompts are filled up before them, where `seen` is 0. One of the tokens `ends` ends a text, or what `stopping`,
    further criteria of transformers, says.

    The generation config of the model counts for nothing but the kind of its cache: neither penalties nor forbidden
    words, least lengths or forms of the result.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=most, eos_token_id=list(ends) or None, pad_token_id=fill,
        cache_implementation=getattr(own, "cache_implementation", None),
    )  # fmt: skip
    writer: Any = model
    with _instead(model, greedy):
        written: Tensor = writer.generate(
            input_ids=ids, attention_mask=seen, generation_config=greedy, stopping_criteria=stopping
        )
    return written


@contextmanager
def _instead(model: nn.Module, config: Any) -> Iterator[None]:
    """Hold a generation config in place of each that a model has: from there transformers fills what another omits."""
    held = [(module, module.generation_config) for module in model.modules() if "generation_config" in vars(module)]
    for module, _ in held:
        module.generation_config = config
    try:
        yield
    finally:
        for module, own in held:
            module.generation_config = own
