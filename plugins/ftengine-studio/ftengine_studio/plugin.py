"""The plugin of entry point `studio`, which offers a rule."""

from __future__ import annotations

from ftengine import api, hookimpl
from ftengine_studio.rule import Preferences

__all__ = ["Preferences", "ftengine_rules"]


@hookimpl
def ftengine_rules() -> list[type[api.Rule]]:
    return [Preferences]
