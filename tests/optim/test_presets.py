"""The papers' settings, beside ten lines of float64."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.toy import toy_batch, toy_loss, toy_model
from zoquant import ZOSGD, Noise, Views, attach, presets
from zoquant.kernels.noise.definition import Kind, reference, step_seed
from zoquant.optim.estimators import FZOO, TwoPoint
from zoquant.record.rules import SGD

TWO_POINT = {"eps": 1e-3, "probes": 1, "estimator": TwoPoint(), "noise": "gaussian"}


def views_of(model: Any) -> Views:
    return attach(model, coupled=False)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (presets.mezo, {**TWO_POINT, "lr": 1e-6, "clip": None}),
        (presets.qzo, {**TWO_POINT, "lr": 1e-7, "clip": 100.0}),
        (presets.fzoo, {"eps": 1e-3, "clip": None, "probes": 8, "estimator": FZOO(), "noise": "rademacher"}),
    ],
)  # fmt: skip
def test_settings_are_the_papers(preset: Any, expected: dict[str, Any]) -> None:
    optimizer: ZOSGD = preset(views_of(toy_model()))
    found: dict[str, Any] = {**optimizer.param_groups[0], "probes": optimizer.probes, "estimator": optimizer.estimator}
    found |= {"noise": optimizer.trajectory.groups[0].noise.kind}
    assert {name: found[name] for name in expected} == expected
    assert optimizer.views.space == "absolute"
    assert optimizer.trajectory.groups[0].noise == Noise(expected["noise"])
    assert (optimizer.trajectory.groups[0].rule, optimizer.trajectory.groups[0].decay) == (SGD(), 0.0)


def textbook(preset: str, lr: float, eps: float, clip: float, seed: int) -> tuple[dict[str, Tensor], list[float]]:
    """Ten steps of the paper in float64, on a model of its own."""
    kind: Kind = "rademacher" if preset == "fzoo" else "gaussian"
    model, losses, n = toy_model(dtype=torch.float32), [], 3 if preset == "fzoo" else 1
    stored = {view.name: cast(Tensor, view.live) for view in attach(model)}
    theta = {name: live.double() for name, live in stored.items()}
    floor = {name: torch.where(value < 0, -torch.inf, 0.0) for name, value in theta.items()}

    def loss(step: int, length: float = 0.0, z: dict[str, Tensor] | None = None) -> float:
        for name, live in stored.items():
            live.copy_(theta[name] if z is None else theta[name] + length * z[name])
        losses.append(float(toy_loss(model, toy_batch(seed=step))))
        return losses[-1]

    for t in range(10):
        z = [
            {
                k: torch.from_numpy(reference(step_seed(seed, t, i), k, v.numel(), kind)).view(v.shape)
                for k, v in theta.items()
            }
            for i in range(n)
        ]
        if preset == "fzoo":
            base = loss(t)
            probed = torch.tensor([loss(t, eps, each) for each in z], dtype=torch.float64)
            d = ((probed - base) / (n * eps * probed.std())).tolist()
        else:
            d = [max(-clip, min(clip, (loss(t, eps, z[0]) - loss(t, -eps, z[0])) / (2 * eps)))]
        theta = {
            k: torch.maximum(v - lr * sum(a * b[k] for a, b in zip(d, z, strict=True)), floor[k])
            for k, v in theta.items()
        }
    return theta, losses


@pytest.mark.parametrize(("preset", "lr", "clip"), [("mezo", 5e-7, 1e9), ("qzo", 5e-7, 20.0), ("fzoo", 1e-8, 1e9)])
def test_a_textbook_finds_the_same_numbers(preset: str, lr: float, clip: float) -> None:
    eps, seed = 1e-4, 5
    model = toy_model(dtype=torch.float32)
    views = views_of(model)
    settings: dict[str, dict[str, Any]] = {"mezo": {}, "qzo": {"clip": clip}, "fzoo": {"probes": 3}}
    optimizer: ZOSGD = getattr(presets, preset)(views, lr=lr, eps=eps, seed=seed, **settings[preset])
    results = [optimizer.step(lambda t=t: toy_loss(model, toy_batch(seed=t))) for t in range(10)]
    theta, losses = textbook(preset, lr, eps, clip, seed)
    per_step = len(losses) // 10
    for t, result in enumerate(results):
        seen = losses[t * per_step : (t + 1) * per_step]
        assert result.loss == pytest.approx(sum(seen) / len(seen), rel=1e-6)
    if preset == "qzo":
        assert 0 < sum(result.clipped for result in results) < 10
    for name, value in theta.items():
        moved = (value - views.base(name).double()).abs().max()
        torch.testing.assert_close(views.theta(name).double(), value, rtol=0, atol=float(0.02 * moved))
        assert moved > 1e-7


def test_scales_are_kept_at_0_or_above() -> None:
    views = views_of(toy_model(dtype=torch.float32))
    signs = {view.name: view.read().sign() for view in views}
    optimizer = presets.qzo(views, lr=1.0)
    losses = iter([1.0, 0.0])
    optimizer.step(lambda: next(losses))
    assert all(((view.read() == 0) | (view.read().sign() == signs[view.name])).all() for view in views)
    assert any((view.read() == 0).any() for view in views)


@pytest.mark.parametrize("preset", [presets.mezo, presets.qzo, presets.fzoo])
def test_coupled_views_are_refused(preset: Any) -> None:
    from tests.optim.test_optim import Pair, PairLinear
    from tests.toy import registered

    with registered(Pair(), PairLinear), pytest.raises(ValueError, match="Attach with coupled=False"):
        preset(attach(PairLinear()))
