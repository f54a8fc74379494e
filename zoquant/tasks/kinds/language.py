"""Language modelling: every token of a text counts, or every token that an assistant says in a chat."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoquant.errors import DataError, one_line, shown
from zoquant.tasks.evaluation import Evaluation, Metric
from zoquant.tasks.kinds.sequences import Scored, SequenceExamples, Sequences, log_probs_of
from zoquant.tasks.rows import Row
from zoquant.tasks.rows.naming import naming
from zoquant.tasks.template import NO_ROW

log = logging.getLogger("zoquant")


class LanguageModeling(SequenceExamples[Sequences]):
    """Texts for a causal language model to predict.

    Raises:
        DataError: there is no sequence.
    """

    def __init__(self, texts: Sequence[Scored], device: torch.device) -> None:
        if not texts:
            raise DataError("the data hold no text of two tokens or more, expected at least one. Is the split empty?")
        super().__init__([0] * len(texts), device)
        self.texts = texts

    def batch(self, examples: Sequence[int]) -> Sequences:
        return Sequences.of([self.texts[i] for i in examples], self.device)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch_size: int = 16) -> Evaluation:
        """Return the loss over all tokens that count; texts are what varies in its interval."""
        sums = log_probs_of(model, self.texts, self.device, batch_size)
        loss = Metric.mean([-each for each in sums], [float(text.count) for text in self.texts])
        return Evaluation("loss", {"loss": loss}, len(self))


def text_sequences(rows: Sequence[Row], column: str, tokenizer: Any, max_length: int | None = None) -> list[Scored]:
    """Return plain texts as sequences; one longer than the model becomes several.

    Raises:
        DataError: a row has no such column, or something else than text in it.
    """
    check_texts(rows, column)
    found: list[list[int]] = tokenizer([row[column] for row in rows])["input_ids"]
    width = max_length or max(1, *map(len, found))
    pieces = [ids[start : start + width] for ids in found for start in range(0, len(ids), width)]
    return [Scored(ids, [False] + [True] * (len(ids) - 1)) for ids in pieces if len(ids) > 1]


def chat_sequences(rows: Sequence[Row], column: str, tokenizer: Any, max_length: int | None = None) -> list[Scored]:
    """Return chats as sequences, laid out by the tokenizer's chat template; what the assistant says counts.

    A chat longer than the model ends early; one whose assistant says nothing within it is left out. How many were cut
    and left out is logged as a warning.

    Args:
        rows: the data.
        column: the column with the messages, each with `role` and `content`.
        tokenizer: a transformers tokenizer with a chat template.
        max_length: most tokens of a sequence; None for no bound.

    Raises:
        DataError: there is no template, a row has no messages, or the template refuses or rewrites them.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("the tokenizer has no chat template. Take a chat model, or --task generation with a template.")
    check_chats(rows, column)
    chats = []
    for number, row in enumerate(rows, 1):
        with naming(f"row {number}"):
            chats.append(_chat(row[column], tokenizer))
    cut = [Scored(chat.ids[:max_length], chat.scored[:max_length]) for chat in chats]
    kept = [chat for chat in cut if chat.count]
    if short := sum(len(each.ids) < len(chat.ids) for each, chat in zip(cut, chats, strict=True)):
        log.warning(
            "%d of %d chats are longer than the %d tokens of the model: their ends are cut off, and %d of them are "
            "left out, since the assistant says nothing before.", short, len(chats), max_length, len(cut) - len(kept),
        )  # fmt: skip
    return kept


def check_chats(rows: Sequence[Row], column: str) -> None:
    """See that every row has messages of which the assistant says one."""
    check_column(rows, column)
    for number, row in enumerate(rows, 1):
        messages = row[column]
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise DataError(
                f"row {number}: expected a list of messages with role and content in column {column!r}, got "
                f"{shown(messages)}. Rename the parts, or name the column that holds them: --template '{{{column}}}'."
            )
        if not any(message["role"] == "assistant" for message in messages):
            raise DataError(
                f"row {number}: no message has the role assistant, so there is nothing to learn. Leave the row out, or "
                "rename the role."
            )


def _is_message(part: Any) -> bool:
    return isinstance(part, dict) and {"role", "content"} <= {*part}


def _chat(messages: Any, tokenizer: Any) -> Scored:
    whole = _ids(tokenizer, messages)
    scored = [False] * len(whole)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _upto(whole, tokenizer, messages[:place], prompt=True) if place else _content(tokenizer, message)
            end = _upto(whole, tokenizer, messages[: place + 1])
            if start is None or end is None:
                raise DataError(
                    f"the chat template writes message {place + 1} otherwise when more follow, so its "
                    "tokens cannot be told apart. Put each answer into a row of its own."
                )
            scored[start:end] = [True] * (end - start)
    return Scored(whole, [False, *scored[1:]])  # nothing stands before the first, so nothing predicts it


def _upto(whole: list[int], tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool = False) -> int | None:
    """Return how many tokens of a chat its first messages are, None where they are written otherwise in it.

    A space at their end belongs to the token of the word that follows it, so they may end before it.
    """
    text = _written(tokenizer, messages, prompt=prompt)
    for said in dict.fromkeys((text, text.rstrip(" "))):
        ids = _tokens(tokenizer, said)
        if whole[: len(ids)] == ids:
            return len(ids)
    return None


def _content(tokenizer: Any, message: dict[str, str]) -> int:
    """Return how many tokens the template puts before a message that begins a chat, e.g. a system prompt; one or more.

    They end where the tokens of the message differ from those of one whose first letter is another.
    """
    other = "b" if str(message["content"]).lstrip().startswith("a") else "a"
    ids, others = _ids(tokenizer, [message]), _ids(tokenizer, [message | {"content": other}])
    same = next((at for at, pair in enumerate(zip(ids, others, strict=False)) if len(set(pair)) > 1), len(ids))
    return max(1, same)


def _ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the tokens of messages as the template lays them out."""
    return _tokens(tokenizer, _written(tokenizer, messages))


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _written(tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
    """Return messages as the template lays them out."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise DataError(
            f"the chat template refuses messages of {roles:.100}: {one_line(error)!r:.200}. Change the "
            "messages, or take a model whose template has room for them."
        ) from error
    return text


def check_texts(rows: Sequence[Row], column: str) -> None:
    """See that every row has a text."""
    check_column(rows, column)
    for number, row in enumerate(rows, 1):
        if not isinstance(row[column], str):
            raise DataError(
                f"row {number}: expected a text in column {column!r}, got {shown(row[column])}. Name the column that "
                f"holds the text: --template '{{{column}}}'; a list of messages is for --task chat."
            )


def check_column(rows: Sequence[Row], column: str) -> None:
    """See that every row has the column of the texts or chats."""
    if not rows:
        raise DataError(NO_ROW)
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise DataError(
                f"row {number} has no field {column!r}. Its fields are {', '.join(map(repr, row))}. Name one of them: "
                f"--template '{{{next(iter(row), column)}}}', or rename the column."
            )
