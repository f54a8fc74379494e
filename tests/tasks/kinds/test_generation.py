"""Generation: what is written, how it is scored, what is learned."""

from typing import Any

import pytest
import torch
import transformers

from zoquant.errors import DataError
from zoquant.tasks import Generation, Prompt
from zoquant.tasks.metrics import f1

CPU = torch.device("cpu")
ROWS = [{"q": f"what {'is ' * i}it", "label": ["it", "a tap"] if i % 2 else "rain"} for i in range(5)]
PROMPT = Prompt("Q: {q} A: {label}")


def task(tokenizer: Any, **more: Any) -> Generation:
    return Generation(ROWS, PROMPT, tokenizer, CPU, **{"max_new_tokens": 6, **more})


def greedy(model: Any, ids: list[int], count: int, ends: list[int]) -> list[int]:
    """Write token by token, one row, without a cache."""
    written: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            written.append(int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
        if written[-1] in ends:
            break
    return written


def test_a_batch_writes_what_each_prompt_alone_does(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    data = task(tokenizer)
    written_greedily(model, tokenizer, data)


ADVICE: list[dict[str, Any]] = [
    {"repetition_penalty": 9.0}, {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[token] for token in range(3, 160)]}, {"suppress_tokens": list(range(3, 160))},
    {"forced_eos_token_id": 40}, {"num_return_sequences": 2, "do_sample": True, "temperature": 9.0},
    {"return_dict_in_generate": True, "output_scores": True}, {"stop_strings": ["a"]},
]  # fmt: skip


@pytest.mark.parametrize("advice", ADVICE, ids=[next(iter(each)) for each in ADVICE])
def test_what_a_checkpoint_advises_for_chats_does_not_count(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, advice: dict[str, Any]
) -> None:
    model, tokenizer = loaded
    config = transformers.GenerationConfig(eos_token_id=99, **advice)
    monkeypatch.setattr(model, "generation_config", config)
    written_greedily(model, tokenizer, task(tokenizer))
    assert model.generation_config is config


def test_a_config_of_old_that_says_how_to_write(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr(model.config, "repetition_penalty", 9.0, raising=False)
    written_greedily(model, tokenizer, task(tokenizer))


def test_the_config_comes_back_where_writing_fails(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    own, data = model.generation_config, task(tokenizer)

    def fail(*_: Any, **__: Any) -> None:
        assert model.generation_config is not own
        raise MemoryError

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(MemoryError):
        data.generate(model, data.batch([0]))
    assert model.generation_config is own


def written_greedily(model: Any, tokenizer: Any, data: Generation) -> None:
    """See that a task writes what its own loop would."""
    texts = data.generate(model, data.batch(range(5)))
    for row, text in zip(ROWS, texts, strict=True):
        ids = greedy(model, tokenizer(f"Q: {row['q']} A:")["input_ids"], 6, data._ends)
        assert text == tokenizer.decode(ids, skip_special_tokens=True).strip().split("\n")[0].strip()


def test_evaluation_scores_what_was_written(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    data = task(tokenizer)
    texts = data.generate(model, data.batch(range(5)))
    found = data.evaluate(model, batch_size=2)
    expected = [f1(text, answers) for text, answers in zip(texts, data.references, strict=True)]
    assert found.primary == "f1"
    assert set(found.metrics) == {"f1", "exact-match", "loss"}
    assert found["f1"] == pytest.approx(sum(expected) / 5)
    assert [sample.text for sample in found.samples] == texts
    assert found.samples[1].references == ("it", "a tap")
    assert found.samples[0].prompt == "Q: what it A:"
    assert found.loss == pytest.approx(float(data.loss(model, data.batch(range(5)))), rel=1e-4)


def test_the_loss_is_that_of_the_first_answer_and_its_end(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    data = task(tokenizer)
    prompt = tokenizer("Q: what is it A:")["input_ids"]
    answer = tokenizer(" it\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
        expected = -sum(chances[len(prompt) - 1 + i, token] for i, token in enumerate(answer)) / len(answer)
        torch.testing.assert_close(data.loss(model, data.batch([1])), expected, rtol=1e-4, atol=1e-4)
        batch = data.batch([0, 1, 3])
        parts = sum(part.weight * data.loss(model, part) for part in batch.halves()) / batch.weight
        torch.testing.assert_close(parts, data.loss(model, batch), rtol=1e-4, atol=1e-4)


def test_a_stop_text_of_several_tokens_ends_a_text_only_as_a_whole(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is made to write `1:30 Q:x` after one prompt and `Q:xxxxxxx` after the other."""
    model, tokenizer = loaded
    data = task(tokenizer, stop="Q:", max_new_tokens=9)
    lines = tokenizer(["1:30Q:xxx", "Q:xxxxxxx"], add_special_tokens=False)["input_ids"]
    forward, calls = type(model).forward, list[int]()

    def write(self: Any, *given: Any, **more: Any) -> Any:
        out = forward(self, *given, **more)
        out.logits[:, -1] = 0
        for row, line in enumerate(lines):
            out.logits[row, -1, line[len(calls)]] = 1
        calls.append(len(calls))
        return out

    monkeypatch.setattr(type(model), "forward", write)
    assert data.generate(model, data.batch([0, 1])) == ["1:30", ""]
    assert len(calls) == 6


def test_without_a_stop_text_the_end_of_the_text_is_learned(loaded: tuple[Any, Any]) -> None:
    data = task(loaded[1], stop="")
    assert all(answer.ids[-1] == loaded[1].eos_token_id for answer in data.answers)


def test_metric_loss_writes_nothing(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    data = task(tokenizer, metric="loss")
    monkeypatch.setattr(data, "generate", None)
    found = data.evaluate(model)
    assert found.primary == "loss"
    assert found.samples == ()


@pytest.mark.parametrize(
    ("rows", "metric", "message"),
    [
        (ROWS, "bleu", "metric is 'bleu', expected one of f1, exact-match, rouge-l, loss"),
        ([], "f1", "the data hold no row"),
        ([{"q": "x"}], "f1", "row 1 has no field 'label'"),
        ([{"q": "x", "label": " "}], "f1", "row 1: the answer is ' ', expected a text"),
        ([{"q": "x", "label": []}], "f1", "row 1: the answer is \\[\\]"),
    ],
)
def test_what_does_not_fit_is_refused(loaded: tuple[Any, Any], rows: Any, metric: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Generation(rows, PROMPT, loaded[1], CPU, metric=metric)
