"""Language modelling: every token of a text counts, or every token that an assistant says in a chat."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoquant.errors import DataError, quoted
from zoquant.tasks.evaluation import Evaluation, Metric
from zoquant.tasks.fitting import in_groups
from zoquant.tasks.kinds.sequences import Scored, Sequences
from zoquant.tasks.rows import Row
from zoquant.tasks.sampling import Draws, by_length


class LanguageModeling:
    """Texts for a causal language model to predict.

    Args:
        texts: the sequences, e.g. of `text_sequences` or `chat_sequences`.
        device: where batches go.

    Raises:
        DataError: there is no sequence.
    """

    def __init__(self, texts: Sequence[Scored], device: torch.device) -> None:
        if not texts:
            raise DataError("the data hold no text of two tokens or more, expected at least one. Is the split empty?")
        self.texts, self.device = texts, device
        self._draws = Draws([0] * len(texts))

    def __len__(self) -> int:
        return len(self.texts)

    def batch_of_step(self, seed: int, step: int, size: int) -> Sequences:
        """Return the batch of one training step, a pure function of its arguments."""
        return self.batch(self._draws.of_step(seed, step, size))

    def batch(self, examples: Sequence[int]) -> Sequences:
        """Return some texts as a batch."""
        return Sequences.of([self.texts[i] for i in examples], self.device)

    def loss(self, model: nn.Module, batch: Sequences) -> Tensor:
        """Return the mean of −log p over the tokens that count, in nats."""
        return batch.loss(model)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, *, batch_size: int = 16) -> Evaluation:
        """Return the loss over all tokens that count; texts are what varies in its interval."""
        sums: list[float] = []
        counts: list[float] = []

        def measure(examples: list[int]) -> list[float]:
            found: list[float] = (-self.batch(examples).log_probs(model)).tolist()
            return found

        for examples, lost in in_groups(by_length([len(text.ids) for text in self.texts], batch_size), measure):
            sums += lost
            counts += [float(self.texts[i].count) for i in examples]
        return Evaluation("loss", {"loss": Metric.mean(sums, counts)}, len(self))


def text_sequences(rows: Sequence[Row], column: str, tokenizer: Any, max_length: int | None = None) -> list[Scored]:
    """Return plain texts as sequences; one longer than the model becomes several.

    Args:
        rows: the data.
        column: the column with the text.
        tokenizer: a transformers tokenizer.
        max_length: most tokens of a sequence; None for no bound.

    Raises:
        DataError: a row has no such column.
    """
    check_column(rows, column)
    found: list[list[int]] = tokenizer([row[column] for row in rows])["input_ids"]
    width = max_length or max(map(len, found))
    pieces = [ids[start : start + width] for ids in found for start in range(0, len(ids), width)]
    return [Scored(ids, [False] + [True] * (len(ids) - 1)) for ids in pieces if len(ids) > 1]


def chat_sequences(rows: Sequence[Row], column: str, tokenizer: Any, max_length: int | None = None) -> list[Scored]:
    """Return chats as sequences, laid out by the tokenizer's chat template; what the assistant says counts.

    A chat longer than the model ends early; one whose assistant says nothing within it is left out.

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
    check_column(rows, column)
    chats = []
    for number, row in enumerate(rows, 1):
        with _naming(number):
            chats.append(_chat(row[column], tokenizer))
    cut = [Scored(chat.ids[:max_length], chat.scored[:max_length]) for chat in chats]
    return [chat for chat in cut if chat.count]


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Say of which row an error within speaks."""
    try:
        yield
    except DataError as error:
        raise DataError(f"row {number}: {error}") from error


def _chat(messages: Any, tokenizer: Any) -> Scored:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        raise DataError(f"expected a list of messages with role and content, got {quoted(messages)}.")
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError("no message has the role assistant, so there is nothing to learn.")
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
    return Scored(whole, scored)


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
    """Return messages as the template lays them out.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the messages.
        prompt: add what the template puts before an answer.

    Raises:
        DataError: it refuses them, or cannot write what they hold.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise DataError(
            f"the chat template refuses messages of {roles:.100}: {' '.join(str(error).split())!r:.200}. Change the "
            "messages, or take a model whose template has room for them."
        ) from error
    return text


def check_column(rows: Sequence[Row], column: str) -> None:
    """See that every row has the column of the texts or chats.

    Raises:
        DataError: one has not.
    """
    for number, row in enumerate(rows, 1):
        if column not in row:
            raise DataError(
                f"row {number} has no field {column!r}. Its fields are {', '.join(map(repr, row))}. Name one of them: "
                f"--template '{{{next(iter(row), column)}}}', or rename the column."
            )
