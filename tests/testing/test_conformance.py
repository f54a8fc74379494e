"""Every class that is served and every format keeps every law. The list is the registry's, never one kept by hand.

Only cases that can run here are made; `test_what_waits_for_something` counts the others. The environment variable
ZOQUANT_REQUIRE names libraries without which it fails, as the targets of the Makefile have it. Classes that are refused
have no laws to keep: tests/backends/test_refused.py.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import zoquant
from tests.samples import BACKEND_SAMPLES, FORMAT_SAMPLES, GPU, waits_for
from zoquant.backends.refused import reason
from zoquant.protocol import Runtimes
from zoquant.testing import BACKEND_CHECKS, FORMAT_CHECKS, BackendCase, FormatCase
from zoquant.testing.case import opened_inputs, quietly

SERVED = [name for name in zoquant.list_backends() if not reason(name)]
FORMATS = list(zoquant.list_formats())
WAITING = {name: why for name in [*SERVED, *FORMATS] if (why := waits_for(name))}
REQUIRED = os.environ.get("ZOQUANT_REQUIRE", "").split()


def here(names: list[str]) -> list[str]:
    """Return the names whose sample can be made here."""
    return [name for name in names if name not in WAITING]


def has_library(name: str) -> bool:
    """Whether the library of a format computes its forward here."""
    format = zoquant.list_formats()[name].load()
    return isinstance(format, Runtimes) and format.runtimes().get("vendor", "no").startswith("yes")


def test_everything_has_a_sample() -> None:
    assert sorted({*BACKEND_SAMPLES} | GPU) == sorted(SERVED), "add one to tests/samples.py"
    assert sorted(FORMAT_SAMPLES) == sorted(FORMATS), "add one to tests/samples.py"


def test_what_waits_for_something() -> None:
    """Fails for a library that is required; skips with the number of claims that wait for each of the others."""
    missing = {name: why for name, why in WAITING.items() if why in REQUIRED}
    assert not missing, "a library of ZOQUANT_REQUIRE is not installed here"
    if WAITING:
        counts = Counter(WAITING.values()).most_common()
        pytest.skip(f"of {len(SERVED) + len(FORMATS)} claims " + ", ".join(f"{n} wait for {why}" for why, n in counts))


@pytest.mark.parametrize("check", BACKEND_CHECKS.values(), ids=BACKEND_CHECKS)
@pytest.mark.parametrize("name", here(SERVED))
def test_backend(name: str, check: zoquant.testing.Check[BackendCase]) -> None:
    native = name.startswith("zoquant.")
    check.run(BackendCase(BACKEND_SAMPLES[name], steps=1000 if native else 200))


@pytest.fixture(scope="module")
def format_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FormatCase:
    name: str = request.param
    path: Path = FORMAT_SAMPLES[name](tmp_path_factory.mktemp(name))
    return FormatCase(path, zoquant.list_formats()[name].load(), torch.float32, steps=5)


OWN = {name: check for name, check in FORMAT_CHECKS.items() if "vendor" not in name and "reference" not in name}


@pytest.mark.parametrize("check", OWN.values(), ids=OWN)
@pytest.mark.parametrize("format_case", here(FORMATS), indirect=True)
def test_format(format_case: FormatCase, check: zoquant.testing.Check[FormatCase]) -> None:
    check.run(format_case)


LIBRARY = ("check_vendor_opens", "check_vendor_holds_the_values", "check_native_agrees_with_vendor")
MIXES = "bitsandbytes mixes up the blocks of a matrix whose columns they do not divide, on a CPU; the sample has one"
GROUPS = "quanto reads groups of its own choice alone; the sample has others"
VERSION = "torchao no longer loads the first version of its config; the sample has it"
BITS = "transformers makes all layers of GPTQ by one config; those of the sample have bits and groups of their own"
KNOWN = {
    **dict.fromkeys([("gptq", check) for check in LIBRARY], BITS),
    **dict.fromkeys([("bitsandbytes", LIBRARY[0]), ("bitsandbytes", LIBRARY[2])], MIXES),
    **dict.fromkeys([("quanto", LIBRARY[0]), ("quanto", LIBRARY[2])], GROUPS),
    **dict.fromkeys([("torchao", check) for check in LIBRARY], VERSION),
}
"""What libraries make of samples that have every kind of matrix that a file may have."""


def library_cases() -> list[Any]:
    """Return the formats whose library is here, each with every check of it."""
    pairs = [(name, check) for name in here(FORMATS) if has_library(name) for check in LIBRARY]
    failing = {pair: pytest.mark.xfail(reason=why, strict=True) for pair, why in KNOWN.items()}
    return [pytest.param(*pair, id="-".join(pair), marks=failing.get(pair, ())) for pair in pairs]


@pytest.mark.parametrize(("format_case", "check"), library_cases(), indirect=["format_case"])
def test_format_and_its_library(format_case: FormatCase, check: str) -> None:
    FORMAT_CHECKS[check].run(format_case)


@pytest.mark.parametrize("format_case", here(FORMATS), indirect=True)
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
