"""All checks of a format, and the two ways to run them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from zoquant.registry import format_of
from zoquant.testing import damage, files, library
from zoquant.testing.format_case import FormatCase, Reference
from zoquant.testing.results import Check, CheckResult, demand, run_checks

_INDEXED = ("check_index_lies_in_the_file", "check_index_matches_views")
_OPENED = ("check_vendor_opens",)

FORMAT_CHECKS: Mapping[str, Check[FormatCase]] = {
    check.run.__name__: check
    for check in (
        Check(4, files.check_sniff_knows_only_its_own),
        Check(4, files.check_summary_agrees_with_the_file),
        Check(4, files.check_index_lies_in_the_file),
        Check(4, files.check_index_matches_views, _INDEXED[:1]),
        Check(4, library.check_vendor_opens),
        Check(4, library.check_vendor_holds_the_values, (*_INDEXED, *_OPENED)),
        Check(4, library.check_native_agrees_with_vendor, _OPENED),
        Check(4, library.check_native_agrees_with_reference),
        Check(5, files.check_zero_delta_exports_the_base, _INDEXED),
        Check(5, files.check_export_changes_only_indexed_bytes, _INDEXED),
        Check(5, files.check_exported_file_loads, _INDEXED),
        Check(1, damage.check_layers_conform),
        Check(8, damage.check_export_refuses_another_base, _INDEXED),
        Check(9, damage.check_truncated_file_is_refused, _INDEXED[:1]),
    )
}
"""The checks of `check_format`, by name."""


def run_format_checks(
    path: str | Path,
    *,
    expected_failures: Mapping[str, str] | None = None,
    compute_dtype: torch.dtype = torch.float32,
    steps: int = 20,
    reference: Reference | None = None,
) -> Iterator[CheckResult]:
    """Run all checks of a format and yield what came of each, raising nothing. See `check_format`."""
    case = FormatCase(Path(path), format_of(Path(path)), compute_dtype, steps, reference)
    return run_checks(FORMAT_CHECKS, case, expected_failures or {})


def check_format(
    path: str | Path,
    *,
    expected_failures: Mapping[str, str] | None = None,
    compute_dtype: torch.dtype = torch.float32,
    steps: int = 20,
    reference: Reference | None = None,
) -> list[CheckResult]:
    """Check that a format keeps every law of zoquant, on one checkpoint.

    Args:
        path: a small checkpoint of the format; it is read, never written.
        expected_failures: reasons by name of checks that are known to fail; one that passes after all is an error.
        compute_dtype: dtype of the matrix products of the native layers.
        steps: training steps of the check that nothing drifts, for each kind of layer.
        reference: returns weights of the checkpoint as another program reads them, by path of layer, float32
            `[out_features, in_features]`; some of them will do. Without it, and without a vendor runtime, nobody says
            whether the file was read as it was meant.

    Returns:
        What came of each check.

    Raises:
        ConformanceError: a check failed; the message lists all that did, and why.
        CheckpointError: no registered format knows the checkpoint.
    """
    results = list(
        run_format_checks(
            path,
            expected_failures=expected_failures,
            compute_dtype=compute_dtype,
            steps=steps,
            reference=reference,
        )
    )
    return demand(f"format of {path}", results)
