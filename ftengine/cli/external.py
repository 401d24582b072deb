"""Commands of installed distributions, from the entry-point group `ftengine.commands`; loaded only when called."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib import util
from importlib.machinery import PathFinder
from pathlib import Path

import click

from ftengine.errors import PluginError
from ftengine.plugins.distributions import BLOCK_VARIABLE, BUILT_IN, Offer, offers, printing_aside

GROUP = "ftengine.commands"
OWN = "ftengine"
"""The distribution whose commands `--help` lists among ftengine's own."""


def external_commands() -> dict[str, list[Offer]]:
    """Return the commands of installed distributions by name, without those of blocked ones."""
    commands: dict[str, list[Offer]] = {}
    for offer in offers(GROUP):
        if not offer.blocked:
            commands.setdefault(offer.entry_point.name, []).append(offer)
    return commands


def help_line(offer: Offer) -> str:
    """Return the first line of a command's docstring, read from its source without importing it; "" if that fails."""
    try:
        tree = ast.parse(_source(offer.entry_point.module))
    except (ImportError, OSError, SyntaxError, ValueError):
        return ""
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    docstrings = (ast.get_docstring(node) for node in functions if node.name == offer.entry_point.attr)
    return (next(docstrings, None) or "").partition("\n")[0]


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


def load_command(name: str, offers: Sequence[Offer]) -> click.Command:
    """Import a command (PluginError: it cannot be imported, is no click command, or is offered more than once)."""
    if len(offers) > 1:
        raise PluginError(conflict(name, offers))
    (offer,) = offers
    if offer.mismatch:
        raise PluginError(_broken(name, offer, offer.mismatch))
    try:
        with printing_aside():
            command = offer.entry_point.load()
    # Third-party code may raise anything; whatever it is becomes this command's cause.
    except (Exception, SystemExit) as error:
        raise PluginError(_broken(name, offer, f"{type(error).__name__}: {error}")) from error
    if not isinstance(command, click.Command):
        raise PluginError(_broken(name, offer, f"it is {type(command).__name__}, not a click command"))
    return command


def conflict(name: str, offers: Sequence[Offer], *, builtin: bool = False) -> str:
    """Return the message that several distributions offer a command of one name."""
    third = [offer for offer in offers if offer.distribution != BUILT_IN][-1]
    owners = [*(["ftengine itself"] if builtin else []), *(str(offer) for offer in offers)]
    return (
        f"command {name!r} is offered by {' and by '.join(owners)}. Uninstall one, "
        f"or run with {BLOCK_VARIABLE}={third.distribution}."
    )


def _broken(name: str, offer: Offer, cause: str) -> str:
    return (
        f"command {name!r} of {offer} ({offer.entry_point.value}) cannot be loaded: {cause.rstrip('.')}. "
        "Repair or uninstall that distribution."
    )
