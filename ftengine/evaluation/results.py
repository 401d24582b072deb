"""evaluation.json: base, tuned and their difference."""

from __future__ import annotations

from typing import Any

from ftengine.evaluation.bootstrap import Accumulator, compare, to_json


def comparison(split: str | None, base: Accumulator | None, tuned: Accumulator | None) -> dict[str, Any]:
    """Return {split, base, tuned, difference, details} in JSON values; empty figures without a held-out split."""
    figures: dict[str, Any] = {"split": split, "base": {}, "tuned": {}, "difference": {}, "details": {}}
    for name, result in (("base", base), ("tuned", tuned)):
        if result is not None:
            figures[name] = {metric: to_json(value) for metric, value in result.results().items()}
            figures["details"][name] = result.details()
    if base is not None and tuned is not None:
        figures["difference"] = {metric: to_json(value) for metric, value in compare(base, tuned).items()}
    return figures
