"""Commands of installed distributions, from the entry-point group `ftengine.commands`; loaded only when called."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from importlib import metadata, util
from importlib.machinery import PathFinder
from pathlib import Path

import click

from ftengine.errors import PluginError

GROUP = "ftengine.commands"
OWN = "ftengine"
"""The distribution whose commands are listed beside those of this package."""
BLOCK_VARIABLE = "FTENGINE_BLOCK_PLUGINS"


@dataclass(frozen=True)
class Offer:
    """A command that a distribution offers.

    Args:
        distribution: its name.
        version: its version.
        entry_point: loads the command.
    """

    distribution: str
    version: str
    entry_point: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def line(self) -> str:
        """The first line of its function's docstring, read from the source without importing it; "" if that fails."""
        try:
            tree = ast.parse(_source(self.entry_point.module))
        except (ImportError, OSError, SyntaxError, ValueError):
            return ""
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        found = (ast.get_docstring(node) for node in functions if node.name == self.entry_point.attr)
        return (next(found, None) or "").partition("\n")[0]


Offers = tuple[Offer, ...]


def external_commands() -> dict[str, Offers]:
    """Find the commands of installed distributions by name, without importing any.

    Distributions named in FTENGINE_BLOCK_PLUGINS are left out, as their plugins are.
    """
    blocked = {_normal(name) for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    found: dict[str, dict[str, Offer]] = {}
    for entry_point in metadata.entry_points(group=GROUP):
        distribution = entry_point.dist.name if entry_point.dist else "unknown"
        version = entry_point.dist.version if entry_point.dist else "unversioned"
        if _normal(distribution) not in blocked:
            # An editable installation may be listed twice on sys.path.
            found.setdefault(entry_point.name, {}).setdefault(distribution, Offer(distribution, version, entry_point))
    return {name: tuple(offers[key] for key in sorted(offers)) for name, offers in found.items()}


def _source(module: str) -> bytes:
    """Return a module's source without importing it or its packages."""
    name, *inner = module.split(".")
    spec = util.find_spec(name)
    for part in inner:
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
    if spec is None or spec.origin is None:
        raise ImportError(f"no source of {module}")
    return Path(spec.origin).read_bytes()


def load_command(name: str, offers: Offers) -> click.Command:
    """Import a command.

    Raises:
        PluginError: it cannot be imported, is no click command, or is offered more than once.
    """
    if len(offers) > 1:
        raise PluginError(conflict(name, offers))
    (offer,) = offers
    try:
        command = offer.entry_point.load()
    # Third-party code may raise anything; whatever it is becomes this command's cause.
    except (Exception, SystemExit) as error:
        raise PluginError(_broken(name, offer, f"{type(error).__name__}: {error}")) from error
    if not isinstance(command, click.Command):
        raise PluginError(_broken(name, offer, f"it is {type(command).__name__}, not a click command"))
    return command


def conflict(name: str, offers: Offers, *, builtin: bool = False) -> str:
    """Say that a command's name is taken more than once."""
    owners = [*(["ftengine itself"] if builtin else []), *(str(offer) for offer in offers)]
    return (
        f"command {name!r} is offered by {' and by '.join(owners)}. Uninstall one, "
        f"or run with {BLOCK_VARIABLE}={offers[-1].distribution}."
    )


def _broken(name: str, offer: Offer, cause: str) -> str:
    return (
        f"command {name!r} of {offer} ({offer.entry_point.value}) cannot be loaded: {cause.rstrip('.')}. "
        "Repair or uninstall that distribution."
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
