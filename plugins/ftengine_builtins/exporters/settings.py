"""Comparison of an exported folder's settings with those of the measured model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftengine.errors import ExportDiffers


def require_settings(file: str, written: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """Refuse a file whose settings differ from the measured ones.

    Raises:
        ExportDiffers: names each setting that differs, with its value and the measured one.
    """
    differing = [
        f"{key} is {_shown(written, key)}, measured {_shown(measured, key)}"
        for key in sorted(written.keys() | measured.keys())
        if written.get(key) != measured.get(key)
    ]
    if differing:
        raise ExportDiffers(
            f"{file} has settings that differ from the measured ones: {'; '.join(differing)}. Nothing was written."
        )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "not set" if value is None else repr(value)
