"""Every registered backend and format keeps every law. The list is the registry's, never one kept by hand."""

import os
from pathlib import Path

import pytest
import torch

import zoquant
from tests.samples import BACKEND_SAMPLES, FORMAT_SAMPLES
from zoquant.registry import Claim, format_named
from zoquant.testing import BACKEND_CHECKS, FORMAT_CHECKS, BackendCase, FormatCase

REQUIRE_ALL = os.environ.get("ZOQUANT_REQUIRE_ALL") == "1"


def need(claim: Claim) -> None:
    """Skip what is not installed, unless everything has to be."""
    if not claim.installed and not REQUIRE_ALL:
        pytest.skip(f"the library of {claim.name} is not installed")


@pytest.mark.parametrize("claim", zoquant.backends().values(), ids=zoquant.backends())
def test_every_backend_has_a_sample(claim: Claim) -> None:
    assert claim.name in BACKEND_SAMPLES, f"add a sample of {claim.name} to tests/samples.py"


@pytest.mark.parametrize("claim", zoquant.formats().values(), ids=zoquant.formats())
def test_every_format_has_a_sample(claim: Claim) -> None:
    assert claim.name in FORMAT_SAMPLES, f"add a sample of {claim.name} to tests/samples.py"


@pytest.mark.parametrize("check", BACKEND_CHECKS.values(), ids=BACKEND_CHECKS)
@pytest.mark.parametrize("claim", zoquant.backends().values(), ids=zoquant.backends())
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
@pytest.mark.parametrize("format_case", zoquant.formats().values(), ids=zoquant.formats(), indirect=True)
def test_format(format_case: FormatCase, check: zoquant.testing.Check[FormatCase]) -> None:
    check.run(format_case)
