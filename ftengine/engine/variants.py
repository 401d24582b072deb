"""Variants of a tuned model that servers are known to make: a scale, a lost part, rounded weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from ftengine.api import LoadedModel
from ftengine.engine.finished import Run
from ftengine.engine.merge import check_merge, require_plain
from ftengine.engine.prepared_model import load_base_of, prepare_strategy
from ftengine.engine.saved_part import load_trained_part
from ftengine.errors import NotMergeable
from ftengine.parallel.device import Device
from ftengine.text import number

SCALES = tuple(2.0**k for k in (-4, -3, -2, -1, -0.5, 0.5, 1, 2, 3, 4))
"""Multiples that are tried, and then the two a factor of √2 from the best: rsLoRA divides by the root of the rank."""
NEARER = 4
"""A multiple, or a lost part, explains a model that is so many times nearer to it than to the tuned one."""
NEARER_ROUNDED = 2
"""And rounding one that is so many times nearer: programs round activations too, and a few matrices less."""
ROUNDINGS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types of GGUF, from fine to coarse, that its Python package rounds to."""

Distance = Callable[[LoadedModel], float]
"""Returns how far a model is from what was asked."""


@dataclass(frozen=True)
class Fault:
    """A variant of the tuned model that explains an endpoint's answers.

    Args:
        kind: "scale" of the trained change, a lost "part" of it, or "rounding" of all matrices.
        value: the scale, the part's name, or the type of the rounded weights.
        reason: a sentence's end: "it answers as the tuned model would …".
    """

    kind: Literal["scale", "part", "rounding"]
    value: str
    reason: str


class Variants:
    """A run's merged model, which each call changes in place and returns.

    Args:
        loaded: the base.
        changes: by name, each weight that training changed, a copy of the base's values, and the change.
    """

    def __init__(
        self, loaded: LoadedModel, changes: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    ) -> None:
        self.loaded, self._changes = loaded, changes
        self._unchanged = dict[str, torch.Tensor]()

    def scaled(self, scale: float) -> LoadedModel:
        """Return the model with a multiple of the trained change: 0 is the base, 1 the tuned model."""
        self._restore()
        for weight, base, change in self._changes.values():
            weight.copy_(base + scale * change)
        return self.loaded

    def parts(self) -> dict[str, frozenset[str]]:
        """Return the names of the changed weights by layer and by kind of module, but no group of all of them."""
        layers, kinds = dict[str, set[str]](), dict[str, set[str]]()
        for name in self._changes:
            steps = name.split(".")[:-1]
            at = next((i for i, step in enumerate(steps) if step.isdigit()), None)
            place = f"layer {steps[at]}" if at is not None else f"module {'.'.join(steps)}"
            layers.setdefault(place, set()).add(name)
            kinds.setdefault(f"its {steps[-1]} modules" if steps else place, set()).add(name)
        some = [*layers.items(), *kinds.items()]
        return {place: frozenset(names) for place, names in some if len(names) < len(self._changes)}

    def without(self, names: frozenset[str]) -> LoadedModel:
        """Return the tuned model with some weights reset to the base's."""
        self._restore()
        for name, (weight, base, change) in self._changes.items():
            weight.copy_(base if name in names else base + change)
        return self.loaded

    def rounded(self, kind: str) -> LoadedModel:
        """Return the tuned model with matrices rounded to a GGUF type, if its blocks divide their rows."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize

        self.scaled(1.0)
        to = GGMLQuantizationType[kind.upper()]
        block = GGML_QUANT_SIZES[to][0]
        for name, weight in self.loaded.module.named_parameters():
            if weight.dim() != 2 or weight.shape[1] % block:
                continue
            if name not in self._changes:
                self._unchanged.setdefault(name, weight.clone())
            exact = weight.float().cpu().numpy()
            packed = quantize(exact, to)
            weight.copy_(torch.from_numpy(dequantize(packed, to).reshape(exact.shape)))
        return self.loaded

    def _restore(self) -> None:
        """Restore the weights that rounding changed but training did not."""
        weights = dict(self.loaded.module.named_parameters())
        for name, exact in self._unchanged.items():
            weights[name].copy_(exact)


@contextmanager
def variants(run: Run) -> Iterator[Variants]:
    """Yield variants of a run's merged model.

    Raises:
        NotMergeable: the trained part is not a change of the base's weights.
    """
    labelled = run.without_model(check_source=True)
    strategy = check_merge(labelled.experiment.make_strategy())
    tuned = load_base_of(labelled, run.facts, run.trained)
    require_plain(tuned.module)
    strategy = prepare_strategy(Device.open(run.recipe), labelled, tuned)
    with torch.no_grad():
        load_trained_part(strategy, tuned, run.trained)
        strategy.merge(tuned)
    merged = tuned.module.state_dict()
    with run.model(base=True) as loaded, torch.no_grad():
        changes = dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]()
        for name, weight in loaded.module.named_parameters():
            if (other := merged.get(name)) is None or other.shape != weight.shape:
                raise NotMergeable(f"{name!r} of the merged model is not of the base's shape.")
            if not torch.equal(other, weight):
                changes[name] = weight, weight.clone(), other - weight
        del tuned, strategy, merged  # so that memory holds the base and the changes alone
        yield Variants(loaded, changes)


def find_fault(
    run: Run, distance: Distance, noise: float, from_tuned: float, roundings: Sequence[str] = ()
) -> Fault | None:
    """Return the variant of the tuned model that explains a model that is neither tuned model nor base.

    Args:
        distance: returns a variant's distance from that model.
        noise: the largest distance that rounding explains.
        from_tuned: distance of the tuned model from that model.
        roundings: further types of `ROUNDINGS` to try.

    Returns:
        None if no variant explains it, or the trained part cannot be merged.
    """
    try:
        with variants(run) as made:
            low_rank = not {"alpha", "rank"}.isdisjoint(run.facts.strategy)
            faults = list(_tried(made, distance, low_rank, roundings))
    except NotMergeable:
        return None
    explained = [
        (far, fault)
        for far, fault in faults
        if far <= (from_tuned / NEARER_ROUNDED if fault.kind == "rounding" else min(noise, from_tuned / NEARER))
    ]
    return min(explained, key=lambda candidate: candidate[0])[1] if explained else None


def _tried(
    made: Variants, distance: Distance, low_rank: bool, roundings: Sequence[str]
) -> Iterator[tuple[float, Fault]]:
    """Yield variants with their distances; of all scales, only the nearest."""
    far = {scale: distance(made.scaled(scale)) for scale in SCALES}
    best = min(far, key=far.__getitem__)
    far |= {scale: distance(made.scaled(scale)) for scale in (best / 2**0.5, best * 2**0.5)}
    best = min(far, key=far.__getitem__)
    why = ": the scale of the update (alpha, rank) is read otherwise than in training" if low_rank else ""
    yield far[best], Fault("scale", f"{best:g}", f"with about {number(best)} times what training changed{why}")
    for place, names in made.parts().items():
        yield distance(made.without(names)), Fault("part", place, f"without what training changed in {place}")
    for kind in roundings:
        yield distance(made.rounded(kind)), Fault("rounding", kind, f"with its weights rounded to {kind.upper()}")


def rounding_distance(run: Run, distance: Callable[[LoadedModel], float], kind: str) -> float:
    """Return the distance of the tuned model with matrices rounded to a type; nan if it cannot be merged."""
    try:
        with variants(run) as made:
            return distance(made.rounded(kind))
    except NotMergeable:
        return math.nan
