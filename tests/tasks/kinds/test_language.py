"""Plain text and chat."""

import logging
from typing import Any

import pytest
import torch

from zoquant.errors import DataError
from zoquant.tasks import LanguageModeling
from zoquant.tasks.kinds.language import chat_sequences, text_sequences

CPU = torch.device("cpu")
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "so"},
    {"role": "assistant", "content": "bad"},
]


@pytest.fixture
def chatty(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(loaded[1], "chat_template", CHATML)
    return loaded[1]


def test_every_token_of_a_text_counts_once(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = [{"text": "the old radio broke"}, {"text": "rain"}]
    data = LanguageModeling(text_sequences(rows, "text", tokenizer), CPU)
    total = count = 0.0
    for row in rows:
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert data.evaluate(model).loss == pytest.approx(total / count, rel=1e-4)
    assert float(data.loss(model, data.batch([0, 1]))) == pytest.approx(total / count, rel=1e-4)


def test_a_long_text_becomes_several(loaded: tuple[Any, Any]) -> None:
    whole = loaded[1]("abcdefghij")["input_ids"]
    pieces = text_sequences([{"text": "abcdefghij"}], "text", loaded[1], 4)
    kept = [token for piece in pieces for token in piece.ids]
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) <= 1
    assert max(len(piece.ids) for piece in pieces) == 4


def test_what_the_assistant_says_counts(chatty: Any) -> None:
    (chat,) = chat_sequences([{"messages": CHAT}], "messages", chatty)
    said = [token for token, counts in zip(chat.ids, chat.scored, strict=True) if counts]
    assert chatty.decode(said) == "good|bad|"
    assert chatty.decode(chat.ids) == "<user>hi|<assistant>good|<user>so|<assistant>bad|"


@pytest.mark.parametrize("start", ["<s>Be kind, and agree.|", "Be kind.|", ""])
@pytest.mark.parametrize("said", ["good", "and so", ""])
def test_what_the_template_says_first_does_not_count(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, start: str, said: str
) -> None:
    """A chat that the assistant begins: neither a system prompt counts nor the name of who speaks."""
    monkeypatch.setattr(loaded[1], "chat_template", start + CHATML)
    chat = [{"role": "assistant", "content": said}, *CHAT]
    (found,) = chat_sequences([{"messages": chat}], "messages", loaded[1])
    counted = [token for token, counts in zip(found.ids, found.scored, strict=True) if counts]
    assert loaded[1].decode(counted) == f"{said}|good|bad|"
    assert not found.scored[0]


def test_a_chat_without_anything_before_it(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded[1], "chat_template", "{% for m in messages %}{{ m.content }}|{% endfor %}")
    (found,) = chat_sequences([{"messages": CHAT[1:2]}], "messages", loaded[1])
    assert found.scored == [False] + [True] * (len(found.ids) - 1)


def test_texts_without_a_token(loaded: tuple[Any, Any]) -> None:
    assert text_sequences([{"text": ""}, {"text": ""}], "text", loaded[1]) == []


def test_the_first_token_of_a_chat_never_counts(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """This template leaves out what the user says, so nothing stands before the answer, to predict its first token."""
    template = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}|{% endfor %}"
    monkeypatch.setattr(loaded[1], "chat_template", template)
    (found,) = chat_sequences([{"messages": CHAT[:2]}], "messages", loaded[1])
    assert found.scored == [False] + [True] * (len(found.ids) - 1)


def test_chats_that_are_cut_or_left_out_are_counted(chatty: Any, caplog: pytest.LogCaptureFixture) -> None:
    (whole,) = chat_sequences([{"messages": CHAT}], "messages", chatty)
    late = [{"role": "user", "content": "a long question indeed, about rain and the old radio"}, *CHAT[1:2]]
    rows = [{"messages": chat} for chat in (CHAT, late, CHAT[:2])]
    with caplog.at_level(logging.WARNING, "zoquant"):
        assert len(chat_sequences(rows, "messages", chatty, len(whole.ids) - 1)) == 2
    assert f"2 of 3 chats are longer than the {len(whole.ids) - 1} tokens of the model" in caplog.text
    assert "and 1 of them are left out" in caplog.text


def test_a_long_chat_ends_early(chatty: Any) -> None:
    (whole,) = chat_sequences([{"messages": CHAT}], "messages", chatty)
    (short,) = chat_sequences([{"messages": CHAT}], "messages", chatty, len(whole.ids) - 1)
    assert short.ids == whole.ids[:-1]
    assert chat_sequences([{"messages": CHAT}], "messages", chatty, 3) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "row 1 has no field 'messages'"),
        ({"messages": "hello"}, "row 1: expected a list of messages"),
        ({"messages": [{"role": "user"}]}, "row 1: expected a list of messages"),
        ({"messages": CHAT[:1]}, "no message has the role assistant"),
    ],
)
def test_bad_chats(chatty: Any, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        chat_sequences([row], "messages", chatty)


def test_a_template_that_rewrites_what_was_said(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded[1], "chat_template", "{{ messages | length }}" + CHATML)
    with pytest.raises(DataError, match="writes message 2 otherwise when more follow"):
        chat_sequences([{"messages": CHAT}], "messages", loaded[1])


SPACED = "".join([
    "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}",
    "{% if add_generation_prompt %}assistant: {% endif %}",
])  # fmt: skip


def test_a_generation_prompt_that_ends_in_a_space(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The space belongs to the token of the first word of the answer, and one after it to that of the next role."""
    monkeypatch.setattr(loaded[1], "chat_template", SPACED)
    (found,) = chat_sequences([{"messages": CHAT}], "messages", loaded[1])
    counted = loaded[1].decode([token for token, counts in zip(found.ids, found.scored, strict=True) if counts])
    answers = [each["content"] for each in CHAT if each["role"] == "assistant"]
    assert counted.split() == " ".join(answers).split()
    assert "assistant" not in counted


ALTERNATING = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('System role not\n"
    " supported') }}{% endif %}{% if (m.role == 'user') != loop.index0 is even %}{{ raise_exception('Roles must "
    "alternate') }}{% endif %}{{ '<' + m.role + '>' + m.content + '|' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (
            [{"role": "system", "content": "x"}, *CHAT],
            "system, user, .*: 'System role not supported'. Change the messages",
        ),
        ([*CHAT, *CHAT[1:2]], "user, .*, assistant, assistant: 'Roles must alternate'"),
        ([{"role": "user", "content": ["a picture"]}, *CHAT[1:]], "user, assistant, .*can only concatenate str"),
    ],
)
def test_a_template_that_refuses_a_chat(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, chat: Any, message: str
) -> None:
    monkeypatch.setattr(loaded[1], "chat_template", ALTERNATING)
    rows = [{"messages": CHAT}, {"messages": chat}]
    with pytest.raises(DataError, match="^row 2: the chat template refuses messages of " + message):
        chat_sequences(rows, "messages", loaded[1])


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages[0].content.nothing.at_all }}"])
def test_a_damaged_chat_template(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(loaded[1], "chat_template", template)
    with pytest.raises(DataError, match=r"^row 1: the chat template refuses messages of user, assistant"):
        chat_sequences([{"messages": CHAT}], "messages", loaded[1])


def test_without_a_chat_template_or_a_text(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        chat_sequences([{"messages": CHAT}], "messages", loaded[1])
    with pytest.raises(DataError, match="hold no text of two tokens"):
        LanguageModeling([], CPU)
