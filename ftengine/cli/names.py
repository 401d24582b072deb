"""Shell completion of names: kinds, components and distributions.

Listing the components of plugins imports torch, so the listing is cached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click import Context, Parameter
from click.shell_completion import CompletionItem

from ftengine.cli.external import GROUP as COMMANDS
from ftengine.cli.plugin_cache import GROUP, cached_fact
from ftengine.plugins.distributions import offers


def component_names(kind: str = "") -> Callable[[Context, Parameter, str], list[CompletionItem]]:
    """Return a completion of components' names, of one kind or of the kind that the option `--kind` has."""

    def complete(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
        requested = kind or ctx.params.get("kind")
        components = [item for item in _listing()["components"] if requested in (None, item["kind"])]
        named = [item for item in components if item["name"].startswith(incomplete)]
        return [CompletionItem(item["name"], help=item["summary"]) for item in named]

    return complete


def overrides(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete `KEY=NAME` for keys of the recipe that hold components."""
    listing = _listing()
    pairs = [
        (f"{listing['keys'][c['kind']]}={c['name']}", c) for c in listing["components"] if c["kind"] in listing["keys"]
    ]
    return [CompletionItem(pair, help=c["summary"]) for pair, c in pairs if pair.startswith(incomplete)]


def distribution_names(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete distributions that offer components or commands, else folders."""
    names = sorted({offer.distribution for group in (GROUP, COMMANDS) for offer in offers(group)})
    items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="dir")]


def _listing() -> dict[str, Any]:
    """Return the cached listing of components; make it if there is none."""
    if cached_fact("listing") is None:
        from ftengine.cli.components import installed

        installed()  # stores the listing
    return cached_fact("listing") or {"components": [], "keys": {}}
