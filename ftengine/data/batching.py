"""Batches of similar length: padding costs time and carries no signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

BUCKET_BATCHES = 256
"""Batches in a bucket, inside which examples are sorted by length. Larger saves padding, smaller mixes lengths more."""


def epoch_batches(
    lengths: np.ndarray,
    size: int,
    seed: int,
    epoch: int,
    shares: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Shuffle examples into effective batches whose members have similar lengths.

    Examples are shuffled, cut into buckets of `BUCKET_BATCHES` batches, sorted by length inside each bucket, and the
    batches are shuffled again. The result depends only on the arguments, so that a resumed run gets the same batches.

    Args:
        lengths: (examples,) tokens of each example.
        size: examples an optimiser step, over all micro-batches and processes.
        epoch: 0, 1, ….
        shares: (examples,) probabilities for drawing with replacement, as many as there are examples; None: each once.
        order: the epoch's examples, already shuffled; None: they follow from `shares`.

    Returns:
        One index array a step, longest example first; the last one may be smaller.
    """
    rng = np.random.default_rng([seed, epoch])
    if order is None:
        order = rng.permutation(len(lengths)) if shares is None else rng.choice(len(lengths), len(lengths), p=shares)
    batches = []
    for start in range(0, len(order), size * BUCKET_BATCHES):
        bucket = order[start : start + size * BUCKET_BATCHES]
        bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def micro_batches(
    batch: np.ndarray,
    size: int,
    rank: int = 0,
    ranks: int = 1,
    *,
    lengths: np.ndarray | None = None,
    tokens: int = 0,
    computed: Callable[[np.ndarray], int | None] | None = None,
    order: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Split an effective batch into one process's micro-batches, neighbours in length together.

    Args:
        batch: indices, longest first.
        size: examples a micro-batch.
        rank, ranks: this process and their number; each takes every ranks-th example.
        lengths: (examples,) tokens of each.
        tokens: most tokens of a micro-batch of several examples, padding included; 0 for no limit.
        computed: returns how many tokens of a micro-batch are computed; None: all, and padding. If they are fewer, it
        may have more examples, as long as the computed tokens do not exceed `tokens` or, where rows share tokens,
        twice the longest example.
        order: returns a process's examples in the order in which they are divided; None: as they are.
    """
    mine, parts = batch[rank::ranks], list[np.ndarray]()
    several = len(mine) > size or (lengths is not None and 0 < tokens < int(lengths[mine].max(initial=0)) * len(mine))
    if order is not None and several:
        mine = order(mine)
    while len(mine):
        count = min(size, len(mine))
        if lengths is not None and tokens:
            longest = max(1, int(lengths[mine[:count]].max()))
            fit = min(count, max(1, tokens // longest))
            count = fit if computed is None else _most(mine[:count], fit, lengths, tokens, computed)
        parts.append(mine[:count])
        mine = mine[count:]
    return parts


def _most(
    mine: np.ndarray, fit: int, lengths: np.ndarray, tokens: int, computed: Callable[[np.ndarray], int | None]
) -> int:
    """Return how many examples, `fit` or more, may be computed together."""

    def allowed(part: np.ndarray) -> bool:
        cost = computed(part)
        share = cost is not None and cost < lengths[part].sum()
        return cost is not None and cost <= (max(tokens, 2 * int(lengths[part].max())) if share else tokens)

    count = tried = len(mine)
    while fit < count:
        if allowed(mine[:tried]):
            fit = tried
        else:
            count = tried - 1
        tried = (fit + count + 1) // 2
    return fit


def batches_in_step(
    members: np.ndarray,
    size: int,
    rank: int,
    ranks: int,
    *,
    fill: bool,
    lengths: np.ndarray | None = None,
    tokens: int = 0,
    computed: Callable[[np.ndarray], int | None] | None = None,
    order: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[tuple[np.ndarray, bool]]:
    """Return one process's micro-batches (as in `micro_batches`), and for each whether it counts in the loss.

    With `fill` all processes get the same number, because all take part in every forward pass of a sharded model. A
    micro-batch that is filled in has one example of another process and does not count.
    """

    def of(rank: int) -> list[np.ndarray]:
        return micro_batches(members, size, rank, ranks, lengths=lengths, tokens=tokens, computed=computed, order=order)

    mine = [(batch, True) for batch in of(rank)]
    most = max(len(of(other)) for other in range(ranks)) if fill else 0
    return mine + [(members[-1:], False)] * (most - len(mine))


def by_length(lengths: np.ndarray) -> np.ndarray:
    """Return indices, longest example first."""
    return np.argsort(-lengths, kind="stable")


def padding_share(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Return the number of padding tokens per real token when every batch is padded to its longest example."""
    real = sum(int(lengths[batch].sum()) for batch in batches)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches if len(batch))
    return (padded - real) / real if real else 0.0


def as_numbers(values: Sequence[float] | np.ndarray) -> Any:
    """Return numbers of examples as a batch has them: a tensor in float32."""
    import torch

    return torch.as_tensor(np.asarray(values, dtype=np.float32))
