"""Numbers that are not finite, of which no answer can be made: in a model's weights and in its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ftengine.api import LoadedModel
from ftengine.errors import RunError, TrainingError
from ftengine.parallel.sharding import not_finite


def require_finite_weights(loaded: LoadedModel, where: str) -> None:
    """Refuse weights that are not finite, and buffers that hold NaN (RunError: names one); masks may be infinite.

    Weights that are packed in a way of their own are whole numbers and scales; a model's answers tell of those.
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
    """Refuse answers with a number that is not finite (TrainingError); `example` is the number of the first."""
    for number, answer in enumerate(answers, example):
        if key := _not_finite(answer, ""):
            raise TrainingError(
                f"example {number}: the model's {key} is not finite. Compute in float32 (predict --precision float32), "
                "or look at the base model and at what training did to it (metrics.jsonl)."
            )


def _not_finite(value: Any, key: str) -> str:
    """Return the key of a number that is not finite, "" where all are."""
    if isinstance(value, Mapping):
        inner = ((str(name), item) for name, item in value.items())
        return next((path for name, item in inner if (path := _not_finite(item, f"{key}.{name}".strip(".")))), "")
    if isinstance(value, (list, tuple)):
        return next((path for item in value if (path := _not_finite(item, key))), "")
    return (key or "answer") if isinstance(value, float) and not math.isfinite(value) else ""
