"""The kit for those who add a format: every law of zoquant, checked on anyone's backend or format.

In a plugin's own tests, one line each:

    zoquant.testing.check_backend(lambda: make_a_small_layer())
    zoquant.testing.check_format("a-small-checkpoint")

or one pytest item for each check:

    @pytest.mark.parametrize("check", zoquant.testing.BACKEND_CHECKS.values(), ids=zoquant.testing.BACKEND_CHECKS)
    def test_backend(check):
        check.run(zoquant.testing.BackendCase(make_a_small_layer, steps=1000))
"""

from zoquant.testing.backends import BACKEND_CHECKS, check_backend, run_backend_checks
from zoquant.testing.case import BackendCase
from zoquant.testing.format_case import FormatCase
from zoquant.testing.formats import FORMAT_CHECKS, check_format, run_format_checks
from zoquant.testing.results import Check, CheckResult, ConformanceError

__all__ = [
    "BACKEND_CHECKS",
    "FORMAT_CHECKS",
    "BackendCase",
    "Check",
    "CheckResult",
    "ConformanceError",
    "FormatCase",
    "check_backend",
    "check_format",
    "run_backend_checks",
    "run_format_checks",
]
