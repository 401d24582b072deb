"""`ftengine plugins check`: the conformance checks of everything that a distribution offers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ftengine.cli.external import GROUP as COMMANDS
from ftengine.cli.external import load_command
from ftengine.cli.names import distribution_names
from ftengine.cli.options import json_option
from ftengine.cli.page import page, print_json, table
from ftengine.cli.plugin_cache import GROUP
from ftengine.errors import InputError, PluginError, UnknownName, did_you_mean, load_yaml
from ftengine.plugins.distributions import BLOCK_VARIABLE, Offer, normalised, offers

if TYPE_CHECKING:
    from ftengine.plugins.registry import Entry

OUTCOMES = ("passed", "failed", "expected", "skipped", "does not apply")


SOUND, QUIET, UNCHANGED, COMMAND, RUN = (
    *("what_it_offers_is_sound", "its_import_is_quick_and_quiet", "its_import_changes_nothing_else"),
    *("it_is_a_click_command", "the_checks_can_be_run"),
)
"""Names of checks that are of no component alone."""


class Result(NamedTuple):
    """What came of a check (a `ftengine.testing.CheckResult`) of a component, which is named by kind and name."""

    component: str
    check: str
    outcome: str
    reason: str = ""


@click.command("check")
@click.argument("package", shell_complete=distribution_names)
@click.option(
    "--set",
    "settings",
    metavar="NAME.OPTION=VALUE",
    multiple=True,
    help="An option of a component, e.g. synonyms.file=words.tsv; may be given several times.",
)
@click.option("--component", "components", metavar="NAME", multiple=True, help="Only what is called so; repeatable.")
@click.option("--check", "checks", metavar="NAME", multiple=True, help="Only this check; repeatable.")
@click.option("--strategy", metavar="NAME", help="The strategy that prepares the models which regularizers see.")
@click.option("--model", metavar="SOURCE", help="A small model to check on, in place of those that are shipped.")
@click.option("--task", metavar="NAME", help="The task of --model, which says the head.")
@json_option
def check(
    package: str,
    settings: Sequence[str],
    components: Sequence[str],
    checks: Sequence[str],
    strategy: str | None,
    model: str | None,
    task: str | None,
    as_json: bool,
) -> None:
    """Check that the components of a distribution keep ftengine's contract.

    PACKAGE is an installed distribution, its module, or its folder with a pyproject.toml. The checks are those of
    ftengine.testing, on small models and rows that come with it; a task of other columns, and what measures it, are
    checked in a test of yours by its check_task and check_evaluator. Exits with 1 when one fails, with 2 when there is
    nothing to check.

    \b
    Examples:
      ftengine plugins check ftengine-bitfit
      ftengine plugins check . --json
      ftengine plugins check . --component experts --check saved_and_loaded_outputs_are_equal
      ftengine plugins check ftengine-moe --model tiny-mixtral --task causal-lm --set experts.rank=4
    """
    offered = _offered(package)
    if (model is None) is not (task is None):
        raise InputError("--model and --task go together: the task says which head the model has, e.g. causal-lm.")
    given: dict[str, Any] = {} if strategy is None else {"strategy": strategy}
    if model is not None and task is not None:
        from ftengine.testing import fixture_of

        given["models"] = [fixture_of(model, task)]
    results = list(_results(offered, _options(settings), given, Only(components, checks)))
    if not results and (components or checks):
        raise InputError(f"{offered[0]} has nothing that --component and --check name together.")
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


def _options(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options that --set gives, by the component's name."""
    import yaml

    by_component: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, given, value = setting.partition("=")
        name, _, option = key.partition(".")
        if not (given and name and option):
            raise InputError(f"--set {setting!r} is not NAME.OPTION=VALUE, such as synonyms.file=words.tsv.")
        try:
            by_component.setdefault(name, {})[option] = load_yaml(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting!r}: {error}") from None
    return by_component


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
    matching = [offer for offer in every if normalised(offer.distribution) == name]
    if not matching and not in_folder:
        matching = [offer for offer in every if offer.entry_point.module.partition(".")[0] == package]
    if not matching:
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
    if matching[0].blocked:
        raise InputError(f"{matching[0]} is blocked by {BLOCK_VARIABLE}. Take it out there.")
    return matching


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


class Only(NamedTuple):
    """What is to be checked, by the names of components and commands, and of checks; empty ones stand for all."""

    components: Sequence[str]
    checks: Sequence[str]

    def require_known(self, distribution: str, names: Collection[str]) -> None:
        """Refuse names that there are not (UnknownName), given those of components and commands."""
        from ftengine.testing.checks import names_of_checks
        from ftengine.testing.components import OF_ANY

        checks = {*names_of_checks(), *OF_ANY, SOUND, QUIET, UNCHANGED, COMMAND, RUN}
        for name in (one for one in self.components if one not in names):
            there = f"{distribution} has no component {name!r}. It has {', '.join(sorted(names)) or 'none'}."
            raise UnknownName(f"--component: {there}{did_you_mean(name, names)}")
        for name in (one for one in self.checks if one not in checks):
            told = did_you_mean(name, checks) or " docs/plugins/testing.md has the names of all."
            raise UnknownName(f"--check: there is no check {name!r}.{told}")

    def has(self, component: str, check: str) -> bool:
        """Say whether a check of a component, or of a plugin as a whole (""), is wanted."""
        return (not self.components or component in self.components) and (not self.checks or check in self.checks)


def _results(
    offered: list[Offer], options: dict[str, dict[str, Any]], given: dict[str, Any], only: Only
) -> Iterator[Result]:
    """Yield what came of each check: of plugins as a whole, of components, of commands."""
    from ftengine.api import iterate
    from ftengine.cli import main
    from ftengine.cli.components import installed
    from ftengine.plugins.import_effects import ENDS, SLOW, import_effects
    from ftengine.run.progress import listening

    changed = import_effects(offered) if only.has("", UNCHANGED) else []
    if any(one.startswith((ENDS, SLOW)) for one in changed):  # it would do so in this process too, without a word
        yield _unchanged(offered, changed)
        return
    distribution = offered[0].distribution
    everything = installed()
    entries = [entry for entry in everything.entries if entry.origin.distribution == distribution]
    commands = [offer for offer in offered if offer.entry_point.group == COMMANDS]
    names = {entry.name for entry in entries}
    if unknown := options.keys() - names:
        name = min(unknown)
        raise UnknownName(
            f"--set: {distribution} has no component {name!r}. It has {', '.join(sorted(names))}."
            f"{did_you_mean(name, names)}"
        )
    problems = [p for p in [*everything.problems, *main.taken] if distribution in p.replace(",", " ").split()]
    if problems and not names.issuperset(only.components):  # it may be one of what is broken
        raise PluginError(" ".join(problems))
    only.require_known(distribution, {*names, *(offer.entry_point.name for offer in commands)})
    for problem in problems:
        if only.has("", SOUND):
            yield Result("plugin", SOUND, "failed", problem)
    for origin in everything.plugins.origins.values():
        said = " ".join(origin.remarks)
        ours = origin.distribution == distribution and origin.status == "loaded" and (entries or said)
        if ours and only.has("", QUIET):
            yield Result(f"plugin {origin.name}", QUIET, "failed" if said else "passed", said)
    if only.has("", UNCHANGED) and (entries or commands or changed):
        yield _unchanged(offered, changed)
    chosen = [entry for entry in entries if not only.components or entry.name in only.components]
    with listening() as listener:
        for entry in iterate(listener, chosen, "checks", len(chosen)):
            yield from _checked(entry, {**given, "options": options.get(entry.name)}, only.checks)
    for offer in commands:
        if only.has(offer.entry_point.name, COMMAND):
            yield _loaded(offer)


def _unchanged(offered: list[Offer], changed: Sequence[str]) -> Result:
    """Return whether importing a distribution leaves what the process shares as it is, given what it changes."""
    from ftengine.plugins.import_effects import SLOW

    reason = next((one for one in changed if one.startswith(SLOW)), "") or (
        f"importing it changes {', '.join(changed[:5])}{' and more' if changed[5:] else ''}, for all code of the "
        "process and whether it is used or not: change nothing when a module is imported or a hook is called"
    )
    what = f"plugin {offered[0].entry_point.name}"
    return Result(what, UNCHANGED, "failed", reason) if changed else Result(what, UNCHANGED, "passed")


def _loaded(offer: Offer) -> Result:
    """Return whether a command can be loaded."""
    try:
        load_command(offer.entry_point.name, [offer])
    except PluginError as error:
        return Result(f"command {offer.entry_point.name}", COMMAND, "failed", str(error))
    return Result(f"command {offer.entry_point.name}", COMMAND, "passed")


def _checked(entry: Entry, given: dict[str, Any], checks: Sequence[str]) -> Iterator[Result]:
    """Yield the results of a component's checks."""
    from ftengine.testing import check_results

    what = f"{entry.kind} {entry.name}"
    try:
        for result in check_results(entry.cls, **given, only=checks):
            yield Result(what, result.check, result.outcome, result.reason)
    # A component may raise anything where nobody expects it; the others are checked all the same.
    except (Exception, SystemExit) as error:
        yield Result(what, RUN, "failed", f"{type(error).__name__}: {error}".rstrip(": "))
