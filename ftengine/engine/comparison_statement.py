"""What a comparison of strategies says in words."""

from __future__ import annotations

from collections.abc import Sequence

from ftengine.run.comparison import PairDifference
from ftengine.text import ends, few_groups, probability, sample_size, with_ends


def statement(
    metric: str,
    split: str,
    examples: int,
    differences: Sequence[PairDifference],
    *,
    rows: int | None = None,
    worth: float | None = None,
    best: str | None = None,
    strategies: int = 2,
    seeds: int = 1,
    higher_is_better: bool | None = None,
) -> str:
    """Describe which differences the data supports, one per line, and how that was decided.

    `best` is the strategy that the others were compared with, None where every pair was; `strategies` is how many
    are ranked, each trained with so many `seeds`. `examples`, `rows`, `worth` and `higher_is_better` are as
    `Comparison` has them.
    """
    pairs = strategies * (strategies - 1) // 2
    if not pairs:
        return f"{'Only one' if strategies else 'No'} strategy gives usable answers, so none are ranked."
    which = f". The best, {best}, against each other strategy" if best else ". Each pair of strategies" * (pairs > 1)
    p = "adjusted " if pairs > 1 else ""
    lines = [f"  {_comparison(difference, p, best, higher_is_better)}" for difference in differences]
    how = f", p-values adjusted for all {pairs} pairs (Holm)" if pairs > 1 else ""
    shown = ""
    if best:
        how += ", as these examples also chose the best"
        shown = "Compared: the best with each other strategy (all pairs: --all-pairs). "
    seed = "each strategy was trained with one seed, so these figures do not show how results vary between seeds."
    if seeds > 1:
        seed = (
            f"each strategy was trained with {seeds} seeds. Intervals and p-values cover other seeds and other "
            "examples (crossed random effects; Student's t with Satterthwaite's degrees of freedom)."
        )
    head = f"On {metric}, {sample_size(examples, rows, f'distinct {split} example')}{which}:"
    paired = f"{shown}Paired by example{'' if rows is None else ', resampled by group'}{how}; {seed}"
    return "\n".join(filter(None, [head, *lines, paired, few_groups(examples, worth)]))


def _comparison(pair: PairDifference, p: str, best: str | None, higher_is_better: bool | None) -> str:
    """Describe the difference between two strategies."""
    pair = pair.negated() if pair.second == best else pair
    if ends(pair) is None or pair.p_adjusted is None:
        return f"{pair.first} and {pair.second}: too few examples to tell"
    chance = f"{p}{probability(pair.p_adjusted)}"
    if pair.supported:
        wins = pair.better if pair.better is not None else pair.value > 0
        winner, other = [pair.first, pair.second][:: 1 if wins else -1]
        word, size = "higher" if pair.better is None else "better", pair if pair.value > 0 else pair.negated()
        return f"{winner} is {word} than {other} by {with_ends(size)}, {chance}"
    agreement = _by_seed(pair, higher_is_better)
    return f"{pair.first} minus {pair.second}: {with_ends(pair, sign=True)}, not beyond chance, {chance}{agreement}"


def _by_seed(pair: PairDifference, higher_is_better: bool | None) -> str:
    """Say with how many seeds the first strategy is better, and how many would settle it; "" for a single seed."""
    if not pair.by_seed:
        return ""
    ahead = sum(value < 0 if higher_is_better is False else value > 0 for value in pair.by_seed)
    word = "higher" if higher_is_better is None else "better"
    needed = f"; {pair.settled_by} seeds each would settle it if mean and spread stayed" if pair.settled_by else ""
    return f" ({word} with {ahead} of {len(pair.by_seed)} seeds: this is not settled{needed})"
