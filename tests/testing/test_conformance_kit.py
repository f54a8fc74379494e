"""The kit itself: every check finds what it is for, and reports it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zoquant
from tests import broken_backends, broken_formats
from tests.toy import ToyFormat, registered, toy_layer, toy_model, write_toy
from zoquant.testing import (
    BACKEND_CHECKS,
    FORMAT_CHECKS,
    BackendCase,
    ConformanceError,
    check_backend,
    check_format,
    run_backend_checks,
    run_format_checks,
)
from zoquant.testing.library import weights_of
from zoquant.testing.tensors import codes_of, reachable, same_bits
from zoquant.views.tensor_views import BytesView


def test_there_is_one_broken_plugin_for_each_check() -> None:
    assert broken_backends.BROKEN.keys() == BACKEND_CHECKS.keys()
    assert broken_formats.BROKEN.keys() == FORMAT_CHECKS.keys()
    checks = [(check.run, check.law) for check in BACKEND_CHECKS.values()]
    for run, law in checks + [(check.run, check.law) for check in FORMAT_CHECKS.values()]:
        assert run.__doc__
        assert 1 <= law <= 10


@pytest.mark.parametrize("name", BACKEND_CHECKS)
def test_a_broken_backend_fails_its_check_and_no_other(name: str) -> None:
    backend, make = broken_backends.BROKEN[name]
    with registered(backend, make):
        results = list(run_backend_checks(make, steps=100))
    assert [result.check for result in results if not result.good] == [name]
    (text,) = (result.text for result in results if not result.good)
    assert not text.startswith("raised")


@pytest.mark.parametrize("fault", broken_backends.ALSO)
def test_another_fault_fails_its_check_and_no_other(fault: str) -> None:
    check, backend, make, said = broken_backends.ALSO[fault]
    with registered(backend, make):
        results = list(run_backend_checks(make, steps=100))
    (failed,) = (result for result in results if not result.good)
    assert failed.check == check
    assert said in failed.text


def test_what_rests_on_a_failed_check_is_not_run() -> None:
    with registered(broken_backends.TransposedRead(), broken_backends.Layer):
        first, *others = run_backend_checks(broken_backends.Layer, steps=1)
        assert first.outcome == "failed"
        assert {(result.outcome, result.text) for result in others} == {("not run", f"{first.check} failed")}
        with pytest.raises(ConformanceError, match=r"1 of 17 checks failed:\n.*\n  not run: check_read_returns_what"):
            check_backend(broken_backends.Layer, steps=1)


def test_a_failure_is_told_in_one_text() -> None:
    name = "check_forward_agrees_with_dequantize"
    backend, make = broken_backends.BROKEN[name]
    with registered(backend, make):
        with pytest.raises(ConformanceError) as caught:
            check_backend(make, steps=1)
        with pytest.raises(ConformanceError):
            BACKEND_CHECKS[name].run(BackendCase(make, steps=1))
    assert str(caught.value) == (
        f"backend of Layer: 1 of {len(BACKEND_CHECKS)} checks failed:\n  {name} (law 1): layer (good): the output is "
        "0.12 away from what dequantize() predicts, expected within 0.001 in torch.float32.\n  not run: "
        "check_write_reaches_forward, check_training_reaches_forward, check_grids_scale_the_weights, "
        "check_gradient_is_that_of_the_forward, check_nothing_drifts, check_raising_loss_leaves_no_trace, "
        "check_delta_meets_only_its_base"
    )


def test_a_good_backend_passes() -> None:
    with registered(broken_backends.Backend(), broken_backends.Layer):
        results = check_backend(broken_backends.Layer, steps=100)
    assert [result.check for result in results] == list(BACKEND_CHECKS)
    assert {result.outcome for result in results} == {"passed"}
    assert all(result.seconds > 0 for result in results)


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """A toy file whose layers l0 and l1 hold the same values."""
    model = toy_model()
    model.layers["l1"] = toy_layer(0)
    return write_toy(tmp_path / "base.toy", model)


@pytest.fixture
def broken_format(request: pytest.FixtureRequest) -> Iterator[str]:
    zoquant.register(format=broken_formats.BROKEN[request.param])
    yield request.param
    zoquant.unregister("toy")


@pytest.mark.parametrize("broken_format", FORMAT_CHECKS, indirect=True)
def test_a_broken_format_fails_its_check(broken_format: str, twins: Path) -> None:
    reference = weights if broken_format == "check_native_agrees_with_reference" else None
    with registered(broken_formats.TurnedBackend(), broken_formats.LibraryLinear):
        results = list(run_format_checks(twins, steps=3, reference=reference))
    failed = {result.check for result in results if not result.good}
    assert failed == {broken_format} | broken_formats.ALSO.get(broken_format, set())


def weights(path: Path) -> Mapping[str, Tensor]:
    """Return the weights of a toy file."""
    model, _ = ToyFormat().open_native(path, compute_dtype=torch.float32, device=torch.device("cpu"))
    return weights_of(model)


@pytest.mark.parametrize("fault", broken_formats.FAULTS)
def test_another_fault_of_a_format_fails_its_check(fault: str, twins: Path) -> None:
    check, format, said = broken_formats.FAULTS[fault]
    zoquant.register(format=format)
    try:
        results = list(run_format_checks(twins, steps=3))
    finally:
        zoquant.unregister("toy")
    (failed,) = (result for result in results if not result.good)
    assert failed.check == check
    assert said in failed.text


def test_a_reference_tells_what_a_library_would(twins: Path) -> None:
    zoquant.register(format=broken_formats.MisreadsAlone(sign=-1.0))
    try:
        assert "not run" in {result.outcome for result in check_format(twins, steps=1)}
        text = r"layers\.l0: the native weight is .* away from the reference's"
        with pytest.raises(ConformanceError, match=text):
            check_format(twins, steps=1, reference=weights)
    finally:
        zoquant.unregister("toy")


def test_a_failure_of_a_format_is_told_in_one_text(twins: Path) -> None:
    zoquant.register(format=broken_formats.MiscountingSummary())
    try:
        with pytest.raises(
            ConformanceError, match=r"format of .*base\.toy: 1 of 14 checks failed:\n  check_summary_agr"
        ):
            check_format(twins, steps=1)
    finally:
        zoquant.unregister("toy")


def test_a_good_format_passes(twins: Path, toy_format: ToyFormat) -> None:
    results = check_format(str(twins))
    assert [result.check for result in results] == list(FORMAT_CHECKS)
    assert all(result.good for result in results)


def test_expected_failures() -> None:
    name, reason = "check_forward_agrees_with_dequantize", "it is off by one"
    with registered(broken_backends.WrongDequantize(), broken_backends.Layer):
        results = check_backend(broken_backends.Layer, steps=10, expected_failures={name: reason})
        (result,) = (result for result in results if result.check == name)
        assert (result.outcome, result.text, result.good) == ("expected failure", reason, True)
        with pytest.raises(ConformanceError) as caught:
            check_backend(
                broken_backends.Layer, steps=10, expected_failures={name: reason, "check_noise_is_pure": "why not"}
            )
    assert "check_noise_is_pure (law 6): was expected to fail (why not), but passes. Take it out of" in str(
        caught.value
    )


def test_expected_failures_that_do_not_exist() -> None:
    with pytest.raises(ConformanceError, match=r"expected_failures names check_x; the checks are check_views_are_well"):
        check_backend(toy_layer, expected_failures={"check_x": "?"})


class Unclaimed(nn.Linear):
    """A layer with plain parameters, whose class somebody forgot to register."""

    def __init__(self) -> None:
        super().__init__(2, 2)


def test_a_module_that_no_backend_claims() -> None:
    results = list(run_backend_checks(Unclaimed, steps=1))
    assert "no backend claims a layer of what make_module() returned: its classes are" in results[0].text
    assert "tests.testing.test_conformance_kit.Unclaimed" in results[0].text


def test_what_a_check_raises_is_reported() -> None:
    def make() -> nn.Module:
        raise OSError("gone")

    assert next(iter(run_backend_checks(make, steps=1))).text == "raised OSError: gone"


def test_tensors_are_found_wherever_they_hang() -> None:
    class State:
        def __init__(self) -> None:
            self.absmax = torch.ones(1)

    module = nn.Linear(1, 1)
    module.register_buffer("buffer", torch.ones(1))
    extras: dict[str, object] = {"meta": {"list": [torch.ones(1)], "n": 3}, "state": State(), "itself": module}
    module.__dict__.update(extras)
    module.weight.quant_state = State()  # type: ignore[attr-defined]
    found = reachable(nn.ModuleDict({"a": module}))
    assert set(found) == {
        "a.weight", "a.bias", "a.buffer", "a.meta.list.0", "a.state.absmax", "a.weight.quant_state.absmax",
    }  # fmt: skip


def test_the_bytes_of_a_view_are_no_codes() -> None:
    module = nn.Module()
    packed = torch.arange(24, dtype=torch.uint8)
    module.register_buffer("packed", packed)
    view = BytesView("d", "scale", packed, offset=0, shape=(3,), strides=(8,), dtype=torch.float16)
    before = codes_of(module, [view])
    view.write(torch.zeros(3))
    assert all(torch.equal(before[key], after) for key, after in codes_of(module, [view]).items())
    packed[2] += 1
    assert not torch.equal(before["packed"], codes_of(module, [view])["packed"])


def test_same_bits() -> None:
    nan = torch.tensor(float("nan"))
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.ones(2), torch.ones(2).half())
    assert not same_bits(torch.ones(2), torch.ones(1, 2))
