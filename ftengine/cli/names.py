"""What the shell completes besides commands and options: names of kinds, components and distributions.

Asking plugins for their components imports torch, so what they answered is cached.
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
    """Return what completes names of components, of one kind or of the one that the option `--kind` names."""

    def complete(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
        wanted = kind or ctx.params.get("kind")
        components = [item for item in _known()["components"] if wanted in (None, item["kind"])]
        named = [item for item in components if item["name"].startswith(incomplete)]
        return [CompletionItem(item["name"], help=item["summary"]) for item in named]

    return complete


def overrides(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete `KEY=NAME` where a key of the recipe holds components."""
    known = _known()
    pairs = [(f"{known['keys'][c['kind']]}={c['name']}", c) for c in known["components"] if c["kind"] in known["keys"]]
    return [CompletionItem(pair, help=c["summary"]) for pair, c in pairs if pair.startswith(incomplete)]


def distribution_names(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete installed distributions that offer something, and folders."""
    names = sorted({offer.distribution for group in (GROUP, COMMANDS) for offer in offers(group)})
    items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="dir")]


def _known() -> dict[str, Any]:
    """Return what plugins offer, as it is cached, or else by asking them."""
    if cached_fact("listing") is None:
        from ftengine.cli.components import installed

        installed()  # remembers what it finds
    return cached_fact("listing") or {"components": [], "keys": {}}
