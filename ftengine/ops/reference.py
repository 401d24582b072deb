"""The low-rank operations in plain PyTorch: their definition, and the fallback for devices without compiled kernels.

Hu et al. 2021, arXiv:2106.09685, §4.1, with dropout on the low-rank path, x̂ = mask ∘ x / (1 - p):

    S  = x̂ Aᵀ                  y += scale · S Bᵀ
    dS = scale · dy B           dB = scale · dyᵀ S
    dA = dSᵀ x̂                  dx += mask ∘ (dS A) / (1 - p)

Dtypes: the large operand (x, y, dy, w) determines the dtype, and the small ones (s, ds, a, b) are rounded to it once.
Products accumulate in fp32, as ATen's do. Gradients of a and b have the dtypes of a and b.

The mask is made for some rows at a time and never stored as a whole. It selects bits, so a dropped element contributes
nothing, even if it is infinite.

Products with few columns are written with the rank first, (r, M) = A x̂ᵀ, because MKL is up to five times faster then.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ftengine.ops.dropout import LEVELS, dropout_level
from ftengine.ops.philox import keep_mask

# Elements of x that are masked at once. On a CPU, Philox's int64 lanes for them (0.5 MB each) stay in cache and are
# still enough for ATen to use two threads; elsewhere fewer, larger launches. Constants, so that sums do not depend on
# the number of threads.
CHUNK_ON_CPU = 1 << 19
CHUNK_ELSEWHERE = 1 << 24

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by element size


def lowrank_shrink(x: Tensor, a: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """Return s = dropout(x) Aᵀ.  x (M, K), a (r, K) -> s (M, r) in x's dtype, rounded once."""
    a = a.to(x.dtype)
    n = dropout_level(p)
    if n == 0:
        return (a @ x.T).T.contiguous()
    s = x.new_empty(x.shape[0], a.shape[0])
    for rows, mask in _masks(x, n, seed):
        s[rows] = _product(a, _select(x[rows], mask).T, LEVELS / (LEVELS - n)).T
    return s


def lowrank_expand_(y: Tensor, s: Tensor, b: Tensor, scale: float) -> None:
    """Add scale · S Bᵀ to y in place.  y (M, N), s (M, r), b (N, r)."""
    y.addmm_(s.to(y.dtype), b.to(y.dtype).T, alpha=scale)


def lowrank_backward_output(dy: Tensor, s: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return ds = scale · dy B and db = scale · dyᵀ S.  dy (M, N), s (M, r), b (N, r) -> ds (M, r), db (N, r)."""
    ds = _product(b.to(dy.dtype).T, dy.T, scale).T.contiguous()
    db = _product(s.to(dy.dtype).T, dy, scale).T.contiguous()
    return ds, db.to(b.dtype)


def lowrank_backward_input_(
    dx: Tensor | None, x: Tensor, ds: Tensor, a: Tensor, p: float, seed: Tensor | None
) -> Tensor:
    """Add mask ∘ (dS A) / (1 - p) to dx in place, unless it is None, and return da = dSᵀ dropout(x).

    dx (M, K), x (M, K), ds (M, r), a (r, K) -> da (r, K). One mask serves both.
    """
    ds, factor = ds.to(x.dtype), a.to(x.dtype)
    n = dropout_level(p)
    if n == 0:
        if dx is not None:
            dx.addmm_(ds, factor)
        return (ds.T @ x).to(a.dtype)
    inverse = LEVELS / (LEVELS - n)
    da = torch.zeros(a.shape, device=a.device, dtype=_accumulator(x.dtype))
    for rows, mask in _masks(x, n, seed):
        da += _product(ds[rows].T, _select(x[rows], mask), inverse)
        if dx is not None:
            update = _product(ds[rows], factor, inverse)
            update.view(mask.dtype).bitwise_and_(mask)
            dx[rows] += update
    return da.to(a.dtype)


def lowrank_merge_(w: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Add scale · B A to w in place, rounding once.  w (N, K), a (r, K), b (N, r)."""
    wide = _accumulator(w.dtype)
    a, b = a.to(wide), b.to(wide)
    for rows in _row_chunks(w):
        w[rows] = torch.addmm(w[rows].to(wide), b[rows], a, alpha=scale)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return scale · left right, where ATen scales the fp32 accumulator, hence with one rounding."""
    return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=scale)


def _select(x: Tensor, mask: Tensor) -> Tensor:
    """Return x where the mask is -1, exact zeros where it is 0."""
    return (x.view(mask.dtype) & mask).view(x.dtype)


def _masks(x: Tensor, n: int, seed: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of x and their mask, -1 or 0, as integers of the size of x's elements."""
    if seed is None:
        raise ValueError(f"dropout with p = {n / LEVELS} needs a seed; draw one with ftengine.ops.draw_seed()")
    for rows in _row_chunks(x):
        mask = keep_mask(seed, n, rows.start, rows.stop - rows.start, x.shape[1])
        yield rows, mask.to(BITS[x.element_size()])


def _row_chunks(x: Tensor) -> Iterator[slice]:
    rows, columns = x.shape
    step = max(1, (CHUNK_ON_CPU if x.device.type == "cpu" else CHUNK_ELSEWHERE) // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
