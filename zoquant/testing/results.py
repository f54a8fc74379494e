"""Running checks: what a check is, what came of it, and how a list of them is reported."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from zoquant.errors import ZoquantError

Outcome = Literal["passed", "failed", "expected failure", "unexpected pass"]
Case = TypeVar("Case")


class ConformanceError(ZoquantError, AssertionError):
    """A backend or a format breaks a law. The message names the view or file, what was expected and what came."""


@dataclass(frozen=True)
class Check(Generic[Case]):
    """One law, or a part of one, as a function that raises when it is broken.

    Attributes:
        law: number of the law.
        run: the function; the first line of its docstring says what holds.
    """

    law: int
    run: Callable[[Case], None]


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes:
        check: name of the check.
        law: number of the law it belongs to.
        outcome: `"passed"`, `"failed"`, or for a check that was expected to fail `"expected failure"` or
            `"unexpected pass"`.
        text: why it failed, or why it was expected to.
        seconds: how long it took.
    """

    check: str
    law: int
    outcome: Outcome
    text: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the check did what was expected of it."""
        return self.outcome in ("passed", "expected failure")


def run_checks(
    checks: Mapping[str, Check[Case]], case: Case, expected_failures: Mapping[str, str]
) -> Iterator[CheckResult]:
    """Run checks one after the other and yield what came of each. Nothing a check raises gets out.

    Args:
        checks: the checks by name.
        case: what they run on.
        expected_failures: reasons by name of the checks that are known to fail.

    Raises:
        ConformanceError: `expected_failures` names a check that does not exist.
    """
    unknown = sorted(set(expected_failures) - set(checks))
    if unknown:
        raise ConformanceError(f"expected_failures names {', '.join(unknown)}; the checks are {', '.join(checks)}.")
    for name, check in checks.items():
        start = time.perf_counter()
        text = _complaint(check, case)
        seconds = time.perf_counter() - start
        reason = expected_failures.get(name)
        if reason is None:
            yield CheckResult(name, check.law, "failed" if text else "passed", text, seconds)
        elif text:
            yield CheckResult(name, check.law, "expected failure", reason, seconds)
        else:
            text = f"was expected to fail ({reason}), but passes. Take it out of expected_failures."
            yield CheckResult(name, check.law, "unexpected pass", text, seconds)


def demand(what: str, results: list[CheckResult]) -> list[CheckResult]:
    """Return the results if all are good.

    Raises:
        ConformanceError: a check failed, or one that was expected to fail passed; the message lists them all.
    """
    bad = [result for result in results if not result.good]
    if bad:
        lines = [f"  {result.check} (law {result.law}): {result.text}" for result in bad]
        raise ConformanceError("\n".join([f"{what}: {len(bad)} of {len(results)} checks failed:", *lines]))
    return results


def _complaint(check: Check[Case], case: Case) -> str:
    try:
        check.run(case)
    except ConformanceError as error:
        return str(error)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return ""
