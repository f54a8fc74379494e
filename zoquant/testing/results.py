"""Running checks: what a check is, what came of it, and how a list of them is reported."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar
from unittest import SkipTest

from zoquant.errors import ZoquantError

Outcome = Literal["passed", "failed", "expected failure", "unexpected pass", "not run"]
Case = TypeVar("Case")


class ConformanceError(ZoquantError, AssertionError):
    """A backend or a format breaks a law. The message names the view or file, what was expected and what came."""


class NotHere(SkipTest):
    """There is nothing here that a check could run on, and why. pytest takes it for a skip."""


@dataclass(frozen=True)
class Check(Generic[Case]):
    """One law, or a part of one, as a function that raises when it is broken.

    Attributes:
        law: number of the law.
        run: the function; the first line of its docstring says what holds.
        needs: names of the checks that have to pass before this one can say anything.
    """

    law: int
    run: Callable[[Case], None]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes:
        check: name of the check.
        law: number of the law it belongs to.
        outcome: `"passed"`, `"failed"`, for a check that was expected to fail `"expected failure"` or
            `"unexpected pass"`, or `"not run"`.
        text: why it failed, was expected to, or was not run.
        seconds: how long it took.
    """

    check: str
    law: int
    outcome: Outcome
    text: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing speaks against it; where a check was not run because another one failed, that one does."""
        return self.outcome in ("passed", "expected failure", "not run")


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
    failed: list[str] = []
    for name, check in checks.items():
        root = next((each for each in failed if each in check.needs), None)
        if root is not None:
            failed.append(name)
            yield CheckResult(name, check.law, "not run", f"{root} failed", 0.0)
            continue
        start = time.perf_counter()
        outcome, text = _outcome(check, case, expected_failures.get(name))
        if outcome == "failed":
            failed.append(name)
        yield CheckResult(name, check.law, outcome, text, time.perf_counter() - start)


def demand(what: str, results: list[CheckResult]) -> list[CheckResult]:
    """Return the results if all are good.

    Raises:
        ConformanceError: a check failed, or one that was expected to fail passed; the message lists them all.
    """
    bad = [result for result in results if not result.good]
    if bad:
        lines = [f"  {result.check} (law {result.law}): {result.text}" for result in bad]
        waiting = [result.check for result in results if result.outcome == "not run"]
        lines += [f"  not run: {', '.join(waiting)}"] if waiting else []
        raise ConformanceError("\n".join([f"{what}: {len(bad)} of {len(results)} checks failed:", *lines]))
    return results


def _outcome(check: Check[Case], case: Case, reason: str | None) -> tuple[Outcome, str]:
    """Run a check; return what came of it and what there is to say."""
    try:
        check.run(case)
    except NotHere as error:
        return "not run", str(error)
    except ConformanceError as error:
        text = str(error)
    except Exception as error:
        text = f"raised {type(error).__name__}: {error}"
    else:
        if reason is None:
            return "passed", ""
        return "unexpected pass", f"was expected to fail ({reason}), but passes. Take it out of expected_failures."
    return ("failed", text) if reason is None else ("expected failure", reason)
