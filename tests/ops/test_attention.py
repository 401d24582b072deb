"""attention: torch's own over a mask, as accurate as a composition, the same bits with any number of threads."""

import pytest
import torch

from ftengine.ops import use_instruction_set
from ftengine.ops.attention import FORWARD, Sequences, attention

CASES = {
    "one token": (0, [1], (4, 4, 8), 0),
    "rows": (0, [3, 70, 1], (9, 3, 64), 0),
    "rows of an odd depth": (0, [3, 70, 1], (3, 1, 33), 0),
    "rows in a window": (0, [3, 70, 1], (4, 4, 8), 17),
    "a shared prefix": (24, [5, 23, 1, 40], (9, 3, 64), 0),
    "a shared prefix in a window": (24, [5, 23, 1, 40], (9, 3, 64), 17),
    "answers to a prompt": (150, [1, 2, 1, 5], (9, 3, 64), 0),
    "answers in a window": (150, [1, 2, 1, 5], (9, 3, 40), 37),
    "answers of an odd depth": (21, [1, 1], (5, 5, 33), 0),
    "many heads of one": (24, [5, 23, 1, 40], (32, 1, 16), 0),
    "a long row": (0, [300], (6, 2, 80), 0),
    "a long row in a window": (0, [300], (32, 1, 16), 100),
}
"""What rows share, how long they are from there on, heads of queries, heads of keys and depth, and the window."""


def prefix_tree(shared, own):
    """Return the sequences of rows that begin alike, and how many tokens they have."""
    queries, keys, sizes, count = [*range(shared)], [*range(shared)], [(shared, shared)] * bool(shared), shared
    for length in own:
        new = range(count, count + length)
        queries, keys, count = [*queries, *new], [*keys, *range(shared), *new], count + length
        sizes.append((length, shared + length))
    return Sequences(*(torch.tensor(x) for x in (queries, keys, sizes))), count


def seen(sequences, count, window):
    """Return (count, count), which keys each query sees."""
    mask, query, key = torch.zeros(count, count, dtype=torch.bool), 0, 0
    for asked, length in sequences.sizes.tolist():
        path = sequences.keys[key : key + length]
        for place in range(length - asked, length):
            first = max(0, place + 1 - window) if window else 0
            mask[sequences.queries[query + place - length + asked], path[first : place + 1]] = True
        query, key = query + asked, key + length
    return mask


def results(function, operands, dout):
    out = function(*operands)
    return [out.detach(), *torch.autograd.grad(out, operands, dout)]


def drawn(count, heads, dtype):
    asked, read, depth = heads
    shapes = [(count, number, depth) for number in (asked, read, read, asked)]
    *operands, dout = (torch.randn(shape).to(dtype) for shape in shapes)
    return [x.requires_grad_() for x in operands], dout


def terms(operands, dout, mask, scale):
    """Return of out, dq, dk and dv how large the terms are of which gradients of scores are differences."""
    q, k, v, dout = (x.detach().double() for x in (*operands, dout))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    weights = (scale * torch.einsum("ihd,jhd->hij", q, k)).masked_fill(~mask, -torch.inf).softmax(-1)
    slopes = scale * weights * torch.einsum("ihd,jhd->hij", dout, v).abs()
    dq, dk = torch.einsum("hij,jhd->ihd", slopes, k.abs()), torch.einsum("hij,ihd->jhd", slopes, q.abs())
    return 0.0, float(dq.max()), float(dk.max()), 0.0


def composition(mask, scale):
    def attend(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = (scale * torch.einsum("ihd,jhd->hij", q, k)).masked_fill(~mask, -torch.inf)
        return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)

    return attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_as_accurate_as_the_composition(backend, case, dtype):
    shared, own, heads, window = CASES[case]
    sequences, count = prefix_tree(shared, own)
    operands, dout = drawn(count, heads, dtype)
    mask = seen(sequences, count, window)
    plain = composition(mask, 0.3)
    ours = results(lambda *x: attention(*x, sequences, 0.3, window), operands, dout)
    exact = results(plain, [x.detach().double().requires_grad_() for x in operands], dout.double())
    single, unit = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
    # A query with one key has no gradient, which is a difference of rounded numbers here and exactly 0 there.
    sizes = terms(operands, dout, mask, 0.3)
    for own, other, true, size in zip(ours, results(plain, operands, dout), exact, sizes, strict=True):
        assert (own.shape, own.dtype) == (other.shape, other.dtype)
        error, allowed = (own - true).abs().max(), 2 * (other - true).abs().max()
        assert error <= allowed + max(4 * single, unit) * size + unit * true.abs().max()


def test_gradients_in_fp64():
    sequences, count = prefix_tree(3, [2, 4])
    operands, _ = drawn(count, (4, 2, 3), torch.float64)
    torch.autograd.gradcheck(lambda *x: attention(*x, sequences, 0.7, 4), operands)


def test_threads_and_layouts_change_no_bit(instruction_set):
    sequences, count = prefix_tree(24, [60, 60, 300])
    operands, dout = drawn(count, (6, 2, 64), torch.float32)
    alone = results(lambda *x: attention(*x, sequences, 0.1), operands, dout)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        by_head = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in operands]
        again = results(lambda *x: attention(*x, sequences, 0.1), by_head, dout)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, again, strict=True))


def test_large_scores_overflow_nowhere(instruction_set):
    sequences, count = prefix_tree(0, [40])
    operands, dout = drawn(count, (2, 1, 16), torch.float32)
    plain = composition(seen(sequences, count, 0), 100.0)
    ours, others = (results(f, operands, dout) for f in (lambda *x: attention(*x, sequences, 100.0), plain))
    for one, other in zip(ours, others, strict=True):
        assert torch.isfinite(one).all()
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_what_is_not_a_number_stays_so(backend):
    sequences, count = prefix_tree(0, [5])
    (q, k, v), dout = drawn(count, (2, 1, 16), torch.float32)
    with torch.no_grad():
        q[2] = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    out, dq, *_ = results(lambda *x: attention(*x, sequences, 1.0), [q, k, v], dout)
    assert out[2].isnan().all()
    assert dq[2].isnan().all()
    assert out[[0, 1, 3, 4]].isfinite().all()


def test_autocast_changes_nothing(backend):
    sequences, count = prefix_tree(3, [5, 2])
    operands, _ = drawn(count, (2, 1, 16), torch.float32)
    expected = attention(*operands, sequences, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(*operands, sequences, 1.0), expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"queries": torch.tensor([0, 9])}, "queries has 9"),
        ({"keys": torch.tensor([0, -1])}, "keys has -1"),
        ({"sizes": torch.tensor([[2, 1]])}, "sequence 0 has 2 queries and 1 keys"),
        ({"sizes": torch.tensor([[1, 1]])}, "add up"),
        ({"sizes": torch.full((4, 2), 2**62)}, "add up"),
        ({"queries": torch.tensor([1, 1])}, "twice"),
        ({"k": torch.zeros(2, 3, 8)}, "multiple"),
        ({"v": torch.zeros(2, 2, 4)}, "agree"),
        ({"window": -1}, "window is -1"),
    ],
)
def test_operands_that_do_not_fit_are_refused(instruction_set, change, named):
    given = {"q": torch.zeros(2, 4, 8), "k": torch.zeros(2, 2, 8), "v": torch.zeros(2, 2, 8)}
    given |= {"queries": torch.arange(2), "keys": torch.arange(2), "sizes": torch.tensor([[2, 2]])}
    with use_instruction_set(instruction_set), pytest.raises(RuntimeError, match=named):
        FORWARD(**{**given, "scale": 1.0, "window": 0, **change})
