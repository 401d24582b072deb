"""`ftengine plugins`: what is installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from ftengine.cli.group import Suggesting
from ftengine.cli.names import component_names
from ftengine.cli.options import json_option
from ftengine.cli.page import facts, page, print_json, table
from ftengine.cli.plugin_cache import cached_fact
from ftengine.cli.plugins_check import check
from ftengine.cli.plugins_new import complete_kinds, kinds, new

if TYPE_CHECKING:
    from ftengine.cli.components import Described

kind_option = click.option(
    "--kind", metavar="KIND", shell_complete=complete_kinds, help=f"Only this kind: {', '.join(kinds())}."
)


LISTED = ("kind", "name", "summary", "distribution", "version", "source")
"""Fields of a component in `plugins list`."""


@click.group(cls=Suggesting)
def plugins() -> None:
    """List, describe, check and create plugins."""


plugins.add_command(check)
plugins.add_command(new)


@plugins.command("list")
@kind_option
@json_option
def list_plugins(kind: str | None, as_json: bool) -> None:
    """List components and the distributions that they come from.

    Exits with 1 when a plugin is broken; the others are listed all the same.

    \b
    Example:
      ftengine plugins list --kind strategy
    """
    from ftengine.cli import main

    if kind not in (None, *kinds()):
        from ftengine.cli.components import require_kind

        require_kind(kind)
    listing = cached_fact("listing") or {"plugins": None}
    plugins, problems = listing["plugins"], main.taken
    if plugins is not None:
        components = [{key: component[key] for key in LISTED} for component in listing["components"]]
    else:
        from ftengine.cli.components import installed, listed_component
        from ftengine.run.environment import plugin_origins

        everything = installed()
        plugins, problems = plugin_origins(everything.plugins), [*everything.problems, *problems]
        components = [listed_component(entry) for entry in everything.entries]
    chosen = [component for component in components if kind in (None, component["kind"])]
    if as_json:
        print_json({"components": chosen, "plugins": plugins, "problems": problems})
    else:
        sources = {_origin(component): component["source"] for component in components if component["source"]}
        _show(chosen, sources, plugins, problems)
    if problems:
        sys.exit(1)


@plugins.command("show")
@click.argument("name", shell_complete=component_names())
@kind_option
@json_option
def show_plugin(name: str, kind: str | None, as_json: bool) -> None:
    """Describe one component: what it does, its options, where it comes from.

    \b
    Example:
      ftengine plugins show causal-lm
    """
    from dataclasses import asdict

    from ftengine.cli.components import find, require_kind

    require_kind(kind)
    component = find(name, kind)
    if as_json:
        print_json(asdict(component))
    else:
        _show_component(component)


def _show(
    components: Sequence[Mapping[str, str]],
    sources: Mapping[str, str],
    plugins: Sequence[Mapping[str, str]],
    problems: Sequence[str],
) -> None:
    out = page()
    rows = [
        (component["kind"], component["name"], _origin(component), component["summary"]) for component in components
    ]
    out.print(table(("kind", "name", "from", "what it is"), rows, left=4))
    if sources:
        out.print("", table(("distribution", "installed from"), sources.items(), left=2))
    blocked = [_origin(plugin) for plugin in plugins if plugin["status"] == "blocked"]
    if blocked or problems:
        out.print("", facts([*(("blocked", origin) for origin in blocked), *(("broken", text) for text in problems)]))


def _origin(listed: Mapping[str, str]) -> str:
    return f"{listed['distribution']} {listed['version']}"


def _show_component(component: Described) -> None:
    from ftengine.cli.page import yaml_value

    out = page()
    origin = f"{component.distribution} {component.version} ({component.target.partition(':')[0]})"
    out.print(facts([(component.kind, component.name), ("from", origin), ("source", component.source or None)]))
    out.print(f"\n{component.docstring or 'no description'}")
    if component.paper:
        out.print(f"\npaper: {component.paper}")
    rows = [
        (o.name, "required" if o.required else yaml_value(o.default), o.allowed, o.description)
        for o in component.options
    ]
    if rows:
        out.print("", table(("option", "default", "allowed", "what it does"), rows, left=4))
    else:
        out.print("\nno options")
    better = {True: "higher", False: "lower", None: ""}
    metrics = component.metrics.items()
    measured = [(name, m["label"], better[m["higher_is_better"]], m["meaning"]) for name, m in metrics]
    if measured:
        out.print("", table(("metric", "label", "better", "meaning"), measured, left=4))
    if component.writes:
        out.print("", table(("optional method", "what it does"), component.writes.items(), left=2))
