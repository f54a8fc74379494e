"""Every registered backend and format keeps every law. The list is the registry's, never one kept by hand."""

import os
from pathlib import Path

import pytest
import torch

import zoquant
from tests.samples import BACKEND_SAMPLES, FORMAT_SAMPLES
from zoquant.registry import Claim, format_named
from zoquant.testing import BACKEND_CHECKS, FORMAT_CHECKS, BackendCase, FormatCase
from zoquant.testing.case import opened_inputs, quietly

REQUIRE_ALL = os.environ.get("ZOQUANT_REQUIRE_ALL") == "1"


def need(claim: Claim) -> None:
    """Skip what is not installed, unless everything has to be."""
    if not claim.installed and not REQUIRE_ALL:
        pytest.skip(f"the library of {claim.name} is not installed")


@pytest.mark.parametrize("claim", zoquant.list_backends().values(), ids=zoquant.list_backends())
def test_every_backend_has_a_sample(claim: Claim) -> None:
    assert claim.name in BACKEND_SAMPLES, f"add a sample of {claim.name} to tests/samples.py"


@pytest.mark.parametrize("claim", zoquant.list_formats().values(), ids=zoquant.list_formats())
def test_every_format_has_a_sample(claim: Claim) -> None:
    assert claim.name in FORMAT_SAMPLES, f"add a sample of {claim.name} to tests/samples.py"


@pytest.mark.parametrize("check", BACKEND_CHECKS.values(), ids=BACKEND_CHECKS)
@pytest.mark.parametrize("claim", zoquant.list_backends().values(), ids=zoquant.list_backends())
def test_backend(claim: Claim, check: zoquant.testing.Check[BackendCase]) -> None:
    need(claim)
    native = claim.name.startswith("zoquant.")
    check.run(BackendCase(BACKEND_SAMPLES[claim.name], steps=1000 if native else 200))


@pytest.fixture(scope="module")
def format_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FormatCase:
    claim: Claim = request.param
    need(claim)
    path: Path = FORMAT_SAMPLES[claim.name](tmp_path_factory.mktemp(claim.name))
    return FormatCase(path, format_named(claim.name), torch.float32, steps=5)


@pytest.mark.parametrize("check", FORMAT_CHECKS.values(), ids=FORMAT_CHECKS)
@pytest.mark.parametrize("format_case", zoquant.list_formats().values(), ids=zoquant.list_formats(), indirect=True)
def test_format(format_case: FormatCase, check: zoquant.testing.Check[FormatCase]) -> None:
    check.run(format_case)


@pytest.mark.parametrize("format_case", zoquant.list_formats().values(), ids=zoquant.list_formats(), indirect=True)
def test_a_run_without_a_number_descends(format_case: FormatCase) -> None:
    """Eps, lr and clip are calibrated; every layer shall give a fifth more than it does."""
    model, views = format_case.open()
    layers, steps = opened_inputs(model), 40

    @torch.no_grad()
    def outputs() -> list[torch.Tensor]:
        return [module(x).double() for module, x in layers]

    goals = [1.2 * y for y in outputs()]

    def loss() -> float:
        return sum(
            float((y - goal).square().mean() / goal.square().mean()) for y, goal in zip(outputs(), goals, strict=True)
        )

    with quietly():
        optimizer, first = zoquant.ZOSGD(views), loss()
    found = optimizer.calibrate(loss, schedule=[1 - step / steps for step in range(steps)])
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimizer.step(loss)
        rate.step()
    assert next(row.moved for row in found.scan if row.eps == found.eps) > 0.5
    assert loss() < 0.995 * first
