"""Layers that do not move run once a step, and nothing else changes."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.backends.gguf.models import tiny
from tests.toy import toy_layer
from zoquant import ZOSGD, Trunk, attach
from zoquant.errors import UnsupportedLayoutError
from zoquant.optim.calls import Call, Fold, OpaqueError
from zoquant.protocol import Role

ROWS, WIDTH, LAYERS = 4, 8, 4
UPPER = ("layers.2.*", "layers.3.*")
BOTH: tuple[Role, ...] = ("scale", "zero")


class Block(nn.Module):
    """A layer of a stack, which counts its calls and the rows that it saw."""

    def __init__(self, number: int, pair: bool = False) -> None:
        super().__init__()
        self.linear, self.pair = toy_layer(number), pair
        self.rows: list[int] = []

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: object = None) -> Any:
        self.rows.append(len(x))
        y = x + torch.tanh(self.linear(x if mask is None else x * mask))
        return (y,) if self.pair else y


class Tower(nn.Module):
    """A stack of layers, and what is called between them."""

    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(number, pair) for number in range(LAYERS))
        self.between: Callable[[int, Tensor], Tensor] = lambda number, x: x

    def forward(self, x: Tensor, **given: object) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(self.between(number, x), **given)
            x = x[0] if isinstance(x, tuple) else x
        return x

    def calls(self) -> list[int]:
        return [len(layer.rows) for layer in self.layers]  # type: ignore[arg-type]


def tower(**given: Any) -> Tower:
    return Tower(**given).eval().requires_grad_(False)


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def closure(model: nn.Module, x: Tensor, **given: object) -> Callable[[], Tensor]:
    return lambda: model(x, **given).square().mean()


def test_layers_that_any_group_moves_are_no_trunk() -> None:
    alone, shared = tower(), tower()
    made: list[list[dict[str, Any]]] = [
        [{"views": attach(model, include=UPPER)}, {"views": attach(model, include="layers.1.*"), "lr": 1e-3}]
        for model in (alone, shared)
    ]
    one, two = (ZOSGD(groups, seed=3) for groups in made)
    trunk = Trunk(shared, two.all_views)
    for step in range(4):
        expected = one.step(closure(alone, inputs(step)))
        with trunk.shared():
            assert two.step(closure(shared, inputs(step))) == expected
    assert shared.calls() == [5, 8, 8, 8]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("mask", [None, torch.rand(ROWS, 1)])
def test_a_step_has_the_same_losses_and_runs_the_trunk_once(pair: bool, mask: Tensor | None) -> None:
    alone, shared = tower(pair=pair), tower(pair=pair)
    one, two = (ZOSGD(attach(model, include=UPPER), seed=3) for model in (alone, shared))
    trunk = Trunk(shared, two.views)
    for step in range(4):
        expected = one.step(closure(alone, inputs(step), mask=mask))
        with trunk.shared():
            assert two.step(closure(shared, inputs(step), mask=mask)) == expected
    assert alone.calls() == [8, 8, 8, 8]
    assert shared.calls() == [5, 5, 8, 8], "the first forward finds out, so the first step has two of them"


def test_a_forward_outside_is_untouched() -> None:
    model = tower()
    trunk = Trunk(model, attach(model, include=UPPER))
    with trunk.shared():
        assert "forward" in model.layers[0].__dict__
    assert not any("forward" in layer.__dict__ for layer in model.layers)
    with trunk.shared(), torch.no_grad():
        model(inputs())
        model(inputs())
    model(inputs())
    assert model.calls() == [3, 3, 3, 3]


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = tower()
    with pytest.raises(TypeError), Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        model(None)
    assert not any("forward" in layer.__dict__ for layer in model.layers)


def test_a_forward_that_another_library_put_there_comes_back() -> None:
    model = tower()
    own = model.layers[1].forward
    model.layers[1].forward = wrapped = lambda *args, **kwargs: own(*args, **kwargs)
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        model(inputs())
    assert model.layers[1].__dict__["forward"] is wrapped
    assert model.calls() == [1, 1, 1, 1]


def test_another_batch_is_computed() -> None:
    model = tower()
    plain = [model(inputs(seed)) for seed in range(2)]
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        for seed in (0, 0, 1, 1, 0):
            assert torch.equal(model(inputs(seed)), plain[seed])
    assert model.calls() == [6, 6, 7, 7], "2 before, then all but the fourth"


def test_an_input_that_was_written_to_is_computed() -> None:
    model, x = tower(), inputs()
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        model(x), model(x)
        x.mul_(2)
        found = model(x)
    assert torch.equal(found, model(x))


def test_an_output_that_was_written_to_is_computed_again() -> None:
    model = tower()
    expected = model(inputs())
    model.layers[2].register_forward_hook(lambda module, args, output: args[0].zero_() * 0 + output)
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        assert all(torch.equal(model(inputs()), expected) for _ in range(3))
    assert model.calls() == [4, 4, 4, 4]


@pytest.mark.parametrize("mask", [None, torch.rand(ROWS, 1)])
def test_a_repeated_batch_goes_through_the_trunk_once(mask: Tensor | None) -> None:
    model, x = tower(), inputs()
    twice = {} if mask is None else {"mask": mask.repeat(2, 1)}
    expected = model(x.repeat(2, 1), **twice)
    trunk = Trunk(model, attach(model, include=UPPER))
    with trunk.shared(), torch.no_grad():
        model(x, **({} if mask is None else {"mask": mask}))
    with trunk.shared(repeat=2), torch.no_grad():
        torch.testing.assert_close(model(x.repeat(2, 1), **twice), expected, rtol=1e-5, atol=1e-6)
    assert [layer.rows for layer in model.layers] == [[8, 4, 4], [8, 4, 4], [8, 4, 8], [8, 4, 8]]


def test_repetitions_that_differ_are_computed() -> None:
    model = tower()
    trunk = Trunk(model, attach(model, include=UPPER))
    x = torch.cat([inputs(0), inputs(1)])
    expected = model(x)
    with trunk.shared(repeat=2), torch.no_grad():
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x), expected)
    assert model.layers[0].rows == [8, 8, 8]


def test_batched_probes_have_the_losses_of_their_own_rows() -> None:
    alone, shared = tower(), tower()
    views = [attach(model, roles=BOTH, include=UPPER) for model in (alone, shared)]
    one, two = (ZOSGD(each, subspace="rows-columns", probes=ROWS, seed=1) for each in views)
    trunk = Trunk(shared, two.views)

    def losses(model: nn.Module, x: Tensor) -> Callable[[int], Tensor]:
        return lambda repeat: model(x.repeat(repeat, 1)).square().mean(1)

    for step in range(3):
        expected = one.step(losses(alone, inputs(step)))
        with trunk.shared(two.repeat):
            found = two.step(losses(shared, inputs(step)))
        assert found.derivative == pytest.approx(expected.derivative, rel=1e-3)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert shared.layers[0].rows == [8, 4, 4]
    assert shared.layers[2].rows == [8, 8, 8]


@pytest.mark.parametrize("include", [None, ("layers.0.*",), ("layers.0.*", "layers.3.*")])
def test_a_layer_that_moves_at_the_bottom_leaves_no_trunk(include: tuple[str, ...] | None) -> None:
    model = tower()
    optimizer = ZOSGD(attach(model, include=include))
    with Trunk(model, optimizer.views).shared():
        optimizer.step(closure(model, inputs()))
        optimizer.step(closure(model, inputs()))
    assert model.calls() == [4, 4, 4, 4]


def test_what_is_done_between_layers_ends_the_trunk() -> None:
    model = tower()
    model.between = lambda number, x: x * 2 if number == 1 else x
    expected = model(inputs())
    trunk = Trunk(model, attach(model, include=("layers.3.*",)))
    with trunk.shared(), torch.no_grad():
        assert all(torch.equal(model(inputs()), expected) for _ in range(3))
    assert model.calls() == [3, 4, 4, 4]


def test_a_model_that_changes_its_ways_is_refused() -> None:
    model = tower()
    trunk = Trunk(model, attach(model, include=UPPER))
    with trunk.shared(), torch.no_grad():
        model(inputs())
        model.between = lambda number, x: x * 2 if number == 1 else x
        with pytest.raises(UnsupportedLayoutError, match=r"layers\.1: expected to get what the layer below returned"):
            model(inputs())


def test_an_upper_layer_that_gets_another_mask_is_refused() -> None:
    model = tower()
    trunk = Trunk(model, attach(model, include=UPPER))
    masks = iter([1.0, 1.0, 2.0])

    def own_mask(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*args, torch.full((ROWS, 1), next(masks)))

    model.layers[1].register_forward_pre_hook(own_mask)
    with trunk.shared(), torch.no_grad():
        model(inputs())
        model(inputs())
        with pytest.raises(UnsupportedLayoutError, match=r"layers\.1: expected .* the arguments of the forward before"):
            model(inputs())


def test_an_upper_layer_that_gets_a_cache_is_computed() -> None:
    model = tower()
    model.layers[1].register_forward_pre_hook(lambda module, args: (*args, None, object()))
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        for _ in range(3):
            model(inputs())
    assert model.calls() == [3, 3, 3, 3]


def test_hidden_states_that_were_left_out_have_no_values() -> None:
    model = tower()
    seen: list[Tensor] = []
    model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.no_grad():
        for _ in range(3):
            model(inputs())
    assert [each.device.type for each in seen] == ["cpu", "cpu", "meta"]
    with pytest.raises(RuntimeError, match="meta"):
        seen[-1].mean().item()


@pytest.mark.parametrize("case", ["training", "gradients", "cache"])
def test_nothing_is_shared(case: str) -> None:
    model = tower().train(case == "training")
    given = {"cache": object()} if case == "cache" else {}
    with Trunk(model, attach(model, include=UPPER)).shared(), torch.set_grad_enabled(case == "gradients"):
        for _ in range(3):
            model(inputs(), **given)
    assert model.calls() == [3, 3, 3, 3]


@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2"])
def test_a_transformer_has_the_same_hidden_states(arch: str, repeat: int) -> None:
    model = tiny(arch, num_hidden_layers=3).eval()
    body: Any = model.base_model
    moving = attach(model, roles=("dense",), include=("*layers.2.*",))
    ids = torch.arange(24).view(2, 12).repeat(repeat, 1)
    calls: list[int] = []
    body.layers[0].mlp.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    trunk = Trunk(model, moving)
    with torch.no_grad():
        expected = body(input_ids=ids, use_cache=False).last_hidden_state
        with trunk.shared(repeat):
            for _ in range(3):
                found = body(input_ids=ids, use_cache=False).last_hidden_state
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert calls == [2 * repeat] * 3 if repeat == 1 else [4, 4, 2, 2]
        cast(Any, model).generate(ids[:1], max_new_tokens=3, do_sample=False)


def test_calls_are_the_same_by_value() -> None:
    x = torch.ones(2, 2)
    call = Call.of((x,), {"flag": True, "pair": (x, None), "name": "a"})
    assert call.same(Call.of((x.clone(),), {"flag": True, "pair": (x.clone(), None), "name": "a"}))
    for other in (
        ((x,), {"flag": 1, "pair": (x, None), "name": "a"}),
        ((x,), {"flag": True, "pair": [x, None], "name": "a"}),
        ((x,), {"flag": True, "pair": (x, None), "other": "a"}),
        ((x.double(),), {"flag": True, "pair": (x, None), "name": "a"}),
        ((x.T.clone()[:1],), {"flag": True, "pair": (x, None), "name": "a"}),
        ((x + 1,), {"flag": True, "pair": (x, None), "name": "a"}),
    ):
        assert not call.same(Call.of(*other))
    assert call.untouched
    x.add_(1)
    assert not call.untouched


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(OpaqueError):
        Call.of(object())
    with torch.inference_mode():
        x = torch.ones(2)
    with pytest.raises(OpaqueError):
        Call.of(x)


def test_rows_are_cut_and_the_rest_is_kept() -> None:
    x, positions, mask = torch.arange(3.0).repeat(2)[:, None], torch.arange(5), torch.zeros(1, 4)
    fold = Fold(2, ((x,), {}))
    args, kwargs = fold(((x, positions), {"both": [x, mask], "flag": None, "n": 3}))
    assert [len(each) for each in args] == [3, 5]
    assert torch.equal(kwargs["both"][0], x[:3])
    assert kwargs["both"][1] is mask
    assert (kwargs["flag"], kwargs["n"]) == (None, 3)
    assert torch.equal(fold.repeated(args[0]), x)


@pytest.mark.parametrize("first", [torch.ones(3, 1), torch.arange(4.0), torch.tensor(1.0), "text"])
def test_what_is_not_repeated_is_not_cut(first: object) -> None:
    with pytest.raises(OpaqueError):
        Fold(2, ((first,), {}))
    with pytest.raises(OpaqueError):
        Fold(2, ((torch.ones(4), object()), {}))


def test_a_moving_layer_that_is_registered_elsewhere_first_ends_the_trunk() -> None:
    model = nn.Module()
    whole = tower()
    model.shared = whole.layers[0].linear
    model.tower = whole
    views = attach(model, include="shared.*")
    assert views.keys == ("shared.d",)
    optimizer, trunk = ZOSGD(views, eps=0.1, lr=0.0, seed=3), Trunk(model, views)
    derivatives = []
    for _ in range(2):
        with trunk.shared():
            derivatives.append(optimizer.step(closure(whole, inputs())).derivative)
    assert all(derivatives)
    assert whole.calls() == [4, 4, 4, 4]
