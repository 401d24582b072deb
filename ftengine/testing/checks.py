"""How checks are run and told."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn
from unittest.mock import patch

from ftengine.errors import FtengineError

Outcome = Literal["passed", "failed", "expected", "skipped", "does not apply"]
"""What comes of a check."""

Check = tuple[str, Callable[[], None]]
"""The name of a check, and what raises where it fails; a name may come several times, once for each model or data."""


@dataclass(frozen=True)
class CheckResult:
    """What came of a check.

    Args:
        check: its name.
        outcome: "passed"; "failed"; "expected", which is a failure that was announced with a reason; "skipped" where
            the component does not do what is checked; "does not apply" where it refuses the model or data, or nothing
            that is at hand suits it.
        reason: why it is no "passed", or the announced reason; "" where it passed.
    """

    check: str
    outcome: Outcome
    reason: str = ""


class Skipped(Exception):
    """Raised by a check of what the component does not do."""


class NotSuited(Exception):
    """Raised where a model or data does not suit the component, or what it needs was not given."""


def not_suited(reason: str) -> NoReturn:
    """Say that a check cannot be made with what is at hand."""
    raise NotSuited(reason)


def skip(reason: str) -> NoReturn:
    """Leave a check out, with the reason."""
    raise Skipped(reason)


def results_of(
    checks: Iterable[Check], expected: Mapping[str, str] | None, only: Collection[str] = ()
) -> list[CheckResult]:
    """Run checks; return one result a name, in their order.

    Where a name comes several times, one failure makes it fail, and it is skipped where it never applies.

    Args:
        checks: what to run.
        expected: names of checks that fail, with reasons; one that does not fail, or does not exist, fails.
        only: names of the checks to run; all where there are none.
    """
    expected, outcomes = expected or {}, dict[str, list[tuple[Outcome, str]]]()
    with patch.object(os, "_exit", partial(_refuse_end, os._exit, os.getpid())):
        for name, check in (one for one in checks if not only or one[0] in only):
            outcomes.setdefault(name, []).append(_outcome(check))
    results = [_joined(name, told, expected) for name, told in outcomes.items()]
    there = ", ".join(outcomes)
    for name in (expected.keys() & set(only) if only else expected.keys()) - outcomes.keys():
        results.append(CheckResult(name, "failed", f"expected_failed_checks names {[name]}; there are {there}."))
    return results


def run_checks(checks: Iterable[Check], expected: Mapping[str, str] | None) -> None:
    """Run checks and raise an AssertionError that names each that failed."""
    require_passed(results_of(checks, expected))


def require_passed(results: Iterable[CheckResult]) -> None:
    """Raise an AssertionError that names each check that failed, with its reason."""
    wrong = [f"{result.check}: {result.reason}" for result in results if result.outcome == "failed"]
    if wrong:
        raise AssertionError("; ".join(wrong))


@dataclass
class Checks:
    """A component's checks: the public methods of a class, in the order in which it defines them, then its base's.

    Args:
        make: returns a fresh component, e.g. its class.
        on: the model or data that it looks at, for the messages; "" where there is one alone.
    """

    make: Callable[[], Any]
    on: str = field(default="", kw_only=True)

    def __iter__(self) -> Iterator[Check]:
        for kind in type(self).__mro__:
            for name, member in vars(kind).items():
                if inspect.isfunction(member) and not name.startswith("_"):
                    yield name, partial(_located, getattr(self, name), self.on)


def names_of_checks(kind: type[Checks] = Checks) -> set[str]:
    """Return the names of the checks that classes derived from one have."""
    own = {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}
    return own.union(*map(names_of_checks, kind.__subclasses__()))


def require_any(checks: Sequence[Callable[[], None]]) -> None:
    """Pass where one of several checks does."""
    outcomes = dict(map(_outcome, checks))
    if "passed" not in outcomes:
        assert "failed" not in outcomes, outcomes["failed"]
        skip(next(iter(outcomes.values())))


def _located(check: Callable[[], None], on: str) -> None:
    """Run a check, whose reasons say then what it looked at."""
    place = f"on {on}: " if on else ""
    try:
        check()
    except Skipped as reason:
        raise Skipped(f"{place}{reason}") from None
    except NotSuited as reason:
        raise NotSuited(f"{place}{reason}") from None
    # A broken component may raise anything; each is that check's failure.
    except (Exception, SystemExit) as error:
        raise AssertionError(place + _message(error)) from error


def _refuse_end(leave: Callable[[int], NoReturn], process: int, status: int) -> NoReturn:
    """Stand for `os._exit`, which would end the checks without a word; processes that a component forks end by it."""
    if os.getpid() != process:
        leave(status)
    raise SystemExit(f"os._exit({status})")


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the process (SystemExit: {error}); what it cannot do, it says by an error"
    kind = "" if isinstance(error, (AssertionError, FtengineError)) else f"{type(error).__name__}: "
    return f"{kind}{error}"


def _outcome(check: Callable[[], None]) -> tuple[Outcome, str]:
    try:
        check()
    except Skipped as reason:
        return "skipped", str(reason)
    except NotSuited as reason:
        return "does not apply", str(reason)
    except (Exception, SystemExit) as error:  # as in `_located`
        return "failed", _message(error)
    return "passed", ""


def _joined(name: str, told: list[tuple[Outcome, str]], expected: Mapping[str, str]) -> CheckResult:
    failed = list(dict.fromkeys(reason for outcome, reason in told if outcome == "failed"))
    left_out = next(((outcome, reason) for outcome, reason in told if outcome == "skipped"), told[0])
    skipped = all(outcome in ("skipped", "does not apply") for outcome, _ in told)
    if failed and name in expected:
        return CheckResult(name, "expected", expected[name])
    if failed:
        more = f" (and in {len(failed) - 1} more places)" if len(failed) > 1 else ""
        return CheckResult(name, "failed", failed[0] + more)
    if name in expected:
        said = f"is skipped, though it was expected to fail: {told[0][1]}"
        passes = f"passes, though it was expected to fail ({expected[name]})"
        return CheckResult(name, "failed", said if skipped else passes)
    return CheckResult(name, *left_out) if skipped else CheckResult(name, "passed")
