"""All checks of a backend, and the two ways to run them."""

from collections.abc import Iterator, Mapping

from zoquant.testing import forward, gradients, identity, refusals, training
from zoquant.testing.case import BackendCase, MakeModule
from zoquant.testing.results import Check, CheckResult, demand, run_checks

_FORMED = ("check_views_are_well_formed",)
_WRITTEN = (*_FORMED, "check_read_returns_what_was_written", "check_codes_never_change")
_AGREED = (*_WRITTEN, "check_forward_agrees_with_dequantize")
_FOLLOWED = (*_AGREED, "check_write_reaches_forward")

BACKEND_CHECKS: Mapping[str, Check[BackendCase]] = {
    check.run.__name__: check
    for check in (
        Check(1, forward.check_views_are_well_formed),
        Check(1, forward.check_read_returns_what_was_written, _FORMED),
        Check(1, forward.check_views_are_independent, _FORMED),
        Check(2, training.check_codes_never_change, _FORMED),
        Check(1, forward.check_forward_agrees_with_dequantize, _FORMED),
        Check(1, forward.check_write_reaches_forward, _AGREED),
        Check(1, forward.check_training_reaches_forward, _FOLLOWED),
        Check(1, forward.check_grids_scale_the_weights, _FOLLOWED),
        Check(1, gradients.check_gradient_is_that_of_the_forward, _AGREED),
        Check(3, training.check_nothing_drifts, _FOLLOWED),
        Check(3, training.check_raising_loss_leaves_no_trace, _FOLLOWED),
        Check(4, forward.check_forward_keeps_order, _FORMED),
        Check(6, identity.check_noise_is_pure, _FORMED),
        Check(7, training.check_trajectory_replays, _WRITTEN),
        Check(8, identity.check_delta_meets_only_its_base, _FOLLOWED),
        Check(9, refusals.check_bad_values_are_refused, _FORMED),
        Check(10, refusals.check_attach_imports_nothing, _FORMED),
    )
}
"""The checks of `check_backend`, by name."""


def run_backend_checks(
    make_module: MakeModule, *, expected_failures: Mapping[str, str] | None = None, steps: int = 1000
) -> Iterator[CheckResult]:
    """Run all checks of a backend and yield what came of each, raising nothing. See `check_backend`."""
    return run_checks(BACKEND_CHECKS, BackendCase(make_module, steps), expected_failures or {})


def check_backend(
    make_module: MakeModule, *, expected_failures: Mapping[str, str] | None = None, steps: int = 1000
) -> list[CheckResult]:
    """Check that a backend keeps every law of zoquant.

    Args:
        make_module: builds a module with at least one layer that a registered backend claims; every call must give a
            new module with the same bytes. Its train or eval mode is left as it is.
        expected_failures: reasons by name of checks that are known to fail; one that passes after all is an error.
        steps: training steps of the check that nothing drifts, two forwards each.

    Returns:
        What came of each check.

    Raises:
        ConformanceError: a check failed; the message lists all that did, and why.
    """
    results = list(run_backend_checks(make_module, expected_failures=expected_failures, steps=steps))
    return demand(f"backend of {type(make_module()).__name__}", results)
