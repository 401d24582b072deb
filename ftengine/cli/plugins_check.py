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
"""Names of checks that concern a plugin, its import or a command, not one component."""


class Result(NamedTuple):
    """The outcome of one check (`ftengine.testing.CheckResult`) of a component, which is given as "KIND NAME"."""

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
@click.option(
    "--component", "components", metavar="NAME", multiple=True, help="Only this component or command; repeatable."
)
@click.option("--check", "checks", metavar="NAME", multiple=True, help="Only this check; repeatable.")
@click.option(
    "--strategy", metavar="NAME", help="The strategy that prepares the models on which regularizers are checked."
)
@click.option("--model", metavar="SOURCE", help="A small model to check on, in place of ftengine's own.")
@click.option("--task", metavar="NAME", help="The task of --model; it decides the model's head.")
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
    ftengine.testing, on small models and rows that it brings. For a task with other columns, and its evaluators, call
    check_task and check_evaluator in a test of your own. Exits with 1 if a check fails, with 2 if there is nothing to
    check.

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
    arguments: dict[str, Any] = {} if strategy is None else {"strategy": strategy}
    if model is not None and task is not None:
        from ftengine.testing import fixture_of

        arguments["models"] = [fixture_of(model, task)]
    results = list(_results(offered, _options(settings), arguments, Only(components, checks)))
    if not results and (components or checks):
        raise InputError(f"{offered[0]} has no check that both --component and --check select.")
    if not results:
        raise InputError(f"{offered[0]} offers nothing to check: its hooks return no class.")
    counts = Counter(result.outcome for result in results)
    if as_json:
        origin = {"distribution": offered[0].distribution, "version": offered[0].version}
        print_json({**origin, "results": [result._asdict() for result in results], "counts": dict(counts)})
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
        key, separator, value = setting.partition("=")
        name, _, option = key.partition(".")
        if not (separator and name and option):
            raise InputError(f"--set {setting!r} is not NAME.OPTION=VALUE, such as synonyms.file=words.tsv.")
        try:
            by_component.setdefault(name, {})[option] = load_yaml(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting!r}: {error}") from None
    return by_component


def _offered(package: str) -> list[Offer]:
    """Return the entry points of a distribution, given by its name, module or folder.

    Raises:
        UnknownName: no installed distribution has that name.
        InputError: it offers nothing or is blocked, or the folder's pyproject.toml names no distribution.
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
            names = sorted({offer.distribution for offer in every})
            do = f"pip install -e {package}" if in_folder else "pip install it, or name its folder"
            raise UnknownName(
                f"no distribution or module {name!r} is installed. Installed: {', '.join(names)}."
                f"{did_you_mean(name, names)} First {do}."
            ) from None
        raise InputError(
            f"{name} offers nothing to ftengine: it has no entry point of group {GROUP} or {COMMANDS}. Write one into "
            "its pyproject.toml and install it again."
        )
    if matching[0].blocked:
        raise InputError(f"{matching[0]} is blocked. Take it out of the variable {BLOCK_VARIABLE}.")
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
    """The components, commands and checks that are selected, by name; an empty list selects all."""

    components: Sequence[str]
    checks: Sequence[str]

    def require_known(self, distribution: str, names: Collection[str]) -> None:
        """Refuse unknown checks, and components and commands that are not in `names` (UnknownName)."""
        from ftengine.testing.checks import names_of_checks
        from ftengine.testing.components import OF_ANY

        checks = {*names_of_checks(), *OF_ANY, SOUND, QUIET, UNCHANGED, COMMAND, RUN}
        for name in [name for name in self.components if name not in names]:
            there = f"{distribution} has no component {name!r}. It has {', '.join(sorted(names)) or 'none'}."
            raise UnknownName(f"--component: {there}{did_you_mean(name, names)}")
        for name in [name for name in self.checks if name not in checks]:
            hint = did_you_mean(name, checks) or " docs/plugins/testing.md lists all checks."
            raise UnknownName(f"--check: there is no check {name!r}.{hint}")

    def has(self, component: str, check: str) -> bool:
        """Return whether a check is selected for a component, or for a plugin as a whole ("")."""
        return (not self.components or component in self.components) and (not self.checks or check in self.checks)


def _results(
    offered: list[Offer], options: dict[str, dict[str, Any]], arguments: dict[str, Any], only: Only
) -> Iterator[Result]:
    """Yield the result of each check: of plugins as a whole, of components, of commands."""
    from ftengine.api import iterate
    from ftengine.cli import main
    from ftengine.cli.components import installed
    from ftengine.plugins.import_effects import ENDS, SLOW, import_effects
    from ftengine.run.progress import listening

    changed = import_effects(offered) if only.has("", UNCHANGED) else []
    if any(
        change.startswith((ENDS, SLOW)) for change in changed
    ):  # importing it here would end or delay this process too
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
    if problems and not names.issuperset(only.components):  # the component may belong to a broken plugin
        raise PluginError(" ".join(problems))
    only.require_known(distribution, {*names, *(offer.entry_point.name for offer in commands)})
    for problem in problems:
        if only.has("", SOUND):
            yield Result("plugin", SOUND, "failed", problem)
    for origin in everything.plugins.origins.values():
        remarks = " ".join(origin.remarks)
        ours = origin.distribution == distribution and origin.status == "loaded" and (entries or remarks)
        if ours and only.has("", QUIET):
            yield Result(f"plugin {origin.name}", QUIET, "failed" if remarks else "passed", remarks)
    if only.has("", UNCHANGED) and (entries or commands or changed):
        yield _unchanged(offered, changed)
    chosen = [entry for entry in entries if not only.components or entry.name in only.components]
    with listening() as listener:
        for entry in iterate(listener, chosen, "checks", len(chosen)):
            yield from _checked(entry, {**arguments, "options": options.get(entry.name)}, only.checks)
    for offer in commands:
        if only.has(offer.entry_point.name, COMMAND):
            yield _loaded(offer)


def _unchanged(offered: list[Offer], changed: Sequence[str]) -> Result:
    """Return the result of the check that importing a distribution changes no state of the process."""
    from ftengine.plugins.import_effects import SLOW

    reason = next((change for change in changed if change.startswith(SLOW)), "") or (
        f"importing it changes {', '.join(changed[:5])}{' and more' if changed[5:] else ''} for all code in the "
        "process, even if no component is used. Change nothing when a module is imported or a hook is called"
    )
    what = f"plugin {offered[0].entry_point.name}"
    return Result(what, UNCHANGED, "failed", reason) if changed else Result(what, UNCHANGED, "passed")


def _loaded(offer: Offer) -> Result:
    """Return the result of loading a command."""
    try:
        load_command(offer.entry_point.name, [offer])
    except PluginError as error:
        return Result(f"command {offer.entry_point.name}", COMMAND, "failed", str(error))
    return Result(f"command {offer.entry_point.name}", COMMAND, "passed")


def _checked(entry: Entry, arguments: dict[str, Any], checks: Sequence[str]) -> Iterator[Result]:
    """Yield the results of a component's checks."""
    from ftengine.testing import check_results

    what = f"{entry.kind} {entry.name}"
    try:
        for result in check_results(entry.cls, **arguments, only=checks):
            yield Result(what, result.check, result.outcome, result.reason)
    # A component may raise anything outside its checks; the others are still checked.
    except (Exception, SystemExit) as error:
        yield Result(what, RUN, "failed", f"{type(error).__name__}: {error}".rstrip(": "))
