"""Fill the matrix of docs/formats.md by running it: `python -m benchmarks.matrix`, once in every environment.

For each registered format: `inspect`, the native load, the conformance kit and the exports on the samples of the tests;
for each live class whose library is installed here, the kit on its sample; and with `--library` the family's own slow
tests, which reload exports with the format's library. What another environment has run before is kept where this one
cannot run it.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import zoquant
from benchmarks.formats import RESULTS
from docs.matrix import COLUMNS
from tests.samples import BACKEND_SAMPLES, FORMAT_SAMPLES, waits_for
from zoquant.errors import ZoquantError
from zoquant.files.atomic_files import write_text
from zoquant.protocol import Backend
from zoquant.registry import Claim, format_named
from zoquant.testing import FORMAT_CHECKS, FormatCase, run_backend_checks

STEPS = 20
EXPORTS = "check_zero_delta_exports_the_base", "check_export_changes_only_indexed_bytes", "check_exported_file_loads"
NOT_RUN = "not tried"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", action="store_true", help="run the slow tests of each family, too")
    parser.add_argument("--only", nargs="*", default=None, help="these formats alone")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in sorted(zoquant.list_formats()):
        if given.only is None or name in given.only:
            found = files_of(name)
            found["live"] = live(name, found.pop("vendor", ""))
            found["library"] = library(name) if given.library else NOT_RUN
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}, "runs": []}
            found["real size"] = real_size(name, results["runs"])
            cells = better(results["cells"].get(name, {}), found)
            if cells["library"] == NOT_RUN:
                cells["library"] = reloaded(name, results["runs"])
            results["cells"][name] = cells
            print(name, results["cells"][name], flush=True)
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")


def better(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return every column from this run, or from an earlier one where this one could not run it."""
    return {
        column: before.get(column, NOT_RUN) if now[column].startswith(NOT_RUN) else now[column] for column in COLUMNS
    }


def files_of(name: str) -> dict[str, str]:
    """Return what came of inspect, the native load, the kit and the exports on the sample of a format."""
    with TemporaryDirectory() as folder:
        try:
            case = FormatCase(FORMAT_SAMPLES[name](Path(folder)), format_named(name), torch.float32, STEPS)
        except (ImportError, pytest.skip.Exception) as error:
            return dict.fromkeys(("inspect", "native", "conformance", "export"), f"{NOT_RUN}: {_line(error)}")
        outcomes = {check: outcome(partial(check.run, case)) for check in FORMAT_CHECKS.values()}
        failed = {check.run.__name__: why for check, why in outcomes.items() if why}
        exports = [why for each, why in failed.items() if each in EXPORTS]
        return {
            "inspect": outcome(partial(case.format.summarize, case.path)) or "works",
            "native": outcome(case.open) or "works",
            "vendor": case.format.summarize(case.path).runtimes.get("vendor", ""),
            "conformance": f"fails: {', '.join(failed)}" if failed else f"works: {len(outcomes)} checks",
            "export": exports[0] if exports else "works",
        }


def live(name: str, vendor: str) -> str:
    """Return what came of the kit on the classes whose backends lie beside a format.

    Args:
        name: the format.
        vendor: what `inspect` says of the library's runtime, which is why there is no such class.
    """
    module = zoquant.list_formats()[name].target.partition(":")[0]
    family = module.rpartition(".")[0]
    claims = [
        claim for claim in zoquant.list_backends().values() if claim.target.startswith((f"{family}.", f"{family}:"))
    ]
    if not claims:
        why = vendor.removeprefix("no: ")
        return f"{NOT_RUN}: {why}" if "installed" in vendor else f"refused: {why}"
    kinds = [one_class(claim) for claim in claims]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{NOT_RUN}: {said}" if set(counts) <= {"whose library is missing", "need a GPU"} else f"works: {said}"


def one_class(claim: Claim[Backend]) -> str:
    """Return in a word what came of the kit on the sample of a class."""
    missing = waits_for(claim.name)
    if missing:
        return "need a GPU" if missing == "a GPU" else "whose library is missing"
    try:
        results = list(run_backend_checks(BACKEND_SAMPLES[claim.name], steps=STEPS))
    except (ImportError, ZoquantError):
        return "whose library is missing"
    return "pass the kit" if all(result.good for result in results) else "fail a check"


def library(name: str) -> str:
    """Run the tests of a family that reload its exports with its library."""
    file = Path("tests/backends") / name.replace("-", "_") / "test_library.py"
    if not file.exists():
        return NOT_RUN
    command = [sys.executable, "-m", "pytest", "-m", "slow or not slow", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    last = said[-1] if said else "no output"
    if " failed" in last or " error" in last:
        return f"fails: {last}"
    return f"works: {last.partition(' passed')[0].split()[-1]} tests" if " passed" in last else NOT_RUN


def real_size(name: str, runs: Any) -> str:
    """Return the loss before and after the run of real size, if there was one."""
    for run in runs:
        if run["format"] == name:
            return f"works: {run['steps']} steps, loss {run['loss before']} to {run['loss after']}"
    return NOT_RUN


def reloaded(name: str, runs: Any) -> str:
    """Return how near the library's logits were after the run of real size, if there was one."""
    for run in runs:
        distance = run["logits, reloaded by the library"]
        if run["format"] == name and not distance.startswith("not run"):
            return f"works: logits within {distance} at real size"
    return NOT_RUN


def outcome(work: Callable[[], object]) -> str:
    """Return why some work failed or was skipped; empty where it did not."""
    try:
        work()
    except (ZoquantError, AssertionError, ImportError, pytest.skip.Exception) as error:
        return f"fails: {_line(error)}"
    return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


if __name__ == "__main__":
    main()
