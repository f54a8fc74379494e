"""Classification: templates, batches and scores."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE
from zoquant.errors import DataError
from zoquant.optim.probes.probe import Probe
from zoquant.tasks import Classification, Template
from zoquant.tasks.scoring import hidden_states, logits_at
from zoquant.tasks.template import parse_words

CPU = torch.device("cpu")


def task(tokenizer: Any, labels: str = LABELS, template: str = TEMPLATE, rows: Sequence[Any] = ROWS) -> Classification:
    return Classification(rows, Template(template, parse_words(labels)), tokenizer, CPU)


@pytest.mark.parametrize("labels", ["0=bad,1=good", "0= bad,1= good"])
def test_a_label_word_follows_with_one_space(labels: str) -> None:
    template = Template(TEMPLATE, parse_words(labels))
    assert template.prompt({"sentence": "Fine."}) == "Fine. It was"
    assert template.continuation("1") == " good"


@pytest.mark.parametrize(
    ("template", "labels", "message"),
    [
        ("{sentence} It was", LABELS, "does not end in {label}"),
        ("{label} {sentence} It was {label}", LABELS, "shows the answer"),
        ("{label}{label}", LABELS, "shows the answer"),
        ("{q.x} It was {label}", LABELS, "the field 'q.x' is no name of a column"),
        ("{q[x]} It was {label}", LABELS, r"the field 'q\[x\]' is no name of a column"),
        ("{} {0} It was {label}", LABELS, "the field '' is no name of a column"),
        ("{0} It was {label}", LABELS, "the field '0' is no name of a column"),
        (TEMPLATE, "0=bad", "got 1, expected at least two"),
        (TEMPLATE, "0=bad,good", "'good' is not of the form value=word"),
        (TEMPLATE, "0=bad,0=good", "'0=good' is not of the form"),
    ],
)
def test_bad_templates_are_one_clear_error(template: str, labels: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Template(template, parse_words(labels))


@pytest.mark.parametrize(
    ("template", "labels", "message"),
    [
        ("{text} It was {label}", LABELS, "row 1 has no field 'text'.*'sentence', 'label'"),
        (TEMPLATE, "0=bad,2=good", "row 7 has the label '1', expected one of '0', '2'"),
        (TEMPLATE, "0=bad,1= bad", "are the same tokens"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_error(
    loaded: tuple[Any, Any], template: str, labels: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        task(loaded[1], labels, template)


def test_batches_of_steps_are_balanced_and_go_through_every_example(loaded: tuple[Any, Any]) -> None:
    examples = task(loaded[1])
    seen: Counter[tuple[int, ...]] = Counter()
    for step in range(3):
        batch = examples.batch_of_step(0, step, 4)
        assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]
        assert torch.equal(batch.ids, examples.batch_of_step(0, step, 4).ids)
        seen.update(tuple(row) for row in batch.ids.tolist())
    assert len(seen) == len(ROWS)
    assert not torch.equal(examples.batch_of_step(0, 0, 12).ids, examples.batch_of_step(1, 0, 12).ids)


def test_batches_of_shuffled_rows_are_as_the_rows_are(loaded: tuple[Any, Any]) -> None:
    rows = [{"sentence": f"s{n}", "label": "1" if n == 7 else "0"} for n in range(12)]
    examples = Classification(rows, Template(TEMPLATE, parse_words(LABELS)), loaded[1], CPU, balanced=False)
    for epoch in range(3):
        labels = [examples.batch_of_step(0, 3 * epoch + step, 4).labels.tolist() for step in range(3)]
        assert sum(map(sum, labels)) == 1


def whole_vocabulary_scores(model: Any, examples: Classification, index: int) -> list[float]:
    """Score every word by the log-probability of its tokens, one row at a time, without padding."""
    scores = []
    for word in examples.words:
        prompt = examples.prompts[index]
        with torch.no_grad():
            chances = model(input_ids=torch.tensor([prompt + word])).logits[0].float().log_softmax(-1)
        found = [float(chances[len(prompt) - 1 + place, token]) for place, token in enumerate(word)]
        scores.append(sum(found) / len(found))
    return scores


@pytest.mark.parametrize("labels", [LABELS, "0=bad tap,1=good", "0=failed,1=worked"])
def test_scores_are_those_of_the_whole_vocabulary(loaded: tuple[Any, Any], labels: str) -> None:
    model, tokenizer = loaded
    examples = task(tokenizer, labels)
    batch = examples.batch(range(len(examples)))
    with torch.no_grad():
        scores = examples.scores(model, batch).log_softmax(-1)
    expected = torch.tensor([whole_vocabulary_scores(model, examples, i) for i in range(len(examples))])
    torch.testing.assert_close(scores, expected.log_softmax(-1), atol=2e-4, rtol=1e-4)


def test_evaluation_counts_what_batches_hold(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    examples = task(tokenizer)
    one, many = examples.evaluate(model, batch_size=5), examples.evaluate(model, batch_size=12)
    assert one.accuracy == many.accuracy
    assert one.loss == pytest.approx(many.loss, rel=1e-4)
    assert one.examples == len(ROWS)
    assert one.answers == many.answers
    assert sum(one.answers[label][label] for label in range(2)) == round(one.accuracy * len(ROWS))
    assert [sum(row) for row in one.answers] == [examples.labels.count(0), examples.labels.count(1)]


def test_logits_are_computed_where_they_are_needed(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        states = hidden_states(model, ids)
        whole = model(input_ids=ids).logits
        assert torch.allclose(logits_at(model, states), whole, atol=1e-5)
        assert torch.allclose(logits_at(model, states, torch.tensor([9, 3])), whole[..., [9, 3]], atol=1e-5)


def test_soft_caps_are_kept(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded
    states = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    plain = logits_at(model, states)
    monkeypatch.setattr(model.config, "final_logit_softcapping", 0.5, raising=False)
    torch.testing.assert_close(logits_at(model, states), torch.tanh(plain / 0.5) * 0.5)


@pytest.mark.parametrize("labels", [LABELS, "0=bad day,1=good"])
def test_losses_of_a_repeated_batch(loaded: tuple[Any, Any], labels: str) -> None:
    model, tokenizer = loaded
    data = task(tokenizer, labels)
    batch = data.batch([0, 5, 9])
    losses = data.losses(model, batch)
    assert losses.shape == (3,)
    torch.testing.assert_close(losses.mean(), data.loss(model, batch))
    torch.testing.assert_close(data.losses(model, batch.repeat(2)), losses.repeat(2))


@pytest.mark.parametrize("labels", [LABELS, "0=bad day,1=good"])
def test_halves_of_a_batch_have_its_loss(loaded: tuple[Any, Any], labels: str) -> None:
    model, tokenizer = loaded
    data = task(tokenizer, labels)
    batch = data.batch([0, 5, 9])
    parts = batch.halves()
    assert [part.weight for part in parts] == [1, 2]
    with torch.no_grad():
        whole = sum(part.weight * data.loss(model, part) for part in parts) / batch.weight
        torch.testing.assert_close(whole, data.loss(model, batch))


@pytest.mark.parametrize("labels", [LABELS, "0=bad day,1=good"])
def test_sfc_takes_off_what_the_words_score_without_the_input(loaded: tuple[Any, Any], labels: str) -> None:
    model, tokenizer = loaded
    data = task(tokenizer, labels)
    template = Template(TEMPLATE, parse_words(labels))
    corrected = Classification(ROWS, template, tokenizer, CPU, sfc="It was {label}")
    free = Classification(
        [{"label": "0"}, {"label": "1"}], Template("It was {label}", parse_words(labels)), tokenizer, CPU
    )
    with torch.no_grad():
        with_input = data.scores(model, data.batch(range(12)), summed=True)
        scores = with_input - free.scores(model, free.batch([0]), summed=True)
    right = (scores.argmax(-1) == torch.tensor(data.labels)).double().mean()
    found = corrected.evaluate(model)
    assert found.accuracy == pytest.approx(float(right))
    loss = torch.nn.functional.cross_entropy(scores, torch.tensor(data.labels))
    assert found.loss == pytest.approx(float(loss), rel=1e-3)
    assert found.loss != data.evaluate(model).loss


def test_accuracy_of_a_batch(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    data = task(tokenizer)
    assert data.accuracy(model, data.batch(range(12))) == pytest.approx(data.evaluate(model).accuracy)


@pytest.mark.parametrize("labels", [LABELS, "0=bad day,1=good"])
def test_batched_probes_of_a_task(loaded: tuple[Any, Any], labels: str) -> None:
    """A label of several tokens takes a row a word: all rows of an example share its direction."""
    model, tokenizer = loaded
    data = task(tokenizer, labels)
    batch = data.batch([0, 5, 9, 11])
    views = zoquant.attach(model, exclude=("*embed_tokens*", "*lm_head*"))
    optimizer = zoquant.ZOSGD(views, subspace="rows-columns", probes=4, eps=0.1, lr=0.0)
    with torch.no_grad():
        plain = data.losses(model, batch)
    seen: list[torch.Tensor] = []

    def closure(repeat: int) -> torch.Tensor:
        seen.append(data.losses(model, batch.repeat(repeat)))
        return seen[0]

    optimizer.step(closure)
    assert seen[0].shape == (8,)
    moved = (seen[0] - plain.repeat(2)).abs() > 1e-3
    assert moved[plain.repeat(2) > 0.01].all()
    assert moved.any()
    for number, evaluation in enumerate(optimizer.trajectory.steps[0].directions):
        alone = optimizer.loss_at(
            Probe(evaluation, (0.1,)),
            lambda repeat, n=number: data.losses(model, data.batch([[0, 5, 9, 11][n]]).repeat(repeat)),
        )
        assert alone == pytest.approx(float(seen[0][number]), rel=1e-4)


def test_the_column_of_the_answer_is_no_field() -> None:
    with pytest.raises(DataError, match=r"holds \{label\} or the column 'kind' beside"):
        Template("{kind}: {sentence} It was {label}", parse_words(LABELS), label="kind")


@pytest.mark.parametrize("label", [["0"], {"a": "1"}])
def test_a_label_that_is_no_text_is_named(loaded: tuple[Any, Any], label: Any) -> None:
    with pytest.raises(DataError, match=r"row 1 has the label .*, expected one of '0', '1'"):
        task(loaded[1], rows=[{"sentence": "x", "label": label}, {"sentence": "y", "label": "1"}])


def test_samples_are_the_first_rows_of_each_label_and_what_was_answered(loaded: tuple[Any, Any]) -> None:
    examples = task(loaded[1])
    found = examples.evaluate(loaded[0])
    with torch.no_grad():
        answers = examples.scores(loaded[0], examples.batch([0, 6, 1, 7])).argmax(-1).tolist()
    words = ["bad", "good"]
    expected = [
        (f"{ROWS[row]['sentence']} It was", words[answer], (words[int(ROWS[row]["label"])],))
        for row, answer in zip((0, 6, 1, 7), answers, strict=True)
    ]
    assert [(each.prompt, each.text, each.references) for each in found.samples] == expected
    assert [each.score for each in found.samples] == [float(text == right) for _, text, (right,) in expected]
    shares = [row[label] for label, row in enumerate(found.answers)]
    assert sum(shares) / len(ROWS) == found.accuracy
