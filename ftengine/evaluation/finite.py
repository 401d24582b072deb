"""Checks that a model's weights and answers are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.errors import RunError, TrainingError
from ftengine.parallel.sharding import not_finite


def require_finite_weights(loaded: LoadedModel, where: str) -> None:
    """Raise RunError, naming a tensor, if weights are not finite or buffers hold NaN; masks may be infinite.

    Packed weights are not checked here; a fault in them shows in the answers.
    """
    plain = {name: x for name, x in loaded.module.named_parameters() if type(x) in (Tensor, nn.Parameter)}
    broken = not_finite({name: x for name, x in plain.items() if x.is_floating_point()}) if plain else []
    broken += [name for name, buffer in loaded.module.named_buffers() if bool(buffer.isnan().any())]
    if broken:
        raise RunError(
            f"{where} cannot answer: {len(broken):,} tensors of its model hold numbers that are not finite, such as "
            f"{broken[0]!r}. The base {loaded.source!r} or the trained part is damaged: restore it, or train again."
        )


def require_finite_answers(answers: Any, example: int) -> None:
    """Raise TrainingError if an answer has a number that is not finite; `example` is the number of the first answer."""
    for number, answer in enumerate(answers, example):
        if key := _not_finite(answer, ""):
            raise TrainingError(
                f"example {number}: the model's {key} is not finite. Compute in float32 (predict --precision float32), "
                "or look at the base model and at what training did to it (metrics.jsonl)."
            )


def _not_finite(value: Any, key: str) -> str:
    """Return the key of the first number that is not finite; "" if all are finite."""
    if isinstance(value, Mapping):
        inner = ((str(name), item) for name, item in value.items())
        return next((path for name, item in inner if (path := _not_finite(item, f"{key}.{name}".strip(".")))), "")
    if isinstance(value, (list, tuple)):
        return next((path for item in value if (path := _not_finite(item, key))), "")
    return (key or "answer") if isinstance(value, float) and not math.isfinite(value) else ""
