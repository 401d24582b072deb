"""A model with a multiple of what training changed, as a server computes that reads an adapter's scale otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ftengine.api import LoadedModel
from ftengine.engine.finished import Run
from ftengine.engine.merge import check_merge, require_plain
from ftengine.engine.prepared_model import load_base_of, prepare_strategy
from ftengine.engine.saved_part import load_trained_part
from ftengine.errors import NotMergeable
from ftengine.parallel.device import Device
from ftengine.text import number

SCALES = tuple(2.0**k for k in (-4, -3, -2, -1, 1, 2, 3, 4))
"""Multiples that are tried, and then the two a factor of √2 from the best: rsLoRA divides by the root of the rank."""
NEARER = 4
"""A multiple explains a model that is so many times nearer to it than to the tuned one."""


@contextmanager
def scaled(run: Run) -> Iterator[Callable[[float], LoadedModel]]:
    """Give what returns a run's model with a multiple of what training changed: 0 is the base, 1 the tuned model.

    It is one model, which each call changes.

    Raises:
        NotMergeable: what was trained is no change of the base's weights.
    """
    known = run.without_model(check_source=True)
    strategy = check_merge(known.experiment.make_strategy())
    tuned = load_base_of(known, run.facts, run.trained)
    require_plain(tuned.module)
    strategy = prepare_strategy(Device.open(run.recipe), known, tuned)
    with torch.no_grad():
        load_trained_part(strategy, tuned, run.trained)
        strategy.merge(tuned)
    merged = tuned.module.state_dict()
    with run.model(base=True) as loaded:
        changes = dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]()
        for name, weight in loaded.module.named_parameters():
            if (other := merged.get(name)) is None or other.shape != weight.shape:
                raise NotMergeable(f"{name!r} of the merged model is not of the base's shape.")
            if not torch.equal(other, weight):
                changes[name] = weight, weight.clone(), other - weight
        del tuned, strategy, merged  # so that memory holds the base and the changes alone

        def at(scale: float) -> LoadedModel:
            for weight, base, change in changes.values():
                weight.copy_(base + scale * change)
            return loaded

        yield at


def scale_fault(run: Run, distance: Callable[[LoadedModel], float], noise: float, from_tuned: float) -> str:
    """Say with which multiple of what training changed a model computes that is neither the tuned one nor the base.

    Args:
        distance: returns how far that model is from another.
        noise: the largest distance that rounding explains; `from_tuned` is that from the tuned model.

    Returns:
        "" where no multiple explains it, or what was trained has none.
    """
    try:
        with scaled(run) as at:
            far = {scale: distance(at(scale)) for scale in SCALES}
            best = min(far, key=far.__getitem__)
            far |= {scale: distance(at(scale)) for scale in (best / 2**0.5, best * 2**0.5)}
    except NotMergeable:
        return ""
    best = min(far, key=far.__getitem__)
    if not far[best] <= min(noise, from_tuned / NEARER):
        return ""
    low_rank = not {"alpha", "rank"}.isdisjoint(run.facts.strategy)
    reason = ": the scale of the update (alpha, rank) is read otherwise than in training" if low_rank else ""
    return f"it answers as the tuned model would with about {number(best)} times what training changed{reason}"
