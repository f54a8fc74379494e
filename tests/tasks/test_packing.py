"""Sequences that share a row have the states that they have alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoquant
from tests.tiny import LABELS, ROWS, TEMPLATE, write_checkpoint
from zoquant.tasks import Classification, Template, packing
from zoquant.tasks.encoding import longest
from zoquant.tasks.packing import Packing, pack, packable, packed_states, worth_packing
from zoquant.tasks.scoring import hidden_states
from zoquant.tasks.template import parse_words


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    path = write_checkpoint(tmp_path_factory.mktemp("packing") / "tiny.gguf")
    return zoquant.load(path, compute_dtype=torch.float32)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_every_token_has_one_place_and_its_own_position(lengths: list[int]) -> None:
    width = max(lengths)
    packing = pack(lengths, width)
    used = packing.source >= 0
    assert sorted(packing.source[used].tolist()) == [i * width + j for i, n in enumerate(lengths) for j in range(n)]
    assert torch.equal(packing.positions[used], packing.source[used] % width)
    assert torch.equal(packing.sequences[used], packing.source[used] // width)
    assert packing.source.shape[1] == width
    assert packing.source.shape[0] <= len(lengths)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 3))
def test_repetitions_are_alike_and_share_no_row(lengths: list[int], times: int) -> None:
    width, once = max(lengths), pack(lengths, max(lengths))
    packing = once.repeat(times)
    assert packing.count == times * len(lengths)
    used = packing.source >= 0
    expected = [i * width + j for i, n in enumerate(lengths * times) for j in range(n)]
    assert sorted(packing.source[used].tolist()) == expected
    assert torch.equal(packing.sequences[used], packing.source[used] // width)
    assert torch.equal(packing.mask(torch.float32), once.mask(torch.float32).repeat(times, 1, 1, 1))
    for number, rows in enumerate(packing.sequences.chunk(times)):
        assert torch.equal(torch.where(rows >= 0, rows - number * len(lengths), rows), once.sequences)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_a_token_sees_its_own_past_alone(lengths: list[int]) -> None:
    packing = pack(lengths, max(lengths))
    seen = packing.mask(torch.float32)[:, 0] == 0
    for row, at in (packing.source >= 0).nonzero().tolist():
        own = packing.sequences[row] == packing.sequences[row, at]
        expected = own & (packing.positions[row] <= packing.positions[row, at])
        assert torch.equal(seen[row, at], expected)


def test_packed_states_are_those_of_the_padded_batch(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    lengths = [9, 2, 5, 3, 1]
    ids = torch.arange(45).view(5, 9) % 40
    alone = hidden_states(model, ids)
    together = hidden_states(model, ids, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :length], alone[row, :length], rtol=1e-4, atol=1e-5)
        assert not together[row, length:].any()


def test_training_packs_and_the_loss_stays(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    task = Classification(ROWS, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
    batch = task.batch([0, 1, 2, 3])
    calls: list[torch.Size] = []

    def states(body: Any, ids: Tensor, packing: Packing) -> Tensor:
        calls.append(ids.shape)
        return packed_states(body, ids, packing)

    monkeypatch.setattr("zoquant.tasks.scoring.worth_packing", lambda lengths, width: True)
    monkeypatch.setattr("zoquant.tasks.scoring.packed_states", states)
    packed = task.loss(model, batch)
    assert calls
    monkeypatch.setattr("zoquant.tasks.scoring.worth_packing", lambda lengths, width: False)
    torch.testing.assert_close(packed, task.loss(model, batch), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("include", ["model.layers.*", "model.layers.1.*"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_direction_an_example_has_its_losses_whoever_shares_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, include: str
) -> None:
    model, tokenizer = zoquant.load(write_checkpoint(tmp_path / "tiny.gguf"), compute_dtype=dtype)
    reviews = [{"sentence": "so " * count + "good", "label": str(count % 2)} for count in (1, 30, 4, 9)]
    task = Classification(reviews, Template(TEMPLATE, parse_words(LABELS)), tokenizer, torch.device("cpu"))
    batch = task.batch([0, 1, 2, 3])
    views = zoquant.attach(model, include=include)
    rows: list[Tensor] = []

    def states(body: Any, ids: Tensor, packing: Packing) -> Tensor:
        rows.append(packing.sequences)
        return packed_states(body, ids, packing)

    monkeypatch.setattr("zoquant.tasks.scoring.packed_states", states)
    found = []
    for packs in (False, True):
        monkeypatch.setattr("zoquant.tasks.scoring.worth_packing", lambda lengths, width, packs=packs: packs)
        optimizer = zoquant.ZOSGD(views, subspace="rows-columns", probes=4, eps=0.1, lr=0.0, seed=5)
        trunk = zoquant.Trunk(model, views)
        for _ in range(2):
            with trunk.shared(optimizer.repeat):
                optimizer.step(lambda repeat: task.losses(model, batch.repeat(repeat)))
        found.append(torch.tensor([step.derivatives for step in optimizer.trajectory.steps]))
        views.reset()
    assert len(rows) == 2
    assert max(len(row.unique()) for row in rows[0]) > 2, "no two sequences shared a row"
    assert found[0].abs().min() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=1e-4 if dtype == torch.float32 else 1e-2)


def test_little_padding_is_left_alone() -> None:
    assert worth_packing([10, 2], 10)
    assert not worth_packing([10, 9], 10)


class Summing(nn.Module):
    """Carries a state from token to token, whatever the mask says."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 4), nn.Linear(4, 30, bias=False)
        self.config = SimpleNamespace(sliding_window=None)

    @property
    def base_model(self) -> nn.Module:
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = True,
    ) -> Any:
        states = self.table(input_ids).cumsum(1)
        return SimpleNamespace(last_hidden_state=states, logits=self.head(states))


class Leaking(Summing):
    """Hands a thousandth of what it has seen on to whoever comes next."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = True,
    ) -> Any:
        own = self.table(input_ids)
        return SimpleNamespace(last_hidden_state=own + 1e-3 * (own.cumsum(1) - own))


class Choosy(Summing):
    """Takes no mask of four dimensions, as GPT-2 of transformers 4.48."""

    error: Exception = RuntimeError("The size of tensor a must match the size of tensor b")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = True,
    ) -> Any:
        if attention_mask is not None:
            raise self.error
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


class Named(Choosy):
    """Says in its config that a layer carries a state."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(layer_types=["full_attention", "linear_attention"])

    error = AssertionError("tried")


@pytest.mark.parametrize("kind", [Leaking, Choosy, Named])
def test_a_model_that_does_not_pack_is_found_out(kind: type[Summing]) -> None:
    assert not packable(kind(), 10)


def test_a_trial_that_runs_out_of_memory_says_so() -> None:
    model = Choosy()
    model.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        packable(model, 10)


def test_a_model_with_a_memory_is_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = Summing()
    with caplog.at_level("INFO", "zoquant"):
        assert not packable(model, 10)
        assert not packable(model, 10)
    assert [record.message for record in caplog.records] == [
        "Summing: sequences cannot share a row; short ones are padded instead"
    ]
    ids = torch.tensor([[1, 2, 3, 4], [5, 0, 0, 0]])
    assert torch.equal(hidden_states(model, ids, [4, 1]), hidden_states(model, ids))


def test_a_window_shorter_than_a_row_is_padded(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded
    assert packable(model, 64)
    monkeypatch.setattr(model.config, "sliding_window", 32, raising=False)
    assert packable(model, 32)
    assert not packable(model, 33)


def test_an_embedding_of_another_class_is_no_obstacle(tmp_path: Path) -> None:
    """peft and others wrap the embedding; nothing but its forward is then known."""
    model: Any
    model, _ = zoquant.load(write_checkpoint(tmp_path / "wrapped.gguf"), compute_dtype=torch.float32)
    model.set_input_embeddings(nn.Sequential(model.get_input_embeddings()))
    assert packable(model, 8)


def test_a_model_is_tried_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packable(loaded[0], 8)
    monkeypatch.setattr(packing, "_tried", None)
    assert packable(loaded[0], 8)


@pytest.mark.parametrize("window", [9, 17, 64])
@torch.no_grad()
@pytest.mark.skipif(not hasattr(transformers, "Gemma3Config"), reason="transformers is older than Gemma 3")
def test_the_window_of_a_model_of_text_and_pictures(window: int) -> None:
    """Its config has that of the text within; a row that is longer than its window does not share a row."""
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": window, "max_position_embeddings": 64,
    }  # fmt: skip
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=sight | {"image_size": 28, "patch_size": 14})
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    ids, lengths = torch.randint(1, 250, (6, 20)), [20, 3, 3, 3, 3, 3]
    alone, found = hidden_states(model, ids), hidden_states(model, ids, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row, :length], alone[row, :length], rtol=1e-4, atol=1e-5)
    assert packable(model, 20) == (window >= 20)
    assert longest(model) == 64
