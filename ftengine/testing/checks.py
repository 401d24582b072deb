"""Running of checks and their results."""

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
"""The outcome of a check."""

Check = tuple[str, Callable[[], None]]
"""A check's name, and a function that raises if it fails; a name may occur once for each model or data."""


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Args:
        check: the check's name.
        outcome: "passed"; "failed"; "expected" (a failure that was announced with a reason); "skipped" if the component
            does not have the checked feature; "does not apply" if it refuses the model or data, or none suits it.
        reason: why it did not pass, or the announced reason; "" if it passed.
    """

    check: str
    outcome: Outcome
    reason: str = ""


class Skipped(Exception):
    """A check is skipped, because the component does not have the checked feature."""


class NotSuited(Exception):
    """A check does not apply: the model or data does not suit the component, or something that it needs is missing."""


def not_suited(reason: str) -> NoReturn:
    """End a check that does not apply to the model or data."""
    raise NotSuited(reason)


def skip(reason: str) -> NoReturn:
    """Skip a check, with the reason."""
    raise Skipped(reason)


def results_of(
    checks: Iterable[Check], expected: Mapping[str, str] | None, only: Collection[str] = ()
) -> list[CheckResult]:
    """Run checks; return one result for each name, in order.

    If a name occurs several times, one failure makes it fail, and it is skipped only if it never runs.

    Args:
        checks: checks to run.
        expected: names of checks that fail, with reasons; if one passes or does not exist, that is a failure.
        only: names of the checks to run; by default all.
    """
    expected, outcomes = expected or {}, dict[str, list[tuple[Outcome, str]]]()
    with patch.object(os, "_exit", partial(_refuse_end, os._exit, os.getpid())):
        for name, check in (named_check for named_check in checks if not only or named_check[0] in only):
            outcomes.setdefault(name, []).append(_outcome(check))
    results = [_joined(name, results_of_name, expected) for name, results_of_name in outcomes.items()]
    names = ", ".join(outcomes)
    for name in (expected.keys() & set(only) if only else expected.keys()) - outcomes.keys():
        results.append(
            CheckResult(
                name, "failed", f"expected_failed_checks has the name {name!r}, which is no check. Checks: {names}."
            )
        )
    return results


def run_checks(checks: Iterable[Check], expected: Mapping[str, str] | None) -> None:
    """Run checks and raise an AssertionError that names all that failed."""
    require_passed(results_of(checks, expected))


def require_passed(results: Iterable[CheckResult]) -> None:
    """Raise an AssertionError that names all checks that failed, with their reasons."""
    wrong = [f"{result.check}: {result.reason}" for result in results if result.outcome == "failed"]
    if wrong:
        raise AssertionError("; ".join(wrong))


@dataclass
class Checks:
    """A component's checks: the public methods of a class, in the order in which it defines them, then its base's.

    Args:
        make: returns a fresh component, e.g. its class.
        on: the model or data of the check, for messages; "" if there is only one.
    """

    make: Callable[[], Any]
    on: str = field(default="", kw_only=True)

    def __iter__(self) -> Iterator[Check]:
        for kind in type(self).__mro__:
            for name, member in vars(kind).items():
                if inspect.isfunction(member) and not name.startswith("_"):
                    yield name, partial(_located, getattr(self, name), self.on)


def names_of_checks(kind: type[Checks] = Checks) -> set[str]:
    """Return the names of the checks of a class and all its subclasses."""
    own = {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}
    return own.union(*map(names_of_checks, kind.__subclasses__()))


def require_any(checks: Sequence[Callable[[], None]]) -> None:
    """Pass if one of several checks passes."""
    outcomes = dict(map(_outcome, checks))
    if "passed" not in outcomes:
        assert "failed" not in outcomes, outcomes["failed"]
        skip(next(iter(outcomes.values())))


def _located(check: Callable[[], None], on: str) -> None:
    """Run a check; its reasons then name the model or data."""
    place = f"on {on}: " if on else ""
    try:
        check()
    except Skipped as reason:
        raise Skipped(f"{place}{reason}") from None
    except NotSuited as reason:
        raise NotSuited(f"{place}{reason}") from None
    # A broken component may raise any error; the check then fails.
    except (Exception, SystemExit) as error:
        raise AssertionError(place + _message(error)) from error


def _refuse_end(leave: Callable[[int], NoReturn], process: int, status: int) -> NoReturn:
    """Replace `os._exit`, which would end the checks without a message; in forked processes it still works."""
    if os.getpid() != process:
        leave(status)
    raise SystemExit(f"os._exit({status})")


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the process (SystemExit: {error}); raise an error instead"
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


def _joined(name: str, outcomes: list[tuple[Outcome, str]], expected: Mapping[str, str]) -> CheckResult:
    failed = list(dict.fromkeys(reason for outcome, reason in outcomes if outcome == "failed"))
    left_out = next(((outcome, reason) for outcome, reason in outcomes if outcome == "skipped"), outcomes[0])
    skipped = all(outcome in ("skipped", "does not apply") for outcome, _ in outcomes)
    if failed and name in expected:
        return CheckResult(name, "expected", expected[name])
    if failed:
        more = f" (and in {len(failed) - 1} more places)" if len(failed) > 1 else ""
        return CheckResult(name, "failed", failed[0] + more)
    if name in expected:
        message = f"is skipped, although it was expected to fail: {outcomes[0][1]}"
        passes = f"passes, although it was expected to fail ({expected[name]})"
        return CheckResult(name, "failed", message if skipped else passes)
    return CheckResult(name, *left_out) if skipped else CheckResult(name, "passed")
