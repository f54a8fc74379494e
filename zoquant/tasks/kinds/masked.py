"""Classification by a masked language model: the label word fills the mask.

Source: MeZO (arXiv 2305.17333, appendix E.1), after LM-BFF (Gao et al., arXiv 2012.15723).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import DataError
from zoquant.tasks.encoding import log, padded
from zoquant.tasks.kinds.examples import Labelled, WordChoices
from zoquant.tasks.rows import Row
from zoquant.tasks.template import LABEL, Fielded, check_words, label_numbers


@dataclass(frozen=True)
class Cloze(Fielded):
    """A text with `{label}` where the mask stands, and the word for each label value.

    Attributes:
        words: the label's words by its value in the data.
    """

    words: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.text.count(LABEL) != 1:
            raise DataError(
                f"template {self.text!r} has no {{label}}, or several. Write e.g. '{{text}} It was {{label}}.'"
            )
        super().__post_init__()
        check_words(self.words)

    def sides(self, row: Row) -> tuple[str, str]:
        """Return the texts before and after the mask."""
        before, after = self.text.split(LABEL)
        return before.format_map(row), after.format_map(row)


@dataclass(frozen=True)
class MaskedBatch(Labelled):
    """Some examples as token ids.

    Attributes:
        seen: 1 for a token, 0 for padding, int64 `[examples, length]`.
        masks: place of the mask, int64 `[examples]`.
    """

    seen: Tensor
    masks: Tensor

    def part(self, start: int, stop: int) -> "MaskedBatch":
        return MaskedBatch(*(each[start:stop] for each in (self.ids, self.labels, self.seen, self.masks)))


class MaskedClassification(WordChoices[MaskedBatch]):
    """Examples of one cloze, ready to be scored by a masked language model.

    A text that is too long loses the beginning of what stands before the mask, and then the end of what follows it.

    Args:
        cloze: the text and the label words.
        rows, tokenizer, device, max_length, balanced: see `Classification`.

    Raises:
        DataError: a field is missing, a label is unknown, a label word has several tokens, or there is no mask token.
    """

    def __init__(
        self, rows: Sequence[Row], cloze: Cloze, tokenizer: Any, device: torch.device, *,
        max_length: int | None = None, balanced: bool = True,
    ) -> None:  # fmt: skip
        if tokenizer.mask_token_id is None:
            raise DataError("the tokenizer has no mask token. Take a masked model, or --task classification.")
        cloze.check(rows, [cloze.label])
        labels = label_numbers(rows, cloze.words, cloze.label)
        words = [tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"] for word in cloze.words.values()]
        for word, ids in zip(cloze.words.values(), words, strict=True):
            if len(ids) != 1:
                raise DataError(
                    f"labels: {word.strip()!r} is {len(ids)} tokens, but a mask is one. Choose another word."
                )
        if len({ids[0] for ids in words}) < len(words):
            said = ", ".join(map(repr, cloze.words.values()))
            raise DataError(f"labels: two of {said} are the same token. Choose other words.")
        self._tokens = torch.tensor([ids[0] for ids in words], device=device)
        self._fill = tokenizer.pad_token_id or 0
        fitted = [_fit(*cloze.sides(row), tokenizer, max_length) for row in rows]
        self.texts = [ids for ids, _, _ in fitted]
        self.masks = [place for _, place, _ in fitted]
        lengths, names = [len(text) for text in self.texts], list(cloze.words.values())
        super().__init__(
            labels, lengths, names, device, lambda example: "[...]".join(cloze.sides(rows[example])), balanced=balanced
        )
        if cut := sum(was for _, _, was in fitted):
            log.warning(
                "%d of %d texts are longer than the %s tokens of the model and are cut.", cut, len(rows), max_length
            )

    def batch(self, examples: Sequence[int]) -> MaskedBatch:
        texts = [self.texts[i] for i in examples]
        ids, seen = padded(texts, self._fill), padded([[1] * len(text) for text in texts])
        masks, labels = (torch.tensor([values[i] for i in examples]) for values in (self.masks, self.labels))
        return MaskedBatch(*(tensor.to(self.device) for tensor in (ids, labels, seen, masks)))

    def scores(self, model: nn.Module, batch: MaskedBatch) -> Tensor:
        """Return the logits of the label words at the mask: float32 `[examples, labels]`."""
        whole: Any = model
        head = getattr(whole, "lm_head", None) or getattr(whole, "cls", None)
        rows = torch.arange(len(batch.ids), device=batch.ids.device)
        if head is None:
            logits = whole(input_ids=batch.ids, attention_mask=batch.seen).logits[rows, batch.masks]
        else:
            states = whole.base_model(input_ids=batch.ids, attention_mask=batch.seen).last_hidden_state
            logits = head(states[rows, batch.masks])
        found: Tensor = logits[:, self._tokens].float()
        return found


def _fit(before: str, after: str, tokenizer: Any, max_length: int | None) -> tuple[list[int], int, bool]:
    """Return the tokens of a text with its mask, the place of the mask, and whether anything was cut off."""
    text, mask = f"{before}{tokenizer.mask_token}{after}", tokenizer.mask_token_id
    whole, bare = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    if bare.count(mask) != 1:
        raise DataError(f"{before[:60]!r} holds a mask token of its own, expected the template's alone. Take it out.")
    first, place = whole.index(mask) - bare.index(mask), bare.index(mask)
    head, tail = whole[:first], whole[first + len(bare) :]
    room = len(bare) if max_length is None else max_length - len(head) - len(tail)
    start = min(max(len(bare) - room, 0), place)
    return [*head, *bare[start : start + room], *tail], first + place - start, len(bare) > room
