"""evaluation.json: base, tuned and their difference; and the sums behind it, for comparing runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftengine.api import EvaluationContext, Evaluator
from ftengine.errors import RunError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare, to_json
from ftengine.run import PARTIAL, RunDirectory, writing

SUMS = "evaluation.safetensors"
"""The tuned model's sums in every resample; two runs on the same examples are compared by them."""


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


def save_sums(run: RunDirectory, tuned: Accumulator | None) -> None:
    """Write the sums behind the tuned model's figures, atomically."""
    import torch

    from ftengine.parameters import save_tensors

    arrays = {} if tuned is None else tuned.arrays()
    target = run.path / SUMS
    partial = target.with_name(SUMS + PARTIAL)
    with writing(target, partial):
        save_tensors({name: torch.from_numpy(array) for name, array in arrays.items()}, partial)
        partial.replace(target)


def read_sums(
    run: RunDirectory, evaluators: Sequence[Evaluator], context: EvaluationContext, *, seed: int, distinct: int
) -> Accumulator:
    """Return the accumulator behind the tuned model's figures.

    Raises:
        RunError: the file is missing or belongs to other evaluators.
    """
    from ftengine.parameters import read_tensors

    arrays = {name: tensor.numpy() for name, tensor in read_tensors(run.path / SUMS).items()}
    try:
        return Accumulator.from_arrays(arrays, evaluators, context, seed=seed, distinct=distinct)
    except (KeyError, ValueError) as error:
        raise RunError(f"{str(run.path / SUMS)!r} does not belong to this run: {error}") from None
