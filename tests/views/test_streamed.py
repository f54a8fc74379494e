"""Streamed weights: the bits of a flat buffer, without a second copy of the model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests.folders import tiny_llama
from tests.threads import at_once
from tests.toy import toy_layer
from zoquant.errors import LossError, UnsupportedLayoutError
from zoquant.native import DenseWeight, QuantEmbedding, QuantExperts, QuantLinear
from zoquant.tasks.scoring import logits_at
from zoquant.views import flat_buffer, model_views
from zoquant.views.flat_buffer import FlatBuffer
from zoquant.views.streamed_buffer import StreamedBuffer

IDS = torch.arange(12).view(2, 6)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Nested(nn.Module):
    """A parameter of its own around modules with theirs, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(7))
        self.inner = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gain * self.inner(self.norm(self.inner(x * self.gain)))
        return y


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), Nested(), nn.Conv1d(1, 3, 2), nn.GroupNorm(3, 3)).eval()


def output(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.linspace(-1, 1, 10, dtype=dtype).view(2, 5)
    with torch.no_grad():
        y = model[1](model[0](x))  # type: ignore[index]
        result: Tensor = model[3](model[2](y.unsqueeze(1)))  # type: ignore[index]
    return result


def both(make: Callable[[], nn.Module]) -> tuple[nn.Module, zoquant.Views, nn.Module, zoquant.Views]:
    flat, streamed = make(), make()
    return (
        flat,
        zoquant.attach(flat, roles=("dense",)),
        streamed,
        zoquant.attach(streamed, roles=("dense",), streamed=True),
    )


@pytest.mark.parametrize("space", ["absolute", "relative"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_probe_is_that_of_a_flat_buffer(dtype: torch.dtype, space: Any) -> None:
    flat, flat_views, model, views = both(lambda: small().to(dtype))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    views.space = flat_views.space = space
    assert views.keys == flat_views.keys
    for seed in range(6):
        for each in (views, flat_views):
            each.write(seed=seed, eps=0.1, noise="gaussian")
        assert torch.equal(output(model, dtype), output(flat, dtype))
        for each in (views, flat_views):
            each.add(seed, 0.01, "gaussian")
            each.write()
        assert torch.equal(output(model, dtype), output(flat, dtype))
    assert not torch.equal(output(model, dtype), output(small().to(dtype), dtype))
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    for key in views.keys:
        assert torch.equal(views.delta(key), flat_views.delta(key))
        assert torch.equal(views.theta(key), flat_views.theta(key))
        assert torch.equal(views.base(key), flat_views.base(key))
    views.reset()
    assert torch.equal(output(model, dtype), output(small().to(dtype), dtype))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_is_that_of_a_flat_buffer(tmp_path: Path, mode: Callable[[], Any]) -> None:
    """Losses, delta and trajectory of a tied llama in bfloat16, and back from the trajectory."""
    flat, flat_views, model, views = both(lambda: tiny_llama(tie_word_embeddings=True).to(torch.bfloat16))
    losses = []
    for each, each_views in ((flat, flat_views), (model, views)):
        optimizer = zoquant.ZOSGD(each_views, lr=1e-3, eps=1e-2, space="absolute", clip=5.0)

        def loss(each: Any = each) -> float:
            with mode():
                return float(each(input_ids=IDS, labels=IDS).loss)

        losses.append([optimizer.step(loss).loss for _ in range(5)])
        optimizer.trajectory.save(tmp_path / "trajectory")
    assert losses[0] == losses[1]
    zoquant.save_delta(tmp_path / "delta", views)
    for follow, name in ((zoquant.replay, "trajectory"), (zoquant.load_delta, "delta")):
        other = tiny_llama(tie_word_embeddings=True).to(torch.bfloat16)
        other_views = zoquant.attach(other, roles=("dense",), streamed=True)
        follow(tmp_path / name, other_views)
        assert torch.equal(other(input_ids=IDS).logits, flat(input_ids=IDS).logits)


def test_the_weights_are_their_own_base() -> None:
    model = tiny_llama()
    views = zoquant.attach(model, roles=("dense",), streamed=True)
    (buffer,) = views.buffers
    assert isinstance(buffer, StreamedBuffer)
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    assert {plane.base.untyped_storage().data_ptr() for chunk in buffer._chunks for plane in chunk.planes} <= weights
    largest = max(value.nbytes for value in model.parameters())
    assert largest <= buffer._scratch.nbytes <= largest + 64
    flat = zoquant.attach(tiny_llama(), roles=("dense",)).buffers[0]
    assert sum(plane.base.nbytes for chunk in flat._chunks for plane in chunk.planes) >= sum(
        value.nbytes for value in model.parameters()
    )


def test_an_interrupted_forward_leaves_the_weights() -> None:
    class Interrupt(BaseException):
        pass

    for error in (RuntimeError, Interrupt):
        model = small()
        start = {name: value.clone() for name, value in model.state_dict().items()}
        views = zoquant.attach(model, roles=("dense",), streamed=True)
        pointers = [value.data_ptr() for value in model.parameters()]

        def fail(module: nn.Module, args: object, error: type[BaseException] = error) -> None:
            raise error

        hook = model[1].norm.register_forward_pre_hook(fail)  # type: ignore[index]
        optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-2, space="absolute")
        with pytest.raises(error):
            optimizer.step(lambda model=model: output(model).sum())
        assert [value.data_ptr() for value in model.parameters()] == pointers
        assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
        hook.remove()
        assert torch.equal(output(model), output(small()))
        with pytest.raises(LossError):
            optimizer.step(lambda: float("nan"))
        assert torch.equal(output(model), output(small()))


def test_scales_and_streamed_weights_together() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(toy_layer(bias=True), nn.LayerNorm(8), nn.Linear(8, 2))

    models = make(), make()
    x = torch.linspace(-1, 1, 16).view(2, 8)
    outputs = []
    for model, streamed in zip(models, (False, True), strict=True):
        views = zoquant.attach(model, roles=("scale", "dense"), streamed=streamed)
        views.add(1, 0.1, "rademacher")
        views.write(seed=2, eps=0.1)
        outputs.append(model(x))
    assert torch.equal(*outputs)


def test_what_is_read_without_a_call_is_refused() -> None:
    with pytest.raises(UnsupportedLayoutError, match=r"0\.out_proj\.weight: is read by torch\.nn\.MultiheadAttention"):
        zoquant.attach(nn.Sequential(nn.MultiheadAttention(4, 2)), roles=("dense",), streamed=True)
    module = nn.Linear(4, 6)
    module.weight = nn.Parameter(module.weight.detach().t().contiguous().t())
    with pytest.raises(UnsupportedLayoutError, match="weight: is no plain contiguous tensor"):
        zoquant.attach(module, roles=("dense",), streamed=True)


def test_a_transformer_of_torch_follows() -> None:
    """Its fast path, which reads the weights of its parts, is not taken where there are hooks."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    views = zoquant.attach(model, roles=("dense",), streamed=True, exclude="self_attn.out_proj.*")
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = model(x).clone()
        views.write(seed=1, eps=0.1)
        assert not torch.equal(model(x), before)
        views.write()
        torch.testing.assert_close(model(x), before)


def biased() -> nn.Module:
    """A llama whose layers have biases that are no zeros."""
    model = tiny_llama(attention_bias=True)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("include", ["*proj*", "*proj.bias", "*norm*", "*embed_tokens*", "lm_head*", None])
@pytest.mark.parametrize("tied", [False, True])
def test_a_natively_loaded_model_follows(tmp_path: Path, tied: bool, include: str | None) -> None:
    """The value that is right is that of a flat buffer, which writes the weights themselves."""
    source: Any = tiny_llama(tie_word_embeddings=True) if tied else biased()
    source.save_pretrained(tmp_path)

    if tied and include in ("lm_head*", "*proj.bias"):
        include = None  # the head is the embedding
    outputs = []
    for streamed in (False, True):
        model: Any = zoquant.load(tmp_path, compute_dtype=torch.float32, device="cpu")[0]
        before, states = model(input_ids=IDS).logits, torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        views = zoquant.attach(model, roles=("dense",), streamed=streamed, include=include)
        views.add(1, 0.1, "gaussian")
        found = []
        for seed in (None, 7):
            views.write(seed=seed, eps=0.1)
            found += [model(input_ids=IDS).logits, logits_at(model, states, torch.tensor([5, 1, 40]))]
        assert not torch.equal(found[0], before)
        assert not torch.equal(found[2], found[0])
        views.reset()
        assert torch.equal(model(input_ids=IDS).logits, before)
        outputs.append(found)
    for flat, other in zip(*outputs, strict=True):
        assert torch.equal(other, flat)


def test_label_logits_of_a_plain_head_follow() -> None:
    outputs = []
    for streamed in (False, True):
        model = tiny_llama()
        views = zoquant.attach(model, roles=("dense",), streamed=streamed, include="lm_head.*")
        views.write(seed=3, eps=0.1)
        outputs.append(logits_at(model, torch.ones(2, 32), torch.tensor([4, 9])))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], logits_at(tiny_llama(), torch.ones(2, 32), torch.tensor([4, 9])))


def test_experts_follow() -> None:
    """Their matrices are read some rows at a time, and not by a call of the layer."""

    def make() -> QuantExperts:
        generator = torch.Generator().manual_seed(0)
        gate, up, down = (
            QuantLinear(DenseWeight(torch.randn(shape, generator=generator)), compute_dtype=torch.float32)
            for shape in ((12, 8), (12, 8), (24, 4))
        )
        return QuantExperts(gate, up, down, count=3, activation=torch.tanh)

    x, chosen, weights = torch.randn(5, 8), torch.tensor([[0], [2], [2], [0], [2]]), torch.ones(5, 1)
    outputs = []
    for streamed in (False, True):
        model = make()
        views = zoquant.attach(model, roles=("dense",), streamed=streamed)
        views.write(seed=1, eps=0.1)
        outputs.append(model(x, chosen, weights))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], make()(x, chosen, weights))


def test_no_more_is_composed_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flat_buffer._CHUNK, "cpu", 256)
    torch.manual_seed(0)
    packed = DenseWeight(torch.randn(64, 48))
    table = QuantEmbedding(packed)
    flat = QuantEmbedding(DenseWeight(packed.weight.clone()))
    views, flat_views = zoquant.attach(table, roles=("dense",), streamed=True), zoquant.attach(flat, roles=("dense",))
    composed = []
    monkeypatch.setattr(
        StreamedBuffer,
        "_compose",
        lambda buffer, *args: composed.append(args) or FlatBuffer._compose(buffer, *args),  # type: ignore[func-returns-value]
    )
    for each in (views, flat_views):
        each.write(seed=5, eps=0.1)
    composed.clear()
    ids = torch.tensor([[3, 63], [-1, 3]])
    assert torch.equal(table(ids), flat(ids))
    assert 2 <= len(composed) <= 4
    assert torch.equal(packed.decode_rows(slice(10, 30)).clone(), flat.packed.decode_rows(slice(10, 30)))
    assert torch.equal(packed.dequantize(), flat.packed.dequantize())


def test_closing_takes_the_hooks_away() -> None:
    model = small()
    views = zoquant.attach(model, roles=("dense",), streamed=True)
    with pytest.raises(UnsupportedLayoutError, match="is streamed by other views, which have to be closed first"):
        zoquant.attach(model, roles=("dense",), streamed=True)
    views.write(seed=1, eps=0.1)
    assert not torch.equal(output(model), output(small()))
    views.close()
    assert torch.equal(output(model), output(small()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(UnsupportedLayoutError, match="closed"):
        views.write()
    zoquant.attach(model, roles=("dense",), streamed=True).write(seed=1, eps=0.1)
    assert not torch.equal(output(model), output(small()))


@pytest.mark.parametrize("native", [False, True])
def test_threads_take_turns(tmp_path: Path, native: bool) -> None:
    model: Any = tiny_llama()
    if native:
        model.save_pretrained(tmp_path)
        model = zoquant.load(tmp_path, compute_dtype=torch.float32, device="cpu")[0]
    zoquant.attach(model, roles=("dense",), streamed=True).write(seed=1, eps=0.1)
    inputs = [IDS + number for number in range(4)]
    at_once([partial(lambda ids: model(input_ids=ids).logits, each) for each in inputs])


def test_an_attach_that_fails_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), toy_layer(bias=True))

    def full(*_: object, **__: object) -> None:
        raise MemoryError("no room for the deltas")

    monkeypatch.setattr(model_views, "FlatBuffer", full)
    with pytest.raises(MemoryError):
        zoquant.attach(model, roles=("scale", "dense"), streamed=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
