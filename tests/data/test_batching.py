"""Batches hold every example once, similar lengths together, and depend on (seed, epoch) alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ftengine.data.batching import batches_in_step, epoch_batches, micro_batches


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=300),
    st.integers(1, 16),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_an_epoch_holds_every_example_once(lengths, size, seed, epoch):
    batches = epoch_batches(np.array(lengths), size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert all(len(batch) <= size for batch in batches)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 4), st.integers(0, 1000)
)
def test_processes_and_micro_batches_share_a_batch_without_overlap(lengths, size, ranks, tokens):
    lengths, batch = np.sort(lengths)[::-1], np.arange(len(lengths))
    shares = [micro_batches(batch, size, rank, ranks, lengths=lengths, tokens=tokens) for rank in range(ranks)]
    parts = [part for share in shares for part in share]
    assert sorted(np.concatenate(parts).tolist()) == batch.tolist()
    assert all(len(part) <= size for part in parts)
    assert all(len(part) == 1 or not tokens or len(part) * lengths[part].max() <= tokens for part in parts)
    assert max(map(len, shares)) == len(shares[0])


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 400),
    st.integers(0, 60),
)
def test_a_micro_batch_is_as_large_as_what_is_computed_of_it_allows(own, size, tokens, shared):
    lengths, batch = np.sort(own)[::-1] + shared, np.arange(len(own))

    def count(part):
        return shared + int((lengths[part] - shared).sum())

    parts = micro_batches(batch, size, lengths=lengths, tokens=tokens, computed=count)
    assert np.concatenate(parts).tolist() == batch.tolist()
    for part, after in zip(parts, [*parts[1:], []], strict=True):
        limit = max(tokens, 2 * lengths[part[0]]) if shared and len(part) > 1 else tokens
        assert len(part) == 1 or count(part) <= limit or len(part) * lengths[part[0]] <= tokens
        more = max(tokens, 2 * lengths[part[0]]) if shared else tokens
        assert len(part) == size or not len(after) or count(np.append(part, after[0])) > more
    assert all(
        (one == other).all()
        for one, other in zip(
            micro_batches(batch, size, lengths=lengths, tokens=tokens, computed=lambda _: None),
            micro_batches(batch, size, lengths=lengths, tokens=tokens),
            strict=True,
        )
    )


def test_the_same_seed_and_epoch_give_the_same_batches_and_another_epoch_others():
    lengths = np.random.default_rng(0).integers(1, 100, 200)
    first, again, other = (epoch_batches(lengths, 8, 1, epoch) for epoch in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True) if len(a) == len(b))


def test_every_process_has_as_many_batches_where_that_is_wanted():
    """Five examples for three processes, one a batch: the third fills in an example that does not count."""
    members = np.arange(10, 15)
    filled = [batches_in_step(members, 1, rank, 3, fill=True) for rank in range(3)]
    assert [len(batches) for batches in filled] == [2, 2, 2]
    counted = sorted(int(i) for batches in filled for batch, counts in batches if counts for i in batch)
    assert counted == members.tolist()
    assert [counts for _, counts in filled[2]] == [True, False]
    assert [len(batches_in_step(members, 1, rank, 3, fill=False)) for rank in range(3)] == [2, 2, 1]


def test_shares_say_how_often_examples_are_drawn():
    lengths, rare = np.arange(1, 2001), np.arange(2000) < 100
    shares = 1 / (2 * np.where(rare, 100, 1900))
    first, again, other = (np.concatenate(epoch_batches(lengths, 8, 1, epoch, shares)) for epoch in (0, 0, 1))
    assert len(first) == 2000
    assert abs(rare[first].mean() - 0.5) < 4 * 0.5 / 2000**0.5
    assert first.tolist() == again.tolist() != other.tolist()
    assert all(np.all(np.diff(lengths[batch]) <= 0) for batch in epoch_batches(lengths, 8, 1, 0, shares))
