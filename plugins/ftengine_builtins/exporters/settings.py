"""Settings of an exported folder, compared with those of the model that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftengine.errors import ExportDiffers


def require_settings(file: str, found: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Refuse a file of which settings are not those that were measured.

    Raises:
        ExportDiffers: the message names each setting that differs, its value and the one that was measured.
    """
    differing = [
        f"{key} is {_shown(found, key)}, measured {_shown(measured, key)}"
        for key in sorted(found.keys() | measured.keys())
        if found.get(key) != measured.get(key)
    ]
    if differing:
        raise ExportDiffers(
            f"{file} has other settings than were measured: {'; '.join(differing)}. Nothing was written."
        )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "not set" if value is None else repr(value)
