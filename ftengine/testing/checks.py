"""How checks are run and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Checks = Iterator[tuple[str, Callable[[], None]]]
"""Names of checks, and what raises where one fails."""


def run_checks(checks: Checks, expected: Mapping[str, str] | None) -> None:
    expected, failed, names = expected or {}, {}, []
    for name, check in checks:
        names.append(name)
        try:
            check()
        # A broken component may raise anything; each is that check's failure.
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            failed[name] = f"{name}: {kind}{error}"
    unknown = sorted(set(expected) - set(names))
    assert not unknown, f"expected_failed_checks names {unknown}; there are {names}."
    wrong = [text for name, text in failed.items() if name not in expected]
    wrong += [
        f"{name}: passes, though it was expected to fail ({expected[name]})" for name in expected if name not in failed
    ]
    assert not wrong, "; ".join(wrong)


def methods(suite: object) -> Checks:
    """Return the public methods of an object as checks, in the order in which its class defines them."""
    for name in vars(type(suite)):
        if not name.startswith("_"):
            yield name, getattr(suite, name)
