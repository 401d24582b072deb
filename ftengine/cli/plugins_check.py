"""`ftengine plugins check`: the conformance checks of everything that a distribution offers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ftengine.cli.external import GROUP as COMMANDS
from ftengine.cli.external import load_command
from ftengine.cli.names import distribution_names
from ftengine.cli.options import json_option
from ftengine.cli.page import page, print_json, table
from ftengine.cli.remembered import GROUP
from ftengine.errors import InputError, PluginError, UnknownName, did_you_mean
from ftengine.plugins.distributions import BLOCK_VARIABLE, Offer, normalised, offers

if TYPE_CHECKING:
    from ftengine.plugins.registry import Entry

OUTCOMES = ("passed", "failed", "expected", "skipped")


class Result(NamedTuple):
    """What came of a check (a `ftengine.testing.CheckResult`) of a component, which is named by kind and name."""

    component: str
    check: str
    outcome: str
    reason: str = ""


@click.command("check")
@click.argument("package", shell_complete=distribution_names)
@json_option
def check(package: str, as_json: bool) -> None:
    """Check that the components of a distribution keep ftengine's contract.

    PACKAGE is an installed distribution, its module, or its folder with a pyproject.toml. The checks are those of
    ftengine.testing, on small models and rows that come with it. Exits with 1 when one fails, with 2 when there is
    nothing to check.

    \b
    Examples:
      ftengine plugins check ftengine-bitfit
      ftengine plugins check . --json
    """
    offered = _offered(package)
    results = list(_results(offered))
    if not results:
        raise InputError(f"{offered[0]} offers nothing to check: its hooks return no class.")
    counts = Counter(result.outcome for result in results)
    if as_json:
        told = {"distribution": offered[0].distribution, "version": offered[0].version}
        print_json({**told, "results": [result._asdict() for result in results], "counts": dict(counts)})
    else:
        out = page()
        out.print(table(Result._fields, results, left=4))
        shown = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES if counts[outcome])
        out.print(f"\n{offered[0]}: {shown}")
    if counts["failed"]:
        sys.exit(1)


def _offered(package: str) -> list[Offer]:
    """Return the entry points of the distribution that a name, module or folder means.

    Raises:
        UnknownName: no installed distribution is called so.
        InputError: it offers nothing, is blocked, or the folder describes no distribution.
    """
    every = [offer for group in (GROUP, COMMANDS) for offer in offers(group)]
    folder = Path(package)
    in_folder = (folder / "pyproject.toml").is_file()
    name = normalised(_project(folder) if in_folder else package)
    found = [offer for offer in every if normalised(offer.distribution) == name]
    if not found and not in_folder:
        found = [offer for offer in every if offer.entry_point.module.partition(".")[0] == package]
    if not found:
        try:
            metadata.distribution(name)
        except (metadata.PackageNotFoundError, ValueError):
            known = sorted({offer.distribution for offer in every})
            do = f"pip install -e {package}" if in_folder else "pip install it, or name its folder"
            raise UnknownName(
                f"no distribution or module {name!r} is installed. There are {', '.join(known)}."
                f"{did_you_mean(name, known)} First {do}."
            ) from None
        raise InputError(
            f"{name} offers nothing to ftengine: it has no entry point of group {GROUP} or {COMMANDS}. Write one into "
            "its pyproject.toml and install it again."
        )
    if found[0].blocked:
        raise InputError(f"{found[0]} is blocked by {BLOCK_VARIABLE}. Take it out there.")
    return found


def _project(folder: Path) -> str:
    """Return the name that a folder's pyproject.toml gives its distribution."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    file = folder / "pyproject.toml"
    try:
        name = toml.loads(file.read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise InputError(f"cannot read {str(file)!r}: {error}.") from None
    except (LookupError, TypeError):
        name = None
    if not isinstance(name, str):
        raise InputError(f"{str(file)!r} names no distribution; it needs `name` in its table [project].")
    return name


def _results(offered: list[Offer]) -> Iterator[Result]:
    """Yield what came of each check: of plugins as a whole, of components, of commands."""
    from ftengine.api import iterate
    from ftengine.cli.components import installed
    from ftengine.cli.progress import listening

    distribution = offered[0].distribution
    everything = installed()
    for problem in everything.problems:
        if distribution in problem.replace(",", " ").split():
            yield Result("plugin", "what_it_offers_is_sound", "failed", problem)
    entries = [entry for entry in everything.entries if entry.origin.distribution == distribution]
    with listening() as listener:
        for entry in iterate(listener, entries, "checks", len(entries)):
            yield from _checked(entry)
    for offer in offered:
        if offer.entry_point.group == COMMANDS:
            outcome, reason = "passed", ""
            try:
                load_command(offer.entry_point.name, [offer])
            except PluginError as error:
                outcome, reason = "failed", str(error)
            yield Result(f"command {offer.entry_point.name}", "it_is_a_click_command", outcome, reason)


def _checked(entry: Entry) -> Iterator[Result]:
    """Yield the results of a component's checks."""
    from ftengine.testing import check_results

    what = f"{entry.kind} {entry.name}"
    try:
        for result in check_results(entry.cls):
            yield Result(what, result.check, result.outcome, result.reason)
    # A component may raise anything where nobody expects it; the others are checked all the same.
    except Exception as error:
        yield Result(what, "the_checks_can_be_run", "failed", f"{type(error).__name__}: {error}".rstrip(": "))
