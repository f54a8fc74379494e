"""Plain parameters of any model: which are views, under which keys, and that training them leaves no trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import zoquant
from tests.toy import toy_layer
from zoquant.errors import NoViewsError, UnsupportedLayoutError
from zoquant.testing import BACKEND_CHECKS, BackendCase

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dense(model: nn.Module, **filters: Any) -> zoquant.Views:
    return zoquant.attach(model, roles=("dense",), **filters)


def llama() -> nn.Module:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**settings, num_attention_heads=2, tie_word_embeddings=True)
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model.eval()


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)


@pytest.mark.parametrize("check", BACKEND_CHECKS.values(), ids=BACKEND_CHECKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(6, 8, bias=False),
        lambda: nn.Linear(6, 8),
        lambda: nn.Embedding(9, 5),
    ],
    ids=["linear", "linear with bias", "embedding"],
)
def test_torch_s_own_layers_conform(
    make: Callable[[], nn.Module], dtype: torch.dtype, check: zoquant.testing.Check[BackendCase]
) -> None:
    check.run(BackendCase(lambda: seeded(make, dtype), steps=20))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
    "layer norm": (lambda: nn.LayerNorm(4), (2, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "batch norm": (lambda: nn.BatchNorm1d(4).eval(), (2, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), (2, 4)),
    "lstm": (lambda: nn.LSTM(4, 5), (3, 2, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).eval(), (3, 2, 4)),
    "llama's norm": (lambda: transformers.models.llama.modeling_llama.LlamaRMSNorm(4), (2, 4)),
    "gpt2's conv": (lambda: transformers.pytorch_utils.Conv1D(6, 4), (2, 4)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_parameter_of_any_module_is_a_view_that_its_forward_reads(kind: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[kind]
    module = seeded(make, dtype)
    views = dense(module)
    assert sorted(views.keys) == sorted(name for name, _ in module.named_parameters())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def output() -> Tensor:
        with torch.no_grad():
            y = module(x)
        first: Tensor = y[0] if isinstance(y, tuple) else y
        return first.float().clone()

    views.space = "absolute"
    before = output()
    for view in views:
        old = view.read()
        view.write(old + torch.linspace(0.5, 1.5, old.numel()).view(old.shape))
        assert not torch.equal(output(), before), view.name
        view.write(old)
        assert torch.equal(output(), before)
    for seed in range(100):
        views.write(seed=seed, eps=0.1)
    assert not torch.equal(output(), before)
    views.write()
    assert torch.equal(output(), before)


def test_keys_are_the_names_of_the_checkpoint() -> None:
    model = llama()
    views = dense(model)
    names = {name for name, _ in model.named_parameters()}
    assert set(views.keys) == names
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "lm_head.weight" not in names
    assert {view.role for view in views} == {"dense"}


def test_tied_weights_are_one_view() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert dense(nn.Sequential(first, second)).keys == ("0.weight", "0.bias", "1.bias")


def test_nothing_is_dense_unless_asked_for() -> None:
    model = nn.Sequential(toy_layer(bias=True), nn.LayerNorm(8))
    assert set(zoquant.attach(model).keys) == {"0.d"}
    with pytest.raises(NoViewsError, match=r"roles=\('dense',\)"):
        zoquant.attach(nn.Linear(2, 2))


def test_what_a_quantized_model_leaves_plain() -> None:
    """Biases of quantized layers and norms beside them, jointly with the scales or alone."""
    model = nn.Sequential(toy_layer(bias=True), nn.LayerNorm(8), nn.Linear(8, 2))
    plain = {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}
    assert set(dense(model).keys) == plain
    assert set(zoquant.attach(model, roles=("scale", "dense")).keys) == plain | {"0.d"}
    x = torch.ones(1, 8)
    before = model(x)
    views = dense(model, include="0.bias")
    views[0].write(views[0].read() + torch.arange(8.0))  # no constant: the norm would take that away
    assert float((model(x) - before).detach().abs().max()) > 1e-2


def test_weight_and_bias_of_one_shape_move_apart() -> None:
    views = dense(nn.LayerNorm(64))
    assert views.coupled_keys() == []
    views.add(0, 1.0, "gaussian")
    assert not torch.equal(views.delta("weight"), views.delta("bias"))


def test_training_follows_the_loss() -> None:
    """MeZO on a small regression: the loss falls, and a delta of it goes back into a fresh model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(32, 4)
    y = x.sum(1, keepdim=True)
    views = dense(model)
    optimizer = zoquant.ZOSGD(views, lr=1e-2, eps=1e-3, space="absolute", noise="gaussian", clip=5.0)
    losses = [optimizer.step(lambda: ((model(x) - y) ** 2).mean()).loss for _ in range(200)]
    assert losses[-1] < 0.5 * losses[0]
    for name, value in start.items():
        assert torch.equal(model.state_dict()[name], value + views.delta(name))


def test_codes_and_narrow_floats_are_not_plain() -> None:
    module = nn.Linear(4, 4, bias=False)
    module.weight = nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    module.register_parameter("codes", nn.Parameter(torch.ones(4, dtype=torch.int32), requires_grad=False))
    with pytest.raises(NoViewsError):
        dense(module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), r"layer \(dense\): weight: on the meta device"),
        (lambda: nn.Linear(2, 2, dtype=torch.float64), r"layer\.weight \(dense\): stored as torch\.float64"),
    ],
)
def test_what_cannot_be_restored_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedLayoutError, match=message):
        dense(nn.ModuleDict({"layer": make()}))
