"""Texts to token ids that fit a model."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import DataError

log = logging.getLogger("zoquant")


class Encoder:
    """Turns texts into token ids, once, before training.

    A prompt that is too long loses its beginning, since what is asked stands at the end; a token that begins every text
    stays. How many prompts were cut is logged as a warning.

    Args:
        tokenizer: a transformers tokenizer.
        max_length: most tokens of prompt and continuation together; None for no bound.
        prefix: text before every prompt, e.g. worked examples.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None, prefix: str = "") -> None:
        self.tokenizer, self.max_length, self.prefix = tokenizer, max_length, prefix

    def prompts(self, texts: Sequence[str], after: Sequence[int]) -> list[list[int]]:
        """Return the token ids of prompts that leave room for `after` tokens; an empty one becomes what begins a text.

        Raises:
            DataError: what follows a prompt leaves no room for it.
        """
        whole = [self.prefix + text for text in texts]
        found: list[list[int]] = self.tokenizer(whole)["input_ids"]
        found = [self._open(text, ids) for text, ids in zip(whole, found, strict=True)]
        found = [ids or [self._first()] for ids in found]
        if self.max_length is None:
            return found
        room = [self.max_length - count for count in after]
        if min(room) < 2:
            raise DataError(
                f"an answer has up to {max(after)} tokens, but the model takes {self.max_length} with its prompt. "
                "Shorten it, or set a smaller --max-new-tokens."
            )
        cut = [number for number, ids in enumerate(found) if len(ids) > room[number]]
        if cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens of the model: their beginnings are cut off.",
                len(cut), len(found), self.max_length,
            )  # fmt: skip
        return [self._cut(ids, free) for ids, free in zip(found, room, strict=True)]

    def continuation(self, text: str, before: str = "") -> list[int]:
        """Return the token ids of what follows a prompt, of which `before` is how it ends.

        They are those that a text gains when this is added to it, so that a token which a tokenizer puts at the
        beginning of every text is not among them. A new line stands for what differs from row to row. Where the last
        token before would become another one, this follows the new line alone; where that would too, nothing.

        Raises:
            DataError: the text has no tokens.
        """
        gained = (self._gained(start, text) for start in (f"\n{before}", "\n"))
        ids = next((ids for ids in gained if ids is not None), None) or self._bare(text)
        if not ids:
            raise DataError(f"{text!r} has no tokens, expected at least one. Is a label or an answer empty?")
        return ids

    def _gained(self, start: str, text: str) -> list[int] | None:
        """Return the tokens that a start gains when a text is added to it, None if its own change."""
        alone, whole = self._bare(start), self._bare(start + text)
        return whole[len(alone) :] if whole[: len(alone)] == alone else None

    def _bare(self, text: str) -> list[int]:
        """Return the tokens of a text without those that begin and end every text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _open(self, text: str, ids: list[int]) -> list[int]:
        """Return a prompt without the token that the tokenizer puts at the end of a text: something follows it."""
        if not ids or ids[-1] != self.tokenizer.eos_token_id:
            return ids
        bare = self._bare(text)
        starts = range(len(ids) - len(bare) + 1)
        return next((ids[: at + len(bare)] for at in starts if ids[at : at + len(bare)] == bare), ids)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        kept = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return kept + ids[len(ids) - room + len(kept) :]

    def _first(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise DataError("a prompt is empty, and the tokenizer has no token that begins a text. Give the prompt a word.")


def longest(model: nn.Module) -> int | None:
    """Return the most tokens that a model takes, None if its config does not say."""
    whole: int | None = getattr(text_config(model), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if whole is not None and name.endswith("embeddings.position_embeddings") and isinstance(module, nn.Embedding):
            return whole if module.padding_idx is None else whole - module.padding_idx - 1
    return whole


def text_config(model: nn.Module) -> Any:
    """Return the config of a model, or of the part that reads text where it has others; None if it has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def padded(sequences: Sequence[Sequence[int]], fill: int = 0, *, left: bool = False) -> Tensor:
    """Return sequences as rows of one tensor, int64 `[rows, longest]`, filled up at the end or, with `left`, before."""
    out = torch.full((len(sequences), max(map(len, sequences))), fill, dtype=torch.int64)
    for line, row in zip(out, sequences, strict=True):
        part = line[len(line) - len(row) :] if left else line[: len(row)]
        part.copy_(torch.tensor(row, dtype=torch.int64))
    return out
