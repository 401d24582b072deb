"""Worlds without an effect, which `coverage.py` draws: how rows hang together, and what equally good models say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from ftengine.evaluation.table import Predictions


@dataclass(frozen=True)
class World:
    """How rows hang together, and what models are like.

    Args:
        groups: drawn independently.
        rows: of each group, on average.
        unequal: whether groups have lognormal sizes (σ = 0.9) rather than equal ones.
        icc: what the rows of a group have in common of each normal variable behind them.
        copies: whether rows stand there once or up to five times.
        named: whether the table says which rows are of one group.
        accuracy: of each model; `rare` is the share of label 0.
        tails: degrees of freedom of what makes a loss, Student's t; infinite for normal.
    """

    groups: int
    rows: int = 1
    unequal: bool = False
    icc: float = 0.0
    copies: bool = False
    named: bool = True
    accuracy: float = 0.8
    rare: float = 0.4
    tails: float = math.inf

    @property
    def population(self) -> World:
        """The same models on independent examples."""
        return World(1, accuracy=self.accuracy, rare=self.rare, tails=self.tails)


WORLDS = {
    "independent, 50": World(50),
    "independent, 200": World(200),
    "tiny: 12 rows": World(12),
    "unbalanced, 200": World(200, accuracy=0.95, rare=0.05),
    "nearly perfect, 200": World(200, accuracy=0.98),
    "heavy-tailed, 200": World(200, tails=3),
    "duplicated, 100": World(100, copies=True),
    "20 groups, ICC 0.1": World(20, 8, icc=0.1),
    "20 groups, ICC 0.3": World(20, 8, icc=0.3),
    "20 unequal groups, ICC 0.1": World(20, 8, unequal=True, icc=0.1),
    "20 unequal groups, ICC 0.3": World(20, 8, unequal=True, icc=0.3),
    "50 unequal groups, ICC 0.3": World(50, 8, unequal=True, icc=0.3),
    "clustered: 30 groups, ICC 0.8, copies": World(30, 4, unequal=True, icc=0.8, copies=True),
    "guessing: 50 groups, ICC 0.3": World(50, 8, icc=0.3, accuracy=0.6),
    "10 groups, ICC 0.3": World(10, 8, icc=0.3),
}
OTHERS = (
    "independent, 50",
    "independent, 200",
    "duplicated, 100",
    "20 groups, ICC 0.3",
    "20 unequal groups, ICC 0.3",
    "50 unequal groups, ICC 0.3",
)
"""Worlds in which the other evaluators are looked at too."""


class Draw:
    """Rows of a world, and normal variables of them."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng = world, np.random.default_rng([seed, crc32(repr(world).encode())])
        size = np.full(world.groups, world.rows)
        if world.unequal:
            spread = self.rng.normal(-(0.9**2) / 2, 0.9, world.groups)
            size = np.maximum(1, np.round(world.rows * np.exp(spread))).astype(int)
        self.group = np.repeat(np.arange(world.groups), size)
        self.distinct = len(self.group)
        times = self.rng.integers(1, 6, self.distinct) if world.copies else 1
        self.of = np.repeat(np.arange(self.distinct), times)

    def normal(self) -> np.ndarray:
        """Return a standard normal number of each distinct row."""
        common = math.sqrt(self.world.icc) * self.rng.normal(size=self.world.groups)[self.group]
        return common + math.sqrt(1 - self.world.icc) * self.rng.normal(size=self.distinct)

    def by_group(self, values: int) -> np.ndarray:
        """Return one of so many values for each distinct row, the same within a group."""
        return self.rng.integers(0, values, self.world.groups)[self.group]

    def tables(self, models: int, better: Mapping[str, float] | None = None) -> list[Predictions]:
        """Return what equally good models said of the rows; with `better`, the last is better by so much."""
        world = self.world
        label, size = (self.normal() > ndtri(world.rare)).astype(int), self.normal()
        hard, heavy = self.normal(), self.normal()
        kind, region = self.rng.integers(0, 3, self.distinct), self.by_group(2)
        tokens, found = np.exp(3 + 0.7 * size), []
        for number in range(models):
            gain = better if better and number == models - 1 else {}
            z = math.sqrt(0.5) * hard + math.sqrt(0.5) * self.normal()
            odds = (2 * label - 1) * ndtri(world.accuracy + gain.get("accuracy", 0)) + z
            own = math.sqrt(0.7) * heavy + math.sqrt(0.3) * self.normal()
            if math.isfinite(world.tails):  # of a normal variable to Student's t of the same rank
                own = stdtrit(world.tails, ndtr(own)) / math.sqrt(world.tails / (world.tails - 2))
            sure = 1 / (1 + np.exp(-1.5 * odds))
            found.append(
                {
                    "label": label,
                    "predicted": (odds > 0).astype(int),
                    "logits": np.column_stack([0 * odds, 1.5 * odds]),
                    "scores": np.column_stack([1 - sure, sure]),
                    "tokens": tokens,
                    "loss": tokens * (2 - 0.1 * size + 0.4 * own - gain.get("loss", 0)),
                    "slice.kind": kind.astype(str).astype(object),
                    "slice.region": region.astype(str).astype(object),
                }
            )
        return [self._table(one) for one in found]

    def other_tables(self, models: int) -> list[Predictions]:
        """Return what equally good models said where there are several labels, numbers, tagged words or answers."""
        target, hard, size = self.normal(), self.normal(), np.exp(2.5 + 0.5 * self.normal()).astype(int) + 4
        label = np.column_stack([self.normal() < ndtri(share) for share in (0.5, 0.3, 0.15)]).astype(int)
        entities, to_refuse = self.rng.poisson(1, (self.distinct, 2)), self.rng.integers(0, 2, self.distinct)
        grams, found = np.arange(4), []
        for _ in range(models):
            z = math.sqrt(0.5) * hard + math.sqrt(0.5) * self.normal()
            odds = (2 * label - 1) * ndtri(0.85) + z[:, None] * 0.8 + 0.6 * self.rng.normal(size=label.shape)
            good = ndtr(z)  # in (0, 1), of each answer
            whole = np.where(good > 0.8, 1.0, good)
            matches = self.rng.binomial(size[:, None] - grams, whole[:, None] ** (1 + grams))
            letters = np.repeat(5 * size[:, None], 6, axis=1)
            both = self.rng.binomial(letters, whole[:, None] ** np.linspace(0.3, 1, 6))
            tagged = self.rng.binomial(entities, good[:, None])
            found.append(
                {
                    "target": target,
                    "value": 0.8 * target + 0.6 * z,
                    "label": label,
                    "predicted": (odds > 0).astype(int),
                    "scores": 1 / (1 + np.exp(-1.5 * odds)),
                    "entities.right": self.rng.binomial(size, 0.7 + 0.3 * good),
                    "entities.words": size,
                    "entities.entities": np.hstack([tagged, tagged + self.rng.poisson(0.3, entities.shape), entities]),
                    # ROUGE is a mean over answers as token F1 is.
                    **{f"generation.{name}": whole for name in ("token_f1", "rouge1", "rouge2", "rougeL")},
                    "generation.exact_match": (whole == 1).astype(float),
                    "generation.bleu": np.hstack([np.column_stack([size, size]), matches, size[:, None] - grams]),
                    "generation.chrf": np.stack([letters, letters, both], axis=2).reshape(len(size), 18),
                    "refusal.to_refuse": to_refuse,
                    "refusal.refused": (np.where(to_refuse, 1.0, -1.0) + z > 0).astype(int),
                    "memorisation.verbatim": (good > 0.95).astype(float),
                    "memorisation.prefix_verbatim": (good > 0.9).astype(float),
                    "memorisation.longest_run": good,
                }
            )
        return [self._table(one) for one in found]

    def _table(self, columns: Mapping[str, np.ndarray]) -> Predictions:
        beside = {"row": np.arange(len(self.of)), "group": self.group[self.of], "duplicate": self.of}
        if not self.world.named:
            beside["group"] = self.of
        return Predictions(beside | {name: column[self.of] for name, column in columns.items()})
