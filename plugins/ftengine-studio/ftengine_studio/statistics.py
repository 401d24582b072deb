"""Statistics of judgements: win rates with intervals and tests, agreement of judges, and the effect of length.

All functions take judgements of one pair of answers' makers (`left` and `right` are one of two names) and count each
prompt once: what several judges say of a prompt is averaged first, so that an interval over prompts stays honest.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from scipy.special import expit

from ftengine.evaluation import CHANCE, holm

if TYPE_CHECKING:
    from ftengine_studio.judgements import Judgement

CONFIDENCE, POWER = 0.95, 0.8
NORMAL = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
LEAST_SLICE = 5
"""Judged prompts from which a slice has figures of its own."""
SEPARATED = 15.0
"""Size of a coefficient from which length tells preference without exception: no finite one fits."""
NOTHING_KNOWN = 0.98
"""Width of an interval that says nothing."""
MOST_NEEDED = 100_000
"""Prompts beyond which no number is given: the preference is then too near to a half."""


@dataclass(frozen=True)
class WinRate:
    """How often one side is preferred over the other.

    Args:
        value: mean over prompts of 1 (preferred), 1/2 (tie or both bad) and 0.
        low, high: 95 % interval.
        prompts, judgements, judges: their numbers, without skipped prompts.
        ties, both_bad: shares of the judgements.
        wins, losses: prompts whose judges prefer the side, or the other, on average.
        p: of the exact sign test over `wins` and `losses`; None without either.
        needed: further prompts for a power of 80 % if the true preference is `value`; 0 if the test decides already,
            None if `value` is too near to 1/2.
    """

    value: float
    low: float
    high: float
    prompts: int
    judgements: int
    judges: int
    ties: float
    both_bad: float
    wins: int
    losses: int
    p: float | None
    needed: int | None

    @property
    def is_settled(self) -> bool:
        """Whether a preference is beyond chance: by the interval and by the test."""
        return self.p is not None and self.p <= CHANCE and not self.low <= 0.5 <= self.high


def score(judgement: Judgement, side: str) -> float | None:
    """Return 1 if a side is preferred, 0 if the other is, 1/2 if neither; None if the prompt was skipped."""
    if judgement.verdict == "skip":
        return None
    if judgement.verdict in ("tie", "both-bad"):
        return 0.5
    return float((judgement.left if judgement.verdict == "left" else judgement.right) == side)


def scores_by_prompt(judgements: Iterable[Judgement], side: str) -> dict[int, float]:
    """Return the mean score of each judged prompt, in the order of the prompts."""
    scores = dict[int, list[float]]()
    for judgement in judgements:
        if (value := score(judgement, side)) is not None:
            scores.setdefault(judgement.prompt, []).append(value)
    return {prompt: float(np.mean(scores[prompt])) for prompt in sorted(scores)}


def win_rate(judgements: Iterable[Judgement], side: str) -> WinRate | None:
    """Return how often `side` is preferred; None if no prompt was judged."""
    judged = [judgement for judgement in judgements if judgement.verdict != "skip"]
    if not judged:
        return None
    scores = np.array(list(scores_by_prompt(judged, side).values()))
    value, wins, losses = float(scores.mean()), int((scores > 0.5).sum()), int((scores < 0.5).sum())
    low, high = interval_of(scores)
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None
    return WinRate(
        value=value,
        low=low,
        high=high,
        prompts=len(scores),
        judgements=len(judged),
        judges=len({judgement.judge for judgement in judged}),
        ties=float(np.mean([judgement.verdict == "tie" for judgement in judged])),
        both_bad=float(np.mean([judgement.verdict == "both-bad" for judgement in judged])),
        wins=wins,
        losses=losses,
        p=p,
        needed=0 if p is not None and p <= CHANCE else _needed(scores),
    )


def _with_few_more(scores: np.ndarray) -> tuple[float, float]:
    """Return mean and variance of scores with half a win, half a loss and a tie more."""
    extended = np.concatenate([scores, [1.0, 0.0, 0.5]])
    weights = np.concatenate([np.ones(len(scores)), [0.5, 0.5, 1.0]])
    mean = float(np.average(extended, weights=weights))
    return mean, float(np.average((extended - mean) ** 2, weights=weights))


def interval_of(scores: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean of prompts' scores, which are in [0, 1].

    It is Wilson's at the binomial sample size with the scores' variance (Korn & Graubard 1998). For the variance, half
    a win, half a loss and a tie are added (Agresti & Min 2005), as unanimous scores would otherwise have an interval of
    no width. In simulations with 20 prompts or more, preferences of 5 to 95 % and up to 90 % ties, it covers the true
    value in at least 92 %, and on average in 95 % of sets.
    """
    mean, variance = _with_few_more(scores)
    return wilson(float(scores.mean()), len(scores) * mean * (1 - mean) / variance)


def wilson(value: float, tosses: float, quantile: float = NORMAL) -> tuple[float, float]:
    """Return Wilson's interval of a proportion of `tosses` trials, which need not be an integer.

    Args:
        quantile: half-width in standard errors, by default that of the normal distribution.
    """
    from statsmodels.stats.proportion import proportion_confint

    alpha = 2 * float(stats.norm.sf(quantile))
    low, high = proportion_confint(value * tosses, tosses, alpha=alpha, method="wilson")
    return float(low), float(high)


def _needed(scores: np.ndarray) -> int | None:
    """Return how many further prompts a paired t-test of this effect needs for 80 % power; None if it is too many."""
    from statsmodels.stats.power import TTestPower

    _, variance = _with_few_more(scores)
    effect = abs(float(scores.mean()) - 0.5) / math.sqrt(variance)
    if effect == 0 or len(scores) < 2:
        return None
    if TTestPower().power(effect, MOST_NEEDED, CHANCE) < POWER:
        return None
    enough = TTestPower().solve_power(effect_size=effect, alpha=CHANCE, power=POWER)
    return max(1, math.ceil(float(np.ravel(enough)[0])) - len(scores))


def by_slice(
    judgements: Sequence[Judgement], side: str, slices: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[str, tuple[WinRate, float | None]]]:
    """Return the win rate in each slice of at least `LEAST_SLICE` prompts, with its p adjusted for all slices (Holm).

    Args:
        slices: for each column, the value of each prompt.
    """
    rates = dict[tuple[str, str], WinRate]()
    for column, values in slices.items():
        for value in sorted(set(values.values())):
            rate = win_rate([one for one in judgements if values.get(one.prompt) == value], side)
            if rate is not None and rate.prompts >= LEAST_SLICE:
                rates[column, value] = rate
    adjusted = holm({key: rate.p for key, rate in rates.items()})
    found = dict[str, dict[str, tuple[WinRate, float | None]]]()
    for (column, value), rate in rates.items():
        found.setdefault(column, {})[value] = rate, adjusted.get((column, value))
    return found


@dataclass(frozen=True)
class Agreement:
    """How much judges agree on prompts that several of them judged.

    Args:
        alpha: Krippendorff's, of the nominal values "one side", "the other", "neither" (a tie or both bad): 1 is full
            agreement, 0 that of chance; None if all judgements are the same, where it is undefined.
        kappas: Cohen's, by pair of judges with shared prompts; None where it is undefined.
        same: share of pairs of judgements of a prompt that are the same.
        prompts: number of prompts with several judges.
    """

    alpha: float | None
    kappas: dict[tuple[str, str], float | None]
    same: float
    prompts: int


def agreement(judgements: Iterable[Judgement], side: str) -> Agreement | None:
    """Return the agreement between judges; None if no prompt has several."""
    labels = dict[int, dict[str, str]]()
    for judgement in judgements:
        if (value := score(judgement, side)) is not None:
            said = {0.0: "other", 0.5: "neither"}.get(value, "side")
            name = judgement.judge if judgement.kind == "person" else f"model {judgement.judge}"
            labels.setdefault(judgement.prompt, {})[name] = said
    shared = {prompt: said for prompt, said in labels.items() if len(said) > 1}
    if not shared:
        return None
    pairs = [a == b for said in shared.values() for a, b in combinations(said.values(), 2)]
    kappas = dict[tuple[str, str], float | None]()
    for first, second in combinations(sorted({judge for said in shared.values() for judge in said}), 2):
        both = [(said[first], said[second]) for said in shared.values() if first in said and second in said]
        if both:
            kappas[first, second] = _kappa(*zip(*both, strict=True))
    return Agreement(_alpha(shared), kappas, float(np.mean(pairs)), len(shared))


def _alpha(shared: Mapping[int, Mapping[str, str]]) -> float | None:
    from nltk.metrics.agreement import AnnotationTask

    if len({label for said in shared.values() for label in said.values()}) < 2:
        return None
    triples = [(judge, prompt, label) for prompt, said in shared.items() for judge, label in said.items()]
    return float(AnnotationTask(data=triples).alpha())


def _kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    return None if len({*first, *second}) < 2 else float(cohen_kappa_score(first, second))


@dataclass(frozen=True)
class Length:
    """Whether longer answers are preferred.

    Args:
        longer_wins: prompts whose longer answer is preferred; `shorter_wins` those whose shorter one is.
        p: of the exact sign test of these two; None without either.
        preferred, other: mean characters of preferred answers and of those they were preferred over.
        controlled: the side's win rate if both answers were equally long, with its 95 % interval; None where the
            judgements cannot tell, as when length and preference go together without exception.
    """

    longer_wins: int
    shorter_wins: int
    p: float | None
    preferred: float | None
    other: float | None
    controlled: tuple[float, float, float] | None

    @property
    def decides(self) -> bool:
        """Whether the longer (or the shorter) answer is preferred beyond chance."""
        return self.p is not None and self.p <= CHANCE


def length(judgements: Sequence[Judgement], side: str) -> Length:
    """Return the relation of answers' lengths and preference, each prompt counted once."""
    scores = scores_by_prompt(judgements, side)
    difference = dict[int, list[float]]()
    chosen = list[tuple[int, int]]()
    for one in judgements:
        left, right = one.left_length, one.right_length
        difference.setdefault(one.prompt, []).append(left - right if one.left == side else right - left)
        if one.verdict in ("left", "right"):
            chosen.append((left, right) if one.verdict == "left" else (right, left))
    longer = np.array([float(np.mean(difference[prompt])) for prompt in scores])
    values = np.array(list(scores.values()))
    together = np.sign(values - 0.5) * np.sign(longer)
    wins, losses = int((together > 0).sum()), int((together < 0).sum())
    preferred, other = np.mean(chosen, axis=0) if chosen else (None, None)
    return Length(
        longer_wins=wins,
        shorter_wins=losses,
        p=float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None,
        preferred=None if preferred is None else float(preferred),
        other=None if other is None else float(other),
        controlled=length_controlled(values, longer),
    )


def length_controlled(scores: np.ndarray, longer: np.ndarray) -> tuple[float, float, float] | None:
    """Return the win rate at equal lengths with its interval, as AlpacaEval 2 defines it.

    P(side preferred) = logistic(model + length · tanh(difference / its standard deviation)), at difference 0
    (Dubois et al. 2024, arXiv:2404.04475, eq. 2). Their third term, the difficulty of each of their instructions for
    many models, has no counterpart on other prompts. Fitted by statsmodels without a penalty, so that it has an
    interval, from a covariance that holds for ties as halves and for prompts of several judges.

    Args:
        scores: (n,) in [0, 1], one a prompt.
        longer: (n,) characters of the side's answer minus those of the other.
    """
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    spread = float(np.std(longer, ddof=1)) if len(longer) > 1 else 0.0
    if len(scores) < 3 or spread == 0 or len(set(scores)) < 2:
        return None
    design = np.column_stack([np.ones(len(scores)), np.tanh(longer / spread)])
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of separation, which is handled
            fitted = sm.GLM(scores, design, family=sm.families.Binomial()).fit(cov_type="HC1", use_t=True)
    except (PerfectSeparationError, np.linalg.LinAlgError):
        return None
    middle, error = float(fitted.params[0]), float(fitted.bse[0])
    if not fitted.converged or np.abs(fitted.params).max() > SEPARATED or not math.isfinite(error):
        return None
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(scores) - 2)) * error
    value, low, high = (float(expit(x)) for x in (middle, middle - reach, middle + reach))
    return (value, low, high) if high - low < NOTHING_KNOWN else None
